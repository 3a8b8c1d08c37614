"""Two gateways with two key sources each: both in every epoch, one lost, one lying, one scarce."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from qproxy.admin.assess import assess
from qproxy.admin.snapshot import snapshot_peer
from qproxy.errors import Reason
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState
from qproxy.tunnel.events import EpochCommitted, EpochFailed, KeysNeeded
from tests.admin import made
from tests.runtime.fakes import FakeSource
from tests.runtime.pair import GatewayPair, WatchedPeer, gateway_pair

pytestmark = pytest.mark.hastened

PATHS = ("north", "south")
BOTH = {"source-a-north", "source-a-south"}


def last_sources(peer: WatchedPeer) -> set[str]:
    """Names of the sources in the last epoch."""
    committed = peer.of(EpochCommitted)
    return {origin.source for origin in committed[-1].origins} if committed else set()


def two_sources(**options: Any) -> Any:
    return gateway_pair(paths=PATHS, rekey_interval_s=0.3, **options)


async def until_sources(pair: GatewayPair, names: set[str]) -> None:
    await pair.until(lambda: last_sources(pair.client) == names)


async def test_every_epoch_has_a_key_of_each() -> None:
    async with two_sources() as pair:
        await pair.until(lambda: len(pair.client.modes) >= 4)
        assert set(pair.client.modes) == {Mode.HYBRID}
        for peer, side in ((pair.client, "a"), (pair.server, "b")):
            for event in peer.of(EpochCommitted)[:4]:
                assert [origin.path for origin in event.origins] == list(PATHS)
                assert [o.source for o in event.origins] == [f"source-{side}-{p}" for p in PATHS]
                assert all(origin.kind == "etsi-qkd-014" for origin in event.origins)
        offered = pair.server.of(KeysNeeded)[0].keys
        assert [key.source for key in offered] == ["etsi-qkd-014/north", "etsi-qkd-014/south"]
        assert not pair.failures


@pytest.mark.parametrize("lost", ["north", pytest.param("south", marks=pytest.mark.slow)])
async def test_losing_one_at_the_dialling_end_is_degraded_and_heals_by_itself(lost: str) -> None:
    async with two_sources() as pair:
        await until_sources(pair, BOTH)
        quantum = pair.client.quantum
        await pair.until(lambda: quantum.state is LinkState.HEALTHY)
        source = pair.client_sources[PATHS.index(lost)]
        source.failure = Reason.KME_UNREACHABLE
        await until_sources(pair, BOTH - {source.name})
        await pair.until(lambda: quantum.state is LinkState.DEGRADED)
        assert quantum.reason is Reason.KME_UNREACHABLE
        peer = snapshot_peer(pair.client, trio.current_time())
        assert peer.link is not None
        assert peer.link.state is LinkState.DEGRADED
        states = {source.path: source.link.state for source in peer.sources}
        assert states == {
            lost: LinkState.DOWN,
            **{p: LinkState.HEALTHY for p in PATHS if p != lost},
        }
        warned = [f.detail for f in assess(made.gateway(peers=(peer,))).warnings]
        assert any(source.name in detail and "down" in detail for detail in warned)
        source.failure = None
        await until_sources(pair, BOTH)
        await pair.until(lambda: quantum.state is LinkState.HEALTHY)
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert not pair.closed


@pytest.mark.parametrize("lost", ["north", pytest.param("south", marks=pytest.mark.slow)])
async def test_losing_one_at_the_dialled_end_costs_neither_mode_nor_tunnel(lost: str) -> None:
    async with two_sources() as pair:
        await until_sources(pair, BOTH)
        source = pair.server_sources[PATHS.index(lost)]
        source.failure = Reason.KME_UNREACHABLE
        rest = BOTH - {f"source-a-{lost}"}
        await until_sources(pair, rest)
        await pair.until(lambda: pair.client.quantum.state is LinkState.DEGRADED)
        source.failure = None
        await until_sources(pair, BOTH)
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert not pair.closed


async def test_a_source_that_hangs_does_not_hold_up_the_other() -> None:
    async with two_sources() as pair:
        await until_sources(pair, BOTH)
        pair.client_sources[0].hang = True
        await until_sources(pair, {"source-a-south"})
        assert set(pair.client.modes) == {Mode.HYBRID}


@pytest.mark.parametrize("liar", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_lying_source_is_found_out_and_left_out(liar: int) -> None:
    """Neither end can say whose key made a MAC wrong; yet the honest path's keys stay in use."""
    async with two_sources() as pair:
        await until_sources(pair, BOTH)
        pair.server_sources[liar].wrong_keys = True
        await until_sources(pair, {f"source-a-{PATHS[1 - liar]}"})
        path = pair.client.quantum.paths[liar]
        await pair.until(lambda: path.health.state is LinkState.DOWN)
        assert path.health.reason is Reason.KEY_MISMATCH
        honest = pair.client.quantum.paths[1 - liar]
        assert honest.health.state is not LinkState.DOWN
        count = len(pair.client.modes)
        await pair.until(lambda: len(pair.client.modes) >= count + 5)
        assert set(pair.client.modes) == {Mode.HYBRID}
        pair.server_sources[liar].wrong_keys = False
        await until_sources(pair, BOTH)
        assert not pair.closed


async def test_both_lost_is_down_and_falls_back() -> None:
    async with two_sources() as pair:
        await until_sources(pair, BOTH)
        for source in pair.client_sources:
            source.failure = Reason.KME_UNREACHABLE
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        assert pair.client.quantum.state is LinkState.DOWN
        for source in pair.client_sources:
            source.failure = None
        await pair.until_mode(Mode.HYBRID)
        await until_sources(pair, BOTH)


async def test_where_both_are_insisted_on_losing_one_is_down() -> None:
    async with two_sources(at_least=(2, 2)) as pair:
        await until_sources(pair, BOTH)
        pair.client_sources[1].failure = Reason.KME_UNREACHABLE
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        assert pair.client.quantum.state is LinkState.DOWN
        pair.client_sources[1].failure = None
        await until_sources(pair, BOTH)


@pytest.mark.slow
async def test_the_dialled_end_may_insist_on_more_than_the_other() -> None:
    async with two_sources(at_least=(1, 2)) as pair:
        await until_sources(pair, BOTH)
        pair.client_sources[0].failure = Reason.KME_UNREACHABLE
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        refused = [event for event in pair.failures if event.reason is Reason.TOO_FEW_SOURCES]
        # Told once, it does not ask again and again.
        assert len(refused) == 1
        assert pair.client.quantum.at_least == 2
        await trio.sleep(2.5)
        assert len([e for e in pair.failures if e.reason is Reason.TOO_FEW_SOURCES]) == 1
        pair.client_sources[0].failure = None
        await until_sources(pair, BOTH)


async def test_under_require_one_is_enough_unless_both_are_insisted_on() -> None:
    options = {"client_policy": Policy.REQUIRE, "max_without_qkd_s": 3}
    async with two_sources(**options) as pair:
        await until_sources(pair, BOTH)
        pair.client_sources[0].failure = Reason.KME_UNREACHABLE
        # What is in stock would be used first.
        pair.client.quantum.paths[0].stock.discard_all()
        await until_sources(pair, {"source-a-south"})
        began = trio.current_time()
        await pair.until(lambda: trio.current_time() > began + 3.5)
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert not pair.closed


async def test_a_scarce_source_comes_and_goes_and_slows_nothing_down() -> None:
    def poor(client: FakeSource, _server: FakeSource) -> None:
        client.most_keys = 4

    async with two_sources(prepare=poor) as pair:
        await until_sources(pair, BOTH)
        await until_sources(pair, {"source-a-south"})
        driver = next(iter(pair.client._drivers.values()))
        assert driver.rekey_interval_s == 0.3
        assert not driver.economy
        pair.client_sources[0].most_keys = 3
        await until_sources(pair, BOTH)
        await until_sources(pair, {"source-a-south"})
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert not pair.failures


@pytest.mark.slow
async def test_trials_of_a_broken_source_do_not_use_up_the_other() -> None:
    """Its counterpart cannot redeem: what is tried is that path alone."""
    async with gateway_pair(paths=PATHS, rekey_interval_s=60.0) as pair:
        await until_sources(pair, BOTH)
        pair.server_sources[0].failure = Reason.KME_UNREACHABLE
        driver = next(iter(pair.client._drivers.values()))
        while not pair.client.quantum.paths[0].health.awaits_trial:
            # Until keys that were redeemed ahead are used up.
            driver.epoch_due(Reason.OPERATOR)
            await trio.sleep(0.1)
        await until_sources(pair, {"source-a-south"})
        south = pair.client.quantum.paths[1].stock
        before, failed = south.counters, len(pair.failures)
        await pair.until(lambda: len(pair.failures) >= failed + 2)
        assert south.counters.confirmed == before.confirmed
        assert south.counters.orphaned == before.orphaned


async def test_keys_announced_ahead_are_told_apart_by_path() -> None:
    async with two_sources() as pair:
        await pair.until(lambda: len(pair.client.modes) >= 3)
        for path in pair.server.quantum.paths:
            await pair.until(lambda path=path: len(path._held) > 0)
            assert all(key_id.startswith(path.name) for key_id in path._held._held)


async def test_a_tunnel_of_an_end_with_other_paths_is_classical_and_says_why() -> None:
    async with two_sources(server_paths=("east", "west")) as pair:
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        assert {e.reason for e in pair.client.of(EpochFailed)} == {Reason.NO_KEY_SOURCE}
        await pair.until(lambda: any(p.stock.counters.discarded for p in pair.client.quantum.paths))
        assert not any(p._held for p in pair.server.quantum.paths)
        assert not pair.closed
