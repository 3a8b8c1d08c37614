"""A record as Markdown."""

from __future__ import annotations

from bench.pairs import Kind
from bench.record import Ratio, Record, Row
from bench.stats import Spread


def markdown(record: Record, *, unit: str, cost: str, cost_unit: str) -> str:
    """Everything a reader needs, in one page.

    Args:
        record: the run.
        unit: of the value the ratios are made of.
        cost: a second value shown beside it, where samples have it.
        cost_unit: its unit.
    """
    parts = [_heading(record)]
    parts += [_table(record, case, unit, cost, cost_unit) for case in record.cases]
    parts.append(_rows(record))
    warnings = record.warnings()
    if warnings:
        parts.append("Warnings:\n\n" + "\n".join(f"- {text}" for text in warnings))
    return "\n\n".join(parts) + "\n"


def _heading(record: Record) -> str:
    host = record.host
    parameters = ", ".join(f"{name} {value}" for name, value in record.parameters.items())
    return (
        f"### {record.benchmark}, {record.started}\n\n"
        f"{host.cpu}, {host.cores} cores, {host.kernel}, {host.python}, {host.openssl}  \n"
        f"{parameters}"
    )


def _table(record: Record, case: str, unit: str, cost: str, cost_unit: str) -> str:
    subjects = [row.name for row in record.rows if row.kind is Kind.SUBJECT]
    best = record.best_peer(case)
    header = ["pair", f"{unit} (median)", "min to max", cost_unit]
    header += [f"{subject} ÷ it (min to max)" for subject in subjects]
    lines = [f"**{case}**", "", _line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for row in record.rows:
        value = record.spread(row.name, case, record.value)
        if value is None:
            continue
        costs = record.spread(row.name, case, cost)
        cells = [
            f"{row.name} (best peer)" if row.name == best else row.name,
            f"{value.median:.0f}",
            f"{value.low:.0f} to {value.high:.0f}",
            f"{costs.median:.2f}" if costs else "",
        ]
        for subject in subjects:
            same = subject == row.name
            cells.append("" if same else _ratio(record.ratio(case, subject, row.name)))
        lines.append(_line(cells))
    return "\n".join(lines)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    mark = " ?" if ratio.doubt else ""
    return f"{ratio.spread.median:.2f} ({_range(ratio.spread)}){mark}"


def _range(spread: Spread) -> str:
    return f"{spread.low:.2f} to {spread.high:.2f}"


def _rows(record: Record) -> str:
    return "\n".join(f"- {row.name}: {_about(row)}" for row in record.rows)


def _about(row: Row) -> str:
    if row.skipped is not None:
        return f"skipped, {row.skipped}"
    known: dict[str, str | int] = dict(row.parameters)
    for facts in row.facts[:1]:
        known |= facts
    details = ", ".join(f"{name} {value}" for name, value in known.items())
    return f"{row.version}; {details}" if details else row.version


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
