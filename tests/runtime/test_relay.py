"""A relay between a fake endpoint and a fake tunnel: every end, every order, every byte once."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from qproxy.errors import LocalProtocolError, Reason
from qproxy.net.endpoint import ConnectionLost, Endpoint
from qproxy.net.reactor import HANGUP, READABLE, WRITABLE, OnReady, current_reactor
from qproxy.runtime import tunnel as tunnel_module
from qproxy.runtime.relay import LAST_DELIVERY_S, Relay
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import CreditAvailable
from qproxy.tunnel.slots import DataSlots

STREAM = 7
PLENTY = 1 << 20


class FakeEndpoint:
    """An application's connection whose kernel does as the test says.

    Attributes:
        room: bytes the kernel takes before it blocks.
        arriving: what the application has sent and nobody read; b"" is its FIN.
        taken: what the kernel took, or b"" for FIN, in order.
        offered: how many views each try to send had.
        fault: raised by every call from now on.
    """

    def __init__(self, room: int = PLENTY) -> None:
        self.room = room
        self.arriving: list[bytes] = []
        self.taken: list[bytes] = []
        self.offered: list[int] = []
        self.fault: Exception | None = None
        self.aborted = False
        self.closed = False
        self.eof_blocks = False
        self.holds_data = False
        self._on_ready: OnReady | None = None
        self._tells_of_room = False

    @property
    def received(self) -> bytes:
        return b"".join(self.taken)

    # What a test does.

    def app_sends(self, *parts: bytes) -> None:
        self.arriving += parts
        self._tell(READABLE | (select.EPOLLRDHUP if b"" in parts else 0))

    def app_reads(self, count: int = PLENTY) -> None:
        self.room += count
        self.eof_blocks = False
        self._tell(WRITABLE)

    def breaks(self, fault: Exception) -> None:
        self.fault = fault
        self._tell(READABLE | WRITABLE | HANGUP)

    def _tell(self, change: int) -> None:
        if not self._tells_of_room:
            change &= ~WRITABLE
        if change and self._on_ready is not None and not self._over:
            self._on_ready(change)

    # What a relay calls.

    def watch(self, on_ready: OnReady) -> None:
        self._check()
        self._on_ready = on_ready
        current_reactor().soon(lambda: self._tell(READABLE))

    def want_room(self) -> None:
        self._check()
        if not self._tells_of_room:
            self._tells_of_room = True
            if self.room and not self.eof_blocks:
                current_reactor().soon(lambda: self._tell(WRITABLE))

    def try_receive_vectors(self, buffers: Sequence[memoryview]) -> int | None:
        self._check()
        if not self.arriving:
            return None
        data = self.arriving.pop(0)
        count = min(len(data), sum(len(buffer) for buffer in buffers))
        if count < len(data):
            self.arriving.insert(0, data[count:])
        offset = 0
        for buffer in buffers:
            part = data[offset : min(count, offset + len(buffer))]
            buffer[: len(part)] = part
            offset += len(part)
        return count

    def try_send(self, data: Sequence[memoryview]) -> int:
        self._check()
        self.offered.append(len(data))
        whole = b"".join(data)
        count = min(self.room, len(whole))
        if count:
            self.room -= count
            self.taken.append(whole[:count])
        return count

    def send_eof(self) -> bool:
        self._check()
        if self.eof_blocks:
            return False
        self.taken.append(b"")
        return True

    def end(self) -> bool:
        if not self.send_eof():
            return False
        self.close()
        return True

    def abort(self) -> None:
        if not self._over:
            self.aborted = True

    def close(self) -> None:
        if not self._over:
            self.closed = True

    @property
    def _over(self) -> bool:
        return self.aborted or self.closed

    def _check(self) -> None:
        if self._over:
            raise ConnectionLost(Reason.CLOSED, "closed here")
        if self.fault is not None:
            raise self.fault


class FakeTunnel:
    """A tunnel that keeps what it was told.

    Attributes:
        credit: bytes the stream may send.
        sent: what it was given to send; b"" is HALF_CLOSE.
        resets: reasons of resets sent.
        credited: bytes given back, call by call.
    """

    open = True

    def __init__(self) -> None:
        self.credit = PLENTY
        self.sent: list[bytes] = []
        self.resets: list[Reason] = []
        self.credited: list[int] = []
        self.forgotten: list[int] = []

    def sendable(self, _stream_id: int) -> int:
        return self.credit

    def send(self, _stream_id: int, slots: DataSlots, count: int) -> None:
        self.credit -= count
        self.sent.append(b"".join(slots.views(count))[:count])

    def half_close(self, _stream_id: int) -> None:
        self.sent.append(b"")

    def reset(self, _stream_id: int, reason: Reason) -> None:
        self.resets.append(reason)

    def consumed(self, _stream_id: int, count: int) -> None:
        if count:
            self.credited.append(count)

    def forget(self, stream_id: int) -> None:
        self.forgotten.append(stream_id)


class Rig:
    """One relay that runs, and both its sides."""

    def __init__(self, endpoint: FakeEndpoint, **options: Any) -> None:
        self.tunnel = FakeTunnel()
        self.endpoint = endpoint
        self.relay = Relay(cast(Tunnel, self.tunnel), STREAM, **options)
        self.done = trio.Event()
        self.relay.on_over = lambda _relay: self.done.set()

    def start(self) -> None:
        self.relay.start(cast(Endpoint, self.endpoint))

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    def deliver(self, *parts: bytes) -> None:
        """DATA from the far side, in a buffer that is overwritten right after."""
        buffer = bytearray(b"".join(parts))
        views, offset = [], 0
        for part in parts:
            views.append(memoryview(buffer)[offset : offset + len(part)])
            offset += len(part)
        self.relay.on_data(views, len(buffer))
        buffer[:] = b"?" * len(buffer)


@asynccontextmanager
async def rig(room: int = PLENTY, *, start: bool = True, **options: Any) -> AsyncIterator[Rig]:
    made = Rig(FakeEndpoint(room), **options)
    if start:
        made.start()
        await made.settle()
    yield made


# --- towards the application ----------------------------------------------------------------


async def test_partial_sends_arrive_in_order_and_once() -> None:
    async with rig(room=3) as it:
        it.deliver(b"abcd", b"efgh")
        it.deliver(b"ij")
        await it.settle()
        assert it.endpoint.received == b"abc"
        for _ in range(4):
            it.endpoint.app_reads(2)
            await it.settle()
        assert it.endpoint.received == b"abcdefghij"
        it.deliver(b"kl")
        it.endpoint.app_reads()
        await it.settle()
        assert it.endpoint.received == b"abcdefghijkl"


async def test_credit_comes_back_exactly_once_for_each_byte_the_application_took() -> None:
    async with rig(room=5) as it:
        it.deliver(b"a" * 4)
        assert sum(it.tunnel.credited) == 4
        it.deliver(b"b" * 10)
        assert sum(it.tunnel.credited) == 5
        while sum(it.tunnel.credited) < 14:
            it.endpoint.app_reads(3)
            await it.settle()
            assert sum(it.tunnel.credited) == len(it.endpoint.received)
        assert sum(it.tunnel.credited) == 14
        await it.settle()
        assert sum(it.tunnel.credited) == 14


async def test_what_came_before_the_endpoint_was_there_goes_first() -> None:
    async with rig(start=False) as it:
        it.deliver(b"early ")
        it.deliver(b"bird")
        assert it.tunnel.credited == []
        it.start()
        await it.settle()
        it.deliver(b"!")
        assert it.endpoint.received == b"early bird!"
        assert sum(it.tunnel.credited) == 11


async def test_data_behind_a_queue_waits_its_turn_though_the_kernel_has_room_again() -> None:
    async with rig(room=0) as it:
        it.deliver(b"first ")
        await it.settle()
        it.endpoint.room = PLENTY  # and nobody was told yet
        it.deliver(b"second")
        assert it.endpoint.received == b""
        it.endpoint.app_reads()
        await it.settle()
        assert it.endpoint.received == b"first second"


async def test_a_slow_readers_many_small_pieces_do_not_cost_an_object_each() -> None:
    async with rig(room=0) as it:
        for _ in range(20_000):
            it.deliver(b"x")
        it.endpoint.app_reads()
        await it.settle()
        assert it.endpoint.received == b"x" * 20_000
        assert max(it.endpoint.offered) < 64


async def test_eof_comes_after_queued_data() -> None:
    async with rig(room=2) as it:
        it.deliver(b"abcd")
        it.relay.on_half_closed()
        await it.settle()
        assert it.endpoint.taken == [b"ab"]
        it.endpoint.app_reads()
        await it.settle()
        assert it.endpoint.taken == [b"ab", b"cd", b""]
        it.endpoint.app_sends(b"bye", b"")
        await it.done.wait()
        assert it.tunnel.sent == [b"bye", b""]
        assert (it.endpoint.closed, it.endpoint.aborted) == (True, False)
        assert it.relay.failure is None
        assert it.tunnel.resets == []
        assert it.tunnel.forgotten == [STREAM]


async def test_eof_that_would_block_is_sent_later() -> None:
    async with rig() as it:
        it.endpoint.eof_blocks = True
        it.relay.on_half_closed()
        await it.settle()
        assert it.endpoint.taken == []
        it.endpoint.app_reads()
        await it.settle()
        assert it.endpoint.taken == [b""]


async def test_the_end_while_a_drain_still_waits_is_an_orderly_one() -> None:
    async with rig(room=0) as it:
        it.endpoint.app_sends(b"")
        it.deliver(b"last words")
        await it.settle()  # the drain waits for room
        it.endpoint.room = PLENTY
        it.relay.on_half_closed()  # and the reader finds it first
        await it.done.wait()
        await it.settle()
        assert it.endpoint.taken == [b"last words", b""]
        assert it.endpoint.closed
        assert it.relay.failure is None
        assert it.tunnel.resets == []


async def test_the_last_end_closes_at_once_or_when_it_no_longer_blocks() -> None:
    for blocks in (False, True):
        async with rig() as it:
            it.endpoint.app_sends(b"")
            it.endpoint.eof_blocks = blocks
            it.relay.on_half_closed()
            assert it.endpoint.closed is not blocks
            it.endpoint.app_reads()
            await it.done.wait()
            assert it.endpoint.taken == [b""]
            assert it.endpoint.closed
            assert it.relay.failure is None


# --- towards the tunnel ------------------------------------------------------------------


async def test_what_the_application_sends_goes_out_as_credit_allows() -> None:
    async with rig() as it:
        it.tunnel.credit = 4
        it.endpoint.app_sends(b"abcdefgh")
        await it.settle()
        assert it.tunnel.sent == [b"abcd"]
        it.relay.wake()
        await it.settle()
        assert it.tunnel.sent == [b"abcd"]  # woken for nothing
        it.tunnel.credit = PLENTY
        it.relay.wake()
        await it.settle()
        assert b"".join(it.tunnel.sent) == b"abcdefgh"


async def test_first_words_that_are_there_leave_at_once_and_later_ones_later() -> None:
    async with rig(start=False) as it:
        it.endpoint.arriving += [b"there already"]
        it.relay.start(cast(Endpoint, it.endpoint), speaks_first=True)
        current_reactor().turn(wait=False)
        assert it.tunnel.sent == [b"there already"]
    async with rig(start=False) as it:
        it.relay.start(cast(Endpoint, it.endpoint), speaks_first=True)
        await it.settle()
        it.endpoint.app_sends(b"now")
        assert it.tunnel.sent == [b"now"]


async def test_wait_for_service_reads_nothing_before_the_service_is_there() -> None:
    async with rig(accepted=False) as it:
        it.endpoint.app_sends(b"hello")
        await it.settle()
        assert it.tunnel.sent == []
        it.relay.on_accepted()
        await it.settle()
        assert it.tunnel.sent == [b"hello"]


async def test_a_refusal_while_the_service_is_waited_for_resets_the_application() -> None:
    async with rig(accepted=False) as it:
        it.endpoint.app_sends(b"hello")
        it.relay.on_reset(Reason.CONNECT_REFUSED)
        await it.done.wait()
        assert it.tunnel.sent == []
        assert it.endpoint.aborted
        assert it.relay.failure is Reason.CONNECT_REFUSED


# --- resets ------------------------------------------------------------------------------


async def test_the_applications_rst_resets_the_stream_once() -> None:
    async with rig() as it:
        it.endpoint.breaks(ConnectionLost(Reason.CONNECTION_RESET, "RST"))
        await it.done.wait()
        assert it.tunnel.resets == [Reason.CONNECTION_RESET]
        assert it.relay.failure is Reason.CONNECTION_RESET
        assert it.endpoint.aborted
        assert it.tunnel.forgotten == [STREAM]


async def test_an_rst_that_sending_finds_resets_the_stream_once() -> None:
    async with rig() as it:
        it.endpoint.fault = ConnectionLost(Reason.CONNECTION_RESET, "RST")
        it.deliver(b"too late")
        it.deliver(b"later")
        await it.done.wait()
        assert it.tunnel.resets == [Reason.CONNECTION_RESET]
        assert it.tunnel.credited == []


async def test_an_rst_while_draining_resets_the_stream_once() -> None:
    async with rig(room=1) as it:
        it.deliver(b"abc")
        await it.settle()
        it.endpoint.breaks(ConnectionLost(Reason.CONNECTION_RESET, "RST"))
        await it.done.wait()
        assert it.tunnel.resets == [Reason.CONNECTION_RESET]
        assert it.relay.failure is Reason.CONNECTION_RESET


@pytest.mark.parametrize("way", ["sending", "draining", "half-closing"])
async def test_a_fault_of_ours_at_an_endpoint_costs_its_stream_and_not_the_tunnel(
    way: str,
) -> None:
    async with rig(room=0 if way == "draining" else PLENTY) as it:
        fault = LocalProtocolError(Reason.INTERNAL_ERROR, "a bug")
        if way == "draining":
            it.deliver(b"abc")
            await it.settle()
            it.endpoint.breaks(fault)
        elif way == "sending":
            it.endpoint.fault = fault
            it.deliver(b"abc")
        else:
            it.endpoint.fault = fault
            it.relay.on_half_closed()
        await it.done.wait()
        assert it.tunnel.resets == [Reason.INTERNAL_ERROR]
        assert it.endpoint.aborted


async def test_an_rst_is_noticed_though_there_is_no_room_to_read_for() -> None:
    async with rig() as it:
        it.tunnel.credit = 0
        it.endpoint.app_sends(b"more")
        it.endpoint.breaks(ConnectionLost(Reason.CONNECTION_RESET, "RST"))
        await it.done.wait()
        assert it.tunnel.resets == [Reason.CONNECTION_RESET]
        assert it.endpoint.aborted


async def test_what_came_before_an_rst_is_read_where_there_is_room_for_it() -> None:
    async with rig() as it:
        it.endpoint.arriving += [b"abc", b"def"]
        it.endpoint.app_sends(b"g")
        it.endpoint.breaks(ConnectionLost(Reason.CONNECTION_RESET, "RST"))
        await it.done.wait()
        assert it.tunnel.sent[0] == b"abc"


async def test_the_far_sides_rst_resets_the_application_and_is_not_sent_back() -> None:
    async with rig() as it:
        it.relay.on_reset(Reason.CONNECTION_RESET)
        await it.done.wait()
        assert it.endpoint.aborted
        assert it.tunnel.resets == []
        assert it.relay.failure is Reason.CONNECTION_RESET
        it.deliver(b"crossed it")
        it.relay.on_half_closed()
        it.relay.wake()
        it.relay.fail(Reason.IDLE_TIMEOUT)
        assert it.relay.failure is Reason.CONNECTION_RESET
        assert it.tunnel.resets == []
        assert it.endpoint.received == b""


async def test_a_reset_drops_what_is_queued_and_gives_no_credit_for_it() -> None:
    async with rig(room=2) as it:
        it.deliver(b"abcdef")
        it.relay.on_half_closed()
        await it.settle()
        it.relay.on_reset(Reason.CONNECTION_RESET)
        await it.done.wait()
        await it.settle()
        assert it.endpoint.received == b"ab"
        assert it.tunnel.credited == [2]
        assert it.endpoint.aborted
        assert b"" not in it.endpoint.taken


async def test_a_reset_before_the_endpoint_is_there_resets_it_when_it_comes() -> None:
    async with rig(start=False) as it:
        it.deliver(b"for nobody")
        it.relay.on_reset(Reason.CONNECTION_RESET)
        it.start()
        await it.done.wait()
        assert it.endpoint.aborted
        assert it.endpoint.received == b""
        assert it.tunnel.credited == []
        assert it.tunnel.forgotten == [STREAM]


async def test_a_reset_wakes_a_relay_that_waits_for_credit() -> None:
    async with rig() as it:
        it.tunnel.credit = 0
        it.endpoint.app_sends(b"abc")
        await it.settle()
        it.relay.on_reset(Reason.CONNECTION_RESET)
        await it.done.wait()
        it.relay.wake()
        assert it.tunnel.sent == []


async def test_nothing_fails_a_relay_that_has_ended_well() -> None:
    async with rig() as it:
        it.endpoint.app_sends(b"")
        it.relay.on_half_closed()
        await it.done.wait()
        it.relay.fail(Reason.IDLE_TIMEOUT)
        it.relay.on_reset(Reason.TUNNEL_LOST)
        assert it.relay.failure is None
        assert it.tunnel.resets == []
        assert not it.endpoint.aborted


# --- the tunnel ends while the application still reads -----------------------------------


async def complete_but_slow(it: Rig) -> None:
    """Both halves have ended; the application has not read everything yet."""
    it.endpoint.app_sends(b"")
    it.deliver(b"all of it")
    it.relay.on_half_closed()
    await it.settle()
    assert it.endpoint.received == b"al"


async def test_what_has_come_whole_is_delivered_though_the_tunnel_ends() -> None:
    async with rig(room=2) as it:
        await complete_but_slow(it)
        it.relay.on_reset(Reason.TUNNEL_LOST)  # the core's, at its end
        it.tunnel.open = False
        it.relay.on_tunnel_over()
        await it.settle()
        it.endpoint.app_reads(3)
        await it.settle()
        it.endpoint.app_reads()
        await it.done.wait()
        assert it.endpoint.received == b"all of it"
        assert it.endpoint.taken[-1] == b""
        assert (it.endpoint.closed, it.endpoint.aborted) == (True, False)
        assert it.relay.failure is None


async def test_an_application_that_never_reads_the_rest_is_reset_in_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig(room=2) as it:
        await complete_but_slow(it)
        it.tunnel.open = False
        it.relay.on_tunnel_over()
        before = trio.current_time()
        await it.done.wait()
        assert trio.current_time() - before == pytest.approx(LAST_DELIVERY_S)
        assert it.endpoint.aborted
        assert it.relay.failure is Reason.TUNNEL_LOST


@pytest.mark.parametrize("ended", ["neither", "local", "remote"])
async def test_a_stream_cut_short_by_the_tunnels_end_is_reset(ended: str) -> None:
    async with rig(room=2) as it:
        it.deliver(b"a part")
        if ended == "local":
            it.endpoint.app_sends(b"")
        if ended == "remote":
            it.relay.on_half_closed()
        await it.settle()
        it.relay.on_tunnel_over()
        await it.done.wait()
        assert it.endpoint.aborted
        assert it.relay.failure is Reason.TUNNEL_LOST


async def test_the_far_sides_rst_after_both_ends_still_resets() -> None:
    async with rig(room=2) as it:
        await complete_but_slow(it)
        it.relay.on_reset(Reason.CONNECTION_RESET)
        await it.done.wait()
        assert it.endpoint.aborted
        assert it.relay.failure is Reason.CONNECTION_RESET


# --- the tunnel's clock ------------------------------------------------------------------


class FakeConnection:
    """As much of a core as the tunnel's look at its streams takes."""

    qkd_age_from: float | None = None


def bare_tunnel(*relays: Relay) -> Tunnel:
    tunnel = object.__new__(Tunnel)
    tunnel.relays = dict(enumerate(relays))
    tunnel.connection = cast(Any, FakeConnection())
    tunnel._stream_check_at = 0.0
    return tunnel


async def test_silence_both_ways_for_the_idle_timeout_resets_the_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig(idle_timeout_s=30.0) as it:
        tunnel = bare_tunnel(it.relay)
        for _ in range(3):
            await trio.sleep(20)
            it.endpoint.app_sends(b"ping")
            await it.settle()
            await trio.sleep(20)
            it.deliver(b"pong")
            await tunnel._check_streams(trio.current_time())
        assert it.relay.failure is None
        await trio.sleep(29.9)
        await tunnel._check_streams(trio.current_time())
        assert it.relay.failure is None
        await trio.sleep(tunnel_module.STREAM_CHECK_S)
        await tunnel._check_streams(trio.current_time())
        await it.done.wait()
        assert it.relay.failure is Reason.IDLE_TIMEOUT
        assert it.tunnel.resets == [Reason.IDLE_TIMEOUT]
        assert it.endpoint.aborted


async def test_a_slow_reader_that_takes_something_is_not_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig(room=0, idle_timeout_s=30.0) as it:
        tunnel = bare_tunnel(it.relay)
        it.deliver(b"abcdef")
        for _ in range(6):
            await trio.sleep(20)
            it.endpoint.app_reads(1)
            await it.settle()
            await tunnel._check_streams(trio.current_time())
        assert it.endpoint.received == b"abcdef"
        assert it.relay.failure is None


async def test_without_an_idle_timeout_silence_is_no_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig() as it:
        await trio.sleep(1e6)
        await bare_tunnel(it.relay)._check_streams(trio.current_time())
        assert it.relay.failure is None


# --- who reads next ----------------------------------------------------------------------


class CoreWithTurns:
    """As much of a core as sending takes: room for one read at a time, and who is to have it."""

    output_pending = 0

    def __init__(self, *order: int) -> None:
        self.order = list(order)

    def data_to_send(self) -> memoryview:
        return memoryview(b"")

    def next_turn(self) -> int | None:
        return self.order.pop(0) if self.order else None


async def test_streams_that_found_no_room_read_in_the_order_the_core_names() -> None:
    async with rig() as first, rig() as second, rig() as third:
        rigs = {1: first, 3: second, 5: third}
        read: list[int] = []
        for stream_id, it in rigs.items():
            it.tunnel.credit = 0
            it.endpoint.app_sends(b"data")
            it.tunnel.credit = PLENTY
            it.tunnel.send = lambda _id, _slots, _count, n=stream_id: read.append(n)  # type: ignore[method-assign,misc]
        tunnel = bare_tunnel()
        tunnel.relays = {stream_id: it.relay for stream_id, it in rigs.items()}
        tunnel.connection = cast(Any, CoreWithTurns(5, 1, 7, 3))
        tunnel._flush_due = tunnel._write_blocked = tunnel._flushing = False
        tunnel.flush()
        assert read == [5, 1, 3]


async def test_a_tunnel_that_always_finds_more_to_send_lets_others_have_their_turns() -> None:
    class Endless(CoreWithTurns):
        output_pending = 1
        asked = 0

        def data_to_send(self) -> memoryview:
            self.asked += 1
            return memoryview(b"")

    core = Endless()
    tunnel = bare_tunnel()
    tunnel.connection = cast(Any, core)
    tunnel._reactor = current_reactor()
    tunnel._flush_due = tunnel._write_blocked = tunnel._flushing = False
    tunnel.flush()
    assert core.asked == tunnel_module.TURNS
    tunnel._write_blocked = True  # and the flush that is due finds the socket full


async def test_credit_for_one_stream_wakes_it_and_credit_for_the_tunnel_wakes_all() -> None:
    async with rig() as one, rig() as other:
        tunnel = bare_tunnel()
        tunnel.relays = {STREAM: one.relay, STREAM + 2: other.relay}
        for it in (one, other):
            it.tunnel.credit = 0
            it.endpoint.app_sends(b"data")
            it.tunnel.credit = PLENTY
        tunnel._on_event(CreditAvailable(STREAM))
        await one.settle()
        assert (one.tunnel.sent, other.tunnel.sent) == ([b"data"], [])
        tunnel._on_event(CreditAvailable(None))
        await other.settle()
        assert other.tunnel.sent == [b"data"]
