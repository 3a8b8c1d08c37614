"""New connections through a pair of proxies: how many a second, and how long to the first answer.

Each connection is made, sends a request as soon as it can, has its answer back and is closed, with
another one begun in its place. Either one at a time or many under way at once. What a pair does
after the client has closed is paid for by the connections that follow.

Every proxy but qproxy makes a TLS handshake for each connection, with certificates both ways. Their
rows say whether sessions are resumed, which saves most of it; by default they are not, and how far
a proxy keeps to that was tried before it was measured. qproxy opens a stream in a standing tunnel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from bench.command import Benchmark, add_pair_option, one_subject
from bench.generator import EPOLL, TrafficClient
from bench.host import Host
from bench.latency import latency_values
from bench.pairs import ProxyPair
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now

_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class ConnectionsParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        at_once: connections under way at once, one case for each.
        seconds: how long new ones are begun, for each case.
        size: of the request and of the answer, in bytes.
    """

    rounds: int = 5
    at_once: tuple[int, ...] = (1, 100)
    seconds: float = 4.0
    size: int = 64


QUICK = ConnectionsParameters(rounds=1, at_once=(1, 20), seconds=0.3)


def run_connections(pairs: list[ProxyPair], parameters: ConnectionsParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="connections",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "at_once": ", ".join(str(count) for count in parameters.at_once),
            "generator": EPOLL.name,
        },
        value="connections_per_s",
        cost="cpu_us_per_connection",
        figures=(
            Figure("connections_per_s", "new connections", "1/s"),
            Figure("p50_us", "to the first byte, p50", "µs", less_is_better=True),
            Figure("p99_us", "to the first byte, p99", "µs", less_is_better=True),
            Figure("cpu_us_per_connection", "CPU time", "µs/connection", less_is_better=True),
            Figure("near_us_per_connection", "near's", "µs/connection", less_is_better=True),
            Figure("far_us_per_connection", "far's", "µs/connection", less_is_better=True),
        ),
    )
    run_rounds(record, pairs, parameters.rounds, _measure(parameters), EPOLL)
    return record


def _measure(parameters: ConnectionsParameters) -> Measure[TrafficClient]:
    def measure(bench: Bench[TrafficClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client, port, size = bench.client, bench.running.port, parameters.size
        for at_once in parameters.at_once:
            client.arrivals(port, at_once, size, _WARM_UP_S)
            meter = CpuMeter(bench)
            timings = client.arrivals(port, at_once, size, parameters.seconds)
            used = meter.values()
            values = {
                "connections_per_s": len(timings.took_s) / timings.seconds,
                **latency_values(timings),
                **used,
                **per_thing(used, len(timings.took_s), "connection"),
            }
            yield "one at a time" if at_once == 1 else f"{at_once} at once", values

    return measure


def per_thing(used: Mapping[str, float], count: int, thing: str) -> dict[str, float]:
    """CPU time of each proxy, and of both, divided by how many things were done with it."""
    roles = {"cpu": "proxies", "near": "near", "far": "far"}
    return {
        f"{name}_us_per_{thing}": 1e6 * used[f"{role}_cpu_s"] / count
        for name, role in roles.items()
        if f"{role}_cpu_s" in used
    }


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = replace(QUICK if options.quick else ConnectionsParameters(), rounds=options.rounds)
    record = run_connections(one_subject(options), parameters)
    return record, record_markdown(record)


CONNECTIONS = Benchmark(
    "connections", "new connections a second, and how long to the first answer", 5, _run,
    add_pair_option, minutes=5,
)  # fmt: skip
