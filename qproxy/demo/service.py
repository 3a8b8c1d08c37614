"""The service behind the far gateway: a small TCP server, run as a process of its own.

It knows nothing of qproxy's gateways, as a service behind them should. One request per connection,
a line and then bytes, ended by FIN:

    UPLOAD\n and data              answers "<bytes> <SHA-256 in hexadecimal>\n"
    DOWNLOAD <seed> <bytes>\n      answers with that much of the pattern of that number
    ECHO\n and data                answers with the same data as it comes

Anything else is answered by closing. It listens on a free port of 127.0.0.1, which it logs.
"""

from __future__ import annotations

import hashlib
import re
import sys
from typing import Final

import trio

from qproxy.config.model import LogConfig, LogFormat
from qproxy.demo.pattern import MAX_CHUNK_BYTES, Pattern, chunks
from qproxy.log import close_logging, configure_logging, get_logger

#: Longest first line, in bytes.
MAX_REQUEST_BYTES: Final = 128
#: A client that sends nothing at all is given up after so many seconds.
IDLE_TIMEOUT_S: Final = 60.0
#: Connections at once; beyond it they wait in the kernel's backlog.
MAX_CONNECTIONS: Final = 1024

_DOWNLOAD: Final = re.compile(rb"DOWNLOAD ([0-9]{1,9}) ([0-9]{1,15})\Z")

_log = get_logger("qproxy.demo.service")


class _BadRequest(Exception):  # noqa: N818 - an ordinary answer
    """What came is no request."""


async def serve_connection(sock: trio.socket.SocketType) -> None:
    """Answer the one request of a connection. Never raises but for cancellation."""
    with sock:
        try:
            request, data = await _read_request(sock)
            if request == b"UPLOAD":
                await _hash(sock, data)
            elif request == b"ECHO":
                await _echo(sock, data)
            elif match := _DOWNLOAD.match(request):
                await _send_pattern(sock, int(match[1]), int(match[2]))
            else:
                raise _BadRequest("expected UPLOAD, DOWNLOAD or ECHO")
        except (OSError, trio.TooSlowError, _BadRequest) as error:
            _log.warning("request_failed", error=error)


async def _receive(sock: trio.socket.SocketType, buffer: memoryview) -> int:
    with trio.fail_after(IDLE_TIMEOUT_S):
        return await sock.recv_into(buffer)


async def _send(sock: trio.socket.SocketType, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        with trio.fail_after(IDLE_TIMEOUT_S):
            view = view[await sock.send(view) :]


async def _read_request(sock: trio.socket.SocketType) -> tuple[bytes, bytes]:
    """The first line without its end, and what came behind it."""
    data = bytearray()
    while b"\n" not in data:
        if len(data) > MAX_REQUEST_BYTES:
            raise _BadRequest("the first line is too long")
        buffer = bytearray(4096)
        count = await _receive(sock, memoryview(buffer))
        if not count:
            raise _BadRequest("the first line has no end")
        data += buffer[:count]
    line, _, rest = bytes(data).partition(b"\n")
    return line, rest


async def _hash(sock: trio.socket.SocketType, data: bytes) -> None:
    digest, total = hashlib.sha256(data), len(data)
    buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
    while count := await _receive(sock, buffer):
        digest.update(buffer[:count])
        total += count
    await _send(sock, b"%d %s\n" % (total, digest.hexdigest().encode()))
    sock.shutdown(trio.socket.SHUT_WR)


async def _echo(sock: trio.socket.SocketType, data: bytes) -> None:
    await _send(sock, data)
    buffer = memoryview(bytearray(64 * 1024))
    while count := await _receive(sock, buffer):
        await _send(sock, buffer[:count])
    sock.shutdown(trio.socket.SHUT_WR)


async def _send_pattern(sock: trio.socket.SocketType, seed: int, count: int) -> None:
    pattern = Pattern(seed)
    for size in chunks(count):
        await _send(sock, pattern.take(size))
    sock.shutdown(trio.socket.SHUT_WR)


async def serve(
    *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; started with the address it listens on."""
    limit = trio.Semaphore(MAX_CONNECTIONS)
    listening = trio.socket.socket()
    with listening:
        await listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        address: tuple[str, int] = listening.getsockname()
        _log.info("service_ready", port=address[1])
        task_status.started(address)

        async def one(sock: trio.socket.SocketType) -> None:
            try:
                await serve_connection(sock)
            finally:
                limit.release()

        async with trio.open_nursery() as nursery:
            while True:
                await limit.acquire()
                sock, _ = await listening.accept()
                nursery.start_soon(one, sock)


def main() -> int:
    """Run the service until a signal ends it."""
    configure_logging(LogConfig(format=LogFormat.JSON))
    try:
        trio.run(serve)
    except* KeyboardInterrupt:
        pass
    finally:
        close_logging()
    return 0


if __name__ == "__main__":
    sys.exit(main())
