"""The README's figures are those of the records it links."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from bench.goals import Outcome, outcomes
from bench.record import Record
from bench.store import load_record

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKED = sorted(set(re.findall(r"\]\((bench/results/[\w-]+\.json)\)", README)))
LOADED = [load_record(ROOT / link) for link in LINKED]
RECORDS = {record.benchmark: record for record in LOADED if isinstance(record, Record)}
OUTCOMES = [outcome for outcome in outcomes(RECORDS.values()) if outcome.spread is not None]

#: Rows of the table of pairs: their label, and where each of their figures is from.
FIGURES = {
    "bulk, one connection, down / up, MB/s": ("throughput", "mb_per_s", ("down", "up")),
    "the same, CPU s/GB": ("throughput", "cpu_s_per_gb", ("down", "up")),
    "bulk, 64 connections, down / up, MB/s": (
        "throughput",
        "mb_per_s",
        ("down, 64 connections", "up, 64 connections"),
    ),
    "round trip of 256 B, one at a time, p50, µs": (
        "latency",
        "p50_us",
        ("256 B, one at a time",),
    ),
    "round trip of 256 B, 1000 a second, p50, µs": ("latency", "p50_us", ("256 B, 1000/s",)),
    "round trip of 256 B, 4000 a second, p50, µs": ("latency", "p50_us", ("256 B, 4000/s",)),
    "new connections a second, one at a time": (
        "connections",
        "connections_per_s",
        ("one at a time",),
    ),
    "new connections a second, 100 at once": (
        "connections",
        "connections_per_s",
        ("100 at once",),
    ),
    "memory of an idle stream, both sides, KiB": ("memory", "kib_per_stream", ("idle",)),
}
PAIRS = ("qproxy", "stunnel4", "haproxy", "nginx stream", "ghostunnel")


def cells(label: str) -> list[str]:
    (row,) = (line for line in README.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


@pytest.mark.parametrize("label", FIGURES)
def test_a_row_of_the_table_of_pairs_holds_the_medians(label: str) -> None:
    benchmark, value, cases = FIGURES[label]
    record = RECORDS[benchmark]
    for pair, cell in zip(PAIRS, cells(label), strict=True):
        shown = cell.split(" / ") if cell else []
        measured = [list(record.by_round(pair, case, value).values()) for case in cases]
        assert bool(shown) == any(measured), pair
        for figure, samples in zip(shown, measured, strict=False):
            digits = len(figure.partition(".")[2])
            assert float(figure) == round(statistics.median(samples), digits), pair


@pytest.mark.parametrize(
    "outcome", OUTCOMES, ids=lambda outcome: f"{outcome.goal.title}, {outcome.case}"
)
def test_each_goal_stands_there_as_it_was_measured(outcome: Outcome) -> None:
    spread = outcome.spread
    assert spread is not None
    written = {
        f"{spread.median:.{digits}f}{times} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"
        for digits in (1, 2)
        for times in ("", " \N{MULTIPLICATION SIGN}")
    }
    assert any(text in README for text in written), written


def test_every_record_is_linked_that_a_goal_was_measured_by() -> None:
    stored = {path.name for path in (ROOT / "bench" / "results").glob("*-????-??-??.json")}
    assert stored == {Path(link).name for link in LINKED}
