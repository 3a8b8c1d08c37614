"""What a run leaves behind: everything needed to judge it, or to sum it up in another way.

The JSON is an object with ``format`` 1 and the fields of :class:`Record`. Every raw sample is in
it; the summary can be computed from them alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.host import Host
from bench.pairs import Kind
from bench.stats import MIN_ROUNDS, Spread, doubt, round_ratios

#: Version of the record's form.
FORMAT = 1
#: Part of the machine's cores that other processes may have before a reader is warned.
MAX_OTHERS = 0.05


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the values that a benchmark's samples have: what it is and which way is better.

    Attributes:
        name: of the value in the samples; ends in its unit.
        title: for tables, without the unit.
        unit: for tables.
        less_is_better: latency, CPU time and memory; else as with throughput.
    """

    name: str
    title: str
    unit: str
    less_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        row: the pair's name.
        round: number of the round, from 0.
        case: what was measured, such as "down".
        values: what came out, by names that end in their unit.
    """

    row: str
    round: int
    case: str
    values: Mapping[str, float]


@dataclass(slots=True)
class Row:
    """One pair of proxies.

    Attributes:
        name: its name.
        kind: subject, peer or limit.
        version: of the program and its TLS library; "" where it is missing.
        parameters: what was set.
        skipped: why it was not measured, or None.
        failed: what went wrong while it was measured, or None. Samples before it remain.
        facts: what it turned out to do, for each round.
    """

    name: str
    kind: Kind
    version: str = ""
    parameters: Mapping[str, str | int] = field(default_factory=dict)
    skipped: str | None = None
    failed: str | None = None
    facts: list[Mapping[str, str | int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A subject beside another row.

    Attributes:
        case: what was measured.
        value: by which of the samples' values.
        subject: the row above the line.
        other: the row below it.
        spread: the rounds' ratios.
        doubt: why not to trust it, or None.
    """

    case: str
    value: str
    subject: str
    other: str
    spread: Spread
    doubt: str | None


@dataclass(slots=True)
class Record:
    """One run of one benchmark.

    Attributes:
        benchmark: its name.
        started: UTC, ISO 8601.
        host: where.
        parameters: of the run.
        value: which of a sample's values is the result; more of it is better, unless its figure
            says otherwise.
        cost: which of them is its price; less of it is better, and other people's load on the
            machine hardly touches it.
        rows: the pairs.
        samples: all of them, in the order they were taken.
        finished: UTC, ISO 8601; "" until then.
        figures: those values of the samples that are worth a ratio, the most telling first. Not
            every case has every one of them. Without any, ``value`` and ``cost`` are all there is.
        notes: what a reader must know that no figure says, such as where a peer gave up.
    """

    benchmark: str
    started: str
    host: Host
    parameters: Mapping[str, str | int | float]
    value: str
    cost: str
    rows: list[Row] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    finished: str = ""
    figures: tuple[Figure, ...] = ()
    notes: list[str] = field(default_factory=list)

    def figure(self, name: str) -> Figure:
        """What a value of the samples is, whether it is listed or not."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        return Figure(name, name, "", less_is_better=name == self.cost)

    @property
    def cases(self) -> list[str]:
        """Cases in the order they were first measured."""
        return list(dict.fromkeys(sample.case for sample in self.samples))

    def by_round(self, row: str, case: str, value: str) -> dict[int, float]:
        """One value of one row, for each round."""
        return {
            sample.round: sample.values[value]
            for sample in self.samples
            if sample.row == row and sample.case == case and value in sample.values
        }

    def spread(self, row: str, case: str, value: str) -> Spread | None:
        """One value of one row over all rounds, or None where there is no sample."""
        samples = list(self.by_round(row, case, value).values())
        return Spread.of(samples) if samples else None

    def ratio(self, case: str, subject: str, other: str, value: str | None = None) -> Ratio | None:
        """A subject beside another row, or None where they share no round with that value.

        Args:
            case: what was measured.
            subject: the row above the line.
            other: the row below it.
            value: of the samples; the record's ``value`` by default.
        """
        value = value or self.value
        ratios = round_ratios(
            self.by_round(subject, case, value), self.by_round(other, case, value)
        )
        if not ratios:
            return None
        spread = Spread.of(ratios)
        return Ratio(case, value, subject, other, spread, doubt(spread))

    def ratios(self, value: str | None = None) -> list[Ratio]:
        """Every subject beside every other row, the subjects among themselves included."""
        subjects = [row.name for row in self.rows if row.kind is Kind.SUBJECT]
        pairs = [
            (subject, row.name)
            for index, subject in enumerate(subjects)
            for row in self.rows
            if row.name not in subjects[index:]
        ]
        found = [self.ratio(case, *pair, value) for case in self.cases for pair in pairs]
        return [ratio for ratio in found if ratio is not None]

    def best_peer(self, case: str, value: str | None = None) -> str | None:
        """The peer with the best median, or None where no peer was measured.

        Args:
            case: what was measured.
            value: of the samples; the record's ``value`` by default.
        """
        value = value or self.value
        medians = {
            row.name: spread.median
            for row in self.rows
            if row.kind is Kind.PEER and (spread := self.spread(row.name, case, value))
        }
        best = min if self.figure(value).less_is_better else max
        return best(medians, key=lambda name: medians[name]) if medians else None

    def warnings(self) -> list[str]:
        """What a reader must know before believing a number."""
        found = [f"{row.name} failed: {row.failed}" for row in self.rows if row.failed]
        others = [s.values["others"] for s in self.samples if "others" in s.values]
        if others and (share := Spread.of(others)).median > MAX_OTHERS:
            found.append(
                f"the machine was shared: other processes had {share.median:.0%} of its cores "
                f"({share.low:.0%} to {share.high:.0%}); compare ratios and CPU time only"
            )
        found += [
            f"{ratio.case}: {ratio.subject} ÷ {ratio.other}: {ratio.doubt}"
            for ratio in self.ratios()
            if ratio.doubt and ratio.spread.count >= MIN_ROUNDS
        ]
        rounds = {sample.round for sample in self.samples}
        if len(rounds) < MIN_ROUNDS:
            found.append(f"{len(rounds)} round(s): no ratio means anything under {MIN_ROUNDS}")
        return found

    @property
    def _compared(self) -> list[str]:
        """Values that ratios are taken of."""
        named = [self.value, self.cost, *(figure.name for figure in self.figures)]
        return [name for name in dict.fromkeys(named) if name]

    def to_json(self) -> str:
        """The whole record, the summary included."""
        document: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        document["summary"] = {
            "ratios": [
                dataclasses.asdict(ratio)
                for value in self._compared
                for ratio in self.ratios(value)
            ],
            "best_peer": {case: self.best_peer(case) for case in self.cases},
            "best_peers": {
                case: {value: self.best_peer(case, value) for value in self._compared}
                for case in self.cases
            },
            "warnings": self.warnings(),
        }
        return json.dumps(document, indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write it. The directory is made where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json())
