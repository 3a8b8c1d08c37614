"""How long a small message takes to the service and back through a pair of proxies.

- **one at a time**: the next message leaves when the last one is back, on one connection. The
  shortest a user can see; cores fall asleep in between, for every pair alike.
- **at a rate**: messages leave at fixed times, over several connections in turn, whatever is under
  way. Times count from when a message was to leave, so a stall is seen by every message it held
  up. Those that never came back count, too, with the time until they were given up.

Beside each figure stands what the pair *adds*: the difference to the same figure of the direct path
in the same round. Every message is compared with what was sent. What the load generator is late at
sending is in the times, of all pairs and of the direct path.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from bench.awake import cores_awake
from bench.children import Child
from bench.command import Benchmark, add_pair_option, one_subject
from bench.generator import EPOLL, Timings, TrafficClient
from bench.host import Host
from bench.pairs import Kind, ProxyPair
from bench.record import Figure, Record, Sample
from bench.record_report import record_markdown
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now
from bench.stats import percentile

#: Shares of messages that a figure covers, by the figure's name.
_PERCENTILES = {"p50_us": 0.50, "p99_us": 0.99, "p999_us": 0.999}
#: Messages that go before those that are timed, for so long, in seconds.
_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Pace:
    """Messages at fixed times.

    Attributes:
        rate_per_s: messages a second, all connections together.
        size: of a message, in bytes.
    """

    rate_per_s: float
    size: int

    @property
    def name(self) -> str:
        """The case's name."""
        return f"{self.size} B, {self.rate_per_s:g}/s"


@dataclass(frozen=True, slots=True)
class LatencyParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        sizes: of messages one at a time, in bytes.
        ping_s: how long each of those sizes goes to and fro.
        paces: messages at a rate.
        paced_s: how long each of those goes on.
        paced_connections: on so many connections in turn.
        awake: keep cores from sleeping.
    """

    rounds: int = 5
    sizes: tuple[int, ...] = (64, 256, 1024, 16384)
    ping_s: float = 3.0
    paces: tuple[Pace, ...] = (
        Pace(200, 256),
        *(Pace(1000, size) for size in (64, 256, 1024, 16384)),
        Pace(4000, 256),
    )
    paced_s: float = 5.0
    paced_connections: int = 8
    awake: bool = False


QUICK = LatencyParameters(
    rounds=1, sizes=(256,), ping_s=0.3, paces=(Pace(500, 256),), paced_s=0.5, paced_connections=4
)


def run_latency(pairs: list[ProxyPair], parameters: LatencyParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="latency",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "sizes": ", ".join(str(size) for size in parameters.sizes),
            "paces": "; ".join(pace.name for pace in parameters.paces),
            "generator": EPOLL.name,
        },
        value="p50_us",
        cost="cpu_us_per_message",
        figures=(
            Figure("p50_us", "p50", "µs", less_is_better=True),
            Figure("p99_us", "p99", "µs", less_is_better=True),
            Figure("p999_us", "p99.9", "µs", less_is_better=True),
            Figure("added_p50_us", "added p50", "µs", less_is_better=True),
            Figure("added_p99_us", "added p99", "µs", less_is_better=True),
            Figure("added_p999_us", "added p99.9", "µs", less_is_better=True),
            Figure("unanswered", "unanswered", "messages", less_is_better=True),
            Figure("cpu_us_per_message", "CPU time", "µs/message", less_is_better=True),
        ),
    )
    with cores_awake(wanted=parameters.awake) as spinning:
        run_rounds(record, pairs, parameters.rounds, _measure(parameters, spinning), EPOLL)
    add_differences(record)
    return record


def _measure(parameters: LatencyParameters, spinning: Sequence[Child]) -> Measure[TrafficClient]:
    def measure(bench: Bench[TrafficClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client, port = bench.client, bench.running.port
        # Whose CPU time is ours, not other people's.
        bench.running.helpers.extend(spinning)
        for size in parameters.sizes:
            client.open(port, 1)
            client.pings(size, _WARM_UP_S)
            meter = CpuMeter(bench)
            timings = client.pings(size, parameters.ping_s)
            yield f"{size} B, one at a time", _values(timings, meter.values())
            client.release()
        for pace in parameters.paces:
            client.open(port, parameters.paced_connections)
            client.requests(pace.size, _WARM_UP_S)
            meter = CpuMeter(bench)
            timings = client.paced(pace.size, parameters.paced_s, pace.rate_per_s)
            yield pace.name, _values(timings, meter.values())
            client.release()

    return measure


def _values(timings: Timings, used: Mapping[str, float]) -> dict[str, float]:
    """A sample's figures, of times and of CPU time."""
    return {
        **latency_values(timings),
        **used,
        "cpu_us_per_message": 1e6 * used["proxies_cpu_s"] / len(timings.took_s),
    }


def latency_values(timings: Timings) -> dict[str, float]:
    """Percentiles and counts."""
    values = {
        "count": float(len(timings.took_s)),
        "seconds": timings.seconds,
        **{name: 1e6 * percentile(timings.took_s, share) for name, share in _PERCENTILES.items()},
        "max_us": 1e6 * max(timings.took_s),
    }
    if timings.late_s is not None:
        values["unanswered"] = float(timings.unanswered)
        values["late_p50_us"] = 1e6 * percentile(timings.late_s, 0.50)
        values["late_p99_us"] = 1e6 * percentile(timings.late_s, 0.99)
    return values


def add_differences(record: Record) -> None:
    """Put what each pair adds to the direct path into its samples, where both were measured."""
    limits = {row.name for row in record.rows if row.kind is Kind.LIMIT}
    direct = {
        (sample.round, sample.case): sample.values
        for sample in record.samples
        if sample.row in limits
    }

    def with_differences(sample: Sample) -> Sample:
        below = direct.get((sample.round, sample.case))
        if sample.row in limits or below is None:
            return sample
        added = {f"added_{name}": sample.values[name] - below[name] for name in _PERCENTILES}
        return replace(sample, values={**sample.values, **added})

    record.samples = [with_differences(sample) for sample in record.samples]


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    chosen = QUICK if options.quick else LatencyParameters()
    parameters = replace(chosen, rounds=options.rounds, awake=options.awake)
    record = run_latency(one_subject(options), parameters)
    return record, record_markdown(record)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--awake", action="store_true", help="keep cores from sleeping")
    add_pair_option(parser)


LATENCY = Benchmark(
    "latency", "round trips of small messages, at a rate and one at a time", 5, _run, _options,
    minutes=27,
)  # fmt: skip
