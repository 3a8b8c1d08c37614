"""The service: one thread, one epoll, any number of connections."""

from __future__ import annotations

import select
import socket
import sys

from bench.traffic.mover import Mover
from bench.traffic.wire import BAD, GOOD, HEADER, TrafficError, prepare

#: Most bytes of small messages read at once.
READ_BYTES = 64 * 1024
#: Connections that may wait to be accepted.
BACKLOG = 4096
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class Session:
    """One connection.

    Attributes:
        sock: its socket.
        interest: the epoll events it waits for.
    """

    __slots__ = ("_answer_due", "_echo", "_mover", "_out", "_unparsed", "interest", "sock")

    def __init__(self, sock: socket.socket) -> None:
        prepare(sock)
        self.sock = sock
        self.interest = _IN
        self._mover = Mover(sock)
        self._unparsed = b""
        self._echo = 0
        self._out = b""
        self._answer_due = False

    def handle(self, events: int) -> bool:
        """Do what can be done. Gives False when the connection is over. Raises OSError."""
        if events & _OUT:
            self._writable()
        if events & ~_OUT:
            if self._mover.to_receive:
                self._mover.receive()
            elif not self._read():
                return False
        self._finish()
        self.interest = self._wanted()
        return True

    def _wanted(self) -> int:
        """Reading stops while an echo cannot leave: what is kept for a client stays bounded."""
        if self._out:
            return _OUT
        sending, receiving = self._mover.to_send > 0, self._mover.to_receive > 0
        return (_OUT if sending else 0) | (_IN if receiving or not sending else 0)

    def _writable(self) -> None:
        if self._out:
            self._out = self._out[self.sock.send(self._out) :]
        elif self._mover.to_send:
            self._mover.send()

    def _read(self) -> bool:
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._take(self._unparsed + data if self._unparsed else data)
        return True

    def _take(self, data: bytes) -> None:
        """Echo messages, whole or in part, and at the end perhaps the header of a transfer."""
        end, size = 0, len(data)
        self._unparsed = b""
        while end < size:
            if self._echo:
                count = min(self._echo, size - end)
                self._echo -= count
                end += count
            elif size - end < HEADER.size:
                self._unparsed = data[end:]
                break
            else:
                what, number, count = HEADER.unpack_from(data, end)
                if what != b"E":
                    self._send(data[:end])
                    self._transfer(what, number, count, data[end + HEADER.size :])
                    return
                self._echo = max(count, HEADER.size)
        self._send(data[:end])

    def _transfer(self, what: bytes, number: int, count: int, behind: bytes) -> None:
        kind = what.upper()
        if kind not in {b"D", b"U", b"B"}:
            raise TrafficError(f"unknown request {what!r}")
        down, up = kind in {b"D", b"B"}, kind in {b"U", b"B"}
        self._mover.start(number, count if down else 0, count if up else 0, checked=what.islower())
        self._answer_due = up
        if self._mover.take(behind):
            raise TrafficError("a request behind a transfer that is not over")

    def _finish(self) -> None:
        """The answer to an upload, once everything before it has left."""
        if self._answer_due and not self._mover.busy:
            self._answer_due = False
            self._send(BAD if self._mover.spoilt else GOOD)

    def _send(self, data: bytes) -> None:
        if self._out or not data:
            self._out += data
            return
        try:
            count = self.sock.send(data)
        except BlockingIOError:
            count = 0
        if count < len(data):
            self._out = data[count:]


class Service:
    """Everything that listens and serves.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._sessions: dict[int, Session] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listening.fileno(), _IN)

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            self.serve_once()

    def serve_once(self, timeout_s: float = -1) -> None:
        """Wait for events and handle them."""
        for descriptor, events in self._epoll.poll(timeout_s, 256):
            session = self._sessions.get(descriptor)
            if session is None:
                self._accept()
                continue
            before = session.interest
            try:
                going_on = session.handle(events)
            except (OSError, TrafficError) as error:
                # A pair that is being ended cuts its connections; the client tells what matters.
                print(f"connection: {error}", file=sys.stderr, flush=True)
                going_on = False
            if not going_on:
                del self._sessions[descriptor]
                session.sock.close()
            elif session.interest != before:
                self._epoll.modify(descriptor, session.interest)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            self._sessions[sock.fileno()] = Session(sock)
            self._epoll.register(sock.fileno(), _IN)

    def close(self) -> None:
        """Close everything."""
        for session in self._sessions.values():
            session.sock.close()
        self._listening.close()
        self._epoll.close()
