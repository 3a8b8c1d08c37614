"""One worker's place: a process is kept in it, started again when it dies, and asked how it is."""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from qproxy.admin.decode import decode
from qproxy.admin.merge import merge, retired, worker_obstacle
from qproxy.admin.status import AuditStatus, GatewayStatus, WorkerState, WorkerStatus
from qproxy.errors import QproxyError
from qproxy.log import Logger
from qproxy.supervisor.backoff import Backoff
from qproxy.supervisor.channel import Channel, ChannelError
from qproxy.supervisor.process import WorkerProcess

#: How long a worker may take from its start to its first connection, at least, in seconds.
STARTUP_S: Final = 60.0
#: How often a look is taken whether a worker was heard, in seconds, at most.
WATCH_S: Final = 1.0
#: How long what a worker said last is read for after its process has ended, in seconds.
LAST_WORDS_S: Final = 1.0
#: How long one worker's answer is waited for where a person or a scraper waits, in seconds.
STATUS_WAIT_S: Final = 2.0
#: Exit code of a worker that ended because it could not write its audit log and may not go on.
AUDIT_EXIT_CODE: Final = 3

Launch = Callable[[int], Awaitable[tuple[WorkerProcess, Channel]]]


class WorkerFailedError(QproxyError):
    """A worker ended before it had ever served, or may not go on without its audit log.

    Attributes:
        exit_code: its exit code, or 1 where a signal killed it.
        told: it has said why itself, on standard error.
    """

    def __init__(self, number: int, exit_code: int) -> None:
        super().__init__(f"worker {number} ended before it served: {describe_exit(exit_code)}")
        self.told = exit_code > 0
        self.exit_code = exit_code if self.told else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What a worker says of its process; fields as in :class:`WorkerStatus`."""

    cpu_s: float | None = None
    resident_bytes: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None


class Slot:
    """One worker's place.

    Attributes:
        number: which one, from 0.
        state: what the worker is doing.
        starts: how often it was started.
        gone: counts of workers that were here before, or None.
        last: the last snapshot of the one that is here, or None.
        audit_failed: one has ended because it could not write its audit log.
    """

    def __init__(
        self,
        number: int,
        launch: Launch,
        *,
        log: Logger,
        timeout_s: float,
        backoff: Backoff,
        on_change: Callable[[], None] = lambda: None,
        on_message: Callable[[int, dict[str, Any]], None] = lambda _number, _message: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            number: which one, from 0.
            launch: starts a process for it.
            log: where its life is told.
            timeout_s: silence after which it is hung.
            backoff: its pauses.
            on_change: called when the state has changed.
            on_message: called with messages about tunnels.
        """
        self.number = number
        self.state = WorkerState.WAITING
        self.starts = 0
        self.gone: GatewayStatus | None = None
        self.last: GatewayStatus | None = None
        self.audit_failed = False
        self._launch = launch
        self._log = log.bind(worker=number)
        self._timeout_s = timeout_s
        self._backoff = backoff
        self._on_change = on_change
        self._on_message = on_message
        self._process: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._began_at = 0.0
        self._heard_at = 0.0
        self._hung = False
        self._stopping = trio.Event()
        self._answers: dict[int, dict[str, Any]] = {}
        self._asked: dict[int, trio.Event] = {}
        self._next_id = 0
        self._answered = False
        self._facts = ProcessFacts()
        self._last_end: str | None = None
        self._last_end_at = 0.0
        self._due_at = 0.0
        self._gone_audit: AuditStatus | None = None

    # Its life.

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker here until told to stop; started once the first one serves.

        Raises:
            WorkerFailedError: the first one ended before it served.
        """
        served = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_when, served, task_status)
            code = await self._keep(served)
            nursery.cancel_scope.cancel()
        if not served.is_set():
            if not self._stopping.is_set():
                raise WorkerFailedError(self.number, code)
            task_status.started()  # told to stop before it could

    async def _keep(self, served: trio.Event) -> int:
        """One life after the other. Returns the last one's exit code."""
        code = 0
        while not self._stopping.is_set():
            began = trio.current_time()
            code = await self._live(served)
            if self._stopping.is_set():
                self._log.info("worker_ended", how=self._last_end)
            if not served.is_set() or self.audit_failed or self._stopping.is_set():
                break
            pause_s = self._backoff.pause_s(trio.current_time() - began)
            self._due_at = trio.current_time() + pause_s
            self._on_change()
            write = self._log.error if code else self._log.info
            event = "worker_died" if code else "worker_ended"
            write(event, how=self._last_end, restart_in_s=round(pause_s, 3))
            with trio.move_on_after(pause_s):
                await self._stopping.wait()
        return code

    def stop(self) -> None:
        """When the worker ends, it has ended as it should. Idempotent."""
        self._stopping.set()

    def kill(self) -> None:
        """End its process now, if it has one."""
        if self._process is not None:
            self._process.kill()

    async def _tell_when(self, served: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        await served.wait()
        task_status.started()

    async def _live(self, served: trio.Event) -> int:
        """One process, from its start to its end. Returns its exit code; 1 where none started."""
        self.starts += 1
        self._hung, self._answered = False, False
        self._began_at = self._heard_at = trio.current_time()
        self._change(WorkerState.STARTING)
        try:
            process, channel = await self._launch(self.number)
        except OSError as error:
            self._log.error("worker_not_started", detail=error.strerror or type(error).__name__)
            self._ended("could not be started")
            return 1
        self._process, self._channel = process, channel
        if self._stopping.is_set():
            self.tell("end")  # it was told while there was nobody to hear
        code = 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run)
                nursery.start_soon(self._watch)
                heard_all = trio.Event()
                nursery.start_soon(self._listen, channel, served, heard_all)
                code = await process.wait()
                with trio.move_on_after(LAST_WORDS_S):
                    await heard_all.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                code = await process.wait()
            channel.close()
            self._process = self._channel = None
            self.audit_failed = self.audit_failed or code == AUDIT_EXIT_CODE
            self._ended("hung, and was killed" if self._hung else describe_exit(code))
        return code

    def _ended(self, how: str) -> None:
        self._last_end, self._last_end_at = how, trio.current_time()
        if self.last is not None:
            self._gone_audit = _add_audit(self.last.audit, self._gone_audit)
            past = [retired(self.last), *([self.gone] if self.gone is not None else [])]
            self.gone = retired(merge({}, past, uptime_s=0.0, draining=False))
            self.last = None
        for event in self._asked.values():
            event.set()
        self._asked.clear()
        self._facts = ProcessFacts()
        self._change(WorkerState.WAITING)

    def _change(self, state: WorkerState) -> None:
        self.state = state
        self._on_change()

    async def _watch(self) -> None:
        """Kill the process when it has been silent for too long."""
        pause_s = min(WATCH_S, self._timeout_s / 5)
        while True:
            due = trio.current_time() + pause_s
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > WATCH_S:
                self._heard_at = now  # it is we who were not there to listen
            starting = self.state is WorkerState.STARTING
            patience_s = max(self._timeout_s, STARTUP_S) if starting else self._timeout_s
            if now - self._heard_at > patience_s:
                self._hung = True
                self._log.error("worker_hung", silent_s=round(now - self._heard_at, 1))
                self.kill()
                return

    async def _listen(self, channel: Channel, served: trio.Event, heard_all: trio.Event) -> None:
        try:
            while (frame := await channel.receive()) is not None:
                self._heard_at = trio.current_time()
                if frame.sock is not None:
                    frame.sock.close()
                self._hear(frame.message(), served)
        except (ChannelError, ValueError, KeyError, TypeError) as error:
            self._log.unexpected("worker_not_understood", error)
            self.kill()
        heard_all.set()

    def _hear(self, message: dict[str, Any], served: trio.Event) -> None:
        match message["kind"]:
            case "beat":
                pass
            case "started":
                self._take_status(message)
                self._change(WorkerState.RUNNING)
                self._log.info("worker_started", pid=self.pid, starts=self.starts)
                served.set()
            case "ending":
                self._change(WorkerState.ENDING)
            case "status":
                self._take_status(message)
            case "answer":
                if (event := self._asked.pop(message["id"], None)) is not None:
                    self._answers[message["id"]] = message
                    event.set()
            case _:
                self._on_message(self.number, message)

    def _take_status(self, message: dict[str, Any]) -> None:
        self.last = decode(GatewayStatus, message["status"])
        self._facts = decode(ProcessFacts, message["process"])

    # For the supervisor.

    @property
    def pid(self) -> int | None:
        """Process ID of the worker, or None where there is none."""
        return None if self._process is None else self._process.pid

    def starts_within(self, seconds: float) -> bool:
        """Whether a worker that is not there now is started within so long."""
        if self.state is WorkerState.WAITING:
            return self._due_at - trio.current_time() <= seconds
        return self.state is WorkerState.STARTING

    def tell(self, kind: str, sock: socket.socket | None = None, **fields: Any) -> bool:
        """Send a message; False where there is no worker that could take it."""
        if self._channel is None:
            return False
        try:
            self._channel.send({"kind": kind, **fields}, sock)
        except ChannelError:
            return False
        return True

    async def ask(self, kind: str, timeout_s: float) -> dict[str, Any] | None:
        """Send a question and wait for its answer; None where none comes."""
        number, event = self._next_id, trio.Event()
        self._next_id += 1
        self._asked[number] = event
        try:
            if self.tell(kind, id=number):
                with trio.move_on_after(timeout_s):
                    await event.wait()
            return self._answers.pop(number, None)
        finally:
            self._asked.pop(number, None)
            self._answers.pop(number, None)

    async def refresh(self) -> None:
        """Ask the worker for its snapshot; where it does not answer, the last one stays."""
        if self.state not in {WorkerState.RUNNING, WorkerState.ENDING}:
            return
        answer = await self.ask("status", STATUS_WAIT_S)
        self._answered = answer is not None
        if answer is not None and self._channel is not None:
            try:
                self._take_status(answer)
            except (ValueError, KeyError) as error:
                self._log.unexpected("worker_not_understood", error)
                self.kill()

    def status(self) -> WorkerStatus:
        """The worker's own line in the whole's status."""
        now, last, facts = trio.current_time(), self.last, self._facts
        obstacle = None if last is None else worker_obstacle(last)
        alive = self._process is not None
        return WorkerStatus(
            number=self.number,
            state=self.state,
            pid=self.pid,
            uptime_s=now - self._began_at if alive else None,
            answers=self._answered and alive,
            ready=self.state is WorkerState.RUNNING and last is not None and obstacle is None,
            obstacle=obstacle,
            starts=self.starts,
            last_end=self._last_end,
            last_end_age_s=None if self._last_end is None else now - self._last_end_at,
            tunnels=0 if last is None else sum(len(peer.tunnels) for peer in last.peers),
            streams_open=0 if last is None else sum(peer.streams_open for peer in last.peers),
            connections_open=(
                0 if last is None else sum(entry.connections_open for entry in last.listeners)
            ),
            cpu_s=facts.cpu_s,
            resident_bytes=facts.resident_bytes,
            open_fds=facts.open_fds,
            max_fds=facts.max_fds,
            audit=None if last is None else _add_audit(last.audit, self._gone_audit),
        )


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _add_audit(now: AuditStatus | None, gone: AuditStatus | None) -> AuditStatus | None:
    """A writer counts from its own start; what those before it counted is added."""
    if now is None or gone is None:
        return now if now is not None else gone
    return replace(
        now,
        failures=now.failures + gone.failures,
        records=now.records + gone.records,
        records_lost=now.records_lost + gone.records_lost,
    )
