"""Bulk bytes of one connection, in and out."""

from __future__ import annotations

import functools
import socket

from bench.traffic.wire import WINDOW_BYTES, TrafficError, pattern

#: Most bytes asked of one system call. A copying send() of a megabyte that lies in the cache is
#: cheaper than sendfile() from a memory file, whose pages of 4 KiB are handed over one by one.
CHUNK_BYTES = 1024 * 1024
#: Bytes that must have arrived before the kernel calls a receiver, except at the end.
LOW_WATER_BYTES = 256 * 1024


@functools.cache
def _sink() -> memoryview:
    """What is received into. With MSG_TRUNC nothing is ever written there."""
    return memoryview(bytearray(CHUNK_BYTES))


@functools.cache
def _source() -> memoryview:
    return memoryview(pattern())


class Mover:
    """What one connection still has to send and to receive.

    Args:
        sock: non-blocking.

    Attributes:
        to_send: bytes.
        to_receive: bytes.
        spoilt: bytes arrived that are not those of the pattern.
    """

    __slots__ = (
        "_at_in",
        "_at_out",
        "_checked",
        "_low_water",
        "_sock",
        "_window",
        "spoilt",
        "to_receive",
        "to_send",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.to_send = 0
        self.to_receive = 0
        self.spoilt = False
        self._at_out = 0
        self._at_in = 0
        self._window = WINDOW_BYTES
        self._checked = False
        self._low_water = False

    def start(self, begin: int, to_send: int, to_receive: int, *, checked: bool) -> None:
        """Take on a transfer; the last one is over.

        Args:
            begin: where in the pattern both ways begin.
            to_send: bytes.
            to_receive: bytes.
            checked: send the whole pattern and compare what comes.
        """
        self.to_send, self.to_receive = to_send, to_receive
        self._checked, self.spoilt = checked, False
        self._window = len(pattern()) if checked else WINDOW_BYTES
        self._at_out = self._at_in = begin % self._window
        self._set_low_water()

    @property
    def busy(self) -> bool:
        """Something is left to send or to receive."""
        return self.to_send > 0 or self.to_receive > 0

    def send(self) -> bool:
        """Send once, what the socket takes. Gives whether it took anything. Raises OSError."""
        room = min(self.to_send, self._window - self._at_out, CHUNK_BYTES)
        try:
            count = self._sock.send(_source()[self._at_out : self._at_out + room])
        except BlockingIOError:
            return False
        self.to_send -= count
        self._at_out = (self._at_out + count) % self._window
        return True

    def receive(self) -> bool:
        """Receive once. Gives whether there was anything.

        Raises:
            TrafficError: the connection has ended too early.
            OSError: it broke.
        """
        room = min(self.to_receive, CHUNK_BYTES)
        data = b""
        try:
            if self._checked:
                data = self._sock.recv(room)
                count = len(data)
            else:
                count = self._sock.recv_into(_sink(), room, socket.MSG_TRUNC)
        except BlockingIOError:
            return False
        if not count:
            raise TrafficError(f"end of file with {self.to_receive} bytes missing")
        self._count_in(data, count)
        return True

    def take(self, data: bytes) -> bytes:
        """Bytes that came together with a header. Gives those behind the transfer's last one."""
        count = min(len(data), self.to_receive)
        self._count_in(data[:count], count)
        return data[count:]

    def _count_in(self, data: bytes, count: int) -> None:
        self.to_receive -= count
        if self._checked:
            self._compare(data)
        self._at_in = (self._at_in + count) % self._window
        if self._low_water and self.to_receive < LOW_WATER_BYTES:
            self._set_low_water()

    def _set_low_water(self) -> None:
        wanted = self.to_receive >= LOW_WATER_BYTES
        if wanted != self._low_water:
            least = LOW_WATER_BYTES if wanted else 1
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._low_water = wanted

    def _compare(self, data: bytes) -> None:
        at = self._at_in
        while data:
            expected = pattern()[at : at + len(data)]
            if not data.startswith(expected):
                self.spoilt = True
            data = data[len(expected) :]
            at = 0
