"""How little is enough: found by trial, where it cannot be computed.

A window or a queue that is too small holds its flow up, and the flow's rate then says that little
is needed. So what the rate says is only tried. Less of it stays if the rate does; now and then
more of it is tried, and stays if the rate grows.
"""

from __future__ import annotations

import enum

#: Less stays if the rate is at least this share of what it was before ...
KEPT_SHARE = 0.85
#: ... and more if the rate is at least so many times what it was.
GAINED_SHARE = 1.2
#: Less that was tried in vain is not tried again for so long, in seconds ...
HOLD_LESS_S = 1.0
#: ... and more for so long: rates vary by themselves, and in doubt little is better.
HOLD_MORE_S = 10.0
#: A rate is measured over at least this time, in seconds.
REVIEW_S = 0.05


class _Trial(enum.Enum):
    """What is being tried."""

    NONE = enum.auto()
    LESS = enum.auto()
    MORE = enum.auto()


class Trials:
    """Trials of one size."""

    __slots__ = ("_hold_less_until", "_hold_more_until", "_last_rate", "_rate_before", "_trial")

    def __init__(self, now: float) -> None:
        self._trial = _Trial.NONE
        self._rate_before = self._last_rate = 0.0
        self._hold_less_until = self._hold_more_until = now

    def drop(self) -> None:
        """The size was changed for another reason."""
        self._trial = _Trial.NONE

    def step(self, rate: float, now: float, *, large: bool, largest: bool) -> float:
        """End a trial, or begin one.

        Args:
            rate: measured with the present size, in bytes a second.
            now: the time.
            large: half of it might do.
            largest: it cannot be made larger.

        Returns:
            What to multiply the size by: 0.5, 1 or 2.
        """
        trial, self._trial = self._trial, _Trial.NONE
        last_rate, self._last_rate = self._last_rate, rate
        if trial is _Trial.LESS and rate < KEPT_SHARE * self._rate_before:
            self._hold_less_until = now + HOLD_LESS_S
            return 2.0
        if trial is _Trial.MORE and rate < GAINED_SHARE * self._rate_before:
            self._hold_more_until = now + HOLD_MORE_S
            return 0.5
        self._rate_before = rate
        if large and now >= self._hold_less_until:
            self._trial = _Trial.LESS
            return 0.5
        # More is no help while the rate grows by itself.
        if not largest and now >= self._hold_more_until and rate <= GAINED_SHARE * last_rate:
            self._trial = _Trial.MORE
            return 2.0
        return 1.0
