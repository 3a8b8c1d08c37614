"""Two sites with two KMEs each: whichever dies, keys that both ends have keep coming."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.log import get_logger
from qproxy.modes import Policy
from qproxy.quantum.health import LinkState
from qproxy.runtime.key_path import KeyPath
from qproxy.runtime.qkd import QuantumSide, SourceInUse
from qproxy.sources.base import SourceStatus
from qproxy.sources.failover import FailoverSource
from qproxy.tunnel.events import KeysReported
from qproxy.tunnel.messages import OfferedKey
from tests.runtime.fakes import FakeLink, FakeSource
from tests.runtime.test_qkd import DIALS, until


class PairedKme(FakeSource):
    """A KME that has only the keys that its partner gave."""

    def __init__(self, name: str, partner: PairedKme | None = None) -> None:
        link = FakeLink() if partner is None else partner._link
        super().__init__(f"pair of {name}" if partner is None else partner.name, link)
        self.name = name
        self.id_suffix = f"-{name}"
        self.partner = partner or self

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        await self._maybe_fail()
        if not set(self.partner.given).issuperset(key_ids):
            raise KeySourceError(Reason.KEY_NOT_FOUND, "not here", retryable=False)
        return await super().get_keys_by_id(key_ids, size_bits)

    async def status(self) -> SourceStatus:
        return replace(await super().status(), source_kme_id=self.name)


class Sites:
    """Gateway a dials and draws; gateway b redeems."""

    def __init__(self) -> None:
        self.kmes = {name: PairedKme(name) for name in ("a-north", "a-south")}
        self.kmes |= {
            f"b-{half}": PairedKme(f"b-{half}", self.kmes[f"a-{half}"])
            for half in ("north", "south")
        }
        self.a = self._side("a", DIALS)
        self.b = self._side("b", replace(DIALS, name="gw-a", address=None))

    def _side(self, site: str, config: object) -> QuantumSide:
        log = get_logger("qproxy.test")
        kmes = [(half, self.kmes[f"{site}-{half}"]) for half in ("north", "south")]
        source = FailoverSource("site", kmes, log, retry_s=1, max_retry_s=8)
        entry = SourceInUse(source, "etsi-qkd-014")
        return QuantumSide(config, [entry], log, now=trio.current_time())  # type: ignore[arg-type]

    @property
    def path(self) -> KeyPath:
        return self.a.paths[0]

    async def announce(self) -> None:
        """Gateway b redeems some keys ahead, and says which."""
        report = await self.b.redeem_ahead(self.a.keys_to_announce())
        held = tuple(key_id for key_id, reason in report.results if reason is None)
        refused = tuple((key_id, reason) for key_id, reason in report.results if reason)
        self.a.on_report(KeysReported(report.instance_id, held, refused))

    async def epoch(self, *, fresh: bool = True) -> Reason | None:
        """One epoch as far as keys go: why it failed, or None."""
        reservation = self.a.reserve([""], trio.current_time(), fresh=fresh)
        if reservation is None:
            return Reason.KEYS_EXHAUSTED
        now, ids = trio.current_time(), reservation.key_ids
        reservation.offered(now)
        offered = tuple(OfferedKey("etsi-qkd-014", 32, key.key_id) for key in reservation.keys)
        redeemed = await self.b.redeem(offered, Policy.PREFER)
        if isinstance(redeemed, Reason):
            reservation.orphaned(now)
            self.a.key_failed([""], redeemed, ids)
            return redeemed
        reservation.confirmed(now)
        self.a.key_confirmed([""], ids)
        return None


@asynccontextmanager
async def two_sites() -> AsyncIterator[Sites]:
    found = Sites()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.a.run)
        nursery.start_soon(found.b.run)
        await until(lambda: found.path.stock.available > 0)
        await until(lambda: found.b.paths[0].health.state is LinkState.HEALTHY)
        yield found
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", ["refuses", "hangs", "empty"])
@pytest.mark.parametrize("dies", ["a-north", "b-north"])
async def test_any_kme_may_die(
    autojump_clock: trio.testing.MockClock, dies: str, fault: str
) -> None:
    async with two_sites() as sites:
        await any_kme_may_die(sites, dies, fault)


async def any_kme_may_die(sites: Sites, dies: str, fault: str) -> None:
    for _ in range(5):
        assert await sites.epoch() is None
        await trio.sleep(1)
    if fault == "hangs":
        sites.kmes[dies].hang = True
    else:
        empty = fault == "empty"
        sites.kmes[dies].failure = Reason.KEYS_EXHAUSTED if empty else Reason.KME_UNREACHABLE
        sites.kmes[dies].stored = 0
    # Epochs go on, once a second for a minute; a few may fail while it is found out.
    failures = []
    for _ in range(60):
        failures.append(await sites.epoch())
        await trio.sleep(1)
    lost = [number for number, reason in enumerate(failures) if reason is not None]
    assert len(lost) <= 8
    assert failures[-1] is None
    assert sites.path.health.state is LinkState.HEALTHY

    # And back, by itself.
    sites.kmes[dies].hang, sites.kmes[dies].failure, sites.kmes[dies].stored = False, None, 1000
    drawn = len(sites.kmes["a-north"].given)
    for _ in range(60):
        await sites.epoch()
        await trio.sleep(1)
    assert len(sites.kmes["a-north"].given) > drawn
    for half in ("north", "south"):
        assert sites.kmes[f"b-{half}"].redeemed
    status = sites.path.last_status
    assert status is not None
    assert (status.kme, status.failing_kmes) == ("north", ())
    assert await sites.epoch() is None


async def test_the_kme_in_use_shows_and_its_switches_are_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_sites() as sites:
        sites.kmes["a-north"].failure = Reason.KME_UNAVAILABLE
        await trio.sleep(3)
        status = sites.path.last_status
        assert status is not None
        assert (status.kme, status.failing_kmes, status.kme_switches) == ("south", ("north",), 1)
        assert status.source_kme_id == "a-south"


async def test_announced_keys_that_the_peer_cannot_have_are_word_enough(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And those that it has redeemed already are as good as ever: no epoch fails at all."""
    async with two_sites() as sites:
        await sites.announce()
        sites.kmes["b-north"].failure = Reason.KME_UNREACHABLE
        for _ in range(10):
            assert await sites.epoch(fresh=False) is None  # with what the peer holds
        await sites.announce()
        status = await sites.path._source.status()
        assert (status.kme, status.failing_kmes) == ("south", ("north",))
        await trio.sleep(0.5)
        for _ in range(20):
            assert await sites.epoch(fresh=False) is None
            await sites.announce()


async def test_keys_of_the_kme_that_is_left_out_are_not_offered_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_sites() as sites:
        sites.kmes["b-north"].failure = Reason.KME_UNREACHABLE
        assert await sites.epoch() is Reason.KME_UNREACHABLE
        assert sites.path.stock.available == 0
        await until(lambda: sites.path.stock.available > 0)
        assert await sites.epoch() is None
        assert sites.kmes["b-south"].redeemed
