"""One timed bulk transfer through a pair, with its cost, by either load generator."""

from __future__ import annotations

from collections.abc import Mapping

from bench.generator import LoadClient, TrafficClient
from bench.rounds import Bench, CpuMeter

#: Ways a transfer can go. Only the epoll generator does both at once.
DIRECTIONS = ("down", "up")
BOTH = "both"
#: No machine worth measuring on is slower than this, in bytes per second.
_SLOWEST_BPS = 2_000_000
_GRACE_S = 30.0


def blocking_transfer(bench: Bench[LoadClient], direction: str, count: int) -> dict[str, float]:
    """Move bytes one way over the one connection. Gives speed and cost. Raises BenchError."""
    meter = CpuMeter(bench)
    seconds = bench.client.do(direction, limit_s(count), bytes=count)
    return transfer_values(count, seconds, meter.values())


def epoll_transfer(bench: Bench[TrafficClient], direction: str, count: int) -> dict[str, float]:
    """Move bytes over all open connections. Gives speed and cost. Raises BenchError.

    Args:
        bench: the pair at work.
        direction: down, up or both.
        count: bytes each way, of all connections together. What both ways move counts twice.
    """
    meter = CpuMeter(bench)
    seconds = bench.client.bulk(direction, count, limit_s(count))
    moved = 2 * count if direction == BOTH else count
    return transfer_values(moved, seconds, meter.values())


def transfer_values(count: int, seconds: float, used: Mapping[str, float]) -> dict[str, float]:
    """A sample's figures: megabytes of 10^6 bytes, gigabytes of 10^9."""
    values = {
        "bytes": float(count),
        "seconds": seconds,
        "mb_per_s": count / 1e6 / seconds,
        **used,
    }
    roles = {"cpu": "proxies", "near": "near", "far": "far"}
    for name, role in roles.items():
        # A path without proxies has no cost.
        if "near_cpu_s" in used:
            values[f"{name}_s_per_gb"] = used[f"{role}_cpu_s"] / (count / 1e9)
    return values


def limit_s(count: int) -> float:
    """How long moving so many bytes may take, in seconds."""
    return _GRACE_S + count / _SLOWEST_BPS
