"""A load generator that speaks TLS to a listener; the service is that of :mod:`bench.traffic`.

    python -m bench.tls_load client         reads one JSON request a line, answers with one

===========  =======================================================================================
do           with
===========  =======================================================================================
handshakes   ``port``, ``count``, ``threads``: new connections with a full handshake and a message
             to and fro each
open         ``port``, ``connections``: so many more that stay, each tried with a message
upload       ``bytes``: up over all of those at once
close        all of those
===========  =======================================================================================

Threads with blocking sockets: Python's TLS lets go of its lock while OpenSSL works. The service's
certificate is not verified; it is the work of the other end that is measured.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.lines import answer_lines
from bench.traffic.wire import GOOD, HEADER, WINDOW_BYTES, TrafficError, message, pattern

#: How long one system call may block, in seconds.
STALL_S = 30.0
#: Size of the message on a new connection, in bytes.
MESSAGE_BYTES = 64


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _connect(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), STALL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def _ask(tls: ssl.SSLSocket, number: int) -> None:
    request = message(number, MESSAGE_BYTES)
    tls.sendall(request)
    answer = b""
    while len(answer) < len(request):
        part = tls.recv(len(request) - len(answer))
        if not part:
            break
        answer += part
    if answer != request:
        raise TrafficError("a new connection did not get its answer")


def _together(tasks: list[Callable[[], None]]) -> float:
    """Do each in a thread of its own. Gives the seconds they all took. Raises what one raised."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except (OSError, TrafficError) as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - began


def handshakes(port: int, count: int, threads: int) -> float:
    """New connections, so many at once. Gives the seconds they took.

    Raises:
        TrafficError: an answer was wrong.
        OSError: a connection broke, or did not come about.
    """
    context = _context()

    def some(share: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(share):
                with _connect(context, port) as tls:
                    _ask(tls, number)

        return run

    share, more = divmod(count, threads)
    return _together([some(share + (index < more)) for index in range(threads)])


class Client:
    """Does what it is told; keeps connections for uploads."""

    def __init__(self) -> None:
        self._context = _context()
        self._opened: list[ssl.SSLSocket] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request. Raises TrafficError, OSError."""
        seconds = 0.0
        match request["do"]:
            case "handshakes":
                seconds = handshakes(request["port"], request["count"], request["threads"])
            case "open":
                self.open(request["port"], request["connections"])
            case "upload":
                seconds = self.upload(request["bytes"])
            case "close":
                self.close()
            case other:
                raise TrafficError(f"unknown action {other!r}")
        return {"seconds": seconds}

    def open(self, port: int, connections: int) -> None:
        """Make so many connections, each tried with a message. Raises TrafficError, OSError."""
        for number in range(connections):
            tls = _connect(self._context, port)
            self._opened.append(tls)
            _ask(tls, number)

    def upload(self, total: int) -> float:
        """Bytes up over all connections at once. Gives the seconds it took.

        Raises:
            TrafficError: bytes did not arrive.
            OSError: a connection broke.
        """
        if not self._opened:
            raise TrafficError("not connected")
        share, more = divmod(total, len(self._opened))
        return _together(
            [
                partial(_send_up, tls, share + (index < more))
                for index, tls in enumerate(self._opened)
            ]
        )

    def close(self) -> None:
        """Close all connections."""
        for tls in self._opened:
            tls.close()
        self._opened.clear()


def _send_up(tls: ssl.SSLSocket, count: int) -> None:
    data = memoryview(pattern())[:WINDOW_BYTES]
    tls.sendall(HEADER.pack(b"U", 0, count))
    left = count
    while left:
        part = min(left, len(data))
        tls.sendall(data[:part])
        left -= part
    if tls.recv(1) != GOOD:
        raise TrafficError("the service did not get what was sent")


if __name__ == "__main__":
    if sys.argv[1:] != ["client"]:
        sys.exit("usage: python -m bench.tls_load client")
    client = Client()
    answer_lines(client.handle, OSError, TrafficError, failed=client.close)
