"""Link health on a fake clock: how fast it falls, how it climbs, and that it never flaps."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.errors import Reason
from qproxy.quantum.health import (
    MAX_TREND_SAMPLES,
    LinkChange,
    LinkHealth,
    LinkReport,
    LinkState,
    Trend,
)
from qproxy.quantum.health_settings import HealthSettings

DEFAULTS = HealthSettings()
HEALTHY, DEGRADED, DOWN = LinkState.HEALTHY, LinkState.DEGRADED, LinkState.DOWN
GOOD = None
REFUSED = Reason.KME_UNREACHABLE
HUNG = Reason.KME_TIMEOUT

#: What the simulated KME does at a time: None for a good answer, a report, or a failure.
Kme = Callable[[float], Reason | LinkReport | None]


@dataclass
class Prober:
    """What the runtime does: probe when health says so, and tell it what came."""

    kme: Kme
    seed: int = 0
    settings: HealthSettings = DEFAULTS
    now: float = 0.0
    probes: list[float] = field(default_factory=list)
    changes: list[LinkChange] = field(default_factory=list)

    def __post_init__(self):
        self.health = LinkHealth(self.settings, 0.0, random=random.Random(self.seed).random)

    def run(self, until: float) -> None:
        while (at := self.health.next_probe_at(self.now)) < until:
            self.probes.append(at)
            answer = self.kme(at)
            self.now = at + (self.settings.probe_timeout_s if answer is HUNG else 0.001)
            if isinstance(answer, Reason):
                change = self.health.failure(answer, self.now)
            else:
                change = self.health.success(self.now, latency_s=0.001, report=answer)
            if change is not None:
                self.changes.append(change)
        self.now = until

    def first(self, state: LinkState, after: float = 0.0) -> float:
        return next(c.now for c in self.changes if c.new is state and c.now >= after)


def make(settings: HealthSettings = DEFAULTS) -> LinkHealth:
    return LinkHealth(settings, 0.0, random=lambda: 0.5)


def healthy() -> LinkHealth:
    health = make()
    assert health.success(0.0) == LinkChange(DEGRADED, HEALTHY, Reason.LINK_HEALTHY, 0.0)
    return health


# --- falling ---------------------------------------------------------------------------------


def test_it_starts_degraded_and_the_first_good_sign_makes_it_healthy():
    health = make()
    assert (health.state, health.reason) == (DEGRADED, Reason.INITIAL)
    health.success(0.0)
    assert (health.state, health.reason) == (HEALTHY, Reason.LINK_HEALTHY)


def test_one_bad_sign_changes_nothing_and_three_in_a_row_mean_down():
    health = healthy()
    assert health.failure(REFUSED, 1.0) is None
    assert health.failure(REFUSED, 1.1) is None
    assert health.failure(REFUSED, 1.2) == LinkChange(HEALTHY, DOWN, REFUSED, 1.2)
    assert health.since == 1.2
    assert health.reason is REFUSED


@pytest.mark.parametrize(
    "reason",
    [
        Reason.KME_UNREACHABLE,
        Reason.KME_TLS,
        Reason.KME_TIMEOUT,
        Reason.KME_UNAUTHORIZED,
        Reason.KME_BAD_REQUEST,
        Reason.KME_UNAVAILABLE,
        Reason.KME_INVALID_RESPONSE,
        Reason.KEY_INVALID,
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_an_erroring_kme_is_down_well_under_a_second_after_the_first_bad_sign(reason, seed):
    prober = Prober(lambda t: reason if t >= 5 else GOOD, seed)
    prober.run(20)
    first_bad = next(t for t in prober.probes if t >= 5)
    took = 0.5 if reason is HUNG else 0.0
    assert prober.first(DOWN) - first_bad < (1.0 if not took else 3.0)
    assert prober.changes[-1].reason is reason


@pytest.mark.parametrize("seed", range(20))
def test_a_hung_kme_is_down_under_three_seconds_after_it_froze(seed):
    frozen_at = 5 + seed * 0.05
    prober = Prober(lambda t: HUNG if t >= frozen_at else GOOD, seed)
    prober.run(20)
    assert prober.first(DOWN) - frozen_at < 3.0


def test_a_link_that_never_answered_goes_down():
    prober = Prober(lambda t: REFUSED)
    prober.run(5)
    assert [(c.old, c.new) for c in prober.changes] == [(DEGRADED, DOWN)]
    assert prober.changes[0].now < 1.0


def test_failures_spread_among_good_signs_mean_degraded():
    health = healthy()
    times = itertools.count(1)
    for _ in range(2):
        assert health.failure(REFUSED, next(times)) is None
        assert health.success(next(times)) is None
    assert health.failure(REFUSED, next(times)) == LinkChange(HEALTHY, DEGRADED, REFUSED, 5)


def test_a_rare_failure_leaves_it_healthy():
    health = healthy()
    for t in range(1, 500):
        assert (health.failure(REFUSED, t) if t % 6 == 0 else health.success(t)) is None


def test_calls_for_keys_that_fail_bring_it_down_though_its_status_shines():
    health = healthy()
    for n in range(2):
        health.failure(Reason.KME_UNAVAILABLE, 1.0 + n, drawing=True)
        health.success(1.5 + n)
    change = health.failure(Reason.KME_UNAVAILABLE, 3.0, drawing=True)
    assert (change.new, change.reason) == (DOWN, Reason.KME_UNAVAILABLE)
    assert health.wants_draw
    for t in range(4, 60):
        assert health.success(t) is None
    assert health.state is DOWN
    health.success(60, drew_keys=True)
    assert not health.wants_draw
    assert health.success(62) is None
    assert health.success(64).new is HEALTHY


def test_an_empty_store_is_degraded_and_never_down():
    health = healthy()
    for t in range(1, 50):
        health.failure(Reason.KEYS_EXHAUSTED, t, drawing=True)
    assert (health.state, health.reason) == (DEGRADED, Reason.KEYS_EXHAUSTED)


# --- reports ---------------------------------------------------------------------------------


def test_a_qber_above_the_limit_of_a_secret_key_is_down():
    health = healthy()
    for n in range(3):
        change = health.success(1 + n / 10, report=LinkReport(qber=0.12))
    assert (change.new, change.reason) == (DOWN, Reason.QBER_HIGH)


def test_a_raised_qber_is_degraded_until_it_is_clearly_low():
    health = healthy()
    health.success(1, report=LinkReport(qber=0.09))
    assert health.success(2, report=LinkReport(qber=0.09)).new is DEGRADED
    for t in range(3, 30):
        assert health.success(t, report=LinkReport(qber=0.07)) is None
    for t in range(30, 34):
        change = health.success(t, report=LinkReport(qber=0.05))
        if change:
            break
    assert change.new is HEALTHY


def test_a_jammed_link_is_degraded():
    health = healthy()
    health.success(1, report=LinkReport(key_rate_bps=0.0))
    assert health.success(2, report=LinkReport(key_rate_bps=0.0)).new is DEGRADED


def test_slow_answers_are_degraded():
    health = healthy()
    health.success(1, latency_s=0.4)
    assert health.success(2, latency_s=0.4) == LinkChange(
        HEALTHY, DEGRADED, Reason.LINK_DEGRADED, 2
    )


@pytest.mark.parametrize(
    "report",
    [
        LinkReport(qber=math.nan),
        LinkReport(qber=-0.1),
        LinkReport(qber=1.1),
        LinkReport(stored_key_count=-1),
        LinkReport(key_rate_bps=math.nan),
        LinkReport(key_rate_bps=math.inf),
        LinkReport(key_rate_bps=-1.0),
    ],
)
def test_an_impossible_report_is_a_bad_sign(report):
    health = healthy()
    for n in range(3):
        change = health.success(1.0 + n, report=report)
    assert (change.new, change.reason) == (DOWN, Reason.KME_INVALID_RESPONSE)
    assert health.time_to_exhaustion_s() is None


def test_a_store_that_runs_dry_soon_is_degraded_before_it_is_empty():
    health = healthy()
    for t in range(1, 100):
        if health.success(t, report=LinkReport(stored_key_count=max(0, 1000 - 20 * t))):
            break
    assert (health.state, health.reason) == (DEGRADED, Reason.KEYS_EXHAUSTED)
    stored = 1000 - 20 * t
    assert stored > 400
    assert health.time_to_exhaustion_s() == pytest.approx(stored / 20)
    assert health.stored_keys_trend == pytest.approx(-20)


def test_the_first_filling_of_a_stock_is_no_trend():
    health = make()
    for t in range(60):
        health.success(t, report=LinkReport(stored_key_count=100 if t == 0 else 68))
    assert health.state is HEALTHY


def test_a_growing_store_never_runs_dry():
    trend = Trend(20.0)
    for t in range(20):
        trend.add(100 + t, t)
    assert trend.keys_per_s == pytest.approx(1.0)
    health = make()
    for t in range(20):
        health.success(t, report=LinkReport(stored_key_count=100 + t))
    assert health.time_to_exhaustion_s() == math.inf


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 10**9)), max_size=300))
def test_the_trend_is_bounded_and_never_fails(samples):
    trend = Trend(20.0)
    now = 0.0
    for step, stored in samples:
        now += step
        trend.add(stored, now)
        assert len(trend._samples) <= MAX_TREND_SAMPLES
        slope = trend.keys_per_s
        assert slope is None or math.isfinite(slope)


def test_the_trend_looks_back_a_whole_window_however_often_it_is_fed():
    trend = Trend(20.0)
    for n in range(4000):
        trend.add(10_000 - n, n / 100)
    assert trend._samples[0][0] < 21
    assert trend.keys_per_s == pytest.approx(-100, rel=0.01)


# --- climbing --------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [REFUSED, HUNG, Reason.KME_UNAVAILABLE])
@pytest.mark.parametrize("outage_s", [3.0, 7.3, 60.0, 3600.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_healed_link_is_healthy_again_within_ten_seconds(failure, outage_s, seed):
    healed_at = 5 + outage_s
    prober = Prober(lambda t: failure if 5 <= t < healed_at else GOOD, seed)
    prober.run(healed_at + 30)
    assert prober.first(HEALTHY, after=healed_at) - healed_at < 10.0
    assert [c.new for c in prober.changes] == [HEALTHY, DOWN, HEALTHY]


@pytest.mark.parametrize("seed", range(5))
def test_even_after_many_falls_it_is_healthy_again_within_ten_seconds(seed):
    prober = Prober(lambda t: REFUSED if int(t) % 12 < 2 else GOOD, seed)
    prober.run(240)
    for fallen in [c.now for c in prober.changes if c.new is DOWN]:
        healed = fallen - fallen % 12 + 2
        assert prober.first(HEALTHY, after=fallen) - healed < 10.0


def test_one_bad_sign_starts_the_climb_again():
    health = healthy()
    for n in range(3):
        health.failure(REFUSED, 1 + n / 10)
    for t in (2.0, 2.5, 3.0, 3.5):
        assert health.success(t) is None
    assert health.failure(REFUSED, 3.9) is None
    for t in (4.0, 4.5, 5.0, 5.5):
        assert health.success(t) is None
    assert health.success(6.0) == LinkChange(DOWN, HEALTHY, Reason.LINK_HEALTHY, 6.0)


def test_a_burst_of_good_signs_is_not_enough():
    health = healthy()
    for n in range(3):
        health.failure(REFUSED, 1 + n / 10)
    for n in range(1000):
        assert health.success(1.2 + n * 0.001) is None


def test_each_further_fall_makes_the_climb_longer_up_to_a_limit():
    health = healthy()
    now, climbs = 1.0, []
    for _ in range(5):
        for _ in range(3):
            health.failure(REFUSED, now)
        begun = now
        while health.state is not HEALTHY:
            now += 0.1
            health.success(now)
        climbs.append(now - begun)
    assert climbs == [pytest.approx(wanted + 0.1, abs=0.11) for wanted in (2.0, 4.0, 5.0, 5.0, 5.0)]


def test_a_link_that_answers_and_is_short_climbs_to_degraded_only():
    health = healthy()
    for n in range(3):
        health.failure(REFUSED, 1 + n / 10)
    changes = [health.success(t, report=LinkReport(stored_key_count=0)) for t in range(2, 9)]
    (change,) = filter(None, changes)
    assert (change.old, change.new, change.reason) == (DOWN, DEGRADED, Reason.KEYS_EXHAUSTED)


# --- no flapping -----------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [REFUSED, HUNG, LinkReport(qber=0.2), LinkReport(qber=0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_an_input_that_toggles_every_second_makes_it_fall_and_stay(failure, seed):
    prober = Prober(lambda t: failure if int(t) % 2 else GOOD, seed)
    prober.run(600)
    assert [c.new for c in prober.changes].count(HEALTHY) == 1
    assert len(prober.changes) <= 3
    assert prober.health.state is not HEALTHY


SIGNS: dict[str, Callable[[LinkHealth, float], LinkChange | None]] = {
    "good": lambda health, now: health.success(now),
    "refused": lambda health, now: health.failure(REFUSED, now),
    "empty": lambda health, now: health.failure(Reason.KEYS_EXHAUSTED, now, drawing=True),
    "slow": lambda health, now: health.success(now, latency_s=1.0),
    "draw": lambda health, now: health.failure(Reason.KME_UNAVAILABLE, now, drawing=True),
    "drew": lambda health, now: health.success(now, drew_keys=True),
    "key": lambda health, now: health.key_failed(Reason.KEY_MISMATCH, now),
    "commit": lambda health, now: health.key_confirmed(now),
}


@settings(deadline=None)
@given(
    signs=st.lists(
        st.tuples(
            st.floats(0.0, 3.0),
            st.sampled_from(sorted(SIGNS)),
        ),
        max_size=300,
    )
)
def test_no_input_at_all_makes_it_flap(signs):
    health = make()
    now, climbs, changes = 0.0, [], []
    for step, sign in signs:
        now += step
        change = SIGNS[sign](health, now)
        if change is not None:
            assert change.old is not change.new
            assert (change.new, change.reason) == (health.state, health.reason)
            changes.append(change)
        assert health.next_probe_at(now) >= now
        assert health.next_probe_at(now) <= now + DEFAULTS.max_probe_backoff_s * 1.1
    for before, after in itertools.pairwise(changes):
        assert before.new is after.old
        climbing = [HEALTHY, DEGRADED, DOWN].index(after.new) < [HEALTHY, DEGRADED, DOWN].index(
            after.old
        )
        if climbing and before.reason is not Reason.INITIAL:
            climbs.append(after.now)
            assert after.now - before.now >= DEFAULTS.min_dwell_s
    assert len(climbs) <= now / DEFAULTS.min_dwell_s + 1


# --- probing ---------------------------------------------------------------------------------


def test_it_is_probed_at_once_and_then_at_the_interval():
    health = make()
    assert health.next_probe_at(0.0) == 0.0
    health.success(0.0)
    assert health.next_probe_at(0.0) == 1.0
    assert health.next_probe_at(1.5) == 1.5


def test_the_first_bad_sign_makes_probes_fast():
    health = healthy()
    health.failure(REFUSED, 1.0)
    assert health.next_probe_at(1.0) == pytest.approx(1.1)


def test_probes_of_a_link_that_is_down_back_off_with_jitter():
    waits = {}
    for seed in range(2):
        prober = Prober(lambda t: REFUSED, seed)
        prober.run(60)
        waits[seed] = [b - a for a, b in itertools.pairwise(prober.probes)]
        assert max(waits[seed]) <= 2.0 * 1.1 + 0.01
        assert min(waits[seed][-10:]) >= 2.0 * 0.9
        assert waits[seed][3] < 0.5
    assert waits[0] != waits[1]


def test_a_steadily_weak_link_is_not_probed_in_a_hurry_for_ever():
    prober = Prober(lambda t: LinkReport(stored_key_count=0))
    prober.run(100)
    assert len(prober.probes) < 250


# --- keys that the other end did not have ----------------------------------------------------


def down_for_keys() -> LinkHealth:
    health = healthy()
    assert health.key_failed(Reason.KEY_MISMATCH, 1.0) is None
    change = health.key_failed(Reason.KEY_MISMATCH, 1.1)
    assert change == LinkChange(HEALTHY, DOWN, Reason.KEY_MISMATCH, 1.1)
    return health


def test_a_committed_key_between_two_failures_keeps_it_healthy():
    health = healthy()
    for t in range(1, 20):
        assert health.key_failed(Reason.KEY_NOT_FOUND, t) is None
        assert health.key_confirmed(t + 0.5) is None


def test_good_answers_alone_never_heal_a_link_whose_keys_differ():
    health = down_for_keys()
    for t in range(2, 200):
        assert health.success(t) is None
    assert health.awaits_trial


def test_a_trial_is_given_once_for_each_wait_and_a_committed_one_heals():
    health = down_for_keys()
    health.success(1.2)
    assert health.next_trial_at() == pytest.approx(2.1)
    assert not health.take_trial(2.0)
    assert health.take_trial(2.2)
    assert not health.take_trial(2.2)
    health.success(3.0)
    health.success(4.0)
    assert health.key_confirmed(4.1).new is HEALTHY
    assert health.next_trial_at() is None
    assert not health.take_trial(100.0)


def test_failed_trials_back_off_to_a_limit_that_keeps_healing_under_ten_seconds():
    health = down_for_keys()
    now, waits = 1.1, []
    for _ in range(6):
        at = health.next_trial_at()
        waits.append(at - now)
        now = at
        health.success(now)
        assert health.take_trial(now)
        assert health.key_failed(Reason.KEY_MISMATCH, now) is None
    assert waits == pytest.approx([1.0, 2.0, 4.0, 4.0, 4.0, 4.0])


def test_no_trial_while_the_kme_does_not_answer():
    health = down_for_keys()
    for n in range(3):
        health.failure(REFUSED, 1.2 + n / 10)
    assert not health.take_trial(50.0)
    health.success(51.0)
    assert health.take_trial(51.0)


def test_a_trial_that_nobody_reports_on_is_given_again_later():
    health = down_for_keys()
    health.success(2.0)
    assert health.take_trial(3.0)
    assert health.take_trial(3.0 + DEFAULTS.max_trial_backoff_s * 1.2)


def proven_by_a_trial() -> LinkHealth:
    """Down for its keys; then the KME answers and a trial commits, too soon for the climb."""
    health = down_for_keys()
    health.success(2.0)
    assert health.take_trial(2.2)
    assert health.key_confirmed(2.3) is None
    assert health.state is DOWN
    return health


def test_a_committed_trial_allows_more_hybrid_epochs_until_the_link_has_climbed():
    health = proven_by_a_trial()
    assert health.take_trial(2.4)
    assert health.key_confirmed(2.5) is None
    assert health.take_trial(3.0)
    health.success(3.0)
    assert health.success(4.5).new is HEALTHY
    assert not health.take_trial(4.6)


@pytest.mark.parametrize("end", ["failure", "key_failed"])
def test_what_a_committed_trial_allows_ends_with_the_next_failure(end):
    health = proven_by_a_trial()
    getattr(health, end)(Reason.KME_UNAVAILABLE, 2.4)
    health.success(2.5)
    assert not health.take_trial(2.6)


def test_a_hybrid_epoch_out_of_the_stock_proves_nothing_of_a_kme_that_is_gone():
    health = healthy()
    for n in range(3):
        health.failure(REFUSED, 1.0 + n / 10)
    health.key_confirmed(1.5)
    health.success(1.6)
    assert not health.take_trial(1.7)


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"failures_to_down": 0},
        {"ratio_window": 2},
        {"ratio_window": 1001},
        {"qber_clear": 0.09},
        {"qber_down": 0.05},
        {"good_s": 6.0},
        {"probe_backoff_s": 3.0},
        {"trial_backoff_s": 0.0},
        {"jitter": 1.0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(bad):
    with pytest.raises(ValueError, match="health: "):
        HealthSettings(**bad)


def test_keys_that_come_easily_do_not_answer_for_a_bad_report():
    health = healthy()
    now = 10.0
    health.success(now, report=LinkReport(stored_key_count=100, qber=0.2, key_rate_bps=1e5))
    probe_at = health.next_probe_at(now)
    for _ in range(20):
        now += 0.01
        assert health.success(now, latency_s=0.01, drew_keys=True) is None
        assert health.next_probe_at(now) == max(now, probe_at)
    for _ in range(3):
        now = health.next_probe_at(now)
        health.success(now, report=LinkReport(stored_key_count=100, qber=0.2, key_rate_bps=1e5))
        health.success(now, latency_s=0.01, drew_keys=True)
    assert (health.state, health.reason) == (LinkState.DOWN, Reason.QBER_HIGH)


def test_a_peer_that_is_well_again_brings_the_trial_forward():
    health = healthy()
    health.hasten_trial(5.0)  # nothing to bring forward
    assert health.next_trial_at() is None
    for now in (10.0, 10.1, 12.0):
        health.key_failed(Reason.KME_UNAVAILABLE, now)
    health.success(12.1, report=LinkReport(stored_key_count=100))
    assert not health.take_trial(12.2)
    health.hasten_trial(12.2)
    assert health.take_trial(12.2)
    assert not health.take_trial(12.2)
