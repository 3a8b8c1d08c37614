"""The far end of a stream: connecting to the real service, plain or over TLS.

Like everything on the data plane this runs on the reactor. Only a service that is configured by
host name takes a task for each connection, to resolve the name.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import trio
from OpenSSL import SSL

from qproxy.address import TcpAddress
from qproxy.config.model import PeerConfig, ServiceConfig
from qproxy.errors import Reason
from qproxy.log import Logger
from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.handshake import Handshake
from qproxy.net.listen import Connecting, literal, open_connection
from qproxy.net.reactor import Timer, current_reactor
from qproxy.net.tls_endpoint import TLS_REFUSALS, TlsEndpoint
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.build import build_service_context
from qproxy.runtime.counters import Tally
from qproxy.runtime.relay import Relay
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import StreamRequested


class Service:
    """One configured service, its TLS context and how many connections it has.

    Attributes:
        config: its configuration.
        connections: open now, or being opened.
        opened: connections made since the start.
        refused: streams refused, by reason.
        failed: connections whose stream was reset by either side, by reason.
    """

    def __init__(self, config: ServiceConfig) -> None:
        """Load what the service needs. Raises ConfigError."""
        self.config = config
        self.connections = 0
        self.opened = 0
        self.refused: Tally[Reason] = Tally()
        self.failed: Tally[Reason] = Tally()
        #: Where to connect, unless the service is configured by host name.
        self.literal = literal(config.connect)
        self._context: SSL.Context | None = None
        self._server_name: str | None = None
        if config.tls is not None:
            self._context = build_service_context(config.tls)
            host = config.connect.host if isinstance(config.connect, TcpAddress) else None
            self._server_name = config.tls.server_name or host

    def use_tls(self, context: SSL.Context) -> None:
        """Certificates or authorities have changed: connections from now on use these."""
        self._context = context

    def allows(self, peer: str) -> bool:
        """Whether this peer may use the service."""
        return self.config.peers is None or peer in self.config.peers

    def policy(self, peer: PeerConfig) -> ServicePolicy:
        """What this peer's streams to the service demand of its tunnels' keys."""
        config = self.config
        return ServicePolicy.of(config.policy, config.max_without_qkd_s, peer.max_without_qkd_s)

    @property
    def tls(self) -> SSL.Context | None:
        """What connections begin with now."""
        return self._context

    @property
    def server_name(self) -> str | None:
        """Whose certificate the service must have."""
        return self._server_name


class Services:
    """Answers the streams that peers open.

    Attributes:
        refused_unknown: streams refused because no such service is configured.
    """

    def __init__(self, configs: Mapping[str, ServiceConfig], log: Logger) -> None:
        """Load every service. Raises ConfigError."""
        self._services = {name: Service(config) for name, config in configs.items()}
        self.refused_unknown: Tally[Reason] = Tally()
        self._log = log

    @property
    def configured(self) -> Mapping[str, Service]:
        """Every configured service by name."""
        return self._services

    def answer(self, peer: PeerConfig, tunnel: Tunnel, event: StreamRequested) -> None:
        """Refuse a stream at once, or connect to its service."""
        service = self._services.get(event.service)
        if service is None:
            self.refuse(peer.name, tunnel, event, Reason.SERVICE_UNKNOWN)
            return
        policy = service.policy(peer)
        refusal = self._refusal(peer, tunnel, service, policy)
        if refusal is not None:
            self.refuse(peer.name, tunnel, event, refusal)
            return
        relay = tunnel.attach(
            event.stream_id, idle_timeout_s=service.config.idle_timeout_s, policy=policy
        )
        # Counted here and not when it is connected, or one burst of streams would pass the limit.
        service.connections += 1
        opening = _Opening(self, peer.name, tunnel, event, service, relay)
        relay.on_over = opening.on_over
        opening.guarded(opening.begin)

    @staticmethod
    def _refusal(
        peer: PeerConfig, tunnel: Tunnel, service: Service, policy: ServicePolicy
    ) -> Reason | None:
        if not service.allows(peer.name):
            return Reason.SERVICE_FORBIDDEN
        if not tunnel.meets(policy):
            return Reason.POLICY_REQUIRE
        if service.connections >= service.config.max_connections:
            return Reason.LIMIT_REACHED
        return None

    # For openings.

    @property
    def log(self) -> Logger:
        """Where openings say what became of them."""
        return self._log

    def count_failure(
        self, peer: str, service: Service, event: StreamRequested, relay: Relay
    ) -> None:
        """A stream is over: count it if it was reset."""
        if relay.failure is None:
            return
        service.failed.add(relay.failure, trio.current_time())
        if relay.failure is Reason.QKD_TOO_OLD:
            self._log.warning(
                "stream_reset",
                peer=peer,
                service=event.service,
                client=event.client_address,
                reason=relay.failure,
            )

    def refuse(
        self, peer: str, tunnel: Tunnel, event: StreamRequested, reason: Reason, detail: str = ""
    ) -> None:
        """No connection for this stream: tell the peer, count it, say so."""
        service = self._services.get(event.service)
        refused = self.refused_unknown if service is None else service.refused
        refused.add(reason, trio.current_time())
        self._log.warning(
            "stream_refused",
            peer=peer,
            service=event.service,
            client=event.client_address,
            reason=reason,
            detail=detail,
        )
        if tunnel.open:

            def refuse(core: Connection, now: float) -> None:
                core.refuse_stream(event.stream_id, reason, now)

            tunnel.tell_core(refuse)


class _Step(Protocol):
    """What an opening waits for."""

    def cancel(self) -> None:
        """Give up without a word, and close what is half made. Nothing, once it is done."""


class _Opening:
    """One stream that a peer has asked for, until its relay is over."""

    __slots__ = (
        "_event",
        "_peer",
        "_relay",
        "_service",
        "_services",
        "_settled",
        "_step",
        "_timer",
        "_tunnel",
    )

    def __init__(
        self,
        services: Services,
        peer: str,
        tunnel: Tunnel,
        event: StreamRequested,
        service: Service,
        relay: Relay,
    ) -> None:
        self._services = services
        self._peer = peer
        self._tunnel = tunnel
        self._event = event
        self._service = service
        self._relay = relay
        self._settled = False
        self._step: _Step | None = None
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Connect, by a task only where a name must be resolved."""
        config = self._service.config
        found = self._service.literal
        if found is None:
            scope = self._step = trio.CancelScope()
            self._tunnel.start_task(partial(self._connect_by_name, scope))
        else:
            connecting = self._step = Connecting(config.connect, *found, self._on_connected)
            connecting.begin()
        if self._step is not None:
            # Most services are connected by now and need no timer.
            self._timer = current_reactor().call_later(config.connect_timeout_s, self._too_late)

    def guarded(self, step: Callable[[], None]) -> None:
        """Take a step. A fault of ours costs this stream, never its tunnel."""
        try:
            step()
        except Exception as error:
            self._services.log.unexpected(
                "stream_failed", error, peer=self._peer, service=self._event.service
            )
            self._relay.fail(Reason.INTERNAL_ERROR)

    def on_over(self, relay: Relay) -> None:
        """The relay's: nothing more will happen on this stream."""
        self._leave()
        self._services.count_failure(self._peer, self._service, self._event, relay)

    async def _connect_by_name(self, scope: trio.CancelScope) -> None:
        config = self._service.config
        result: socket.socket | ConnectionLost
        with scope:
            try:
                result = await open_connection(config.connect, config.connect_timeout_s)
            except ConnectionLost as error:
                result = error
            self._on_connected(result)

    def _on_connected(self, result: socket.socket | ConnectionLost) -> None:
        self.guarded(partial(self._go_on, result))

    def _go_on(self, result: socket.socket | ConnectionLost) -> None:
        if isinstance(result, ConnectionLost):
            self._refuse(result)
            return
        if self._settled:
            result.close()
            return
        context = self._service.tls
        if context is None:
            self._start(TcpEndpoint(result))
            return
        endpoint = TlsEndpoint.client(result, context, server_name=self._service.server_name)

        def shaken(lost: ConnectionLost | None) -> None:
            if lost is None:
                self.guarded(lambda: self._start(endpoint))
            else:
                self._refuse(lost)

        handshake = self._step = Handshake(endpoint, None, shaken)
        handshake.begin()

    def _start(self, endpoint: TcpEndpoint | TlsEndpoint) -> None:
        self._step_over()
        event, tunnel = self._event, self._tunnel
        if self._settled or not tunnel.open:
            endpoint.abort()
            return
        try:
            tunnel.accept_stream(event.stream_id)
        except Exception:
            endpoint.abort()
            raise
        self._service.opened += 1
        self._services.log.debug(
            "stream_opened",
            peer=self._peer,
            service=event.service,
            stream=event.stream_id,
            client=event.client_address,
            group=endpoint.group if isinstance(endpoint, TlsEndpoint) else None,
        )
        self._relay.start(endpoint)

    def _too_late(self) -> None:
        timeout_s = self._service.config.connect_timeout_s
        self._refuse(ConnectionLost(Reason.CONNECT_TIMEOUT, f"no connection within {timeout_s} s"))

    def _refuse(self, error: ConnectionLost) -> None:
        if self._settled:
            return
        self._leave()
        self._tunnel.forget(self._event.stream_id)
        # What went wrong with a service's TLS is not for the peer.
        reason = Reason.SERVICE_TLS if error.reason in TLS_REFUSALS else error.reason
        self._services.refuse(self._peer, self._tunnel, self._event, reason, str(error))

    def _leave(self) -> None:
        """Give the place among the service's connections back, once."""
        if not self._settled:
            self._settled = True
            self._service.connections -= 1
            self._step_over()

    def _step_over(self) -> None:
        """Nothing is waited for any more."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        if self._timer is not None:
            self._timer.cancel()
