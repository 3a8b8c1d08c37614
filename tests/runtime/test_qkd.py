"""The quantum side of a peer, on a clock that jumps."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.config.model import PeerConfig, RekeyConfig
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.log import get_logger
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkChange, LinkState
from qproxy.quantum.policy import Action, Situation
from qproxy.quantum.redeemed import RedeemedSettings
from qproxy.runtime.qkd import QuantumSide, SourceInUse
from qproxy.tunnel.messages import OfferedKey
from tests.runtime.fakes import FakeSource

DIALS = PeerConfig(
    name="gw-b",
    local_sae_id="gw-a",
    peer_sae_id="gw-b",
    address=TcpAddress("127.0.0.1", 1),
    key_source="fake",
)


def quantum_side(source: FakeSource | None, config: PeerConfig = DIALS) -> QuantumSide:
    return QuantumSide(
        config,
        [] if source is None else [SourceInUse(source, "etsi-qkd-014")],
        get_logger("qproxy.test"),
        now=trio.current_time(),
    )


async def while_running(quantum: QuantumSide, action: Callable[[], Awaitable[Any]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quantum.run)
        await action()
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> float:
    """Wait on the fake clock. Returns how long it took."""
    began = trio.current_time()
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.01)
    return trio.current_time() - began


async def test_keys_are_drawn_ahead_of_need(autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource()
    quantum = quantum_side(source)

    async def action() -> None:
        await quantum.first_word()
        await until(lambda: quantum.paths[0].stock.available > 0)
        assert quantum.state is LinkState.HEALTHY
        assert quantum.paths[0].simulated

    await while_running(quantum, action)
    assert source.closed
    assert quantum.paths[0].stock.available == 0


async def test_a_gateway_that_only_waits_draws_no_keys(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    waits = PeerConfig(name="gw-a", local_sae_id="gw-b", peer_sae_id="gw-a", key_source="fake")
    quantum = quantum_side(source, waits)

    async def action() -> None:
        await until(lambda: quantum.state is LinkState.HEALTHY)
        await trio.sleep(30)

    await while_running(quantum, action)
    assert source.given == []


@pytest.mark.parametrize(
    ("fault", "limit_s"),
    [("refuses", 1.5), ("hangs", 3.0), ("garbage", 1.5)],
)
async def test_a_broken_kme_is_noticed_and_its_return_too(
    autojump_clock: trio.testing.MockClock, fault: str, limit_s: float
) -> None:
    source = FakeSource()
    quantum = quantum_side(source)
    changes: list[LinkChange] = []
    quantum.on_link_change(changes.append)

    async def action() -> None:
        await until(lambda: quantum.state is LinkState.HEALTHY)
        await trio.sleep(20)
        if fault == "hangs":
            source.hang = True
        else:
            source.failure = (
                Reason.KME_UNREACHABLE if fault == "refuses" else Reason.KME_INVALID_RESPONSE
            )
        down_after = await until(lambda: quantum.state is LinkState.DOWN)
        assert down_after <= limit_s
        await trio.sleep(60)
        source.hang, source.failure = False, None
        up_after = await until(lambda: quantum.state is LinkState.HEALTHY)
        assert up_after <= 10

    await while_running(quantum, action)
    assert [change.new for change in changes][-1] is LinkState.HEALTHY
    assert LinkState.DOWN in [change.new for change in changes]


async def test_an_id_is_redeemed_once_whatever_comes_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    quantum = quantum_side(source)
    offered = (OfferedKey("etsi-qkd-014", 32, "id-1"), OfferedKey("etsi-qkd-014", 32, "id-2"))
    redeemed = await quantum.redeem(offered, Policy.PREFER)
    assert isinstance(redeemed, list)
    assert [key.key_id for key in redeemed] == ["id-1", "id-2"]
    again = (OfferedKey("etsi-qkd-014", 32, "id-3"), OfferedKey("etsi-qkd-014", 32, "id-1"))
    assert await quantum.redeem(again, Policy.PREFER) is Reason.KEY_SPENT
    # id-3 stood in a refused offer: it is burnt as well.
    assert await quantum.redeem(again[:1], Policy.PREFER) is Reason.KEY_SPENT
    assert source.redeemed == ["id-1", "id-2"]


async def test_keys_redeemed_ahead_are_had_at_once_and_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    quantum = quantum_side(source)
    a, b, c = (OfferedKey("etsi-qkd-014", 32, f"id-{number}") for number in range(3))
    await quantum.redeem_ahead((a, b))
    # All of them or none: nothing is claimed where a source must be asked.
    assert quantum.redeem_held((a, c), Policy.PREFER) is None
    redeemed = quantum.redeem_held((b, a), Policy.PREFER)
    assert isinstance(redeemed, list)
    assert [key.key_id for key in redeemed] == ["id-1", "id-0"]
    assert quantum.redeemed == 2
    assert quantum.redeem_held((b, a), Policy.PREFER) is None
    assert await quantum.redeem((a,), Policy.PREFER) is Reason.KEY_SPENT
    assert isinstance(await quantum.redeem((c,), Policy.PREFER), list)


async def test_a_key_that_is_held_is_had_although_it_ages_out_that_very_moment(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantum = quantum_side(FakeSource())
    offered = (OfferedKey("etsi-qkd-014", 32, "id"),)
    await quantum.redeem_ahead(offered)
    # Time goes on between two looks at the clock: young at the first, too old at any later one.
    age_limit_at = trio.current_time() + RedeemedSettings().max_age_s
    times = itertools.chain([age_limit_at - 0.001], itertools.repeat(age_limit_at + 0.001))
    monkeypatch.setattr(trio, "current_time", lambda: next(times))
    redeemed = quantum.redeem_held(offered, Policy.PREFER)
    assert isinstance(redeemed, list)
    assert [key.key_id for key in redeemed] == ["id"]
    monkeypatch.undo()


async def test_held_keys_of_an_offer_that_is_refused_are_burnt_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    quantum = quantum_side(FakeSource(), replace(DIALS, combine_at_least=2))
    (offered,) = (OfferedKey("etsi-qkd-014", 32, "id"),)
    await quantum.redeem_ahead((offered,))
    assert quantum.redeem_held((offered,), Policy.PREFER) is Reason.TOO_FEW_SOURCES
    assert quantum.redeem_held((offered,), Policy.PREFER) is Reason.KEY_SPENT


async def test_refusals_name_their_cause(autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource()
    quantum = quantum_side(source)
    assert (
        await quantum.redeem((OfferedKey("etsi-qkd-014", 64, "too-long"),), Policy.PREFER)
        is Reason.KEY_INVALID
    )
    source.failure = Reason.KEY_NOT_FOUND
    assert (
        await quantum.redeem((OfferedKey("etsi-qkd-014", 32, "a"),), Policy.PREFER)
        is Reason.KEY_NOT_FOUND
    )
    source.failure, source.hang = None, True
    assert (
        await quantum.redeem((OfferedKey("etsi-qkd-014", 32, "b"),), Policy.PREFER)
        is Reason.KME_TIMEOUT
    )
    assert (
        await quantum_side(None).redeem((OfferedKey("file", 32, "c"),), Policy.PREFER)
        is Reason.NO_KEY_SOURCE
    )


@pytest.mark.parametrize(
    ("interval_s", "max_age_s", "last_s"), [(1, 8, 4), (60, 600, 300), (5, 6, 5)]
)
async def test_an_epoch_is_not_stretched_for_want_of_keys_until_the_tunnel_must_end(
    interval_s: float, max_age_s: float, last_s: float
) -> None:
    rekey = RekeyConfig(interval_s=interval_s, max_age_s=max_age_s)
    policy = quantum_side(FakeSource(), replace(DIALS, rekey=rekey)).policy
    short = Situation(
        link=LinkState.DEGRADED,
        link_reason=Reason.KEYS_EXHAUSTED,
        keys_available=0,
        current_mode=Mode.HYBRID,
    )
    assert policy.decide(replace(short, epoch_age_s=last_s - 0.01)).action is Action.WAIT
    late = policy.decide(replace(short, epoch_age_s=last_s))
    assert (late.action, late.mode) == (Action.OFFER, Mode.CLASSICAL_ONLY)


async def test_a_high_qber_is_seen_however_often_keys_are_drawn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    quantum = quantum_side(source)

    async def use_keys() -> None:
        while True:
            await trio.sleep(0.25)
            reservation = quantum.paths[0].stock.reserve(1, trio.current_time())
            if reservation is not None:
                reservation.offered(trio.current_time())
                reservation.confirmed(trio.current_time())
                quantum.paths[0].nudge()

    async def action() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use_keys)
            await until(lambda: quantum.state is LinkState.HEALTHY)
            await trio.sleep(30)
            source.qber = 0.2
            await until(lambda: quantum.state is LinkState.DOWN, limit_s=3.0)
            assert quantum.reason is Reason.QBER_HIGH
            source.qber = 0.01
            await until(lambda: quantum.state is LinkState.HEALTHY, limit_s=10.0)
            nursery.cancel_scope.cancel()

    await while_running(quantum, action)


@pytest.mark.parametrize(
    ("tunnels", "keys", "stock"), [(1, 1, 32), (8, 1, 32), (32, 1, 128), (16, 4, 256)]
)
async def test_a_pool_keeps_enough_keys_for_all_its_tunnels(
    autojump_clock: trio.testing.MockClock, tunnels: int, keys: int, stock: int
) -> None:
    quantum = quantum_side(FakeSource(), replace(DIALS, tunnels=tunnels, qkd_keys_per_epoch=keys))

    async def action() -> None:
        await until(lambda: quantum.paths[0].stock.available == stock)

    await while_running(quantum, action)


async def test_workers_share_the_keys_of_one_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shares = []
    for workers in (1, 4):
        source = FakeSource()
        source.stored, source.key_rate_bps = 40, 25_600.0
        quantum = QuantumSide(
            DIALS,
            [SourceInUse(source, "etsi-qkd-014")],
            get_logger("qproxy.test"),
            now=trio.current_time(),
            workers=workers,
        )

        async def action(quantum: QuantumSide = quantum) -> None:
            await until(lambda: quantum.paths[0].last_status is not None)
            shares.append((quantum.paths[0].rate_keys_per_s, quantum.paths[0].stock._source_count))

        quantum.paths[0].stock.want = lambda _now: 0  # type: ignore[method-assign]
        await while_running(quantum, action)
    assert shares == [(100.0, 40), (25.0, 10)]


async def test_a_worker_redeems_nothing_ahead_for_another_could_be_offered_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    config = replace(DIALS, address=None)
    log = get_logger("qproxy.test")
    announced = (OfferedKey("etsi-qkd-014", 32, "key-0"),)
    reports = [
        await QuantumSide(
            config,
            [SourceInUse(source, "etsi-qkd-014")],
            log,
            now=trio.current_time(),
            workers=2,
        ).redeem_ahead(announced)
        for _ in range(2)
    ]
    assert source.redeemed == []
    # Not a refusal that would have the peer wipe the key, and not a sign of a restart.
    assert dict(reports[0].results) == {"key-0": Reason.LIMIT_REACHED}
    assert reports[0].instance_id == reports[1].instance_id


async def test_keys_of_a_pad_are_not_wasted(autojump_clock: trio.testing.MockClock) -> None:
    """They are neither given to the peer ahead, which may lose them, nor wiped for their age."""
    source = FakeSource()
    quantum = QuantumSide(
        DIALS,
        [SourceInUse(source, "file")],
        get_logger("qproxy.test"),
        now=trio.current_time(),
    )

    async def action() -> None:
        await until(lambda: quantum.paths[0].stock.available == 4)
        assert quantum.keys_to_announce() == ()
        await trio.sleep(3600)
        assert quantum.paths[0].stock.counters.aged_out == 0
        assert len(source.given) == 4
        # Whatever a peer announces.
        report = await quantum.redeem_ahead((OfferedKey("file", 32, "key-1000"),))
        assert report.results == (("key-1000", Reason.LIMIT_REACHED),)
        assert source.redeemed == []

    await while_running(quantum, action)


async def test_a_fallen_link_is_told_with_what_went_wrong(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource()
    quantum = quantum_side(source)

    async def action() -> None:
        await until(lambda: quantum.state is LinkState.HEALTHY)
        source.failure = Reason.KME_UNAVAILABLE
        await until(lambda: quantum.state is LinkState.DOWN)

    await while_running(quantum, action)
    told = [record.fields for record in caplog.records if record.getMessage() == "link_state"]  # type: ignore[attr-defined]
    assert told[-1]["detail"] == "as the test wants it"
    assert (told[-1]["source"], told[-1]["kind"]) == ("fake", "etsi-qkd-014")
    assert told[-1]["keys_are"] == "simulated"


async def test_a_source_that_was_never_heard_is_not_called_qkd(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    source.failure = Reason.KME_UNREACHABLE
    quantum = quantum_side(source)
    (path,) = quantum.paths

    async def action() -> None:
        await until(lambda: quantum.state is LinkState.DOWN)
        assert path.nature is KeyNature.UNSTATED
        source.failure = None
        await until(lambda: quantum.state is not LinkState.DOWN)
        assert path.nature is KeyNature.SIMULATED

    await while_running(quantum, action)


async def test_a_key_is_simulated_where_its_source_has_said_so_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = FakeSource()
    source.simulated_keys = False
    quantum = quantum_side(source)

    async def action() -> None:
        await until(lambda: quantum.paths[0].last_status is not None)
        redeemed = await quantum.redeem((OfferedKey("etsi-qkd-014", 32, "a"),), Policy.PREFER)
        assert isinstance(redeemed, list)
        assert redeemed[0].origin.nature is KeyNature.SIMULATED

    await while_running(quantum, action)


async def test_a_pad_that_runs_low_is_told_in_time_and_not_all_the_time(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource()
    quantum = QuantumSide(
        DIALS, [SourceInUse(source, "file")], get_logger("qproxy.test"), now=trio.current_time()
    )
    told: list[int] = []

    async def action() -> None:
        for left in (5000, 1000, 999, 998, 500, 98, 97, 9, 0, 0, 5000, 900):
            source.stored = left
            await trio.sleep(3)
        told.extend(
            record.fields["keys_left"]  # type: ignore[attr-defined]
            for record in caplog.records
            if record.getMessage() == "pad_low"
        )

    await while_running(quantum, action)
    assert told == [999, 98, 0, 900]
