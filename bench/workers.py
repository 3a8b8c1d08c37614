"""What a second worker adds in work that keeps CPUs busy: TLS at the local edge, and bulk.

Where load generators and both gateways share few cores, two workers cannot show what they would do
on cores of their own. So work is held against the CPU time of the *busiest* process of the near
gateway: with a core for each, that is how long the work takes. ``work_per_s`` is work divided by
that time; it falls with every imbalance between workers and with every extra instruction that
having several costs, the supervisor's included. What it does not show is workers waiting for each
other: for memory, caches, or locks in the kernel. The wall clock's figure stands beside it.

- **TLS handshakes**: new TLS 1.3 connections to a listener that ends TLS, each with a full
  handshake, a stream, and a message to and fro;
- **bulk over TLS**: bytes up over many such connections, made and warmed up before, deciphered by
  the listener and enciphered for the tunnel. Work is counted in megabytes.

Both gateways have as many workers, and they sleep at once where they have nothing to do
(``busy_poll_us: 0``): CPU time spent looking for more is no work. The kernel spreads connections
over workers by their ports, so few connections may lie unevenly; hence many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from bench.children import cpu_seconds_each, wait_until
from bench.command import Benchmark
from bench.generator import CONNECT_S, GRACE_S, Generator, Program, Service
from bench.host import Host
from bench.pairs import Kind, Running, Site
from bench.pairs.qproxy import QProxy, gateway_events
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.rounds import Bench, CpuMeter, Measure, run_rounds, utc_now
from bench.transfer import limit_s

_WARM_UP = 50
_SLOWEST_PER_S = 20
_TUNNELS_UP_S = 20.0


@dataclass(frozen=True, slots=True)
class WorkersParameters:
    """What a run measures.

    Attributes:
        rounds: how often each number of workers is measured.
        workers: numbers of workers; the first is what the others are held against.
        handshakes: TLS connections in one sample.
        threads: of those, under way at once.
        sample_bytes: moved up in one sample.
        warmup_bytes: moved before it, over the same connections.
        connections: over so many at once.
    """

    rounds: int = 5
    workers: tuple[int, ...] = (1, 2)
    handshakes: int = 3000
    threads: int = 8
    sample_bytes: int = 1_000_000_000
    warmup_bytes: int = 64_000_000
    connections: int = 64


QUICK = WorkersParameters(
    rounds=1,
    handshakes=100,
    threads=4,
    sample_bytes=20_000_000,
    warmup_bytes=1_000_000,
    connections=8,
)


class WorkersPair(QProxy):
    """Gateways with several workers each, and TLS in front of the near one.

    Args:
        workers: of each gateway.
        kind: what the row is for.
    """

    def __init__(self, workers: int, kind: Kind) -> None:
        name = "1 worker" if workers == 1 else f"{workers} workers"
        super().__init__(
            name, workers=workers, node_settings={"busy_poll_us": 0}, listener_tls=True
        )
        self.kind = kind

    def await_tunnel(self, site: Site, running: Running) -> None:
        """Each worker has a tunnel of its own."""
        super().await_tunnel(site, running)
        wait_until(
            lambda: self._tunnels_up(running) >= self._workers,
            f"{self.name}: {self._workers} tunnels",
            running.processes,
            _TUNNELS_UP_S,
        )

    def _tunnels_up(self, running: Running) -> int:
        return sum(1 for _ in gateway_events(running.proxies["near"], "tunnel_up"))


class TlsClient(Program):
    """The TLS client in front of the near gateway. See :mod:`bench.tls_load`."""

    def __init__(self) -> None:
        super().__init__("client", module="bench.tls_load")

    def reach(self, port: int) -> None:
        """One connection with a message to and fro."""
        self.ask("handshakes", CONNECT_S, port=port, count=1, threads=1)

    def release(self) -> None:
        """Close all connections."""
        self.ask("close", CONNECT_S)

    def handshakes(self, port: int, count: int, threads: int) -> float:
        """New connections. Gives the seconds they took."""
        limit_s = GRACE_S + count / _SLOWEST_PER_S
        answer = self.ask("handshakes", limit_s, port=port, count=count, threads=threads)
        return float(answer["seconds"])

    def open(self, port: int, connections: int) -> None:
        """Connections that stay."""
        limit_s = GRACE_S + connections / _SLOWEST_PER_S
        self.ask("open", limit_s, port=port, connections=connections)

    def upload(self, count: int) -> float:
        """Bytes up over them. Gives the seconds it took."""
        return float(self.ask("upload", limit_s(count), bytes=count)["seconds"])


TLS = Generator("threads with TLS", TlsClient, lambda: Service("bench.traffic"))


def run_workers(parameters: WorkersParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="workers",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "workers": ", ".join(str(count) for count in parameters.workers),
            "method": "work divided by the CPU time of the busiest process of the near gateway",
            "generator": TLS.name,
        },
        value="work_per_s",
        cost="cpu_ms_per_work",
        figures=(
            Figure("work_per_s", "work by the busiest process's CPU time", "1/s"),
            Figure("wall_work_per_s", "work by the wall clock", "1/s"),
            Figure("cpu_ms_per_work", "CPU time of all near processes", "ms", less_is_better=True),
            Figure("busiest_share", "busiest process's share of it", "", less_is_better=True),
        ),
    )
    first, *more = parameters.workers
    pairs = [
        WorkersPair(first, Kind.PEER),
        *(WorkersPair(count, Kind.SUBJECT) for count in more),
    ]
    run_rounds(record, pairs, parameters.rounds, _measure(parameters), TLS)
    return record


def _measure(parameters: WorkersParameters) -> Measure[TlsClient]:
    def measure(bench: Bench[TlsClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client, port = bench.client, bench.running.port
        client.handshakes(port, _WARM_UP, parameters.threads)
        meter, busy = CpuMeter(bench), BusiestMeter(bench)
        seconds = client.handshakes(port, parameters.handshakes, parameters.threads)
        yield (
            "TLS handshakes",
            {
                **busy.values(parameters.handshakes, seconds),
                **meter.values(),
            },
        )
        client.open(port, parameters.connections)
        client.upload(parameters.warmup_bytes)
        meter, busy = CpuMeter(bench), BusiestMeter(bench)
        seconds = client.upload(parameters.sample_bytes)
        yield (
            "bulk over TLS, MB",
            {
                **busy.values(parameters.sample_bytes / 1e6, seconds),
                **meter.values(),
            },
        )

    return measure


class BusiestMeter:
    """CPU time of each process of the near gateway."""

    def __init__(self, bench: Bench[TlsClient]) -> None:
        self._near = bench.running.proxies["near"]
        self._before = cpu_seconds_each(self._near.pid)

    def values(self, work: float, seconds: float) -> dict[str, float]:
        """Figures of some work that took so long by the wall clock."""
        after = cpu_seconds_each(self._near.pid)
        used = [used_s - self._before.get(pid, 0.0) for pid, used_s in after.items()]
        return busiest_values(used, work, seconds)


def busiest_values(used_s: list[float], work: float, seconds: float) -> dict[str, float]:
    """Work held against the busiest process.

    Args:
        used_s: CPU time of each process, in seconds.
        work: how much was done.
        seconds: by the wall clock.
    """
    busiest_s, all_s = max(used_s), sum(used_s)
    values = {
        "wall_work_per_s": work / seconds,
        "seconds": seconds,
        "work": work,
        "busiest_cpu_s": busiest_s,
        "processes": float(len(used_s)),
        "cpu_ms_per_work": 1000 * all_s / work,
    }
    # The clock of CPU time ticks every 10 ms: less work than that has no figure.
    if busiest_s > 0:
        values |= {"work_per_s": work / busiest_s, "busiest_share": busiest_s / all_s}
    return values


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = replace(QUICK if options.quick else WorkersParameters(), rounds=options.rounds)
    record = run_workers(parameters)
    return record, record_markdown(record)


WORKERS = Benchmark(
    "workers", "two workers over one, in work that keeps CPUs busy", 5, _run, minutes=2
)
