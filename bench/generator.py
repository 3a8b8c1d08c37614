"""The two load generator processes, as the benchmark sees them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.children import END_S, READY_S
from bench.stats import BenchError

_ROOT = Path(__file__).resolve().parent.parent


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


class Service(Program):
    """The service behind the far proxy.

    Attributes:
        port: where it listens on 127.0.0.1.
    """

    def __init__(self) -> None:
        super().__init__("service")
        self.port = int(self.read_line(READY_S))


class LoadClient(Program):
    """The client in front of the near proxy; at most one connection."""

    def __init__(self) -> None:
        super().__init__("client")

    def do(self, action: str, timeout_s: float, **arguments: int) -> float:
        """Let the client do one thing (see :mod:`bench.load`).

        Returns:
            The seconds it took, by the client's clock.

        Raises:
            BenchError: it failed, bytes were lost or changed, or it took too long.
        """
        return float(self._ask(action, timeout_s, **arguments)["seconds"])

    def pings(self, duration_s: float, timeout_s: float) -> list[float]:
        """Let it send one byte and wait for one, again and again.

        Returns:
            How long each took, in seconds.

        Raises:
            BenchError: as :meth:`do`.
        """
        answer = self._ask("pings", timeout_s, milliseconds=round(duration_s * 1000))
        return [latency_us / 1e6 for latency_us in answer["latencies_us"]]

    def _ask(self, action: str, timeout_s: float, **arguments: int) -> dict[str, Any]:
        self.write_line(json.dumps({"do": action, **arguments}))
        answer: dict[str, Any] = json.loads(self.read_line(timeout_s))
        if "error" in answer:
            raise BenchError(f"{action}: {answer['error']}")
        return answer


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BenchError("a load process without pipes")
    return pipe
