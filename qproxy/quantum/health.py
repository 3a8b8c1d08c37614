"""The health of the quantum link towards one peer: healthy, degraded or down.

Theory of operation. Everything learned about the link is a *sign*: good, weak (keys may come, but
something is short or slow) or bad (no keys come). Three channels are kept apart, because one may
look well while another is broken:

* the service: status probes and calls for keys. So many bad signs in a row mean DOWN.
* draws: calls for keys alone. A KME whose status shines while every call for keys fails is down
  all the same, and a good status does not count until a draw has worked (:attr:`wants_draw`).
* keys: whether both ends held the same key. Only an epoch can tell, so a link that is down for
  its keys stays down until a *trial* epoch (:meth:`LinkHealth.take_trial`) has committed.

Falling is quick and climbing is slow. A fall needs a few signs, and probes follow each other fast
after the first bad one. A climb needs a minimum dwell and a run of good signs that has *lasted*,
longer after each fall of the last minute; a single bad sign starts it again. An input that toggles
every second therefore makes the state fall once and stay there.

Nothing here reads a clock or rolls dice: ``now`` is seconds on any monotonic clock, and randomness
for jitter is passed in.

    state      falls to        when                       climbs to       when
    HEALTHY    DEGRADED, DOWN  weak run or ratio, bad run  --
    DEGRADED   DOWN            bad run                     HEALTHY         good for long enough
    DOWN       --                                          HEALTHY         good for long enough
                                                           DEGRADED        answering for long enough
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qproxy.errors import Reason
from qproxy.quantum.health_settings import HealthSettings

#: Most samples of ``stored_key_count`` kept for its trend.
MAX_TREND_SAMPLES: Final = 64
#: Most falls remembered for damping; more would not lengthen the wait any further.
MAX_FALLS_REMEMBERED: Final = 16


class LinkState(enum.StrEnum):
    """What the quantum link can be trusted with."""

    HEALTHY = "healthy"
    """Keys come as fast as they are used."""
    DEGRADED = "degraded"
    """Keys come, but something is short, slow or unsteady: spend them sparingly."""
    DOWN = "down"
    """No key that can be relied on."""


class Sign(enum.IntEnum):
    """What one observation says."""

    GOOD = 0
    WEAK = 1
    BAD = 2


#: Failures of a KME that works and has nothing to give: a link that is short, not one that is down.
WEAK_REASONS: Final = frozenset({Reason.KEYS_EXHAUSTED})


@dataclass(frozen=True, slots=True)
class LinkChange:
    """One change of state, for log, metric, audit and the tunnels that rekey upon it.

    Attributes:
        old: the state before.
        new: the state from ``now`` on.
        reason: why; ``link_healthy`` for a climb to HEALTHY.
        now: when, in seconds of the caller's clock.
    """

    old: LinkState
    new: LinkState
    reason: Reason
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """What a source's status says of the link, each None where it does not say.

    Attributes:
        stored_key_count: keys the KME has ready, 0 or more.
        qber: quantum bit error rate, 0 to 1.
        key_rate_bps: secret key rate in bits per second, 0 or more.
    """

    stored_key_count: int | None = None
    qber: float | None = None
    key_rate_bps: float | None = None

    @property
    def plausible(self) -> bool:
        """Whether every number lies in its range; NaN lies in none."""
        return (
            (self.stored_key_count is None or self.stored_key_count >= 0)
            and (self.qber is None or 0.0 <= self.qber <= 1.0)
            and (self.key_rate_bps is None or 0.0 <= self.key_rate_bps < math.inf)
        )


class Trend:
    """The slope of ``stored_key_count`` over a bounded window."""

    __slots__ = ("_samples", "_window_s")

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int]] = deque(maxlen=MAX_TREND_SAMPLES)

    def add(self, stored: int, now: float) -> None:
        """Take in one count. Counts closer together than the window can hold replace the last."""
        step = self._window_s / MAX_TREND_SAMPLES
        if len(self._samples) > 1 and now - self._samples[-2][0] < step:
            self._samples.pop()
        self._samples.append((now, stored))
        while now - self._samples[0][0] > self._window_s:
            self._samples.popleft()

    @property
    def keys_per_s(self) -> float | None:
        """Least-squares slope in keys per second, negative while the store shrinks.

        None until the counts span half of the window: the first filling of a stock is no trend.
        """
        if not self._samples or self._samples[-1][0] - self._samples[0][0] < self._window_s / 2:
            return None
        count = len(self._samples)
        mean_t = sum(t for t, _ in self._samples) / count
        mean_n = sum(n for _, n in self._samples) / count
        spread = sum((t - mean_t) ** 2 for t, _ in self._samples)
        return sum((t - mean_t) * (n - mean_n) for t, n in self._samples) / spread

    @property
    def latest(self) -> int | None:
        """The last count taken in."""
        return self._samples[-1][1] if self._samples else None


class LinkHealth:
    """Feeds on signs, tells the state. One per peer, for the link is the pair of KMEs.

    It starts DEGRADED, meaning not known yet: keys may be tried, and the first good sign makes it
    HEALTHY without any dwell.

    Args:
        settings: the thresholds.
        now: seconds of the caller's monotonic clock, which every later call continues.
        random: gives a float in [0, 1) each time, for jitter.
    """

    def __init__(
        self, settings: HealthSettings, now: float, *, random: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._random = random
        self._state = LinkState.DEGRADED
        self._reason = Reason.INITIAL
        self._since = now
        self._bad_run = 0
        self._weak_run = 0
        self._good_run = 0
        self._good_since: float | None = None
        self._answering_since: float | None = None
        self._window: deque[bool] = deque(maxlen=settings.ratio_window)
        self._weak_reason = Reason.LINK_DEGRADED
        self._falls: deque[float] = deque(maxlen=MAX_FALLS_REMEMBERED)
        self._draw_failures = 0
        self._draw_reason = Reason.KME_UNAVAILABLE
        self._key_failures = 0
        self._qber_high = False
        self._report_sign = Sign.GOOD
        self._trend = Trend(settings.trend_window_s)
        self._probe_backoff_s = settings.probe_backoff_s
        self._next_probe = now
        self._trial_backoff_s = settings.trial_backoff_s
        self._next_trial: float | None = None
        self._trial_committed = False

    @property
    def state(self) -> LinkState:
        """The state now."""
        return self._state

    @property
    def reason(self) -> Reason:
        """Why the link is in this state, for the status page and for a fall-back's OFFER."""
        return self._reason

    @property
    def since(self) -> float:
        """When it entered this state."""
        return self._since

    @property
    def wants_draw(self) -> bool:
        """Whether the next probe has to ask for a key: calls for keys were what failed."""
        return self._draw_failures > 0

    @property
    def awaits_trial(self) -> bool:
        """Whether keys failed so often that only a committed hybrid epoch can heal the link."""
        return self._key_failures >= self._settings.key_failures_to_down

    @property
    def proven(self) -> bool:
        """Whether a trial has committed while the link, which takes its time to climb, is DOWN."""
        return self._trial_committed and self._state is LinkState.DOWN

    # --- signs ---------------------------------------------------------------------------

    def success(
        self,
        now: float,
        *,
        latency_s: float | None = None,
        report: LinkReport | None = None,
        drew_keys: bool = False,
    ) -> LinkChange | None:
        """A call to the key source succeeded.

        Args:
            now: when the answer came.
            latency_s: how long it took, where that says something of the KME.
            report: what its status said.
            drew_keys: the call brought keys.

        Returns:
            The change of state this brought about, if any.
        """
        if drew_keys:
            self._draw_failures = 0
        sign, reason = self._judge(latency_s, report, now)
        if report is not None:
            self._report_sign = sign
        elif sign is Sign.GOOD and self._report_sign is not Sign.GOOD:
            # Keys that come easily do not answer for a QBER or a rate that was told to be bad:
            # only the next report can. No sign at all, so that the next probe is not put off.
            return None
        if sign is Sign.GOOD and self._draw_failures:
            sign, reason = Sign.WEAK, self._draw_reason
        return self._take(sign, reason, now)

    def failure(self, reason: Reason, now: float, *, drawing: bool = False) -> LinkChange | None:
        """A call to the key source failed.

        Args:
            reason: what :class:`~qproxy.errors.KeySourceError` said.
            now: when it failed.
            drawing: the call was for keys.
        """
        weak = reason in WEAK_REASONS
        if drawing:
            # An empty store is cleared by a draw too, but never brings the link down.
            self._draw_failures = max(self._draw_failures, 1) if weak else self._draw_failures + 1
            self._draw_reason = reason
        return self._take(Sign.WEAK if weak else Sign.BAD, reason, now)

    def key_failed(self, reason: Reason, now: float) -> LinkChange | None:
        """A hybrid epoch failed for its key: a MAC mismatch, or the peer's REJECT about the key.

        A KEY_MISMATCH counts here and nowhere else: a lying KMS must not end tunnels that may run
        without it (docs/protocol.md).
        """
        settings = self._settings
        self._key_failures += 1
        self._trial_committed = False
        if not self.awaits_trial:
            return None
        if self._key_failures == settings.key_failures_to_down:
            self._trial_backoff_s = settings.trial_backoff_s * self._damping(now)
        self._trial_backoff_s = min(self._trial_backoff_s, settings.max_trial_backoff_s)
        self._next_trial = now + self._jittered(self._trial_backoff_s)
        self._trial_backoff_s *= 2
        return self._move(LinkState.DOWN, reason, now)

    def key_confirmed(self, now: float) -> LinkChange | None:
        """A hybrid epoch committed: both ends held the same key."""
        # The climb takes its time all the same; see take_trial for what holds until then.
        if self.awaits_trial and self._answering_since is not None:
            self._trial_committed = True
        self._key_failures = 0
        self._next_trial = None
        return self._climb(now)

    # --- when to look again --------------------------------------------------------------

    def next_probe_at(self, now: float) -> float:
        """When the key source is to be asked next: never before ``now``.

        Every sign sets it anew, so calls made for other ends save a probe.
        """
        return max(now, self._next_probe)

    def next_trial_at(self) -> float | None:
        """When :meth:`take_trial` will next say yes, or None where no trial is needed."""
        return self._next_trial

    def hasten_trial(self, now: float) -> None:
        """The peer says that its link is well again: do not wait for the next trial's time.

        Whoever says so falsely gains a trial, which costs a key, and no mode.
        """
        if self._next_trial is not None:
            self._next_trial = min(self._next_trial, now)

    def take_trial(self, now: float) -> bool:
        """Whether one hybrid epoch may be tried now although the link is DOWN for its keys.

        A yes is given once for each wait, to one tunnel, and only while the KME itself answers.
        Once a trial has committed, it is given to everybody until the link has climbed or anything
        fails: a tunnel that rekeys meanwhile must not fall back from keys that work.
        """
        if self._trial_committed and self._state is LinkState.DOWN:
            return True
        if self._next_trial is None or now < self._next_trial or self._answering_since is None:
            return False
        wait = min(self._trial_backoff_s, self._settings.max_trial_backoff_s)
        self._next_trial = now + self._jittered(wait)
        return True

    def time_to_exhaustion_s(self) -> float | None:
        """Seconds until the KME's store runs dry by its trend; infinity while it does not shrink.

        None where the KME gives no count, or none for long enough yet.
        """
        stored, slope = self._trend.latest, self._trend.keys_per_s
        if stored is None or slope is None:
            return None
        return stored / -slope if slope < 0 else math.inf

    @property
    def stored_keys_trend(self) -> float | None:
        """Change of the KME's store in keys per second, or None where it is not known."""
        return self._trend.keys_per_s

    # --- inside --------------------------------------------------------------------------

    def _judge(
        self, latency_s: float | None, report: LinkReport | None, now: float
    ) -> tuple[Sign, Reason]:
        """What an answer says: the worst of its parts."""
        settings = self._settings
        if report is not None:
            if not report.plausible:
                return Sign.BAD, Reason.KME_INVALID_RESPONSE
            if report.stored_key_count is not None:
                self._trend.add(report.stored_key_count, now)
            if report.qber is not None:
                limit = settings.qber_clear if self._qber_high else settings.qber_degraded
                self._qber_high = report.qber > limit
                if report.qber > settings.qber_down:
                    return Sign.BAD, Reason.QBER_HIGH
                if self._qber_high:
                    return Sign.WEAK, Reason.QBER_HIGH
            if report.stored_key_count == 0 or self._runs_dry():
                return Sign.WEAK, Reason.KEYS_EXHAUSTED
            rate = report.key_rate_bps
            if rate is not None and rate < settings.key_rate_degraded_bps:
                return Sign.WEAK, Reason.LINK_DEGRADED
        if latency_s is not None and latency_s > settings.latency_degraded_s:
            return Sign.WEAK, Reason.LINK_DEGRADED
        return Sign.GOOD, Reason.LINK_HEALTHY

    def _runs_dry(self) -> bool:
        left = self.time_to_exhaustion_s()
        return left is not None and left < self._settings.exhaustion_degraded_s

    def _take(self, sign: Sign, reason: Reason, now: float) -> LinkChange | None:
        """Count one sign, settle the state, and set the time of the next probe."""
        self._window.append(sign is not Sign.GOOD)
        self._good_run = self._good_run + 1 if sign is Sign.GOOD else 0
        self._weak_run = 0 if sign is Sign.GOOD else self._weak_run + 1
        self._bad_run = self._bad_run + 1 if sign is Sign.BAD else 0
        self._trial_committed = self._trial_committed and sign is not Sign.BAD
        self._good_since = self._begun(self._good_since, now) if sign is Sign.GOOD else None
        self._answering_since = (
            None if sign is Sign.BAD else self._begun(self._answering_since, now)
        )
        if sign is Sign.WEAK:
            self._weak_reason = reason
        change = self._fall(sign, reason, now) or self._climb(now)
        self._schedule(sign, now)
        return change

    @staticmethod
    def _begun(since: float | None, now: float) -> float:
        return now if since is None else since

    def _fall(self, sign: Sign, reason: Reason, now: float) -> LinkChange | None:
        settings = self._settings
        if sign is Sign.GOOD:
            return None
        if self._bad_run >= settings.failures_to_down:
            return self._move(LinkState.DOWN, reason, now)
        if self._draw_failures >= settings.failures_to_down:
            return self._move(LinkState.DOWN, self._draw_reason, now)
        if self._state is LinkState.DOWN:
            return None
        weak = sign is Sign.WEAK and self._weak_run >= settings.weak_to_degraded
        if weak or sum(self._window) >= settings.ratio_to_degraded:
            return self._move(LinkState.DEGRADED, reason, now)
        return None

    def _climb(self, now: float) -> LinkChange | None:
        if self._state is LinkState.HEALTHY or self.awaits_trial:
            return None
        if self._reason is Reason.INITIAL and self._good_run:
            return self._move(LinkState.HEALTHY, Reason.LINK_HEALTHY, now)
        if now - self._since < self._settings.min_dwell_s:
            return None
        if self._good_run >= self._settings.good_signs_to_climb and self._lasted(
            self._good_since, now
        ):
            return self._move(LinkState.HEALTHY, Reason.LINK_HEALTHY, now)
        drawing = self._draw_failures < self._settings.failures_to_down
        if self._state is LinkState.DOWN and drawing and self._lasted(self._answering_since, now):
            return self._move(LinkState.DEGRADED, self._weak_reason, now)
        return None

    def _lasted(self, since: float | None, now: float) -> bool:
        """Whether a run of signs is long enough for a climb, after the falls of late."""
        if since is None:
            return False
        needed = min(self._settings.good_s * self._damping(now), self._settings.max_good_s)
        return now - max(since, self._since) >= needed

    def _damping(self, now: float) -> float:
        """1 after a first fall, doubled with each further one of late."""
        recent = sum(1 for fall in self._falls if now - fall <= self._settings.flap_window_s)
        return 2.0 ** max(0, recent - 1)

    def _move(self, new: LinkState, reason: Reason, now: float) -> LinkChange | None:
        old = self._state
        if new is old:
            # The cause may have changed under way, and the status page wants the present one.
            self._reason = reason
            return None
        if new is LinkState.DOWN or old is LinkState.HEALTHY:
            self._falls.append(now)
        if new is LinkState.DOWN:
            self._probe_backoff_s = self._settings.probe_backoff_s
        self._window.clear()
        self._trial_committed = False
        self._state, self._reason, self._since = new, reason, now
        return LinkChange(old, new, reason, now)

    def _schedule(self, sign: Sign, now: float) -> None:
        """Set the next probe: fast while unclear, patient while down, regular while steady."""
        settings = self._settings
        unclear = 0 < self._weak_run < settings.failures_to_down + settings.weak_to_degraded
        if self._state is LinkState.DOWN and sign is Sign.BAD:
            wait = self._jittered(self._probe_backoff_s)
            self._probe_backoff_s = min(2 * self._probe_backoff_s, settings.max_probe_backoff_s)
        elif self._state is not LinkState.DOWN and unclear:
            wait = settings.reprobe_s
        elif self._state is not LinkState.HEALTHY and sign is not Sign.BAD:
            wait = self._jittered(settings.climb_probe_interval_s)
        else:
            wait = self._jittered(settings.probe_interval_s)
        self._next_probe = now + wait

    def _jittered(self, wait_s: float) -> float:
        return wait_s * (1.0 + self._settings.jitter * (2.0 * self._random() - 1.0))
