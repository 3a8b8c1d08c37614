"""A record with many figures as Markdown: medians and ranges, and ratios to the best peer."""

from __future__ import annotations

from bench.pairs import Kind
from bench.record import Figure, Record
from bench.report import about_rows
from bench.stats import Spread
from bench.study import table


def figures_markdown(record: Record) -> str:
    """Each case with all of its figures, one page. A question mark: see the warnings."""
    parts = [_heading(record)]
    for case in record.cases:
        figures = [figure for figure in record.figures if _measured(record, case, figure)]
        head = [case, *(f"{figure.title}, {figure.unit}" for figure in figures)]
        rows = [
            [row.name, *(_cell(record.spread(row.name, case, each.name)) for each in figures)]
            for row in record.rows
            if record.spread(row.name, case, record.value) is not None
        ]
        parts.append(table(head, [*rows, *_ratios(record, case, figures)]))
    parts.append(about_rows(record))
    parts += [
        f"{title}:\n\n" + "\n".join(f"- {text}" for text in texts)
        for title, texts in (("Notes", record.notes), ("Warnings", record.warnings()))
        if texts
    ]
    return "\n\n".join(parts) + "\n"


def _heading(record: Record) -> str:
    host = record.host
    parameters = ", ".join(f"{name} {value}" for name, value in record.parameters.items())
    return (
        f"### {record.benchmark}, {record.started}\n\n"
        f"{host.cpu}, {host.cores} cores, {host.kernel}, {host.python}, {host.openssl}  \n"
        f"{parameters}"
    )


def _measured(record: Record, case: str, figure: Figure) -> bool:
    return any(record.spread(row.name, case, figure.name) for row in record.rows)


def _ratios(record: Record, case: str, figures: list[Figure]) -> list[list[str]]:
    """Each subject beside the best peer, which may be another one for every figure."""
    rows = []
    for row in record.rows:
        if row.kind is not Kind.SUBJECT:
            continue
        cells = []
        for figure in figures:
            best = record.best_peer(case, figure.name)
            ratio = record.ratio(case, row.name, best, figure.name) if best else None
            mark = " ?" if ratio is not None and ratio.doubt else ""
            cells.append(f"{_cell(ratio.spread, '.2f')}{mark} {best}" if ratio else "")
        rows.append([f"{row.name} ÷ best peer", *cells])
    return rows if any(any(cells[1:]) for cells in rows) else []


def _cell(spread: Spread | None, form: str = "") -> str:
    if spread is None:
        return ""
    form = form or (".0f" if abs(spread.median) >= 100 else ".3g")
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"
