"""Two gateways' peers in one process, over a real loopback connection, with fake key sources."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from qproxy.address import TcpAddress
from qproxy.config.model import (
    GatewayConfig,
    IdentityConfig,
    NodeConfig,
    PeerConfig,
    RekeyConfig,
    ServiceConfig,
)
from qproxy.keys import source_label
from qproxy.log import get_logger
from qproxy.modes import Mode, Policy
from qproxy.net.listen import accept, open_listeners
from qproxy.runtime.build import TunnelContexts
from qproxy.runtime.peer import Peer
from qproxy.runtime.qkd import QuantumSide, SourceInUse
from qproxy.runtime.services import Services
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import EpochCommitted, EpochFailed, Event, TunnelClosed
from qproxy.tunnel.settings import Role
from tests.runtime.fakes import FakeLink, FakeSource
from tests.tunnel.helpers import CLIENT, KEM, SERVER, tunnel_context

NOWHERE = Path("/nonexistent")


class WatchedPeer(Peer):
    """A peer that keeps the events it was told."""

    seen: list[Event]

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        self.__dict__.setdefault("seen", []).append(event)
        super().on_tunnel_event(tunnel, event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.__dict__.get("seen", []) if isinstance(event, kind)]

    @property
    def modes(self) -> list[Mode]:
        """The mode of every committed epoch, in order."""
        return [event.mode for event in self.of(EpochCommitted)]

    @property
    def services(self) -> Services:
        """What it offers its peer."""
        return self._services


@dataclass
class GatewayPair:
    """The dialling and the dialled side, and what a test does to them."""

    client: WatchedPeer
    server: WatchedPeer
    client_sources: list[FakeSource]
    server_sources: list[FakeSource]
    service_calls: Counter[str] = field(default_factory=Counter)

    @property
    def client_source(self) -> FakeSource:
        return self.client_sources[0]

    @property
    def server_source(self) -> FakeSource:
        return self.server_sources[0]

    async def until(self, condition: Callable[[], bool], limit_s: float = 20.0) -> None:
        with trio.fail_after(limit_s):
            while not condition():
                await trio.sleep(0.02)

    async def until_mode(self, mode: Mode) -> None:
        await self.until(
            lambda: (
                (self.client.modes or [None])[-1] is mode
                and (self.server.modes or [None])[-1] is mode
            )
        )

    @property
    def closed(self) -> list[TunnelClosed]:
        return self.client.of(TunnelClosed)

    @property
    def failures(self) -> list[EpochFailed]:
        return self.client.of(EpochFailed)


def _gateway_config(name: str) -> GatewayConfig:
    identity = IdentityConfig(certificate=NOWHERE, private_key=NOWHERE, ca=NOWHERE)
    return GatewayConfig(path=NOWHERE, node=NodeConfig(name=name), identity=identity, peers={})


@asynccontextmanager
async def gateway_pair(
    *,
    client_policy: Policy = Policy.PREFER,
    server_policy: Policy = Policy.PREFER,
    service: TcpAddress | None = None,
    services: Mapping[str, ServiceConfig] | None = None,
    prepare: Callable[[FakeSource, FakeSource], None] = lambda _a, _b: None,
    tunnels: int = 1,
    paths: Sequence[str] = ("",),
    server_paths: Sequence[str] | None = None,
    at_least: tuple[int, int] = (1, 1),
    **settings: Any,
) -> AsyncIterator[GatewayPair]:
    """Run two peers; the client dials the server. Ends everything on the way out.

    Args:
        client_policy: of the side that dials.
        server_policy: of the side that is dialled.
        service: where both offer a service ``echo``, if given.
        services: further ones that both offer.
        prepare: spoils the key sources before anything runs.
        tunnels: how many the client keeps.
        paths: names of the key sources both have, each with a link of its own.
        server_paths: what the dialled side calls them, if otherwise.
        at_least: how many of them each side insists on.
        settings: of both cores.
    """
    sources: tuple[list[FakeSource], list[FakeSource]] = [], []
    for path in paths:
        link, suffix = FakeLink(path), f"-{path}" if path else ""
        for name, side in zip("ab", sources, strict=True):
            side.append(FakeSource(f"source-{name}{suffix}", link))
    prepare(sources[0][0], sources[1][0])
    names = tuple(paths), tuple(server_paths or paths)
    listeners = open_listeners(TcpAddress("127.0.0.1", 0))
    host, port = listeners[0].getsockname()
    offered = dict(services or {})
    if service is not None:
        offered["echo"] = ServiceConfig(name="echo", connect=service)

    def peer(local: str, remote: str, address: TcpAddress | None, policy: Policy) -> WatchedPeer:
        side = 0 if local == "gw-a" else 1
        config = PeerConfig(
            name=remote,
            local_sae_id=local,
            peer_sae_id=remote,
            address=address,
            policy=policy,
            key_source="fake",
            combine_at_least=at_least[side],
            rekey=RekeyConfig(
                interval_s=settings.get("rekey_interval_s", 60.0),
                max_age_s=settings.get("max_epoch_age_s", 600.0),
            ),
            tunnels=tunnels,
        )
        log = get_logger("qproxy.test")
        quantum = QuantumSide(
            config,
            [
                SourceInUse(source, "etsi-qkd-014", path)
                for source, path in zip(sources[side], names[side], strict=True)
            ],
            log,
            now=trio.current_time(),
        )
        labels = tuple(source_label("etsi-qkd-014", path) for path in names[side])
        return WatchedPeer(
            config,
            _gateway_config(local),
            replace((CLIENT, SERVER)[side], policy=policy, key_sources=labels, **settings),
            quantum,
            tls=TunnelContexts(
                client=tunnel_context(Role.CLIENT, local), server=tunnel_context(Role.SERVER, local)
            ),
            kem=KEM,
            services=Services(offered, log),
            log=log,
        )

    client = peer("gw-a", "gw-b", TcpAddress(host, port), client_policy)
    server = peer("gw-b", "gw-a", None, server_policy)

    async def accept_tunnels(listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            sock = await accept(listening)
            connection = Connection(
                Role.SERVER,
                server.settings,
                tls_context=tunnel_context(Role.SERVER, "gw-b"),
                kem=KEM,
                random_bytes=os.urandom,
                now=trio.current_time(),
            )
            nursery.start_soon(Tunnel(sock, connection, server).run)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            nursery.start_soon(accept_tunnels, listeners[0], nursery)
            nursery.start_soon(client.run)
            yield GatewayPair(client, server, *sources)
            nursery.cancel_scope.cancel()
    finally:
        for sock in listeners:
            sock.close()
