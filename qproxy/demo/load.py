"""Bulk transfers and short connections through the near gateway, every byte verified."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from qproxy.demo.pattern import MAX_CHUNK_BYTES, Pattern, chunks
from qproxy.demo.record import Traffic
from qproxy.demo.settings import BULK_STREAMS, SHORT_BYTES, SHORT_CONCURRENCY, STALL_TIMEOUT_S

#: Longest answer to an upload, in bytes: a number and a SHA-256.
_MAX_ANSWER_BYTES: Final = 256


class Fault(Exception):  # noqa: N818 - says what was wrong with a connection
    """A connection that was not as it should be."""


class Connection:
    """A client's connection to the near gateway's listener, counting what it moves.

    Every wait ends after STALL_TIMEOUT_S without progress.
    """

    def __init__(self, sock: trio.socket.SocketType, traffic: Traffic) -> None:
        self._socket = sock
        self._traffic = traffic

    @classmethod
    async def open(cls, port: int, traffic: Traffic) -> Connection:
        """Connect. Raises Fault."""
        traffic.opened += 1
        sock = trio.socket.socket()
        try:
            with trio.fail_after(STALL_TIMEOUT_S):
                await sock.connect(("127.0.0.1", port))
            sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        except (OSError, trio.TooSlowError) as error:
            sock.close()
            raise Fault(_describe("connect", error)) from None
        except BaseException:
            sock.close()
            raise
        return cls(sock, traffic)

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises Fault."""
        view = memoryview(data)
        try:
            while view:
                with trio.fail_after(STALL_TIMEOUT_S):
                    count = await self._socket.send(view)
                self._traffic.sent_bytes += count
                view = view[count:]
        except (OSError, trio.TooSlowError) as error:
            raise Fault(_describe("send", error)) from None

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive something; 0 at the end. Raises Fault."""
        try:
            with trio.fail_after(STALL_TIMEOUT_S):
                count = await self._socket.recv_into(buffer)
        except (OSError, trio.TooSlowError) as error:
            raise Fault(_describe("receive", error)) from None
        self._traffic.received_bytes += count
        return count

    def end(self) -> None:
        """FIN. Raises Fault."""
        try:
            self._socket.shutdown(trio.socket.SHUT_WR)
        except OSError as error:
            raise Fault(_describe("end", error)) from None

    def close(self) -> None:
        """Close. Idempotent."""
        self._socket.close()


def _describe(what: str, error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"{what}: no progress for {STALL_TIMEOUT_S:g} s"
    text = error.strerror if isinstance(error, OSError) else None
    return f"{what}: {text or type(error).__name__}"


class Load:
    """Clients of the near gateway's listener.

    Args:
        port: of that listener, on 127.0.0.1.
        traffic: counts everything.
    """

    def __init__(self, port: int, traffic: Traffic) -> None:
        self._port = port
        self._traffic = traffic
        self._seed = 0

    async def upload(self, total_bytes: int) -> None:
        """Send data through a few connections at once; the service answers with its hash."""
        await self._bulk(total_bytes, self._upload_one)

    async def download(self, total_bytes: int) -> None:
        """Fetch data through a few connections at once, and compare every byte."""
        await self._bulk(total_bytes, self._download_one)

    async def short_connections(self, count: int) -> None:
        """Open, say something, hear the same, end: many times, a few at once."""
        left = count

        async def worker() -> None:
            nonlocal left
            while left:
                left -= 1
                await self._one(self._echo_one, SHORT_BYTES)

        async with trio.open_nursery() as nursery:
            for _ in range(min(SHORT_CONCURRENCY, count)):
                nursery.start_soon(worker)

    async def _bulk(
        self, total_bytes: int, one: Callable[[Connection, int, int], Awaitable[None]]
    ) -> None:
        each, rest = divmod(total_bytes, BULK_STREAMS)
        async with trio.open_nursery() as nursery:
            for number in range(BULK_STREAMS):
                size = each + (rest if number == 0 else 0)
                if size:
                    nursery.start_soon(self._one, one, size)

    async def _one(
        self, one: Callable[[Connection, int, int], Awaitable[None]], count: int
    ) -> None:
        """One connection from first to last; whatever is wrong with it is counted."""
        self._seed += 1
        seed, traffic = self._seed, self._traffic
        traffic.expected_bytes += count
        try:
            connection = await Connection.open(self._port, traffic)
            try:
                await one(connection, seed, count)
            finally:
                connection.close()
        except Fault as fault:
            traffic.fail(str(fault))
        else:
            traffic.verified_bytes += count

    async def _upload_one(self, connection: Connection, seed: int, count: int) -> None:
        pattern, digest = Pattern(seed), hashlib.sha256()
        await connection.send(b"UPLOAD\n")
        for size in chunks(count):
            data = pattern.take(size)
            digest.update(data)
            await connection.send(data)
        connection.end()
        answer = await _receive_rest(connection, _MAX_ANSWER_BYTES)
        if answer != b"%d %s\n" % (count, digest.hexdigest().encode()):
            raise Fault(f"upload of {count} bytes: the service saw other bytes")

    async def _download_one(self, connection: Connection, seed: int, count: int) -> None:
        await connection.send(b"DOWNLOAD %d %d\n" % (seed, count))
        connection.end()
        pattern, buffer = Pattern(seed), memoryview(bytearray(MAX_CHUNK_BYTES))
        received = 0
        while got := await connection.receive_into(buffer):
            if buffer[:got] != pattern.take(got):
                raise Fault(f"download: wrong bytes after {received} of {count}")
            received += got
        if received != count:
            raise Fault(f"download: {received} of {count} bytes came")

    async def _echo_one(self, connection: Connection, seed: int, count: int) -> None:
        data = Pattern(seed).take(count)
        await connection.send(b"ECHO\n" + data)
        connection.end()
        if await _receive_rest(connection, count) != data:
            raise Fault(f"short connection: other than the {count} bytes sent came back")


async def _receive_rest(connection: Connection, limit: int) -> bytes:
    """Everything until the end. Raises Fault beyond `limit` bytes."""
    data = bytearray()
    buffer = memoryview(bytearray(limit + 1))
    while got := await connection.receive_into(buffer):
        data += buffer[:got]
        if len(data) > limit:
            raise Fault(f"more than {limit} bytes came")
    return bytes(data)
