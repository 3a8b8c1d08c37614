"""How much may be sealed and not sent: enough that the path never waits, and no more.

Whatever is sealed, or lies unsent in the kernel, is in front of every later byte of the tunnel. At
1 Gbit/s a mebibyte of it is 8 ms. So the high-water mark follows the rate at which the transport
takes bytes, and the driver has the kernel hold no more than that unsent (TCP_NOTSENT_LOWAT).

The rate is measured between two moments at which the transport was full: what it took in between
is what left it, if something was always left in it. Where nothing was left when the driver came to
fill it up again, the driver was late: then the mark doubles, for a path that waits costs more than
a queue does. The idea is that of Linux's dynamic queue limits.

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
#: A rate is measured over at least this time, in seconds, or this many fillings of the transport.
_REVIEW_S = 0.01
_REVIEW_FILLINGS = 8
#: How often the rate is looked at of a transport that is not full, in seconds.
_LOOK_INTERVAL_S = 0.01
#: For how long the mark is not lowered after it was raised because the driver was late, in seconds.
_HOLD_S = 1.0


class Pace:
    """Watches the transport of one tunnel.

    Attributes:
        high_water: stream data is taken while less than this waits to be sent, in bytes.
        look_at: when to call :meth:`look` again.
        idle: since the transport was full there was a moment with room and nothing to send.
    """

    __slots__ = ("_dry", "_fillings", "_full_at", "_hold_until", "_looked_at", "_measured_bytes",
                 "_measured_s", "_taken_at_look", "_taken_before", "_unsent", "high_water", "idle",
                 "look_at")  # fmt: skip

    def __init__(self, now: float) -> None:
        self.high_water = INITIAL_HIGH_WATER_BYTES
        self.look_at = now + _LOOK_INTERVAL_S
        self.idle = True
        self._looked_at = now
        self._taken_at_look = 0
        self._full_at = self._hold_until = now
        self._taken_before = 0
        self._unsent: int | None = None
        self._restart()

    def transport_ready(self, unsent: int) -> None:
        """The transport takes bytes again, and holds so many that have not been sent."""
        self._unsent = unsent

    def transport_full(self, taken: int, now: float) -> None:
        """The transport took less than was there.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time.
        """
        unsent, self._unsent = self._unsent, None
        count, elapsed = taken - self._taken_before, now - self._full_at
        if not count and not self.idle:
            return  # Still full.
        idle, self.idle = self.idle, False
        self._taken_before, self._full_at = taken, now
        if idle or unsent is None:
            return
        self._fillings += 1
        if unsent:
            self._measured_bytes += count
            self._measured_s += elapsed
        else:
            self._dry += 1
        if self._measured_s >= _REVIEW_S or self._fillings >= _REVIEW_FILLINGS:
            self._review(now)
            self._restart()

    def look(self, taken: int, now: float) -> None:
        """Whether the transport takes more than the mark allows for.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time, :attr:`look_at` or later.
        """
        if taken - self._taken_at_look > (now - self._looked_at) * self.high_water / QUEUE_S:
            self._double()
        self._taken_at_look, self._looked_at = taken, now
        self.look_at = now + _LOOK_INTERVAL_S

    def _review(self, now: float) -> None:
        if 2 * self._dry > self._fillings:
            self._double()
            self._hold_until = now + _HOLD_S
        elif self._measured_s > 0:
            target = QUEUE_S * self._measured_bytes / self._measured_s
            if target > self.high_water:
                self._double()
            elif not self._dry and 2 * target <= self.high_water and now >= self._hold_until:
                self.high_water = max(self.high_water // 2, MIN_HIGH_WATER_BYTES)

    def _double(self) -> None:
        self.high_water = min(2 * self.high_water, MAX_HIGH_WATER_BYTES)

    def _restart(self) -> None:
        self._fillings = self._dry = self._measured_bytes = 0
        self._measured_s = 0.0
