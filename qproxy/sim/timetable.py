"""Events that happen by themselves, at times set in the configuration.

It has no clock: whoever drives it asks what is due, and when to ask again.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.sim.events import TimedEvent


class Timetable:
    """What is still to happen.

    Args:
        events: in any order; those of the same time happen in the order given.
        start: the time that ``at_s`` counts from, in seconds of any monotonic clock.
    """

    def __init__(self, events: Sequence[TimedEvent], *, start: float) -> None:
        self._start = start
        # The next one is last. Reversing a stable sort puts equal times in order from the end.
        self._left = sorted(events, key=lambda timed: timed.at_s)[::-1]

    @property
    def next_at(self) -> float | None:
        """When the next event is due, or None after the last one."""
        return self._start + self._left[-1].at_s if self._left else None

    def due(self, now: float) -> list[TimedEvent]:
        """Take out what is due at ``now``, in order."""
        due: list[TimedEvent] = []
        while self._left and self._start + self._left[-1].at_s <= now:
            due.append(self._left.pop())
        return due
