"""A load generator for paths with delay, run as programs: a service, and clients told what to do.

    python -m bench.flow service HOST       prints its port, then serves until ended
    python -m bench.flow client             reads one JSON request a line, answers with one

Bulk goes for a set time, not a set number of bytes, because nobody knows beforehand how fast a
long path will be, and what arrives is counted in short intervals, because the path has to be
filled first. Small requests leave by the clock, whether earlier ones were answered or not: a
client that waits would leave out just the moments in which everything stands still.

On the wire, the client asks (1 byte what, 8 bytes how many milliseconds) and then:

====  =====================================================================================
``D``  the service sends blocks for so long; the first byte of a block is 1 in the last one
``U``  the client does; the service answers with its count of what came and when (JSON, after
       its length in 4 bytes)
``E``  the service sends back whatever comes
====  =====================================================================================

Every connection is served by a process of its own: bulk must not hold up small requests inside
the load generator. Nothing but the standard library is imported.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from bench.lines import answer_lines
from bench.load import STALL_S, LoadError, prepare, receive_exactly

#: Blocks of bulk data, in bytes.
BLOCK_BYTES = 256 * 1024
#: Arrivals are counted in intervals of so many seconds.
INTERVAL_S = 0.02
#: No more intervals than these; later bytes count in the last one.
MAX_INTERVALS = 15_000
#: No answer of the service is longer, in bytes.
MAX_ANSWER_BYTES = 4 * 1024 * 1024

REQUEST = struct.Struct(">cQ")
_LENGTH = struct.Struct(">I")
_MORE, _LAST = b"\0", b"\1"


class Timeline:
    """Bytes that arrived, by intervals of :data:`INTERVAL_S` from its making."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.intervals: list[int] = []

    def add(self, count: int) -> None:
        """Count what has just come."""
        index = int((time.perf_counter() - self._began) / INTERVAL_S)
        index = min(index, MAX_INTERVALS - 1)
        if index >= len(self.intervals):
            self.intervals.extend([0] * (index + 1 - len(self.intervals)))
        self.intervals[index] += count


def send_blocks(sock: socket.socket, duration_s: float) -> None:
    """Send blocks for so long, the last one marked."""
    block = memoryview(_MORE + bytes(BLOCK_BYTES - 1))
    deadline = time.perf_counter() + duration_s
    while time.perf_counter() < deadline:
        sock.sendall(block)
    sock.sendall(_LAST + bytes(BLOCK_BYTES - 1))


def receive_blocks(sock: socket.socket, timeline: Timeline) -> None:
    """Receive blocks up to the marked one. Raises LoadError where it never comes."""
    block = memoryview(bytearray(BLOCK_BYTES))
    while True:
        filled = 0
        while filled < BLOCK_BYTES:
            count = sock.recv_into(block[filled:])
            if not count:
                raise LoadError("end of file before the last block")
            timeline.add(count)
            filled += count
        if block[:1] == _LAST:
            return


# The service.


def serve_connection(sock: socket.socket) -> None:
    """Do what one client asks for, once."""
    prepare(sock)
    request = receive_exactly(sock, REQUEST.size)
    if not request:
        return
    what, milliseconds = REQUEST.unpack(request)
    if what == b"D":
        send_blocks(sock, milliseconds / 1000)
    elif what == b"U":
        timeline = Timeline()
        receive_blocks(sock, timeline)
        answer = json.dumps(timeline.intervals).encode()
        sock.sendall(_LENGTH.pack(len(answer)) + answer)
    elif what == b"E":
        while data := sock.recv(65536):
            sock.sendall(data)
        return
    # The client ends the connection when it has everything.
    sock.recv(1)


def run_service(host: str) -> None:
    """Print the port, then serve each connection in a process until this one is ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Where a path has gone, its connections never end: their processes must end with this one.
    os.setpgrp()
    signal.signal(signal.SIGTERM, _end_all)
    listening = socket.create_server((host, 0), backlog=256)
    print(listening.getsockname()[1], flush=True)
    while True:
        sock, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _serve_quietly(sock)
        sock.close()


def _end_all(number: int, frame: object) -> None:
    del number, frame
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.killpg(0, signal.SIGTERM)


def _serve_quietly(sock: socket.socket) -> None:
    """Serve, then leave. A pair that is being ended cuts its connections: no reason for words."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        serve_connection(sock)
    except (OSError, LoadError):
        os._exit(1)
    os._exit(0)


# The client.


def flow(request: dict[str, Any]) -> dict[str, Any]:
    """One bulk transfer on a connection of its own; gives what arrived when."""
    milliseconds = int(request["milliseconds"])
    with _connected(request) as sock:
        if request["direction"] == "down":
            timeline = Timeline()
            sock.sendall(REQUEST.pack(b"D", milliseconds))
            receive_blocks(sock, timeline)
            intervals = timeline.intervals
        else:
            sock.sendall(REQUEST.pack(b"U", milliseconds))
            send_blocks(sock, milliseconds / 1000)
            intervals = json.loads(_answer(sock))
    return {"interval_s": INTERVAL_S, "intervals": intervals}


def _answer(sock: socket.socket) -> bytes:
    head = receive_exactly(sock, _LENGTH.size)
    if not head:
        raise LoadError("no answer from the service")
    (size,) = _LENGTH.unpack(head)
    if size > MAX_ANSWER_BYTES:
        raise LoadError(f"an answer of {size} bytes")
    return receive_exactly(sock, size)


class _Small:
    """Small requests on one connection, sent by the clock.

    Args:
        sock: connected; the service sends everything back.
        size: of a request and of its answer, in bytes.
        every_s: from one to the next, in seconds.
        total: so many.
    """

    def __init__(self, sock: socket.socket, size: int, every_s: float, total: int) -> None:
        self._sock = sock
        self._size = size
        self._every_s = every_s
        self._total = total
        self._due: list[float] = []
        self._unread = 0
        self.latencies_us: list[int] = []

    def run(self) -> None:
        """Send all, wait for all. Raises LoadError where an answer stays away."""
        message = bytes(self._size)
        began = time.perf_counter()
        end = began + self._total * self._every_s + STALL_S
        while len(self.latencies_us) < self._total:
            now = time.perf_counter()
            if now > end:
                raise LoadError(f"{self._total - len(self.latencies_us)} requests not answered")
            next_due = began + len(self._due) * self._every_s
            if len(self._due) < self._total and now >= next_due:
                # Timed from when it was due: a client held up must not look like a fast path.
                self._due.append(next_due)
                self._sock.sendall(message)
                continue
            left = next_due - now if len(self._due) < self._total else end - now
            if select.select([self._sock], [], [], left)[0]:
                self._receive()

    def _receive(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise LoadError("end of file among the small requests")
        now = time.perf_counter()
        self._unread += len(data)
        while self._unread >= self._size:
            self._unread -= self._size
            due = self._due[len(self.latencies_us)]
            self.latencies_us.append(round((now - due) * 1e6))


def small(request: dict[str, Any]) -> dict[str, Any]:
    """Small requests for a while; gives how long each took, a lead in time left out.

    At first TCP lets only a few packets be under way, and on a long path requests wait for that.
    """
    every_s = request["every_us"] / 1e6
    lead, counted = (
        math.ceil(request[name] / 1000 / every_s) for name in ("lead_milliseconds", "milliseconds")
    )
    with _connected(request) as sock:
        sock.sendall(REQUEST.pack(b"E", 0))
        requests = _Small(sock, int(request["bytes"]), every_s, lead + counted)
        requests.run()
    return {"latencies_us": requests.latencies_us[lead:]}


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """One byte there and back on a connection of its own; how long it took, connecting apart."""
    with _connected(request) as sock:
        began = time.perf_counter()
        sock.sendall(REQUEST.pack(b"E", 0) + b"?")
        if receive_exactly(sock, 1) != b"?":
            raise LoadError("no echo")
        return {"seconds": time.perf_counter() - began}


def _connected(request: dict[str, Any]) -> socket.socket:
    sock = socket.create_connection((request["host"], request["port"]), STALL_S)
    prepare(sock)
    return sock


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked. Raises LoadError, OSError."""
    actions = {"flow": flow, "small": small, "probe": probe}
    return actions[request["do"]](request)


if __name__ == "__main__":
    if sys.argv[1:2] == ["service"] and len(sys.argv) == 3:
        run_service(sys.argv[2])
    elif sys.argv[1:] == ["client"]:
        answer_lines(handle, OSError, LoadError)
    else:
        sys.exit("usage: python -m bench.flow service HOST|client")
