"""One tunnel's three tasks over a socket, around a core that does what the test says."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import cast

import pytest
import trio
import trio.testing

from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import Event, StreamRequested

#: More than a socket takes while nobody reads.
MUCH_BYTES = 8 << 20
LAST_WORDS = b"END"


class EndingCore:
    """A core with much to send that ends when its time has come or a byte arrives."""

    def __init__(self, ends_at: float | None) -> None:
        self.closed = False
        self.established = True
        self.output_pending = MUCH_BYTES
        self._ends_at = ends_at
        self._output = bytearray(MUCH_BYTES)

    def data_to_send(self) -> memoryview:
        return memoryview(bytes(self._output))

    def data_sent(self, count: int) -> None:
        del self._output[:count]

    def sendable(self, stream_id: int) -> int:
        return 0

    def transport_full(self, now: float) -> int:
        return 512 * 1024

    def next_turn(self) -> int | None:
        return None

    def receive_buffer(self) -> memoryview:
        return memoryview(bytearray(64))

    def received(self, count: int, now: float) -> None:
        self._end()

    def receive_eof(self, now: float) -> None:
        self._end()

    def next_timeout(self) -> float | None:
        return None if self.closed else self._ends_at or trio.current_time() + 60

    def handle_timeout(self, now: float) -> None:
        self._end()

    def events(self) -> list[Event]:
        return []

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self._output += LAST_WORDS


class Owner:
    """Hears of nothing here."""

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        raise AssertionError(event)

    def on_stream_requested(self, tunnel: Tunnel, event: StreamRequested) -> None:
        raise AssertionError(event)


def tunnel_around(core: EndingCore, sock: socket.socket) -> Tunnel:
    return Tunnel(sock, cast("Connection", core), Owner())


async def test_a_tunnel_that_ends_while_its_peer_does_not_read_just_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = socket.socketpair()
    with far:
        core = EndingCore(trio.current_time() + 1)
        with trio.fail_after(30):
            await tunnel_around(core, near).run()
        assert core.closed
        assert near.fileno() == -1


@pytest.mark.parametrize("ended_by", ["the peer", "the clock"])
async def test_the_last_words_follow_what_the_socket_would_not_take_before(ended_by: str) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    core = EndingCore(trio.current_time() + 0.1 if ended_by == "the clock" else None)
    received = bytearray()

    async def read_late() -> None:
        with trio.fail_after(30):
            while not core.closed:
                await trio.sleep(0.001)
            while True:
                with suppress(BlockingIOError):
                    data = far.recv(1 << 20)
                    if not data:
                        return
                    received.extend(data)
                    continue
                await trio.lowlevel.wait_readable(far)

    with far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel_around(core, near).run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(read_late)
            if ended_by == "the peer":
                far.send(b"x")
    assert len(received) == MUCH_BYTES + len(LAST_WORDS)
    assert received.endswith(LAST_WORDS)
