"""Where local applications connect: accept, end their TLS, give each a stream."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import trio
from OpenSSL import SSL

from qproxy.address import UnixAddress
from qproxy.config.model import ListenerConfig
from qproxy.errors import LocalProtocolError, Reason
from qproxy.log import Logger
from qproxy.net.endpoint import ConnectionLost, Endpoint, TcpEndpoint, TlsEndpoint
from qproxy.net.listen import accept, open_listeners
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.build import build_listener_context
from qproxy.runtime.counters import ListenerCounters
from qproxy.runtime.peer import Peer


def text_address(address: Any) -> str:
    """A socket's address as ``host:port``, ``[host]:port`` or ``unix``."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = str(address[0]), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "unix"


class Listener:
    """One configured listener.

    Attributes:
        config: its configuration.
        sockets: the open listening sockets.
        counters: what applications did here.
        policy: what its streams demand of a tunnel's keys.
    """

    def __init__(self, config: ListenerConfig, peer: Peer, log: Logger) -> None:
        """Load what the listener needs. Raises ConfigError."""
        self.config = config
        self.sockets: list[socket.socket] = []
        self._owns_path = True
        self.counters = ListenerCounters()
        self.policy = ServicePolicy.of(
            config.policy, config.max_without_qkd_s, peer.config.max_without_qkd_s
        )
        self._peer = peer
        self._log = log.bind(listener=config.name)
        self._slots = trio.Semaphore(config.max_connections)
        self._context: SSL.Context | None = None
        if config.tls is not None:
            self._context = build_listener_context(config.tls)

    def use_tls(self, context: SSL.Context) -> None:
        """Certificates or authorities have changed: connections from now on use these."""
        self._context = context

    def open(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, or take over sockets whose address is another process's. Raises OSError."""
        self._owns_path = sockets is None
        self.sockets = open_listeners(self.config.listen) if sockets is None else sockets

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens now, as text; empty before it was opened and once closed."""
        if isinstance(self.config.listen, UnixAddress):
            return (str(self.config.listen),) if self.sockets else ()
        return tuple(text_address(sock.getsockname()) for sock in self.sockets)

    @property
    def policy_met(self) -> bool:
        """Whether the listener's own policy, as far as it demands something, is met now."""
        return not self.policy.requires or self._peer.meets(self.policy)

    def close(self) -> None:
        """Take no more connections; those accepted go on."""
        for sock in self.sockets:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        if self.sockets and self._owns_path and isinstance(self.config.listen, UnixAddress):
            with contextlib.suppress(OSError):
                Path(self.config.listen.path).unlink()
        self.sockets = []

    async def run(self) -> None:
        """Accept until closed."""
        async with trio.open_nursery() as nursery:
            for sock in self.sockets:
                nursery.start_soon(self._accept_loop, sock, nursery)

    async def _accept_loop(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await self._take_slot()
            try:
                sock = await accept(listening)
            except trio.ClosedResourceError:
                self._slots.release()
                return
            nursery.start_soon(self._serve, sock)

    async def _take_slot(self) -> None:
        """Beyond the limit connections wait in the kernel's backlog."""
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            self.counters.full += 1
            self._log.warning("listener_full", limit=self.config.max_connections)
            await self._slots.acquire()

    async def _serve(self, sock: socket.socket) -> None:
        self.counters.accepted += 1
        self.counters.open += 1
        try:
            endpoint = await self._endpoint(sock)
            if endpoint is not None:
                await self._relay(endpoint, sock)
        except ConnectionLost as error:
            self._log.debug("client_lost", reason=error.reason, detail=str(error))
        except Exception as error:  # a fault of ours costs this connection, never the gateway
            self._refused(Reason.INTERNAL_ERROR)
            self._log.unexpected("connection_failed", error)
            sock.close()
        finally:
            self.counters.open -= 1
            self._slots.release()

    async def _endpoint(self, sock: socket.socket) -> Endpoint | None:
        if self._context is None:
            return TcpEndpoint(sock)
        endpoint = TlsEndpoint.server(sock, self._context)
        try:
            with trio.move_on_after(self.config.handshake_timeout_s) as timeout:
                await endpoint.handshake()
        except ConnectionLost as error:
            self._refused(error.reason)
            self._log.warning("client_refused", reason=error.reason, detail=str(error))
            endpoint.close()
            return None
        except BaseException:
            endpoint.abort()
            raise
        if timeout.cancelled_caught:
            self._refused(Reason.HANDSHAKE_TIMEOUT)
            self._log.warning("client_refused", reason=Reason.HANDSHAKE_TIMEOUT)
            endpoint.abort()
            return None
        self._log.debug("client_tls", group=endpoint.group, version=endpoint.tls_version)
        return endpoint

    def _refused(self, reason: Reason) -> None:
        self.counters.refused.add(reason, trio.current_time())

    async def _relay(self, endpoint: Endpoint, sock: socket.socket) -> None:
        config = self.config
        try:
            tunnel = await self._peer.usable_tunnel(self.policy)
            if tunnel is None:
                raise LocalProtocolError(Reason.NO_TUNNEL, "no tunnel takes new streams")
            if not tunnel.meets(self.policy):
                raise LocalProtocolError(
                    Reason.POLICY_REQUIRE, "a QKD key is required and no tunnel has a fresh one"
                )
            client = text_address(sock.getpeername())
            stream_id = tunnel.connection.open_stream(
                config.service,
                client_address=client,
                listener_address=text_address(sock.getsockname()),
                now=trio.current_time(),
            )
        except (LocalProtocolError, OSError) as error:
            reason = getattr(error, "reason", Reason.CONNECTION_RESET)
            self._refused(reason)
            self._log.warning("client_refused", reason=reason, peer=config.peer)
            endpoint.abort()
            return
        except BaseException:
            endpoint.abort()
            raise
        relay = tunnel.attach(
            stream_id,
            idle_timeout_s=config.idle_timeout_s,
            accepted=not config.wait_for_service,
            policy=self.policy,
        )
        tunnel.flush()
        await relay.run(endpoint)
        if relay.failure is not None:
            self.counters.failed.add(relay.failure, trio.current_time())
        if relay.failure is Reason.QKD_TOO_OLD:
            self._log.warning(
                "stream_reset", reason=relay.failure, service=config.service, client=client
            )
        self._log.debug("stream_closed", stream=stream_id, client=client, reason=relay.failure)
