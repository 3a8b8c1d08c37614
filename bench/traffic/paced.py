"""Small messages in an open loop: sent at their times, whatever has come back of those before.

How long a message took counts from when it was to be sent, not from when it was. Otherwise a path
that stalls would hold up the very messages that show the stall (coordinated omission).
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bench.traffic.flows import polling
from bench.traffic.timer import Ticks, ticking
from bench.traffic.wire import TrafficError, message

#: How long answers are waited for after the last message was to be sent, in seconds.
DRAIN_S = 5.0
#: Most bytes that wait on one connection to be sent; with more, sending is given up.
MAX_BACKLOG_BYTES = 16 * 1024 * 1024

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


@dataclass(slots=True)
class Paced:
    """What came of it.

    Attributes:
        took_ns: from when a message was to be sent to when it was back whole, in nanoseconds; in
            the order they came back.
        unanswered: messages that were not back in the end, or not even sent. They are in
            ``took_ns``, too, with the time until they were given up: at least that.
        late_ns: how much later than intended each was handed to its socket.
    """

    took_ns: list[int]
    unanswered: int
    late_ns: list[int]


class _Lane:
    """One connection and what is under way on it."""

    __slots__ = ("backlog", "expected", "sock", "unread")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.backlog = b""
        self.unread = b""
        #: When each message was to be sent, and the message.
        self.expected: deque[tuple[int, bytes]] = deque()

    def send(self, intended_ns: int, data: bytes) -> None:
        self.expected.append((intended_ns, data))
        self.backlog += data
        self.flush()

    def flush(self) -> None:
        try:
            self.backlog = self.backlog[self.sock.send(self.backlog) :]
        except BlockingIOError:
            return

    def receive(self, took_ns: list[int]) -> None:
        """Raises TrafficError where anything else comes than what was sent."""
        data = self.sock.recv(256 * 1024)
        now = time.monotonic_ns()
        if not data:
            raise TrafficError("a connection ended with messages under way")
        data = self.unread + data if self.unread else data
        begin = 0
        while self.expected and len(data) - begin >= (size := len(self.expected[0][1])):
            intended_ns, sent = self.expected.popleft()
            if data[begin : begin + size] != sent:
                raise TrafficError("a message did not come back as it was sent")
            begin += size
            took_ns.append(now - intended_ns)
        self.unread = data[begin:]
        if self.unread and not self.expected:
            raise TrafficError("more came back than was sent")


class _Loop:
    def __init__(self, lanes: Sequence[_Lane], size: int, total: int) -> None:
        self.lanes = lanes
        self.paced = Paced([], 0, [])
        self._size = size
        self._total = total
        self._sent = 0
        self._blocked: set[int] = set()

    def run(self, poll: select.epoll, ticks: Ticks, deadline_ns: int) -> None:
        by_descriptor = {lane.sock.fileno(): lane for lane in self.lanes}
        poll.register(ticks.descriptor, _IN)
        for descriptor in by_descriptor:
            poll.register(descriptor, _IN)
        took_ns = self.paced.took_ns
        while len(took_ns) < self._total and (now := time.monotonic_ns()) < deadline_ns:
            for descriptor, events in poll.poll((deadline_ns - now) / 1e9, 256):
                lane = by_descriptor.get(descriptor)
                if lane is None:
                    if not self._send_due(poll, ticks):
                        return
                    continue
                if events & _OUT:
                    lane.flush()
                    self._watch(poll, lane)
                if events & ~_OUT:
                    lane.receive(took_ns)

    def _send_due(self, poll: select.epoll, ticks: Ticks) -> bool:
        """Gives False where a connection takes no more."""
        for intended_ns in ticks.take():
            if self._sent == self._total:
                poll.unregister(ticks.descriptor)
                break
            lane = self.lanes[self._sent % len(self.lanes)]
            lane.send(intended_ns, message(self._sent, self._size))
            self.paced.late_ns.append(time.monotonic_ns() - intended_ns)
            self._sent += 1
            self._watch(poll, lane)
            if len(lane.backlog) > MAX_BACKLOG_BYTES:
                return False
        return True

    def _watch(self, poll: select.epoll, lane: _Lane) -> None:
        """Wait for room where, and only where, something waits for it."""
        descriptor = lane.sock.fileno()
        if bool(lane.backlog) != (descriptor in self._blocked):
            self._blocked ^= {descriptor}
            poll.modify(descriptor, _IN | _OUT if lane.backlog else _IN)

    def give_up(self) -> None:
        """Count what is still under way as under way until now."""
        now = time.monotonic_ns()
        for lane in self.lanes:
            self.paced.took_ns += [now - intended_ns for intended_ns, _ in lane.expected]
            self.paced.unanswered += len(lane.expected)
        self.paced.unanswered += self._total - self._sent


def open_loop(
    sockets: Sequence[socket.socket], size: int, rate_per_s: float, duration_s: float
) -> Paced:
    """Send messages at a fixed rate, on one connection after the other.

    Where messages remain unanswered the connections cannot be used again.

    Args:
        sockets: the connections.
        size: of a message, in bytes.
        rate_per_s: messages a second, all connections together.
        duration_s: for how long.

    Raises:
        TrafficError: bytes were lost or changed.
        OSError: a connection broke.
    """
    if not sockets:
        raise TrafficError("not connected")
    loop = _Loop([_Lane(sock) for sock in sockets], size, max(1, round(rate_per_s * duration_s)))
    with polling() as poll, ticking(rate_per_s) as ticks:
        deadline_ns = time.monotonic_ns() + round((duration_s + DRAIN_S) * 1e9)
        loop.run(poll, ticks, deadline_ns)
    loop.give_up()
    return loop.paced
