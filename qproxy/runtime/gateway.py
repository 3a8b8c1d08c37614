"""A whole gateway: build it, run it, drain it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from qproxy import __version__
from qproxy.admin.server import serve_admin
from qproxy.config.model import GatewayConfig
from qproxy.crypto.kem import KemProvider, load_kem_provider
from qproxy.errors import QproxyError, Reason
from qproxy.log import Logger, get_logger
from qproxy.net.listen import accept, open_listeners
from qproxy.net.reactor import current_reactor
from qproxy.runtime.audit import GatewayAudit, PeerAudit
from qproxy.runtime.build import (
    TunnelContexts,
    build_settings,
    build_source,
    build_sources,
    build_tunnel_contexts,
    build_unknown_peer_settings,
)
from qproxy.runtime.counters import Tally
from qproxy.runtime.hardening import disable_core_dumps, raise_descriptor_limit
from qproxy.runtime.listeners import Listener, text_address
from qproxy.runtime.peer import Peer
from qproxy.runtime.pid_file import held_pid_file
from qproxy.runtime.qkd import QuantumSide
from qproxy.runtime.reload import Reloader, Stamp, TlsMaterial, stamps
from qproxy.runtime.services import Services
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import Event, HandshakeCompleted, StreamRequested, TunnelClosed
from qproxy.tunnel.settings import Role, TunnelSettings

#: Incoming tunnels whose peer has not proved who it is yet, at most.
MAX_PENDING_HANDSHAKES = 256
#: How long peers may take to answer our END, in seconds.
END_WAIT_S = 2.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How often the drain looks whether streams are left, in seconds.
_DRAIN_POLL_S = 0.05


class GatewayError(QproxyError):
    """The gateway cannot run: an address cannot be bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What a gateway has from a supervisor, where it is one of several workers.

    Attributes:
        open_listener: sockets for a listener of this name, which listen already.
        orders: signals, as if they had come to this process.
        serve: runs beside the gateway once it takes connections.
    """

    open_listener: Callable[[str], list[socket.socket]]
    orders: AsyncIterator[int]
    serve: Callable[[Gateway, Reloader], Awaitable[None]]


class Gateway:
    """Everything one process runs.

    Attributes:
        config: what it was built from.
        kem_provider: name of the library that computes ML-KEM.
        audit: its audit log.
        peers: by name.
        listeners: by name.
        services: what peers may open here.
        tunnel_sockets: where tunnels from peers arrive.
        refused: incoming tunnels that ended before they proved whose they are, by reason.
        started_at: when it was built, in seconds of the runtime's monotonic clock.
        draining: nothing new is taken.
        loaded_files: what certificates and the like looked like before they were loaded.
    """

    def __init__(self, config: GatewayConfig, log: Logger) -> None:
        """Load everything the configuration names. Raises ConfigError."""
        self.config = config
        self.loaded_files: Mapping[Path, Stamp] = stamps(config)
        self._log = log
        self._nursery: trio.Nursery | None = None
        self._kem: KemProvider = load_kem_provider(config.node.kem_provider)
        self._contexts: TunnelContexts = build_tunnel_contexts(config)
        self.kem_provider = self._kem.name
        self.audit = GatewayAudit(config.audit, config.node.name, log)
        self.services = Services(config.services, log)
        self.refused: Tally[Reason] = Tally()
        self.started_at = trio.current_time()
        self.draining = False
        self._unknown = build_unknown_peer_settings(config)
        self.peers = {name: self._build_peer(name) for name in config.peers}
        self.listeners = {
            name: Listener(listener, self.peers[listener.peer], log)
            for name, listener in config.listeners.items()
        }
        self.tunnel_sockets: list[socket.socket] = []
        self._pending = trio.Semaphore(MAX_PENDING_HANDSHAKES)
        self._admitted = 0

    def open(self, supervision: Supervision | None = None) -> None:
        """Bind every listener. Raises GatewayError naming the one that cannot be bound."""
        try:
            for name, listener in self.listeners.items():
                where = f"listeners.{name}.listen: {listener.config.listen}"
                listener.open(None if supervision is None else supervision.open_listener(name))
            if self.config.tunnel.listen is not None:
                where = f"tunnel.listen: {self.config.tunnel.listen}"
                self.tunnel_sockets = open_listeners(self.config.tunnel.listen)
        except OSError as error:
            self.close_listeners()
            raise GatewayError(f"{where}: {error.strerror or error}") from None

    def close_listeners(self) -> None:
        """Take no new connections and no new tunnels."""
        for listener in self.listeners.values():
            listener.close()
        for sock in self.tunnel_sockets:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        self.tunnel_sockets = []

    async def run(self, nursery: trio.Nursery) -> None:
        """Start every part in a nursery."""
        self._nursery = nursery
        current_reactor().busy_poll(self.config.node.busy_poll_us / 1e6)
        for peer in self.peers.values():
            nursery.start_soon(peer.run)
        for listener in self.listeners.values():
            nursery.start_soon(listener.run)
        for sock in self.tunnel_sockets:
            nursery.start_soon(self._accept_tunnels, sock, nursery)

    async def use_tls(
        self, material: TlsMaterial, *, tunnels: bool, sources: frozenset[str]
    ) -> None:
        """Take new certificates, authorities and revocation lists into use.

        Args:
            material: contexts made of them.
            tunnels: live tunnels are to prove again who both ends are.
            sources: key sources that are to be called over new connections.
        """
        for name, context in material.listeners.items():
            self.listeners[name].use_tls(context)
        for name, context in material.services.items():
            self.services.configured[name].use_tls(context)
        if tunnels:
            self._contexts = material.tunnels
            for peer in self.peers.values():
                peer.use_tls(material.tunnels)
        for peer in self.peers.values():
            for path in peer.config.paths:
                if path.source not in sources:
                    continue
                tls = material.sources[path.source]
                config = self.config.key_sources[path.source]
                in_use = build_source(config, peer.config, path, tls)
                if self._nursery is not None:
                    self._nursery.start_soon(peer.quantum.use_source, in_use)

    async def drain(self) -> None:
        """Take nothing new, wait for what is there, end the tunnels in order."""
        self.draining = True
        self.close_listeners()
        for peer in self.peers.values():
            peer.drain()
        with trio.move_on_after(self.config.shutdown.drain_s):
            while any(peer.streams for peer in self.peers.values()):  # noqa: ASYNC110 - a count
                await trio.sleep(_DRAIN_POLL_S)
        cut = sum(peer.streams for peer in self.peers.values())
        await self._end_tunnels(Reason.SHUTDOWN)
        write = self._log.warning if cut else self._log.info
        write("drained", streams_cut=cut)

    async def end_at_once(self, reason: Reason) -> None:
        """Take nothing any more, cut what is there, end the tunnels in order."""
        self.draining = True
        self.close_listeners()
        await self._end_tunnels(reason)

    async def _end_tunnels(self, reason: Reason) -> None:
        for peer in self.peers.values():
            peer.end(reason)
        with trio.move_on_after(END_WAIT_S):
            while any(peer.tunnels for peer in self.peers.values()):  # noqa: ASYNC110 - a count
                await trio.sleep(_DRAIN_POLL_S)

    def log_totals(self) -> None:
        """One line for each peer: what happened since the start."""
        for name, peer in self.peers.items():
            totals, counters = peer.totals, peer.quantum.counters
            self._log.info(
                "peer_totals",
                peer=name,
                tunnels=totals.tunnels,
                hybrid_epochs=totals.hybrid_epochs,
                classical_epochs=totals.classical_epochs,
                keys=totals.keys,
                keys_drawn=counters.drawn,
                keys_orphaned=counters.orphaned,
                keys_redeemed=peer.quantum.redeemed,
                streams=totals.streams,
                bytes_sent=totals.bytes_sent,
                bytes_received=totals.bytes_received,
            )

    def log_start(self) -> None:
        """One line that says what runs here."""
        self._log.info(
            "gateway_started",
            version=__version__,
            node=self.config.node.name,
            kem_provider=self._kem.name,
            peers=sorted(self.peers),
            listeners={
                name: [text_address(sock.getsockname()) for sock in listener.sockets]
                for name, listener in self.listeners.items()
            },
            tunnel_listen=[text_address(sock.getsockname()) for sock in self.tunnel_sockets],
        )

    # Tunnels that peers dial.

    async def _accept_tunnels(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            try:
                self._pending.acquire_nowait()
            except trio.WouldBlock:
                self._log.warning("tunnel_handshakes_full", limit=MAX_PENDING_HANDSHAKES)
                await self._pending.acquire()
            try:
                sock = await accept(listening)
            except trio.ClosedResourceError:
                self._pending.release()
                return
            nursery.start_soon(self._run_incoming, sock)

    async def carry_tunnel(self, sock: socket.socket, begun: Callable[[], None]) -> None:
        """Carry a tunnel that the supervisor has accepted, to its end.

        Args:
            sock: not a byte of it was read; it is closed whatever happens.
            begun: called once the tunnel has a place among the pending handshakes.
        """
        with sock:
            await self._pending.acquire()
            begun()
            if self.draining:
                self._pending.release()
                return
            await self._run_incoming(sock)

    async def _run_incoming(self, sock: socket.socket) -> None:
        incoming = _Incoming(self, text_address(_peer_address(sock)), self._log)
        tunnel = None
        try:
            connection = Connection(
                Role.SERVER,
                self._unknown,
                tls_context=self._contexts.server,
                kem=self._kem,
                random_bytes=os.urandom,
                now=trio.current_time(),
                find_peer=self._find_peer,
            )
            tunnel = Tunnel(sock, connection, incoming)
            await tunnel.run()
        except Exception as error:  # a fault of ours costs this tunnel, never the gateway
            self._log.unexpected("tunnel_failed", error, address=incoming.address)
        finally:
            sock.close()
            incoming.settle()
            incoming.forget(tunnel)

    def release_pending(self) -> None:
        """An incoming tunnel has proved who it is, or is over."""
        self._pending.release()

    def admit(self) -> bool:
        """Take a place for an incoming tunnel of a known peer, if ``max_tunnels`` leaves one.

        Before it is up: its peer may let many tunnels prove who they are, and only then go on.
        """
        dialled = sum(peer.dialled for peer in self.peers.values())
        if self._admitted + dialled >= self.config.tunnel.max_tunnels:
            return False
        self._admitted += 1
        return True

    def release_admitted(self) -> None:
        """Give a place that :meth:`admit` took back."""
        self._admitted -= 1

    def _find_peer(self, names: frozenset[str]) -> TunnelSettings | None:
        found = [peer for name, peer in self.peers.items() if name in names]
        # A certificate that speaks for two peers speaks for neither.
        return found[0].settings if len(found) == 1 else None

    def _build_peer(self, name: str) -> Peer:
        config = self.config.peers[name]
        log = self._log.bind(peer=name)
        quantum = QuantumSide(
            config,
            build_sources(self.config, config),
            log,
            now=trio.current_time(),
            workers=max(1, self.config.node.workers),
        )
        audit = PeerAudit(self.audit, name)
        quantum.on_path_change(audit.on_link_change)
        return Peer(
            config,
            self.config,
            build_settings(self.config, config),
            quantum,
            tls=self._contexts,
            kem=self._kem,
            services=self.services,
            log=self._log,
            audit=audit,
        )


class _Incoming:
    """Owner of an incoming tunnel: nobody's until its certificate names a peer."""

    def __init__(self, gateway: Gateway, address: str, log: Logger) -> None:
        self.address = address
        self._gateway = gateway
        self._log = log
        self._peer: Peer | None = None
        self._settled = False
        self._admitted = False

    def settle(self) -> None:
        """Give the place among the pending handshakes back, once."""
        if not self._settled:
            self._settled = True
            self._gateway.release_pending()

    def forget(self, tunnel: Tunnel | None) -> None:
        """The tunnel is over, even where its core never said so."""
        self._leave()
        if self._peer is not None and tunnel is not None:
            self._peer.forget(tunnel)

    def _leave(self) -> None:
        """Give the place among the tunnels back, once."""
        if self._admitted:
            self._admitted = False
            self._gateway.release_admitted()

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        """Find the peer at the handshake's end, then pass everything on to it."""
        if isinstance(event, HandshakeCompleted):
            self._peer = self._gateway.peers[event.peer_name]
            self._admitted = self._gateway.admit()
            if not self._admitted:
                self._log.warning(
                    "tunnel_refused", peer=event.peer_name, reason=Reason.LIMIT_REACHED
                )
                tunnel.end(Reason.LIMIT_REACHED)
                return
        if isinstance(event, TunnelClosed):
            self._leave()
        if self._peer is not None:
            if tunnel.connection.established:
                self.settle()
            self._peer.on_tunnel_event(tunnel, event)
        elif isinstance(event, TunnelClosed):
            self._gateway.refused.add(event.reason, trio.current_time())
            self._log.warning(
                "tunnel_refused",
                address=self.address,
                reason=event.reason,
                detail=tunnel.close_detail,
            )

    def on_stream_requested(self, tunnel: Tunnel, event: StreamRequested) -> None:
        """Streams come after the handshake."""
        if self._peer is not None:
            self._peer.on_stream_requested(tunnel, event)


def _peer_address(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:
        return None


async def run_gateway(
    config: GatewayConfig,
    *,
    supervision: Supervision | None = None,
    task_status: trio.TaskStatus[Gateway] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a gateway until SIGTERM or SIGINT; SIGHUP loads certificates and the like again.

    The first signal drains: no new connections, those in progress go on for at most
    ``shutdown.drain_s``, then every tunnel gets an authenticated END. A second one ends at once.

    Args:
        config: what to run.
        supervision: where it is one of several workers; its supervisor gives the orders then.
        task_status: started once it takes connections.

    Raises:
        ConfigError: something the configuration names cannot be used.
        GatewayError: an address cannot be bound.
        PidFileError: ``node.pid_file`` cannot be written, or another gateway holds it.
        AuditError: the audit log cannot be opened, and ``audit.failure`` is ``stop``.
        AuditFailureError: it could not be written any more, and everything was ended.
    """
    log = get_logger(__name__)
    if not config.tunnel.unsafe_core_dumps:
        disable_core_dumps()
    raise_descriptor_limit()
    gateway = Gateway(config, log)
    await gateway.audit.open(gateway.kem_provider)
    ended = Reason.INTERNAL_ERROR
    try:
        gateway.open(supervision)
        async with trio.open_nursery() as nursery:
            with _orders(supervision) as signals, held_pid_file(config.node.pid_file):
                await gateway.run(nursery)
                await _start_admin(gateway, nursery, log)
                reloader = Reloader(gateway, log)
                nursery.start_soon(reloader.run)
                if supervision is None:
                    gateway.log_start()
                else:
                    nursery.start_soon(supervision.serve, gateway, reloader)
                task_status.started(gateway)
                async with trio.open_nursery() as ending:
                    ending.start_soon(_end_without_audit, gateway, ending)
                    async for number in signals:
                        if number != signal.SIGHUP:
                            break
                        reloader.ask()
                    log.info("draining", drain_s=config.shutdown.drain_s)
                    ending.start_soon(_end_at_second_signal, signals, ending, log)
                    await gateway.drain()
                    ending.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        ended = Reason.SHUTDOWN if gateway.audit.fault is None else Reason.AUDIT_FAILURE
    finally:
        gateway.close_listeners()
        gateway.log_totals()
        await gateway.audit.close(ended)
        log.info("gateway_stopped")
    if (failure := gateway.audit.failure()) is not None:
        raise failure


def _orders(
    supervision: Supervision | None,
) -> contextlib.AbstractContextManager[AsyncIterator[int]]:
    if supervision is None:
        return trio.open_signal_receiver(*_SIGNALS)
    return contextlib.nullcontext(supervision.orders)


async def _start_admin(gateway: Gateway, nursery: trio.Nursery, log: Logger) -> None:
    admin = gateway.config.admin
    if admin.listen is None:
        return
    try:
        await nursery.start(partial(serve_admin, gateway, admin, log=log))
    except OSError as error:
        raise GatewayError(f"admin.listen: {admin.listen}: {error.strerror or error}") from None


async def _end_without_audit(gateway: Gateway, ending: trio.Nursery) -> None:
    await gateway.audit.stopped()
    await gateway.end_at_once(Reason.AUDIT_FAILURE)
    ending.cancel_scope.cancel()


async def _end_at_second_signal(
    signals: AsyncIterator[int], ending: trio.Nursery, log: Logger
) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            continue
        log.warning("ending_at_once", reason=Reason.SHUTDOWN)
        ending.cancel_scope.cancel()
        return
