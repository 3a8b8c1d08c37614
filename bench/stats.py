"""Medians, spread and ratios of few and noisy samples.

Five rounds are too few for confidence intervals worth the name. So nothing is claimed but what can
be seen: the middle sample, the smallest and the largest, and a warning where those lie so far
apart, or on both sides of one, that the ratio says nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A ratio whose rounds lie further apart than this part of their median is called noisy.
MAX_RATIO_SPREAD = 0.35
#: Fewer rounds than this show no spread to speak of.
MIN_ROUNDS = 3


class BenchError(Exception):
    """A benchmark cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What several samples of one thing have in common.

    Attributes:
        median: the middle one.
        low: the smallest.
        high: the largest.
        count: how many there are.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up samples. Raises ValueError where there are none."""
        if not samples:
            raise ValueError("expected at least one sample, got none")
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))

    @property
    def relative(self) -> float:
        """Distance from smallest to largest, as a part of the median."""
        return (self.high - self.low) / self.median if self.median else float("inf")


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that this share of them does not exceed. Raises ValueError for none."""
    if not samples:
        raise ValueError("expected at least one sample, got none")
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def round_ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """``ours / theirs`` for each round that both have, in the order of the rounds."""
    return [
        ours[number] / theirs[number]
        for number in sorted(ours.keys() & theirs.keys())
        if theirs[number] > 0
    ]


def doubt(ratio: Spread) -> str | None:
    """Why a ratio should not be trusted, or None.

    Args:
        ratio: the rounds' ratios of one pair to another, summed up.
    """
    if ratio.count < MIN_ROUNDS:
        return f"only {ratio.count} round(s), expected at least {MIN_ROUNDS}"
    if ratio.low < 1 < ratio.high:
        return f"rounds from {ratio.low:.2f} to {ratio.high:.2f}: which is ahead is undecided"
    if ratio.relative > MAX_RATIO_SPREAD:
        return f"rounds from {ratio.low:.2f} to {ratio.high:.2f}: the size of the ratio is unsure"
    return None
