"""How long a worker that died is left alone before it is started again. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Pause before a first restart, and the longest one, in seconds. There is no giving up: at the
#: longest pause a worker that cannot live costs two starts a minute, and comes back by itself once
#: what kills it is put right.
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 30.0
#: A worker that lived so long was well: the pauses begin anew, in seconds.
SETTLED_S: Final = 60.0
#: Each pause is taken times 1 plus or minus this, so that workers do not start in step.
JITTER: Final = 0.2


class Backoff:
    """The pauses between the starts of one worker.

    Args:
        random: gives numbers from 0 up to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._pause_s = FIRST_PAUSE_S

    def pause_s(self, lived_s: float) -> float:
        """The pause after a life of ``lived_s`` seconds, counted from its start."""
        if lived_s >= SETTLED_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MAX_PAUSE_S)
        return pause_s * (1 + JITTER * (2 * self._random() - 1))
