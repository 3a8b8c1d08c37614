"""A load generator that speaks TLS to a listener; the service is that of :mod:`bench.traffic`.

    python -m bench.tls_load client         reads one JSON request a line, answers with one

===========  =======================================================================================
do           with
===========  =======================================================================================
handshakes   ``port``, ``count``, ``threads``: new connections with a full handshake and a message
             to and fro each
upload       ``port``, ``bytes``, ``connections``: bytes up over connections that are made before
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


def upload(port: int, total: int, connections: int) -> float:
    """Bytes up over all connections at once. Gives the seconds it took.

    Raises:
        TrafficError: bytes did not arrive.
        OSError: a connection broke.
    """
    context = _context()
    opened: list[ssl.SSLSocket] = []
    data = memoryview(pattern())[:WINDOW_BYTES]

    def one(tls: ssl.SSLSocket, count: int) -> Callable[[], None]:
        def run() -> None:
            tls.sendall(HEADER.pack(b"U", 0, count))
            left = count
            while left:
                part = min(left, len(data))
                tls.sendall(data[:part])
                left -= part
            if tls.recv(1) != GOOD:
                raise TrafficError("the service did not get what was sent")

        return run

    try:
        for number in range(connections):
            tls = _connect(context, port)
            opened.append(tls)
            _ask(tls, number)
        return _together([one(tls, total // connections) for tls in opened])
    finally:
        for tls in opened:
            tls.close()


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked. Raises TrafficError, OSError."""
    match request["do"]:
        case "handshakes":
            seconds = handshakes(request["port"], request["count"], request["threads"])
        case "upload":
            seconds = upload(request["port"], request["bytes"], request["connections"])
        case other:
            raise TrafficError(f"unknown action {other!r}")
    return {"seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1:] != ["client"]:
        sys.exit("usage: python -m bench.tls_load client")
    answer_lines(handle, OSError, TrafficError)
