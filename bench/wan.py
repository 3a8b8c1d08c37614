"""Long paths: how much of one a single connection fills, how soon, and what small requests wait.

Real TCP runs over a path of 1 Gbit/s with a constant delay and a queue as long as its round trip
(see :mod:`bench.path`), in a network namespace. Bulk runs for a set time; its speed is that of the
second half, and the path counts as filled when 90 % of its rate have arrived for a fifth of a
second. Small requests run alone, then beside bulk. Where the path's queue overflows, TCP loses
packets and all that share it wait; the row without proxies shows how much of that is the network's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench import namespace
from bench import path as path_module
from bench.command import Benchmark, one_subject
from bench.delayed import DelayedBench, DelayedMeasure, percentiles, run_delayed
from bench.long_paths import (
    PathParameters,
    add_path_options,
    inside,
    lead_of,
    path_record,
    run_part,
)
from bench.pairs import ProxyPair
from bench.path import PathSettings
from bench.progress import say
from bench.record import Figure, Record, Row
from bench.record_report import record_markdown
from bench.rounds import utc_now
from bench.transfer import DIRECTIONS

_NAME = "wan"
FIGURES = (
    Figure("mb_per_s", "throughput of one connection", "MB/s"),
    Figure("share_of_path", "part of the path's rate", ""),
    Figure("fill_s", "until the path is full", "s", less_is_better=True),
    Figure("p50_ms", "small request, p50", "ms", less_is_better=True),
    Figure("p99_ms", "small request, p99", "ms", less_is_better=True),
    Figure("cpu_s_per_gb", "CPU", "s/GB", less_is_better=True),
)


@dataclass(frozen=True, slots=True)
class WanParameters(PathParameters):
    """What a run measures.

    Attributes:
        least_queue_ms: a path's queue is as long as its round trip, but no shorter than this.
        bulk_s: how long a transfer sends.
    """

    rounds: int = 3
    round_trips_ms: tuple[float, ...] = (5.0, 30.0, 100.0)
    least_queue_ms: float = 20.0
    bulk_s: float = 6.0

    @property
    def paths(self) -> list[PathSettings]:
        """One for each round trip."""
        return [
            PathSettings(
                round_trip_ms,
                self.megabits_per_s,
                max(round_trip_ms, self.least_queue_ms),
                self.congestion_control,
            )
            for round_trip_ms in self.round_trips_ms
        ]


def run_wan(pairs: Sequence[ProxyPair], parameters: WanParameters) -> Record:
    """Measure, in a network namespace of its own. Without one, every row says why it is empty."""
    reason = path_module.missing() or namespace.missing()
    if reason is None:
        return inside(__name__, pairs, parameters)
    say(f"{_NAME}: skipped, {reason}")
    record = new_record(parameters)
    record.rows = [Row(pair.name, pair.kind, skipped=reason) for pair in pairs]
    record.finished = utc_now()
    return record


def new_record(parameters: WanParameters) -> Record:
    """An empty one."""
    return path_record(_NAME, parameters, FIGURES, value="mb_per_s", cost="cpu_s_per_gb")


def run_here(pairs: Sequence[ProxyPair], parameters: WanParameters) -> Record:
    """Measure in this process's network namespace."""
    record = new_record(parameters)
    run_delayed(record, pairs, parameters.rounds, parameters.paths, measure(parameters))
    return record


def measure(parameters: WanParameters) -> DelayedMeasure:
    """Bulk each way, then small requests alone and beside bulk each way."""

    def each(bench: DelayedBench) -> Iterator[tuple[str, Mapping[str, float]]]:
        name = bench.path.name if bench.path else "loopback"
        for direction in DIRECTIONS:
            yield f"{name} {direction}", bulk_values(bench, direction, parameters.bulk_s)
        yield f"{name} small alone", percentiles(bench.small(parameters.small_s))
        for direction in DIRECTIONS:
            lead_s = lead_of(bench.path, parameters.lead_s)
            latencies, _ = bench.small_beside(direction, lead_s, parameters.small_s)
            yield f"{name} small beside {direction}", percentiles(latencies)

    return each


def bulk_values(bench: DelayedBench, direction: str, duration_s: float) -> dict[str, float]:
    """One transfer's figures. Raises BenchError."""
    before = sum(bench.running.cpu_seconds().values())
    bench.begin_flow(direction, duration_s)
    flow = bench.end_flow(duration_s)
    used = sum(bench.running.cpu_seconds().values()) - before
    values = {"mb_per_s": flow.steady_mb_per_s}
    if bench.path is not None:
        values["share_of_path"] = flow.steady_mb_per_s / bench.path.payload_mb_per_s
        filled_s = flow.filled_s(bench.path.payload_mb_per_s)
        if filled_s is not None:
            values["fill_s"] = filled_s
    if bench.running.proxies and flow.total_bytes:
        values["cpu_s_per_gb"] = used / (flow.total_bytes / 1e9)
    return values


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    usual = WanParameters()
    quick_paths = (100.0,) if options.quick else usual.round_trips_ms
    parameters = WanParameters(
        rounds=options.rounds,
        congestion_control=options.congestion_control,
        round_trips_ms=tuple(options.round_trips_ms or quick_paths),
        bulk_s=3.0 if options.quick else usual.bulk_s,
        small_s=1.0 if options.quick else usual.small_s,
    )
    record = run_wan(one_subject(options), parameters)
    return record, record_markdown(record)


WAN = Benchmark(
    _NAME,
    "one connection and small requests over paths of 5, 30 and 100 ms",
    WanParameters().rounds,
    _run,
    add_path_options,
    minutes=40,
)


if __name__ == "__main__":
    run_part(WanParameters, run_here)
