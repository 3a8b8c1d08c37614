"""Which worker gets a tunnel that arrives. Pure.

A tunnel goes to the worker with the fewest tunnels from the same address, and among equals to the
one with the fewest of all: who dials is not known before TLS, but peers rarely share an address,
and each worker should have a tunnel with every peer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

#: Tunnels handed to one worker that it has not begun with, at most: beyond them they wait in the
#: kernel's backlog.
MAX_WAITING: Final = 16


@dataclass(slots=True)
class _Worker:
    waiting: set[int] = field(default_factory=set)
    sources: dict[int, str] = field(default_factory=dict)


class Placing:
    """The tunnels that workers have been given, by ticket.

    Args:
        workers: how many workers there are.
    """

    def __init__(self, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._next_ticket = 0

    def choose(self, source: str, numbers: Iterable[int]) -> int | None:
        """The best of these workers for a tunnel from ``source``; None where none has room."""
        able = [n for n in numbers if len(self._workers[n].waiting) < MAX_WAITING]
        return min(able, key=lambda number: self._load(number, source), default=None)

    def give(self, number: int, source: str) -> int:
        """A tunnel from ``source`` goes to a worker. Returns its ticket."""
        ticket = self._next_ticket
        self._next_ticket += 1
        worker = self._workers[number]
        worker.waiting.add(ticket)
        worker.sources[ticket] = source
        return ticket

    def begun(self, number: int, ticket: int) -> None:
        """The worker has begun with it. Unknown tickets are passed over."""
        self._workers[number].waiting.discard(ticket)

    def over(self, number: int, ticket: int) -> None:
        """The tunnel has ended. Unknown tickets are passed over."""
        worker = self._workers[number]
        worker.waiting.discard(ticket)
        worker.sources.pop(ticket, None)

    def forget(self, number: int) -> None:
        """The worker is gone, and its tunnels with it."""
        self._workers[number] = _Worker()

    def _load(self, number: int, source: str) -> tuple[int, int, int]:
        sources = Counter(self._workers[number].sources.values())
        return sources[source], sources.total(), number
