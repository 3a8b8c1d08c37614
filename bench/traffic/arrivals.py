"""New connections: each made, asked one thing, and closed when the answer has come."""

from __future__ import annotations

import select
import time

from bench.traffic.flows import connect, polling, wait
from bench.traffic.wire import TrafficError, message

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class _Arrival:
    """One connection on its way."""

    __slots__ = ("answer", "began_ns", "first_byte_ns", "request", "sock")

    def __init__(self, port: int, number: int, size: int) -> None:
        self.request = message(number, size)
        self.answer = b""
        self.first_byte_ns = 0
        self.began_ns = time.monotonic_ns()
        self.sock = connect(port, number)

    def ask(self) -> bool:
        """Send the request. Gives False where the connection is not made yet. Raises OSError."""
        try:
            self.sock.send(self.request)
        except BlockingIOError:
            return False
        return True

    def answered(self) -> bool:
        """Whether the whole answer is there. Raises TrafficError, OSError."""
        data = self.sock.recv(64 * 1024)
        self.first_byte_ns = self.first_byte_ns or time.monotonic_ns()
        self.answer += data
        if not data or not self.request.startswith(self.answer):
            raise TrafficError("a new connection did not get its answer")
        return len(self.answer) == len(self.request)


def arrivals(port: int, at_once: int, size: int, duration_s: float) -> tuple[float, list[int]]:
    """Keep so many connections under way, from connect() to the answer.

    Args:
        port: where to connect, on 127.0.0.1.
        at_once: how many; 1 is one after the other.
        size: of the request and of the answer, in bytes.
        duration_s: how long new ones are begun.

    Returns:
        Seconds from the first begun to the last answered, and how long each took from connect() to
        the first byte of its answer, in nanoseconds.

    Raises:
        TrafficError: an answer was wrong, or did not come.
        OSError: a connection broke.
    """
    under_way: dict[int, _Arrival] = {}
    took_ns: list[int] = []
    began_ns = time.monotonic_ns()
    end_ns = began_ns + round(duration_s * 1e9)
    number = 0
    with polling() as poll:
        try:
            while True:
                while len(under_way) < at_once and time.monotonic_ns() < end_ns:
                    arrival = _Arrival(port, number, size)
                    descriptor = arrival.sock.fileno()
                    under_way[descriptor] = arrival
                    poll.register(descriptor, _IN if arrival.ask() else _OUT)
                    number += 1
                if not under_way:
                    return (time.monotonic_ns() - began_ns) / 1e9, took_ns
                for descriptor, events in wait(poll):
                    arrival = under_way[descriptor]
                    if events == _OUT:
                        if arrival.ask():
                            poll.modify(descriptor, _IN)
                    elif arrival.answered():
                        took_ns.append(arrival.first_byte_ns - arrival.began_ns)
                        del under_way[descriptor]
                        arrival.sock.close()
        finally:
            for arrival in under_way.values():
                arrival.sock.close()
