"""Rules R12 to R14 of docs/protocol.md: the end of a tunnel, announced IDs, frame types."""

from __future__ import annotations

import pytest

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.keys import QkdKey
from qproxy.modes import Mode
from qproxy.tunnel.events import (
    DataReceived,
    EpochFailed,
    GoAwayReceived,
    KeysNeeded,
    StreamReset,
    TunnelClosed,
)
from qproxy.tunnel.frames import STREAM_FRAMES, FrameType
from qproxy.tunnel.messages import Abort, MessageType
from qproxy.tunnel.settings import Role
from qproxy.tunnel.states import ClientEpochState, ServerEpochState
from tests.tunnel.adversary import (
    KEY_UPDATE,
    frame,
    inject,
    inject_epoch,
    inject_frame,
    intercept,
    listen_in,
    other,
    seal,
)
from tests.tunnel.helpers import established, qkd_keys
from tests.tunnel.rules import BOTH, MODES, fails, keys_for, server_epochs
from tests.tunnel.test_connection import open_stream

# --- R12: close ------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", BOTH)
def test_r12_nothing_counts_after_end(sender: Role) -> None:
    pair = established()
    receiver = other(sender)
    stream_id = open_stream(pair)
    records = seal(pair, sender, frame(FrameType.END, 0, b"\1"))
    records += seal(pair, sender, frame(FrameType.DATA, stream_id, b"after the end"))
    records += seal(pair, sender, frame(200))
    pair.deliver(receiver, records)
    assert not pair.of(receiver, DataReceived)
    assert pair.last(receiver, TunnelClosed).clean


def test_r12_an_epoch_in_flight_is_dropped_without_alarm() -> None:
    for ending in BOTH:
        pair = established()
        pair.server_keys = None
        keys = qkd_keys("a")
        pair.start_epoch(Mode.HYBRID, keys)
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
        pair.end(ending).end(Reason.SHUTDOWN, pair.now)
        pair.pump()
        redeemed = qkd_keys("a")
        pair.server.provide_keys(2, 1, redeemed, pair.now)
        pair.pump()
        assert keys[0].key == redeemed[0].key == b""
        for role in BOTH:
            assert not pair.of(role, EpochFailed)
            assert pair.last(role, TunnelClosed) == TunnelClosed(Reason.SHUTDOWN, clean=True)


STEPS = (Role.CLIENT, Role.SERVER, Role.CLIENT, Role.SERVER, Role.CLIENT)


@MODES
@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("ending", [(Role.CLIENT,), (Role.SERVER,), BOTH], ids=str)
@pytest.mark.parametrize("flush", [False, True], ids=["apart", "together"])
def test_r12_a_rekey_and_a_close_at_the_same_time_end_cleanly(
    mode: Mode, step: int, ending: tuple[Role, ...], flush: bool
) -> None:
    """END at every point of an exchange, before and after what is under way has arrived."""
    pair = established()
    pair.start_epoch(mode, keys_for(mode))
    for sender in STEPS[:step]:
        pair.deliver(other(sender), pair.take_output(sender))
    held = {role: pair.take_output(role) for role in BOTH} if flush else {}
    for role in ending:
        pair.end(role).end(Reason.SHUTDOWN, pair.now)
    for role, data in held.items():
        pair.deliver(other(role), data)
    pair.pump()
    for role in BOTH:
        assert pair.last(role, TunnelClosed) == TunnelClosed(Reason.SHUTDOWN, clean=True)
        assert not pair.of(role, EpochFailed)


@pytest.mark.parametrize("who", BOTH)
def test_r12_no_offer_after_go_away(who: Role) -> None:
    pair = established()
    stream_id = open_stream(pair)
    pair.end(who).go_away(Reason.SHUTDOWN)
    pair.pump()
    assert pair.last(other(who), GoAwayReceived).reason is Reason.SHUTDOWN
    assert not pair.client.epoch_exchange_idle
    with pytest.raises(LocalProtocolError):
        pair.start_epoch()
    for role in BOTH:
        with pytest.raises(LocalProtocolError):
            pair.end(role).open_stream("web", now=pair.now)
    pair.client.send_data(stream_id, memoryview(b"goes on"))
    pair.pump()
    assert pair.received(Role.SERVER, stream_id) == b"goes on"


def test_r12_an_eof_instead_of_end_resets_the_streams() -> None:
    for role in BOTH:
        pair = established()
        stream_id = open_stream(pair)
        fails(
            pair,
            Reason.TRUNCATED,
            lambda pair=pair, role=role: pair.end(role).receive_eof(pair.now),  # type: ignore[misc]
            role,
        )
        assert pair.last(role, StreamReset).stream_id == stream_id


def test_r12_end_is_authenticated() -> None:
    """An END recorded from another direction or tunnel does not end this one cleanly."""
    pair, another = established(), established()
    another.client.end(Reason.SHUTDOWN, another.now)
    stray = another.take_output(Role.CLIENT)
    fails(pair, Reason.BAD_RECORD_MAC, lambda: pair.deliver(Role.SERVER, stray), Role.SERVER)


# --- R13: announced IDs ----------------------------------------------------------------------


def test_r13_a_spent_key_is_refused_with_its_reason_and_the_tunnel_lives() -> None:
    """Claiming is the driver's; what it refuses reaches the client as an authenticated REJECT."""
    pair = established()
    claimed: set[str] = set()

    def claim(needed: KeysNeeded) -> list[QkdKey] | Reason:
        ids = {key.key_id for key in needed.keys}
        if ids & claimed:
            return Reason.KEY_SPENT
        claimed.update(ids)
        return qkd_keys(*(key.key_id for key in needed.keys))

    pair.server_keys = claim
    pair.start_epoch(Mode.HYBRID, qkd_keys("once"))
    pair.pump()
    assert pair.server.epoch == 2
    pair.start_epoch(Mode.HYBRID, qkd_keys("once"))
    pair.pump()
    failed = pair.last(Role.CLIENT, EpochFailed)
    assert (failed.epoch, failed.reason, failed.remote) == (3, Reason.KEY_SPENT, True)
    assert pair.client.established
    assert pair.server.established


def test_r13_the_driver_is_asked_once_per_offer() -> None:
    pair = established()
    for number in range(4):
        pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{number}"))
        pair.pump()
    asked = [(needed.epoch, needed.attempt) for needed in pair.of(Role.SERVER, KeysNeeded)]
    assert asked == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]


# --- R14: frame types ------------------------------------------------------------------------

UNKNOWN_TYPES = [code for code in range(256) if code not in set(FrameType)]


@pytest.mark.parametrize("sender", BOTH)
def test_r14_unknown_frame_types_are_fatal(sender: Role) -> None:
    pair = established()
    for code in UNKNOWN_TYPES:
        receiver = pair.end(other(sender))
        with pytest.raises(RemoteProtocolError) as caught:
            receiver._on_frame(code, 0, b"", pair.now, alone=True)
        assert caught.value.reason is Reason.MALFORMED_MESSAGE
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: inject_frame(pair, sender, 200),
        other(sender),
    )


@pytest.mark.parametrize("inner_type", [20, 21, 22, 24, 255])
@pytest.mark.parametrize("sender", BOTH)
def test_r14_tls_messages_in_records_are_fatal(sender: Role, inner_type: int) -> None:
    pair = established()
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject(pair, sender, KEY_UPDATE, inner_type=inner_type),
        other(sender),
    )


@pytest.mark.parametrize("outer", [20, 21, 22, 24, 0x80])
def test_r14_records_of_other_outer_types_are_fatal(outer: int) -> None:
    pair = established()
    record = bytearray(seal(pair, Role.CLIENT, frame(FrameType.PING, 0, bytes(8))))
    record[0] = outer
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: pair.deliver(Role.SERVER, bytes(record)),
        Role.SERVER,
    )


@pytest.mark.parametrize("code", [FrameType.EPOCH, FrameType.SWITCH, FrameType.END])
@pytest.mark.parametrize("place", ["before", "after"])
def test_r14_lone_frames_are_alone(code: FrameType, place: str) -> None:
    pair = established()
    payload = {FrameType.EPOCH: Abort(1, 1, Reason.OPERATOR).encode(), FrameType.END: b"\1"}
    lone = frame(code, 0, payload.get(code, bytes([0, 0, 0, 2])))
    ping = frame(FrameType.PING, 0, bytes(8))
    content = lone + ping if place == "before" else ping + lone
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: inject(pair, Role.CLIENT, content),
        Role.SERVER,
    )


@pytest.mark.parametrize("code", sorted(set(FrameType) - STREAM_FRAMES), ids=lambda code: code.name)
def test_r14_frames_of_the_tunnel_belong_to_no_stream(code: FrameType) -> None:
    pair = established()
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, code, 1, bytes(8)),
        Role.SERVER,
    )


@pytest.mark.parametrize("code", sorted(STREAM_FRAMES), ids=lambda code: code.name)
def test_r14_frames_of_streams_do_not_name_stream_0(code: FrameType) -> None:
    pair = established()
    payloads = {
        FrameType.DATA: b"x",
        FrameType.OPEN: b"\x03web\0\0",
        FrameType.STREAM_CREDIT: (1 << 40).to_bytes(8, "big"),
        FrameType.REFUSED: b"\1",
        FrameType.RESET: b"\1",
    }
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, code, 0, payloads.get(code, b"")),
        Role.SERVER,
    )


def test_r14_an_epoch_message_sent_as_data_is_data() -> None:
    pair = established()
    stream_id = open_stream(pair)
    sent = intercept(pair.client, lambda _message: [])
    pair.start_epoch()
    inject_frame(pair, Role.CLIENT, FrameType.DATA, stream_id, sent[0])
    assert server_epochs(pair).state is ServerEpochState.IDLE
    assert pair.received(Role.SERVER, stream_id) == sent[0]


@pytest.mark.parametrize("code", [FrameType.SWITCH, FrameType.COMMITTED])
@pytest.mark.parametrize("number", [0, 1, 2, 0xFFFF_FFFF])
@pytest.mark.parametrize("sender", BOTH)
def test_r14_switch_and_committed_at_rest_are_fatal(
    code: FrameType, number: int, sender: Role
) -> None:
    pair = established()
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, sender, code, 0, number.to_bytes(4, "big")),
        other(sender),
    )


@pytest.mark.parametrize("kind", list(MessageType), ids=lambda kind: kind.name)
def test_r14_epoch_messages_are_for_one_role(kind: MessageType) -> None:
    """Each end's own messages, sent back to it (reflection)."""
    of_client = kind in {MessageType.OFFER, MessageType.CONFIRM, MessageType.ABORT}
    sender = Role.SERVER if of_client else Role.CLIENT
    pair = established()
    sent = listen_in(pair.end(other(sender)))
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    pair.start_epoch(Mode.HYBRID, qkd_keys("rejected"))
    pair.pump()
    pair.start_epoch(Mode.HYBRID, qkd_keys("aborted"))
    pair.client.handle_timeout(pair.now + 10)
    pair.pump()
    pair.start_epoch()
    pair.pump()
    reflected = next(message for message in sent if message[0] == kind)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_epoch(pair, sender, reflected),
        other(sender),
    )


def test_r14_every_pair_of_unknown_and_known_states_is_covered_by_a_table() -> None:
    """The tables name only states and events that exist, and every state can be left."""
    from qproxy.tunnel.states import CLIENT_EPOCH, SERVER_EPOCH

    for table, states in ((CLIENT_EPOCH, ClientEpochState), (SERVER_EPOCH, ServerEpochState)):
        assert {state for state, _event in table} == set(states)
        assert set(table.values()) == set(states)


@pytest.mark.parametrize("role", list(Role))
def test_an_abandoned_tunnel_is_over_at_once_and_its_peer_is_told_why(role: Role) -> None:
    pair = established()
    pair.end(role).abandon(Reason.SHUTDOWN)
    pair.end(role).abandon(Reason.INTERNAL_ERROR)
    pair.collect(role)
    assert pair.end(role).closed
    assert pair.last(role, TunnelClosed) == TunnelClosed(Reason.SHUTDOWN, clean=False)
    pair.pump()
    assert pair.last(other(role), TunnelClosed).reason is Reason.SHUTDOWN


def test_a_tunnel_abandoned_while_it_waits_for_the_peers_end_keeps_its_reason() -> None:
    pair = established()
    pair.client.end(Reason.OPERATOR, pair.now)
    pair.client.abandon(Reason.SHUTDOWN)
    pair.collect(Role.CLIENT)
    assert pair.last(Role.CLIENT, TunnelClosed) == TunnelClosed(Reason.OPERATOR, clean=False)
