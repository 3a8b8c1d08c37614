"""Requests a second on standing connections: each has one under way, and sends on its return.

A request is a message that comes back as it was sent, and every one is compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from bench.command import Benchmark, add_pair_option, one_subject
from bench.connections import per_thing
from bench.generator import EPOLL, Timings, TrafficClient
from bench.host import Host
from bench.latency import latency_values
from bench.pairs import ProxyPair
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now

_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class RequestsParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        connections: how many at once, one case for each.
        seconds: how long requests are sent, for each case.
        size: of a request and of its answer, in bytes.
    """

    rounds: int = 5
    connections: tuple[int, ...] = (1, 16, 64)
    seconds: float = 4.0
    size: int = 256


QUICK = RequestsParameters(rounds=1, connections=(1, 16), seconds=0.3)
FIGURES = (
    Figure("requests_per_s", "requests", "1/s"),
    Figure("p50_us", "p50", "µs", less_is_better=True),
    Figure("p99_us", "p99", "µs", less_is_better=True),
    Figure("cpu_us_per_request", "CPU time", "µs/request", less_is_better=True),
    Figure("near_us_per_request", "near's", "µs/request", less_is_better=True),
    Figure("far_us_per_request", "far's", "µs/request", less_is_better=True),
)


def run_requests(pairs: list[ProxyPair], parameters: RequestsParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="requests",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "connections": ", ".join(str(count) for count in parameters.connections),
            "generator": EPOLL.name,
        },
        value="requests_per_s",
        cost="cpu_us_per_request",
        figures=FIGURES,
    )
    run_rounds(record, pairs, parameters.rounds, _measure(parameters), EPOLL)
    return record


def _measure(parameters: RequestsParameters) -> Measure[TrafficClient]:
    def measure(bench: Bench[TrafficClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client, size = bench.client, parameters.size
        for connections in parameters.connections:
            client.open(bench.running.port, connections)
            client.requests(size, _WARM_UP_S)
            meter = CpuMeter(bench)
            timings = client.requests(size, parameters.seconds)
            case = "1 connection" if connections == 1 else f"{connections} connections"
            yield case, request_values(timings, meter.values())
            client.release()

    return measure


def request_values(timings: Timings, used: Mapping[str, float]) -> dict[str, float]:
    """A sample's figures."""
    return {
        "requests_per_s": len(timings.took_s) / timings.seconds,
        **latency_values(timings),
        **used,
        **per_thing(used, len(timings.took_s), "request"),
    }


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = replace(QUICK if options.quick else RequestsParameters(), rounds=options.rounds)
    record = run_requests(one_subject(options), parameters)
    return record, record_markdown(record)


REQUESTS = Benchmark(
    "requests", "requests a second on 1, 16 and 64 standing connections", 5, _run,
    add_pair_option, minutes=10,
)  # fmt: skip
