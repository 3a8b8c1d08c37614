"""Interleaved rounds over pairs of proxies: what every benchmark of pairs is made of."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from bench.children import cpu_seconds, wait_until
from bench.generator import Client, ClientT, Generator, Service
from bench.host import OthersMeter, load_average
from bench.pairs import ProxyPair, Running, Site
from bench.progress import bar, say, told
from bench.record import Record, Row, Sample
from bench.stats import BenchError
from qproxy.pki import init_pki


@dataclass(frozen=True, slots=True)
class Bench(Generic[ClientT]):
    """One pair at work with the load generator beside it.

    Attributes:
        name: the pair's, and its row's.
        running: the pair.
        client: has reached the service through the pair.
        service: the service behind it.
        first: no round before this one measured the pair.
    """

    name: str
    running: Running
    client: ClientT
    service: Service
    first: bool


#: Measures one pair once: gives (case, values) for each case.
Measure = Callable[[Bench[ClientT]], Iterator[tuple[str, Mapping[str, float]]]]


def utc_now() -> str:
    """ISO 8601, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def run_rounds(
    record: Record,
    pairs: Sequence[ProxyPair],
    rounds: int,
    measure: Measure[ClientT],
    generator: Generator[ClientT],
) -> None:
    """Measure every pair once in each round, and put rows and samples into the record.

    A pair that is missing is skipped, one that fails is dropped; both are named in their row.
    """
    present = add_rows(record, pairs)
    with (
        tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory,
        generator.service() as service,
        generator.client() as client,
        bar(record.benchmark, rounds * len(present)) as advance,
    ):
        base = Path(directory)
        init_pki(base / "pki")
        for number in range(rounds):
            for pair, row in present:
                if row.failed is None:
                    site = Site.make(
                        base / f"{number}-{file_name(pair.name)}", base / "pki", service.port
                    )
                    _measure_once(record, pair, row, number, site, (client, service), measure)
                advance()
    record.finished = utc_now()


def add_rows(record: Record, pairs: Sequence[ProxyPair]) -> list[tuple[ProxyPair, Row]]:
    """A row for every pair, that says why where it is missing; gives those that are there."""
    present = []
    for pair in pairs:
        row = Row(pair.name, pair.kind, skipped=pair.missing())
        record.rows.append(row)
        if row.skipped is None:
            row.version, row.parameters = pair.version(), pair.parameters()
            present.append((pair, row))
        else:
            say(f"{pair.name}: skipped, {row.skipped}")
    return present


def _measure_once(
    record: Record,
    pair: ProxyPair,
    row: Row,
    number: int,
    site: Site,
    load: tuple[ClientT, Service],
    measure: Measure[ClientT],
) -> None:
    client, service = load
    try:
        with pair.running(site) as running:
            _connect(client, running)
            for case, values in measure(Bench(pair.name, running, client, service, number == 0)):
                busy = {**values, "load_average": load_average()}
                record.samples.append(Sample(row.name, number, case, busy))
                say(f"round {number + 1}  {row.name:<20} {case:<6} {told(values)}")
            client.release()
        row.facts.append(dict(running.facts))
    except (BenchError, OSError) as error:
        row.failed = f"round {number + 1}: {error}"
        say(f"{row.name}: {row.failed}")
        with contextlib.suppress(BenchError):
            client.release()


def _connect(client: Client, running: Running) -> None:
    """Connect, and try until one byte has come back: a proxy may listen before it can serve."""

    def works() -> bool:
        try:
            client.reach(running.port)
        except BenchError:
            return False
        return True

    wait_until(works, "a connection to the service", running.processes)


class CpuMeter:
    """CPU time over a measurement: of the proxies, and of everything else on the machine."""

    def __init__(self, bench: Bench[ClientT]) -> None:
        self._running = bench.running
        self._generators = {"client": bench.client.pid, "service": bench.service.pid}
        self._before = self._by_role()
        self._others = OthersMeter(self._ours)

    def values(self) -> dict[str, float]:
        """Seconds since the start, by role; and what others and nobody had of the machine."""
        after = self._by_role()
        used = {role: after[role] - self._before[role] for role in after}
        return {
            **{f"{role}_cpu_s": seconds for role, seconds in used.items()},
            "proxies_cpu_s": sum(used[role] for role in self._running.proxies),
            **self._others.values(),
        }

    def _by_role(self) -> dict[str, float]:
        """CPU time of both proxies and of both ends of the load generator, in seconds."""
        generators = {role: cpu_seconds(pid) for role, pid in self._generators.items()}
        return {**self._running.cpu_seconds(), **generators}

    def _ours(self) -> float:
        """The same, and of what helps the pair, all together."""
        helpers = sum(child.cpu_seconds() for child in self._running.helpers)
        return helpers + sum(self._by_role().values())


def file_name(name: str) -> str:
    """A name with no characters that a directory's should not have."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
