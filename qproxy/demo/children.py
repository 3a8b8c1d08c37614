"""Child processes: started with their own process group, heard through their logs, ended for sure.

Each child writes JSON lines to standard error, which is a pipe that a task here reads. A child that
ends without having been told to is an error that shows the last lines it wrote. Its process group
is its own, so that Ctrl-C on a terminal reaches the demonstration only, which then ends its
children in order.
"""

from __future__ import annotations

import collections
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from qproxy.demo.settings import GIVE_UP_TIMEOUT_S, STOP_TIMEOUT_S, DemoError

#: Lines of each child's log that are kept to be shown when it fails.
KEPT_LINES: Final = 30
#: Longest line that is read, in bytes; longer ones are cut and are no JSON any more.
MAX_LINE_BYTES: Final = 64 * 1024

_READ_BYTES: Final = 64 * 1024

OnEvent = Callable[[Mapping[str, object]], None]


class Child:
    """One child process.

    Attributes:
        name: for messages.
        exit_code: None while it runs; negative for the signal that ended it.
        killed: it had to be killed.
    """

    def __init__(self, name: str, on_event: OnEvent, on_stray: Callable[[str], None]) -> None:
        """A child that :func:`start_child` starts.

        Args:
            name: for messages.
            on_event: called with every line's JSON object.
            on_stray: called with every line that is none.
        """
        self.name = name
        self.exit_code: int | None = None
        self.killed = False
        self._on_event = on_event
        self._on_stray = on_stray
        self._process: trio.Process | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._changed = trio.Event()
        self._ended = trio.Event()
        self._may_end = False

    @property
    def pid(self) -> int | None:
        """Its process ID; None before it was started."""
        return None if self._process is None else self._process.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines it wrote, oldest first."""
        return tuple(f"{self.name}: {line}" for line in self._lines)

    async def run(
        self,
        arguments: list[str],
        log_file: Path,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Start the process, read its log, and see to it that it ends with this task.

        Args:
            arguments: of the Python interpreter.
            log_file: where its log is kept, too.
            task_status: started when the process is.

        Raises:
            DemoError: it cannot be started, or ended without having been told to.
        """
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise DemoError(f"cannot start {self.name}: {error.strerror}") from None
        self._process = process
        try:
            task_status.started()
            await self._read_log(process, log_file)
            self.exit_code = await process.wait()
            self._ended.set()
            if not self._may_end:
                raise DemoError(
                    f"{self.name} ended with exit code {self.exit_code} while it was needed",
                    log_lines=self.last_lines,
                )
        finally:
            with trio.CancelScope(shield=True):
                await self._end_for_sure(process)

    async def wait_for(self, told: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until the log has told something.

        Args:
            told: looks at what the log has told so far.
            timeout_s: at most so long.
            what: for the error: "gw-a is up".

        Raises:
            DemoError: it did not, in time.
        """
        with trio.move_on_after(timeout_s):
            while not told():
                await self._changed.wait()
            return
        raise DemoError(
            f"waited {timeout_s:g} s in vain: {what}",
            hint="is this machine very busy? --keep-dir DIR leaves the whole logs in DIR",
            log_lines=self.last_lines,
        )

    async def stop(self) -> bool:
        """SIGTERM, and wait. False if it had to be killed after STOP_TIMEOUT_S."""
        self._may_end = True
        self._signal(signal.SIGTERM)
        with trio.move_on_after(STOP_TIMEOUT_S):
            await self._ended.wait()
            return True
        self.killed = True
        self._signal(signal.SIGKILL)
        await self._ended.wait()
        return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _end_for_sure(self, process: trio.Process) -> None:
        """What a demonstration that is given up leaves behind: nothing."""
        if process.stderr is not None:
            await process.stderr.aclose()
        if process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        with trio.move_on_after(GIVE_UP_TIMEOUT_S):
            await process.wait()
            return
        self._signal(signal.SIGKILL)
        await process.wait()

    async def _read_log(self, process: trio.Process, log_file: Path) -> None:
        if process.stderr is None:
            return
        with log_file.open("wb") as kept:
            async for line in _lines(process.stderr):
                kept.write(line + b"\n")
                self._take(line.decode("utf-8", "replace"))
                self._changed.set()
                self._changed = trio.Event()

    def _take(self, line: str) -> None:
        self._lines.append(line)
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            self._on_event(event)
        else:
            self._on_stray(line)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Lines without their ends; an unfinished last one, too."""
    rest = b""
    while data := await stream.receive_some(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line[:MAX_LINE_BYTES]
        rest = rest[:MAX_LINE_BYTES]
    if rest:
        yield rest
