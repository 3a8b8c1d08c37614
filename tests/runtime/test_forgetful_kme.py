"""A KME that forgets a key as soon as it issues the next: seen in the field, and of no use here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.log import get_logger
from qproxy.modes import Policy
from qproxy.quantum.health import LinkState
from qproxy.runtime.qkd import QuantumSide, SourceInUse
from qproxy.tunnel.messages import OfferedKey
from tests.runtime.fakes import FakeLink, FakeSource
from tests.runtime.test_qkd import DIALS


class ForgetfulKme(FakeSource):
    """Its partner can redeem the last key that this one issued, and no other."""

    def __init__(self, link: FakeLink, issuer: FakeSource | None = None) -> None:
        super().__init__("kme", link)
        self.issuer = issuer or self

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        if list(key_ids) != self.issuer.given[-1:]:
            await trio.lowlevel.checkpoint()
            raise KeySourceError(Reason.KEY_NOT_FOUND, "gone", retryable=False)
        return await super().get_keys_by_id(key_ids, size_bits)


async def test_it_means_classical_only_and_neither_a_crash_nor_a_flood(
    autojump_clock: trio.testing.MockClock,
) -> None:
    link = FakeLink()
    here = ForgetfulKme(link)
    there = ForgetfulKme(link, here)
    log, now = get_logger("qproxy.test"), trio.current_time()
    a = QuantumSide(DIALS, [SourceInUse(here, "etsi-qkd-014")], log, now=now)
    waits = replace(DIALS, name="gw-a", address=None)
    b = QuantumSide(waits, [SourceInUse(there, "etsi-qkd-014")], log, now=now)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        for _ in range(60):
            await trio.sleep(1)
            reservation = a.reserve([""], trio.current_time(), fresh=False)
            if reservation is None:
                continue
            ids = reservation.key_ids
            reservation.offered(trio.current_time())
            offered = tuple(OfferedKey("etsi-qkd-014", 32, key_id) for key_id in ids)
            assert await b.redeem(offered, Policy.PREFER) is Reason.KEY_NOT_FOUND
            reservation.orphaned(trio.current_time())
            a.key_failed([""], Reason.KEY_NOT_FOUND, ids)
        assert a.state is LinkState.DOWN
        assert a.reason is Reason.KEY_NOT_FOUND
        assert b.paths[0].failures.counts[Reason.KEY_NOT_FOUND] > 10
        assert len(here.given) < 1000
        nursery.cancel_scope.cancel()
