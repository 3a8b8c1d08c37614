"""What a record of pairs says, as sections of a report."""

from __future__ import annotations

from bench.document import Block, Items, Paragraph, Section, Table, to_markdown
from bench.host import Host
from bench.pairs import Kind
from bench.pairs.base import CIPHER_SUITE
from bench.record import Figure, Ratio, Record, Row
from bench.stats import Spread

#: A median below this is shown with three significant digits.
_COARSE = 100.0
#: Stands at rows with another cipher suite.
_OTHER_CIPHER = "†"


def record_markdown(record: Record) -> str:
    """A record's own page."""
    return to_markdown(record_sections(record))


def record_sections(record: Record, level: int = 2) -> list[Section]:
    """Host and parameters, a table for each case, rows and warnings."""
    first = Section(f"{record.benchmark}, {record.started}", about(record), level)
    cases = [
        Section(case, [table_of(record, case)], level + 1)
        for case in record.cases
        if figures_of(record, case)
    ]
    rows = Section("Programs", [Items([f"{row.name}: {about_row(row)}" for row in record.rows])])
    rows.level = level + 1
    sections = [first, *cases, rows]
    said = [*other_ciphers(record), *record.notes, *record.warnings()]
    if said:
        sections.append(Section("Caveats and warnings", [Items(said)], level + 1))
    return sections


def about(record: Record) -> list[Block]:
    """Where, when and with what."""
    parameters = ", ".join(f"{name} {value}" for name, value in record.parameters.items())
    return [
        Paragraph(host_line(record.host)),
        Paragraph(f"{parameters}; from {record.started} to {record.finished or 'an early end'}"),
    ]


def host_line(host: Host) -> str:
    """A machine and its software, in one line."""
    return (
        f"{host.cpu}, {host.cores} cores, {host.memory_bytes / 2**30:.0f} GiB, {host.kernel}, "
        f"{host.python}, {host.openssl}, qproxy {host.qproxy}"
    )


def figures_of(record: Record, case: str) -> list[Figure]:
    """Figures that a case has samples of, the most telling first."""
    known = record.figures or tuple(
        record.figure(name) for name in (record.value, record.cost) if name
    )
    return [
        figure
        for figure in known
        if any(sample.case == case and figure.name in sample.values for sample in record.samples)
    ]


def table_of(record: Record, case: str) -> Table:
    """Every pair's figures in one case, each beside its ratio to the best peer.

    A question mark stands at a ratio that says nothing (see :func:`bench.stats.doubt`), a dagger at
    a row whose cipher suite was another one.
    """
    figures = figures_of(record, case)
    head = ["pair"]
    for figure in figures:
        unit = f", {figure.unit}" if figure.unit else ""
        head += [f"{figure.title}{unit}", "÷ best peer"]
    best = {figure.name: record.best_peer(case, figure.name) for figure in figures}
    rows = []
    for row in record.rows:
        cells = [f"{row.name} {_OTHER_CIPHER}" if other_cipher(row) else row.name]
        for figure in figures:
            cells.append(spread_cell(record.spread(row.name, case, figure.name)))
            cells.append(_against(record, case, row.name, best[figure.name], figure.name))
        if any(cells[1:]):
            rows.append(cells)
    return Table(head, rows)


def other_cipher(row: Row) -> str | None:
    """The cipher of a proxy that did not do the same work as the others, or None."""
    known: dict[str, str | int] = dict(row.parameters)
    for facts in row.facts[:1]:
        known |= facts
    cipher = str(known.get("cipher", CIPHER_SUITE))
    return cipher if row.kind in (Kind.PEER, Kind.OTHER) and cipher != CIPHER_SUITE else None


def other_ciphers(record: Record) -> list[str]:
    """A caveat for each of them."""
    return [
        f"{_OTHER_CIPHER} {row.name} used {cipher}, not {CIPHER_SUITE}: "
        + ("never the best peer" if row.kind is Kind.OTHER else "a peer all the same")
        for row in record.rows
        if (cipher := other_cipher(row)) is not None
    ]


def _against(record: Record, case: str, row: str, best: str | None, value: str) -> str:
    if best is None:
        return ""
    if row == best:
        return "best peer"
    return ratio_cell(record.ratio(case, row, best, value))


def spread_cell(spread: Spread | None) -> str:
    """Median and range, "" where there is none."""
    if spread is None:
        return ""
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"


def ratio_cell(ratio: Ratio | None) -> str:
    """Median and range of a ratio, marked where it says nothing."""
    if ratio is None:
        return ""
    mark = " ?" if ratio.doubt else ""
    spread = ratio.spread
    return f"{spread.median:.2f}{mark} ({spread.low:.2f} to {spread.high:.2f})"


def number(value: float) -> str:
    """Three significant digits, but whole numbers from a hundred up."""
    return f"{value:.0f}" if abs(value) >= _COARSE else f"{value:.3g}"


def about_row(row: Row) -> str:
    """What a pair was: version, settings and what it agreed on; or why it is missing."""
    if row.skipped is not None:
        return f"skipped, {row.skipped}"
    known: dict[str, str | int] = dict(row.parameters)
    for facts in row.facts[:1]:
        known |= facts
    details = ", ".join(f"{name} {value}" for name, value in known.items())
    text = f"{row.version}; {details}" if details else row.version
    return f"{text}; failed: {row.failed}" if row.failed else text
