"""How much memory processes have, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.children import process_tree


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a process and of everything it started.

    Attributes:
        pss_kib: what it has, with what it shares divided by how many share it (proportional set
            size), in KiB.
        own_kib: the part of it that is no file: heap, stacks and shared memory. Other programs
            that begin or end to use the same libraries change the rest.
        rss_kib: what it has, with all that it shares (resident set size), in KiB.
        processes: how many there are.
    """

    pss_kib: int
    own_kib: int
    rss_kib: int
    processes: int

    @classmethod
    def of(cls, pid: int) -> MemoryUse:
        """A process and everything it started; those that end meanwhile count as nothing."""
        pss_kib = own_kib = rss_kib = 0
        pids = process_tree(pid)
        for each in pids:
            fields = _rollup(each)
            pss_kib += fields.get("Pss", 0)
            own_kib += fields.get("Pss_Anon", 0) + fields.get("Pss_Shmem", 0)
            rss_kib += fields.get("Rss", 0)
        return cls(pss_kib, own_kib, rss_kib, len(pids))


def slope(points: Iterable[tuple[float, float]]) -> float:
    """By how much the second value grows with one more of the first: least squares.

    Raises:
        ValueError: all points have the same first value, or there is none.
    """
    pairs = list(points)
    if len({first for first, _ in pairs}) < 2:
        raise ValueError("expected points with at least two different first values")
    mean_first = sum(first for first, _ in pairs) / len(pairs)
    mean_second = sum(second for _, second in pairs) / len(pairs)
    spread = sum((first - mean_first) ** 2 for first, _ in pairs)
    return sum((a - mean_first) * (b - mean_second) for a, b in pairs) / spread


def _rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup (proc(5)): values in KiB by name; none where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) == 3}
