"""Long paths: how much of one a single connection fills, how soon, and what small requests wait.

Real TCP runs over a path of 1 Gbit/s with a constant delay and a queue as long as its round trip
(see :mod:`bench.path`), in a network namespace. Bulk runs for a set time; its speed is that of the
second half, and the path counts as filled when 90 % of its rate have arrived for a fifth of a
second. Small requests run alone, then beside bulk. Where the path's queue overflows, TCP loses
packets and all that share it wait; the row without proxies shows how much of that is the network's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import namespace
from bench import path as path_module
from bench.children import sigterm_as_exit
from bench.command import Benchmark, add_pair_option, chosen_pairs, one_subject, positive
from bench.delayed import DelayedBench, DelayedMeasure, percentiles, run_delayed
from bench.host import Host
from bench.pairs import ProxyPair
from bench.path import CONGESTION_CONTROL, PathSettings
from bench.progress import say
from bench.record import Figure, Record, Row
from bench.record_report import record_markdown
from bench.rounds import utc_now
from bench.store import load_record
from bench.throughput import DIRECTIONS

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
class WanParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        round_trips_ms: of the paths.
        megabits_per_s: of the paths.
        least_queue_ms: a path's queue is as long as its round trip, but no shorter than this.
        congestion_control: TCP's on the paths.
        bulk_s: how long a transfer sends.
        small_s: how long small requests are sent.
        lead_s: how long bulk runs before small requests beside it, and 15 round trips more.
    """

    rounds: int = 3
    round_trips_ms: tuple[float, ...] = (5.0, 30.0, 100.0)
    megabits_per_s: float = 1000.0
    least_queue_ms: float = 20.0
    congestion_control: str = CONGESTION_CONTROL
    bulk_s: float = 6.0
    small_s: float = 4.0
    lead_s: float = 1.0

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
        return inside(__name__, pairs, asdict(parameters))
    say(f"{_NAME}: skipped, {reason}")
    record = new_record(parameters)
    record.rows = [Row(pair.name, pair.kind, skipped=reason) for pair in pairs]
    record.finished = utc_now()
    return record


def inside(module: str, pairs: Sequence[ProxyPair], parameters: Mapping[str, object]) -> Record:
    """Let a benchmark's module run as a program in a network namespace, and read its record."""
    names = [pair.name for pair in pairs]
    with tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory:
        output = Path(directory) / "record.json"
        namespace.run_inside(module, [json.dumps(parameters), json.dumps(names), str(output)])
        record = load_record(output)
    if not isinstance(record, Record):
        raise TypeError(f"expected a record of pairs, got {type(record).__name__}")
    return record


def new_record(parameters: WanParameters) -> Record:
    """An empty one."""
    return Record(
        benchmark=_NAME,
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "round_trips_ms": ", ".join(f"{each:g}" for each in parameters.round_trips_ms),
            "path_tools": namespace.tools(),
        },
        value="mb_per_s",
        cost="cpu_s_per_gb",
        figures=FIGURES,
    )


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


def lead_of(path: PathSettings | None, lead_s: float) -> float:
    """How long bulk runs before small requests beside it, in seconds: it has to fill the path."""
    return lead_s if path is None else lead_s + 15 * path.round_trip_ms / 1000


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


def add_path_options(parser: argparse.ArgumentParser) -> None:
    """``--round-trip MS``, again and again, and ``--congestion-control``."""
    parser.add_argument(
        "--congestion-control",
        default=CONGESTION_CONTROL,
        metavar="NAME",
        help="TCP's on the paths, such as bbr (default: %(default)s)",
    )
    parser.add_argument(
        "--round-trip",
        action="append",
        dest="round_trips_ms",
        type=positive,
        metavar="MS",
        help="only paths of this round trip, in milliseconds; may be given again",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    add_pair_option(parser)
    add_path_options(parser)


WAN = Benchmark(
    _NAME,
    "one connection and small requests over paths of 5, 30 and 100 ms",
    WanParameters().rounds,
    _run,
    _options,
    minutes=40,
)


def main(arguments: Sequence[str]) -> None:
    """The part that runs inside the namespace."""
    parameters = WanParameters(**json.loads(arguments[0]))
    record = new_record(parameters)
    pairs = chosen_pairs(argparse.Namespace(pairs=json.loads(arguments[1])))
    run_delayed(record, pairs, parameters.rounds, parameters.paths, measure(parameters))
    record.write(Path(arguments[2]))


if __name__ == "__main__":
    with sigterm_as_exit():
        main(sys.argv[1:])
