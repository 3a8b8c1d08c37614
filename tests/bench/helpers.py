"""Records and pairs of proxies made up for tests."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from bench.host import Host
from bench.pairs import Kind, ProxyPair, Running, Site
from bench.record import Record, Row, Sample
from bench.stats import BenchError

UNITS = ("mb_per_s", "cpu_s_per_gb")

HOST = Host(
    cpu="Imaginary CPU",
    cores=2,
    memory_bytes=1 << 30,
    kernel="Linux 1.0 x86_64",
    python="CPython 3.11.0",
    openssl="OpenSSL 4.0.0",
    load_openssl="OpenSSL 3.0.0",
    qproxy="0.0.0",
)


def make_record(speeds: dict[str, list[float]], kinds: dict[str, Kind]) -> Record:
    """A record of one case, "down", with these MB/s for each row and round."""
    record = Record("throughput", "2026-01-31T12:00:00Z", HOST, {"rounds": 3}, *UNITS)
    record.rows = [Row(name, kind, version="1.0") for name, kind in kinds.items()]
    for name, values in speeds.items():
        for number, value in enumerate(values):
            values_of = {"mb_per_s": value, "cpu_s_per_gb": 1.5}
            record.samples.append(Sample(name, number, "down", values_of))
    return record


class FakePair(ProxyPair):
    """No proxies: leads to the service, like the direct pair."""

    def __init__(self, name: str, *, missing: str | None = None, fails_in_round: int = -1) -> None:
        self.name = name
        self._missing = missing
        self._fails_in_round = fails_in_round
        self.starts = 0

    def missing(self) -> str | None:
        return self._missing

    def version(self) -> str:
        return f"{self.name} 1.0"

    def far_command(self, site: Site) -> Sequence[str]:
        raise NotImplementedError

    def near_command(self, site: Site) -> Sequence[str]:
        raise NotImplementedError

    @contextlib.contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        self.starts += 1
        if self.starts - 1 == self._fails_in_round:
            raise BenchError("did not get ready")
        yield Running(site.service_port, facts={"starts": self.starts})


class SleepingPair(ProxyPair):
    """Two processes that do nothing, written as a real pair is."""

    name = "sleeping"
    program = "sleep"

    def version(self) -> str:
        return "sleep"

    def far_command(self, site: Site) -> Sequence[str]:
        return [self.require_executable(), "300"]

    def near_command(self, site: Site) -> Sequence[str]:
        return [sys.executable, "-c", "import time; time.sleep(300)"]

    def await_tunnel(self, site: Site, running: Running) -> None:
        del site
        running.facts["mode"] = "asleep"

    def facts_at_end(self, running: Running) -> dict[str, str | int]:
        assert not any(child.running for child in running.processes)
        return {"ended": 1}


class EchoPair(SleepingPair):
    """Two processes with memory and CPU time, beside a path that leads to the service."""

    name = "echo"

    @contextlib.contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        with super().running(site) as running:
            running.port = site.service_port
            yield running
