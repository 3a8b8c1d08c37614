"""The record of a benchmark whose results are held against goals, not against other programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.document import Table, markdown_table
from bench.host import Host
from bench.record import FORMAT, Record
from bench.stats import Spread


@dataclass(frozen=True, slots=True)
class Observation:
    """One repetition of one case.

    Attributes:
        case: which.
        round: number of the repetition, from 0.
        values: figures, by names that end in their unit.
        facts: what is no figure.
    """

    case: str
    round: int
    values: Mapping[str, float]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure must not exceed in any repetition.

    Attributes:
        case: which case.
        value: which of its figures.
        limit: the most it may be.
        below: it must be less; as much is too much.
    """

    case: str
    value: str
    limit: float
    below: bool = False

    def met_by(self, spread: Spread) -> bool:
        """Whether the worst repetition is within it."""
        return spread.high < self.limit if self.below else spread.high <= self.limit


@dataclass(slots=True)
class Study:
    """One run.

    Attributes:
        benchmark: its name.
        started: UTC, ISO 8601.
        host: where.
        parameters: of the run.
        cases: name to what is particular about it.
        goals: what figures are held against.
        observations: all repetitions, in the order they were made.
        failed: repetitions that gave no figures, and why.
        finished: UTC, ISO 8601; "" until then.
    """

    benchmark: str
    started: str
    host: Host
    parameters: Mapping[str, str | int | float]
    cases: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    finished: str = ""

    def spread(self, case: str, value: str) -> Spread | None:
        """One figure over all repetitions of a case, or None where there is none."""
        samples = [
            each.values[value]
            for each in self.observations
            if each.case == case and value in each.values
        ]
        return Spread.of(samples) if samples else None

    def verdict(self, case: str, value: str) -> bool | None:
        """Whether a figure meets its goal; None where it has no goal or was not measured."""
        spread = self.spread(case, value)
        for goal in self.goals:
            if (goal.case, goal.value) == (case, value) and spread is not None:
                return goal.met_by(spread)
        return None

    @property
    def missed(self) -> list[str]:
        """Goals that were missed: case and figure."""
        return [
            f"{goal.case}: {goal.value}"
            for goal in self.goals
            if self.verdict(goal.case, goal.value) is False
        ]

    def to_json(self) -> str:
        """The whole record, with every goal's verdict."""
        document: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        document["summary"] = {
            "goals": [
                {
                    **dataclasses.asdict(goal),
                    "measured": None if spread is None else dataclasses.asdict(spread),
                    "met": self.verdict(goal.case, goal.value),
                }
                for goal in self.goals
                for spread in [self.spread(goal.case, goal.value)]
            ]
        }
        return json.dumps(document, indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write it. The directory is made where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json())

    # For tables.

    def page(self, head: list[str], rows: list[list[str]], notes: Iterable[str]) -> str:
        """A table of its figures, and beneath it notes, what failed and what was missed."""
        failed = [f"FAILED: {text}" for text in self.failed]
        missed = [f"missed: {text}" for text in self.missed]
        return table_page(self, head, rows, [*notes, *failed, *missed])

    def cell(self, case: str, value: str, form: str = ".2f") -> str:
        """Median, range and verdict of one figure, for a table."""
        spread = self.spread(case, value)
        if spread is None:
            return ""
        met = self.verdict(case, value)
        word = {None: "", True: " met", False: " **missed**"}[met]
        return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}}){word}"


def table_page(
    record: Study | Record, head: list[str], rows: list[list[str]], notes: Iterable[str]
) -> str:
    """A page of Markdown: what a reader must know before the figures, a table, and notes."""
    host = record.host
    parameters = ", ".join(f"{name} {value}" for name, value in record.parameters.items())
    listed = "\n".join(f"- {note}" for note in notes)
    return (
        f"### {record.benchmark}, {record.started}\n\n"
        f"{host.cpu}, {host.cores} cores, {host.kernel}, {host.python}, {host.openssl}  \n"
        f"{parameters}\n\n{markdown_table(Table(head, rows))}\n\n{listed}\n"
    )
