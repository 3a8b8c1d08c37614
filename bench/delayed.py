"""Rounds over delayed paths: every pair of proxies on every path, bulk and small requests on it."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import path as path_module
from bench import path_tcp
from bench.children import READY_S, cpu_seconds, wait_until
from bench.generator import Program
from bench.host import OthersMeter, load_average
from bench.pairs import ProxyPair, Running, Site
from bench.pairs.base import LOOPBACK
from bench.path import FAR_HOST, PATH_HOST, PathSettings
from bench.progress import bar, say, told
from bench.record import Record, Row, Sample
from bench.rounds import add_rows, file_name, utc_now
from bench.stats import BenchError, percentile
from qproxy.pki import init_pki

#: A request and its answer, in bytes, and how often one leaves, in seconds.
SMALL_BYTES = 256
SMALL_EVERY_S = 0.005
#: A path counts as filled when this part of its rate has arrived over :data:`FILL_WINDOW_S`.
FILLED = 0.9
FILL_WINDOW_S = 0.2
#: Beyond its own time, what a transfer may take to drain, in seconds.
GRACE_S = 60.0
_MODULE = "bench.flow"
_EVERYWHERE = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Flow:
    """One bulk transfer as its receiver saw it.

    Attributes:
        interval_s: length of an interval.
        intervals: bytes that came in each, from the request on: down, from its leaving the client;
            up, from its coming to the service.
        duration_s: for how long the sender was to send.
    """

    interval_s: float
    intervals: list[int]
    duration_s: float

    @property
    def total_bytes(self) -> int:
        """All that came."""
        return sum(self.intervals)

    @property
    def steady_mb_per_s(self) -> float:
        """Speed in the second half of the time."""
        first, last = (round(part * self.duration_s / self.interval_s) for part in (0.5, 1.0))
        return sum(self.intervals[first:last]) / 1e6 / ((last - first) * self.interval_s)

    def filled_s(self, mb_per_s: float) -> float | None:
        """When the path was full first, in seconds, or None where it never was.

        Args:
            mb_per_s: what the path carries.
        """
        width = round(FILL_WINDOW_S / self.interval_s)
        enough = FILLED * mb_per_s * 1e6 * width * self.interval_s
        for end in range(width, len(self.intervals) + 1):
            if sum(self.intervals[end - width : end]) >= enough:
                return end * self.interval_s
        return None


@dataclass(frozen=True, slots=True)
class DelayedBench:
    """One pair at work on one path, with clients in front of it.

    Attributes:
        running: the pair.
        path: what lies between its proxies; None for loopback.
        bulk: client for bulk.
        requests: client for small requests.
    """

    running: Running
    path: PathSettings | None
    bulk: Program
    requests: Program

    def begin_flow(self, direction: str, duration_s: float) -> None:
        """Start a bulk transfer. :meth:`end_flow` waits for it."""
        self._tell(self.bulk, "flow", duration_s, direction=direction)

    def end_flow(self, duration_s: float) -> Flow:
        """Wait for the transfer. Raises BenchError."""
        answer = _answer(self.bulk, duration_s + GRACE_S)
        return Flow(answer["interval_s"], answer["intervals"], duration_s)

    def small(self, duration_s: float) -> list[float]:
        """Small requests for a while; how long each took, in seconds. Raises BenchError."""
        how = {"bytes": SMALL_BYTES, "every_us": round(SMALL_EVERY_S * 1e6)}
        lead_s = settle_s(self.path)
        self._tell(
            self.requests, "small", duration_s, lead_milliseconds=round(lead_s * 1000), **how
        )
        answer = _answer(self.requests, lead_s + duration_s + GRACE_S)
        return [latency_us / 1e6 for latency_us in answer["latencies_us"]]

    def small_beside(
        self, direction: str, lead_s: float, duration_s: float
    ) -> tuple[list[float], Flow]:
        """Small requests beside a bulk transfer that had some time to get going."""
        whole_s = lead_s + settle_s(self.path) + duration_s
        self.begin_flow(direction, whole_s)
        time.sleep(lead_s)
        latencies = self.small(duration_s)
        return latencies, self.end_flow(whole_s)

    def probe(self) -> None:
        """One byte there and back. Raises BenchError."""
        self._tell(self.requests, "probe", 0.0)
        _answer(self.requests, READY_S)

    def _tell(self, program: Program, action: str, duration_s: float, **more: object) -> None:
        where = {"host": self.running.host, "port": self.running.port}
        request = {"do": action, "milliseconds": round(duration_s * 1000), **where, **more}
        program.write_line(json.dumps(request))


def _answer(program: Program, timeout_s: float) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(program.read_line(timeout_s))
    if "error" in answer:
        raise BenchError(str(answer["error"]))
    return answer


#: Measures one pair on one path: gives (case, values) for each case.
DelayedMeasure = Callable[[DelayedBench], Iterator[tuple[str, Mapping[str, float]]]]


def settle_s(path: PathSettings | None) -> float:
    """How long small requests go before they count, in seconds."""
    return 0.2 if path is None else 0.2 + 10 * path.round_trip_ms / 1000


def percentiles(latencies: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    return {
        "p50_ms": 1000 * percentile(latencies, 0.50),
        "p99_ms": 1000 * percentile(latencies, 0.99),
    }


@contextlib.contextmanager
def delayed_path(
    settings: PathSettings | None, facts: dict[str, str | int]
) -> Iterator[tuple[str, str, list[Program]]]:
    """Set up a path in this network namespace.

    Args:
        settings: of the path; None for loopback.
        facts: at the end, ``path`` in it tells how the path did.

    Gives:
        Where the far side listens, where the near side finds it, and the path's processes.
    """
    if settings is None:
        yield LOOPBACK, LOOPBACK, []
        return
    arguments = ["--round-trip-ms", f"{settings.round_trip_ms:g}"]
    arguments += ["--megabits", f"{settings.megabits_per_s:g}"]
    arguments += ["--queue-ms", f"{settings.queue_ms:g}"]
    with Program(*arguments, module=path_module.__name__) as relay:
        if relay.read_line(READY_S) != "ready":
            raise BenchError("the delayed path did not come up")
        path_tcp.set_up(settings)
        yield FAR_HOST, PATH_HOST, [relay]
        relay.write_line("stop")
        told = json.loads(relay.read_line(READY_S))
        told_text = ", ".join(f"{name} {value:g}" for name, value in told.items())
        facts["path"] = f"{settings.name}: {told_text}"
        say(f"path {facts['path']}")


def run_delayed(
    record: Record,
    pairs: Sequence[ProxyPair],
    rounds: int,
    paths: Sequence[PathSettings | None],
    measure: DelayedMeasure,
) -> None:
    """Measure every pair on every path once in each round; rows and samples go into the record.

    A pair that is missing is skipped, one that fails is dropped; both are named in their row.
    """
    present = add_rows(record, pairs)
    steps = list(itertools.product(range(rounds), paths, present))
    with (
        tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory,
        bar(record.benchmark, len(steps)) as advance,
    ):
        base = Path(directory)
        init_pki(base / "pki")
        for number, path, (pair, row) in steps:
            if row.failed is None:
                where = base / file_name(f"{number}-{path and path.name}-{pair.name}")
                _measure_once(record, (pair, row), number, (path, where), measure)
            advance()
    record.finished = utc_now()


def _measure_once(
    record: Record,
    subject: tuple[ProxyPair, Row],
    number: int,
    place: tuple[PathSettings | None, Path],
    measure: DelayedMeasure,
) -> None:
    pair, row = subject
    path, directory = place
    try:
        with _at_work(pair, path, directory) as (bench, load):
            for case, values in _metered(bench, load, measure):
                record.samples.append(Sample(row.name, number, case, values))
                say(f"round {number + 1}  {row.name:<20} {case:<18} {told(values)}")
        row.facts.append(dict(bench.running.facts))
    except (BenchError, OSError) as error:
        row.failed = f"round {number + 1}, {path.name if path else 'loopback'}: {error}"
        say(f"{row.name}: {row.failed}")


@contextlib.contextmanager
def _at_work(
    pair: ProxyPair, path: PathSettings | None, directory: Path
) -> Iterator[tuple[DelayedBench, list[Program]]]:
    """A path, a service, clients and the pair, and whose CPU time is the load's."""
    host = LOOPBACK if path is None else _EVERYWHERE
    facts: dict[str, str | int] = {}
    with (
        delayed_path(path, facts) as (far_host, path_host, relays),
        Program("service", host, module=_MODULE) as service,
        Program("client", module=_MODULE) as bulk,
        Program("client", module=_MODULE) as requests,
    ):
        port = int(service.read_line(READY_S))
        site = Site.make(directory, directory.parent / "pki", port, far_host, path_host)
        with pair.running(site) as running:
            bench = DelayedBench(running, path, bulk, requests)
            wait_until(lambda: _works(bench), "a connection to the service", running.processes)
            yield bench, [service, bulk, requests, *relays]
    running.facts |= facts


def _works(bench: DelayedBench) -> bool:
    """A proxy may listen before it can serve."""
    try:
        bench.probe()
    except BenchError:
        return False
    return True


def _metered(
    bench: DelayedBench, load: list[Program], measure: DelayedMeasure
) -> Iterator[tuple[str, dict[str, float]]]:
    """Add to each case how busy the machine was with other things."""

    def ours() -> float:
        proxies = sum(child.cpu_seconds() for child in bench.running.processes)
        return proxies + sum(cpu_seconds(program.pid) for program in load)

    meter = OthersMeter(ours)
    for case, values in measure(bench):
        yield case, {**values, **meter.values(), "load_average": load_average()}
        meter = OthersMeter(ours)
