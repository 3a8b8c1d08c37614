"""What a rekey every second costs: throughput, CPU time, and the latency of small messages.

Two pairs of gateways, alike but for the rekey interval, take turns in every round. Each rekey has
an ML-KEM exchange and a fresh QKD key in it. Beside throughput stand the CPU time per gigabyte and
the CPU time of a pair that moves nothing: they hardly change with what else the machine does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from bench.command import MEGABYTE, Benchmark, add_megabytes_option
from bench.generator import BLOCKING, LoadClient
from bench.host import Host
from bench.pairs import Kind
from bench.pairs.qproxy import QProxy
from bench.record import Figure, Record
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now
from bench.stats import MIN_ROUNDS, Spread, percentile
from bench.study import table_page
from bench.throughput import QUICK_BYTES
from bench.transfer import DIRECTIONS, blocking_transfer, limit_s

#: Names of the two rows.
EVERY_SECOND = "rekey every second"
OFF = "rekey off"
#: What a rekey every second may cost of throughput.
COST_GOAL = 0.02
#: A ratio of latencies this near to one, in the median, is "nothing visible".
VISIBLE = 0.05
#: Longer than a pair of gateways lives here, in seconds, and less than what ``require`` allows.
_NEVER_S = 299.0
_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class RekeyParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        sample_bytes: moved in one timed transfer; several rekeys, at a gigabyte a second.
        warmup_bytes: moved before it, untimed, in the same direction.
        ping_s: how long small messages go to and fro.
        idle_s: how long nothing is moved while CPU time is counted.
    """

    rounds: int = 5
    sample_bytes: int = 4_000_000_000
    warmup_bytes: int = 64_000_000
    ping_s: float = 5.0
    idle_s: float = 10.0


def run_rekey(parameters: RekeyParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="rekey",
        started=utc_now(),
        host=Host.here(),
        parameters={**asdict(parameters), "connections": 1},
        value="mb_per_s",
        cost="cpu_s_per_gb",
        figures=(
            Figure("mb_per_s", "throughput", "MB/s"),
            Figure("cpu_s_per_gb", "CPU time", "s/GB", less_is_better=True),
            Figure("p50_us", "small message, p50", "µs", less_is_better=True),
            Figure("p99_us", "small message, p99", "µs", less_is_better=True),
            Figure("p999_us", "small message, p99.9", "µs", less_is_better=True),
            Figure("cpu_ms_per_s", "CPU time while idle", "ms/s", less_is_better=True),
        ),
    )
    without = QProxy(OFF, rekey_interval_s=_NEVER_S)
    # What the other one is held against.
    without.kind = Kind.PEER
    pairs = [QProxy(EVERY_SECOND, rekey_interval_s=1.0), without]
    run_rounds(record, pairs, parameters.rounds, _measure(parameters), BLOCKING)
    return record


def _measure(parameters: RekeyParameters) -> Measure[LoadClient]:
    def measure(bench: Bench[LoadClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        for direction in DIRECTIONS:
            count = parameters.warmup_bytes
            bench.client.do(direction, limit_s(count), bytes=count)
            yield direction, blocking_transfer(bench, direction, parameters.sample_bytes)
        meter = CpuMeter(bench)
        latencies = bench.client.pings(parameters.ping_s, parameters.ping_s + _GRACE_S)
        yield "pings", {**_latencies(latencies), **meter.values()}
        meter = CpuMeter(bench)
        time.sleep(parameters.idle_s)
        values = meter.values()
        yield "idle", {**values, "cpu_ms_per_s": 1000 * values["proxies_cpu_s"] / parameters.idle_s}

    return measure


def _latencies(samples: list[float]) -> dict[str, float]:
    return {
        "count": float(len(samples)),
        "p50_us": 1e6 * percentile(samples, 0.50),
        "p99_us": 1e6 * percentile(samples, 0.99),
        "p999_us": 1e6 * percentile(samples, 0.999),
        "max_us": 1e6 * max(samples),
    }


def rekey_markdown(record: Record) -> str:
    """Ratios of the pair that rekeys to the one that does not, goals marked."""
    head = ["figure", f"{EVERY_SECOND}", OFF, "ratio", "goal", "verdict"]
    rows = [
        row
        for case, value, title in _FIGURES
        if (row := _row(record, case, value, title)) is not None
    ]
    notes = [*record.warnings()]
    on, off = (record.spread(row, "idle", "cpu_ms_per_s") for row in (EVERY_SECOND, OFF))
    if on is not None and off is not None:
        notes.insert(
            0,
            f"CPU time of both gateways together for one rekey, from the idle pairs:"
            f" {on.median - off.median:.1f} ms; every second, that is"
            f" {(on.median - off.median) / 1000:.2%} of one core"
            f" (counted in ticks of 10 ms over {record.parameters['idle_s']:g} s)",
        )
    return table_page(record, head, rows, notes)


_FIGURES = (
    ("down", "mb_per_s", "throughput down, MB/s"),
    ("up", "mb_per_s", "throughput up, MB/s"),
    ("down", "cpu_s_per_gb", "CPU down, s/GB"),
    ("up", "cpu_s_per_gb", "CPU up, s/GB"),
    ("pings", "p50_us", "small message p50, µs"),
    ("pings", "p99_us", "small message p99, µs"),
    ("pings", "p999_us", "small message p99.9, µs"),
    ("pings", "max_us", "small message longest, µs"),
    ("idle", "cpu_ms_per_s", "CPU idle, ms/s"),
)


def _row(record: Record, case: str, value: str, title: str) -> list[str] | None:
    ratio = record.ratio(case, EVERY_SECOND, OFF, value)
    if ratio is None:
        return None
    spreads = [record.spread(row, case, value) for row in (EVERY_SECOND, OFF)]
    form = ".2f" if value == "cpu_s_per_gb" else ".0f"
    cells = ["" if spread is None else _cell(spread, form) for spread in spreads]
    return [title, *cells, _cell(ratio.spread, ".3f"), *_judged(value, ratio.spread)]


def _cell(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"


def _judged(value: str, ratio: Spread) -> list[str]:
    """A goal, and whether it is met; too few rounds, or some on either side, decide nothing."""
    if value == "mb_per_s":
        limit = 1 - COST_GOAL
        goal, met, failed = f"≥ {limit:.2f}", ratio.low >= limit, ratio.high < limit
    elif value == "p99_us":
        limit = 1 + VISIBLE
        goal, met, failed = f"≤ {limit:.2f}", ratio.high <= limit, ratio.low > limit
    else:
        return ["", ""]
    if ratio.count < MIN_ROUNDS:
        return [goal, f"undecided: {ratio.count} round(s)"]
    return [goal, "met" if met else "**missed**" if failed else "undecided: noise"]


def _options(parser: argparse.ArgumentParser) -> None:
    add_megabytes_option(parser, RekeyParameters().sample_bytes)


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    if options.quick:
        parameters = RekeyParameters(options.rounds, QUICK_BYTES, ping_s=1.0, idle_s=1.0)
    else:
        parameters = RekeyParameters(options.rounds, options.megabytes * MEGABYTE)
    record = run_rekey(parameters)
    return record, rekey_markdown(record)


REKEY = Benchmark("rekey", "what a rekey every second costs", 5, _run, _options, minutes=5)
