"""What a study says (goals of its own, no other programs), as sections of a report."""

from __future__ import annotations

from bench.document import Items, Paragraph, Section, Table
from bench.record_report import host_line, number
from bench.study import Study


def study_sections(study: Study, level: int = 2) -> list[Section]:
    """Host and parameters, a line for each figure of each case, and what failed."""
    parameters = ", ".join(f"{name} {value}" for name, value in study.parameters.items())
    section = Section(
        f"{study.benchmark}, {study.started}",
        [Paragraph(host_line(study.host)), Paragraph(parameters), figures_table(study)],
        level,
    )
    if study.failed:
        section.blocks.append(Items([f"failed: {text}" for text in study.failed]))
    return [section]


def figures_table(study: Study) -> Table:
    """Median, range, goal and verdict of every figure."""
    rows = []
    for case in dict.fromkeys(each.case for each in study.observations):
        values = dict.fromkeys(
            name for each in study.observations if each.case == case for name in each.values
        )
        for value in values:
            spread = study.spread(case, value)
            if spread is None:
                continue
            measured = f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"
            rows.append(
                [case, value, measured, _goal(study, case, value), _verdict(study, case, value)]
            )
    head = ["case", "figure", "measured", "goal", "verdict"]
    return Table(head, rows, text_columns=frozenset({1, 3, 4}))


def _goal(study: Study, case: str, value: str) -> str:
    for goal in study.goals:
        if (goal.case, goal.value) == (case, value):
            return f"{'below' if goal.below else 'at most'} {number(goal.limit)}"
    return ""


def _verdict(study: Study, case: str, value: str) -> str:
    return {None: "", True: "met", False: "missed"}[study.verdict(case, value)]
