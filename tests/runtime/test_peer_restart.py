"""A peer that has restarted holds none of what it redeemed ahead; one that has not, all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkChange, LinkState
from qproxy.quantum.redeemed import RedeemedKeys, RedeemedSettings
from qproxy.runtime import qkd
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import EpochCommitted, KeysReported
from tests.runtime.fakes import FakeSource
from tests.runtime.pair import GatewayPair, gateway_pair


def each_key_once(
    _client: FakeSource, server: FakeSource, reason: Reason = Reason.KEY_NOT_FOUND
) -> None:
    """Let the server's KME be like all KMEs: what was fetched is gone."""
    get_keys_by_id = server.get_keys_by_id

    async def once(key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        await trio.lowlevel.checkpoint()
        if set(key_ids) & set(server.redeemed):
            raise KeySourceError(reason, "it was given out before")
        return await get_keys_by_id(key_ids, size_bits)

    server.get_keys_by_id = once  # type: ignore[method-assign]


def held(pair: GatewayPair) -> int:
    """Keys in the client's stock that the server is believed to hold."""
    return sum(entry.held for entry in pair.client.quantum.paths[0].stock._stored.values())


async def until_held(pair: GatewayPair) -> Tunnel:
    """The client's only tunnel, once the server has reported of what was announced."""
    await pair.until(lambda: bool(pair.client.tunnels) and held(pair) == 16)
    return pair.client.tunnels[0]


def forget_everything(pair: GatewayPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server's process be another one from here on."""
    (path,) = pair.server.quantum.paths
    path._held.close()
    path._held = RedeemedKeys(RedeemedSettings(), trio.current_time())
    monkeypatch.setattr(qkd, "INSTANCE_ID", bytes(8))


async def dial_again(pair: GatewayPair, tunnel: Tunnel) -> Tunnel:
    """End a tunnel; the one that comes after it."""
    before = len(pair.client.of(KeysReported))
    tunnel.end(Reason.SHUTDOWN)
    await tunnel.closed.wait()
    await pair.until(lambda: bool(pair.client.tunnels))
    await pair.until(lambda: len(pair.client.of(KeysReported)) > before)
    return pair.client.tunnels[0]


async def rekey(pair: GatewayPair, tunnel: Tunnel) -> None:
    driver = pair.client.epoch_driver(tunnel)
    assert driver is not None
    count = len(pair.client.modes)
    driver.epoch_due(Reason.REKEY_BYTES)
    await pair.until(lambda: len(pair.client.modes) > count)


async def test_epochs_after_a_restart_are_hybrid_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway_pair(prepare=each_key_once) as pair:
        tunnel = await until_held(pair)
        forget_everything(pair, monkeypatch)
        tunnel = await dial_again(pair, tunnel)
        for _ in range(3):
            await rekey(pair, tunnel)
        assert set(pair.client.modes) == {Mode.HYBRID}
        assert pair.failures == []


async def test_a_tunnel_that_was_merely_lost_costs_no_key_that_the_peer_holds() -> None:
    async with gateway_pair(prepare=each_key_once) as pair:
        tunnel = await until_held(pair)
        fetched = len(pair.server_source.redeemed)
        tunnel = await dial_again(pair, tunnel)
        assert held(pair) == 16
        assert pair.client.quantum.counters.discarded == 0
        # One for the new tunnel's first epoch, and none for the next.
        assert len(pair.server_source.redeemed) == fetched + 1
        await rekey(pair, tunnel)
        assert len(pair.server_source.redeemed) == fetched + 1
        assert held(pair) == 15
        assert pair.failures == []


async def test_what_a_restarted_peer_cannot_have_throws_no_doubt_on_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_pair(prepare=each_key_once) as pair:
        tunnel = await until_held(pair)
        (path,) = pair.client.quantum.paths
        blamed: list[Sequence[str]] = []
        monkeypatch.setattr(path, "_blame", lambda key_ids, _reason: blamed.append(key_ids))
        forget_everything(pair, monkeypatch)
        await dial_again(pair, tunnel)
        assert [reason for _, reason in pair.client.of(KeysReported)[-1].refused] == [
            Reason.KEY_NOT_FOUND
        ]
        assert blamed == []
        assert held(pair) == 0


async def second_tunnel(pair: GatewayPair) -> Tunnel:
    """Dial another tunnel beside the first; it, once it is up."""
    (first,) = pair.client.tunnels
    assert pair.client._nursery is not None
    pair.client._nursery.start_soon(pair.client._dial)
    await pair.until(lambda: len(pair.client.tunnels) == 2)
    (second,) = (tunnel for tunnel in pair.client.tunnels if tunnel is not first)
    return second


async def test_a_further_tunnel_takes_a_key_that_the_peer_holds() -> None:
    async with gateway_pair(prepare=each_key_once) as pair:
        await until_held(pair)
        fetched = list(pair.server_source.redeemed)
        await second_tunnel(pair)
        (key_id,) = pair.client.of(EpochCommitted)[-1].key_ids
        assert key_id in fetched
        assert pair.client.modes == [Mode.HYBRID, Mode.HYBRID]


async def test_keys_held_by_the_peer_are_answered_without_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_pair(prepare=each_key_once) as pair:
        tunnel = await until_held(pair)
        started: list[object] = []
        monkeypatch.setattr(pair.server.tunnels[0], "start_task", started.append)
        await rekey(pair, tunnel)
        assert started == []


@pytest.mark.parametrize("policy", [Policy.PREFER, Policy.REQUIRE])
@pytest.mark.parametrize("reason", [Reason.KEY_NOT_FOUND, Reason.KME_BAD_REQUEST])
async def test_a_further_tunnel_to_another_process_is_hybrid_at_its_second_attempt(
    monkeypatch: pytest.MonkeyPatch, reason: Reason, policy: Policy
) -> None:
    def prepare(client: FakeSource, server: FakeSource) -> None:
        each_key_once(client, server, reason)

    async with gateway_pair(client_policy=policy, prepare=prepare) as pair:
        await until_held(pair)
        changes: list[LinkChange] = []
        pair.client.quantum.on_link_change(changes.append)
        forget_everything(pair, monkeypatch)
        tunnel = await second_tunnel(pair)
        assert [(failed.attempt, failed.reason) for failed in pair.failures] == [(1, reason)]
        assert pair.client.modes == [Mode.HYBRID, Mode.HYBRID]
        # Nothing that the process before held is tried again, and the link is not to blame.
        await rekey(pair, tunnel)
        assert len(pair.failures) == 1
        assert pair.client.quantum.paths[0].health._key_failures == 0
        assert changes == []


async def test_a_further_tunnel_whose_fresh_key_is_not_there_counts_against_the_link() -> None:
    async with gateway_pair(prepare=each_key_once) as pair:
        await until_held(pair)
        pair.client.quantum.paths[0].stock.discard_held()
        pair.server_source.failure = Reason.KEY_NOT_FOUND
        assert pair.client._nursery is not None
        pair.client._nursery.start_soon(pair.client._dial)
        await pair.until(lambda: pair.client.quantum.state is LinkState.DOWN)


async def test_a_tunnel_that_ends_while_keys_are_fetched_ahead_loses_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = trio.Event()

    async with gateway_pair(prepare=each_key_once) as pair:
        get_keys_by_id = pair.server_source.get_keys_by_id

        async def slow(key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
            keys = await get_keys_by_id(key_ids, size_bits)
            if len(key_ids) > 1:
                await let_go.wait()
            return keys

        monkeypatch.setattr(pair.server_source, "get_keys_by_id", slow)
        (path,) = pair.server.quantum.paths
        await pair.until(lambda: path._held.fetching == 16)
        (tunnel,) = pair.client.tunnels
        tunnel.end(Reason.SHUTDOWN)
        await tunnel.closed.wait()
        let_go.set()
        await pair.until(lambda: len(path._held) == 16)
        await pair.until(lambda: bool(pair.client.tunnels))
        for _ in range(3):
            await rekey(pair, pair.client.tunnels[0])
        assert pair.failures == []
