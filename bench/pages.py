"""Reports: records of one run or of several, as one page of Markdown and one of HTML."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import plots
from bench.document import Block, Items, Paragraph, Section, Table, markdown_table
from bench.document import to_html as render_html
from bench.document import to_markdown as render_markdown
from bench.goals import Outcome, outcomes, overall
from bench.record import Record
from bench.record_report import host_line, number, record_sections
from bench.study import Study
from bench.study_report import study_sections

_TITLE = "qproxy benchmarks"
_CAVEATS = (
    "Only ratios from one run mean anything elsewhere: all pairs of a run were measured in turn, "
    "round by round, on the same machine. Medians with the smallest and the largest round.",
    "A question mark stands at a ratio that says nothing: its rounds lie on both sides of one, too "
    "far apart, or there are too few of them.",
    "Load generators, proxies and services share the machine; CPU time is the proxies' alone.",
    "A dagger stands at a program that used another cipher suite than the others. What each pair "
    "negotiated, its group included, stands under Programs, read off the wire.",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What goes on the pages.

    Attributes:
        records: what was measured, in order.
        missing: benchmarks that gave no record, and why.
    """

    records: Sequence[Record | Study]
    missing: Sequence[str] = ()

    def markdown(self) -> str:
        """The page without plots."""
        return render_markdown(self._sections())

    def html(self) -> str:
        """The page with plots, or with the reason there are none."""
        return render_html(self._sections(with_plots=True), _TITLE)

    def write(self, stem: Path) -> list[Path]:
        """Write both pages as STEM.md and STEM.html. Returns their paths."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        pages = {".md": self.markdown(), ".html": self.html()}
        paths = []
        for suffix, page in pages.items():
            path = stem.with_name(stem.name + suffix)
            path.write_text(page)
            paths.append(path)
        return paths

    def _sections(self, *, with_plots: bool = False) -> list[Section]:
        head = Section(_TITLE, _about(self.records), level=1)
        sections = [head, _goals_section(self.records)]
        if self.missing:
            sections.append(Section("Not measured", [Items(self.missing)]))
        for record in self.records:
            if isinstance(record, Study):
                sections += study_sections(record)
                continue
            own = record_sections(record)
            if with_plots:
                own[0].blocks += _plots(record)
            sections += own
        return sections


def _about(records: Sequence[Record | Study]) -> list[Block]:
    hosts = list(dict.fromkeys(host_line(record.host) for record in records))
    dates = sorted(record.started for record in records)
    blocks: list[Block] = [Paragraph(host) for host in hosts]
    if dates:
        blocks.append(Paragraph(f"Benchmarks begun between {dates[0]} and {dates[-1]}."))
    if len(hosts) > 1:
        blocks.append(Paragraph("Records of several machines or versions stand on this page!"))
    skipped = _skipped(records)
    if skipped:
        blocks.append(Paragraph(f"Skipped: {'; '.join(skipped)}."))
    blocks.append(Items(_CAVEATS))
    return blocks


def _skipped(records: Sequence[Record | Study]) -> list[str]:
    """Each peer that is missing, once for each reason."""
    found = [
        f"{row.name} ({row.skipped})"
        for record in records
        if isinstance(record, Record)
        for row in record.rows
        if row.skipped is not None
    ]
    return list(dict.fromkeys(found))


def _plots(record: Record) -> list[Block]:
    if (reason := plots.missing()) is not None:
        return [Paragraph(f"No plots: {reason}.")]
    return list(plots.plots_of(record))


def _goals_section(records: Sequence[Record | Study]) -> Section:
    found = outcomes(record for record in records if isinstance(record, Record))
    return Section(
        "Goals",
        [
            goals_table(found),
            Paragraph(
                "Met: every round is within the goal. Missed: every round is beyond it. Undecided: "
                "the spread of the rounds reaches over it, or there are fewer than three."
            ),
        ],
    )


def goals_table(found: Sequence[Outcome]) -> Table:
    """Every goal with its cases; the verdict on the goal stands in its first line."""
    rows = []
    for goal, group in itertools.groupby(found, key=lambda outcome: outcome.goal):
        cases = list(group)
        rows.append([goal.title, goal.demand, "", "", _worst(cases)])
        if cases[0].spread is None:
            continue
        rows += [["", "", each.case, each.measured, each.word] for each in cases]
    head = ["goal", "demand", "case", "measured", "verdict"]
    return Table(head, rows, text_columns=frozenset({1, 2, 3, 4}))


def readme_tables(records: Sequence[Record | Study]) -> str:
    """Goals and medians as Markdown, for the README; from records alone."""
    pairs = [record for record in records if isinstance(record, Record)]
    found = outcomes(pairs)
    rows = []
    for goal, group in itertools.groupby(found, key=lambda outcome: outcome.goal):
        cases = list(group)
        measured = "; ".join(f"{each.case}: {each.measured}" for each in cases if each.spread)
        rows.append([goal.title, goal.demand, measured, _worst(cases)])
    head = ["goal", "demand", "measured, median of rounds (min to max)", "verdict"]
    parts = [markdown_table(Table(head, rows, frozenset({1, 2, 3})))]
    for record in pairs:
        figure = record.figure(record.value)
        unit = f", {figure.unit}" if figure.unit else ""
        cases_of = [case for case in record.cases if _measured(record, case)]
        if cases_of:
            head = [f"{record.benchmark}: {figure.title}{unit}", *cases_of]
            parts.append(markdown_table(Table(head, _medians(record, cases_of))))
    return "\n\n".join(parts) + "\n"


def _worst(cases: Sequence[Outcome]) -> str:
    """The verdict on a goal, in the words of the case that decides it."""
    verdict = overall(cases)
    return next(each.word for each in cases if each.verdict is verdict)


def _measured(record: Record, case: str) -> bool:
    return any(record.spread(row.name, case, record.value) for row in record.rows)


def _medians(record: Record, cases: Sequence[str]) -> list[list[str]]:
    rows = []
    for row in record.rows:
        spreads = [record.spread(row.name, case, record.value) for case in cases]
        if any(spreads):
            medians = ["" if spread is None else number(spread.median) for spread in spreads]
            rows.append([row.name, *medians])
    return rows
