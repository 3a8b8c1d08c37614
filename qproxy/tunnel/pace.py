"""How much may be sealed and not sent: enough that the path never waits, and no more.

Whatever is sealed, or lies unsent in the kernel, is in front of every later byte of the tunnel. At
1 Gbit/s a mebibyte of it is 8 ms. So the high-water mark follows the rate at which the transport
takes bytes, and the driver has the kernel hold no more than that unsent (TCP_NOTSENT_LOWAT).

The rate is measured between two moments at which the transport was full: what it took in between
is what left it, provided that it did not run empty. Whether it did can be told from how much it
took. A kernel that is served in time is half full (Linux calls a socket writable again when less
than half of TCP_NOTSENT_LOWAT is unsent); one that took more than all of its room had run empty
while this end was late, and the mark doubles. The idea is that of Linux's dynamic queue limits.

A transport that is never full, such as loopback, is as fast as what it was given at least: where
that is a lot, the mark doubles as well, and bulk moves in fewer and larger pieces.
"""

from __future__ import annotations

#: Time that bulk data may wait in the output, and again in the kernel, in seconds.
QUEUE_S = 0.0005
#: Bounds of the high-water mark, in bytes; it is halved and doubled between them.
MIN_HIGH_WATER_BYTES = 16 * 1024
MAX_HIGH_WATER_BYTES = 1024 * 1024
#: Where it begins, in bytes: right for 1 Gbit/s.
INITIAL_HIGH_WATER_BYTES = 64 * 1024
#: Linux takes data in pieces of up to this size, and so may hold as much more, in bytes.
_KERNEL_PIECE_BYTES = 64 * 1024
#: A rate is measured over at least this time, in seconds, or this many fillings of the transport.
_REVIEW_S = 0.01
_REVIEW_FILLINGS = 8
#: How often the rate is looked at of a transport that is not full, in seconds.
_LOOK_INTERVAL_S = 0.01


class Pace:
    """Watches the transport of one tunnel.

    Attributes:
        high_water: stream data is taken while less than this waits to be sent, in bytes.
        look_at: when to call :meth:`look` again.
        idle: since the transport was full there was a moment with room and nothing to send.
    """

    __slots__ = ("_dry", "_fillings", "_full_at", "_looked_at", "_measured_bytes", "_measured_s",
                 "_taken_at_look", "_taken_before", "high_water", "idle",
                 "look_at")  # fmt: skip

    def __init__(self, now: float) -> None:
        self.high_water = INITIAL_HIGH_WATER_BYTES
        self.look_at = now + _LOOK_INTERVAL_S
        self._looked_at = now
        self.idle = True
        self._taken_at_look = 0
        self._full_at = now
        self._taken_before = 0
        self._restart()

    def transport_full(self, taken: int, now: float) -> None:
        """The transport took less than was there.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time.
        """
        count = taken - self._taken_before
        if not count and not self.idle:
            return  # Still full.
        elapsed = now - self._full_at
        self._full_at, self._taken_before = now, taken
        if self.idle:
            self.idle = False
            return
        self._fillings += 1
        if count > self.high_water + _KERNEL_PIECE_BYTES:
            self._dry += 1
        elif count <= self.high_water // 2 + _KERNEL_PIECE_BYTES:
            self._measured_bytes += count
            self._measured_s += elapsed
        if self._measured_s >= _REVIEW_S or self._fillings >= _REVIEW_FILLINGS:
            self._review()
            self._restart()

    def look(self, taken: int, now: float) -> None:
        """Whether the transport takes more than the mark allows for.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time, :attr:`look_at` or later.
        """
        if taken - self._taken_at_look > (now - self._looked_at) * self.high_water / QUEUE_S:
            self.high_water = min(2 * self.high_water, MAX_HIGH_WATER_BYTES)
        self._taken_at_look, self._looked_at = taken, now
        self.look_at = now + _LOOK_INTERVAL_S

    def _review(self) -> None:
        if 2 * self._dry > self._fillings:
            self.high_water = min(2 * self.high_water, MAX_HIGH_WATER_BYTES)
        elif self._measured_s > 0:
            target = QUEUE_S * self._measured_bytes / self._measured_s
            if target > self.high_water:
                self.high_water = min(2 * self.high_water, MAX_HIGH_WATER_BYTES)
            elif not self._dry and 2 * target <= self.high_water:
                self.high_water = max(self.high_water // 2, MIN_HIGH_WATER_BYTES)

    def _restart(self) -> None:
        self._fillings = self._dry = self._measured_bytes = 0
        self._measured_s = 0.0
