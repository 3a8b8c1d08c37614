"""Re-authentications begin in time, and not as often as a peer likes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import trio

from qproxy.errors import LocalProtocolError, Reason
from qproxy.log import get_logger
from qproxy.modes import Aead, KemAlgorithm, Mode
from qproxy.runtime.reauth_driver import REQUEST_PAUSE_S, RETRY_S, ReauthDriver
from qproxy.tunnel.events import EpochCommitted, Reauthenticated, ReauthenticationDue
from qproxy.tunnel.timers import REAUTH_GRACE_S
from tests.runtime.pair import gateway_pair

Clock = trio.testing.MockClock

COMMITTED = EpochCommitted(
    epoch=2,
    attempt=1,
    mode=Mode.CLASSICAL_ONLY,
    reason=Reason.REAUTHENTICATION,
    epoch_id=bytes(16),
    kem=KemAlgorithm.ML_KEM_1024,
    aead=Aead.AES_256_GCM,
    key_ids=(),
    confirmed=True,
    qkd_ever=False,
    reauthenticated=True,
)


class FakeCore:
    """Begins re-authentications, or says why not."""

    def __init__(self) -> None:
        self.refusal: Reason | None = None
        self.contexts: list[object] = []
        self.begun: list[float] = []
        self.tries = 0

    def use_tls_context(self, context: object) -> None:
        self.contexts.append(context)

    def reauthenticate(self, now: float) -> None:
        self.tries += 1
        if self.refusal is not None:
            raise LocalProtocolError(self.refusal, "as the test wants it")
        self.begun.append(now)


class FakeTunnel:
    def __init__(self) -> None:
        self.core = FakeCore()

    def tell_core(self, action: Any) -> None:
        action(self.core, trio.current_time())


class Driven:
    """A driver at work on a fake tunnel, on a clock that jumps."""

    def __init__(self, nursery: trio.Nursery) -> None:
        tunnel = FakeTunnel()
        self.core = tunnel.core
        self.context = object()
        log = get_logger("qproxy.test")
        self.driver = ReauthDriver(cast("Any", tunnel), lambda: cast("Any", self.context), log)
        nursery.start_soon(self.driver.run)


@pytest.fixture
def driven(nursery: trio.Nursery) -> Driven:
    return Driven(nursery)


async def test_a_new_certificate_is_used_at_once(driven: Driven, autojump_clock: Clock) -> None:
    driven.driver.begin()
    await trio.sleep(0.001)
    driven.context = "newer"
    driven.driver.begin()
    await trio.sleep(0.001)
    assert len(driven.core.begun) == 2
    assert driven.core.contexts[1] == "newer"


async def test_what_the_peer_asks_for_is_paced_and_done_before_it_loses_patience(
    driven: Driven, autojump_clock: Clock
) -> None:
    began = trio.current_time()
    for _ in range(1000):
        driven.driver.due(Reason.REAUTHENTICATION)
        await trio.sleep(0.05)
    times = driven.core.begun
    assert times[0] == began
    assert len(times) == pytest.approx(50 / REQUEST_PAUSE_S, abs=1)
    assert all(later - earlier >= REQUEST_PAUSE_S for earlier, later in itertools.pairwise(times))
    assert REQUEST_PAUSE_S < REAUTH_GRACE_S / 2


async def test_the_interval_and_a_new_certificate_wait_for_no_pause(
    driven: Driven, autojump_clock: Clock
) -> None:
    for act in (
        lambda: driven.driver.due(Reason.REAUTHENTICATION),
        lambda: driven.driver.due(Reason.REKEY_INTERVAL),
        driven.driver.begin,
    ):
        act()
        await trio.sleep(0.1)
    assert len(driven.core.begun) == 3


async def test_one_that_is_under_way_is_followed_by_another_as_soon_as_it_is_mixed_in(
    driven: Driven, autojump_clock: Clock
) -> None:
    driven.core.refusal = Reason.UNEXPECTED_MESSAGE
    driven.driver.begin()
    await trio.sleep(RETRY_S / 10)
    driven.core.refusal = None
    driven.driver.on_committed(replace(COMMITTED, reauthenticated=False))
    await trio.sleep(RETRY_S / 10)
    assert driven.core.begun == []
    now = trio.current_time()
    driven.driver.on_committed(COMMITTED)
    await trio.sleep(RETRY_S / 10)
    assert driven.core.begun == [now]
    driven.driver.on_committed(COMMITTED)
    await trio.sleep(10)
    assert len(driven.core.begun) == 1


async def test_a_start_that_failed_is_tried_again_until_it_succeeds(
    driven: Driven, autojump_clock: Clock
) -> None:
    driven.core.refusal = Reason.UNEXPECTED_MESSAGE
    driven.driver.due(Reason.REKEY_INTERVAL)
    await trio.sleep(20.5 * RETRY_S)
    assert driven.core.tries == 21
    driven.core.refusal = None
    await trio.sleep(RETRY_S)
    assert len(driven.core.begun) == 1
    await trio.sleep(10)
    assert driven.core.tries == 22


@pytest.mark.parametrize("reason", [Reason.GOING_AWAY, Reason.TUNNEL_LOST])
async def test_a_tunnel_that_ends_is_left_alone(
    driven: Driven, autojump_clock: Clock, reason: Reason
) -> None:
    driven.core.refusal = reason
    driven.driver.begin()
    await trio.sleep(60)
    assert driven.core.tries == 1


# --- between two real cores ----------------------------------------------------------------------


def reauthenticated(peer: Any) -> int:
    return sum(event.reauthenticated for event in peer.of(EpochCommitted))


async def test_the_interval_makes_both_ends_prove_again() -> None:
    async with gateway_pair(reauth_interval_s=0.2) as pair:
        await pair.until(lambda: reauthenticated(pair.server) >= 3)
        assert not pair.closed
        assert pair.client.totals.tunnels == 1


async def test_new_certificates_while_a_reauthentication_is_under_way_are_used_after_it() -> None:
    async with gateway_pair() as pair:
        await pair.until(lambda: bool(pair.client.tunnels) and bool(pair.server.tunnels))
        for _ in range(3):
            pair.client.use_tls(pair.client._tls)
            await trio.lowlevel.checkpoint()
        await pair.until(lambda: reauthenticated(pair.server) >= 2)
        assert not pair.closed


async def test_a_server_that_asks_all_the_time_is_followed_once() -> None:
    async with gateway_pair() as pair:
        await pair.until(lambda: bool(pair.client.tunnels) and bool(pair.server.tunnels))
        pair.server.use_tls(pair.server._tls)
        await pair.until(lambda: reauthenticated(pair.client) == 1)
        for _ in range(50):
            pair.server.use_tls(pair.server._tls)
            await trio.sleep(0.002)
        await pair.until(lambda: bool(pair.client.of(ReauthenticationDue)[1:]))
        await trio.sleep(0.05)
        assert len(pair.client.of(Reauthenticated)) == 1
        assert not pair.closed


async def test_a_tunnel_made_with_the_certificates_of_before_proves_again_once_it_is_up() -> None:
    async with gateway_pair() as pair:
        with trio.fail_after(20):
            while not pair.client._drivers:
                await trio.lowlevel.checkpoint()
        pair.client.use_tls(pair.client._tls)  # its handshake is under way
        assert pair.client.tunnels == []
        await pair.until(lambda: reauthenticated(pair.server) == 1)
        assert not pair.closed
