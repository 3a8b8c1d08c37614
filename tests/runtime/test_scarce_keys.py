"""A KME that has fewer keys than the stock would take is not an empty one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.quantum.health import LinkState
from tests.runtime.fakes import FakeSource
from tests.runtime.test_qkd import quantum_side, until, while_running


class ScarceSource(FakeSource):
    """Answers a call for keys wholly or not at all, as KMEs do."""

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        if number > (self.stored or 0):
            raise KeySourceError(Reason.KEYS_EXHAUSTED, "so many are not there")
        keys: Sequence[QkdKey] = await super().get_keys(number, size_bits)
        self.stored = (self.stored or 0) - number
        return list(keys)


@pytest.mark.parametrize("stored", [1, 4, 20])
async def test_the_few_keys_that_are_there_are_drawn_at_once(
    autojump_clock: trio.testing.MockClock, stored: int
) -> None:
    source = ScarceSource()
    source.stored = stored
    quantum = quantum_side(source)

    async def action() -> None:
        await quantum.first_word()
        assert quantum.paths[0].stock.available > 0
        await until(lambda: quantum.paths[0].stock.available == stored, limit_s=10)

    await while_running(quantum, action)


async def test_a_kme_that_ran_dry_and_makes_few_keys_is_drawn_from_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = ScarceSource()
    quantum = quantum_side(source)

    async def action() -> None:
        await until(lambda: quantum.state is LinkState.HEALTHY)
        await until(lambda: quantum.paths[0].stock.available == 32)
        source.stored = 0
        reservation = quantum.paths[0].stock.reserve(32, trio.current_time())
        assert reservation is not None
        quantum.paths[0].nudge()
        await trio.sleep(5)
        assert quantum.paths[0].stock.available == 0
        source.stored = 3
        await until(lambda: quantum.paths[0].stock.available == 3, limit_s=10)

    await while_running(quantum, action)
