"""Falling back and climbing back on live tunnels, with key sources that fail in every way."""

from __future__ import annotations

import pytest

from qproxy.errors import Reason
from qproxy.modes import Mode, Policy
from qproxy.tunnel.events import EpochCommitted, TunnelEstablished
from tests.runtime.fakes import FakeSource
from tests.runtime.pair import GatewayPair, gateway_pair

pytestmark = pytest.mark.hastened


async def test_the_first_epoch_is_hybrid_when_keys_can_be_had() -> None:
    async with gateway_pair() as pair:
        await pair.until_mode(Mode.HYBRID)
        assert pair.client.modes == [Mode.HYBRID]
        assert pair.client.totals.keys == 1


async def test_rekeys_spend_a_new_key_each_time() -> None:
    async with gateway_pair(rekey_interval_s=0.05) as pair:
        await pair.until(lambda: len(pair.server.modes) >= 10)
        committed = pair.server.of(EpochCommitted)
        ids = [key_id for event in committed for key_id in event.key_ids]
        assert len(set(ids)) == len(ids) >= 10
        assert set(pair.server.modes) == {Mode.HYBRID}


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_falls_back_and_climbs_back_on_one_tunnel(side: str, fault: str) -> None:
    async with gateway_pair(rekey_interval_s=0.5) as pair:
        await pair.until_mode(Mode.HYBRID)
        source = pair.client_source if side == "client" else pair.server_source
        if fault == "fails":
            source.failure = Reason.KME_UNAVAILABLE
        else:
            source.hang = True
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        source.failure, source.hang = None, False
        await pair.until_mode(Mode.HYBRID)
        _one_tunnel_all_along(pair)


async def test_kmes_out_of_step_cost_epochs_but_not_the_tunnel() -> None:
    async with gateway_pair(rekey_interval_s=0.5) as pair:
        await pair.until_mode(Mode.HYBRID)
        pair.server_source.wrong_keys = True
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        assert Reason.KEY_MISMATCH in {failure.reason for failure in pair.failures}
        pair.server_source.wrong_keys = False
        await pair.until_mode(Mode.HYBRID)
        _one_tunnel_all_along(pair)


async def test_prefer_begins_classical_only_where_no_kme_answers_and_climbs_later() -> None:
    def broken(client: FakeSource, _server: FakeSource) -> None:
        client.failure = Reason.KME_UNREACHABLE

    async with gateway_pair(prepare=broken) as pair:
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        assert pair.client.of(EpochCommitted)[0].reason is Reason.KME_UNREACHABLE
        pair.client_source.failure = None
        await pair.until_mode(Mode.HYBRID)
        _one_tunnel_all_along(pair)


@pytest.mark.parametrize("strict_side", ["client", "server"])
async def test_require_on_either_end_means_no_tunnel_without_keys(strict_side: str) -> None:
    def broken(client: FakeSource, _server: FakeSource) -> None:
        client.failure = Reason.KME_UNREACHABLE

    policies = {f"{strict_side}_policy": Policy.REQUIRE}
    async with gateway_pair(prepare=broken, **policies) as pair:
        await pair.until(lambda: len(pair.closed) >= 2)
        assert not pair.client.of(TunnelEstablished)
        assert pair.client.modes == []
        pair.client_source.failure = None
        await pair.until_mode(Mode.HYBRID)


async def test_require_ends_a_live_tunnel_that_gets_no_fresh_key_in_time() -> None:
    async with gateway_pair(
        client_policy=Policy.REQUIRE, rekey_interval_s=0.2, max_without_qkd_s=2
    ) as pair:
        await pair.until_mode(Mode.HYBRID)
        pair.server_source.failure = Reason.KME_UNAVAILABLE
        await pair.until(lambda: len(pair.closed) >= 1)
        assert pair.closed[0].reason is Reason.QKD_TOO_OLD
        assert Mode.CLASSICAL_ONLY not in pair.client.modes


def _one_tunnel_all_along(pair: GatewayPair) -> None:
    assert pair.client.totals.tunnels == 1
    assert not pair.closed
