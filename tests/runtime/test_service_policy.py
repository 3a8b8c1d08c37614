"""Two services on one pair of gateways, one stricter than the other, while a KME dies and heals."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.config.model import ListenerConfig, ServiceConfig
from qproxy.errors import Reason
from qproxy.log import get_logger
from qproxy.modes import Mode, Policy
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.listeners import Listener
from qproxy.runtime.peer import TUNNEL_WAIT_S, Peer
from qproxy.runtime.services import Service
from qproxy.runtime.tunnel import Tunnel
from tests.runtime.fakes import FakeSource
from tests.runtime.pair import GatewayPair, gateway_pair

pytestmark = pytest.mark.hastened

#: How long payments live without a QKD key here, in seconds.
LIMIT_S = 1.0
#: Less than an application would wait for a tunnel: what ends sooner did not wait.
AT_ONCE_S = TUNNEL_WAIT_S / 2
CHUNK_BYTES = 10_000
#: Between two chunks: much less than anything here takes that could harm a stream.
PAUSE_S = 0.005


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass


@dataclass
class Bank:
    """The pair, and the two listeners in front of its dialling side."""

    pair: GatewayPair
    payments: Listener
    monitoring: Listener
    ports: dict[str, int] = field(default_factory=dict)
    streams: list[trio.SocketStream] = field(default_factory=list)

    @property
    def service(self) -> Service:
        """Payments at the far end."""
        return self.pair.server.services.configured["payments"]

    async def connect(self, name: str) -> trio.SocketStream:
        self.streams.append(await trio.open_tcp_stream("127.0.0.1", self.ports[name]))
        return self.streams[-1]

    async def pay(self, stream: trio.SocketStream) -> bytes:
        """One exchange over a stream."""
        with trio.fail_after(AT_ONCE_S):
            await stream.send_all(b"pay")
            return bytes(await stream.receive_some(100))

    async def is_refused(self, name: str) -> None:
        """Connect, and get an RST: possibly before the client knows that it is connected."""
        with pytest.raises((trio.BrokenResourceError, OSError)):
            await (await self.connect(name)).receive_some(100)

    async def is_reset(self, stream: trio.SocketStream) -> None:
        """Wait for the RST."""
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(100)
        await stream.aclose()


@asynccontextmanager
async def bank(*strict_ends: str, **options: Any) -> AsyncIterator[Bank]:
    """Two gateways with two services, payments stricter at the ends named."""
    async with trio.open_nursery() as nursery:
        served = await _serve(nursery)
        strict: dict[str, dict[str, Any]] = {
            end: {"policy": Policy.REQUIRE, "max_without_qkd_s": LIMIT_S} for end in strict_ends
        }
        services = {
            "payments": ServiceConfig(name="payments", connect=served, **strict.get("far", {})),
            "monitoring": ServiceConfig(name="monitoring", connect=served, policy=Policy.PREFER),
        }
        async with gateway_pair(services=services, rekey_interval_s=0.2, **options) as pair:
            made = Bank(
                pair,
                _listener("payments", pair.client, **strict.get("near", {})),
                _listener("monitoring", pair.client, policy=Policy.PREFER),
            )
            for listener in (made.payments, made.monitoring):
                listener.open()
                made.ports[listener.config.name] = listener.sockets[0].getsockname()[1]
                nursery.start_soon(listener.run)
            try:
                yield made
            finally:
                made.payments.close()
                made.monitoring.close()
                for stream in made.streams:
                    stream.socket.close()
                nursery.cancel_scope.cancel()


async def _serve(nursery: trio.Nursery) -> TcpAddress:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        await trio.serve_listeners(echo, listeners)

    nursery.start_soon(serve)
    return TcpAddress("127.0.0.1", listeners[0].socket.getsockname()[1])


def _listener(name: str, peer: Peer, **options: Any) -> Listener:
    config = ListenerConfig(
        name=name, listen=TcpAddress("127.0.0.1", 0), peer="gw-b", service=name, **options
    )
    return Listener(config, peer, get_logger("qproxy.test"))


class Monitor:
    """A long-lived stream that sends again and again, and counts what came back as it was sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.echoed_bytes = 0
        self._stream = stream
        self._stop = False
        self._sent_bytes = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        number = 0
        task_status.started()
        while not self._stop:
            chunk = number.to_bytes(4, "big") * (CHUNK_BYTES // 4)
            await self._stream.send_all(chunk)
            received = b""
            while len(received) < len(chunk):
                part = await self._stream.receive_some(len(chunk) - len(received))
                assert part, "monitoring ended"
                received += bytes(part)
            assert received == chunk
            self.echoed_bytes += len(chunk)
            number += 1
            await trio.sleep(PAUSE_S)
        await self._stream.send_eof()
        assert await self._stream.receive_some() == b""
        await self._stream.aclose()

    def stop(self) -> None:
        self._stop = True


@pytest.mark.parametrize("strict_ends", [("near", "far"), ("near",), ("far",)])
async def test_payments_stop_at_the_limit_and_come_back_while_monitoring_never_notices(
    strict_ends: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with bank(*strict_ends) as it:
        pair = it.pair
        await pair.until_mode(Mode.HYBRID)
        payment = await it.connect("payments")
        assert await it.pay(payment) == b"pay"
        async with trio.open_nursery() as nursery:
            monitor = Monitor(await it.connect("monitoring"))
            await nursery.start(monitor.run)

            pair.server_source.failure = Reason.KME_UNAVAILABLE
            pair.client_source.failure = Reason.KME_UNAVAILABLE
            await it.is_reset(payment)
            await pair.until(
                lambda: (
                    it.payments.counters.failed.counts[Reason.QKD_TOO_OLD] == 1
                    and it.service.failed.counts[Reason.QKD_TOO_OLD] == 1
                )
            )
            assert Mode.CLASSICAL_ONLY in pair.client.modes
            assert [entry.levelno for entry in caplog.records if _says(entry, "stream_reset")] == (
                [logging.WARNING] * 2
            )

            with trio.fail_after(AT_ONCE_S):
                await it.is_refused("payments")
            near, far = it.payments.counters, it.service
            if "near" in strict_ends:
                await pair.until(lambda: near.refused.counts[Reason.POLICY_REQUIRE] == 1)
                assert far.refused.counts.total() == 0
                assert any(_says(entry, "client_refused") for entry in caplog.records)
            else:
                await pair.until(lambda: near.failed.counts[Reason.POLICY_REQUIRE] == 1)
                assert far.refused.counts[Reason.POLICY_REQUIRE] == 1
                assert any(_says(entry, "stream_refused") for entry in caplog.records)

            assert it.payments.policy_met is ("near" not in strict_ends)
            before = monitor.echoed_bytes
            await pair.until(lambda: monitor.echoed_bytes > before)
            pair.server_source.failure = pair.client_source.failure = None
            await pair.until_mode(Mode.HYBRID)
            payment = await it.connect("payments")
            assert await it.pay(payment) == b"pay"
            await payment.aclose()
            assert it.payments.policy_met
            monitor.stop()
        assert it.monitoring.counters.failed.counts.total() == 0
        assert it.monitoring.counters.refused.counts.total() == 0
        assert pair.client.totals.tunnels == 1
        assert not pair.closed


async def test_a_payment_is_refused_at_once_where_no_key_ever_came() -> None:
    def broken(client: FakeSource, _server: FakeSource) -> None:
        client.failure = Reason.KME_UNREACHABLE

    async with bank("near", prepare=broken) as it:
        await it.pair.until_mode(Mode.CLASSICAL_ONLY)
        with trio.fail_after(AT_ONCE_S):
            await it.is_refused("payments")
        monitoring = await it.connect("monitoring")
        assert await it.pay(monitoring) == b"pay"
        await monitoring.aclose()


class FakeTunnel:
    """What choosing among tunnels looks at."""

    usable = True
    draining = False

    def __init__(self, *, streams: int, fresh: bool) -> None:
        self.relays = dict.fromkeys(range(streams))
        self.fresh = fresh

    def meets(self, policy: ServicePolicy | None) -> bool:
        return self.fresh or policy is None or not policy.requires


async def test_a_tunnel_that_meets_the_policy_goes_before_one_with_fewer_streams() -> None:
    async with gateway_pair() as pair:
        await pair.until_mode(Mode.HYBRID)
        kept = pair.client.tunnels
        idle = FakeTunnel(streams=0, fresh=False)
        busy, busier = (FakeTunnel(streams=number, fresh=True) for number in (5, 9))
        pair.client.tunnels = cast(list[Tunnel], [busier, idle, busy])
        strict = ServicePolicy(policy=Policy.REQUIRE, max_without_qkd_s=LIMIT_S)
        relaxed = ServicePolicy(policy=Policy.PREFER, max_without_qkd_s=LIMIT_S)
        assert await pair.client.usable_tunnel(strict) is cast(Tunnel, busy)
        assert await pair.client.usable_tunnel(relaxed) is cast(Tunnel, idle)
        assert await pair.client.usable_tunnel() is cast(Tunnel, idle)
        pair.client.tunnels = cast(list[Tunnel], [idle])
        assert await pair.client.usable_tunnel(strict) is cast(Tunnel, idle)
        pair.client.tunnels = kept


def _says(record: logging.LogRecord, event: str) -> bool:
    return record.getMessage().startswith(event)
