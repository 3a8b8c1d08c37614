"""Processes of a benchmark: started, waited for with a deadline, measured, ended by process ID."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from bench.stats import BenchError

#: How long a process may take to become ready, in seconds.
READY_S = 20.0
#: How long a process may take to end after SIGTERM before it is killed, in seconds.
END_S = 5.0
#: How often readiness is looked for, in seconds.
POLL_S = 0.02
#: How much of a log goes into an error message, in characters.
LOG_TAIL_CHARS = 1500

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Child:
    """One process whose output goes to a file.

    Attributes:
        name: for messages.
        log: the file with its standard output and standard error.
        pid: its process ID.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start it. Raises BenchError where there is no such program."""
        self.name = name
        self.log = log
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=log.parent,
                )
        except OSError as error:
            raise BenchError(f"{name}: cannot start {command[0]}: {error.strerror}") from None
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raises BenchError with the end of the log where the process has ended."""
        if not self.running:
            raise BenchError(f"{self.name} ended with {self._process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip()

    def cpu_seconds(self) -> float:
        """User and system time so far, in seconds; of its own children, too, running or not."""
        return cpu_seconds(self.pid)

    def end(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long. Idempotent."""
        if not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit meanwhile: on the way out of it, processes are ended."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> NoReturn:
    del number, frame
    raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def children() -> Iterator[list[Child]]:
    """A list whose processes are ended on the way out, the last one started first."""
    started: list[Child] = []
    try:
        yield started
    finally:
        for child in reversed(started):
            child.end()


def process_tree(pid: int) -> list[int]:
    """A process and everything it started that still runs."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found.extend(int(word) for word in (thread / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of everything it started, in seconds."""
    return sum(_cpu_ticks(each) for each in process_tree(pid)) / _TICKS_PER_S


def cpu_seconds_each(pid: int) -> dict[int, float]:
    """User and system time of a process and of each one it started that runs, in seconds."""
    return {each: _cpu_ticks(each, ended=False) / _TICKS_PER_S for each in process_tree(pid)}


def _cpu_ticks(pid: int, *, ended: bool = True) -> int:
    """utime and stime of /proc/PID/stat (proc(5), fields 14 to 17).

    Args:
        pid: the process.
        ended: add cutime and cstime, of its children that have ended.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the program's name in brackets, which may hold anything.
    fields = text.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11 : 15 if ended else 13])


def wait_until(
    ready: Callable[[], bool], what: str, watched: Sequence[Child], timeout_s: float = READY_S
) -> None:
    """Poll until something is so.

    Raises:
        BenchError: a watched process ended, or time is up; with the ends of the logs.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        for child in watched:
            child.check()
        if time.monotonic() > deadline:
            logs = "; ".join(f"{child.name}: {child.tail()}" for child in watched)
            raise BenchError(f"{what} not ready within {timeout_s:g} s; {logs}")
        time.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
