"""Where local applications connect: accept, end their TLS, give each a stream.

Like everything on the data plane this runs on the reactor. Only a connection that finds no tunnel
gets a task, to wait for one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from OpenSSL import SSL

from qproxy.address import UnixAddress
from qproxy.config.model import ListenerConfig
from qproxy.errors import LocalProtocolError, Reason
from qproxy.log import Logger
from qproxy.net.endpoint import ConnectionLost, Endpoint, TcpEndpoint
from qproxy.net.handshake import Handshake
from qproxy.net.listen import Acceptor, open_listeners
from qproxy.net.tls_endpoint import TlsEndpoint
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.build import build_listener_context
from qproxy.runtime.counters import ListenerCounters
from qproxy.runtime.peer import Peer
from qproxy.runtime.relay import Relay
from qproxy.runtime.tunnel import Tunnel


def text_address(address: Any) -> str:
    """A socket's address as ``host:port``, ``[host]:port`` or ``unix``."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = str(address[0]), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "unix"


def _arrival_address(listening: socket.socket) -> str | None:
    """Where connections to a listening socket arrive, as text; None where they differ in that."""
    address = listening.getsockname()
    if isinstance(address, tuple) and ipaddress.ip_address(address[0]).is_unspecified:
        return None
    return text_address(address)


class Listener:
    """One configured listener.

    Attributes:
        config: its configuration.
        sockets: the open listening sockets.
        counters: what applications did here.
        policy: what its streams demand of a tunnel's keys.
        shaking: arrivals whose TLS handshake is under way, of whom nobody else knows.
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
        self._acceptors: list[Acceptor] = []
        self.shaking: set[_Arrival] = set()
        self._full = False
        self._nursery: trio.Nursery | None = None
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
        self._stop_accepting()
        for sock in self.sockets:
            sock.close()
        if self.sockets and self._owns_path and isinstance(self.config.listen, UnixAddress):
            with contextlib.suppress(OSError):
                Path(self.config.listen.path).unlink()
        self.sockets = []

    def _stop_accepting(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors = []

    async def run(self) -> None:
        """Accept until cancelled. Who has no stream by then is reset."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._acceptors = [
                Acceptor(sock, partial(self._on_accepted, _arrival_address(sock)))
                for sock in self.sockets
            ]
            try:
                await trio.sleep_forever()
            finally:
                self._stop_accepting()
                for arrival in list(self.shaking):
                    arrival.give_up(Reason.SHUTDOWN)

    def _on_accepted(self, local: str | None, sock: socket.socket, address: object) -> None:
        self.counters.accepted += 1
        self.counters.open += 1
        if self.counters.open >= self.config.max_connections:
            # Beyond the limit connections wait in the kernel's backlog.
            self._full = True
            self.counters.full += 1
            self._log.warning("listener_full", limit=self.config.max_connections)
            for acceptor in self._acceptors:
                acceptor.pause()
        arrival = _Arrival(self, sock, text_address(address), local)
        arrival.guarded(arrival.begin)

    # For arrivals.

    @property
    def tls(self) -> SSL.Context | None:
        """What connections begin with now."""
        return self._context

    @property
    def peer(self) -> Peer:
        """Whose service this is."""
        return self._peer

    @property
    def log(self) -> Logger:
        """With the listener's name."""
        return self._log

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        """For a connection that has to wait for something of trio's."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    def refused(self, reason: Reason, **details: object) -> None:
        """A connection gets no stream."""
        self.counters.refused.add(reason, trio.current_time())
        self._log.warning("client_refused", reason=reason, **details)

    def gone(self) -> None:
        """A connection is over, however it came to that."""
        self.counters.open -= 1
        if self._full:
            self._full = False
            for acceptor in self._acceptors:
                acceptor.resume()


class _Arrival:
    """One accepted connection, until its relay is over."""

    __slots__ = ("_client", "_endpoint", "_listener", "_local", "_over", "_sock")

    def __init__(
        self, listener: Listener, sock: socket.socket, client: str, local: str | None
    ) -> None:
        self._listener = listener
        self._sock = sock
        self._client = client
        self._local = local
        self._endpoint: Endpoint | None = None
        self._over = False

    def begin(self) -> None:
        """TLS first, where the listener has it."""
        context = self._listener.tls
        if context is None:
            self._endpoint = TcpEndpoint(self._sock)
            self._find_tunnel()
            return
        endpoint = self._endpoint = TlsEndpoint.server(self._sock, context)

        def shaken(lost: ConnectionLost | None) -> None:
            self._listener.shaking.discard(self)
            if lost is not None:
                self.give_up(lost.reason, detail=str(lost))
                return
            self._listener.log.debug(
                "client_tls", group=endpoint.group, version=endpoint.tls_version
            )
            self.guarded(self._find_tunnel)

        self._listener.shaking.add(self)
        Handshake(endpoint, self._listener.config.handshake_timeout_s, shaken).begin()

    def guarded(self, step: Callable[[], None]) -> None:
        """Take a step. A fault of ours costs this connection, never the gateway."""
        try:
            step()
        except Exception as error:
            self._listener.log.unexpected("connection_failed", error)
            self.give_up(Reason.INTERNAL_ERROR)

    def give_up(self, reason: Reason, **details: object) -> None:
        """No stream for this one: it is reset."""
        if self._over:
            return
        self._over = True
        self._listener.shaking.discard(self)
        if self._endpoint is not None:
            self._endpoint.abort()
        self._sock.close()
        self._listener.refused(reason, **details)
        self._listener.gone()

    def _find_tunnel(self) -> None:
        tunnel = self._listener.peer.tunnel_now(self._listener.policy)
        if tunnel is None:
            self._listener.start_task(self._wait_for_tunnel)
        else:
            self._open(tunnel)

    async def _wait_for_tunnel(self) -> None:
        try:
            tunnel = await self._listener.peer.usable_tunnel(self._listener.policy)
        except BaseException:
            self.give_up(Reason.SHUTDOWN)
            raise
        self.guarded(lambda: self._open(tunnel))

    def _open(self, tunnel: Tunnel | None) -> None:
        listener, endpoint = self._listener, self._endpoint
        config, policy = listener.config, listener.policy
        if self._over or endpoint is None:
            return
        try:
            if tunnel is None:
                raise LocalProtocolError(Reason.NO_TUNNEL, "no tunnel takes new streams")
            if not tunnel.meets(policy):
                raise LocalProtocolError(
                    Reason.POLICY_REQUIRE, "a QKD key is required and no tunnel has a fresh one"
                )
            local = self._local or text_address(self._sock.getsockname())
            stream_id = tunnel.open_stream(config.service, self._client, local)
        except (LocalProtocolError, OSError) as error:
            self.give_up(getattr(error, "reason", Reason.CONNECTION_RESET), peer=config.peer)
            return
        relay = tunnel.attach(
            stream_id,
            idle_timeout_s=config.idle_timeout_s,
            accepted=not config.wait_for_service,
            policy=policy,
        )
        relay.on_over = self._on_over
        relay.start(endpoint, speaks_first=True)

    def _on_over(self, relay: Relay) -> None:
        if self._over:
            return
        self._over = True
        listener = self._listener
        if relay.failure is not None:
            listener.counters.failed.add(relay.failure, trio.current_time())
        if relay.failure is Reason.QKD_TOO_OLD:
            listener.log.warning(
                "stream_reset",
                reason=relay.failure,
                service=listener.config.service,
                client=self._client,
            )
        listener.log.debug(
            "stream_closed", stream=relay.stream_id, client=self._client, reason=relay.failure
        )
        listener.gone()
