"""Waiting a moment without sleeping: what saves a round trip from two cores' going to sleep.

A thread that sleeps between two messages wakes up on a core that has slept, too, with cold caches:
that costs a message more than all that is done with it. So after a change the loop asks on for a
moment before it sleeps, and lets everybody else who can run have the core each time it asks. How
long that moment is follows what came of it, as KVM's halt polling does
(https://docs.kernel.org/virt/kvm/halt-polling.html): it grows while changes come that soon, and
shrinks to nothing while they do not, so that a quiet gateway sleeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: Changes as epoll tells them: descriptor and what about it.
Changes = list[tuple[int, int]]

#: The moment begins at this, and below it is none, in seconds.
MIN_MOMENT_S = 10e-6


class BusyPoll:
    """Decides how long to ask before sleeping.

    Attributes:
        moment_s: how long now; 0 while it does not pay.
        most_s: the longest moment; 0 to sleep at once, always.
    """

    __slots__ = ("_clock", "_give_way", "_poll", "moment_s", "most_s")

    def __init__(
        self,
        poll: Callable[[float], Changes],
        most_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        give_way: Callable[[], None] = os.sched_yield,
    ) -> None:
        """Ask ``poll`` for at most ``most_s`` seconds before letting it sleep.

        Args:
            poll: takes a timeout in seconds, -1 to sleep until something changes.
            most_s: see the attribute.
            clock: monotonic seconds.
            give_way: lets other threads have the core.
        """
        self._poll = poll
        self.most_s = most_s
        self._clock = clock
        self._give_way = give_way
        self.moment_s = 0.0

    def wait(self) -> Changes:
        """Wait until something changes."""
        changes = self._poll(0)
        if changes or not self.most_s:
            return changes or self._poll(-1)
        began = self._clock()
        until = began + self.moment_s
        while self._clock() < until:
            self._give_way()
            changes = self._poll(0)
            if changes:
                return changes
        changes = self._poll(-1)
        if self._clock() - began <= self.most_s:
            self.moment_s = min(self.most_s, max(MIN_MOMENT_S, 2 * self.moment_s))
        else:
            self.moment_s = self.moment_s / 2 if self.moment_s > MIN_MOMENT_S else 0.0
        return changes
