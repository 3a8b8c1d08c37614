"""One stream's relay, around an endpoint and a tunnel that do what the test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import trio
import trio.testing

from qproxy.errors import Reason
from qproxy.net.endpoint import MAX_SEND_VIEWS, Endpoint
from qproxy.runtime.relay import Relay
from qproxy.runtime.tunnel import Tunnel


class FakeTunnel:
    """Counts what is handed on."""

    open = True

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.consumed_bytes = 0

    def consumed(self, stream_id: int, count: int) -> None:
        self.consumed_bytes += count

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(task)

    def forget(self, stream_id: int) -> None:
        pass

    def reset(self, stream_id: int, reason: Reason) -> None:
        raise AssertionError(reason)

    def half_close(self, stream_id: int) -> None:
        pass


class StalledEndpoint:
    """Takes nothing until told to; then as much at once as the kernel would."""

    def __init__(self) -> None:
        self.going = trio.Event()
        self.sent = bytearray()
        self.calls = 0
        self.ended = False

    def try_send(self, data: Sequence[memoryview]) -> int:
        if not self.going.is_set():
            return 0
        self.calls += 1
        joined = b"".join(data[:MAX_SEND_VIEWS])
        self.sent += joined
        return len(joined)

    async def wait_sendable(self) -> None:
        await self.going.wait()

    async def wait_receivable(self) -> None:
        await trio.lowlevel.checkpoint()

    def try_receive_vectors(self, buffers: Sequence[memoryview]) -> int:
        return 0

    def send_eof(self) -> bool:
        self.ended = True
        return True

    def close(self) -> None:
        pass


class RoomyTunnel(FakeTunnel):
    def sendable(self, stream_id: int) -> int:
        return 1 << 20


async def test_data_in_tiny_pieces_is_gathered_while_the_application_does_not_read() -> None:
    pieces = [bytes([number % 251]) for number in range(20_000)]
    endpoint = StalledEndpoint()
    async with trio.open_nursery() as nursery:
        tunnel = RoomyTunnel(nursery)
        relay = Relay(cast("Tunnel", tunnel), 1)
        for piece in pieces[:100]:  # before the service is connected
            relay.on_data([memoryview(piece)], 1)
        nursery.start_soon(relay.run, cast("Endpoint", endpoint))
        await trio.testing.wait_all_tasks_blocked()
        for piece in pieces[100:]:
            relay.on_data([memoryview(piece)], 1)
        relay.on_half_closed()
        assert tunnel.consumed_bytes == 0
        endpoint.going.set()
    assert endpoint.sent == b"".join(pieces)
    assert endpoint.ended
    assert tunnel.consumed_bytes == len(pieces)
    assert endpoint.calls == 1


async def test_the_order_holds_whatever_the_sizes_and_however_little_is_taken() -> None:
    sizes = [1, 70_000, 3, 65_536, 65_535, 2, 16_000, 200_000, 1]
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]

    class Reluctant(StalledEndpoint):
        async def wait_sendable(self) -> None:
            await trio.lowlevel.checkpoint()
            self.going.set()

        def try_send(self, data: Sequence[memoryview]) -> int:
            if not self.going.is_set():
                return 0
            self.going = trio.Event()
            taken = b"".join(data)[:7_777]
            self.sent += taken
            return len(taken)

    endpoint = Reluctant()
    async with trio.open_nursery() as nursery:
        tunnel = RoomyTunnel(nursery)
        relay = Relay(cast("Tunnel", tunnel), 1)
        nursery.start_soon(relay.run, cast("Endpoint", endpoint))
        for piece in pieces:
            relay.on_data(
                [memoryview(piece)[: len(piece) // 2], memoryview(piece)[len(piece) // 2 :]],
                len(piece),
            )
            await trio.lowlevel.checkpoint()
        relay.on_half_closed()
    assert endpoint.sent == b"".join(pieces)
    assert endpoint.ended
