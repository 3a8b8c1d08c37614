"""The goals, and whether records meet them. Every verdict is computed, none is written by hand.

A goal is *met* where every round is within the limit, *missed* where every round is beyond it, and
*undecided* where rounds lie on both sides or are too few: then the spread is as large as what was
to be shown, and another run on a quieter machine must decide. A goal of several cases is as good
as its worst case.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.handshake import PLAIN, TUNNEL
from bench.record import Record
from bench.rekey import EVERY_SECOND, OFF
from bench.stats import MIN_ROUNDS, Spread, round_ratios

#: The row that is held against the goals.
SUBJECT = "qproxy"


class Verdict(enum.StrEnum):
    """What became of a goal."""

    MET = "met"
    MISSED = "missed"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class RatioGoal:
    """A limit on one figure, as a ratio to another row or by itself.

    Attributes:
        title: what is to be good.
        demand: the limit, in words.
        benchmark: whose record tells.
        cases: regular expression of its cases' whole names.
        value: of the samples.
        limit: the most or the least allowed.
        at_least: the figure must not be below the limit; else it must not be above.
        strictly: as much as the limit is not enough.
        subject: the row that is judged.
        other: the row it is divided by; "" for the best peer, None for no other: the figure itself.
    """

    title: str
    demand: str
    benchmark: str
    cases: str
    value: str
    limit: float
    at_least: bool = False
    strictly: bool = False
    subject: str = SUBJECT
    other: str | None = ""

    def within(self, value: float) -> bool:
        """Whether one round's figure is as it should be."""
        if value == self.limit:
            return not self.strictly
        return value > self.limit if self.at_least else value < self.limit


@dataclass(frozen=True, slots=True)
class Outcome:
    """One goal in one case.

    Attributes:
        goal: which.
        case: of its benchmark; "" where nothing was measured.
        other: the row it was divided by, or None.
        spread: of the rounds' figures or ratios, or None where nothing was measured.
        verdict: what became of it.
    """

    goal: RatioGoal
    case: str
    other: str | None
    spread: Spread | None
    verdict: Verdict

    @property
    def word(self) -> str:
        """The verdict, with the reason where there is none."""
        if self.verdict is not Verdict.UNDECIDED or self.spread is None:
            return str(self.verdict)
        few = self.spread.count < MIN_ROUNDS
        return f"{self.verdict} ({f'{self.spread.count} round(s)' if few else 'spread'})"

    @property
    def measured(self) -> str:
        """Median and range, in words."""
        if self.spread is None:
            return ""
        spread = self.spread
        beside = f" of {self.other}" if self.other else ""
        return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f}){beside}"


GOALS: tuple[RatioGoal, ...] = (
    RatioGoal(
        "bulk throughput, one connection",
        "at least 1.5 times the best peer",
        "throughput",
        "down|up",
        "mb_per_s",
        1.5,
        at_least=True,
    ),
    RatioGoal(
        "CPU seconds per GB",
        "at most 0.8 of the best peer",
        "throughput",
        "down|up",
        "cpu_s_per_gb",
        0.8,
    ),
    RatioGoal(
        "added round trip, 256 B, p50",
        "no more than the best peer's",
        "latency",
        "256 B, (one at a time|[0-9]+/s)",
        "added_p50_us",
        1.0,
    ),
    RatioGoal(
        "new connections a second",
        "at least 5 times the best peer with mutual certificates",
        "connections",
        ".*",
        "connections_per_s",
        5.0,
        at_least=True,
    ),
    RatioGoal(
        "memory per idle stream",
        "below the best peer",
        "memory",
        "idle",
        "kib_per_stream",
        1.0,
        strictly=True,
    ),
    RatioGoal(
        "rekey every second with ML-KEM and QKD",
        "at most 2 % of throughput",
        "rekey",
        "down|up",
        "mb_per_s",
        0.98,
        at_least=True,
        subject=EVERY_SECOND,
        other=OFF,
    ),
    RatioGoal(
        "tunnel handshake with QKD",
        "at most 1.2 times plain TLS 1.3 with the same certificates",
        "handshake",
        "P-256|ML-DSA-65",
        "handshake_ms",
        1.2,
        subject=TUNNEL,
        other=PLAIN,
    ),
    RatioGoal(
        "2 workers over 1",
        "at least 1.7 times in CPU-bound work, load generators aside",
        "workers",
        ".*",
        "work_per_s",
        1.7,
        at_least=True,
        subject="2 workers",
        other="1 worker",
    ),
    RatioGoal(
        "a path of 100 ms at 1 Gbit/s, one connection",
        "filled to at least 0.9",
        "wan",
        "100 ms (down|up)",
        "share_of_path",
        0.9,
        at_least=True,
        other=None,
    ),
    RatioGoal(
        "small requests beside one bulk stream, p99",
        "at most 2 ms more than without",
        "fairness",
        ".*",
        "added_p99_ms",
        2.0,
        other=None,
    ),
)


def outcomes(records: Iterable[Record], goals: Sequence[RatioGoal] = GOALS) -> list[Outcome]:
    """Every goal in every case there is a record of; of several records of one benchmark the last.

    A goal without any has one outcome that says so.
    """
    latest = {record.benchmark: record for record in sorted(records, key=lambda each: each.started)}
    found: list[Outcome] = []
    for goal in goals:
        record = latest.get(goal.benchmark)
        measured = [] if record is None else _of_record(goal, record)
        found += measured or [Outcome(goal, "", None, None, Verdict.NOT_MEASURED)]
    return found


def overall(found: Sequence[Outcome]) -> Verdict:
    """The worst of a goal's cases."""
    verdicts = {outcome.verdict for outcome in found}
    for verdict in (Verdict.MISSED, Verdict.UNDECIDED, Verdict.NOT_MEASURED):
        if verdict in verdicts:
            return verdict
    return Verdict.MET


def judge(goal: RatioGoal, rounds: Sequence[float]) -> Verdict:
    """A verdict on a goal's figures, one for each round."""
    if len(rounds) < MIN_ROUNDS:
        return Verdict.UNDECIDED
    within = [goal.within(value) for value in rounds]
    if all(within):
        return Verdict.MET
    return Verdict.UNDECIDED if any(within) else Verdict.MISSED


def _of_record(goal: RatioGoal, record: Record) -> list[Outcome]:
    found = []
    for case in record.cases:
        if not re.fullmatch(goal.cases, case):
            continue
        ours = record.by_round(goal.subject, case, goal.value)
        other = record.best_peer(case, goal.value) if goal.other == "" else goal.other
        if other is not None:
            rounds = round_ratios(ours, record.by_round(other, case, goal.value))
        elif goal.other is None:
            rounds = [ours[number] for number in sorted(ours)]
        else:
            rounds = []
        if rounds:
            spread = Spread.of(rounds)
            found.append(Outcome(goal, case, other, spread, judge(goal, rounds)))
    return found
