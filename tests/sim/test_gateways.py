"""Two gateways' quantum sides and tunnels over the presets, on a clock that jumps.

The gateways are the real ones (peers, tunnels, epochs, link health) over a loopback connection;
their key sources ask the simulated KMEs as an ETSI client would, without the sockets in between.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from qproxy.config.reader import load_kme_sim_config
from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.modes import Mode
from qproxy.pki import init_pki
from qproxy.quantum.health import LinkState
from qproxy.sim.network import KmeMode
from qproxy.sources.base import SourceStatus
from tests.runtime.fakes import FakeSource
from tests.runtime.pair import GatewayPair, gateway_pair
from tests.sim.helpers import Trial

ROOT = Path(__file__).parents[2]


class Site:
    """One gateway's way to its KME."""

    def __init__(self, trial: Trial, started_at: float, sae: str, other: str) -> None:
        self._trial, self._started_at = trial, started_at
        self._sae, self._other = sae, other
        self.drawn = 0

    def take_the_place_of(self, source: FakeSource) -> None:
        source.status = self.status
        source.get_keys = self.get_keys
        source.get_keys_by_id = self.get_keys_by_id

    async def status(self) -> SourceStatus:
        await self._reach()
        answer = self._trial.status(self._sae, self._other)
        extension = answer["status_extension"]
        return SourceStatus(
            stored_key_count=answer["stored_key_count"],
            max_key_count=answer["max_key_count"],
            key_size_bits=answer["key_size"],
            max_key_per_request=answer["max_key_per_request"],
            min_key_size_bits=answer["min_key_size"],
            max_key_size_bits=answer["max_key_size"],
            source_kme_id=answer["source_KME_ID"],
            target_kme_id=answer["target_KME_ID"],
            simulated=extension["simulated"],
            qber=extension["qber"],
            key_rate_bps=extension["key_rate_bps"],
        )

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        await self._reach()
        keys = self._trial.draw(self._sae, self._other, number, size_bits)
        if keys is None:
            raise KeySourceError(Reason.KEYS_EXHAUSTED, "not enough keys are stored")
        self.drawn += len(keys)
        return [self._key(*entry) for entry in keys.items()]

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        await self._reach()
        keys = self._trial.redeem(key_ids, self._sae, self._other)
        if keys is None:
            raise KeySourceError(Reason.KEY_NOT_FOUND, "one or more keys are not found")
        return [self._key(*entry) for entry in keys.items()]

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        trial = self._trial
        trial.let_pass(max(0.0, trio.current_time() - self._started_at - trial.now))
        if trial.network.modes[trial.config.saes[self._sae]] is KmeMode.KILLED:
            raise KeySourceError(Reason.KME_UNREACHABLE, "connection refused")

    def _key(self, key_id: str, key: bytes) -> QkdKey:
        return QkdKey(key_id, bytearray(key), source=self._sae, simulated=True)


@pytest.fixture
def scenario(tmp_path):
    """A preset by its name, as a network that has run for a while."""

    def load(name: str) -> Trial:
        shutil.copytree(ROOT / "configs" / "scenarios", tmp_path / "scenarios")
        init_pki(tmp_path / "pki")
        return Trial(load_kme_sim_config(tmp_path / "scenarios" / f"{name}.yaml"))

    return load


def gateways(trial: Trial, interval_s: float):
    """Two gateways that change keys every ``interval_s``, from now on."""
    started_at = trio.current_time() - trial.now
    sites = [Site(trial, started_at, *ends) for ends in (("gw-a", "gw-b"), ("gw-b", "gw-a"))]

    def prepare(*sources: FakeSource) -> None:
        for site, source in zip(sites, sources, strict=True):
            site.take_the_place_of(source)

    return gateway_pair(prepare=prepare, rekey_interval_s=interval_s, max_epoch_age_s=600.0)


def health(pair: GatewayPair) -> set[LinkState]:
    return {peer.quantum.state for peer in (pair.client, pair.server)}


async def test_a_ring_that_is_cut_keeps_its_gateways_hybrid(autojump_clock, scenario):
    """Three minutes with a fresh key every second, two of them around the other side."""
    trial = scenario("metro-ring")
    trial.let_pass(10.0)
    async with gateways(trial, 1.0) as pair:
        await pair.until_mode(Mode.HYBRID)
        await trio.sleep(185.0)
        assert set(pair.client.modes) == set(pair.server.modes) == {Mode.HYBRID}
        assert len(pair.client.modes) >= 180
        relays = trial.network.relays
        assert relays["east"].passed_on > 50
        assert relays["west"].passed_on > 80
        assert pair.closed == pair.failures == []


async def test_an_eavesdropper_on_the_banks_link_means_classical_only_until_she_is_gone(
    autojump_clock, scenario
):
    trial = scenario("metro-bank-46km")
    trial.let_pass(60.0)
    async with gateways(trial, 1.0) as pair:
        await pair.until_mode(Mode.HYBRID)
        await trio.sleep(55.0)
        assert set(pair.client.modes) == {Mode.HYBRID}
        await trio.sleep(20.0)  # she came at 120 s: half of the pulses, a QBER of 13 %
        assert health(pair) == {LinkState.DOWN}
        assert pair.client.modes[-1] is pair.server.modes[-1] is Mode.CLASSICAL_ONLY
        await trio.sleep(60.0)  # she left at 180 s
        assert health(pair) == {LinkState.HEALTHY}
        assert pair.client.modes[-1] is pair.server.modes[-1] is Mode.HYBRID
        assert pair.closed == []


async def test_over_the_backbone_a_key_every_second_and_a_kme_that_loses_its_store(
    autojump_clock, scenario
):
    trial = scenario("backbone-2072km")
    trial.let_pass(60.0)
    async with gateways(trial, 1.0) as pair:
        await pair.until_mode(Mode.HYBRID)
        await trio.sleep(55.0)
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert len(pair.client.modes) >= 54
        relays = trial.network.relays
        # One relay has been listening: it has every key that was drawn since.
        assert len(relays["relay-16"].copies) == relays["relay-16"].passed_on >= 54
        assert {r.passed_on for r in relays.values()} == {relays["relay-16"].passed_on}
        await trio.sleep(60.0)  # the KME was gone from 120 s to 125 s, and its store for good
        assert trial.network.modes["kme-b"] is KmeMode.UP
        assert health(pair) == {LinkState.HEALTHY}
        assert pair.client.modes[-1] is pair.server.modes[-1] is Mode.HYBRID
        assert pair.closed == []


async def test_on_the_defence_link_a_key_a_minute_outlasts_a_cut(autojump_clock, scenario):
    """Seven minutes: a cut of four, and stores out of step for one."""
    trial = scenario("defence-50km")
    trial.let_pass(10.0)
    async with gateways(trial, 60.0) as pair:
        await pair.until_mode(Mode.HYBRID)
        await trio.sleep(370.0)
        hybrid = [mode for mode in pair.client.modes if mode is Mode.HYBRID]
        assert len(hybrid) >= 2
        await trio.sleep(150.0)  # out of step from 390 s to 450 s
        assert health(pair) == {LinkState.HEALTHY}
        assert pair.client.modes[-1] is pair.server.modes[-1] is Mode.HYBRID
        assert pair.closed == []
