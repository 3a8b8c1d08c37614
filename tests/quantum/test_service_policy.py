"""What a service demands of its tunnel, on a clock that only these tests move."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.modes import Mode, Policy
from qproxy.quantum.service_policy import ServicePolicy

REQUIRE = ServicePolicy(policy=Policy.REQUIRE, max_without_qkd_s=30.0)
MODES = [None, *Mode]
AGES = st.none() | st.floats(min_value=0, max_value=1e6)


class FakeTunnel:
    """A tunnel's mode and last QKD key, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.mode: Mode | None = None
        self.mixed_at: float | None = None

    def commit(self, mode: Mode) -> None:
        self.mode = mode
        if mode is Mode.HYBRID:
            self.mixed_at = self.now

    def meets(self, policy: ServicePolicy) -> bool:
        age_s = None if self.mixed_at is None else self.now - self.mixed_at
        return policy.met(self.mode, age_s)


def test_require_holds_through_an_outage_no_longer_than_the_limit() -> None:
    tunnel = FakeTunnel()
    assert not tunnel.meets(REQUIRE)
    tunnel.commit(Mode.HYBRID)
    tunnel.now += 20
    tunnel.commit(Mode.CLASSICAL_ONLY)
    tunnel.now += 10
    assert tunnel.meets(REQUIRE)  # 30 s: the limit itself is still allowed
    tunnel.now += 0.001
    assert not tunnel.meets(REQUIRE)
    tunnel.commit(Mode.CLASSICAL_ONLY)
    assert not tunnel.meets(REQUIRE)  # another classical-only epoch brings nothing
    tunnel.commit(Mode.HYBRID)
    assert tunnel.meets(REQUIRE)


def test_a_hybrid_epoch_that_runs_meets_require_however_long_it_is_stretched() -> None:
    tunnel = FakeTunnel()
    tunnel.commit(Mode.HYBRID)
    tunnel.now += 500
    assert tunnel.meets(REQUIRE)
    tunnel.commit(Mode.CLASSICAL_ONLY)
    assert not tunnel.meets(REQUIRE)


def test_a_tunnel_that_never_had_a_qkd_key_never_meets_require() -> None:
    tunnel = FakeTunnel()
    tunnel.commit(Mode.CLASSICAL_ONLY)
    assert not tunnel.meets(ServicePolicy(policy=Policy.REQUIRE, max_without_qkd_s=math.inf))


def test_an_age_that_is_no_number_is_too_old() -> None:
    assert not REQUIRE.met(Mode.CLASSICAL_ONLY, math.nan)


@given(mode=st.sampled_from(MODES), age_s=AGES)
@pytest.mark.parametrize("policy", [None, Policy.PREFER])
def test_without_require_nothing_is_demanded(
    policy: Policy | None, mode: Mode | None, age_s: float | None
) -> None:
    assert ServicePolicy(policy=policy, max_without_qkd_s=1.0).met(mode, age_s)


@given(mode=st.sampled_from(MODES), age_s=AGES, limits=st.tuples(*[st.floats(1, 1e6)] * 2))
def test_a_shorter_limit_is_never_the_laxer_one(
    mode: Mode | None, age_s: float | None, limits: tuple[float, float]
) -> None:
    short, long = (
        ServicePolicy(policy=Policy.REQUIRE, max_without_qkd_s=limit) for limit in sorted(limits)
    )
    assert not short.met(mode, age_s) or long.met(mode, age_s)


def test_the_limit_is_the_peers_unless_the_service_has_its_own() -> None:
    assert ServicePolicy.of(Policy.REQUIRE, None, 300.0).max_without_qkd_s == 300.0
    assert ServicePolicy.of(Policy.REQUIRE, 20.0, 300.0).max_without_qkd_s == 20.0
