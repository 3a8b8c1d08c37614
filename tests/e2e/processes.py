"""Child processes whose log is read as it comes, with every wait bounded.

A :class:`Program` runs in a process group of its own, so that ending it by that group ends all it
started and nothing else. Its standard error is read by a thread; lines that are JSON objects with
an ``event`` become dictionaries to search and to wait for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]

#: Longest wait for anything that should happen soon, in seconds. Only a failing test gets there.
DEADLINE_S = 60.0
#: How much of a log is shown when a wait fails.
SHOWN_LINES = 60

Fields = dict[str, Any]


class Program:
    """One child process.

    Attributes:
        name: what failure messages call it.
        lines: its standard error so far, line by line.
        events: those lines that are JSON events.
    """

    def __init__(
        self, name: str, arguments: Sequence[str | Path], *, cwd: Path = REPOSITORY, **options: Any
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self.events: list[Fields] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=options.pop("stdout", subprocess.DEVNULL),
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    @classmethod
    def qproxy(cls, name: str, *arguments: str | Path) -> Program:
        """``python -m qproxy ARGUMENTS``."""
        return cls(name, [sys.executable, "-m", "qproxy", *arguments])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    # What it says.

    def mark(self) -> int:
        """A point in the log, for ``after``."""
        with self._news:
            return len(self.events)

    def find(self, event: str, *, after: int = 0, **fields: Any) -> list[Fields]:
        """All events of this name whose fields are as given."""
        with self._news:
            return [line for line in self.events[after:] if _matches(line, event, fields)]

    def wait_for_event(
        self, event: str, *, after: int = 0, deadline_s: float = DEADLINE_S, **fields: Any
    ) -> Fields:
        """The first event of this name, with these fields, since ``after``. Waits for it."""
        until = time.monotonic() + deadline_s
        with self._news:
            while True:
                while after < len(self.events):
                    if _matches(self.events[after], event, fields):
                        return self.events[after]
                    after += 1
                if self._ended or not self._news.wait(until - time.monotonic()):
                    raise AssertionError(self.failure(f"no event {event} {fields or ''}"))

    def wait_for_line(self, text: str, *, deadline_s: float = DEADLINE_S) -> str:
        """The first line that contains a text. Waits for it."""
        until, seen = time.monotonic() + deadline_s, 0
        with self._news:
            while True:
                while seen < len(self.lines):
                    if text in self.lines[seen]:
                        return self.lines[seen]
                    seen += 1
                if self._ended or not self._news.wait(until - time.monotonic()):
                    raise AssertionError(self.failure(f"no line with {text!r}"))

    @property
    def plain_lines(self) -> list[str]:
        """What it wrote that is no event: a gateway that runs writes nothing of the kind."""
        with self._news:
            return [line for line in self.lines if not line.startswith("{")]

    @property
    def log(self) -> str:
        with self._news:
            return "\n".join(self.lines)

    def failure(self, what: str) -> str:
        """A message that shows the end of the log. Safe to call while waiting."""
        code = self._process.poll()
        state = "still running" if code is None else f"ended with {code}"
        tail = "\n".join(self.lines[-SHOWN_LINES:])
        return f"{self.name} ({state}): {what}. The end of its log:\n{tail}"

    # How it ends.

    def signal(self, number: signal.Signals) -> None:
        """Send one signal to the process itself."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end, if it is running."""
        if self.running:
            self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all it started, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._join()

    def wait_for_exit(self, *, deadline_s: float = DEADLINE_S) -> int:
        """Its exit code, once it has ended by itself and its log is complete."""
        try:
            code = self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.failure("did not end")) from None
        self._join()
        return code

    def close(self, *, patience_s: float = 10.0) -> None:
        """End it in order if it is running: drain, cut, and if nothing helps kill. Idempotent."""
        for _ in range(2):
            self.terminate()
            if self.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience_s / 20)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self.kill()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside.

    def _join(self) -> None:
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        if self._process.stderr is not None and not self._reader.is_alive():
            self._process.stderr.close()

    def _read(self) -> None:
        stream = self._process.stderr
        for raw in stream or ():
            line = raw.decode("utf-8", "backslashreplace").rstrip("\n")
            event = _event(line)
            with self._news:
                self.lines.append(line)
                if event is not None:
                    self.events.append(event)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def run(
    *arguments: str | Path, data: bytes | None = None, deadline_s: float = DEADLINE_S
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end. Both outputs are kept; its exit code is the caller's to judge."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        cwd=REPOSITORY,
        timeout=deadline_s,
        check=False,
    )


def poll(what: str, condition: Any, *, deadline_s: float = DEADLINE_S) -> Any:
    """Ask again until the answer is true, and give it back. For what announces itself nowhere."""
    until = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"never came about: {what}")
        time.sleep(0.01)
    return answer


def _event(line: str) -> Fields | None:
    if not line.startswith("{"):
        return None
    with contextlib.suppress(ValueError):
        parsed = json.loads(line)
        if isinstance(parsed, dict) and "event" in parsed:
            return parsed
    return None


def _matches(line: Fields, event: str, fields: Fields) -> bool:
    return line["event"] == event and all(line.get(key) == fields[key] for key in fields)
