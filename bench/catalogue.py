"""Every benchmark, in the order they are listed and run."""

from __future__ import annotations

from bench.command import Benchmark
from bench.keybudget import KEYBUDGET
from bench.rekey import REKEY
from bench.switchover import SWITCHOVER
from bench.throughput import THROUGHPUT

BENCHMARKS: tuple[Benchmark, ...] = (THROUGHPUT, SWITCHOVER, REKEY, KEYBUDGET)
