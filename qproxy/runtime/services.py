"""The far end of a stream: connecting to the real service, plain or over TLS."""

from __future__ import annotations

from collections.abc import Mapping

import trio
from OpenSSL import SSL

from qproxy.address import TcpAddress
from qproxy.config.model import PeerConfig, ServiceConfig
from qproxy.errors import ProtocolError, Reason
from qproxy.log import Logger
from qproxy.net.endpoint import TLS_REFUSALS, ConnectionLost, Endpoint, TcpEndpoint, TlsEndpoint
from qproxy.net.listen import open_connection
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

    async def connect(self) -> Endpoint:
        """Connect, TLS included. Raises ConnectionLost with the reason for a refusal."""
        with trio.move_on_after(self.config.connect_timeout_s):
            sock = await open_connection(self.config.connect, self.config.connect_timeout_s)
            if self._context is None:
                return TcpEndpoint(sock)
            endpoint = TlsEndpoint.client(sock, self._context, server_name=self._server_name)
            try:
                await endpoint.handshake()
            except BaseException:
                endpoint.close()
                raise
            return endpoint
        raise ConnectionLost(
            Reason.CONNECT_TIMEOUT, f"no connection within {self.config.connect_timeout_s} s"
        )


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
        """Refuse a stream at once, or connect to its service in a task of the tunnel's."""
        service = self._services.get(event.service)
        refusal = self._refusal(peer, tunnel, service)
        if service is None or refusal is not None:
            self._refuse(peer.name, tunnel, event, refusal or Reason.SERVICE_UNKNOWN, "")
            return
        relay = tunnel.attach(
            event.stream_id,
            idle_timeout_s=service.config.idle_timeout_s,
            policy=service.policy(peer),
        )

        async def connect() -> None:
            await self._connect(peer.name, tunnel, event, service, relay)

        # Counted here and not by the task, or one burst of streams would pass the limit.
        service.connections += 1
        tunnel.start_task(connect)

    def _refusal(self, peer: PeerConfig, tunnel: Tunnel, service: Service | None) -> Reason | None:
        if service is None:
            return Reason.SERVICE_UNKNOWN
        if not service.allows(peer.name):
            return Reason.SERVICE_FORBIDDEN
        if not tunnel.meets(service.policy(peer)):
            return Reason.POLICY_REQUIRE
        if service.connections >= service.config.max_connections:
            return Reason.LIMIT_REACHED
        return None

    async def _connect(
        self, peer: str, tunnel: Tunnel, event: StreamRequested, service: Service, relay: Relay
    ) -> None:
        try:
            try:
                endpoint = await service.connect()
            except (ConnectionLost, ProtocolError) as error:
                # What went wrong with a service's TLS is not for the peer.
                reason = Reason.SERVICE_TLS if error.reason in TLS_REFUSALS else error.reason
                self._refuse(peer, tunnel, event, reason, str(error))
                return
            if relay.ended or not tunnel.open:
                endpoint.abort()
                tunnel.forget(event.stream_id)
                self._count_failure(peer, service, event, relay)
                return
            service.opened += 1
            tunnel.tell_core(lambda core, _now: core.accept_stream(event.stream_id))
            self._log.debug(
                "stream_opened",
                peer=peer,
                service=event.service,
                stream=event.stream_id,
                client=event.client_address,
                group=endpoint.group if isinstance(endpoint, TlsEndpoint) else None,
            )
            await relay.run(endpoint)
            self._count_failure(peer, service, event, relay)
        except Exception as error:  # a fault of ours costs this stream, never its tunnel
            self._log.unexpected("stream_failed", error, peer=peer, service=event.service)
            relay.fail(Reason.INTERNAL_ERROR)
            self._count_failure(peer, service, event, relay)
        finally:
            service.connections -= 1

    def _count_failure(
        self, peer: str, service: Service, event: StreamRequested, relay: Relay
    ) -> None:
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

    def _refuse(
        self, peer: str, tunnel: Tunnel, event: StreamRequested, reason: Reason, detail: str
    ) -> None:
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
        relay = tunnel.relays.get(event.stream_id)
        tunnel.forget(event.stream_id)
        if tunnel.open and not (relay is not None and relay.ended):

            def refuse(core: Connection, now: float) -> None:
                core.refuse_stream(event.stream_id, reason, now)

            tunnel.tell_core(refuse)
