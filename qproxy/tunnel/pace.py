"""How much may be sealed and not sent: enough that the path never waits, and no more.

Whatever is sealed, or lies unsent in the kernel, is in front of every later byte of the tunnel. At
1 Gbit/s a mebibyte of it is 8 ms. So the high-water mark follows the rate at which the transport
takes bytes, and the driver has the kernel hold no more than that unsent (TCP_NOTSENT_LOWAT).

The rate is measured between two moments at which the transport was full, with never a pause of the
senders in between. It says what to try, not what is right: a rate may be low because the mark is,
where the driver cannot fill the transport up again before it runs empty. So a lower mark stays only
if the rate does, and now and then a higher one is tried, which stays if the rate grows.

A transport that is never full, such as loopback, is as fast as what it was given at least: where
that is a lot, the mark doubles as well, and bulk moves in fewer and larger pieces.
"""

from __future__ import annotations

import enum

#: Time that bulk data may wait in the output, and again in the kernel, in seconds.
QUEUE_S = 0.0005
#: Bounds of the high-water mark, in bytes; it is halved and doubled between them.
MIN_HIGH_WATER_BYTES = 16 * 1024
MAX_HIGH_WATER_BYTES = 1024 * 1024
#: Where it begins, in bytes: right for 1 Gbit/s.
INITIAL_HIGH_WATER_BYTES = 64 * 1024
#: A rate is measured over so much time without pauses, in seconds.
_REVIEW_S = 0.05
#: A lower mark stays if the rate is at least this share of what it was before ...
_KEPT_SHARE = 0.9
#: ... and a higher one if the rate is at least so many times what it was.
_GAINED_SHARE = 1.1
#: What was tried in vain is not tried again for so long, in seconds.
_HOLD_S = 10.0
#: How often the rate is looked at of a transport that is not full, in seconds.
_LOOK_INTERVAL_S = 0.01


class _Trial(enum.Enum):
    """What is being tried."""

    NONE = enum.auto()
    LOWER = enum.auto()
    HIGHER = enum.auto()


class Pace:
    """Watches the transport of one tunnel.

    Attributes:
        high_water: stream data is taken while less than this waits to be sent, in bytes.
        look_at: when to call :meth:`look` again.
        idle: since the transport was full there was a moment with room and nothing to send.
    """

    __slots__ = ("_full_at", "_hold_higher_until", "_hold_lower_until", "_last_rate", "_looked_at",
                 "_measured_bytes", "_measured_s", "_rate_before", "_taken_at_look",
                 "_taken_before", "_trial", "high_water", "idle", "look_at")  # fmt: skip

    def __init__(self, now: float) -> None:
        self.high_water = INITIAL_HIGH_WATER_BYTES
        self.look_at = now + _LOOK_INTERVAL_S
        self.idle = True
        self._looked_at = now
        self._taken_at_look = 0
        self._full_at = now
        self._taken_before = 0
        self._measured_bytes = 0
        self._measured_s = 0.0
        self._trial = _Trial.NONE
        self._rate_before = self._last_rate = 0.0
        self._hold_lower_until = self._hold_higher_until = now

    def transport_full(self, taken: int, now: float) -> None:
        """The transport took less than was there.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time.
        """
        count, elapsed = taken - self._taken_before, now - self._full_at
        if not count and not self.idle:
            return  # Still full.
        idle, self.idle = self.idle, False
        self._taken_before, self._full_at = taken, now
        if idle:
            return
        self._measured_bytes += count
        self._measured_s += elapsed
        if self._measured_s >= _REVIEW_S:
            self._review(self._measured_bytes / self._measured_s, now)
            self._measured_bytes = 0
            self._measured_s = 0.0

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

    def _review(self, rate: float, now: float) -> None:
        """End a trial, or begin one. Rates are in bytes a second."""
        trial, self._trial = self._trial, _Trial.NONE
        if trial is _Trial.LOWER and rate < _KEPT_SHARE * self._rate_before:
            self._double()
            self._hold_lower_until = now + _HOLD_S
        elif trial is _Trial.HIGHER and rate < _GAINED_SHARE * self._rate_before:
            self._halve()
            self._hold_higher_until = now + _HOLD_S
        elif rate * QUEUE_S > self.high_water:
            self._double()
        elif (
            2 * rate * QUEUE_S <= self.high_water > MIN_HIGH_WATER_BYTES
            and now >= self._hold_lower_until
        ):
            self._try(_Trial.LOWER, rate)
        elif (
            self.high_water < MAX_HIGH_WATER_BYTES
            and now >= self._hold_higher_until
            and rate <= _GAINED_SHARE * self._last_rate  # It does not grow by itself just now.
        ):
            self._try(_Trial.HIGHER, rate)
        self._last_rate = rate

    def _try(self, trial: _Trial, rate: float) -> None:
        self._trial, self._rate_before = trial, rate
        if trial is _Trial.LOWER:
            self._halve()
        else:
            self._double()

    def _double(self) -> None:
        self._change(min(2 * self.high_water, MAX_HIGH_WATER_BYTES))

    def _halve(self) -> None:
        self._change(max(self.high_water // 2, MIN_HIGH_WATER_BYTES))

    def _change(self, high_water: int) -> None:
        # What the transport takes next is more, or less, than what has left it.
        self.idle = self.idle or high_water != self.high_water
        self.high_water = high_water
