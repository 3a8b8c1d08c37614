"""When epochs are made: stretched while keys are short, apart in a pool, never at will."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from qproxy.admin.snapshot import snapshot_peer
from qproxy.errors import Reason
from qproxy.modes import Mode
from qproxy.runtime import epoch_driver
from qproxy.runtime.epoch_driver import REQUEST_PAUSE_S, EpochDriver
from qproxy.tunnel.events import EpochCommitted, EpochDue
from tests.runtime.fakes import FakeSource
from tests.runtime.pair import GatewayPair, gateway_pair

pytestmark = pytest.mark.hastened

#: A key of 256 bits a second.
ONE_KEY_PER_S_BPS = 256.0


def driver_of(pair: GatewayPair) -> EpochDriver:
    (driver,) = pair.client._drivers.values()
    return driver


def poor(client: FakeSource, server: FakeSource) -> None:
    client.key_rate_bps = server.key_rate_bps = ONE_KEY_PER_S_BPS


# --- key economy ----------------------------------------------------------------------------------


async def test_short_keys_lengthen_the_interval_and_status_says_so() -> None:
    async with gateway_pair(rekey_interval_s=0.1, prepare=poor) as pair:
        await pair.until(lambda: len(pair.client.of(EpochDue)) >= 2)
        driver = driver_of(pair)
        assert driver.economy
        # One key a second, and a little from what is in stock.
        assert 0.8 < driver.rekey_interval_s <= 1.0
        (tunnel,) = snapshot_peer(pair.client, trio.current_time()).tunnels
        assert tunnel.economy
        assert tunnel.rekey_interval_s == pytest.approx(driver.rekey_interval_s, abs=0.1)
        await pair.until(lambda: driver.waits_for is Reason.KEYS_EXHAUSTED)
        count, began = len(pair.client.modes), trio.current_time()
        await pair.until(lambda: len(pair.client.modes) >= count + 2)
        assert trio.current_time() - began > 5 * 0.1
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert not pair.closed


async def test_enough_keys_again_mean_the_configured_interval_again() -> None:
    async with gateway_pair(rekey_interval_s=0.1, prepare=poor) as pair:
        await pair.until(lambda: bool(pair.client._drivers) and driver_of(pair).economy)
        pair.client_source.key_rate_bps = 100_000.0
        await pair.until(lambda: not driver_of(pair).economy)
        count = len(pair.client.modes)
        assert driver_of(pair).rekey_interval_s == 0.1
        await pair.until(lambda: len(pair.client.modes) >= count + 10)
        assert set(pair.client.modes) == {Mode.HYBRID}


async def test_a_fallen_link_does_not_wait_for_a_stretched_interval() -> None:
    async with gateway_pair(rekey_interval_s=0.5, prepare=poor) as pair:
        pair.client_source.key_rate_bps = ONE_KEY_PER_S_BPS / 100
        await pair.until(
            lambda: bool(pair.client._drivers) and driver_of(pair).rekey_interval_s > 10
        )
        await pair.until(lambda: bool(pair.client.of(EpochDue)))
        pair.client_source.failure = Reason.KME_UNREACHABLE
        with trio.fail_after(5):
            await pair.until_mode(Mode.CLASSICAL_ONLY)


async def test_what_a_limit_of_the_key_stands_behind_is_not_stretched() -> None:
    async with gateway_pair(rekey_interval_s=0.5, prepare=poor) as pair:
        pair.client_source.key_rate_bps = ONE_KEY_PER_S_BPS / 100
        await pair.until(
            lambda: bool(pair.client._drivers) and driver_of(pair).rekey_interval_s > 10
        )
        await pair.until(lambda: driver_of(pair).waits_for is Reason.KEYS_EXHAUSTED)
        driver_of(pair).epoch_due(Reason.REKEY_BYTES)
        with trio.fail_after(5):
            await pair.until(lambda: pair.client.of(EpochCommitted)[-1].epoch >= 2)
        assert pair.client.of(EpochCommitted)[-1].reason is Reason.REKEY_BYTES


# --- staggering -----------------------------------------------------------------------------------


def recorded(monkeypatch: pytest.MonkeyPatch, share: float) -> list[float]:
    """How far epochs might have been put off each time; they are put off by this share of it."""
    longest: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        longest.append(high)
        return share * high

    monkeypatch.setattr(epoch_driver.random, "uniform", uniform)
    return longest


async def test_tunnels_of_a_pool_put_their_rekeys_off_by_a_tenth_of_the_interval_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_pair(tunnels=3, rekey_interval_s=0.5) as pair:
        await pair.until(lambda: len(pair.client.tunnels) == 3)
        longest = recorded(monkeypatch, 1.0)
        await pair.until(lambda: len(pair.client.modes) >= 9)
        assert longest
        assert longest == [pytest.approx(0.05)] * len(longest)
        assert not pair.closed


async def test_putting_off_never_uses_up_the_time_to_the_epochs_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_pair(tunnels=2, rekey_interval_s=1.0, max_epoch_age_s=1.1) as pair:
        await pair.until(lambda: len(pair.client.tunnels) == 2)
        longest = recorded(monkeypatch, 0.0)
        await pair.until(lambda: bool(longest))
        assert longest[0] <= 0.25 * 0.1 + 0.001


async def test_a_single_tunnel_is_punctual(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = recorded(monkeypatch, 1.0)
    async with gateway_pair(rekey_interval_s=0.1) as pair:
        await pair.until(lambda: len(pair.client.modes) >= 4)
        assert longest == []


# --- what the peer and the source can cause -------------------------------------------------------


def ask(pair: GatewayPair) -> None:
    (tunnel,) = pair.server.tunnels
    tunnel.tell_core(lambda core, now: core.request_epoch(Reason.LINK_DEGRADED, now))


async def while_asking(pair: GatewayPair, condition: Callable[[], bool]) -> float:
    began = trio.current_time()
    with trio.fail_after(20):
        while not condition():
            ask(pair)
            await trio.sleep(0.005)
    return trio.current_time() - began


async def test_requests_for_epochs_are_followed_once_a_second_and_the_last_is_not_lost() -> None:
    async with gateway_pair() as pair:
        await pair.until(lambda: bool(pair.client.tunnels) and bool(pair.server.tunnels))
        took_s = await while_asking(pair, lambda: len(pair.client.modes) >= 3)
        assert took_s >= REQUEST_PAUSE_S
        ask(pair)
        count = len(pair.client.modes)
        await pair.until(lambda: len(pair.client.modes) == count + 1)


async def test_requests_that_end_in_rejects_cost_a_key_a_second_at_most() -> None:
    async with gateway_pair() as pair:
        await pair.until(lambda: bool(pair.client.tunnels) and bool(pair.server.tunnels))
        pair.server_source.failure = Reason.KME_UNREACHABLE
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        orphaned = pair.client.quantum.paths[0].stock.counters.orphaned
        await while_asking(
            pair, lambda: pair.client.quantum.paths[0].stock.counters.orphaned >= orphaned + 1
        )
        took_s = await while_asking(
            pair, lambda: pair.client.quantum.paths[0].stock.counters.orphaned >= orphaned + 2
        )
        assert took_s >= REQUEST_PAUSE_S / 2


async def test_keys_whose_ids_cannot_be_told_cost_neither_the_tunnel_nor_the_rest() -> None:
    async with gateway_pair() as pair:
        await pair.until(lambda: bool(pair.client.tunnels))
        stock: Any = pair.client.quantum.paths[0].stock
        pair.client_source.id_suffix = "x" * 200
        stock.discard_all()
        pair.client.quantum.paths[0].nudge()
        await pair.until(lambda: stock.counters.discarded > 40)
        pair.client_source.id_suffix = ""
        await pair.until(lambda: stock.announced > 0)
        assert not pair.closed


async def test_a_source_of_nothing_but_unusable_ids_means_classical_only() -> None:
    def unusable(client: FakeSource, _server: FakeSource) -> None:
        client.id_suffix = "x" * 200

    async with gateway_pair(prepare=unusable) as pair:
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        pair.client_source.id_suffix = ""
        await pair.until_mode(Mode.HYBRID)
        assert not pair.closed
