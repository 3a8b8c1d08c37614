"""Limits: streams, credit, sequence numbers, pings, time; and that memory stays within them."""

from __future__ import annotations

import pytest

from qproxy.crypto.records import MAX_RECORD_BYTES, MAX_RECORDS_PER_KEY
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Mode
from qproxy.tunnel.constants import (
    INITIAL_SESSION_CREDIT_BYTES,
    INITIAL_STREAM_CREDIT_BYTES,
    MAX_TLS_PHASE_BYTES,
)
from qproxy.tunnel.credit import SendCredit, StreamCredit, WindowBudget
from qproxy.tunnel.events import EpochDue, StreamRefused, StreamRequested, StreamReset, TunnelClosed
from qproxy.tunnel.frames import MAX_PAYLOAD_BYTES, FrameType
from qproxy.tunnel.pace import MAX_HIGH_WATER_BYTES
from qproxy.tunnel.records_in import LARGE_BUFFER_BYTES, SMALL_BUFFER_BYTES, RecordSplitter
from qproxy.tunnel.records_out import MAX_DATA_RECORDS_PER_KEY, MAX_OUTPUT_BYTES
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import frame, inject, inject_frame, other, seal
from tests.tunnel.helpers import CLIENT, SERVER, Pair, established, make_pair, qkd_keys, replace
from tests.tunnel.rules import BOTH, fails
from tests.tunnel.test_connection import open_stream

OPEN_WEB = b"\x03web\0\0"


# --- streams ---------------------------------------------------------------------------------


def test_a_peer_may_open_so_many_streams_and_no_more() -> None:
    pair = established(CLIENT, replace(SERVER, max_streams=3))
    opened = [pair.client.open_stream("web", now=pair.now) for _ in range(5)]
    pair.pump()
    assert len(pair.of(Role.SERVER, StreamRequested)) == 3
    refused = pair.of(Role.CLIENT, StreamRefused)
    assert [(event.stream_id, event.reason) for event in refused] == [
        (opened[3], Reason.LIMIT_REACHED),
        (opened[4], Reason.LIMIT_REACHED),
    ]
    assert len(pair.server.session.streams) == 3
    pair.client.reset_stream(opened[0], Reason.CONNECTION_RESET, pair.now)
    pair.client.open_stream("web", now=pair.now)
    pair.pump()
    assert len(pair.of(Role.SERVER, StreamRequested)) == 4


def test_a_limit_counts_the_peers_streams_alone() -> None:
    pair = established(replace(CLIENT, max_streams=1), replace(SERVER, max_streams=1))
    for _ in range(3):
        pair.client.open_stream("web", now=pair.now)
    pair.pump()
    assert len(pair.of(Role.SERVER, StreamRequested)) == 1
    pair.server.open_stream("web", now=pair.now)
    pair.pump()
    assert len(pair.of(Role.CLIENT, StreamRequested)) == 1


@pytest.mark.parametrize("stream_id", [0, 1, 2, 4], ids=["zero", "used", "even", "even too"])
def test_open_with_an_id_that_is_not_the_peers_to_give_is_fatal(stream_id: int) -> None:
    pair = established()
    assert open_stream(pair) == 1
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, FrameType.OPEN, stream_id, OPEN_WEB),
        Role.SERVER,
    )


def test_ids_of_streams_that_are_gone_are_not_used_again() -> None:
    pair = established()
    stream_id = open_stream(pair)
    pair.client.reset_stream(stream_id, Reason.CONNECTION_RESET, pair.now)
    pair.pump()
    # What was under way when it ended means nothing.
    for code, payload in (
        (FrameType.DATA, b"late"),
        (FrameType.HALF_CLOSE, b""),
        (FrameType.RESET, b"\1"),
        (FrameType.STREAM_CREDIT, bytes(8)),
    ):
        inject_frame(pair, Role.CLIENT, code, stream_id, payload)
    assert pair.server.established
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, FrameType.OPEN, stream_id, OPEN_WEB),
        Role.SERVER,
    )


def test_stream_ids_may_skip_but_not_go_back() -> None:
    pair = established()
    inject_frame(pair, Role.CLIENT, FrameType.OPEN, 101, OPEN_WEB)
    assert pair.last(Role.SERVER, StreamRequested).stream_id == 101
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, FrameType.OPEN, 99, OPEN_WEB),
        Role.SERVER,
    )


def test_our_own_ids_end_at_2_to_the_32() -> None:
    pair = established()
    pair.client.session.streams._next_local_id = 0xFFFF_FFFF
    assert pair.client.open_stream("web", now=pair.now) == 0xFFFF_FFFF
    with pytest.raises(LocalProtocolError) as caught:
        pair.client.open_stream("web", now=pair.now)
    assert caught.value.reason is Reason.LIMIT_REACHED


@pytest.mark.parametrize(
    "code",
    [
        FrameType.DATA,
        FrameType.OPENED,
        FrameType.REFUSED,
        FrameType.STREAM_CREDIT,
        FrameType.HALF_CLOSE,
        FrameType.RESET,
    ],
    ids=lambda code: code.name,
)
@pytest.mark.parametrize("stream_id", [3, 2, 0xFFFF_FFFF])
def test_frames_of_a_stream_that_never_was_are_fatal(code: FrameType, stream_id: int) -> None:
    payload = {FrameType.OPENED: b"", FrameType.HALF_CLOSE: b"", FrameType.STREAM_CREDIT: bytes(8)}
    pair = established()
    open_stream(pair)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, code, stream_id, payload.get(code, b"\1")),
        Role.SERVER,
    )


@pytest.mark.parametrize(
    ("code", "payload", "by_opener"),
    [
        (FrameType.OPENED, b"", True),
        (FrameType.REFUSED, b"\1", True),
        (FrameType.OPENED, b"", False),
        (FrameType.REFUSED, b"\1", False),
    ],
)
def test_an_answer_comes_once_and_from_the_other_side(
    code: FrameType, payload: bytes, by_opener: bool
) -> None:
    pair = established()
    stream_id = open_stream(pair)  # answered already
    sender = Role.CLIENT if by_opener else Role.SERVER
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, sender, code, stream_id, payload),
        other(sender),
    )


@pytest.mark.parametrize("code", [FrameType.DATA, FrameType.HALF_CLOSE])
def test_nothing_is_received_on_a_half_that_is_closed(code: FrameType) -> None:
    pair = established()
    stream_id = open_stream(pair)
    pair.client.half_close(stream_id, pair.now)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(
            pair, Role.CLIENT, code, stream_id, b"x" if code is FrameType.DATA else b""
        ),
        Role.SERVER,
    )


@pytest.mark.parametrize("code", [FrameType.DATA, FrameType.HALF_CLOSE])
def test_the_far_gateway_sends_nothing_before_opened(code: FrameType) -> None:
    pair = established()
    stream_id = pair.client.open_stream("web", now=pair.now)
    pair.pump()
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(
            pair, Role.SERVER, code, stream_id, b"x" if code is FrameType.DATA else b""
        ),
        Role.CLIENT,
    )


def test_empty_data_is_fatal() -> None:
    """Otherwise frames that cost their sender nothing would cost us work for ever."""
    pair = established()
    stream_id = open_stream(pair)
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: inject_frame(pair, Role.CLIENT, FrameType.DATA, stream_id),
        Role.SERVER,
    )


@pytest.mark.parametrize("role", BOTH)
def test_calls_for_streams_that_are_gone_or_not_answered(role: Role) -> None:
    pair = established()
    stream_id = pair.client.open_stream("web", now=pair.now)
    pair.pump()
    with pytest.raises(LocalProtocolError):
        pair.server.send_data(stream_id, memoryview(b"x"))
    pair.server.refuse_stream(stream_id, Reason.SERVICE_UNKNOWN, pair.now)
    pair.pump()
    end = pair.end(role)
    for call in (
        lambda: end.send_data(stream_id, memoryview(b"x")),
        lambda: end.half_close(stream_id, pair.now),
        lambda: end.sendable(stream_id),
        lambda: end.accept_stream(stream_id),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    end.reset_stream(stream_id, Reason.CLOSED, pair.now)
    end.data_consumed(stream_id, 5, pair.now)
    assert end.output_pending == 0


# --- credit ----------------------------------------------------------------------------------


def use_up_initial_credit(pair: Pair, stream_id: int) -> None:
    left = INITIAL_STREAM_CREDIT_BYTES
    while left:
        left -= pair.client.send_data(stream_id, memoryview(bytes(left)))
        pair.pump()


def test_data_beyond_a_streams_credit_is_fatal() -> None:
    pair = established()
    stream_id = open_stream(pair)
    use_up_initial_credit(pair, stream_id)
    fails(
        pair,
        Reason.FLOW_CONTROL,
        lambda: inject_frame(pair, Role.CLIENT, FrameType.DATA, stream_id, b"x"),
        Role.SERVER,
    )


def test_data_beyond_the_sessions_credit_is_fatal() -> None:
    pair = established(CLIENT, replace(SERVER, max_session_window_bytes=1))
    per_stream = INITIAL_STREAM_CREDIT_BYTES
    streams = INITIAL_SESSION_CREDIT_BYTES // per_stream
    for _ in range(streams):
        use_up_initial_credit(pair, open_stream(pair))
    assert pair.server.session.unread == INITIAL_SESSION_CREDIT_BYTES
    stream_id = open_stream(pair)
    assert pair.client.sendable(stream_id) == 0
    fails(
        pair,
        Reason.FLOW_CONTROL,
        lambda: inject_frame(pair, Role.CLIENT, FrameType.DATA, stream_id, b"x"),
        Role.SERVER,
    )


def test_data_for_streams_that_are_gone_counts_against_the_session() -> None:
    pair = established(CLIENT, replace(SERVER, max_session_window_bytes=1))
    stream_id = open_stream(pair)
    pair.server.reset_stream(stream_id, Reason.CONNECTION_RESET, pair.now)
    pair.take_output(Role.SERVER)
    payload = bytes(MAX_PAYLOAD_BYTES)
    for _ in range(2 * INITIAL_SESSION_CREDIT_BYTES // MAX_PAYLOAD_BYTES):
        inject_frame(pair, Role.CLIENT, FrameType.DATA, stream_id, payload)
        assert pair.server.session.unread == 0
    # It was dropped, so its credit went back: nothing piled up, nothing is lost.
    assert pair.server.session.streams.get(stream_id) is None
    assert pair.server.output_pending > 0


def test_a_reset_gives_back_what_nobody_read() -> None:
    pair = established()
    for _ in range(200):
        stream_id = open_stream(pair)
        use_up_initial_credit(pair, stream_id)
        pair.server.reset_stream(stream_id, Reason.CONNECTION_RESET, pair.now)
        pair.pump()
    assert pair.server.session.unread == 0
    use_up_initial_credit(pair, open_stream(pair))


@pytest.mark.parametrize("limit", [0, 1, INITIAL_STREAM_CREDIT_BYTES])
def test_stream_credit_that_does_not_raise_is_fatal(limit: int) -> None:
    pair = established()
    stream_id = open_stream(pair)
    data = limit.to_bytes(8, "big")
    fails(
        pair,
        Reason.FLOW_CONTROL,
        lambda: inject_frame(pair, Role.SERVER, FrameType.STREAM_CREDIT, stream_id, data),
        Role.CLIENT,
    )


@pytest.mark.parametrize("limit", [0, INITIAL_SESSION_CREDIT_BYTES])
def test_session_credit_that_does_not_raise_is_fatal(limit: int) -> None:
    pair = established()
    data = limit.to_bytes(8, "big")
    fails(
        pair,
        Reason.FLOW_CONTROL,
        lambda: inject_frame(pair, Role.SERVER, FrameType.SESSION_CREDIT, 0, data),
        Role.CLIENT,
    )


def test_the_largest_credit_does_no_harm() -> None:
    pair = established()
    stream_id = open_stream(pair)
    largest = (1 << 62).to_bytes(8, "big")
    inject_frame(pair, Role.SERVER, FrameType.STREAM_CREDIT, stream_id, largest)
    inject_frame(pair, Role.SERVER, FrameType.SESSION_CREDIT, 0, largest)
    taken = pair.client.send_data(stream_id, memoryview(bytes(4 * MAX_HIGH_WATER_BYTES)))
    assert taken <= MAX_HIGH_WATER_BYTES
    assert pair.client.output_pending <= MAX_HIGH_WATER_BYTES + 2 * MAX_RECORD_BYTES


def test_more_consumed_than_received_is_a_bug_of_the_caller() -> None:
    pair = established()
    stream_id = open_stream(pair)
    with pytest.raises(LocalProtocolError):
        pair.server.data_consumed(stream_id, 1, pair.now)


WINDOW = INITIAL_STREAM_CREDIT_BYTES
ROUND_TRIP_S = 0.06


def credit_of(max_window: int, session_window: int = 1 << 30) -> StreamCredit:
    return StreamCredit(max_window, WindowBudget(session_window), 0.0)


def take(credit: StreamCredit, count: int, now: float) -> list[int]:
    """So many bytes come and are handed on, in pieces. Returns the limits that are announced."""
    announced = []
    while count:
        piece = min(count, MAX_PAYLOAD_BYTES)
        count -= piece
        credit.on_received(piece)
        if (limit := credit.on_consumed(piece, now, ROUND_TRIP_S)) is not None:
            announced.append(limit)
    return announced


def test_a_window_grows_while_most_of_it_is_taken_in_a_round_trip() -> None:
    credit, now = credit_of(16 * WINDOW), 0.0
    windows = []
    for _ in range(5):
        now += ROUND_TRIP_S
        take(credit, credit.limit - credit.received, now)
        windows.append(credit.window)
    assert windows == sorted(windows)
    assert windows[0] > 2 * WINDOW
    assert windows[-1] == 16 * WINDOW


def test_a_window_does_not_grow_for_a_slow_reader() -> None:
    credit, now = credit_of(16 * WINDOW), 0.0
    for _ in range(100):
        now += ROUND_TRIP_S
        take(credit, WINDOW // 4, now)
    assert credit.window == WINDOW


def test_a_window_settles_at_less_than_four_times_what_a_round_trip_takes() -> None:
    credit, now = credit_of(1 << 30), 0.0
    for _ in range(3000):  # 100 Mbit/s, in pieces as they come
        now += ROUND_TRIP_S / 60
        take(credit, min(12_500, credit.limit - credit.received), now)
    assert 1.6 * 60 * 12_500 <= credit.window <= 4 * 61 * 12_500
    # What is open when a renewal is under way is more than a round trip takes.
    assert 0.75 * credit.window >= 1.2 * 60 * 12_500


def test_a_window_shrinks_with_the_need() -> None:
    credit, now = credit_of(16 * WINDOW), 0.0
    for _ in range(5):
        now += ROUND_TRIP_S
        take(credit, credit.limit - credit.received, now)
    grown = credit.window
    for _ in range(400):
        now += ROUND_TRIP_S
        take(credit, WINDOW // 4, now)
    assert credit.window <= grown // 8
    for _ in range(10):
        credit.survey()
    assert credit.window == WINDOW


def test_all_windows_together_keep_within_the_budget_and_none_takes_it_all() -> None:
    budget = WindowBudget(64 << 20)
    streams = [StreamCredit(1 << 30, budget, 0.0) for _ in range(20)]
    now = 0.0
    for credit in streams:
        for _ in range(6):
            now += ROUND_TRIP_S
            take(credit, credit.limit - credit.received, now)
        assert budget.free > 0
    extra = [credit.window - WINDOW for credit in streams]
    assert sum(extra) == budget.total - budget.free < 0.75 * (64 << 20)
    for credit in streams:
        credit.release()
    assert budget.free == budget.total
    assert not budget.grown


@pytest.mark.parametrize("max_window", [1, WINDOW, 8 * WINDOW])
@pytest.mark.parametrize("survey", [False, True])
def test_a_limit_never_falls(max_window: int, survey: bool) -> None:
    """The peer takes a limit that does not rise for an attack."""
    receive, now = credit_of(max_window), 0.0
    send = SendCredit(WINDOW)
    for step in range(60):
        now += 0.01 if step % 7 else 1.0
        limits = take(receive, (receive.limit - receive.received) // (1 + step % 3), now)
        assert limits or step % 3
        for limit in limits:
            send.raise_to(limit)
        if survey:
            receive.survey()
            receive.survey()


def test_windows_grow_with_the_measured_round_trip() -> None:
    """256 KiB in flight would hold a 60 ms path to 33 Mbit/s."""
    pair = established()
    stream_id = open_stream(pair)
    pair.server.session.on_round_trip(0.06)
    pair.server.session._base_round_trip_s = 0.06
    seen = 0
    for _ in range(40):
        pair.now += 0.06
        while pair.client.send_data(stream_id, memoryview(bytes(1 << 20))):
            pair.pump()
        arrived = pair.server.session.bytes_received - seen
        seen += arrived
        pair.server.data_consumed(stream_id, arrived, pair.now)
        pair.pump()
    stream = pair.server.session.streams.get(stream_id)
    assert stream is not None
    assert stream.receive_credit.window >= 1 << 20


# --- sequence numbers ------------------------------------------------------------------------


def with_records(pair: Pair, sender: Role, records: int) -> None:
    """As if so many records had gone one way under the present key."""
    sealer, opener = pair.end(sender)._writer._sealer, pair.end(other(sender))._opener
    assert sealer is not None
    assert opener is not None
    sealer.records = opener.records = records


@pytest.mark.parametrize("sender", BOTH)
def test_the_tunnel_ends_before_a_key_is_used_up(sender: Role) -> None:
    pair = established()
    stream_id = open_stream(pair)
    with_records(pair, sender, MAX_DATA_RECORDS_PER_KEY - 1)
    end = pair.end(sender)
    assert end.send_data(stream_id, memoryview(b"the last")) == 8
    data = pair.take_output(sender)
    assert end.send_data(stream_id, memoryview(b"too much")) == 0
    receiver = other(sender)
    fails(pair, Reason.EPOCH_LIMIT, lambda: pair.deliver(receiver, data), receiver)
    end.handle_timeout(pair.now)
    pair.collect(sender)
    assert pair.last(sender, TunnelClosed).reason is Reason.EPOCH_LIMIT
    assert pair.take_output(sender)  # There is room for an END that says so.


@pytest.mark.parametrize("sender", BOTH)
def test_a_new_epoch_starts_at_record_0(sender: Role) -> None:
    pair = established()
    with_records(pair, sender, MAX_DATA_RECORDS_PER_KEY - 100)
    pair.start_epoch()
    pair.pump()
    assert pair.end(sender)._writer.records < 10
    assert pair.client.established
    assert pair.server.established


@pytest.mark.parametrize("sender", BOTH)
def test_the_client_asks_for_an_epoch_in_time_whoever_sends(sender: Role) -> None:
    pair = established(replace(CLIENT, rekey_records=1000))
    with_records(pair, sender, 999)
    for _ in range(2):  # The client looks at its limits when something comes in.
        pair.end(sender).open_stream("web", now=pair.now)
        pair.pump()
        pair.server.open_stream("db", now=pair.now)
        pair.pump()
    assert pair.last(Role.CLIENT, EpochDue).reason is Reason.REKEY_RECORDS


def test_a_used_up_key_never_raises_out_of_input() -> None:
    """Even where a key was used up by other means, the peer sees an end and not a crash."""
    pair = established()
    with_records(pair, Role.SERVER, MAX_RECORDS_PER_KEY)
    ping = seal(pair, Role.CLIENT, frame(FrameType.PING, 0, bytes(8)))
    fails(pair, Reason.EPOCH_LIMIT, lambda: pair.deliver(Role.SERVER, ping), Role.SERVER)
    assert pair.take_output(Role.SERVER) == b""


# --- a peer that does not read ---------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        frame(FrameType.PING, 0, bytes(8)) * 1000,
        b"".join(frame(FrameType.OPEN, 101 + 2 * n, OPEN_WEB) for n in range(1000)),
    ],
    ids=["pings", "refused streams"],
)
def test_a_peer_that_makes_us_answer_and_does_not_read_loses_its_tunnel(content: bytes) -> None:
    pair = established(CLIENT, replace(SERVER, max_streams=0))
    highest = 0

    def flood() -> None:
        nonlocal highest
        for number in range(1000):
            body = content
            if content[0] == FrameType.OPEN:
                first = 101 + 2000 * number
                body = b"".join(frame(FrameType.OPEN, first + 2 * n, OPEN_WEB) for n in range(1000))
            pair.deliver(Role.SERVER, seal(pair, Role.CLIENT, body))
            highest = max(highest, pair.server.output_pending)

    fails(pair, Reason.PEER_NOT_READING, flood, Role.SERVER)
    assert highest <= MAX_OUTPUT_BYTES
    assert pair.server._writer.capacity <= 2 * MAX_OUTPUT_BYTES


def test_a_flood_that_is_read_is_answered() -> None:
    pair = established()
    for _ in range(200):
        inject(pair, Role.CLIENT, frame(FrameType.PING, 0, bytes(8)) * 100)
        assert pair.server.output_pending < MAX_OUTPUT_BYTES
        pair.take_output(Role.SERVER)
    assert pair.server.established


def test_a_pong_answers_a_ping() -> None:
    pair = established()
    for payload in (bytes(8), b"12345678"):
        fresh = established()
        fails(
            fresh,
            Reason.UNEXPECTED_MESSAGE,
            lambda fresh=fresh, payload=payload: inject_frame(  # type: ignore[misc]
                fresh, Role.SERVER, FrameType.PONG, 0, payload
            ),
            Role.CLIENT,
        )
    assert pair.client.established


# --- bytes before the tunnel -----------------------------------------------------------------


def test_a_header_is_judged_before_its_body_is_waited_for() -> None:
    for header, reason in (
        (b"GET / HTTP/1.1\r\n", Reason.MALFORMED_MESSAGE),
        (b"\x16\x03\x01\x41\x01", Reason.RECORD_OVERFLOW),
        (b"\x17\x03\x03\xff\xff", Reason.RECORD_OVERFLOW),
        (b"\x16\x03\x02\0\5", Reason.MALFORMED_MESSAGE),
        (b"\x18\x03\x03\0\5", Reason.MALFORMED_MESSAGE),
    ):
        pair = make_pair()
        fails(
            pair,
            reason,
            lambda pair=pair, header=header: pair.deliver(Role.SERVER, header),  # type: ignore[misc]
            Role.SERVER,
        )


@pytest.mark.parametrize("content_type", [20, 22, 23])
def test_the_tls_phase_takes_so_many_bytes(content_type: int) -> None:
    pair = make_pair()
    pair.pump()
    fed = 0

    def flood() -> None:
        nonlocal fed
        record = bytes([content_type]) + b"\x03\x03\x40\x00" + bytes(1 << 14)
        while True:
            pair.deliver(Role.SERVER, record)
            fed += len(record)

    with pytest.raises(RemoteProtocolError):
        flood()
    assert fed <= MAX_TLS_PHASE_BYTES
    assert pair.take_output(Role.SERVER) == b""


def test_the_tls_phase_of_a_certified_peer_takes_so_many_bytes_too() -> None:
    """One that offers for ever what is refused for ever."""
    pair = make_pair()
    pair.pump()
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND

    def offer_for_ever() -> None:
        for number in range(1000):
            pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{number}"))
            pair.pump()

    fails(pair, Reason.RECORD_OVERFLOW, offer_for_ever, Role.SERVER)
    assert len(pair.wire[Role.CLIENT]) < MAX_TLS_PHASE_BYTES + MAX_RECORD_BYTES


def test_the_splitter_holds_no_more_than_its_buffer() -> None:
    splitter = RecordSplitter()
    record = b"\x17\x03\x03\x41\x00" + bytes(0x4100)
    stream = (record * 100)[: 100 * len(record) - 7]
    taken = 0
    while stream:
        space = splitter.free_space()
        assert space
        count = min(len(space), len(stream))
        space[:count] = stream[:count]
        stream = stream[count:]
        splitter.advance(count)
        while splitter.next_record() is not None:
            taken += 1
        assert splitter.buffered < MAX_RECORD_BYTES
        assert splitter.capacity <= LARGE_BUFFER_BYTES
    assert taken == 99
    assert splitter.buffered == len(record) - 7


def test_buffers_shrink_when_a_tunnel_is_idle() -> None:
    pair = established()
    stream_id = open_stream(pair)
    for _ in range(10):
        pair.client.send_data(stream_id, memoryview(bytes(1 << 20)))
        before = pair.server.session.bytes_received
        pair.pump()
        pair.server.data_consumed(stream_id, pair.server.session.bytes_received - before, pair.now)
        pair.pump()
    assert pair.server._splitter.capacity == LARGE_BUFFER_BYTES
    for _ in range(2):
        pair.server.handle_timeout(pair.now)
    assert pair.server._splitter.capacity == SMALL_BUFFER_BYTES


# --- time ------------------------------------------------------------------------------------


def reach(what: str) -> tuple[Pair, Role]:
    """A pair in one of the situations in which an end waits for something."""
    if what in {"nothing", "hello", "first offer"}:
        pair = make_pair(replace(CLIENT, handshake_timeout_s=100.0))
        if what != "nothing":
            pair.pump()
        if what == "first offer":
            pair.start_epoch()
        return pair, Role.CLIENT
    pair = established()
    if what == "offer":
        pair.now += 60
        pair.server_keys = None
        pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    elif what == "go away":
        pair.client.go_away(Reason.SHUTDOWN)
        pair.pump()
    elif what == "ending":
        pair.now += 44
        pair.client.end(Reason.SHUTDOWN, pair.now)
    elif what == "committed":
        pair.start_epoch()
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
        pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    elif what == "accepted":
        pair.start_epoch()
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
        return pair, Role.SERVER
    return pair, Role.CLIENT


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "hello",
        "first offer",
        "rest",
        "offer",
        "go away",
        "ending",
        "committed",
        "accepted",
    ],
)
def test_a_deadline_that_was_handled_does_not_come_again(what: str) -> None:
    """Or the driver would spin. Every tunnel nobody feeds ends after a few steps."""
    pair, role = reach(what)
    end = pair.end(role)
    steps = 0
    while (due := end.next_timeout()) is not None:
        pair.now = max(pair.now, due)
        end.handle_timeout(pair.now)
        later = end.next_timeout()
        assert later is None or later > pair.now
        steps += 1
        assert steps < 50
    pair.collect(role)
    assert pair.of(role, TunnelClosed)


@pytest.mark.parametrize("interval_s", [1.0, 60.0])
def test_an_epoch_is_due_at_its_moment_whatever_was_looked_at_just_before(
    interval_s: float,
) -> None:
    """Or the driver would spin from that moment on, for ever where its clock waits for it."""
    settings = replace(CLIENT, rekey_interval_s=interval_s, peer_timeout_s=1e6)
    for odd in (0.0, 0.1, 1 / 3, 0.7, 2.2):
        pair = make_pair(settings)
        pair.now += odd
        pair.pump()
        pair.start_epoch()
        pair.pump()
        due = pair.now + interval_s
        # A record that comes just before makes the limits be looked at.
        pair.now = due - 1e-3
        stream_id = open_stream(pair)
        assert pair.client.send_data(stream_id, memoryview(b"data")) == 4
        pair.pump()
        pair.events[Role.CLIENT].clear()
        pair.client.handle_timeout(due)
        pair.collect(Role.CLIENT)
        assert pair.last(Role.CLIENT, EpochDue).reason is Reason.REKEY_INTERVAL
        later = pair.client.next_timeout()
        assert later is not None
        assert later > due


def test_a_silent_peer_is_taken_for_dead() -> None:
    for role in BOTH:
        pair = established()
        stream_id = open_stream(pair)
        pair.end(role).handle_timeout(pair.now + 44.9)
        assert pair.end(role).established
        pair.end(role).handle_timeout(pair.now + 45.0)
        pair.collect(role)
        assert pair.last(role, TunnelClosed).reason is Reason.PEER_SILENT
        assert pair.last(role, StreamReset).stream_id == stream_id


@pytest.mark.parametrize("role", BOTH)
def test_an_unfinished_handshake_ends_in_time(role: Role) -> None:
    pair = make_pair()
    pair.take_output(Role.CLIENT)
    pair.end(role).handle_timeout(pair.now + 9.9)
    assert not pair.end(role).closed
    pair.end(role).handle_timeout(pair.now + 10.0)
    pair.collect(role)
    assert pair.last(role, TunnelClosed).reason is Reason.HANDSHAKE_TIMEOUT
    assert pair.take_output(role) == b""


def test_a_peer_that_does_not_answer_end_is_left_behind() -> None:
    pair = established()
    pair.client.end(Reason.SHUTDOWN, pair.now)
    pair.client.handle_timeout(pair.now + 4.9)
    assert not pair.client.closed
    pair.client.handle_timeout(pair.now + 5.0)
    pair.collect(Role.CLIENT)
    assert pair.last(Role.CLIENT, TunnelClosed) == TunnelClosed(Reason.SHUTDOWN, clean=False)


def test_attempts_at_one_epoch_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qproxy.tunnel.epoch_client.MAX_ATTEMPTS_PER_EPOCH", 3)
    pair = established()
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    for number in range(3):
        pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{number}"))
        pair.pump()
    with pytest.raises(LocalProtocolError) as caught:
        pair.start_epoch()
    assert caught.value.reason is Reason.EPOCH_LIMIT


def test_epoch_numbers_end() -> None:
    pair = established()
    for role in BOTH:
        pair.end(role)._epochs.chain.epoch = 0xFFFF_FFFF  # type: ignore[union-attr]
    keys = qkd_keys("a")
    with pytest.raises(LocalProtocolError) as caught:
        pair.start_epoch(Mode.HYBRID, keys)
    assert keys[0].key == b""
    assert caught.value.reason is Reason.EPOCH_LIMIT
