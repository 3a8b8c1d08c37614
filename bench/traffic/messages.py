"""Small messages in a closed loop: each connection has one under way, and sends on its return."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Sequence

from bench.traffic.flows import STALL_S, polling, wait
from bench.traffic.wire import TrafficError, message


class _Loop:
    """One connection and its message, the same each time."""

    __slots__ = ("message", "parts", "sent_at", "sock")

    def __init__(self, sock: socket.socket, number: int, size: int) -> None:
        self.sock = sock
        self.message = message(number, size)
        self.parts = b""
        self.sent_at = 0

    def send(self) -> None:
        self.sent_at = time.monotonic_ns()
        if self.sock.send(self.message) < len(self.message):
            raise TrafficError("a connection with one message under way takes no whole one")

    def receive(self) -> bool:
        """Whether the message is back. Raises TrafficError."""
        data = self.sock.recv(64 * 1024)
        if data == self.message:
            return True
        self.parts += data
        if not data or not self.message.startswith(self.parts):
            raise TrafficError("a message did not come back as it was sent")
        if len(self.parts) < len(self.message):
            return False
        self.parts = b""
        return True


def closed_loop(
    sockets: Sequence[socket.socket], size: int, duration_s: float
) -> tuple[float, list[int]]:
    """Keep one message under way on each connection.

    Args:
        sockets: the connections.
        size: of a message, in bytes.
        duration_s: how long new ones are sent.

    Returns:
        Seconds from the first sent to the last returned, and how long each took, in nanoseconds.

    Raises:
        TrafficError: bytes were lost, changed, or held up.
        OSError: a connection broke.
    """
    if not sockets:
        raise TrafficError("not connected")
    loops = {sock.fileno(): _Loop(sock, index, size) for index, sock in enumerate(sockets)}
    took: list[int] = []
    with polling() as poll:
        for descriptor in loops:
            poll.register(descriptor, select.EPOLLIN)
        began = time.monotonic_ns()
        end = began + round(duration_s * 1e9)
        for loop in loops.values():
            loop.send()
        under_way = len(loops)
        while under_way:
            for descriptor, _ in wait(poll):
                loop = loops[descriptor]
                if not loop.receive():
                    continue
                now = time.monotonic_ns()
                took.append(now - loop.sent_at)
                if now < end:
                    loop.send()
                else:
                    under_way -= 1
    return (time.monotonic_ns() - began) / 1e9, took


def ping_pong(sock: socket.socket, size: int, duration_s: float) -> tuple[float, list[int]]:
    """One message to and fro on one connection, through a blocking socket: the least overhead.

    Returns and raises as :func:`closed_loop`.
    """
    loop = _Loop(sock, 0, size)
    took: list[int] = []
    sock.setblocking(True)
    # Bounded by the kernel: settimeout() would cost a poll() before every call.
    limit = struct.pack("ll", int(STALL_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        began = now = time.monotonic_ns()
        end = began + round(duration_s * 1e9)
        while now < end:
            loop.send()
            while not loop.receive():
                pass
            now = time.monotonic_ns()
            took.append(now - loop.sent_at)
    finally:
        sock.setblocking(False)
    return (now - began) / 1e9, took
