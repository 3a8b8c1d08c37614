"""Every threshold of the link's health, apart from the machine that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Most signs the ratio rule may look back on.
MAX_RATIO_WINDOW: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """Every threshold of the link's health, with unit, default and reason.

    The defaults make a refusing KME DOWN 0.2 s after the first refusal, a hung one 1.7 s after the
    first call that hangs (2.8 s after the KME froze, at worst), and a healed link HEALTHY again
    within 10 s even after an hour of failure and several falls before.

    Attributes:
        failures_to_down: bad signs in a row, or failed draws in a row, that mean DOWN. 3: one lost
            packet or restarted KME process must not change modes, and three take but 0.2 s.
        key_failures_to_down: key failures (mismatch, unknown ID, the peer's KME) in a row that mean
            DOWN. 2: another key gets one chance, then the two KMEs count as out of step.
        weak_to_degraded: weak signs in a row that mean DEGRADED. 2: one slow answer is nothing.
        ratio_window: how many signs the ratio rule looks back on, at most 1000. 10.
        ratio_to_degraded: signs among them that are not good and mean DEGRADED, however they are
            spread. 3: a link that fails every third time is not healthy.
        latency_degraded_s: an answer slower than this is a weak sign. 0.35: three times the median
            that common KMEs need for a key request (114 ms on loopback).
        qber_degraded: a QBER above this is a weak sign. 0.08: well above the 1 to 5 % of a good
            link, with room before the limit.
        qber_clear: a QBER must be at or below this to be good again once it was high. 0.06: so that
            a value that wavers about the threshold does not change the state each time.
        qber_down: a QBER above this is a bad sign. 0.11: above it BB84 yields no secret key
            (Shor and Preskill 2000).
        key_rate_degraded_bps: a secret key rate below this is a weak sign. 1: by default only a
            rate of nothing counts, for what is enough depends on the tunnels.
        exhaustion_degraded_s: a KME that runs dry sooner than this, by the trend of its stored
            keys, is a weak sign. 30: time to lengthen the rekey interval before it is too late.
        trend_window_s: how far back that trend looks. 20: long enough for counts that move in
            batches.
        min_dwell_s: least time in a state before climbing out of it. 2.
        good_signs_to_climb: least number of good signs in a row before climbing. 3.
        good_s: how long the good signs must have lasted before climbing, after a first fall. 2: an
            input that toggles every second never gets there.
        max_good_s: what ``good_s`` grows to, doubling with each further fall. 5: with the probe
            interval it keeps the climb under 10 s.
        flap_window_s: how long a fall counts for that. 60.
        probe_interval_s: between probes of a steady link. 1: the time it may take to notice.
        probe_timeout_s: how long a probe may take before it counts as ``kme_timeout``; for the
            caller, who makes the calls. 0.5: three in a row and the interval stay under 3 s.
        reprobe_s: after a sign that is not good, until it is clear what it means. 0.1.
        climb_probe_interval_s: while good signs gather for a climb. 0.5.
        probe_backoff_s: the first wait once DOWN, doubled after each further bad sign. 0.2.
        max_probe_backoff_s: what that grows to. 2: cheap for a KME, soon enough for the climb.
        trial_backoff_s: after DOWN for key failures, until the first trial, doubled after each
            failed one. 1.
        max_trial_backoff_s: what that grows to. 4: a trial costs a key, and a longer wait would
            break the 10 s.
        jitter: each wait is multiplied by 1 ± this, so that gateways do not call in step. 0.1.
    """

    failures_to_down: int = 3
    key_failures_to_down: int = 2
    weak_to_degraded: int = 2
    ratio_window: int = 10
    ratio_to_degraded: int = 3
    latency_degraded_s: float = 0.35
    qber_degraded: float = 0.08
    qber_clear: float = 0.06
    qber_down: float = 0.11
    key_rate_degraded_bps: float = 1.0
    exhaustion_degraded_s: float = 30.0
    trend_window_s: float = 20.0
    min_dwell_s: float = 2.0
    good_signs_to_climb: int = 3
    good_s: float = 2.0
    max_good_s: float = 5.0
    flap_window_s: float = 60.0
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    reprobe_s: float = 0.1
    climb_probe_interval_s: float = 0.5
    probe_backoff_s: float = 0.2
    max_probe_backoff_s: float = 2.0
    trial_backoff_s: float = 1.0
    max_trial_backoff_s: float = 4.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other, with ValueError naming them."""
        counts = (
            self.failures_to_down,
            self.key_failures_to_down,
            self.weak_to_degraded,
            self.good_signs_to_climb,
            self.ratio_to_degraded,
        )
        if min(counts) < 1:
            raise ValueError("health: counts of signs must be at least 1")
        if not self.ratio_to_degraded <= self.ratio_window <= MAX_RATIO_WINDOW:
            raise ValueError("health: need ratio_to_degraded <= ratio_window <= 1000")
        if not 0 <= self.qber_clear <= self.qber_degraded <= self.qber_down <= 1:
            raise ValueError("health: need qber_clear <= qber_degraded <= qber_down")
        if not 0 < self.good_s <= self.max_good_s:
            raise ValueError("health: need 0 < good_s <= max_good_s")
        if not 0 < self.probe_backoff_s <= self.max_probe_backoff_s:
            raise ValueError("health: need 0 < probe_backoff_s <= max_probe_backoff_s")
        if not 0 < self.trial_backoff_s <= self.max_trial_backoff_s:
            raise ValueError("health: need 0 < trial_backoff_s <= max_trial_backoff_s")
        if not 0 <= self.jitter < 1:
            raise ValueError("health: need 0 <= jitter < 1")
