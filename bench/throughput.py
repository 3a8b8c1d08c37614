"""Bulk throughput of one connection through a pair of proxies, down and up.

Down is from the service to the client, up from the client to the service. The time runs on the
client from its request to the last byte (down) or to the service's word that it has the last byte
(up), on a connection that has moved a warm-up before. CPU seconds are user and system time of both
proxies of the pair; the load generator's and the KMEs' are not in them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.command import (
    MEGABYTE,
    Benchmark,
    add_megabytes_option,
    add_pair_option,
    chosen_pairs,
)
from bench.generator import BLOCKING, LoadClient
from bench.host import Host
from bench.pairs import ProxyPair
from bench.record import Figure, Record
from bench.report import markdown
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now

#: No machine worth measuring on is slower than this, in bytes per second.
_SLOWEST_BPS = 2_000_000
_GRACE_S = 30.0
DIRECTIONS = ("down", "up")


@dataclass(frozen=True, slots=True)
class ThroughputParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        sample_bytes: moved in one timed transfer.
        warmup_bytes: moved before it, untimed, in the same direction.
        check_bytes: moved each way before the first round of a pair, compared by SHA-256.
    """

    rounds: int = 5
    sample_bytes: int = 512_000_000
    warmup_bytes: int = 64_000_000
    check_bytes: int = 32_000_000


def run_throughput(pairs: Sequence[ProxyPair], parameters: ThroughputParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="throughput",
        started=utc_now(),
        host=Host.here(),
        parameters={**asdict(parameters), "connections": 1},
        value="mb_per_s",
        cost="cpu_s_per_gb",
        figures=(
            Figure("mb_per_s", "throughput", "MB/s"),
            Figure("cpu_s_per_gb", "CPU time", "s/GB", less_is_better=True),
        ),
    )
    run_rounds(record, pairs, parameters.rounds, _measure(parameters), BLOCKING)
    return record


def throughput_markdown(record: Record) -> str:
    """The record's tables. A megabyte is 10^6 bytes, a gigabyte 10^9."""
    return markdown(record, unit="MB/s", cost_unit="CPU s/GB")


def _measure(parameters: ThroughputParameters) -> Measure[LoadClient]:
    def measure(bench: Bench[LoadClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client = bench.client
        if bench.first:
            for direction in DIRECTIONS:
                count = parameters.check_bytes
                client.do(f"check_{direction}", limit_s(count), bytes=count)
        for direction in DIRECTIONS:
            count = parameters.warmup_bytes
            client.do(direction, limit_s(count), bytes=count)
            yield direction, timed_transfer(bench, direction, parameters.sample_bytes)

    return measure


def timed_transfer(bench: Bench[LoadClient], direction: str, count: int) -> dict[str, float]:
    """Move bytes one way. Gives speed and cost. Raises BenchError."""
    meter = CpuMeter(bench)
    seconds = bench.client.do(direction, limit_s(count), bytes=count)
    values = {
        "bytes": float(count),
        "seconds": seconds,
        "mb_per_s": count / 1e6 / seconds,
        **meter.values(),
    }
    if bench.running.proxies:
        values["cpu_s_per_gb"] = values["proxies_cpu_s"] / (count / 1e9)
    return values


def limit_s(count: int) -> float:
    """How long moving so many bytes may take, in seconds."""
    return _GRACE_S + count / _SLOWEST_BPS


#: Bytes of a timed transfer that only shows that everything works.
QUICK_BYTES = 64_000_000


def _options(parser: argparse.ArgumentParser) -> None:
    add_megabytes_option(parser, ThroughputParameters().sample_bytes)
    add_pair_option(parser)


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    sample_bytes = QUICK_BYTES if options.quick else options.megabytes * MEGABYTE
    parameters = ThroughputParameters(rounds=options.rounds, sample_bytes=sample_bytes)
    record = run_throughput(chosen_pairs(options), parameters)
    return record, throughput_markdown(record)


THROUGHPUT = Benchmark(
    "throughput", "bulk throughput of one connection, down and up", 5, _run, _options
)
