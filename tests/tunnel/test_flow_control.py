"""Flow control as a whole: filled paths, short queues, fair shares, deaf streams, hostile credit.

Two cores on a simulated path with a simulated clock (:mod:`tests.tunnel.simulation`): the numbers
are exact and the same everywhere.
"""

from __future__ import annotations

import math

import pytest

from qproxy.errors import Reason
from qproxy.tunnel.constants import INITIAL_STREAM_CREDIT_BYTES
from qproxy.tunnel.credit import BUDGET_SHARE, MIN_ROUND_TRIP_S, StreamCredit, WindowBudget
from qproxy.tunnel.events import CreditAvailable, StreamReset
from qproxy.tunnel.frames import MAX_PAYLOAD_BYTES, FrameType
from qproxy.tunnel.pace import (
    CORE_LESS_BYTES,
    INITIAL_HIGH_WATER_BYTES,
    MAX_HIGH_WATER_BYTES,
    MIN_HIGH_WATER_BYTES,
    Pace,
)
from qproxy.tunnel.session import (
    IDLE_SURVEYS,
    MIN_CREDIT_NEWS_BYTES,
    PRESSED_SHARE,
    RELIEVED_SHARE,
    SURVEY_INTERVAL_S,
)
from qproxy.tunnel.settings import Role
from qproxy.tunnel.slots import DataSlots
from qproxy.tunnel.turns import SMALL_RESERVE_BYTES
from tests.tunnel.adversary import frame as frame_bytes
from tests.tunnel.adversary import inject, inject_frame, other
from tests.tunnel.helpers import CLIENT, SERVER, Pair, established, replace
from tests.tunnel.rules import BOTH
from tests.tunnel.simulation import Requests, Simulation
from tests.tunnel.test_connection import open_stream

GIGABIT = 1e9
MIB = 1 << 20


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


# --- windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", BOTH)
@pytest.mark.parametrize(
    ("rate_bps", "round_trip_s"),
    [
        (GIGABIT, 0.1),
        (GIGABIT, 0.03),
        (GIGABIT, 0.005),
        (1e8, 0.1),
        (1e7, 0.1),
        (1e7, 0.03),
        (1e7, 0.005),
    ],
)
def test_one_stream_fills_the_path_within_ten_round_trips(
    rate_bps: float, round_trip_s: float, sender: Role
) -> None:
    simulation = Simulation(rate_bps=rate_bps, round_trip_s=round_trip_s)
    stream_id = simulation.open()
    simulation.bulk(sender, stream_id)
    simulation.run(10 * round_trip_s)
    path = simulation.end(sender).path
    before, took_s = path.carried, max(10 * round_trip_s, 0.5)
    simulation.run(took_s)
    assert path.carried - before >= 0.9 * took_s * rate_bps / 8
    # And no more is promised than a small multiple of what the path holds.
    need = rate_bps / 8 * max(round_trip_s, MIN_ROUND_TRIP_S)
    window = simulation.window(other(sender), stream_id)
    assert window <= max(4.1 * need, INITIAL_STREAM_CREDIT_BYTES)


def test_the_windows_of_an_idle_stream_are_given_back() -> None:
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.03)
    stream_id = simulation.open()
    simulation.bulk(Role.CLIENT, stream_id)
    simulation.run(0.3)
    assert simulation.window(Role.SERVER, stream_id) > 4 * MIB
    simulation.client.sources.clear()
    simulation.run(12 * SURVEY_INTERVAL_S)
    assert simulation.window(Role.SERVER, stream_id) == INITIAL_STREAM_CREDIT_BYTES
    # It is where it was soon enough when it is needed again.
    simulation.bulk(Role.CLIENT, stream_id)
    simulation.run(0.3)
    assert simulation.window(Role.SERVER, stream_id) > 4 * MIB


def test_a_second_stream_takes_half_of_the_path() -> None:
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.03)
    first, second = simulation.open(), simulation.open()
    simulation.bulk(Role.CLIENT, first)
    simulation.run(1.0)
    simulation.bulk(Role.CLIENT, second)
    simulation.run(1.0)
    before = dict(simulation.server.received)
    simulation.run(1.0)
    shares = [simulation.server.received[it] - before.get(it, 0) for it in (first, second)]
    assert min(shares) >= 0.9 * max(shares)


# --- queues ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "bulk_streams"),
    [
        (Role.CLIENT, 1),
        (Role.SERVER, 16),
        # The same code at the other end.
        pytest.param(Role.CLIENT, 16, marks=pytest.mark.slow),
        pytest.param(Role.SERVER, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("rate_bps", "round_trip_s", "added_s"),
    [
        (GIGABIT, 0.001, 0.0017),
        (GIGABIT, 0.03, 0.0017),
        (GIGABIT, 0.1, 0.0017),
        # The lower bound of the mark is 10 ms there with the kernel, and 5 ms in the core.
        (1e8, 0.03, 0.017),
    ],
)
def test_a_small_request_beside_bulk_waits_for_little(
    rate_bps: float, round_trip_s: float, added_s: float, sender: Role, bulk_streams: int
) -> None:
    simulation = Simulation(rate_bps=rate_bps, round_trip_s=round_trip_s)
    bulk = [simulation.open() for _ in range(bulk_streams)]
    requests = Requests(simulation, simulation.open(), every_s=0.0051)
    simulation.run(0.5)
    alone = quantile(requests.latencies, 0.99)
    for stream_id in bulk:
        simulation.bulk(sender, stream_id)
    simulation.run(1.0 + 30 * round_trip_s)  # The windows grow, and the rate is measured.
    requests.latencies.clear()
    path = simulation.end(sender).path
    before = path.carried
    simulation.run(1.0)
    assert len(requests.latencies) >= 190
    assert quantile(requests.latencies, 0.99) - alone <= added_s
    if round_trip_s < 0.1:
        assert path.carried - before >= 0.9 * rate_bps / 8


def test_pings_and_credit_do_not_wait_behind_bulk() -> None:
    """Bulk both ways: each way's credit has the other way's bulk in front of it."""
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.03)
    stream_id = simulation.open()
    for sender in BOTH:
        simulation.bulk(sender, stream_id)
    simulation.run(2.0)
    for end in (simulation.client, simulation.server):
        end.core._timers.ping(bytes, simulation.clock.now)
        end.flush()
    simulation.run(0.1)
    for end in (simulation.client, simulation.server):
        pongs = [event.seconds for event in end.round_trips]
        assert pongs
        assert pongs[-1] <= 0.03 + 2 * 0.0017


def test_windows_do_not_go_by_the_queue_that_they_allow() -> None:
    """Pings beside bulk wait in its queue. Hours of bulk must not make it longer and longer."""
    simulation = Simulation(rate_bps=1e8, round_trip_s=0.0003)
    stream_id = simulation.open()
    simulation.client.path.bounded = False
    simulation.bulk(Role.CLIENT, stream_id)
    simulation.run(0.5)
    for _ in range(40):
        for end in (simulation.client, simulation.server):
            end.core._timers.ping(bytes, simulation.clock.now)
            end.flush()
        simulation.run(0.1)
    assert max(event.seconds for event in simulation.client.round_trips) > 0.005
    assert simulation.window(Role.SERVER, stream_id) <= 2 * INITIAL_STREAM_CREDIT_BYTES


def test_a_path_that_has_become_longer_is_noticed() -> None:
    pair = established()
    session = pair.client.session
    for _ in range(4):
        session.on_round_trip(0.1, moved=100_000)
    assert session._base_round_trip_s == 0.1
    session.on_round_trip(1.0, moved=100_000_000)
    assert session._base_round_trip_s == 0.1
    session.on_round_trip(0.05, moved=100_000_000)
    assert session._base_round_trip_s == 0.05


def test_sixty_four_streams_share_fairly() -> None:
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.03)
    streams = [simulation.open() for _ in range(64)]
    for number, stream_id in enumerate(streams):
        simulation.clock.at(
            simulation.clock.now + number * 0.01,
            lambda stream_id=stream_id: simulation.bulk(Role.CLIENT, stream_id),  # type: ignore[misc]
        )
    simulation.run(1.5)
    before = dict(simulation.server.received)
    simulation.run(1.0)
    shares = [simulation.server.received[it] - before[it] for it in streams]
    assert sum(shares) >= 0.95 * GIGABIT / 8
    assert max(shares) <= 1.25 * min(shares)
    windows = [simulation.window(Role.SERVER, it) for it in streams]
    assert sum(windows) <= BUDGET_SHARE * SERVER.max_session_window_bytes + 64 * (128 << 10)


def test_the_high_water_mark_follows_the_path() -> None:
    marks = {}
    for rate_bps in (1e7, 1e8, GIGABIT, 8e9):
        simulation = Simulation(rate_bps=rate_bps, round_trip_s=0.002)
        stream_id = simulation.open()
        simulation.bulk(Role.CLIENT, stream_id)
        simulation.run(0.5)
        marks[rate_bps] = simulation.client.core.output_high_water
    assert marks[1e7] == marks[1e8] == MIN_HIGH_WATER_BYTES
    assert marks[GIGABIT] == MIN_HIGH_WATER_BYTES
    assert marks[8e9] == 512 * 1024


# --- the pace --------------------------------------------------------------------------------


def fill(pace: Pace, bytes_per_s: float, seconds: float, *, idle: bool = False) -> None:
    """A transport that is full every millisecond, and takes so much in between."""
    taken = int(bytes_per_s / 1000)
    pace.transport_full(taken, 0.0)
    for step in range(1, int(1000 * seconds)):
        pace.idle = idle
        pace.transport_full(int((step + 1) * bytes_per_s / 1000), step / 1000)


@pytest.mark.parametrize(
    ("bytes_per_s", "mark"),
    [
        (1_000_000, MIN_HIGH_WATER_BYTES),
        (125_000_000, MIN_HIGH_WATER_BYTES),
        (500_000_000, 256 * 1024),
        (4_000_000_000, MAX_HIGH_WATER_BYTES),
    ],
)
def test_the_mark_is_half_a_millisecond_of_the_rate(bytes_per_s: int, mark: int) -> None:
    pace = Pace(0.0)
    fill(pace, bytes_per_s, 5.0)
    assert pace.high_water == mark


@pytest.mark.parametrize("bytes_per_s", [1_000_000, 500_000_000])
def test_a_pause_of_the_senders_says_nothing_about_the_transport(bytes_per_s: int) -> None:
    pace = Pace(0.0)
    fill(pace, bytes_per_s, 5.0, idle=True)
    assert pace.high_water == INITIAL_HIGH_WATER_BYTES


def test_a_transport_that_is_still_full_says_nothing_new() -> None:
    pace = Pace(0.0)
    fill(pace, 0, 5.0)
    assert pace.high_water == INITIAL_HIGH_WATER_BYTES


@pytest.mark.parametrize("late_s", [0.0002, pytest.param(0.001, marks=pytest.mark.slow), 0.005])
def test_a_driver_that_comes_late_keeps_its_throughput(late_s: float) -> None:
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.002)
    stream_id = simulation.open()
    path = simulation.client.path
    path.late_s = late_s
    simulation.bulk(Role.CLIENT, stream_id)
    simulation.run(2.0)
    before = path.carried
    simulation.run(1.0)
    assert path.carried - before >= 0.9 * GIGABIT / 8


def test_a_transport_that_is_never_full_is_given_more_when_it_takes_much() -> None:
    slow, fast = Pace(0.0), Pace(0.0)
    for step in range(1, 100):
        slow.look(step * 100_000, step * 0.01)
        fast.look(step * 10_000_000, step * 0.01)
    assert slow.high_water == INITIAL_HIGH_WATER_BYTES
    assert fast.high_water == 512 * 1024


@pytest.mark.parametrize("really_s", [0.001, pytest.param(0.003, marks=pytest.mark.slow), 0.01])
def test_credit_that_takes_longer_than_a_ping_costs_no_throughput(really_s: float) -> None:
    """Two busy event loops: the ping was measured while they were idle."""
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=really_s)
    for end in (simulation.client, simulation.server):
        end.core.session._base_round_trip_s = 0.0002
    stream_id = simulation.open()
    simulation.bulk(Role.CLIENT, stream_id)
    simulation.run(1.0)
    path = simulation.client.path
    before = path.carried
    simulation.run(1.0)
    assert path.carried - before >= 0.9 * GIGABIT / 8


def test_little_waits_for_a_far_gateway_that_cannot_keep_up() -> None:
    """Its kernel takes all that is sent: only the window keeps the queue there short."""
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.0003)
    stream_id = simulation.open()
    requests = Requests(simulation, simulation.open(), every_s=0.0051)
    simulation.run(0.5)
    alone = quantile(requests.latencies, 0.99)
    path = simulation.client.path
    path.bounded = False
    simulation.bulk(Role.CLIENT, stream_id)
    simulation.run(0.5)
    requests.latencies.clear()
    before = path.carried
    simulation.run(1.0)
    assert quantile(requests.latencies, 0.99) - alone <= 0.002
    assert path.carried - before >= 0.9 * GIGABIT / 8


# --- turns -----------------------------------------------------------------------------------


def full_output(pair: Pair, slots: DataSlots, stream_id: int) -> None:
    stream = pair.client.session.streams.get(stream_id)
    assert stream is not None
    stream.send_credit.limit = 1 << 30
    while room := pair.client.sendable(stream_id):
        pair.client.send_slots(stream_id, slots, min(room, slots.capacity))


def test_who_finds_no_room_is_named_when_there_is_some_small_streams_first() -> None:
    pair, slots = established(), DataSlots()
    bulk = [open_stream(pair) for _ in range(3)]
    small = open_stream(pair)
    for stream_id in bulk:
        full_output(pair, slots, stream_id)
    assert pair.client.next_turn() is None
    # There is room left for what is small, but not for ever.
    sent = 0
    while room := pair.client.sendable(small):
        pair.client.send_slots(small, slots, min(room, 1000))
        sent += min(room, 1000)
    assert MAX_PAYLOAD_BYTES <= sent <= SMALL_RESERVE_BYTES
    pair.pump()
    order = []
    while (stream_id := pair.client.next_turn()) is not None:
        order.append(stream_id)
    assert order == [small, *bulk]


def test_bulk_has_one_turn_while_others_wait() -> None:
    pair, slots = established(), DataSlots()
    first, second = open_stream(pair), open_stream(pair)
    for stream_id in (first, second):
        full_output(pair, slots, stream_id)
    order = []
    for _ in range(6):
        pair.take_output(Role.CLIENT)
        stream_id = pair.client.next_turn()
        assert stream_id is not None
        order.append(stream_id)
        room = pair.client.sendable(stream_id)
        assert room > 0
        pair.client.send_slots(stream_id, slots, min(room, MAX_PAYLOAD_BYTES))
        assert pair.client.sendable(stream_id) == 0
    assert order == [first, second] * 3


def test_a_stream_that_is_gone_is_not_named() -> None:
    pair, slots = established(), DataSlots()
    first, second = open_stream(pair), open_stream(pair)
    for stream_id in (first, second):
        full_output(pair, slots, stream_id)
    pair.client.reset_stream(first, Reason.CLOSED, pair.now)
    pair.pump()
    assert pair.client.next_turn() == second
    assert pair.client.next_turn() is None


# --- deaf streams ----------------------------------------------------------------------------


def grow_and_go_deaf(pair: Pair, stream_id: int) -> int:
    """The server reads fast until the window has grown, then no more. Returns what is unread."""
    server, data = pair.server.session, memoryview(bytes(256 << 10))
    for reads in [True] * 60 + [False] * 100:
        before = server.bytes_received
        while pair.client.send_data(stream_id, data):
            pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
            pair.events[Role.SERVER].clear()
        if reads:
            pair.server.data_consumed(stream_id, server.bytes_received - before, pair.now)
            pair.pump()
        pair.now += 0.001
    stream = server.streams.get(stream_id)
    assert stream is not None
    return stream.receive_credit.unread


def test_streams_that_nobody_reads_leave_room_for_the_others() -> None:
    """Five that had grown large windows: they hold up nobody."""
    limit = 16 * MIB
    pair = established(CLIENT, replace(SERVER, max_session_window_bytes=limit))
    streams = [open_stream(pair) for _ in range(5)]
    unread = [grow_and_go_deaf(pair, stream_id) for stream_id in streams]
    assert unread == sorted(unread, reverse=True)
    assert unread[0] > 4 * MIB
    assert sum(unread) == pair.server.session.unread <= limit
    # A stream that is read moves as much as it likes, however long that goes on.
    alive = open_stream(pair)
    moved = 0
    while moved < 2 * limit:
        sent = pair.client.send_data(alive, memoryview(bytes(64 << 10)))
        assert sent > 0
        pair.pump()
        pair.events[Role.SERVER].clear()
        pair.server.data_consumed(alive, sent, pair.now)
        pair.pump()
        pair.now += 0.001
        moved += sent
    # Those that wake up go on where they were.
    pair.server.data_consumed(streams[0], unread[0], pair.now)
    pair.pump()
    assert pair.client.sendable(streams[0]) > 0


def many_deaf(pair: Pair, count: int) -> list[int]:
    streams = [open_stream(pair) for _ in range(count)]
    for stream_id in streams:
        while pair.client.send_data(stream_id, memoryview(bytes(INITIAL_STREAM_CREDIT_BYTES))):
            pair.pump()
            pair.events[Role.SERVER].clear()
    return streams


def survey(pair: Pair, times: int) -> None:
    for _ in range(times):
        pair.now += SURVEY_INTERVAL_S
        pair.server.handle_timeout(pair.now)
        pair.client.handle_timeout(pair.now)
        pair.pump()


def test_where_memory_is_short_what_nobody_reads_is_shed() -> None:
    """More streams than fit the window with their initial credit, not one of them read."""
    limit = 16 * MIB
    pair = established(CLIENT, replace(SERVER, max_session_window_bytes=limit))
    streams = many_deaf(pair, limit // INITIAL_STREAM_CREDIT_BYTES + 10)
    assert pair.server.session.unread > PRESSED_SHARE * limit
    late = open_stream(pair)
    assert pair.client.sendable(late) == 0
    # One of them is slow, not deaf.
    slow = streams[0]
    for _ in range(IDLE_SURVEYS + 1):
        pair.server.data_consumed(slow, 10_000, pair.now)
        survey(pair, 1)
    shed = {event.stream_id for event in pair.of(Role.SERVER, StreamReset)}
    assert shed
    assert slow not in shed
    assert {event.reason for event in pair.of(Role.CLIENT, StreamReset)} == {Reason.LIMIT_REACHED}
    # No more of them than must be, and the late one goes on.
    assert len(shed) <= len(streams) // 3
    assert pair.server.session.unread <= RELIEVED_SHARE * limit
    assert any(event.stream_id is None for event in pair.of(Role.CLIENT, CreditAvailable))
    assert pair.client.sendable(late) > 0


def test_a_byte_now_and_then_does_not_make_a_stream_alive() -> None:
    credit = StreamCredit(MIB, WindowBudget(64 * MIB), 0.0)
    credit.on_received(100_000)
    for surveys in range(1, 4):
        credit.on_consumed(1, 0.0, 0.01)
        credit.survey()
        assert credit.idle_surveys == surveys
    credit.on_consumed(10_000, 0.0, 0.01)
    credit.survey()
    assert credit.idle_surveys == 0


def test_nothing_is_shed_while_there_is_memory() -> None:
    limit = 16 * MIB
    pair = established(CLIENT, replace(SERVER, max_session_window_bytes=limit))
    streams = many_deaf(pair, int(0.8 * limit) // INITIAL_STREAM_CREDIT_BYTES)
    survey(pair, 8)
    assert not pair.of(Role.SERVER, StreamReset)
    assert pair.client.sendable(open_stream(pair)) > 0
    assert len(pair.server.session.streams) == len(streams) + 1


# --- a peer with bad manners -----------------------------------------------------------------


def test_credit_in_morsels_wakes_nobody() -> None:
    """A byte of credit at a time would cost us a record for each."""
    pair = established()
    stream_id = open_stream(pair)
    while pair.client.sendable(stream_id):
        pair.client.send_data(stream_id, memoryview(bytes(INITIAL_STREAM_CREDIT_BYTES)))
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    for extra in range(1, MIN_CREDIT_NEWS_BYTES):
        limit = (INITIAL_STREAM_CREDIT_BYTES + extra).to_bytes(8, "big")
        inject(pair, Role.SERVER, frame_bytes(FrameType.STREAM_CREDIT, stream_id, limit))
    assert not pair.of(Role.CLIENT, CreditAvailable)
    enough = (INITIAL_STREAM_CREDIT_BYTES + MIN_CREDIT_NEWS_BYTES).to_bytes(8, "big")
    inject_frame(pair, Role.SERVER, FrameType.STREAM_CREDIT, stream_id, enough)
    assert pair.of(Role.CLIENT, CreditAvailable) == [CreditAvailable(stream_id)]
    assert pair.client.sendable(stream_id) == MIN_CREDIT_NEWS_BYTES


def test_no_credit_makes_us_hold_more_output_than_the_mark() -> None:
    pair, slots = established(), DataSlots()
    largest = (1 << 62).to_bytes(8, "big")
    streams = [open_stream(pair) for _ in range(20)]
    inject_frame(pair, Role.SERVER, FrameType.SESSION_CREDIT, 0, largest)
    for stream_id in streams:
        inject_frame(pair, Role.SERVER, FrameType.STREAM_CREDIT, stream_id, largest)
    for stream_id in streams:
        full_output(pair, slots, stream_id)
    assert pair.client.output_pending <= (
        pair.client.output_high_water
        - CORE_LESS_BYTES
        + SMALL_RESERVE_BYTES
        + 2 * MAX_PAYLOAD_BYTES
    )


def test_a_slow_reader_at_the_far_end_of_a_window_is_not_taken_for_a_fast_one() -> None:
    """Bytes that lie unread give no credit, whatever the peer sends."""
    simulation = Simulation(rate_bps=GIGABIT, round_trip_s=0.01)
    deaf, alive = simulation.open(), simulation.open()
    simulation.server.deaf.add(deaf)
    simulation.bulk(Role.CLIENT, deaf)
    simulation.bulk(Role.CLIENT, alive)
    simulation.run(1.0)
    assert simulation.window(Role.SERVER, deaf) == INITIAL_STREAM_CREDIT_BYTES
    assert simulation.server.core.session.unread == INITIAL_STREAM_CREDIT_BYTES
    assert simulation.server.received[alive] >= 0.9 * GIGABIT / 8
