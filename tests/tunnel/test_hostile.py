"""Hostile input at every state: RemoteProtocolError or nothing, and memory within its limits.

Two attackers. One sits on the wire and has no key: it alters, cuts, repeats, reorders and reflects
what the ends send. The other is a peer with the right keys and the worst intentions: it seals
frames and epoch messages of its own making. Any exception but RemoteProtocolError fails the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.errors import LocalProtocolError, Reason
from qproxy.modes import Mode
from qproxy.tunnel.events import EpochCommitted, StreamRequested, TunnelEstablished
from qproxy.tunnel.frames import FRAME_HEADER_BYTES, MAX_PAYLOAD_BYTES, FrameType
from qproxy.tunnel.messages import decode_epoch_message
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import frame, intercept, listen_in, other, seal, split_records
from tests.tunnel.bounds import MAX_ROUNDS, SMALL, check_limits, feed, fixed_size_contexts, settle
from tests.tunnel.helpers import CLIENT, SERVER, Pair, established, make_pair, qkd_keys, replace
from tests.tunnel.rules import BOTH
from tests.tunnel.test_connection import open_stream


def property_of(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, derandomize=True, database=None)


# --- the states an end can be in -------------------------------------------------------------


def exchange(pair: Pair, *senders: Role) -> None:
    for sender in senders:
        pair.deliver(other(sender), pair.take_output(sender))


def at_hello() -> Pair:
    return make_pair(replace(CLIENT, **SMALL), replace(SERVER, **SMALL), **fixed_size_contexts())


def at_server_flight() -> Pair:
    pair = at_hello()
    exchange(pair, Role.CLIENT)
    return pair


def at_client_flight() -> Pair:
    pair = at_hello()
    exchange(pair, Role.CLIENT, Role.SERVER)
    return pair


def at_first_epoch() -> Pair:
    pair = at_hello()
    pair.pump()
    return pair


def at_epoch(*senders: Role, first: bool, mode: Mode = Mode.HYBRID) -> Pair:
    pair = at_first_epoch() if first else at_rest()
    pair.start_epoch(mode, qkd_keys("a") if mode is Mode.HYBRID else [])
    exchange(pair, *senders)
    return pair


def at_rest() -> Pair:
    pair = established(replace(CLIENT, **SMALL), replace(SERVER, **SMALL), **fixed_size_contexts())
    stream_id = open_stream(pair)
    for role in BOTH:
        pair.end(role).send_data(stream_id, memoryview(b"some data"))
        pair.end(role).send_data(stream_id, memoryview(b"and some more"))
    return pair


def at_redeeming() -> Pair:
    pair = at_rest()
    pair.server_keys = None
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    exchange(pair, Role.CLIENT)
    return pair


def at_go_away() -> Pair:
    pair = at_rest()
    pair.server.go_away(Reason.SHUTDOWN)
    return pair


def at_ending(*who: Role) -> Pair:
    pair = at_epoch(Role.CLIENT, first=False)
    for role in who:
        pair.end(role).end(Reason.SHUTDOWN, pair.now)
    return pair


C, S = Role.CLIENT, Role.SERVER
TLS_STATES: dict[str, Callable[[], Pair]] = {
    "hello": at_hello,
    "server flight": at_server_flight,
    "client flight": at_client_flight,
}
FIRST_STATES: dict[str, Callable[[], Pair]] = {
    "first epoch": at_first_epoch,
    "first offer": lambda: at_epoch(first=True),
    "first accept": lambda: at_epoch(C, first=True),
    "first accept, classical": lambda: at_epoch(C, first=True, mode=Mode.CLASSICAL_ONLY),
    "first confirm": lambda: at_epoch(C, S, first=True),
}
OPEN_STATES: dict[str, Callable[[], Pair]] = {
    "committed": lambda: at_epoch(C, S, C, first=True),
    "rest": at_rest,
    "offer": lambda: at_epoch(first=False),
    "redeeming": at_redeeming,
    "accept": lambda: at_epoch(C, first=False),
    "accept, classical": lambda: at_epoch(C, first=False, mode=Mode.CLASSICAL_ONLY),
    "confirm": lambda: at_epoch(C, S, first=False),
    "switch": lambda: at_epoch(C, S, C, first=False),
    "go away": at_go_away,
    "client ending": lambda: at_ending(C),
    "server ending": lambda: at_ending(S),
    "both ending": lambda: at_ending(C, S),
}
STATES = TLS_STATES | FIRST_STATES | OPEN_STATES


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("step", [0, 1, 500])
def test_left_alone_every_state_settles_without_an_error(state: str, step: int) -> None:
    pair = STATES[state]()
    pair.server_keys = pair.server_keys or (lambda _needed: Reason.KME_TIMEOUT)
    for _ in range(MAX_ROUNDS):
        data = {role: pair.take_output(role) for role in BOTH}
        for role in BOTH:
            pair.step = step
            pair.deliver(other(role), data[role])
        if not any(data.values()):
            break
    settle(pair)


# --- an attacker on the wire -----------------------------------------------------------------


#: An attack: what, on which record or message, where in it, and with what. Drawn before anything
#: runs, because keys and signatures are fresh in every example and must not steer the drawing.
ATTACKS = st.tuples(
    st.sampled_from(
        ["flip", "cut", "extend", "repeat", "swap", "drop", "reflect", "garbage", "length"]
    ),
    st.integers(0, 1 << 16),
    st.integers(0, 1 << 16),
    st.integers(1, 255),
    st.binary(min_size=1, max_size=300),
)


def tamper(
    records: list[bytes], reflected: list[bytes], attack: tuple[str, int, int, int, bytes]
) -> list[bytes]:
    """One attack on the records of one direction."""
    choice, which, where, change, blob = attack
    at = which % len(records) if records else 0
    altered = list(records)
    if choice == "garbage" or not records:
        altered.insert(at, blob)
    elif choice == "reflect":
        altered[at:at] = reflected or [records[at]]
    elif choice in {"flip", "length"}:
        record = bytearray(records[at])
        record[where % (5 if choice == "length" else len(record))] ^= change
        altered[at] = bytes(record)
    elif choice == "cut":
        altered[at] = records[at][: where % len(records[at])]
    elif choice == "extend":
        altered[at] += blob
    elif choice == "repeat":
        altered.insert(at, records[at])
    elif choice == "swap":
        random.Random(where).shuffle(altered)
    else:
        del altered[at]
    return altered


@pytest.mark.parametrize("state", STATES)
@property_of(30)
@given(victim=st.sampled_from(BOTH), attack=ATTACKS, step=st.sampled_from([0, 0, 0, 1, 700]))
def test_an_attacker_on_the_wire_gets_an_error_or_nothing(
    state: str, victim: Role, attack: tuple[str, int, int, int, bytes], step: int
) -> None:
    pair = STATES[state]()
    waiting = {role: split_records(pair.take_output(role)) for role in BOTH}
    attacker = other(victim)
    said = {role: pair.received(role, 1) for role in BOTH}
    altered = tamper(waiting[attacker], waiting[victim], attack)
    feed(pair, victim, b"".join(altered), step)
    feed(pair, attacker, b"".join(waiting[victim]), step)
    settle(pair)
    for role in BOTH:
        new = pair.received(role, 1)[len(said[role]) :]
        assert b"some dataand some more".startswith(new)


FIRST_BYTES = {
    "http": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "proxy protocol": b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n",
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "sslv2 hello": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),
    "tls 1.2 hello": bytes.fromhex(
        "160301003f0100003b0303" + "11" * 32 + "00000ac02bc02fcca9009c00ff01000008000a000400020017"
    ),
    "empty records": b"\x16\x03\x03\x00\x00" * 400,
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "warning alerts": b"\x15\x03\x03\x00\x02\x01\x00" * 400,
    "change cipher specs": b"\x14\x03\x03\x00\x01\x01" * 400,
    "application data": b"\x17\x03\x03\x00\x20" + bytes(32),
    "huge handshake message": b"\x16\x03\x03\x40\x00\x01\xff\xff\xff" + bytes(0x4000 - 4),
    "server hello": b"\x16\x03\x03\x00\x30\x02\x00\x00\x2c\x03\x03" + bytes(42),
    "finished": b"\x16\x03\x03\x00\x34\x14\x00\x00\x30" + bytes(48),
}


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize("what", FIRST_BYTES)
@pytest.mark.parametrize("step", [0, 1])
def test_other_protocols_are_refused_without_an_answer(what: str, role: Role, step: int) -> None:
    pair = at_hello()
    if role is Role.CLIENT:
        pair.take_output(Role.CLIENT)
    feed(pair, role, FIRST_BYTES[what], step)
    assert pair.take_output(role) == b""
    settle(pair)
    assert not pair.of(role, TunnelEstablished)


@property_of(150)
@given(
    role=st.sampled_from(BOTH),
    data=st.binary(min_size=1, max_size=400),
    header=st.sampled_from(
        [b"", b"\x16\x03\x01", b"\x17\x03\x03", b"\x14\x03\x03", b"\x15\x03\x03"]
    ),
)
def test_garbage_as_first_bytes(role: Role, data: bytes, header: bytes) -> None:
    pair = at_hello()
    if header:
        header += len(data).to_bytes(2, "big")
    feed(pair, role, header + data)
    settle(pair)
    for end in BOTH:
        assert not pair.of(end, TunnelEstablished)


# --- a peer that has the keys ----------------------------------------------------------------

CODES = st.one_of(st.sampled_from([int(code) for code in FrameType]), st.integers(0, 255))
STREAM_IDS = st.one_of(st.integers(0, 6), st.sampled_from([0xFFFF_FFFF, 0x7FFF_FFFF, 1001]))
TEXTS = st.sampled_from([b"\x03web", b"\x00", b"\xff" + b"x" * 255, b"\x02\xff\xfe", b"\x05a"])
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\x01", b"\xff", bytes(4), b"\0\0\0\1", b"\0\0\0\2", bytes(8)]),
    st.sampled_from([1, 1 << 17, 1 << 23, 1 << 40, 1 << 62, (1 << 62) + 1]).map(
        lambda limit: limit.to_bytes(8, "big")
    ),
    st.tuples(TEXTS, TEXTS, TEXTS).map(b"".join),
    st.sampled_from([200, 4000, MAX_PAYLOAD_BYTES]).map(bytes),
)
FRAMES = st.builds(frame, CODES, STREAM_IDS, PAYLOADS)
LYING_FRAMES = st.builds(
    frame, CODES, STREAM_IDS, PAYLOADS, st.sampled_from([0, 1, 7, 8, 0xFFFF, 0x4000])
)
CONTENTS = st.one_of(
    st.lists(FRAMES, min_size=1, max_size=6).map(b"".join),
    st.tuples(FRAMES, LYING_FRAMES).map(b"".join),
    st.binary(max_size=80),
    FRAMES.map(lambda made: made[:-1]),
    FRAMES.map(lambda made: made[: FRAME_HEADER_BYTES - 1]),
)


def fitting(content: bytes) -> bytes:
    return content[: 1 << 14]


@pytest.mark.parametrize("state", OPEN_STATES)
@property_of(40)
@given(
    liar=st.sampled_from(BOTH),
    contents=st.lists(CONTENTS, min_size=1, max_size=6),
    inner_type=st.sampled_from([23] * 12 + [0, 20, 21, 22]),
    pad=st.sampled_from([0, 0, 0, 1, 100]),
    step=st.sampled_from([0, 0, 1, 400]),
    flush=st.booleans(),
)
def test_a_peer_with_the_keys_gets_an_error_or_nothing(
    state: str,
    liar: Role,
    contents: list[bytes],
    inner_type: int,
    pad: int,
    step: int,
    flush: bool,
) -> None:
    """Frames of every kind, right and wrong, at every state of a tunnel that is up."""
    pair = OPEN_STATES[state]()
    if pair.end(liar)._writer._sealer is None:
        liar = other(liar)
    if flush:
        feed(pair, other(liar), pair.take_output(liar))
    pair.take_output(liar)
    for content in contents:
        record = seal(pair, liar, fitting(content), inner_type=inner_type, pad=pad)
        if not feed(pair, other(liar), record, step):
            break
    settle(pair)


LAWFUL_FRAMES = st.sampled_from(
    [
        (FrameType.OPEN, b"\x03web\0\0"),
        (FrameType.DATA, b"data"),
        (FrameType.DATA, bytes(MAX_PAYLOAD_BYTES)),
        (FrameType.HALF_CLOSE, b""),
        (FrameType.RESET, b"\x3c"),
        (FrameType.OPENED, b""),
        (FrameType.REFUSED, b"\x35"),
    ]
)
ANSWERS = st.sampled_from(["", "accept", "refuse", "consume", "close"])


@pytest.mark.parametrize("liar", BOTH)
@property_of(40)
@given(
    steps=st.lists(st.tuples(LAWFUL_FRAMES, st.integers(1, 7), ANSWERS), min_size=1, max_size=25)
)
def test_streams_in_any_order_of_frames(
    liar: Role, steps: list[tuple[tuple[FrameType, bytes], int, str]]
) -> None:
    """Sequences that are mostly lawful get further than noise: streams, credit, both half-closes.

    The honest end answers as a driver would, so that there is something to disagree about.
    """
    pair = at_rest()
    victim = other(liar)
    honest = pair.end(victim)
    feed(pair, victim, pair.take_output(liar))
    for (code, payload), stream_id, with_answer in steps:
        if not feed(pair, victim, seal(pair, liar, frame(code, stream_id, payload))):
            break
        requested = {event.stream_id for event in pair.of(victim, StreamRequested)}
        try:
            if with_answer == "accept" and stream_id in requested:
                honest.accept_stream(stream_id)
            elif with_answer == "refuse" and stream_id in requested:
                honest.refuse_stream(stream_id, Reason.SERVICE_UNKNOWN, pair.now)
            elif with_answer == "close":
                honest.half_close(stream_id, pair.now)
            elif with_answer == "consume":
                stream = honest.session.streams.get(stream_id)
                unread = stream.receive_credit.unread if stream else 0
                honest.data_consumed(stream_id, unread, pair.now)
        except LocalProtocolError:
            pass  # The driver would have known better; the core must stay whole.
        total = sum(stream.receive_credit.unread for stream in honest.session.streams)
        assert honest.session.unread == total
        check_limits(pair)
    settle(pair)


#: A change of a message: how, where, by what, and the numbers to claim.
CHANGES = st.tuples(
    st.sampled_from(["same", "flip", "cut", "extend", "type", "number"]),
    st.integers(0, 1 << 16),
    st.integers(1, 255),
    st.binary(min_size=1, max_size=40),
    st.sampled_from([0, 1, 2, 3, 0xFFFF_FFFF]),
    st.sampled_from([0, 1, 2, 0xFFFF]),
)


def mutate(message: bytes, change: tuple[str, int, int, bytes, int, int]) -> bytes:
    choice, where, value, blob, epoch, attempt = change
    altered = bytearray(message)
    if choice == "flip":
        altered[where % len(altered)] ^= value
    elif choice == "cut":
        del altered[where % len(altered) :]
    elif choice == "extend":
        altered += blob
    elif choice == "type":
        altered[0] = value % 9
    elif choice == "number":
        # Epoch and attempt, where the message has them.
        offset = 4 if message[0] == 1 else 1
        altered[offset : offset + 6] = epoch.to_bytes(4, "big") + attempt.to_bytes(2, "big")
    return bytes(altered)


def recorded_messages() -> dict[Role, list[bytes]]:
    """One message of each kind, as other tunnels sent them."""
    pair = at_rest()
    heard = {role: listen_in(pair.end(role)) for role in BOTH}
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    pair.start_epoch(Mode.HYBRID, qkd_keys("b"))
    pair.client.handle_timeout(pair.now + 10)
    pair.pump()
    pair.start_epoch()
    pair.pump()
    assert {m[0] for m in heard[Role.CLIENT] + heard[Role.SERVER]} == {1, 2, 3, 4, 5}
    return heard


RECORDED = recorded_messages()


@pytest.mark.parametrize("state", FIRST_STATES | OPEN_STATES)
@property_of(40)
@given(
    liar=st.sampled_from(BOTH),
    changes=st.lists(st.tuples(st.integers(0, 60), CHANGES), min_size=1, max_size=4),
    step=st.sampled_from([0, 0, 1]),
)
def test_epoch_messages_of_any_making_get_an_error_or_nothing(
    state: str, liar: Role, changes: list[tuple[int, Any]], step: int
) -> None:
    """Recorded, this tunnel's own, and reflected ones, altered, at every state, by either end."""
    pair = (FIRST_STATES | OPEN_STATES)[state]()
    victim = other(liar)
    end = pair.end(liar)
    epochs = [pair.end(role).epoch for role in BOTH]
    own = intercept(end, lambda _message: [])
    if liar is Role.CLIENT and end.epoch_exchange_idle:
        pair.start_epoch(Mode.HYBRID, qkd_keys("z"))
    feed(pair, victim, pair.take_output(liar))
    pool = [*own, *RECORDED[Role.CLIENT], *RECORDED[Role.SERVER]]
    for which, change in changes:
        message = mutate(pool[which % len(pool)], change)
        if end._tls is not None:
            record = end._tls.send_message(message) if message else b""
        elif end._writer._sealer is not None:
            record = seal(pair, liar, fitting(frame(FrameType.EPOCH, 0, message)))
        else:
            return
        if not feed(pair, victim, record, step):
            break
    # Nothing of all this can have made the ends commit different keys for one epoch.
    settle(pair)
    ids = [{e.epoch: e.epoch_id for e in pair.of(role, EpochCommitted)} for role in BOTH]
    for number in ids[0].keys() & ids[1].keys():
        assert ids[0][number] == ids[1][number]
    assert all(pair.end(role).epoch >= epoch for role, epoch in zip(BOTH, epochs, strict=True))


@pytest.mark.parametrize("kind", ["OFFER", "ACCEPT", "REJECT", "CONFIRM", "ABORT"])
@property_of(60)
@given(where=st.integers(0, 1 << 16))
def test_any_bit_of_an_epoch_message_counts(kind: str, where: int) -> None:
    """Each bit is covered by the transcript, by the MACs, or by the history of failed attempts.

    Inside the encryption only a liar could alter one.
    """
    pair = at_rest()
    if kind == "REJECT":
        pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    if kind == "ABORT":
        pair.server_keys = lambda _needed: qkd_keys("a", salt="lie")
    done: list[bytes] = []

    def altered(message: bytes) -> list[bytes]:
        if type(decode_epoch_message(message)).__name__.upper() != kind or done:
            return [message]
        bit = where % (8 * len(message))
        flipped = bytearray(message)
        flipped[bit // 8] ^= 1 << bit % 8
        done.append(bytes(flipped))
        return [bytes(flipped)]

    for role in BOTH:
        intercept(pair.end(role), altered)
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    for _ in range(6):
        for sender in BOTH:
            feed(pair, other(sender), pair.take_output(sender))
    assert done
    if kind in {"OFFER", "ACCEPT", "CONFIRM"}:
        assert pair.server.epoch == 1
    if kind in {"REJECT", "ABORT"} and pair.client.epoch_exchange_idle:
        # Believed or not, the two ends' histories differ from here on.
        pair.server_keys = lambda needed: qkd_keys(*(key.key_id for key in needed.keys))
        pair.start_epoch()
        settle(pair)
        assert pair.server.epoch == 1
    settle(pair)
