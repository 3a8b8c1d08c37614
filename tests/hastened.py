"""A clock for tests that wait for the product's own timers: it all but stands while things happen.

Once all has been quiet for a moment it jumps to the next deadline. Minutes go by in milliseconds,
and no deadline passes because a machine is slow: what is computed, and what one socket of this
process sends to another, takes next to no time. Not for tests in which a thread or another program
has work to do in the meantime, of which the clock knows nothing, nor where it is never quiet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from trio.testing import MockClock

#: Seconds on the clock for a second of the machine: so that a test that never comes to rest ends.
RATE = 0.1
#: How long all must have been quiet before the clock jumps, in seconds of the machine. What a
#: socket of this process has sent to another is there much sooner.
QUIET_S = 0.001


def run(
    test: Callable[[], Awaitable[Any]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> Any:
    """Run a test marked ``hastened``: by that clock, unless it asks for one of its own."""
    clock = clock or MockClock(rate=RATE, autojump_threshold=QUIET_S)
    return trio.run(test, clock=clock, instruments=instruments)
