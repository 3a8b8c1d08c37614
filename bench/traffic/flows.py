"""The client's connections, and bulk transfers over all of them at once."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

from bench.traffic.mover import Mover
from bench.traffic.wire import GOOD, HEADER, STEP_BYTES, TrafficError, message, prepare

#: Longest time in which nothing at all moves, in seconds.
STALL_S = 30.0
#: Connections under way to being made at once.
OPENING = 64
#: Size of the message that tells whether a new connection works, in bytes.
PROBE_BYTES = 64

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


def connect(port: int, number: int = 0) -> socket.socket:
    """Begin a connection; it is made when it can be written to.

    Args:
        port: of 127.0.0.1.
        number: of the connection; every 8192nd comes from another address, so that ports last.
    """
    sock = socket.socket()
    try:
        prepare(sock)
        if number >= 8192:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"127.0.0.{1 + number // 8192 % 250}", 0))
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


class Flows:
    """Connections that stay open from one request to the next."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def open(self, port: int, count: int) -> None:
        """Open so many more, and send a message to and fro on each.

        Raises:
            TrafficError: one did not come about; those that did stay.
        """
        began, last = len(self.sockets), len(self.sockets) + count
        waiting: dict[int, socket.socket] = {}
        try:
            with polling() as poll:
                while began < last or waiting:
                    while began < last and len(waiting) < OPENING:
                        sock = connect(port, began)
                        waiting[sock.fileno()] = sock
                        poll.register(sock.fileno(), _OUT)
                        began += 1
                    self._proceed(poll, waiting)
        except (OSError, TrafficError) as error:
            opened = len(self.sockets)
            raise TrafficError(f"{opened} connections open, then: {error}") from None
        finally:
            for sock in waiting.values():
                sock.close()

    def _proceed(self, poll: select.epoll, waiting: dict[int, socket.socket]) -> None:
        for descriptor, events in wait(poll):
            sock = waiting[descriptor]
            probe = message(descriptor, PROBE_BYTES)
            if events == _OUT:
                sock.send(probe)
                poll.modify(descriptor, _IN)
                continue
            # Shorter answers than the probe do not happen on a path that passes it on whole.
            answer = sock.recv(2 * PROBE_BYTES)
            if answer != probe:
                raise TrafficError("ended" if not answer else "not what was sent")
            poll.unregister(descriptor)
            self.sockets.append(waiting.pop(descriptor))

    def close(self) -> None:
        """Close all of them."""
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()

    def transfer(self, what: bytes, total: int) -> None:
        """Move bulk bytes over all connections at once.

        Args:
            what: of :mod:`bench.traffic.wire`.
            total: bytes each way, of all connections together.

        Raises:
            TrafficError: bytes were lost, changed, or held up.
            OSError: a connection broke.
        """
        if not self.sockets:
            raise TrafficError("not connected")
        share, more = divmod(total, len(self.sockets))
        under_way = {
            sock.fileno(): _Transfer(sock, what, index, share + (index < more))
            for index, sock in enumerate(self.sockets)
            if share + (index < more)
        }
        with polling() as poll:
            for descriptor, transfer in under_way.items():
                poll.register(descriptor, transfer.interest)
            while under_way:
                for descriptor, events in wait(poll):
                    transfer = under_way[descriptor]
                    before = transfer.interest
                    transfer.handle(events)
                    if transfer.done:
                        poll.unregister(descriptor)
                        del under_way[descriptor]
                    elif transfer.interest != before:
                        poll.modify(descriptor, transfer.interest)


class _Transfer:
    """One connection's share."""

    __slots__ = ("_mover", "_sock", "_wants_answer", "done")

    def __init__(self, sock: socket.socket, what: bytes, index: int, count: int) -> None:
        down, up = what.upper() in {b"D", b"B"}, what.upper() in {b"U", b"B"}
        number = index * STEP_BYTES % 2**32
        self._sock = sock
        self._mover = Mover(sock)
        self._mover.start(number, count if up else 0, count if down else 0, checked=what.islower())
        self._wants_answer = up
        self.done = False
        sock.send(HEADER.pack(what, number, count))

    @property
    def interest(self) -> int:
        return _IN | (_OUT if self._mover.to_send else 0)

    def handle(self, events: int) -> None:
        if events & _OUT and self._mover.to_send:
            self._mover.send()
        if events & ~_OUT:
            if self._mover.to_receive:
                self._mover.receive()
            else:
                self._read_answer()
        if not self._mover.busy and not self._wants_answer:
            if self._mover.spoilt:
                raise TrafficError("the bytes that arrived are not those that were sent")
            self.done = True

    def _read_answer(self) -> None:
        answer = self._sock.recv(1)
        if not self._wants_answer or self._mover.to_send or answer != GOOD:
            raise TrafficError(f"the service did not get what was sent: {answer!r}")
        self._wants_answer = False


@contextlib.contextmanager
def polling() -> Iterator[select.epoll]:
    """An epoll that is closed at the end."""
    poll = select.epoll()
    try:
        yield poll
    finally:
        poll.close()


def wait(poll: select.epoll, stall_s: float = STALL_S) -> list[tuple[int, int]]:
    """Events; there must be some in time. Raises TrafficError."""
    events = poll.poll(stall_s, 256)
    if not events:
        raise TrafficError(f"nothing moved for {stall_s:g} s")
    return events
