"""Re-authentication of live tunnels (rule R2), announced keys and requests."""

from __future__ import annotations

import pytest

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Mode
from qproxy.tunnel.announce import KeyReport
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochDue,
    EpochFailed,
    EpochRequested,
    KeysAnnounced,
    KeysReported,
    Reauthenticated,
    ReauthenticationDue,
    TunnelClosed,
)
from qproxy.tunnel.messages import OfferedKey
from qproxy.tunnel.settings import Role
from tests.tunnel.helpers import (
    CLIENT,
    SERVER,
    Pair,
    established,
    qkd_keys,
    replace,
    tunnel_context,
)

BOTH = (Role.CLIENT, Role.SERVER)


def reauthenticate(pair: Pair) -> None:
    pair.client.reauthenticate(pair.now)
    pair.pump()


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("mode", list(Mode))
def test_r02_a_reauthentication_enters_the_next_epoch(mode: Mode, step: int) -> None:
    pair = established(step=step)
    reauthenticate(pair)
    for role in BOTH:
        assert pair.last(role, Reauthenticated).group == "X25519MLKEM768"
    assert pair.last(Role.CLIENT, EpochDue).reason is Reason.REAUTHENTICATION
    pair.start_epoch(mode, qkd_keys("k2") if mode is Mode.HYBRID else [])
    pair.pump()
    for role in BOTH:
        assert pair.last(role, EpochCommitted).reauthenticated
        assert pair.end(role).epoch == 2
    pair.start_epoch()
    pair.pump()
    for role in BOTH:
        assert not pair.last(role, EpochCommitted).reauthenticated
        assert pair.end(role).established


def test_r02_a_new_certificate_takes_hold() -> None:
    pair = established()
    before = pair.last(Role.SERVER, EpochCommitted)
    rotated = tunnel_context(Role.CLIENT, "gw-a", common_name="the next one")
    pair.client.use_tls_context(rotated)
    reauthenticate(pair)
    pair.start_epoch()
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).epoch == before.epoch + 1
    first, second = (
        pair.server._epochs.binding.client_certificate_hash,  # type: ignore[union-attr]
        pair.last(Role.SERVER, Reauthenticated).peer_certificate_hash,
    )
    assert first == second
    # And the tunnel goes on under the new binding.
    pair.start_epoch(Mode.HYBRID, qkd_keys("k3"))
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == 3


@pytest.mark.parametrize("who", ["expired", "stranger"])
def test_r02_a_peer_that_can_no_longer_prove_itself_loses_its_tunnel(who: str) -> None:
    pair = established()
    other = (
        tunnel_context(Role.CLIENT, "gw-a", expired=True)
        if who == "expired"
        else tunnel_context(Role.CLIENT, "gw-x")
    )
    pair.client.use_tls_context(other)
    with pytest.raises(RemoteProtocolError) as caught:
        reauthenticate(pair)
    wanted = Reason.CERTIFICATE_EXPIRED if who == "expired" else Reason.PEER_NAME_MISMATCH
    assert caught.value.reason is wanted
    pair.collect(Role.SERVER)
    assert not pair.last(Role.SERVER, TunnelClosed).clean


def test_r02_survives_a_failed_attempt_and_is_mixed_in_by_the_next() -> None:
    pair = established()
    reauthenticate(pair)
    pair.server_keys = lambda _needed: Reason.KME_UNAVAILABLE
    pair.start_epoch(Mode.HYBRID, qkd_keys("k2"))
    pair.pump()
    assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.KME_UNAVAILABLE
    pair.start_epoch()
    pair.pump()
    for role in BOTH:
        assert pair.last(role, EpochCommitted).reauthenticated


def test_r02_a_wrong_mac_after_it_ends_the_tunnel_under_every_policy() -> None:
    pair = established()
    reauthenticate(pair)
    pair.server_keys = lambda needed: qkd_keys(*(key.key_id for key in needed.keys), salt="lie")
    pair.start_epoch(Mode.HYBRID, qkd_keys("k2"))
    with pytest.raises(RemoteProtocolError) as caught:
        pair.pump()
    assert caught.value.reason is Reason.CONFIRM_MAC
    assert pair.client.closed


def test_r02_an_offer_made_before_it_was_complete_does_not_mix_it_in() -> None:
    pair = established()
    pair.client.reauthenticate(pair.now)
    hello = pair.take_output(Role.CLIENT)
    pair.start_epoch()
    offer = pair.take_output(Role.CLIENT)
    pair.deliver(Role.SERVER, hello)
    pair.deliver(Role.SERVER, offer)
    pair.pump()
    for role in BOTH:
        assert not pair.last(role, EpochCommitted).reauthenticated
        assert pair.of(role, Reauthenticated)
    pair.start_epoch()
    pair.pump()
    for role in BOTH:
        assert pair.last(role, EpochCommitted).reauthenticated


def test_r02_is_due_after_its_interval_and_overdue_a_minute_later() -> None:
    settings = {"reauth_interval_s": 100.0, "max_epoch_age_s": 0.0, "rekey_interval_s": 0.0}
    pair = established(replace(CLIENT, **settings), replace(SERVER, **settings))
    pair.now += 101
    pair.client._timers.heard(pair.now)
    pair.client.handle_timeout(pair.now)
    pair.pump()
    assert pair.of(Role.CLIENT, ReauthenticationDue)
    pair.now += 60
    for role in BOTH:
        pair.end(role)._timers.heard(pair.now)
        pair.end(role).handle_timeout(pair.now)
        pair.collect(role)
        assert pair.last(role, TunnelClosed).reason is Reason.REAUTH_OVERDUE


def test_r02_a_server_that_asks_is_answered_or_ends_the_tunnel() -> None:
    pair = established()
    pair.server.request_epoch(Reason.REAUTHENTICATION, pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, ReauthenticationDue).reason is Reason.REAUTHENTICATION
    pair.now += 61
    pair.server._timers.heard(pair.now)
    pair.server.handle_timeout(pair.now)
    pair.collect(Role.SERVER)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.REAUTH_OVERDUE


def test_one_reauthentication_at_a_time() -> None:
    pair = established()
    reauthenticate(pair)
    with pytest.raises(LocalProtocolError):
        pair.client.reauthenticate(pair.now)
    with pytest.raises(LocalProtocolError):
        pair.server.reauthenticate(pair.now)


def test_keys_are_announced_and_reported() -> None:
    pair = established()
    keys = (OfferedKey("etsi-qkd-014", 32, "k1"), OfferedKey("etsi-qkd-014", 32, "k2"))
    pair.client.announce_keys(keys)
    pair.pump()
    assert pair.last(Role.SERVER, KeysAnnounced).keys == keys
    report = KeyReport(b"instance", (("k1", None), ("k2", Reason.KEY_NOT_FOUND)))
    pair.server.report_keys(report)
    pair.pump()
    assert pair.last(Role.CLIENT, KeysReported) == KeysReported(
        b"instance", ("k1",), (("k2", Reason.KEY_NOT_FOUND),)
    )


def test_a_request_is_only_a_wish() -> None:
    pair = established()
    pair.server.request_epoch(Reason.LINK_DOWN, pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, EpochRequested).reason is Reason.LINK_DOWN
    assert pair.client.epoch == pair.server.epoch == 1
