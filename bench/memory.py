"""Memory that a stream costs each proxy: the slope over several numbers of streams.

- **idle**: each stream has had one message to and fro and rests since;
- **busy**: messages of 16 KiB go to and fro on all of them at once, while memory is looked at
  several times; the middle look counts;
- **after**: all of them have been closed; what the proxy still has beyond what it began with, for
  each stream of the most there were.

Counted is the proportional set size of each proxy and of every process it started, for the slope
without mapped files: what other programs use of the same libraries would be in it. Buffers in the
kernel are not counted. Proxies have the same settings as where their throughput is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from bench.command import Benchmark, add_pair_option, one_subject
from bench.generator import EPOLL, TrafficClient
from bench.host import Host
from bench.memory_use import MemoryUse, slope
from bench.pairs import Kind, ProxyPair
from bench.record import Figure, Record
from bench.record_report import record_markdown
from bench.rounds import Bench, Measure, run_rounds, utc_now

#: Size of the messages of busy streams, in bytes.
BUSY_BYTES = 16 * 1024
#: Looks at the memory of busy streams.
_LOOKS = 5
#: In place of a number of streams, for the look when all are gone.
_AFTER = -1


@dataclass(frozen=True, slots=True)
class MemoryParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        streams: how many, one after the other; the slope is over all of these.
        settle_s: rest before idle streams are looked at.
        busy_s: how long streams are busy, for each of these numbers.
    """

    rounds: int = 3
    streams: tuple[int, ...] = (0, 100, 400, 1000)
    settle_s: float = 1.5
    busy_s: float = 3.0


QUICK = MemoryParameters(rounds=1, streams=(0, 20, 50), settle_s=0.2, busy_s=0.3)


def run_memory(pairs: list[ProxyPair], parameters: MemoryParameters) -> Record:
    """Measure. Progress goes to standard error."""
    record = Record(
        benchmark="memory",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "streams": ", ".join(str(count) for count in parameters.streams),
            "busy_bytes": BUSY_BYTES,
            "generator": EPOLL.name,
        },
        value="kib_per_stream",
        cost="",
        figures=(
            Figure("kib_per_stream", "both", "KiB/stream", less_is_better=True),
            Figure("near_kib_per_stream", "near", "KiB/stream", less_is_better=True),
            Figure("far_kib_per_stream", "far", "KiB/stream", less_is_better=True),
            Figure("near_pss_kib", "near without streams", "KiB", less_is_better=True),
            Figure("far_pss_kib", "far without streams", "KiB", less_is_better=True),
        ),
    )
    # A path without proxies has no memory.
    measured = [pair for pair in pairs if pair.kind is not Kind.LIMIT]
    run_rounds(record, measured, parameters.rounds, _measure(parameters), EPOLL)
    return record


def _measure(parameters: MemoryParameters) -> Measure[TrafficClient]:
    def measure(bench: Bench[TrafficClient]) -> Iterator[tuple[str, Mapping[str, float]]]:
        client, watch = bench.client, _Watch(bench)
        opened = 0
        for count in parameters.streams:
            if count > opened:
                client.open(bench.running.port, count - opened)
                opened = count
            time.sleep(parameters.settle_s)
            watch.look(count)
        yield "idle", watch.values()
        client.release()
        busy = _Watch(bench)
        for count in parameters.streams:
            if count:
                client.open(bench.running.port, count)
                with client.busy(BUSY_BYTES, parameters.busy_s):
                    for _ in range(_LOOKS):
                        time.sleep(parameters.busy_s / (_LOOKS + 1))
                        busy.look(count)
                client.release()
        busy.copy_start(watch)
        yield "busy", busy.values()
        time.sleep(parameters.settle_s)
        watch.look(_AFTER)
        yield "after", watch.left(max(parameters.streams))

    return measure


class _Watch:
    """Both proxies' memory by the number of streams."""

    def __init__(self, bench: Bench[TrafficClient]) -> None:
        self._proxies = bench.running.proxies
        self._seen: dict[str, dict[int, list[MemoryUse]]] = {role: {} for role in self._proxies}

    def look(self, streams: int) -> None:
        """Once more, at this number of streams."""
        for role, child in self._proxies.items():
            self._seen[role].setdefault(streams, []).append(MemoryUse.of(child.pid))

    def copy_start(self, other: _Watch) -> None:
        """Take over what was seen without any streams."""
        for role, seen in other._seen.items():
            if 0 in seen:
                self._seen[role][0] = seen[0]

    def values(self) -> dict[str, float]:
        """Slopes, and all that they come from."""
        values: dict[str, float] = {}
        for role, seen in self._seen.items():
            points = [(streams, self._own_kib(role, streams)) for streams in sorted(seen)]
            values[f"{role}_kib_per_stream"] = slope(points)
            for streams, own_kib in points:
                values[f"{role}_own_kib_at_{streams}"] = own_kib
                values[f"{role}_pss_kib_at_{streams}"] = seen[streams][-1].pss_kib
                values[f"{role}_rss_kib_at_{streams}"] = seen[streams][-1].rss_kib
                values[f"{role}_processes_at_{streams}"] = seen[streams][-1].processes
            if 0 in seen:
                values[f"{role}_pss_kib"] = seen[0][-1].pss_kib
        return self._summed(values)

    def left(self, most: int) -> dict[str, float]:
        """What remains of the streams that there were."""
        values: dict[str, float] = {}
        for role, seen in self._seen.items():
            first = self._own_kib(role, min(streams for streams in seen if streams >= 0))
            left_kib = self._own_kib(role, _AFTER) - first
            values[f"{role}_kib_left"] = left_kib
            values[f"{role}_kib_per_stream"] = left_kib / most
        return self._summed(values)

    def _own_kib(self, role: str, streams: int) -> float:
        return statistics.median(use.own_kib for use in self._seen[role][streams])

    def _summed(self, values: dict[str, float]) -> dict[str, float]:
        both = sum(values[f"{role}_kib_per_stream"] for role in self._seen)
        return {"kib_per_stream": both, **values}


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = replace(QUICK if options.quick else MemoryParameters(), rounds=options.rounds)
    record = run_memory(one_subject(options), parameters)
    return record, record_markdown(record)


MEMORY = Benchmark(
    "memory", "memory of an idle and of a busy stream, on both sides", 3, _run, add_pair_option,
    minutes=5,
)  # fmt: skip
