"""How a pair does with more and more streams: from one to ten thousand, all open at once.

At each number, with all of those streams open:

- how fast the last of them were opened;
- the memory each side has (proportional set size without mapped files, see :mod:`bench.memory`);
- the round trip of a small message on one of them, while the others rest;
- requests a second on all of them, each with one under way;
- throughput down over all of them.

Where a pair opens no more, that is said in the notes, and it is measured up to there. Descriptors
are allowed as many as the machine lets this program allow; a proxy needs two for each stream, but
for qproxy, which needs one.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from bench.command import Benchmark, add_pair_option, one_subject
from bench.connections import per_thing
from bench.generator import EPOLL, TrafficClient
from bench.host import Host
from bench.latency import latency_values
from bench.memory_use import MemoryUse
from bench.pairs import ProxyPair
from bench.progress import say
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now
from bench.stats import BenchError
from bench.transfer import epoll_transfer

#: Descriptors a process may have, where the machine lets that be set.
WANTED_DESCRIPTORS = 65536
#: Size of messages, in bytes.
MESSAGE_BYTES = 256


@dataclass(frozen=True, slots=True)
class GrowthParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        streams: how many, growing; those of before stay open.
        settle_s: rest before memory is looked at.
        ping_s: how long one message goes to and fro.
        request_s: how long requests are sent on all streams.
        sample_bytes: moved down over all streams together.
    """

    rounds: int = 3
    streams: tuple[int, ...] = (1, 10, 100, 1000, 5000, 10_000)
    settle_s: float = 1.0
    ping_s: float = 1.5
    request_s: float = 3.0
    sample_bytes: int = 500_000_000


QUICK = GrowthParameters(
    rounds=1,
    streams=(1, 10, 50),
    settle_s=0.1,
    ping_s=0.1,
    request_s=0.2,
    sample_bytes=20_000_000,
)


def run_growth(pairs: list[ProxyPair], parameters: GrowthParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="growth",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "streams": ", ".join(str(count) for count in parameters.streams),
            "message_bytes": MESSAGE_BYTES,
            "descriptors": allow_descriptors(),
            "generator": EPOLL.name,
        },
        value="requests_per_s",
        cost="cpu_us_per_request",
        figures=(
            Figure("requests_per_s", "requests", "1/s"),
            Figure("mb_per_s", "throughput down", "MB/s"),
            Figure("p50_us", "round trip, p50", "µs", less_is_better=True),
            Figure("p99_us", "round trip, p99", "µs", less_is_better=True),
            Figure("near_own_mib", "memory, near", "MiB", less_is_better=True),
            Figure("far_own_mib", "memory, far", "MiB", less_is_better=True),
            Figure("cpu_us_per_request", "CPU time", "µs/request", less_is_better=True),
            Figure("cpu_s_per_gb", "CPU time", "s/GB", less_is_better=True),
            Figure("opened_per_s", "opened", "1/s"),
        ),
    )
    run_rounds(record, pairs, parameters.rounds, _measure(parameters, record), EPOLL)
    return record


def allow_descriptors() -> int:
    """Let this process, and those it starts, have many descriptors. Gives how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(most, WANTED_DESCRIPTORS), most):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (OSError, ValueError):
            continue  # More than this process may allow itself.
        break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _measure(parameters: GrowthParameters, record: Record) -> Measure[TrafficClient]:
    #: The number at which a pair once gave up, by its name.
    too_many: dict[str, int] = {}

    def measure(bench: Bench[TrafficClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        name, opened = bench.name, 0
        for count in parameters.streams:
            if count >= too_many.get(name, count + 1):
                return
            try:
                values = _at(bench, parameters, opened, count)
            except BenchError as error:
                too_many[name] = count
                record.notes.append(f"{name} gave up at {count} streams: {error}")
                say(record.notes[-1])
                return
            opened = count
            yield "1 stream" if count == 1 else f"{count} streams", values

    return measure


def _at(
    bench: Bench[TrafficClient], parameters: GrowthParameters, opened: int, count: int
) -> dict[str, float]:
    """Everything at one number of streams. Raises BenchError."""
    client = bench.client
    values: dict[str, float] = {}
    opening_s = client.open(bench.running.port, count - opened)
    values["opened_per_s"] = (count - opened) / opening_s
    time.sleep(parameters.settle_s)
    for role, child in bench.running.proxies.items():
        use = MemoryUse.of(child.pid)
        values[f"{role}_own_mib"] = use.own_kib / 1024
        values[f"{role}_pss_mib"] = use.pss_kib / 1024
        values[f"{role}_processes"] = float(use.processes)
    pings = client.pings(MESSAGE_BYTES, parameters.ping_s)
    values |= latency_values(pings)
    meter = CpuMeter(bench)
    requests = client.requests(MESSAGE_BYTES, parameters.request_s)
    used = meter.values()
    values["requests_per_s"] = len(requests.took_s) / requests.seconds
    values |= per_thing(used, len(requests.took_s), "request")
    bulk = epoll_transfer(bench, "down", parameters.sample_bytes)
    costs = ("cpu_s_per_gb", "near_s_per_gb", "far_s_per_gb")
    values |= {name: bulk[name] for name in ("mb_per_s", "others", *costs) if name in bulk}
    return values


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = replace(QUICK if options.quick else GrowthParameters(), rounds=options.rounds)
    record = run_growth(one_subject(options), parameters)
    return record, record_markdown(record)


GROWTH = Benchmark(
    "growth", "from 1 to 10 000 streams: requests, throughput, round trips, memory", 3, _run,
    add_pair_option, minutes=25,
)  # fmt: skip
