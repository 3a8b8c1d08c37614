"""Plots of a record's figures: every round a dot, the median a bar, a panel for each case.

They are SVG, to be put into a page as they are. matplotlib makes them; it comes with
``pip install 'qproxy[report]'``, and without it a report says so and has none.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from bench.document import Plot
from bench.pairs import Kind
from bench.record import Figure, Record
from bench.record_report import figures_of, number
from bench.stats import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Figures of a record that are drawn, and panels of a plot.
MAX_FIGURES = 3
MAX_PANELS = 12
_COLUMNS = 3
_PANEL_WIDTH = 4.2
_ROW_HEIGHT = 0.27
#: A limit that is so many times the largest other bar is cut off; the panel is that much wider
#: than that bar.
_DWARFS = 2.0
_EDGE = 1.25
_COLOURS = {
    Kind.SUBJECT: "#0b6e4f",
    Kind.PEER: "#3b5b92",
    Kind.OTHER: "#9a6fb0",
    Kind.LIMIT: "#9aa0a6",
}


def missing() -> str | None:
    """Why there can be no plots, or None."""
    try:
        import matplotlib  # noqa: F401, ICN001, PLC0415
    except ImportError:
        return "matplotlib is not installed (pip install 'qproxy[report]')"
    return None


def plots_of(record: Record) -> list[Plot]:
    """A plot for each of the most telling figures.

    Raises:
        BenchError: matplotlib is missing.
    """
    if (reason := missing()) is not None:
        raise BenchError(reason)
    names: dict[str, Figure] = {}
    for case in record.cases:
        for figure in figures_of(record, case):
            names.setdefault(figure.name, figure)
    return [_plot(record, figure) for figure in list(names.values())[:MAX_FIGURES]]


def _plot(record: Record, figure: Figure) -> Plot:
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    cases = [
        case
        for case in record.cases
        if any(record.spread(row.name, case, figure.name) for row in record.rows)
    ][:MAX_PANELS]
    columns = min(_COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    height = lines * (0.9 + _ROW_HEIGHT * len(record.rows))
    unit = f", {figure.unit}" if figure.unit else ""
    title = f"{record.benchmark}: {figure.title}{unit}"
    # The salt keeps element names of several plots on one page apart.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9.0}
    with rc_context(settings):
        canvas = Canvas(figsize=(_PANEL_WIDTH * columns, height), layout="constrained")
        panels = canvas.subplots(lines, columns, squeeze=False).flatten()
        for panel, case in zip(panels, cases, strict=False):
            _panel(panel, record, case, figure)
        for panel in panels[len(cases) :]:
            panel.set_visible(False)
        better = "less" if figure.less_is_better else "more"
        canvas.suptitle(f"{title} ({better} is better)")
        output = io.StringIO()
        canvas.savefig(output, format="svg", metadata={"Date": None})
    return Plot(title, _element(output.getvalue()))


def _panel(panel: Axes, record: Record, case: str, figure: Figure) -> None:
    names: list[str] = []
    edge = _edge(record, case, figure)
    for row in record.rows:
        rounds = list(record.by_round(row.name, case, figure.name).values())
        spread = record.spread(row.name, case, figure.name)
        if spread is None:
            continue
        place = len(names)
        colour = _COLOURS[row.kind]
        panel.barh(place, spread.median, color=colour, alpha=0.35, height=0.65)
        panel.plot(rounds, [place] * len(rounds), ".", color=colour, markersize=5)
        if edge is not None and spread.median > edge:
            text = f"{number(spread.median)} →"
            panel.text(edge, place, text, ha="right", va="center", fontsize=8)
        names.append(row.name)
    if edge is not None:
        panel.set_xlim(0, edge)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_title(case, fontsize=9, loc="left")
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _edge(record: Record, case: str, figure: Figure) -> float | None:
    """Where a panel ends, if the path without proxies would dwarf all that is to be compared."""
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for row in record.rows:
        if (spread := record.spread(row.name, case, figure.name)) is not None:
            by_kind[row.kind is Kind.LIMIT].append(spread.high)
    limits, compared = by_kind[True], by_kind[False]
    if not limits or not compared or max(limits) <= _DWARFS * max(compared):
        return None
    return _EDGE * max(compared) if max(compared) > 0 else None


def _element(document: str) -> str:
    """The ``<svg>`` element of an SVG document, without what only a file of its own needs."""
    element = document[document.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
