"""Long-lived and short-lived streams at once through a live pair, every byte verified.

Four streams live as long as the load and echo numbered frames every few milliseconds: the gaps
between what comes back show every stall. Beside them, short connections and uploads and downloads
of a megabyte follow each other, paced so that the machine has time left: a load that takes all of
it would hide a stall among its own.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from qproxy.demo.heartbeat import FRAME_BYTES, Heartbeat
from qproxy.demo.load import Load
from qproxy.demo.record import HeartbeatRecord, Traffic

#: Streams that live as long as the load.
LONG_STREAMS = 4
#: Short connections under way at once.
SHORT_WORKERS = 4
#: Pause of each of those between two connections, in seconds.
SHORT_PAUSE_S = 0.02
#: Size of an upload and of a download, in bytes.
BULK_BYTES = 1_000_000
#: Pause between two of them, in seconds.
BULK_PAUSE_S = 0.1


class MixedLoad:
    """The load, and when something came back on each of the long-lived streams.

    Args:
        port: where clients connect on 127.0.0.1.

    Attributes:
        traffic: all connections together.
    """

    def __init__(self, port: int) -> None:
        self.traffic = Traffic()
        self._load = Load(port, self.traffic)
        self._port = port
        self._stop = trio.Event()
        self._arrivals: list[list[float]] = [[] for _ in range(LONG_STREAMS)]
        # Logs are by the wall clock, so gaps are, too. Read once: it must not jump in between.
        self._wall_offset_s = time.time() - trio.current_time()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it; at the end every stream is ended in order and everything is counted."""
        records = [HeartbeatRecord(FRAME_BYTES) for _ in range(LONG_STREAMS)]
        beats = [
            Heartbeat(record, self.traffic, trio.current_time(), arrivals.append)
            for record, arrivals in zip(records, self._arrivals, strict=True)
        ]
        async with trio.open_nursery() as nursery:
            for beat in beats:
                await nursery.start(beat.run, self._port)
            for _ in range(SHORT_WORKERS):
                nursery.start_soon(self._again, self._short, SHORT_PAUSE_S)
            nursery.start_soon(self._again, self._bulk, BULK_PAUSE_S)
            yield
            self._stop.set()
            for beat in beats:
                await beat.stop()

    def now_s(self) -> float:
        """The wall clock, in seconds since 1970."""
        return trio.current_time() + self._wall_offset_s

    def gaps_s(self, begin_s: float, end_s: float) -> list[float]:
        """Gaps between arrivals that lie between two moments, at least in part, on any long stream.

        Where nothing arrived at all, the time between the moments is one gap.
        """
        begin, end = begin_s - self._wall_offset_s, end_s - self._wall_offset_s
        return [
            after - before
            for arrivals in self._arrivals
            for before, after in itertools.pairwise(arrivals)
            if begin <= after and before <= end
        ] or [end_s - begin_s]

    def longest_quiet_gap_s(self, begin_s: float, end_s: float, window_s: float) -> float:
        """The longest gap of a window of some length while nothing happens: the median of many.

        Raises:
            ValueError: not even one window fits in between.
        """
        count = int((end_s - begin_s) / window_s)
        starts = [begin_s + index * window_s for index in range(count)]
        return statistics.median(max(self.gaps_s(start, start + window_s)) for start in starts)

    async def _again(self, one: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while not self._stop.is_set():
            await one()
            with trio.move_on_after(pause_s):
                await self._stop.wait()

    async def _short(self) -> None:
        await self._load.short_connections(1)

    async def _bulk(self) -> None:
        await self._load.upload(BULK_BYTES)
        await self._load.download(BULK_BYTES)
