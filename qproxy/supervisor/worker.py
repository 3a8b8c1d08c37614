"""A worker process: a whole gateway, and the supervisor's hand on it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from qproxy.admin.document import plain
from qproxy.admin.snapshot import snapshot
from qproxy.admin.status import GatewayStatus
from qproxy.errors import ConfigError
from qproxy.log import Logger, configure_logging, get_logger
from qproxy.net.listen import open_listeners
from qproxy.runtime.gateway import Gateway, Supervision, run_gateway
from qproxy.runtime.reload import Reloader
from qproxy.supervisor.channel import Channel, ChannelError, Frame
from qproxy.supervisor.process import Setup
from qproxy.supervisor.slot import ProcessFacts

#: How often the supervisor hears that the event loop turns, in seconds; less where it waits less.
BEAT_S: Final = 1.0
#: How long a worker whose supervisor is gone has for ending in order, in seconds.
ORPHAN_S: Final = 10.0
#: How long its last words may take, in seconds.
LAST_WORDS_S: Final = 1.0
#: prctl(2): what tools show as the process's name.
_PR_SET_NAME: Final = 15
_KIB: Final = 1024


async def run_worker(descriptor: int) -> None:
    """Run what comes over an inherited channel until told to stop, or the supervisor is gone.

    Args:
        descriptor: our end of the channel.

    Raises:
        ChannelError: no supervisor is at its other end.
        QproxyError: see :func:`~qproxy.runtime.gateway.run_gateway`.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor says when to reload
    channel = Channel(_inherited(descriptor))
    _end_with_supervisor(descriptor)
    frame = await channel.receive()
    if frame is None:
        raise ChannelError("no supervisor: workers are started by 'qproxy run'")
    setup = Setup.decode(frame.body)
    _set_name(f"qproxy-w{setup.number}")
    configure_logging(setup.config.log, worker=setup.number)
    worker = _Worker(setup, channel, get_logger(__name__))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            nursery.start_soon(worker.beat)
            nursery.start_soon(worker.listen)
            nursery.start_soon(worker.heed_sigterm)
            await run_gateway(setup.config, supervision=worker.supervision)
            await worker.say_last_words()
            nursery.cancel_scope.cancel()
    finally:
        channel.close()


class _Worker:
    """What passes between one gateway and its supervisor."""

    def __init__(self, setup: Setup, channel: Channel, log: Logger) -> None:
        self._setup = setup
        self._channel = channel
        self._log = log
        self._gateway: Gateway | None = None
        self._reloader: Reloader | None = None
        self._tasks: trio.Nursery | None = None
        self._told_to_drain = False
        # Two orders at most: to drain, and to end at once.
        self._give_order, orders = trio.open_memory_channel[int](2)
        self.supervision = Supervision(
            open_listener=self._open_listener, orders=orders, serve=self._serve
        )

    async def beat(self) -> None:
        """Tell the supervisor, again and again, that the event loop turns."""
        pause_s = min(BEAT_S, self._setup.config.node.worker_timeout_s / 5)
        while True:
            self._say("beat")
            await trio.sleep(pause_s)

    async def listen(self) -> None:
        """Do what the supervisor says. Where it is gone, end."""
        try:
            while (frame := await self._channel.receive()) is not None:
                await self._heed(frame)
        except (ChannelError, KeyError) as error:
            self._log.unexpected("supervisor_not_understood", error)
        self._log.error("supervisor_gone", consequence="this worker ends at once")
        self._drain()
        self._end_at_once()

    async def heed_sigterm(self) -> None:
        """A SIGTERM of somebody else's drains this worker alone; further ones change nothing.

        A service manager may send one to every process of ours, beside the supervisor's order.
        """
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._say("ending")
                self._drain()

    async def say_last_words(self) -> None:
        """Give the supervisor the final counts."""
        if self._gateway is not None:
            self._say("status", **self._status(self._gateway))
        with trio.move_on_after(LAST_WORDS_S):
            await self._channel.flush()

    # Inside.

    def _open_listener(self, name: str) -> list[socket.socket]:
        descriptor = self._setup.shared.get(name)
        if descriptor is not None:
            return [_inherited(descriptor)]
        return open_listeners(self._setup.config.listeners[name].listen, reuse_port=True)

    async def _serve(self, gateway: Gateway, reloader: Reloader) -> None:
        self._gateway, self._reloader = gateway, reloader
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            self._say("started", **self._status(gateway))
            await trio.sleep_forever()

    async def _heed(self, frame: Frame) -> None:
        message = frame.message()
        match message["kind"]:
            case "tunnel":
                self._take_tunnel(frame.sock, message["ticket"])
            case "drain":
                self._drain()
            case "end":
                self._drain()
                self._end_at_once()
            case "status":
                if self._gateway is not None and self._tasks is not None:
                    self._tasks.start_soon(self._answer_status, message, self._gateway)
            case "prepare":
                await self._prepare(message)
            case "commit":
                if self._reloader is not None:
                    await self._reloader.commit()
                self._answer(message)

    async def _answer_status(self, message: dict[str, Any], gateway: Gateway) -> None:
        status = snapshot(gateway, trio.current_time())

        def encode() -> bytes:
            answer = {"kind": "answer", "id": message["id"], **_plain_status(status)}
            return json.dumps(answer).encode()

        # With many peers it is long: it is written beside the event loop, not on it.
        body = await trio.to_thread.run_sync(encode)
        with contextlib.suppress(ChannelError):
            self._channel.send_bytes(body)

    async def _prepare(self, message: dict[str, Any]) -> None:
        """Load what is to be used from now on, and say whether it could be."""
        detail, hint = "the worker has not begun", None
        if self._reloader is not None:
            try:
                await self._reloader.prepare()
            except ConfigError as error:
                detail, hint = str(error), error.hint
            except Exception as error:  # a fault of ours must not end the gateway
                self._log.unexpected("reload_failed", error)
                detail = type(error).__name__
            else:
                self._answer(message, ok=True)
                return
        self._answer(message, ok=False, detail=detail, hint=hint)

    def _take_tunnel(self, sock: socket.socket | None, ticket: int) -> None:
        if sock is None:
            return
        sock.setblocking(False)
        if self._gateway is None or self._tasks is None or self._gateway.draining:
            sock.close()
            self._say("over", ticket=ticket)
            return
        self._tasks.start_soon(self._carry, self._gateway, sock, ticket)

    async def _carry(self, gateway: Gateway, sock: socket.socket, ticket: int) -> None:
        try:
            await gateway.carry_tunnel(sock, partial(self._say, "begun", ticket=ticket))
        finally:
            self._say("over", ticket=ticket)

    def _drain(self) -> None:
        if not self._told_to_drain:
            self._told_to_drain = True
            self._order()

    def _end_at_once(self) -> None:
        self._order()

    def _order(self) -> None:
        with contextlib.suppress(trio.WouldBlock):
            self._give_order.send_nowait(signal.SIGTERM)

    def _status(self, gateway: Gateway) -> dict[str, Any]:
        return _plain_status(snapshot(gateway, trio.current_time()))

    def _answer(self, message: dict[str, Any], **fields: Any) -> None:
        self._say("answer", id=message["id"], **fields)

    def _say(self, kind: str, **fields: Any) -> None:
        # Where the supervisor does not listen there is nobody to tell.
        with contextlib.suppress(ChannelError):
            self._channel.send({"kind": kind, **fields})


def _inherited(descriptor: int) -> socket.socket:
    """A socket that the supervisor left us, and that no child of ours is to get. Raises OSError."""
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _plain_status(status: GatewayStatus) -> dict[str, Any]:
    return {"status": plain(status), "process": plain(_process_facts())}


def _process_facts() -> ProcessFacts:
    """What the operating system says of us; from inside, for others may not look (hardening)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resident_bytes = open_fds = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident_bytes = pages * resource.getpagesize()
    with contextlib.suppress(OSError):
        open_fds = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - not the one it reads by
    return ProcessFacts(
        cpu_s=used.ru_utime + used.ru_stime,
        resident_bytes=resident_bytes,
        open_fds=open_fds,
        max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _end_with_supervisor(descriptor: int) -> None:
    """Whatever the event loop does: some time after the supervisor is gone this process is, too."""

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # hang-up alone
        poll.poll()
        time.sleep(ORPHAN_S)
        os._exit(1)

    threading.Thread(target=watch, name="qproxy-orphan", daemon=True).start()


def _set_name(name: str) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
