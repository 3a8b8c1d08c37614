"""The load generator, run as two programs: a service, and a client told what to do line by line.

    python -m bench.load service            prints its port, then serves until ended
    python -m bench.load client             reads one JSON request a line, answers with one

Bulk data comes from one buffer that is sent again and again and goes into one buffer that is
overwritten again and again, through blocking sockets: one system call and next to no Python per
megabyte, the same for every pair of proxies. Nothing but the standard library is imported.

On the wire, the client asks (1 byte what, 8 bytes how many) and then:

====  ================================================================================
``D``  the service sends that many bytes
``U``  the client sends that many bytes, the service answers with one byte
``d``  as ``D`` with bytes from the seeded stream, then the service's SHA-256 of them
``u``  as ``U`` with bytes from the seeded stream; the answer is the SHA-256
====  ================================================================================
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from bench.lines import answer_lines

#: Buffer that is sent again and again, in bytes.
SEND_BYTES = 1024 * 1024
#: Buffer that is received into, in bytes.
RECEIVE_BYTES = 256 * 1024
#: How long one system call on a socket may block, in seconds.
STALL_S = 30.0

REQUEST = struct.Struct(">cQ")
_DIGEST_BYTES = hashlib.sha256().digest_size
_SEED = 4321


class LoadError(Exception):
    """The path under test lost, changed or held up bytes."""


def prepare(sock: socket.socket) -> None:
    """No delay for small messages; calls block, and the kernel bounds them.

    settimeout() would cost a poll() before every call.
    """
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    timeout = struct.pack("ll", int(STALL_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)


def send_bulk(sock: socket.socket, total: int, buffer: memoryview) -> None:
    """Send ``total`` bytes from a buffer, over and over."""
    size = len(buffer)
    for _ in range(total // size):
        sock.sendall(buffer)
    sock.sendall(buffer[: total % size])


def receive_bulk(sock: socket.socket, total: int, buffer: memoryview) -> None:
    """Receive ``total`` bytes and forget them. Raises LoadError where fewer come."""
    size = len(buffer)
    while total >= size:
        count = sock.recv_into(buffer)
        if not count:
            raise LoadError(f"end of file with {total} bytes missing")
        total -= count
    while total:
        count = sock.recv_into(buffer[:total])
        if not count:
            raise LoadError(f"end of file with {total} bytes missing")
        total -= count


def seeded(total: int) -> Iterator[bytes]:
    """``total`` bytes in blocks, none of which comes twice, the same in every process."""
    generator = random.Random(_SEED)
    while total:
        block = generator.randbytes(min(total, SEND_BYTES))
        total -= len(block)
        yield block


def send_checked(sock: socket.socket, total: int) -> bytes:
    """Send the seeded stream. Returns its SHA-256."""
    digest = hashlib.sha256()
    for block in seeded(total):
        sock.sendall(block)
        digest.update(block)
    return digest.digest()


def receive_checked(sock: socket.socket, total: int) -> bytes:
    """Receive ``total`` bytes. Returns their SHA-256."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(RECEIVE_BYTES))
    while total:
        count = sock.recv_into(buffer[: min(total, RECEIVE_BYTES)])
        if not count:
            raise LoadError(f"end of file with {total} bytes missing")
        digest.update(buffer[:count])
        total -= count
    return digest.digest()


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """``size`` bytes, or b"" where the connection ended before the first of them."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            if data:
                raise LoadError("end of file in the middle of a message")
            return b""
        data += part
    return bytes(data)


# The service.


def serve_connection(sock: socket.socket) -> None:
    """Do what one client asks for until it leaves."""
    source = memoryview(bytearray(SEND_BYTES))
    sink = memoryview(bytearray(RECEIVE_BYTES))
    with sock:
        prepare(sock)
        while request := receive_exactly(sock, REQUEST.size):
            what, total = REQUEST.unpack(request)
            if what == b"D":
                send_bulk(sock, total, source)
            elif what == b"U":
                receive_bulk(sock, total, sink)
                sock.sendall(b"!")
            elif what == b"d":
                sock.sendall(send_checked(sock, total))
            elif what == b"u":
                sock.sendall(receive_checked(sock, total))
            else:
                raise LoadError(f"unknown request {what!r}")


def run_service() -> None:
    """Print the port, then serve each connection in a thread until the process is ended."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listening.getsockname()[1], flush=True)
    while True:
        sock, _ = listening.accept()
        threading.Thread(target=_serve_quietly, args=(sock,), daemon=True).start()


def _serve_quietly(sock: socket.socket) -> None:
    try:
        serve_connection(sock)
    except (OSError, LoadError) as error:
        # A pair that is being ended cuts its connections; the client tells what matters.
        print(f"connection: {error}", file=sys.stderr, flush=True)


# The client.


class Client:
    """One connection and the requests on it. Times are this process's, from asking to the end."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._source = memoryview(bytearray(SEND_BYTES))
        self._sink = memoryview(bytearray(RECEIVE_BYTES))

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request; the answer says how many seconds it took."""
        action = request["do"]
        total = int(request.get("bytes", 0))
        began = time.perf_counter()
        if action == "connect":
            self.close()
            self._sock = socket.create_connection(("127.0.0.1", request["port"]), STALL_S)
            prepare(self._sock)
        elif action == "close":
            self.close()
        elif action == "down":
            receive_bulk(self._ask(b"D", total), total, self._sink)
        elif action == "up":
            sock = self._ask(b"U", total)
            send_bulk(sock, total, self._source)
            if receive_exactly(sock, 1) != b"!":
                raise LoadError("the service did not get everything")
        elif action == "check_down":
            sock = self._ask(b"d", total)
            _compare(receive_checked(sock, total), receive_exactly(sock, _DIGEST_BYTES))
        elif action == "check_up":
            sock = self._ask(b"u", total)
            _compare(send_checked(sock, total), receive_exactly(sock, _DIGEST_BYTES))
        elif action == "pings":
            return {"seconds": 0.0, "latencies_us": self._pings(request["milliseconds"] / 1000)}
        else:
            raise LoadError(f"unknown action {action!r}")
        return {"seconds": time.perf_counter() - began}

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _pings(self, duration_s: float) -> list[int]:
        """One byte there and one back, again and again; how long each took, in microseconds."""
        if self._sock is None:
            raise LoadError("not connected")
        sock, message = self._sock, REQUEST.pack(b"U", 1) + b"?"
        latencies = []
        began = now = time.perf_counter()
        while now - began < duration_s:
            sock.sendall(message)
            if receive_exactly(sock, 1) != b"!":
                raise LoadError("no answer to a ping")
            before, now = now, time.perf_counter()
            latencies.append(round((now - before) * 1e6))
        return latencies

    def _ask(self, what: bytes, total: int) -> socket.socket:
        if self._sock is None:
            raise LoadError("not connected")
        self._sock.sendall(REQUEST.pack(what, total))
        return self._sock


def _compare(ours: bytes, theirs: bytes) -> None:
    if ours != theirs:
        raise LoadError("the bytes that arrived are not those that were sent")


def run_client() -> None:
    """Do what is asked, line by line."""
    client = Client()
    answer_lines(client.handle, OSError, LoadError, failed=client.close)


if __name__ == "__main__":
    if sys.argv[1:] == ["service"]:
        run_service()
    elif sys.argv[1:] == ["client"]:
        run_client()
    else:
        sys.exit("usage: python -m bench.load service|client")
