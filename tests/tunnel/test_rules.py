"""Rules R1 to R6 of docs/protocol.md, but R4, each with the tests that would fail without it.

R4 is in test_rules_erasure, R7 to R10 in test_rules_policy, R11 in test_rules_handover, R12 to R14
in test_rules_end.
"""

from __future__ import annotations

from typing import Any

import pytest

from qproxy.errors import LocalProtocolError, Reason
from qproxy.modes import Mode, Policy
from qproxy.tunnel.events import (
    DataReceived,
    EpochCommitted,
    EpochConfirmed,
    EpochFailed,
    TunnelClosed,
    TunnelEstablished,
)
from qproxy.tunnel.frames import FrameType
from qproxy.tunnel.messages import Abort, Accept, MessageType, Reject, decode_epoch_message
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import (
    frame,
    inject_epoch,
    intercept,
    listen_in,
    other,
    seal,
    split_records,
)
from tests.tunnel.helpers import (
    CLIENT,
    SERVER,
    established,
    make_pair,
    qkd_keys,
    replace,
    with_policy,
)
from tests.tunnel.rules import (
    BOTH,
    FIRST_OR_LATER,
    MODES,
    client_epochs,
    fails,
    flip_last,
    keys_for,
    message_of,
    ready,
    server_epochs,
)
from tests.tunnel.test_connection import open_stream

# --- R1: how strong the first epoch is -------------------------------------------------------


def test_r01_the_pre_shared_key_covers_the_first_epoch() -> None:
    """Ends that disagree about the pre-shared key never commit an epoch."""
    pair = make_pair(replace(CLIENT, psk=b"\x01" * 32), replace(SERVER, psk=b"\x02" * 32))
    pair.pump()
    pair.start_epoch()
    fails(pair, Reason.CONFIRM_MAC, pair.pump, Role.CLIENT)
    assert not pair.of(Role.CLIENT, EpochCommitted)
    assert not pair.of(Role.SERVER, EpochCommitted)


def test_r01_equal_pre_shared_keys_work_and_change_the_keys() -> None:
    psk = b"\x01" * 32
    pair = established(replace(CLIENT, psk=psk), replace(SERVER, psk=psk))
    assert all(pair.of(role, TunnelEstablished) for role in BOTH)


def test_r01_after_a_hybrid_epoch_a_mode_cannot_be_forced_without_the_chain_key() -> None:
    """An impostor at the client's end, with everything but CK, cannot fall back to classical."""
    pair = established(mode=Mode.HYBRID)
    client_epochs(pair).chain._chain_key[:] = bytes(48)
    pair.start_epoch(Mode.CLASSICAL_ONLY)
    fails(pair, Reason.CONFIRM_MAC, pair.pump, Role.CLIENT)
    assert pair.server.epoch == 1
    assert pair.last(Role.SERVER, EpochCommitted).mode is Mode.HYBRID


# --- R2: re-authentication -------------------------------------------------------------------


@MODES
@FIRST_OR_LATER
def test_r02_a_reauthentication_that_never_was_is_refused(mode: Mode, first: bool) -> None:
    pair = ready(first)
    intercept(
        pair.client,
        lambda message: [replace(decode_epoch_message(message), reauth_id=b"\1" * 16).encode()],
    )
    pair.start_epoch(mode, keys_for(mode))
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.SERVER)


@MODES
def test_r02_the_server_cannot_answer_another_reauthentication(mode: Mode) -> None:
    pair = established()

    def altered(message: bytes) -> list[bytes]:
        return [replace(decode_epoch_message(message), reauth_id=b"\1" * 16).encode()]

    intercept(pair.server, altered)
    pair.start_epoch(mode, keys_for(mode))
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.CLIENT)


def test_r02_the_exporter_outlives_failed_attempts_at_the_first_epoch() -> None:
    """What a handshake proved is mixed in until an epoch commits, then erased."""
    pair = make_pair()
    pair.pump()
    exporters = [pair.end(role)._epochs._exporter for role in BOTH]
    expected = bytes(exporters[0])
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    pair.start_epoch(Mode.HYBRID, qkd_keys("lost"))
    pair.pump()
    assert exporters[0] == exporters[1] == expected
    assert len(expected) == 48
    pair.start_epoch()
    pair.pump()
    assert exporters[0] == exporters[1] == b""


# --- R3: commit points -----------------------------------------------------------------------


def test_r03_server_sends_nothing_of_the_first_epoch_before_confirm() -> None:
    pair = make_pair()
    pair.pump()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    accept = pair.take_output(Role.SERVER)
    assert len(split_records(accept)) == 1
    with pytest.raises(LocalProtocolError):
        pair.server.open_stream("web", now=pair.now)
    pair.server.handle_timeout(pair.now + 1)
    assert pair.server.output_pending == 0
    assert not pair.of(Role.SERVER, EpochCommitted)
    pair.deliver(Role.CLIENT, accept)
    confirm = pair.take_output(Role.CLIENT)
    assert not pair.of(Role.CLIENT, TunnelEstablished)
    pair.deliver(Role.SERVER, confirm)
    assert pair.of(Role.SERVER, TunnelEstablished)


def test_r03_server_stays_with_the_old_key_until_confirm() -> None:
    pair = established()
    stream_id = open_stream(pair)
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    sealer = pair.server._writer._sealer
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    committed = pair.last(Role.CLIENT, EpochCommitted)
    assert (committed.epoch, committed.confirmed) == (2, False)
    pair.server.send_data(stream_id, memoryview(b"under the old key"))
    assert pair.server._writer._sealer is sealer
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert pair.received(Role.CLIENT, stream_id) == b"under the old key"
    assert pair.last(Role.CLIENT, EpochConfirmed).epoch == 1
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    assert pair.server._writer._sealer is not sealer
    # Its switch goes out at once, before anything else was asked for.
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert pair.last(Role.CLIENT, EpochConfirmed).epoch == 2
    assert pair.last(Role.SERVER, EpochCommitted).confirmed


@FIRST_OR_LATER
def test_r03_a_wrong_accept_mac_ends_the_attempt_and_not_the_tunnel(first: bool) -> None:
    pair = ready(first)
    spoil = [True]
    intercept(
        pair.server,
        message_of(MessageType.ACCEPT, lambda m: flip_last(m) if spoil else m),
    )
    sent = listen_in(pair.client)
    number = pair.client.epoch + 1
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    assert decode_epoch_message(sent[-1]) == Abort(number, 1, Reason.KEY_MISMATCH)
    for role in BOTH:
        failed = pair.last(role, EpochFailed)
        assert (failed.epoch, failed.attempt) == (number, 1)
        assert (failed.reason, failed.remote) == (Reason.KEY_MISMATCH, role is Role.SERVER)
        assert pair.end(role).epoch == number - 1
        assert not pair.end(role).closed
    assert server_epochs(pair)._pending is None
    spoil.clear()
    pair.start_epoch(Mode.HYBRID, qkd_keys("b"))
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == number


@MODES
@FIRST_OR_LATER
def test_r03_a_wrong_confirm_ends_the_tunnel(mode: Mode, first: bool) -> None:
    pair = ready(first)
    before = pair.server.epoch
    intercept(pair.client, message_of(MessageType.CONFIRM, flip_last))
    pair.start_epoch(mode, keys_for(mode))
    fails(pair, Reason.CONFIRM_MAC, pair.pump, Role.SERVER)
    assert pair.server.epoch == before
    said = split_records(pair.take_output(Role.SERVER))
    assert len(said) == (0 if first else 1)  # END under the old key, or nothing inside TLS


@FIRST_OR_LATER
def test_r03_a_missing_confirm_ends_the_tunnel(first: bool) -> None:
    pair = ready(first)
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.take_output(Role.SERVER)
    pair.server.handle_timeout(pair.now + 10.0)
    pair.collect(Role.SERVER)
    expected = Reason.HANDSHAKE_TIMEOUT if first else Reason.EPOCH_TIMEOUT
    assert pair.last(Role.SERVER, TunnelClosed) == TunnelClosed(expected, clean=False)


def test_r03_the_first_record_of_the_tunnel_must_be_committed() -> None:
    for content in (
        frame(FrameType.PING, 0, bytes(8)),
        frame(FrameType.OPEN, 2, b"\x03web\0\0"),
        frame(FrameType.DATA, 1, b"early"),
        frame(FrameType.END, 0, b"\1"),
        frame(FrameType.SWITCH, 0, bytes([0, 0, 0, 1])),
        frame(FrameType.COMMITTED, 0, bytes([0, 0, 0, 2])),
    ):
        pair = make_pair()
        pair.pump()
        pair.start_epoch()
        for role in (Role.SERVER, Role.CLIENT, Role.SERVER):
            pair.deliver(role, pair.take_output(other(role)))
        sealer = pair.server._writer._sealer
        assert sealer is not None
        pair.take_output(Role.SERVER)
        sealer.records = 0
        record = seal(pair, Role.SERVER, content)
        fails(
            pair,
            Reason.UNEXPECTED_MESSAGE,
            lambda pair=pair, record=record: pair.deliver(Role.CLIENT, record),  # type: ignore[misc]
            Role.CLIENT,
        )
        assert not pair.of(Role.CLIENT, TunnelEstablished)
        assert not pair.of(Role.CLIENT, DataReceived)


# --- R5: a key ID is burnt -------------------------------------------------------------------


def test_r05_keys_are_burnt_whatever_becomes_of_the_offer() -> None:
    """The client wipes what it was given: refused locally, rejected, aborted or never sent."""
    pair = established(with_policy(CLIENT, Policy.REQUIRE))
    wrong_mode = qkd_keys("a")
    with pytest.raises(LocalProtocolError):
        pair.start_epoch(Mode.CLASSICAL_ONLY, wrong_mode)
    too_short = qkd_keys("b", size=31)
    with pytest.raises(LocalProtocolError):
        pair.start_epoch(Mode.HYBRID, too_short)
    pair.server_keys = lambda _needed: Reason.KEY_SPENT
    rejected = qkd_keys("c")
    pair.start_epoch(Mode.HYBRID, rejected)
    pair.pump()
    assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.KEY_SPENT
    pair.client.end(Reason.SHUTDOWN, pair.now)
    after_end = qkd_keys("d")
    with pytest.raises(LocalProtocolError):
        pair.start_epoch(Mode.HYBRID, after_end)
    for keys in (wrong_mode, too_short, rejected, after_end):
        assert keys[0].key == b""


def test_r05_keys_redeemed_too_late_or_wrongly_are_burnt_at_the_server() -> None:
    pair = established()
    pair.server_keys = None
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    pair.client.handle_timeout(pair.now + 10)
    pair.pump()
    late = qkd_keys("a")
    pair.server.provide_keys(2, 1, late, pair.now)
    assert (late[0].key, pair.server.output_pending) == (b"", 0)
    pair.start_epoch(Mode.HYBRID, qkd_keys("b"))
    pair.pump()
    wrong = qkd_keys("c")
    pair.server.provide_keys(2, 2, wrong, pair.now)
    pair.pump()
    assert wrong[0].key == b""
    assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.KEY_INVALID
    pair.server.end(Reason.SHUTDOWN, pair.now)
    closed = qkd_keys("d")
    pair.server.provide_keys(2, 3, closed, pair.now)
    assert closed[0].key == b""


def test_r05_an_id_once_offered_is_never_offered_again_by_the_core() -> None:
    pair = established()
    sent = listen_in(pair.client)
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    for number in range(5):
        pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{number}"))
        pair.pump()
    offered = [key.key_id for m in sent for key in decode_epoch_message(m).keys]  # type: ignore[union-attr]
    assert offered == [f"k{number}" for number in range(5)]


# --- R6: attempts ----------------------------------------------------------------------------


@FIRST_OR_LATER
def test_r06_every_attempt_is_fresh_and_moves_nothing(first: bool) -> None:
    pair = ready(first)
    sent = listen_in(pair.client)
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    chains = [pair.end(role)._epochs.chain for role in BOTH]  # type: ignore[union-attr]
    before = [(c.epoch, bytes(c._chain_key), c.transcript_hash) for c in chains]
    for number in range(4):
        pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{number}"))
        pair.pump()
        assert before == [(c.epoch, bytes(c._chain_key), c.transcript_hash) for c in chains]
    offers = [decode_epoch_message(message) for message in sent]
    assert [offer.attempt for offer in offers] == [1, 2, 3, 4]
    for fresh in ("nonce", "encapsulation_key", "keys", "history"):
        assert len({getattr(offer, fresh) for offer in offers}) == 4, fresh
    pair.start_epoch()
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).attempt == 5
    pair.start_epoch()
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).attempt == 1


def test_r06_the_server_makes_a_fresh_nonce_and_ciphertext_for_every_accept() -> None:
    pair = established()
    accepts = listen_in(pair.server)
    for _ in range(3):
        pair.start_epoch()
        pair.pump()
    decoded = [decode_epoch_message(message) for message in accepts]
    assert all(isinstance(message, Accept) for message in decoded)
    for fresh in ("nonce", "ciphertext", "mac"):
        assert len({getattr(message, fresh) for message in decoded}) == 3


def test_r06_a_stale_accept_is_dropped_and_is_no_mac_failure() -> None:
    pair = established()
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    slow = pair.take_output(Role.SERVER)
    pair.client.handle_timeout(pair.now + 10)
    pair.start_epoch(Mode.HYBRID, qkd_keys("b"))
    pair.deliver(Role.CLIENT, slow)
    pair.pump()
    assert [failed.reason for failed in pair.of(Role.CLIENT, EpochFailed)] == [Reason.EPOCH_TIMEOUT]
    for role in BOTH:
        committed = pair.last(role, EpochCommitted)
        assert (committed.epoch, committed.attempt, committed.key_ids) == (2, 2, ("b",))


@pytest.mark.parametrize("then", ["idle", "offered"])
def test_r06_crossing_abort_and_reject_give_both_ends_one_history(then: str) -> None:
    pair = established()
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    reject = pair.take_output(Role.SERVER)
    pair.client.handle_timeout(pair.now + 10)
    if then == "offered":
        pair.start_epoch()
    pair.deliver(Role.CLIENT, reject)
    if then == "idle":
        pair.start_epoch()
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == 2
    assert len(pair.of(Role.CLIENT, EpochFailed)) == len(pair.of(Role.SERVER, EpochFailed)) == 1


def test_r06_crossing_abort_and_accept_agree_too() -> None:
    pair = established()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    accept = pair.take_output(Role.SERVER)
    pair.client.handle_timeout(pair.now + 10)
    pair.deliver(Role.CLIENT, accept)
    pair.start_epoch()
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == 2
    assert pair.last(Role.SERVER, EpochCommitted).attempt == 2


STALE = (
    Reject(1, 1, Reason.KEY_SPENT, Policy.PREFER, 300),
    Accept(1, 1, Mode.HYBRID, Policy.PREFER, 300, bytes(32), bytes(16), bytes(1568), bytes(48)),
)
NEVER_OFFERED = (
    Reject(2, 2, Reason.KEY_SPENT, Policy.PREFER, 300),
    Reject(3, 1, Reason.KEY_SPENT, Policy.PREFER, 300),
    Accept(2, 2, Mode.HYBRID, Policy.PREFER, 300, bytes(32), bytes(16), bytes(1568), bytes(48)),
)


@pytest.mark.parametrize("message", STALE, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("offered", [False, True])
def test_r06_stale_answers_change_nothing(message: Any, offered: bool) -> None:
    pair = established()
    if offered:
        pair.start_epoch()
        pair.take_output(Role.CLIENT)
    before = (client_epochs(pair).state, len(pair.events[Role.CLIENT]))
    inject_epoch(pair, Role.SERVER, message.encode())
    assert (client_epochs(pair).state, len(pair.events[Role.CLIENT])) == before
    assert pair.client.output_pending == 0


@pytest.mark.parametrize("message", NEVER_OFFERED, ids=lambda m: f"{type(m).__name__}{m.epoch}")
def test_r06_answers_to_what_was_never_offered_are_fatal(message: Any) -> None:
    pair = established()
    pair.start_epoch()
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_epoch(pair, Role.SERVER, message.encode()),
        Role.CLIENT,
    )


@pytest.mark.parametrize(
    ("abort", "fatal"),
    [
        (Abort(1, 1, Reason.KEY_MISMATCH), False),
        (Abort(2, 1, Reason.KEY_MISMATCH), True),
        (Abort(9, 1, Reason.KEY_MISMATCH), True),
    ],
    ids=["stale", "never offered", "far ahead"],
)
def test_r06_aborts_at_rest(abort: Abort, fatal: bool) -> None:
    pair = established()
    if fatal:
        fails(
            pair,
            Reason.UNEXPECTED_MESSAGE,
            lambda: inject_epoch(pair, Role.CLIENT, abort.encode()),
            Role.SERVER,
        )
    else:
        inject_epoch(pair, Role.CLIENT, abort.encode())
        assert pair.server.established


@pytest.mark.parametrize(
    "change", [{"attempt": 2}, {"epoch": 1}, {"epoch": 3}, {"attempt": 1 << 15}], ids=str
)
def test_r06_an_offer_out_of_turn_is_fatal(change: dict[str, int]) -> None:
    pair = established()
    intercept(pair.client, lambda m: [replace(decode_epoch_message(m), **change).encode()])
    pair.start_epoch()
    fails(pair, Reason.UNEXPECTED_MESSAGE, pair.pump, Role.SERVER)


def test_r06_a_second_offer_while_one_is_outstanding_is_fatal() -> None:
    pair = established()
    pair.server_keys = None
    intercept(
        pair.client,
        lambda m: [m, replace(decode_epoch_message(m), attempt=2).encode()],
    )
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    fails(pair, Reason.UNEXPECTED_MESSAGE, pair.pump, Role.SERVER)


@pytest.mark.parametrize("change", [{"attempt": 2}, {"epoch": 3}, {"epoch": 1}], ids=str)
def test_r06_a_confirm_for_another_attempt_is_fatal_whatever_its_mac(
    change: dict[str, int],
) -> None:
    pair = established()
    intercept(
        pair.client,
        message_of(
            MessageType.CONFIRM,
            lambda m: replace(decode_epoch_message(m), **change).encode(),
        ),
    )
    pair.start_epoch()
    fails(pair, Reason.UNEXPECTED_MESSAGE, pair.pump, Role.SERVER)
    assert pair.server.epoch == 1


def test_r06_a_repeated_confirm_is_fatal() -> None:
    pair = established()
    sent = listen_in(pair.client)
    pair.start_epoch()
    pair.pump()
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_epoch(pair, Role.CLIENT, sent[-1]),
        Role.SERVER,
    )
