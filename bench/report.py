"""A record as Markdown."""

from __future__ import annotations

from bench.record import Ratio, Record, Row
from bench.stats import Spread


def markdown(record: Record, *, unit: str, cost_unit: str) -> str:
    """Everything a reader needs, in one page.

    Args:
        record: the run.
        unit: of the record's value.
        cost_unit: of the record's cost.
    """
    parts = [_heading(record)]
    for case in record.cases:
        parts += [f"**{case}**", _medians(record, case, unit, cost_unit)]
        parts.append(_ratios(record, case, unit, cost_unit))
    parts.append(about_rows(record))
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


def _medians(record: Record, case: str, unit: str, cost_unit: str) -> str:
    best = record.best_peer(case)
    lines = _head("pair", unit, "min to max", cost_unit, "min to max")
    for row in record.rows:
        value = record.spread(row.name, case, record.value)
        if value is None:
            continue
        cost = record.spread(row.name, case, record.cost)
        cells = [
            f"{row.name} (best peer)" if row.name == best else row.name,
            f"{value.median:.0f}",
            f"{value.low:.0f} to {value.high:.0f}",
            f"{cost.median:.2f}" if cost else "",
            _range(cost) if cost else "",
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def _ratios(record: Record, case: str, unit: str, cost_unit: str) -> str:
    """A question mark stands at a ratio that a warning is about."""
    lines = _head("ratio", unit, "min to max", cost_unit, "min to max")
    for ratio in record.ratios():
        if ratio.case == case:
            cost = record.ratio(case, ratio.subject, ratio.other, record.cost)
            name = f"{ratio.subject} ÷ {ratio.other}"
            lines.append(_line([name, *_ratio(ratio), *_ratio(cost)]))
    return "\n".join(lines)


def _head(*cells: str) -> list[str]:
    return [_line(list(cells)), _line(["---"] + ["---:"] * (len(cells) - 1))]


def _ratio(ratio: Ratio | None) -> list[str]:
    if ratio is None:
        return ["", ""]
    mark = " ?" if ratio.doubt else ""
    return [f"{ratio.spread.median:.2f}{mark}", _range(ratio.spread)]


def _range(spread: Spread) -> str:
    return f"{spread.low:.2f} to {spread.high:.2f}"


def about_rows(record: Record) -> str:
    """Versions and parameters of every row, or why it was not measured."""
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
