"""Every benchmark, in the order they are listed and run."""

from __future__ import annotations

from bench.command import Benchmark
from bench.connections import CONNECTIONS
from bench.fairness import FAIRNESS
from bench.growth import GROWTH
from bench.handshake import HANDSHAKE
from bench.keybudget import KEYBUDGET
from bench.kme import KME
from bench.latency import LATENCY
from bench.memory import MEMORY
from bench.rekey import REKEY
from bench.requests import REQUESTS
from bench.switchover import SWITCHOVER
from bench.throughput import THROUGHPUT
from bench.wan import WAN
from bench.workers import WORKERS

BENCHMARKS: tuple[Benchmark, ...] = (
    THROUGHPUT,
    LATENCY,
    CONNECTIONS,
    REQUESTS,
    MEMORY,
    GROWTH,
    HANDSHAKE,
    WORKERS,
    WAN,
    FAIRNESS,
    SWITCHOVER,
    REKEY,
    KEYBUDGET,
    KME,
)
