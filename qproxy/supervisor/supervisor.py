"""The process that ``qproxy run`` starts where there are several workers."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio

from qproxy import __version__
from qproxy.admin.merge import merge
from qproxy.admin.server import serve_snapshots
from qproxy.admin.status import GatewayStatus, WorkerState
from qproxy.config.model import GatewayConfig
from qproxy.errors import Reason
from qproxy.log import Logger, get_logger
from qproxy.net.listen import accept
from qproxy.runtime.gateway import END_WAIT_S, GatewayError
from qproxy.runtime.hardening import disable_core_dumps, raise_descriptor_limit
from qproxy.runtime.listeners import text_address
from qproxy.runtime.pid_file import held_pid_file
from qproxy.runtime.reload import compare_with_file
from qproxy.supervisor.backoff import Backoff
from qproxy.supervisor.channel import Channel
from qproxy.supervisor.placing import Placing
from qproxy.supervisor.ports import Ports
from qproxy.supervisor.process import WorkerProcess, start_worker
from qproxy.supervisor.share import worker_config
from qproxy.supervisor.slot import Slot, WorkerFailedError

#: How often the workers' counts are fetched when nobody asks, in seconds: what a crash may lose.
REFRESH_S: Final = 10.0
#: How long all workers may take to load new files, in seconds.
RELOAD_WAIT_S: Final = 30.0
#: How much longer than its drain a worker may take to end, in seconds.
END_MARGIN_S: Final = 10.0
#: How long a tunnel waits for a worker that is about to come back and should have it, in seconds,
#: at most: no longer than half of the time that peers are given for a handshake.
HOLD_S: Final = 5.0
#: Tunnels that are accepted and wait for a worker, at most; the rest wait in the kernel's backlog.
MAX_HELD_TUNNELS: Final = 64

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def run_supervisor(
    config: GatewayConfig,
    workers: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a gateway of several workers until SIGTERM or SIGINT; SIGHUP reloads in all of them.

    Signals mean what they do for :func:`~qproxy.runtime.gateway.run_gateway`.

    Args:
        config: what to run.
        workers: in how many processes, at least 2.
        task_status: started once every worker takes connections.

    Raises:
        GatewayError: an address cannot be bound.
        PidFileError: ``node.pid_file`` cannot be written, or another gateway holds it.
        WorkerFailedError: a worker cannot start, and has said why.
        WorkerFailedError: one could not write its audit log any more, and everything was ended.
    """
    log = get_logger(__name__)
    if not config.tunnel.unsafe_core_dumps:
        disable_core_dumps()
    raise_descriptor_limit()
    ports = Ports(config)
    supervisor = Supervisor(config, workers, ports, log)
    try:
        with (
            held_pid_file(config.node.pid_file),
            trio.open_signal_receiver(*_SIGNALS) as signals,
        ):
            await supervisor.run(signals, task_status)
    finally:
        ports.close()
        log.info("gateway_stopped")


class Supervisor:
    """Everything the supervisor does once its addresses are reserved."""

    def __init__(
        self,
        config: GatewayConfig,
        workers: int,
        ports: Ports,
        log: Logger,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is started yet.

        Args:
            config: of the gateway.
            workers: how many.
            ports: its addresses.
            log: where to say what happens.
            random: gives numbers from 0 up to 1.
        """
        self._config = config
        self._ports = ports
        self._log = log
        self._began_at = trio.current_time()
        self._draining = False
        self._failure: WorkerFailedError | None = None
        self._changed = trio.Event()
        self._placing = Placing(workers)
        self._held = trio.Semaphore(MAX_HELD_TUNNELS)
        self._hold_s = min(HOLD_S, config.tunnel.handshake_timeout_s / 2)
        self._reloading = trio.Lock()
        self.slots = [
            Slot(
                number,
                self._launch,
                log=log,
                timeout_s=config.node.worker_timeout_s,
                backoff=Backoff(random),
                on_change=partial(self._on_change, number),
                on_message=self._on_message,
            )
            for number in range(workers)
        ]

    async def run(self, signals: AsyncIterator[int], task_status: trio.TaskStatus[None]) -> None:
        """Start everything, obey, and return when all has ended. Raises as run_supervisor."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, signals, nursery)
            async with trio.open_nursery() as living:
                await self._start_workers(living)
                if not self._draining:
                    await self._start_admin(nursery)
                    for sock in self._ports.tunnel:
                        nursery.start_soon(self._accept_tunnels, sock, nursery)
                    nursery.start_soon(self._refresh_always)
                    self._log_start()
                    task_status.started()
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def snapshot(self) -> GatewayStatus:
        """How the whole gateway is, now."""
        await self._refresh()
        live = {slot.number: slot.last for slot in self.slots if slot.last is not None}
        past = [slot.gone for slot in self.slots if slot.gone is not None]
        whole = merge(
            live,
            past,
            uptime_s=trio.current_time() - self._began_at,
            draining=self._draining,
        )
        return replace(whole, workers=tuple(slot.status() for slot in self.slots))

    # Starting.

    async def _start_workers(self, living: trio.Nursery) -> None:
        """One first: what is wrong with the configuration is wrong in all, and is said once."""
        first, *others = self.slots
        await living.start(self._keep, first)
        async with trio.open_nursery() as starting:
            for slot in others:
                starting.start_soon(living.start, self._keep, slot)

    async def _keep(self, slot: Slot, task_status: trio.TaskStatus[None]) -> None:
        try:
            await slot.run(task_status)
        except WorkerFailedError as error:
            self._failure = self._failure or error
            self._stop("end")
            task_status.started()

    async def _launch(self, number: int) -> tuple[WorkerProcess, Channel]:
        own = worker_config(self._config, number, len(self.slots), self._ports.addresses)
        return await start_worker(number, own, self._ports.shared)

    async def _start_admin(self, nursery: trio.Nursery) -> None:
        admin = self._config.admin
        if admin.listen is None:
            return
        try:
            await nursery.start(partial(serve_snapshots, self.snapshot, admin, log=self._log))
        except OSError as error:
            raise GatewayError(f"admin.listen: {admin.listen}: {error.strerror or error}") from None

    def _log_start(self) -> None:
        self._log.info(
            "gateway_started",
            version=__version__,
            node=self._config.node.name,
            workers=len(self.slots),
            peers=sorted(self._config.peers),
            listeners=self._ports.texts(),
            tunnel_listen=[text_address(sock.getsockname()) for sock in self._ports.tunnel],
        )

    async def _refresh_always(self) -> None:
        while True:
            await trio.sleep(REFRESH_S)
            await self._refresh()

    async def _refresh(self) -> None:
        async with trio.open_nursery() as nursery:
            for slot in self.slots:
                nursery.start_soon(slot.refresh)

    # Orders.

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                nursery.start_soon(self._reload)
                continue
            if not self._draining:
                drain_s = self._config.shutdown.drain_s
                self._log.info("draining", drain_s=drain_s)
                self._stop("drain")
            else:
                drain_s = 0.0
                self._log.warning("ending_at_once", reason=Reason.SHUTDOWN)
                self._stop("end")
            nursery.start_soon(self._kill_after, drain_s + END_WAIT_S + END_MARGIN_S)

    def _stop(self, order: str) -> None:
        """Have every worker drain, or end, and start none again."""
        self._draining = True
        self._ports.close()
        for slot in self.slots:
            slot.stop()
            slot.tell(order)

    async def _kill_after(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._until(lambda: all(slot.pid is None for slot in self.slots))
            return
        for slot in self.slots:
            if slot.pid is not None:
                self._log.error("worker_killed", worker=slot.number, cause="it did not end")
                slot.kill()

    async def _reload(self) -> None:
        """All workers load and check; then all take into use what they loaded, or none."""
        async with self._reloading:
            if self._draining:
                return
            await compare_with_file(self._config, self._log)
            await self._reload_workers()

    async def _reload_workers(self) -> None:
        asked = [slot for slot in self.slots if slot.state is WorkerState.RUNNING]
        answers: dict[int, dict[str, Any] | None] = {}

        async def ask(slot: Slot, kind: str) -> None:
            answers[slot.number] = await slot.ask(kind, RELOAD_WAIT_S)

        async def ask_all(kind: str) -> None:
            async with trio.open_nursery() as nursery:
                for slot in asked:
                    nursery.start_soon(ask, slot, kind)

        await ask_all("prepare")
        for number, answer in sorted(answers.items()):
            if answer is None or not answer.get("ok"):
                told = {"detail": "the worker did not answer"} if answer is None else answer
                self._log.error(
                    "reload_failed",
                    cause="signal",
                    detail=told.get("detail"),
                    hint=told.get("hint"),
                    failed_in=number,
                    in_use="what was loaded before, in every worker",
                )
                return
        await ask_all("commit")
        silent = sorted(number for number, answer in answers.items() if answer is None)
        if silent:
            self._log.error("reload_failed", cause="signal", detail="no answer", failed_in=silent)
            return
        self._log.info(
            "reloaded", cause="signal", workers=sorted(answers), tunnels_prove_again=True
        )

    # What slots say.

    def _on_change(self, number: int) -> None:
        slot = self.slots[number]
        if slot.state is WorkerState.WAITING:
            self._placing.forget(number)
        if slot.audit_failed and not self._draining:
            # As one process would: no record, no traffic.
            self._failure = WorkerFailedError(number, 1)
            self._log.error("audit_failure", reason=Reason.AUDIT_FAILURE, worker=number)
            self._stop("end")
        self._wake()

    def _on_message(self, number: int, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "begun":
                self._placing.begun(number, message["ticket"])
            case "over":
                self._placing.over(number, message["ticket"])
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    # Tunnels from peers.

    async def _accept_tunnels(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await self._held.acquire()
            try:
                sock = await accept(listening)
            except trio.ClosedResourceError:
                self._held.release()
                return
            nursery.start_soon(self._place_tunnel, sock)

    async def _place_tunnel(self, sock: socket.socket) -> None:
        """Hand a tunnel to the worker that should have it; close it where none can be found."""
        source = _source(sock)
        handed_over = False
        try:
            with trio.move_on_after(self._hold_s):
                handed_over = await self._hand_over(sock, source, wait_for_best=True)
            if not handed_over:
                with trio.move_on_after(self._config.tunnel.handshake_timeout_s):
                    handed_over = await self._hand_over(sock, source, wait_for_best=False)
        finally:
            if not handed_over:
                sock.close()
            self._held.release()

    async def _hand_over(self, sock: socket.socket, source: str, *, wait_for_best: bool) -> bool:
        """Wait until a worker has room for it. False where nothing is taken any more."""
        while not self._draining:
            # One that is on its way back has lost its tunnels: it should get the next ones.
            able = [
                slot.number
                for slot in self.slots
                if slot.state is WorkerState.RUNNING
                or (wait_for_best and slot.starts_within(self._hold_s))
            ]
            number = self._placing.choose(source, able)
            if number is not None and self.slots[number].state is WorkerState.RUNNING:
                ticket = self._placing.give(number, source)
                if self.slots[number].tell("tunnel", sock, ticket=ticket):
                    return True
                self._placing.over(number, ticket)
            await self._changed.wait()
        return False


def _source(sock: socket.socket) -> str:
    """Whom to count a tunnel to: the host it comes from."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else "unix"
