"""Keys that a KME has forgotten, as after its restart, must not be tried one after the other."""

from __future__ import annotations

import pytest
import trio

from qproxy.errors import Reason
from qproxy.quantum.health import LinkState
from qproxy.runtime.key_path import MAX_TRIAL_STOCK_KEYS
from qproxy.runtime.qkd import QuantumSide
from tests.runtime.fakes import FakeSource
from tests.runtime.test_qkd import DIALS, quantum_side, until, while_running


def offer_one_key(quantum: QuantumSide) -> tuple[str, ...]:
    """The IDs an epoch would offer now; the keys are burnt."""
    reservation = quantum.paths[0].stock.reserve(1, trio.current_time())
    assert reservation is not None
    reservation.offered(trio.current_time())
    reservation.orphaned(trio.current_time())
    return reservation.key_ids


@pytest.mark.parametrize("reason", [Reason.KEY_NOT_FOUND, Reason.KEY_MISMATCH, Reason.KEY_INVALID])
async def test_a_trial_uses_a_key_drawn_after_the_fall(
    autojump_clock: trio.testing.MockClock, reason: Reason
) -> None:
    source = FakeSource()
    quantum = quantum_side(source)

    async def action() -> None:
        await until(lambda: quantum.paths[0].stock.available > MAX_TRIAL_STOCK_KEYS)
        for _ in range(2):
            offer_one_key(quantum)
            quantum.key_failed(("",), reason)
        assert quantum.state is LinkState.DOWN
        known = set(source.given)
        await until(lambda: quantum.paths[0].stock.available > 0)
        assert not known & set(offer_one_key(quantum))

        # While trials fail the KME is not emptied, and each trial has a fresh key.
        known = set(source.given)
        quantum.key_failed(("",), reason)
        await trio.sleep(60)
        assert quantum.paths[0].stock.available <= MAX_TRIAL_STOCK_KEYS
        assert len(set(source.given) - known) <= MAX_TRIAL_STOCK_KEYS
        assert not known & set(offer_one_key(quantum))

        # Once one has succeeded the stock fills up again.
        quantum.key_confirmed(("",))
        await until(lambda: quantum.paths[0].stock.available > MAX_TRIAL_STOCK_KEYS)

    await while_running(quantum, action)


async def test_a_peer_without_its_kme_costs_no_stored_keys(
    autojump_clock: trio.testing.MockClock,
) -> None:
    quantum = quantum_side(FakeSource())

    async def action() -> None:
        await until(lambda: quantum.paths[0].stock.available > MAX_TRIAL_STOCK_KEYS)
        stored = quantum.paths[0].stock.available
        for _ in range(2):
            quantum.key_failed(("",), Reason.KME_UNREACHABLE)
        assert quantum.state is LinkState.DOWN
        assert quantum.paths[0].stock.available == stored

    await while_running(quantum, action)


async def test_an_epoch_is_never_stretched_to_the_age_at_which_tunnels_are_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    quantum = quantum_side(FakeSource())
    assert quantum.policy.max_interval_s < DIALS.rekey.max_age_s - DIALS.epoch_timeout_s
