"""What one bulk stream costs small requests beside it, in the same tunnel where there is one.

Small requests run alone, then beside a bulk transfer on another connection, down and up: on
loopback, where the proxies' CPU is what both want, and over a delayed path with a window (see
:func:`bench.path_tcp.window_segments`): full, yet with an empty queue, so that what is added was
added by the programs at its ends.
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
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.transfer import DIRECTIONS

_NAME = "fairness"
FIGURES = (
    Figure("added_p99_ms", "added to p99 by bulk", "ms", less_is_better=True),
    Figure("p99_ms", "small request beside bulk, p99", "ms", less_is_better=True),
    Figure("p50_ms", "small request beside bulk, p50", "ms", less_is_better=True),
    Figure("alone_p99_ms", "small request alone, p99", "ms", less_is_better=True),
    Figure("added_p50_ms", "added to p50 by bulk", "ms", less_is_better=True),
    Figure("mb_per_s", "throughput of the bulk", "MB/s"),
)


@dataclass(frozen=True, slots=True)
class FairnessParameters(PathParameters):
    """What a run measures. Loopback comes first, always.

    Attributes:
        queue_ms: of the paths; their windows keep it empty.
    """

    rounds: int = 5
    round_trips_ms: tuple[float, ...] = (100.0,)
    small_s: float = 6.0
    queue_ms: float = 200.0

    @property
    def paths(self) -> list[PathSettings]:
        """The delayed ones."""
        return [
            PathSettings(
                round_trip_ms,
                self.megabits_per_s,
                self.queue_ms,
                self.congestion_control,
                window=True,
            )
            for round_trip_ms in self.round_trips_ms
        ]


def run_fairness(pairs: Sequence[ProxyPair], parameters: FairnessParameters) -> Record:
    """Measure. Without network namespaces on loopback alone, and the record says so."""
    reason = path_module.missing() or namespace.missing()
    if reason is None:
        return inside(__name__, pairs, parameters)
    say(f"{_NAME}: delayed paths skipped, {reason}")
    record = new_record(parameters)
    record.notes.append(f"delayed paths skipped: {reason}")
    run_delayed(record, pairs, parameters.rounds, [None], measure(parameters))
    return record


def new_record(parameters: FairnessParameters) -> Record:
    """An empty one."""
    return path_record(_NAME, parameters, FIGURES, value="p99_ms")


def run_here(pairs: Sequence[ProxyPair], parameters: FairnessParameters) -> Record:
    """Measure in this process's network namespace."""
    record = new_record(parameters)
    paths = [None, *parameters.paths]
    run_delayed(record, pairs, parameters.rounds, paths, measure(parameters))
    return record


def measure(parameters: FairnessParameters) -> DelayedMeasure:
    """Small requests alone, then beside bulk each way."""

    def each(bench: DelayedBench) -> Iterator[tuple[str, Mapping[str, float]]]:
        name = bench.path.name if bench.path else "loopback"
        alone = percentiles(bench.small(parameters.small_s))
        for direction in DIRECTIONS:
            latencies, flow = bench.small_beside(
                direction, lead_of(bench.path, parameters.lead_s), parameters.small_s
            )
            beside = percentiles(latencies)
            yield (
                f"{name}, bulk {direction}",
                {
                    **beside,
                    **{f"alone_{key}": value for key, value in alone.items()},
                    **{f"added_{key}": beside[key] - alone[key] for key in beside},
                    "mb_per_s": flow.steady_mb_per_s,
                },
            )

    return each


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = FairnessParameters(
        rounds=options.rounds,
        congestion_control=options.congestion_control,
        round_trips_ms=tuple(options.round_trips_ms or FairnessParameters().round_trips_ms),
        small_s=1.0 if options.quick else FairnessParameters().small_s,
    )
    record = run_fairness(one_subject(options), parameters)
    return record, record_markdown(record)


FAIRNESS = Benchmark(
    _NAME,
    "small requests with and without a bulk stream beside them",
    FairnessParameters().rounds,
    _run,
    add_path_options,
    minutes=30,
)


if __name__ == "__main__":
    run_part(FairnessParameters, run_here)
