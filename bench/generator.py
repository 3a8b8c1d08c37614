"""The load generator processes, as the benchmark sees them.

There are two kinds of load generator. :mod:`bench.traffic` is cheap, has many connections and
measures all there is. :mod:`bench.load` has one connection, blocking sockets and copies every byte
once more; it stays so that figures remain comparable with older ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Protocol, Self, TypeVar

from bench.children import END_S, READY_S
from bench.stats import BenchError

_ROOT = Path(__file__).resolve().parent.parent
#: How long one connection may take to be made and tried, in seconds.
CONNECT_S = 40.0
#: How much longer than planned an action may take before it counts as stuck, in seconds.
GRACE_S = 40.0
#: Connections opened through a path in a second, at least.
_SLOWEST_OPENS_PER_S = 20


class Program:
    """A process of a load generator that speaks line by line.

    Args:
        part: which one, and its other arguments.
        module: of the load generator.

    Attributes:
        pid: its process ID.
    """

    def __init__(self, *part: str, module: str = "bench.load") -> None:
        self._part = part[0]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
        )
        self._unread = b""
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def write_line(self, text: str) -> None:
        """Raises BenchError where the process is gone."""
        try:
            os.write(_pipe(self._process.stdin).fileno(), text.encode() + b"\n")
        except BrokenPipeError:
            raise BenchError(f"the load {self._part} has ended") from None

    def read_line(self, timeout_s: float) -> str:
        """Raises BenchError where no line comes in time."""
        descriptor = _pipe(self._process.stdout).fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise BenchError(f"no answer from the load {self._part} within {timeout_s:g} s")
            part = os.read(descriptor, 65536)
            if not part:
                raise BenchError(f"the load {self._part} has ended")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def ask(self, action: str, timeout_s: float, **arguments: object) -> dict[str, Any]:
        """Have a client do one thing. Raises BenchError where it fails or takes too long."""
        self.begin(action, **arguments)
        return self.end(action, timeout_s)

    def begin(self, action: str, **arguments: object) -> None:
        """Have a client begin one thing; :meth:`end` must follow. Raises BenchError."""
        self.write_line(json.dumps({"do": action, **arguments}))

    def end(self, action: str, timeout_s: float) -> dict[str, Any]:
        """Wait until it has done it. Raises BenchError where it fails or takes too long."""
        answer: dict[str, Any] = json.loads(self.read_line(timeout_s))
        if "error" in answer:
            raise BenchError(f"{action}: {answer['error']}")
        return answer


class Service(Program):
    """The service behind the far proxy.

    Args:
        module: of the load generator.
        arguments: more of its program.

    Attributes:
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, module: str = "bench.load", *arguments: str) -> None:
        super().__init__("service", *arguments, module=module)
        self.port = int(self.read_line(READY_S))


class Client(Protocol):
    """What interleaved rounds need of a client.

    Attributes:
        pid: its process ID.
    """

    pid: int

    def reach(self, port: int) -> None:
        """See whether a path to the service works. Raises BenchError where it does not."""

    def release(self) -> None:
        """Close all connections. Raises BenchError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class LoadClient(Program):
    """The blocking client in front of the near proxy; at most one connection."""

    def __init__(self) -> None:
        super().__init__("client")

    def reach(self, port: int) -> None:
        """Connect, and have one byte come back; the connection stays."""
        self.do("connect", CONNECT_S, port=port)
        self.do("up", CONNECT_S, bytes=1)

    def release(self) -> None:
        """Close the connection."""
        self.do("close", CONNECT_S)

    def do(self, action: str, timeout_s: float, **arguments: int) -> float:
        """Let the client do one thing (see :mod:`bench.load`).

        Returns:
            The seconds it took, by the client's clock.

        Raises:
            BenchError: it failed, bytes were lost or changed, or it took too long.
        """
        return float(self.ask(action, timeout_s, **arguments)["seconds"])

    def pings(self, duration_s: float, timeout_s: float) -> list[float]:
        """Let it send one byte and wait for one, again and again.

        Returns:
            How long each took, in seconds.

        Raises:
            BenchError: as :meth:`do`.
        """
        answer = self.ask("pings", timeout_s, milliseconds=round(duration_s * 1000))
        return [latency_us / 1e6 for latency_us in answer["latencies_us"]]


@dataclass(frozen=True, slots=True)
class Timings:
    """Many repetitions of one small thing.

    Attributes:
        seconds: from the first to the last.
        took_s: how long each took, in seconds.
        unanswered: how many of those did not end, but were given up after that time.
        late_s: how much later than intended each was begun; only where there was an intention.
    """

    seconds: float
    took_s: list[float]
    unanswered: int = 0
    late_s: list[float] | None = None


class TrafficClient(Program):
    """The epoll client in front of the near proxy. See :mod:`bench.traffic.client`.

    Everything raises BenchError where bytes are lost, changed or held up.
    """

    def __init__(self) -> None:
        super().__init__("client", module="bench.traffic")

    def reach(self, port: int) -> None:
        """Connect, have a message come back, close."""
        self.ask("reach", CONNECT_S, port=port)

    def release(self) -> None:
        """Close all connections."""
        self.ask("close", CONNECT_S)

    def open(self, port: int, count: int) -> float:
        """Open so many more connections. Gives the seconds it took."""
        limit_s = CONNECT_S + count / _SLOWEST_OPENS_PER_S
        return float(self.ask("open", limit_s, port=port, count=count)["seconds"])

    def bulk(self, direction: str, count: int, limit_s: float, *, checked: bool = False) -> float:
        """Move bytes over all connections. Gives the seconds it took.

        Args:
            direction: down, up or both.
            count: bytes each way, of all connections together.
            limit_s: when to give up, in seconds.
            checked: compare every byte.
        """
        answer = self.ask("bulk", limit_s, direction=direction, bytes=count, checked=checked)
        return float(answer["seconds"])

    def pings(self, size: int, seconds: float) -> Timings:
        """One message of ``size`` bytes to and fro on the first connection, again and again."""
        return self._timings("pings", seconds, bytes=size)

    def requests(self, size: int, seconds: float) -> Timings:
        """The same on every connection at once."""
        return self._timings("requests", seconds, bytes=size)

    def paced(self, size: int, seconds: float, rate_per_s: float) -> Timings:
        """Messages at fixed times, over all connections in turn. Times count from the intended."""
        return self._timings("paced", seconds, bytes=size, rate_per_s=rate_per_s)

    def arrivals(self, port: int, at_once: int, size: int, seconds: float) -> Timings:
        """New connections, so many under way at once; times are to the answer's first byte."""
        return self._timings("arrivals", seconds, port=port, at_once=at_once, bytes=size)

    @contextlib.contextmanager
    def busy(self, size: int, seconds: float) -> Iterator[None]:
        """Requests on every connection while something else is done, for at least so long."""
        self.begin("requests", bytes=size, seconds=seconds)
        try:
            yield
        finally:
            self.end("requests", seconds + GRACE_S)

    def _timings(self, action: str, seconds: float, **arguments: object) -> Timings:
        answer = self.ask(action, seconds + GRACE_S, seconds=seconds, **arguments)
        late_ns = answer.get("late_ns")
        return Timings(
            answer["seconds"],
            [took_ns / 1e9 for took_ns in answer["took_ns"]],
            answer.get("unanswered", 0),
            None if late_ns is None else [each_ns / 1e9 for each_ns in late_ns],
        )


ClientT = TypeVar("ClientT", bound=Client)


@dataclass(frozen=True, slots=True)
class Generator(Generic[ClientT]):
    """A kind of load generator.

    Attributes:
        name: for records.
        client: starts the client's process.
        service: starts the service's.
    """

    name: str
    client: Callable[[], ClientT]
    service: Callable[[], Service]


BLOCKING = Generator("blocking", LoadClient, Service)
EPOLL = Generator("epoll", TrafficClient, lambda: Service("bench.traffic"))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BenchError("a load process without pipes")
    return pipe
