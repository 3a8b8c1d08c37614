"""Which mode the next epoch is offered in, whether it may be answered, and how long it may live.

All of it is a function of what the two ends believe: their policies, this end's view of the quantum
link and the peer's *authenticated* REJECT. Nothing that an attacker on the path can do without a
key, a reset, a TLS alert, silence, is an input here, so none of it can change a mode
(docs/protocol.md).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

from qproxy.errors import Reason
from qproxy.modes import Mode, Policy, stricter
from qproxy.quantum.health import LinkState

#: How long the keys in stock should last while nothing is known of new ones, in seconds.
ECONOMY_HORIZON_S: Final = 600.0
#: Part of ``max_without_qkd_s`` up to which ``require`` may lengthen its rekey interval: half, so
#: that there is time to try again before the tunnel must be closed.
REQUIRE_INTERVAL_SHARE: Final = 0.5

#: A REJECT that says the peer cannot get QKD keys at all just now. One about a single key
#: (not found, spent, mismatch) is not among them: another may do, until link health is down.
PEER_HAS_NO_KEYS: Final = frozenset(
    {
        Reason.NO_KEY_SOURCE,
        Reason.KME_UNREACHABLE,
        Reason.KME_TLS,
        Reason.KME_TIMEOUT,
        Reason.KME_UNAUTHORIZED,
        Reason.KME_BAD_REQUEST,
        Reason.KME_UNAVAILABLE,
        Reason.KME_INVALID_RESPONSE,
        Reason.KEYS_EXHAUSTED,
        Reason.LINK_DOWN,
        Reason.QBER_HIGH,
        Reason.TOO_FEW_SOURCES,
    }
)


class Action(enum.StrEnum):
    """What to do about the next epoch."""

    OFFER = "offer"
    """Offer an epoch in the decision's mode."""
    WAIT = "wait"
    """Run on under the present epoch; decide again when something changes, or in a second."""
    REFUSE = "refuse"
    """Carry no traffic: refuse the tunnel, or close it where it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known when an epoch is due, all of it this end's own or authenticated.

    Attributes:
        link: state of the quantum link.
        link_reason: why it is in that state.
        keys_available: keys in stock.
        peer_policy: the peer's policy as last authenticated, or None before the first epoch.
        current_mode: mode of the epoch that runs, or None before the first.
        epoch_age_s: age of the epoch that runs, in seconds.
        qkd_age_s: since the last QKD key went into this tunnel, in seconds; None for never.
        rejected: reason of the peer's authenticated REJECT, or of a failed MAC in a hybrid epoch,
            to the last attempt at *this* epoch; None where there was none.
        awaits_trial: the link is down because keys failed, and only an epoch can heal it.
        trial: link health allows one hybrid epoch although the link is down.
        must_rekey: the running epoch has reached a limit that keys may not outlive: bytes,
            records, re-authentication.
        tunnels: how many tunnels draw on the same stock, this one included.
        supply_keys_per_s: keys the link makes each second, or None where it is not known.
        stock_low: the stock is below its low water.
    """

    link: LinkState
    link_reason: Reason
    keys_available: int
    peer_policy: Policy | None = None
    current_mode: Mode | None = None
    epoch_age_s: float = 0.0
    qkd_age_s: float | None = None
    rejected: Reason | None = None
    awaits_trial: bool = False
    trial: bool = False
    must_rekey: bool = False
    tunnels: int = 1
    supply_keys_per_s: float | None = None
    stock_low: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, and why.

    Attributes:
        action: offer, wait or refuse.
        mode: the mode to offer; None unless the action is OFFER.
        reason: why this mode, or why not; for OFFER's reason, log, metric and audit.
        obstacle: what stands in the way of a hybrid epoch, or None where nothing does.
        policy: the policy that holds between the two ends.
        rekey_interval_s: how long the epoch should run before the next, in seconds.
        economy: that interval is longer than configured, because keys are short.
    """

    action: Action
    mode: Mode | None
    reason: Reason
    obstacle: Reason | None
    policy: Policy
    rekey_interval_s: float
    economy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModePolicy:
    """What one end demands of the tunnels to one peer.

    Attributes:
        policy: this end's own.
        max_without_qkd_s: under ``require``, how long a tunnel lives without a fresh QKD key.
        rekey_interval_s: how long an epoch runs while keys are plentiful.
        max_interval_s: how long it may be made to last under scarcity; for ``require`` no longer
            than half of ``max_without_qkd_s`` either.
        keys_per_epoch: QKD keys that go into one hybrid epoch.
        has_key_source: whether a key source is configured for this peer.
    """

    policy: Policy
    max_without_qkd_s: float = 300.0
    rekey_interval_s: float = 60.0
    max_interval_s: float = 600.0
    keys_per_epoch: int = 1
    has_key_source: bool = True

    def effective(self, peer_policy: Policy | None) -> Policy:
        """The policy that holds: the stricter one, or our own while the peer's is not known."""
        return self.policy if peer_policy is None else stricter(self.policy, peer_policy)

    def decide(self, situation: Situation) -> Decision:
        """Decide about the next epoch. ``require`` never yields classical-only."""
        policy = self.effective(situation.peer_policy)
        if policy is Policy.OFF:
            return self._decision(
                situation, policy, Action.OFFER, Mode.CLASSICAL_ONLY, Reason.POLICY_OFF, None
            )
        obstacle = self._obstacle(situation, policy)
        if obstacle is None:
            return self._decision(
                situation, policy, Action.OFFER, Mode.HYBRID, self._hybrid_reason(situation), None
            )
        if policy is Policy.REQUIRE:
            overdue = self.overdue(situation.peer_policy, situation.qkd_age_s)
            if overdue is not None:
                return self._decision(situation, policy, Action.REFUSE, None, overdue, obstacle)
            return self._decision(situation, policy, Action.WAIT, None, obstacle, obstacle)
        if self._may_stretch(situation, policy, obstacle):
            return self._decision(situation, policy, Action.WAIT, None, obstacle, obstacle)
        return self._decision(
            situation, policy, Action.OFFER, Mode.CLASSICAL_ONLY, obstacle, obstacle
        )

    def answer(
        self, offered: Mode, peer_policy: Policy, link: LinkState, link_reason: Reason
    ) -> Reason | None:
        """Whether the server may go on with an offered mode: None, or the reason for its REJECT.

        Whether the offered keys can be had is found out afterwards, by redeeming them.
        """
        if offered is Mode.CLASSICAL_ONLY:
            required = self.effective(peer_policy) is Policy.REQUIRE
            return Reason.POLICY_REQUIRE if required else None
        if not self.has_key_source:
            return Reason.NO_KEY_SOURCE
        if link is LinkState.DOWN and link_reason is Reason.QBER_HIGH:
            return Reason.QBER_HIGH
        return None

    def overdue(self, peer_policy: Policy | None, qkd_age_s: float | None) -> Reason | None:
        """Why a tunnel may carry no traffic any more, or None. Both ends ask on their own clocks.

        Args:
            peer_policy: the peer's policy as last authenticated, or None.
            qkd_age_s: since the last QKD key went into the tunnel; None for never.
        """
        if self.effective(peer_policy) is not Policy.REQUIRE:
            return None
        if qkd_age_s is None:
            return Reason.POLICY_REQUIRE
        # Not "greater than": an age that is not a number must not keep a tunnel open.
        return None if qkd_age_s <= self.max_without_qkd_s else Reason.QKD_TOO_OLD

    def interval_s(self, situation: Situation) -> float:
        """How long the next epoch should run: longer while keys are short, within the limits.

        Keys are short when the stock is low or the tunnels together would use more than the link
        makes. The interval is then what the supply, and the stock spread over ten minutes, carry.
        """
        longest = self.longest_interval_s(situation.peer_policy)
        base = min(self.rekey_interval_s, longest)
        demand = max(1, situation.tunnels) * self.keys_per_epoch
        supply = situation.supply_keys_per_s
        short_supply = supply is not None and supply < demand / base
        if not situation.stock_low and not short_supply:
            return base
        carried = (supply or 0.0) + situation.keys_available / ECONOMY_HORIZON_S
        wanted = demand / carried if carried > 0 else math.inf
        return min(max(base, wanted), longest)

    def longest_interval_s(self, peer_policy: Policy | None) -> float:
        """How long an epoch may be made to last under scarcity, in seconds."""
        return self._longest_interval_s(self.effective(peer_policy))

    # --- inside --------------------------------------------------------------------------

    def _obstacle(self, situation: Situation, policy: Policy) -> Reason | None:
        """Why the next epoch cannot be hybrid, or None."""
        if not self.has_key_source:
            return Reason.NO_KEY_SOURCE
        if situation.rejected in PEER_HAS_NO_KEYS:
            return situation.rejected
        if situation.link is LinkState.DOWN and not situation.trial:
            # With the KME gone, what is in stock is all there is. Under "prefer" the fall-back is
            # at once and audible; under "require" those keys are what keeps traffic alive.
            stocked = situation.keys_available >= self.keys_per_epoch
            trusted = not situation.awaits_trial and situation.link_reason is not Reason.QBER_HIGH
            if not (policy is Policy.REQUIRE and stocked and trusted):
                return situation.link_reason
        if situation.keys_available < self._keys_wanted(situation):
            return Reason.KEYS_EXHAUSTED
        return None

    def _keys_wanted(self, situation: Situation) -> int:
        """Keys for one epoch; to climb back, for the one after it too.

        A link that trickles would otherwise change the mode with every key it gives. A trial is
        made with what there is.
        """
        climbs = situation.current_mode is Mode.CLASSICAL_ONLY
        trial = situation.trial or situation.awaits_trial
        return self.keys_per_epoch * (2 if climbs and not trial else 1)

    @staticmethod
    def _hybrid_reason(situation: Situation) -> Reason:
        if situation.link is LinkState.HEALTHY:
            return Reason.LINK_HEALTHY
        if situation.link is LinkState.DEGRADED:
            return Reason.LINK_DEGRADED
        return situation.link_reason

    def _may_stretch(self, situation: Situation, policy: Policy, obstacle: Reason) -> bool:
        """Whether a hybrid epoch may run on because keys are merely short."""
        return (
            obstacle is Reason.KEYS_EXHAUSTED
            and not situation.must_rekey
            and situation.link is not LinkState.DOWN
            and situation.current_mode is Mode.HYBRID
            and situation.epoch_age_s < self._longest_interval_s(policy)
        )

    def _longest_interval_s(self, policy: Policy) -> float:
        if policy is not Policy.REQUIRE:
            return self.max_interval_s
        return min(self.max_interval_s, REQUIRE_INTERVAL_SHARE * self.max_without_qkd_s)

    def _decision(
        self,
        situation: Situation,
        policy: Policy,
        action: Action,
        mode: Mode | None,
        reason: Reason,
        obstacle: Reason | None,
    ) -> Decision:
        hybrid = mode is Mode.HYBRID or (
            action is Action.WAIT and situation.current_mode is Mode.HYBRID
        )
        base = min(self.rekey_interval_s, self._longest_interval_s(policy))
        interval = self.interval_s(situation) if hybrid else base
        return Decision(
            action=action,
            mode=mode,
            reason=reason,
            obstacle=obstacle,
            policy=policy,
            rekey_interval_s=interval,
            economy=interval > base,
        )
