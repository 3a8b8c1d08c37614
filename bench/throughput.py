"""Bulk throughput through a pair of proxies: down, up, both ways at once; over many connections.

Down is from the service to the client, up from the client to the service. The time runs on the
client from its request to the last byte of the last connection (down) or to the service's word that
it has that byte (up), on connections that have moved a warm-up before. Connections share the bytes
equally. Both ways at once counts the bytes of both.

CPU seconds are user and system time of the proxies: near is beside the client, far beside the
service. The load generator's have names of their own, and the KMEs' are not in them. Before a pair
is timed, bytes have gone every way over as many connections and every one of them was compared.

The epoll generator leaves the proxies as much of the machine as it can. The blocking one, with one
connection, one way at a time and a copy of every byte received, is the one of older records.
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
from bench.generator import BLOCKING, EPOLL, LoadClient, TrafficClient
from bench.host import Host
from bench.pairs import ProxyPair
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.rounds import Bench, Measure, run_rounds, utc_now
from bench.transfer import BOTH, DIRECTIONS, blocking_transfer, epoll_transfer, limit_s


@dataclass(frozen=True, slots=True)
class ThroughputParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        sample_bytes: moved in one timed transfer, each way, by all connections together.
        warmup_bytes: moved before it, untimed, in the same direction.
        check_bytes: moved each way before the first round of a pair, every byte compared.
        connections: how many at once, one case for each; the blocking generator has but one.
        generator: the load generator's name.
    """

    rounds: int = 5
    sample_bytes: int = 1_000_000_000
    warmup_bytes: int = 64_000_000
    check_bytes: int = 32_000_000
    connections: tuple[int, ...] = (1, 8, 64)
    generator: str = EPOLL.name


#: Bytes of a timed transfer, and of its warm-up, that only shows that everything works.
QUICK_BYTES = 64_000_000
QUICK_WARMUP_BYTES = 4_000_000


def run_throughput(pairs: Sequence[ProxyPair], parameters: ThroughputParameters) -> Record:
    """Measure. Progress goes to standard error."""
    blocking = parameters.generator == BLOCKING.name
    counts = (1,) if blocking else parameters.connections
    record = Record(
        benchmark="throughput",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "connections": ", ".join(str(count) for count in counts),
        },
        value="mb_per_s",
        cost="cpu_s_per_gb",
        figures=(
            Figure("mb_per_s", "throughput", "MB/s"),
            Figure("cpu_s_per_gb", "CPU time", "s/GB", less_is_better=True),
            Figure("near_s_per_gb", "near's", "s/GB", less_is_better=True),
            Figure("far_s_per_gb", "far's", "s/GB", less_is_better=True),
        ),
    )
    if blocking:
        run_rounds(record, pairs, parameters.rounds, _measure_blocking(parameters), BLOCKING)
    else:
        run_rounds(record, pairs, parameters.rounds, _measure(parameters), EPOLL)
    return record


def _measure(parameters: ThroughputParameters) -> Measure[TrafficClient]:
    def measure(bench: Bench[TrafficClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client = bench.client
        for connections in parameters.connections:
            client.open(bench.running.port, connections)
            if bench.first:
                _check(client, parameters.check_bytes)
            for direction in (*DIRECTIONS, BOTH):
                warmup = parameters.warmup_bytes
                client.bulk(direction, warmup, limit_s(warmup))
                case = direction if direction != BOTH else "both ways"
                if connections > 1:
                    case += f", {connections} connections"
                yield case, epoll_transfer(bench, direction, parameters.sample_bytes)
            client.release()

    return measure


def _check(client: TrafficClient, count: int) -> None:
    for direction in (*DIRECTIONS, BOTH):
        client.bulk(direction, count, limit_s(count), checked=True)


def _measure_blocking(parameters: ThroughputParameters) -> Measure[LoadClient]:
    def measure(bench: Bench[LoadClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client = bench.client
        if bench.first:
            for direction in DIRECTIONS:
                count = parameters.check_bytes
                client.do(f"check_{direction}", limit_s(count), bytes=count)
        for direction in DIRECTIONS:
            count = parameters.warmup_bytes
            client.do(direction, limit_s(count), bytes=count)
            yield direction, blocking_transfer(bench, direction, parameters.sample_bytes)

    return measure


def _options(parser: argparse.ArgumentParser) -> None:
    add_megabytes_option(parser, ThroughputParameters().sample_bytes)
    parser.add_argument(
        "--generator",
        choices=[EPOLL.name, BLOCKING.name],
        default=EPOLL.name,
        help="load generator (default: %(default)s)",
    )
    add_pair_option(parser)


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    sizes = (
        {"sample_bytes": QUICK_BYTES, "warmup_bytes": QUICK_WARMUP_BYTES}
        if options.quick
        else {"sample_bytes": options.megabytes * MEGABYTE}
    )
    parameters = ThroughputParameters(rounds=options.rounds, generator=options.generator, **sizes)
    record = run_throughput(chosen_pairs(options), parameters)
    return record, record_markdown(record)


THROUGHPUT = Benchmark(
    "throughput", "bulk throughput of 1, 8 and 64 connections, down, up and both ways", 5, _run,
    _options, minutes=7,
)  # fmt: skip
