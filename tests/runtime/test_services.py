"""What answers the streams a peer opens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import trio

from qproxy.address import TcpAddress
from qproxy.config.model import PeerConfig, ServiceConfig
from qproxy.errors import Reason
from qproxy.log import get_logger
from qproxy.net.listen import open_listeners
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.relay import Relay
from qproxy.runtime.services import Services
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import StreamRequested

PEER = PeerConfig(name="gw-a", local_sae_id="gw-b", peer_sae_id="gw-a")


class FakeTunnel:
    """A tunnel that starts tasks when the test says so, and notes what the core was told."""

    open = True

    def __init__(self) -> None:
        self.relays: dict[int, Relay] = {}
        self.tasks: list[Callable[[], Awaitable[None]]] = []
        self.refused: list[tuple[int, Reason]] = []

    def meets(self, policy: ServicePolicy | None) -> bool:
        return True

    def attach(self, stream_id: int, **options: object) -> Relay:
        relay = self.relays[stream_id] = Relay(cast("Tunnel", self), stream_id)
        return relay

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        self.tasks.append(task)

    def forget(self, stream_id: int) -> None:
        self.relays.pop(stream_id, None)

    def reset(self, stream_id: int, reason: Reason) -> None:
        pass

    def tell_core(self, action: Callable[[Connection, float], None]) -> None:
        action(cast("Connection", self), trio.current_time())

    def refuse_stream(self, stream_id: int, reason: Reason, now: float) -> None:
        self.refused.append((stream_id, reason))


async def test_streams_opened_in_one_breath_do_not_pass_the_limit_of_connections() -> None:
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    nobody_there = TcpAddress(*listener.getsockname())
    listener.close()
    config = ServiceConfig(name="web", connect=nobody_there, max_connections=1)
    services = Services({"web": config}, get_logger("qproxy.test"))
    tunnel = FakeTunnel()
    for stream_id in (1, 3, 5):
        services.answer(PEER, cast("Tunnel", tunnel), StreamRequested(stream_id, "web", "", ""))
    assert len(tunnel.tasks) == 1
    assert tunnel.refused == [(3, Reason.LIMIT_REACHED), (5, Reason.LIMIT_REACHED)]

    await tunnel.tasks.pop()()
    assert services.configured["web"].connections == 0
    services.answer(PEER, cast("Tunnel", tunnel), StreamRequested(7, "web", "", ""))
    assert len(tunnel.tasks) == 1
