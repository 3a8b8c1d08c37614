"""An epoch for which nothing has to be waited for is made without waiting for a task."""

from __future__ import annotations

import pytest
import trio

from qproxy.errors import Reason
from qproxy.modes import Mode
from qproxy.net.reactor import current_reactor
from qproxy.runtime.epoch_driver import EpochDriver
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import EpochCommitted, EpochFailed, Event, HandshakeCompleted
from tests.runtime.pair import GatewayPair, WatchedPeer, gateway_pair


async def the_tunnel(pair: GatewayPair) -> tuple[Tunnel, EpochDriver]:
    """The client's, with no exchange under way and the driver's task asleep."""
    await pair.until(lambda: bool(pair.client.tunnels) and bool(pair.server.tunnels))
    (tunnel,) = pair.client.tunnels
    await pair.until(lambda: tunnel.connection.epoch_exchange_idle)
    await trio.testing.wait_all_tasks_blocked()
    driver = pair.client.epoch_driver(tunnel)
    assert driver is not None
    return tunnel, driver


async def test_a_due_epoch_is_offered_in_the_reactors_turn_and_not_before() -> None:
    async with gateway_pair() as pair:
        tunnel, driver = await the_tunnel(pair)
        driver.epoch_due(Reason.REKEY_BYTES)
        # Whoever says so may be in the middle of handing out the core's events.
        assert tunnel.connection.epoch_exchange_idle
        current_reactor().turn(wait=False)
        assert not tunnel.connection.epoch_exchange_idle
        await pair.until(lambda: len(pair.client.modes) == 2)
        assert pair.client.of(EpochCommitted)[-1].reason is Reason.REKEY_BYTES


async def test_a_wish_told_twice_is_one_epoch() -> None:
    async with gateway_pair() as pair:
        tunnel, driver = await the_tunnel(pair)
        driver.epoch_due(Reason.REKEY_BYTES)
        driver.epoch_due(Reason.REKEY_RECORDS)
        current_reactor().turn(wait=False)
        await pair.until(lambda: tunnel.connection.epoch_exchange_idle)
        await trio.testing.wait_all_tasks_blocked()
        assert [event.reason for event in pair.client.of(EpochCommitted)[1:]] == [
            Reason.REKEY_RECORDS
        ]


async def test_a_wish_during_an_exchange_is_followed_after_it() -> None:
    async with gateway_pair() as pair:
        _tunnel, driver = await the_tunnel(pair)
        driver.epoch_due(Reason.REKEY_BYTES)
        current_reactor().turn(wait=False)
        driver.epoch_due(Reason.REKEY_RECORDS)
        current_reactor().turn(wait=False)
        await pair.until(lambda: len(pair.client.modes) == 3)
        assert pair.client.of(EpochCommitted)[-1].reason is Reason.REKEY_RECORDS


async def test_attempts_that_fail_at_once_come_slower_and_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_pair() as pair:
        _tunnel, driver = await the_tunnel(pair)
        decided: list[float] = []
        monkeypatch.setattr(driver, "_decide", lambda: decided.append(trio.current_time()))
        for _ in range(2):
            driver.on_failed(EpochFailed(2, 1, Mode.HYBRID, Reason.EPOCH_TIMEOUT, False))
            current_reactor().turn(wait=False)
        # The first retry was at once, the second is not.
        assert len(decided) == 1
        await pair.until(lambda: len(decided) > 1)
        assert decided[1] - decided[0] >= 0.05


async def test_a_fault_in_a_decision_costs_its_tunnel_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_pair() as pair:
        tunnel, driver = await the_tunnel(pair)

        def fault() -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(driver, "_decide", fault)
        driver.epoch_due(Reason.REKEY_BYTES)
        await tunnel.closed.wait()
        await pair.until(lambda: bool(pair.client.tunnels))
        assert pair.client.tunnels[0] is not tunnel


async def test_what_the_peer_waits_for_leaves_before_anybody_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting: list[tuple[type[Event], int]] = []
    told = WatchedPeer.on_tunnel_event

    def on_tunnel_event(peer: WatchedPeer, tunnel: Tunnel, event: Event) -> None:
        waiting.append((type(event), tunnel.connection.output_pending))
        told(peer, tunnel, event)

    monkeypatch.setattr(WatchedPeer, "on_tunnel_event", on_tunnel_event)
    async with gateway_pair() as pair:
        await the_tunnel(pair)
    # TLS Finished, CONFIRM and COMMITTED would have waited with these.
    assert (HandshakeCompleted, 0) in waiting
    assert [count for kind, count in waiting if kind is EpochCommitted] == [0, 0]
    assert [count for kind, count in waiting if kind is HandshakeCompleted] == [0, 0]
