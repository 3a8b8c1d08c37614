"""Interleaved rounds over pairs of proxies: what every benchmark of pairs is made of."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.children import cpu_seconds, wait_until
from bench.generator import LoadClient, Service
from bench.host import cpu_times, load_average
from bench.pairs import ProxyPair, Running, Site
from bench.record import Record, Row, Sample
from bench.stats import BenchError
from qproxy.pki import init_pki

#: How long a connection through a pair that says it is ready may take, in seconds.
CONNECT_S = 40.0


@dataclass(frozen=True, slots=True)
class Bench:
    """One pair at work with the load generator connected through it.

    Attributes:
        running: the pair.
        client: connected to the service through the pair.
        service: the service behind it.
        first: no round before this one measured the pair.
    """

    running: Running
    client: LoadClient
    service: Service
    first: bool


#: Measures one pair once: gives (case, values) for each case.
Measure = Callable[[Bench], Iterator[tuple[str, Mapping[str, float]]]]


def progress(text: str) -> None:
    """One line for whoever is watching."""
    print(text, file=sys.stderr, flush=True)


def utc_now() -> str:
    """ISO 8601, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def run_rounds(record: Record, pairs: Sequence[ProxyPair], rounds: int, measure: Measure) -> None:
    """Measure every pair once in each round, and put rows and samples into the record.

    A pair that is missing is skipped, one that fails is dropped; both are named in their row.
    """
    present: list[tuple[ProxyPair, Row]] = []
    for pair in pairs:
        row = Row(pair.name, pair.kind, skipped=pair.missing())
        record.rows.append(row)
        if row.skipped is not None:
            progress(f"{pair.name}: skipped, {row.skipped}")
            continue
        row.version, row.parameters = pair.version(), pair.parameters()
        present.append((pair, row))
    with (
        tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory,
        Service() as service,
        LoadClient() as client,
    ):
        base = Path(directory)
        init_pki(base / "pki")
        for number in range(rounds):
            for pair, row in present:
                if row.failed is None:
                    site = Site.make(
                        base / f"{number}-{_file_name(pair.name)}", base / "pki", service.port
                    )
                    _measure_once(record, pair, row, number, site, (client, service), measure)
    record.finished = utc_now()


def _measure_once(
    record: Record,
    pair: ProxyPair,
    row: Row,
    number: int,
    site: Site,
    load: tuple[LoadClient, Service],
    measure: Measure,
) -> None:
    client, service = load
    try:
        with pair.running(site) as running:
            _connect(client, running)
            for case, values in measure(Bench(running, client, service, number == 0)):
                busy = {**values, "load_average": load_average()}
                record.samples.append(Sample(row.name, number, case, busy))
                progress(f"round {number + 1}  {row.name:<20} {case:<6} {_values(values)}")
            client.do("close", CONNECT_S)
        row.facts.append(dict(running.facts))
    except (BenchError, OSError) as error:
        row.failed = f"round {number + 1}: {error}"
        progress(f"{row.name}: {row.failed}")
        with contextlib.suppress(BenchError):
            client.do("close", CONNECT_S)


def _connect(client: LoadClient, running: Running) -> None:
    """Connect, and try until one byte has come back: a proxy may listen before it can serve."""

    def works() -> bool:
        try:
            client.do("connect", CONNECT_S, port=running.port)
            client.do("up", CONNECT_S, bytes=1)
        except BenchError:
            return False
        return True

    wait_until(works, "a connection to the service", running.processes)


class CpuMeter:
    """CPU time over a measurement: of the proxies, and of everything else on the machine."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._before = bench.running.cpu_seconds()
        self._ours = self._ours_now()
        self._busy, self._idle = cpu_times()

    def values(self) -> dict[str, float]:
        """Seconds since the start, by role; and what others and nobody had of the machine."""
        after = self._bench.running.cpu_seconds()
        used = {f"{role}_cpu_s": after[role] - self._before[role] for role in after}
        busy, idle = cpu_times()
        ours = self._ours_now() - self._ours
        whole = busy - self._busy + idle - self._idle
        return {
            **used,
            "proxies_cpu_s": sum(used.values()),
            "others": max(0.0, busy - self._busy - ours) / whole if whole > 0 else 0.0,
            "idle": (idle - self._idle) / whole if whole > 0 else 0.0,
        }

    def _ours_now(self) -> float:
        """CPU time of the pair, of what helps it, and of the load generator, in seconds."""
        bench = self._bench
        return sum(child.cpu_seconds() for child in bench.running.processes) + sum(
            cpu_seconds(program.pid) for program in (bench.client, bench.service)
        )


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "bytes")


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
