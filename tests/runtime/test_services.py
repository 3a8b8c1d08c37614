"""What answers the streams a peer opens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio
import trio.testing

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
from tests.runtime.test_hot_path import clock, settle, tunnels

__all__ = ["clock"]

PEER = PeerConfig(name="gw-a", local_sae_id="gw-b", peer_sae_id="gw-a")


class FakeTunnel:
    """A tunnel that notes what the core was told."""

    open = True

    def __init__(self) -> None:
        self.relays: dict[int, Relay] = {}
        self.refused: list[tuple[int, Reason]] = []
        self.accepted: list[int] = []

    def meets(self, policy: ServicePolicy | None) -> bool:
        return True

    def attach(self, stream_id: int, **options: object) -> Relay:
        relay = self.relays[stream_id] = Relay(cast("Tunnel", self), stream_id)
        return relay

    def accept_stream(self, stream_id: int) -> None:
        self.accepted.append(stream_id)

    def forget(self, stream_id: int) -> None:
        self.relays.pop(stream_id, None)

    def reset(self, stream_id: int, reason: Reason) -> None:
        pass

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        trio.lowlevel.spawn_system_task(task)

    def tell_core(self, action: Callable[[Connection, float], None]) -> None:
        action(cast("Connection", self), trio.current_time())

    def refuse_stream(self, stream_id: int, reason: Reason, now: float) -> None:
        self.refused.append((stream_id, reason))


async def test_streams_opened_in_one_breath_do_not_pass_the_limit_of_connections() -> None:
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    config = ServiceConfig(
        name="web", connect=TcpAddress(*listener.getsockname()), max_connections=1
    )
    services = Services({"web": config}, get_logger("qproxy.test"))
    tunnel = FakeTunnel()

    def request(stream_id: int) -> None:
        event = StreamRequested(stream_id, "web", "", "")
        services.answer(PEER, cast("Tunnel", tunnel), event)

    with listener:
        for stream_id in (1, 3, 5):
            request(stream_id)
        assert tunnel.refused == [(3, Reason.LIMIT_REACHED), (5, Reason.LIMIT_REACHED)]
        assert services.configured["web"].connections == 1

        tunnel.relays[1].on_reset(Reason.CONNECTION_RESET)
        assert services.configured["web"].connections == 0
        request(7)
        assert services.configured["web"].connections == 1
        tunnel.relays[7].on_reset(Reason.CONNECTION_RESET)


async def test_a_service_that_refuses_gives_its_place_back() -> None:
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    nobody_there = TcpAddress(*listener.getsockname())
    listener.close()
    config = ServiceConfig(name="web", connect=nobody_there)
    services = Services({"web": config}, get_logger("qproxy.test"))
    tunnel = FakeTunnel()
    services.answer(PEER, cast("Tunnel", tunnel), StreamRequested(1, "web", "", ""))
    with trio.fail_after(10):
        while not tunnel.refused:
            await trio.sleep(0.001)
    assert tunnel.refused == [(1, Reason.CONNECT_REFUSED)]
    assert services.configured["web"].connections == 0
    assert tunnel.relays == {}


async def test_a_stream_reset_while_its_service_is_connected_to_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # TEST-NET-1 (RFC 5737): nothing answers from there, or the kernel refuses at once.
    config = ServiceConfig(name="web", connect=TcpAddress("192.0.2.1", 9), connect_timeout_s=5.0)
    services = Services({"web": config}, get_logger("qproxy.test"))
    tunnel = FakeTunnel()
    services.answer(PEER, cast("Tunnel", tunnel), StreamRequested(1, "web", "", ""))
    if 1 in tunnel.relays:
        assert services.configured["web"].connections == 1
        tunnel.relays[1].on_reset(Reason.CONNECTION_RESET)
    assert services.configured["web"].connections == 0
    await trio.sleep(60)
    assert (1, Reason.CONNECT_TIMEOUT) not in tunnel.refused


async def test_a_stream_reset_while_its_services_name_is_resolved_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving: list[str] = []

    async def never(address: TcpAddress, _timeout_s: float) -> None:
        resolving.append(address.host)
        try:
            await trio.sleep_forever()
        finally:
            resolving.remove(address.host)

    monkeypatch.setattr("qproxy.runtime.services.open_connection", never)
    config = ServiceConfig(name="web", connect=TcpAddress("web.test", 80))
    services = Services({"web": config}, get_logger("qproxy.test"))
    tunnel = FakeTunnel()
    services.answer(PEER, cast("Tunnel", tunnel), StreamRequested(1, "web", "", ""))
    await trio.testing.wait_all_tasks_blocked()
    assert resolving == ["web.test"]
    tunnel.relays[1].on_reset(Reason.CONNECTION_RESET)
    await trio.testing.wait_all_tasks_blocked()
    assert resolving == []
    assert services.configured["web"].connections == 0


async def test_a_fault_after_a_services_name_was_resolved_costs_the_stream_and_not_the_tunnel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    connect = TcpAddress("localhost", listener.getsockname()[1])
    services = Services(
        {"web": ServiceConfig(name="web", connect=connect)}, get_logger("qproxy.test")
    )
    tunnel = FakeTunnel()

    def broken(_stream_id: int) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(tunnel, "accept_stream", broken)
    with listener:
        services.answer(PEER, cast("Tunnel", tunnel), StreamRequested(1, "web", "", ""))
        relay = tunnel.relays[1]
        with trio.fail_after(10):
            while not relay.over:
                await trio.sleep(0.001)
    assert relay.failure is Reason.INTERNAL_ERROR
    assert services.configured["web"].connections == 0


@pytest.mark.parametrize("service", ["unknown", "refusing", "web", "named"])
async def test_a_request_whose_reset_came_with_it_is_nothing_to_answer(
    service: str, clock: trio.testing.MockClock
) -> None:
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    (gone,) = open_listeners(TcpAddress("127.0.0.1", 0))
    web, nobody = (TcpAddress(*sock.getsockname()) for sock in (listener, gone))
    gone.close()
    addresses = {"web": web, "refusing": nobody, "named": TcpAddress("localhost", web.port)}
    services = Services(
        {name: ServiceConfig(name=name, connect=connect) for name, connect in addresses.items()},
        get_logger("qproxy.test"),
    )
    with listener:
        async with tunnels(lambda tunnel, event: services.answer(PEER, tunnel, event)) as (
            near,
            far,
        ):
            now = trio.current_time()
            stream_id = near.connection.open_stream(service, now=now)
            near.connection.reset_stream(stream_id, Reason.CONNECTION_RESET, now)
            near.flush()
            await settle()
            assert far.open
            assert far.relays == {}
    assert services.refused_unknown.counts == {}
    for configured in services.configured.values():
        assert (configured.connections, configured.opened) == (0, 0)
        assert configured.failed.counts == {}
