"""What surrounds a re-authentication: when one begins, how often, and what ends it."""

from __future__ import annotations

import pytest

from qproxy.errors import LocalProtocolError, Reason
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochDue,
    Event,
    Reauthenticated,
    ReauthenticationDue,
    TunnelClosed,
)
from qproxy.tunnel.frames import FrameType
from qproxy.tunnel.settings import Role
from qproxy.tunnel.timers import REAUTH_GRACE_S
from tests.tunnel.adversary import inject_frame
from tests.tunnel.helpers import CLIENT, SERVER, Pair, established, replace
from tests.tunnel.rules import BOTH, client_epochs, server_epochs

NO_OTHER_LIMITS = {"max_epoch_age_s": 0.0, "rekey_interval_s": 0.0, "peer_timeout_s": 1e6}


def with_intervals(client: float, server: float) -> Pair:
    return established(
        replace(CLIENT, reauth_interval_s=client, **NO_OTHER_LIMITS),
        replace(SERVER, reauth_interval_s=server, **NO_OTHER_LIMITS),
    )


def advance(pair: Pair, seconds: float) -> None:
    pair.now += seconds
    for role in BOTH:
        pair.end(role).handle_timeout(pair.now)
    pair.pump()


def reauthenticate(pair: Pair) -> None:
    pair.client.reauthenticate(pair.now)
    pair.pump()
    pair.start_epoch()
    pair.pump()


def closed(pair: Pair) -> list[Event]:
    return [event for role in BOTH for event in pair.of(role, TunnelClosed)]


# --- whose interval ----------------------------------------------------------------------------


def test_a_server_with_the_shorter_interval_asks_before_it_ends_the_tunnel() -> None:
    pair = with_intervals(0.0, 100.0)
    advance(pair, 100 + REAUTH_GRACE_S / 2 - 1)
    assert not pair.of(Role.CLIENT, ReauthenticationDue)
    advance(pair, 1)
    assert pair.last(Role.CLIENT, ReauthenticationDue).reason is Reason.REAUTHENTICATION
    reauthenticate(pair)
    advance(pair, REAUTH_GRACE_S)
    assert not closed(pair)
    # And again an interval later, once.
    advance(pair, 100 - REAUTH_GRACE_S / 2)
    advance(pair, 1)
    assert len(pair.of(Role.CLIENT, ReauthenticationDue)) == 2


def test_a_server_with_the_client_s_interval_leaves_the_start_to_the_client() -> None:
    pair = with_intervals(100.0, 100.0)
    advance(pair, 101)
    assert pair.last(Role.CLIENT, ReauthenticationDue).reason is Reason.REKEY_INTERVAL
    reauthenticate(pair)
    for _ in range(3):
        advance(pair, 30)
    assert len(pair.of(Role.CLIENT, ReauthenticationDue)) == 1


def test_a_server_that_asked_does_not_spin_and_ends_the_tunnel_at_its_limit() -> None:
    pair = with_intervals(0.0, 100.0)
    advance(pair, 100 + REAUTH_GRACE_S / 2)
    advance(pair, 0)
    due = pair.server.next_timeout()
    assert due is not None
    assert due > pair.now
    advance(pair, REAUTH_GRACE_S / 2)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.REAUTH_OVERDUE


# --- a wish while one is under way --------------------------------------------------------------


@pytest.mark.parametrize("complete", [False, True])
def test_a_proof_begun_before_it_was_asked_for_is_not_the_answer(complete: bool) -> None:
    """The server's trust may have changed in between: what was proved before does not count."""
    pair = with_intervals(0.0, 0.0)
    pair.client.reauthenticate(pair.now)
    if complete:
        pair.pump()
    else:
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.server.request_epoch(Reason.REAUTHENTICATION, pair.now)
    pair.pump()
    assert not pair.of(Role.CLIENT, ReauthenticationDue)
    pair.start_epoch()
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).reauthenticated
    assert pair.last(Role.CLIENT, ReauthenticationDue).reason is Reason.REAUTHENTICATION
    advance(pair, REAUTH_GRACE_S)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.REAUTH_OVERDUE


def test_the_second_proof_is_the_answer() -> None:
    pair = with_intervals(0.0, 0.0)
    pair.client.reauthenticate(pair.now)
    pair.pump()
    pair.server.request_epoch(Reason.REAUTHENTICATION, pair.now)
    pair.pump()
    pair.start_epoch()
    pair.pump()
    reauthenticate(pair)
    advance(pair, REAUTH_GRACE_S)
    assert not closed(pair)
    assert len(pair.of(Role.CLIENT, ReauthenticationDue)) == 1


# --- the epoch that mixes it in -----------------------------------------------------------------


def test_an_epoch_that_was_wanted_already_does_not_hide_that_one_is_pressing() -> None:
    """A driver may let a rekey wait for a QKD key, but not what has a deadline."""
    pair = established(replace(CLIENT, peer_timeout_s=1e6), replace(SERVER, peer_timeout_s=1e6))
    advance(pair, 61)
    assert pair.last(Role.CLIENT, EpochDue).reason is Reason.REKEY_INTERVAL
    pair.client.reauthenticate(pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, EpochDue).reason is Reason.REAUTHENTICATION


@pytest.mark.parametrize("sayer", BOTH)
def test_none_is_started_that_no_epoch_could_mix_in(sayer: Role) -> None:
    pair = with_intervals(100.0, 0.0)
    pair.end(sayer).go_away(Reason.SHUTDOWN)
    pair.pump()
    with pytest.raises(LocalProtocolError) as caught:
        pair.client.reauthenticate(pair.now)
    assert caught.value.reason is Reason.GOING_AWAY
    pair.server.request_epoch(Reason.REAUTHENTICATION, pair.now)
    pair.pump()
    advance(pair, 59)
    assert not pair.of(Role.CLIENT, ReauthenticationDue)
    assert not closed(pair)


def test_a_go_away_does_not_lift_the_deadline() -> None:
    """Whoever has the traffic keys can say GO_AWAY; it must not help against the proof."""
    pair = with_intervals(0.0, 0.0)
    pair.client.reauthenticate(pair.now)
    pair.pump()
    inject_frame(pair, Role.CLIENT, FrameType.GO_AWAY, 0, bytes([Reason.SHUTDOWN.code]))
    advance(pair, REAUTH_GRACE_S)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.REAUTH_OVERDUE


def test_a_handshake_that_is_never_mixed_in_is_forgotten_with_the_tunnel() -> None:
    pair = established()
    pair.client.reauthenticate(pair.now)
    pair.pump()
    assert all(pair.of(role, Reauthenticated) for role in BOTH)
    assert client_epochs(pair).reauth_pending
    assert server_epochs(pair).reauth_pending
    pair.client.end(Reason.SHUTDOWN, pair.now)
    pair.pump()
    for epochs in (client_epochs(pair), server_epochs(pair)):
        assert not epochs.reauth_pending


def test_a_key_that_wears_out_is_told_to_a_driver_that_lets_the_interval_wait() -> None:
    pair = established(
        replace(CLIENT, rekey_bytes=100, peer_timeout_s=1e6), replace(SERVER, peer_timeout_s=1e6)
    )
    advance(pair, 61)
    assert pair.last(Role.CLIENT, EpochDue).reason is Reason.REKEY_INTERVAL
    stream_id = pair.client.open_stream("web", now=pair.now)
    pair.client.send_data(stream_id, memoryview(bytes(100)))
    advance(pair, 1)
    advance(pair, 1)
    due = [event.reason for event in pair.of(Role.CLIENT, EpochDue)]
    assert due == [Reason.INITIAL, Reason.REKEY_INTERVAL, Reason.REKEY_BYTES]
