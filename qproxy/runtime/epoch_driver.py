"""Answers the core's wish for a new epoch, at the end of the tunnel that dialled.

The core says when an epoch is due; :class:`~qproxy.quantum.policy.ModePolicy` says in which mode;
this class takes keys from the stock, makes the offer, and tells stock and link health what became
of it. A change of the link's state asks for an epoch too: that is how a live tunnel falls back and
climbs back. Only an epoch that is due for nothing but its age may be held back: a little, so that
the tunnels of a pool do not draw keys at once, or for longer while keys are short.

Where nothing has to be waited for, the decision falls in the reactor's turn that brought the wish,
after everybody has been told what that turn brought: so it is never made inside the core's or
another decision's doings, and a tunnel does not wait for trio to wake up. A task does the waiting.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import trio

from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import QkdKey
from qproxy.log import Logger
from qproxy.modes import Mode, Policy
from qproxy.net.reactor import current_reactor
from qproxy.quantum.combine import CombinedReservation
from qproxy.quantum.health import LinkChange, LinkState
from qproxy.quantum.policy import PEER_HAS_NO_KEYS, Action, Decision, Situation
from qproxy.runtime.qkd import Plan, QuantumSide
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import EpochCommitted, EpochFailed
from qproxy.tunnel.timers import PRESSING

#: How soon a wish that could not be met is looked at again, in seconds.
WAIT_S = 1.0
#: First pause after a failed attempt, doubled up to the last, in seconds.
RETRY_S = 0.05
MAX_RETRY_S = 2.0
#: Shortest time between two epochs that the server asks for, in seconds.
REQUEST_PAUSE_S = 1.0
#: By how much of the interval, at most, an epoch is put off so that tunnels to one peer do not
#: draw their keys at once.
STAGGER_SHARE = 0.1
#: How much of the time that is left to a deadline the same may use up at most.
STAGGER_MARGIN = 0.25

#: Failures of a hybrid attempt that speak of the key or of the peer's key source.
_KEY_FAILURES = PEER_HAS_NO_KEYS | {
    Reason.KEY_MISMATCH,
    Reason.KEY_NOT_FOUND,
    Reason.KEY_SPENT,
    Reason.KEY_INVALID,
}
#: What a KME says of a key that was fetched before, be it by the peer's process before this one.
_NOT_HELD = frozenset({Reason.KEY_NOT_FOUND, Reason.KME_BAD_REQUEST})


class EpochDriver:
    """Starts the epochs of one tunnel that this gateway dialled."""

    def __init__(
        self,
        tunnel: Tunnel,
        quantum: QuantumSide,
        log: Logger,
        *,
        tunnels: Callable[[], int],
    ) -> None:
        """Drive one tunnel's epochs.

        Args:
            tunnel: the tunnel.
            quantum: stock, health and policy of its peer.
            log: bound to the tunnel.
            tunnels: how many tunnels draw on the same stock now.
        """
        self._tunnel = tunnel
        self._quantum = quantum
        self._log = log
        self._tunnels = tunnels
        self._wish: Reason | None = None
        self._wished = trio.Event()
        #: The task has nothing to do but to wait for a wish.
        self._idle = True
        self._looks_soon = False
        #: No decision before this, in seconds of trio's clock.
        self._not_before = -math.inf
        self._fault: Exception | None = None
        self._answered = trio.Event()
        self._reservation: CombinedReservation | None = None
        self._offered_ids: tuple[str, ...] = ()
        self._mode: Mode | None = None
        self._paths: tuple[str, ...] = ()
        self._offered_paths: tuple[str, ...] = ()
        self._barred: set[str] = set()
        self._offered_wish = Reason.INITIAL
        #: The last offer of a tunnel without an epoch had a key that the peer has said it holds.
        self._trusted = False
        self._rejected: Reason | None = None
        self._failures = 0
        self._committed_at = trio.current_time()
        self._told: Reason | None = None
        self._requested_at = -REQUEST_PAUSE_S
        self._request_waits = False
        self._peer_is_well = False
        self._decision: Decision | None = None
        self._staggered_until = 0.0
        self._hurried = False
        self._stretched = False

    def epoch_due(self, reason: Reason) -> None:
        """The core, or a change of the link, wants an epoch."""
        # A change of the link may prove pointless later on; what the core asked for may not.
        if self._wish in {None, Reason.LINK_CHANGE} or reason in PRESSING:
            if reason is Reason.REKEY_INTERVAL:
                self._stagger()
            self._wish = reason
        self._hurried = self._hurried or reason is not Reason.REKEY_INTERVAL
        if not self._looks_soon:
            self._looks_soon = True
            current_reactor().soon(self._look)

    def on_requested(self, reason: Reason) -> None:
        """The server would like a new epoch, because of its own link.

        A wish never changes the mode of an offer (rule R9). But a hybrid offer that the server
        then REJECTs does, and that is authenticated; so in hybrid mode one is made, at a cost of
        one key. Whatever is asked for, and however often, is followed once a second at most.
        """
        self._request_waits = True
        self._peer_is_well = reason is Reason.LINK_HEALTHY
        self._follow_request()

    def on_link_change(self, change: LinkChange) -> None:
        """Fall back, or climb back, if the tunnel's mode is not what the link now allows."""
        climbs = change.new is not LinkState.DOWN and self._mode is Mode.CLASSICAL_ONLY
        falls = change.new is LinkState.DOWN and self._mode is Mode.HYBRID
        if climbs or falls:
            self.epoch_due(Reason.LINK_CHANGE)

    def on_committed(self, event: EpochCommitted) -> None:
        """The offer became an epoch."""
        self._mode = event.mode
        self._committed_at = trio.current_time()
        self._rejected = None
        self._barred.clear()
        self._paths = self._offered_paths
        self._failures = 0
        self._told = None
        self._hurried = False
        if event.mode is Mode.HYBRID:
            self._quantum.key_confirmed(self._offered_paths, self._offered_ids)
        self._settle(lambda reservation, now: reservation.confirmed(now))

    def on_failed(self, event: EpochFailed) -> None:
        """The offer came to nothing: decide again, soon."""
        self._settle(lambda reservation, now: reservation.orphaned(now))
        if event.mode is Mode.HYBRID and event.reason in _KEY_FAILURES:
            if self._trusted and event.remote and event.reason in _NOT_HELD:
                # This tunnel leads to another process than held the key, which is not to blame.
                self._quantum.peer_lost()
            else:
                self._key_failed(event.reason)
        self._try_again(self._offered_wish)

    @property
    def waits_for(self) -> Reason | None:
        """What keeps a wanted epoch from being offered, or None: the running one goes on."""
        if self._wish is not None and self._stretched:
            return Reason.KEYS_EXHAUSTED
        return self._obstacle()

    @property
    def economy(self) -> bool:
        """Whether the running hybrid epoch is to last longer because keys are short."""
        return self.rekey_interval_s > self._quantum.policy.rekey_interval_s

    @property
    def rekey_interval_s(self) -> float:
        """How long the running epoch may last before the next is offered, in seconds.

        By the keys of now: it may be longer or shorter again by then.
        """
        policy = self._quantum.policy
        if self._mode is not Mode.HYBRID:
            return policy.rekey_interval_s
        situation = self._situation(self._plan())
        if self._obstacle() is Reason.KEYS_EXHAUSTED:
            stretched_s = policy.longest_interval_s(situation.peer_policy)
        else:
            stretched_s = 0.0 if self._hurried else policy.interval_s(situation)
        # The core asks for no epoch earlier than it is configured.
        return max(policy.rekey_interval_s, stretched_s)

    async def run(self) -> None:
        """See to the wishes that must wait for something, until cancelled."""
        while True:
            self._idle = True
            try:
                with trio.move_on_after(WAIT_S) as timeout:
                    await self._wished.wait()
            finally:
                self._idle = False
            if self._fault is not None:
                raise self._fault
            self._follow_request()
            if timeout.cancelled_caught and not self._climb_is_due():
                continue
            self._wished = trio.Event()
            await trio.sleep_until(self._not_before)
            if not self._tunnel.connection.epoch_exchange_idle:
                # An exchange is under way; what came of it decides whether another is wanted.
                await self._wait_for_answer()
                continue
            held_s = self._held_s()
            if held_s > 0:
                with trio.move_on_after(min(held_s, WAIT_S / 4)):
                    await self._wished.wait()
                self._wished.set()
                continue
            self._decide()

    # Inside.

    def _look(self) -> None:
        """The reactor's: decide at once, or wake the task where there is something to wait for."""
        self._looks_soon = False
        waits = self._wished.is_set() or trio.current_time() < self._not_before
        if self._idle and not waits and self._tunnel.connection.epoch_exchange_idle:
            try:
                if self._held_s() <= 0:
                    self._decide()
            except Exception as error:  # raised where it costs this tunnel
                self._fault = error
        if self._wish is not None or self._fault is not None:
            self._wished.set()

    def _try_again(self, wish: Reason) -> None:
        """After failures, offers come slower and slower; the first retry is at once."""
        self._failures += 1
        if self._failures > 1:
            self._pause(min(RETRY_S * 2.0 ** (self._failures - 2), MAX_RETRY_S))
        self.epoch_due(wish)

    def _pause(self, pause_s: float) -> None:
        self._not_before = trio.current_time() + pause_s

    def _key_failed(self, reason: Reason) -> None:
        """A hybrid attempt failed for a key: do without the paths to blame in this epoch.

        Where too few are left, the reason may change the mode of the next attempt (rule R9).
        """
        blamed = self._quantum.key_failed(self._offered_paths, reason, self._offered_ids)
        self._barred.update(blamed)
        left = [
            path
            for path in self._quantum.paths
            if path.name not in self._barred and path.health.state is not LinkState.DOWN
        ]
        if blamed and len(left) < self._quantum.at_least:
            self._rejected = reason
            self._barred.clear()

    def _obstacle(self) -> Reason | None:
        """What the last decision about a wish that still stands waits for, or None."""
        decision = self._decision
        if self._wish is None or decision is None or decision.action is not Action.WAIT:
            return None
        return decision.reason

    def _follow_request(self) -> None:
        """Do what the server asked for, unless it had an epoch just now: then later."""
        now = trio.current_time()
        if not self._request_waits or now < self._requested_at + REQUEST_PAUSE_S:
            return
        self._request_waits = False
        self._requested_at = now
        if self._mode is Mode.HYBRID:
            self.epoch_due(Reason.OPERATOR)
        elif self._mode is Mode.CLASSICAL_ONLY:
            if self._peer_is_well:
                self._quantum.hasten_trials(now)
            self.epoch_due(Reason.LINK_CHANGE)

    def _stagger(self) -> None:
        """Put an epoch that is due by its age off a little, where other tunnels have theirs."""
        now = trio.current_time()
        if self._tunnels() < 2:
            self._staggered_until = now
            return
        config = self._quantum.config
        longest_s = STAGGER_SHARE * config.rekey.interval_s
        left_s = [config.rekey.max_age_s - (now - self._committed_at)]
        qkd_deadline = self._tunnel.connection.qkd_deadline
        if qkd_deadline is not None:
            left_s.append(qkd_deadline - now)
        longest_s = max(0.0, min(longest_s, STAGGER_MARGIN * min(left_s)))
        self._staggered_until = now + random.uniform(0, longest_s)  # noqa: S311 - jitter

    def _held_s(self) -> float:
        """How long an epoch that is wanted for its age alone is still held back; 0 for not."""
        down = self._quantum.state is LinkState.DOWN
        if self._wish is not Reason.REKEY_INTERVAL or self._hurried or self._failures or down:
            return 0.0
        now = trio.current_time()
        stretched_s = 0.0
        if self.economy:
            stretched_s = self._committed_at + self.rekey_interval_s - now
        self._say_stretched(stretched_s > 0)
        return max(0.0, stretched_s, self._staggered_until - now)

    def _say_stretched(self, stretched: bool) -> None:
        if stretched and not self._stretched:
            self._log.warning(
                "rekey_stretched",
                reason=Reason.KEYS_EXHAUSTED,
                interval_s=round(self.rekey_interval_s, 1),
                configured_s=self._quantum.policy.rekey_interval_s,
                stock=self._quantum.available,
            )
        elif self._stretched and not stretched and not self.economy:
            self._log.info("rekey_not_stretched", stock=self._quantum.available)
        self._stretched = stretched or (self._stretched and self.economy)

    def _climb_is_due(self) -> bool:
        """A tunnel whose epochs could have keys of more sources, or a wish that waits."""
        if self._wish is not None:
            return True
        if self._mode is None or self._policy() is Policy.OFF:
            return False
        if self._quantum.can_widen(self._paths, trio.current_time()):
            self._wish = Reason.LINK_CHANGE
            return True
        return False

    async def _wait_for_answer(self) -> None:
        self._answered = trio.Event()
        with trio.move_on_after(WAIT_S):
            await self._answered.wait()
        if self._wish is not None:
            self._wished.set()

    def _decide(self) -> None:
        """Make an offer, or find out why not; a wish that still stands is looked at again."""
        wish = self._wish or Reason.LINK_CHANGE
        plan = self._plan(wish)
        decision = self._quantum.policy.decide(self._situation(plan, wish))
        self._decision = decision
        if decision.action is Action.OFFER and decision.mode is not None:
            if self._is_pointless(wish, decision, plan):
                self._wish = self._rejected = None
                self._barred.clear()
                self._failures = 0
                self._hurried = False
                return
            if not self._offer(wish, decision, decision.mode, plan):
                self._pause(RETRY_S)
                self._wished.set()
        elif decision.action is Action.REFUSE:
            self._say_refused(decision)
            self._tunnel.end(decision.reason)
        else:
            self._say_waiting(decision)
            # Soon enough to see the end of what an epoch may be stretched to, however short.
            self._pause(min(WAIT_S, self._quantum.policy.max_interval_s / 4))
            self._wished.set()

    def _plan(self, wish: Reason | None = None) -> Plan:
        """What a hybrid epoch would be made from; with a wish it may use up a trial."""
        # What must be renewed at once is no occasion for trying out a source that may fail.
        return self._quantum.plan(
            trio.current_time(),
            running=None if self._mode is None else self._paths,
            barred=self._barred,
            spend_stock=self._policy() is Policy.REQUIRE,
            may_try=wish is not None,
            widen=wish in {Reason.LINK_CHANGE, Reason.REKEY_INTERVAL},
        )

    def _situation(self, plan: Plan, wish: Reason | None = None) -> Situation:
        """What is known now, and of what the epoch would be made."""
        quantum, now = self._quantum, trio.current_time()
        fresh_at = self._tunnel.connection.qkd_age_from
        return Situation(
            link=quantum.state,
            link_reason=quantum.reason,
            keys_available=plan.keys_available,
            peer_policy=self._tunnel.connection.peer_policy,
            current_mode=self._mode,
            epoch_age_s=now - self._committed_at,
            qkd_age_s=None if fresh_at is None else now - fresh_at,
            rejected=self._rejected,
            awaits_trial=plan.awaits_trial,
            trial=plan.trial,
            must_rekey=wish in PRESSING,
            tunnels=self._tunnels(),
            supply_keys_per_s=plan.supply_keys_per_s,
            stock_low=plan.stock_low,
        )

    def _is_pointless(self, wish: Reason, decision: Decision, plan: Plan) -> bool:
        """A link change that changes neither this tunnel's mode nor its sources needs no epoch."""
        if wish is not Reason.LINK_CHANGE or decision.mode is not self._mode:
            return False
        return self._mode is not Mode.HYBRID or set(plan.paths) <= set(self._paths)

    def _offer(self, wish: Reason, decision: Decision, mode: Mode, plan: Plan) -> bool:
        """Make an offer. False where its keys were not to be had: another tunnel was quicker."""
        now = trio.current_time()
        keys: tuple[QkdKey, ...] = ()
        self._offered_paths = plan.paths if mode is Mode.HYBRID else ()
        self._offered_ids = ()
        if mode is Mode.HYBRID:
            # A new tunnel may be one to a restarted peer, which holds nothing any more.
            fresh = wish is Reason.INITIAL and not self._quantum.knows_peer
            reservation = self._quantum.reserve(plan.paths, now, fresh=fresh)
            if reservation is None:
                return False
            try:
                reservation.offered(now)
            except LocalProtocolError:
                return False
            self._reservation = reservation
            self._trusted = self._mode is None and reservation.held
            self._offered_ids = reservation.key_ids
            keys = reservation.keys
        # Why this mode is more telling than why now, wherever the mode is not what it was.
        changes = self._mode is not mode and (self._mode is not None or mode is not Mode.HYBRID)
        reason = decision.reason if changes else wish
        self._wish = None
        self._offered_wish = wish

        def start(connection: Connection, now: float) -> None:
            connection.start_epoch(mode, reason, keys, now)

        try:
            self._tunnel.tell_core(start)
        except LocalProtocolError as error:
            # The core takes this wish for granted now, and will not repeat it.
            self._log.debug("epoch_not_started", reason=error.reason, detail=str(error))
            self._settle(lambda held, at: held.orphaned(at))
            if error.reason is Reason.EPOCH_LIMIT:
                return True  # There will be no further epoch: keys would be drawn for nothing.
            if error.reason is Reason.KEY_INVALID:
                self._key_failed(error.reason)
            self._try_again(wish)
        return True

    def _settle(self, end: Callable[[CombinedReservation, float], None]) -> None:
        self._answered.set()
        reservation, self._reservation = self._reservation, None
        # The stock gives up on an offer by itself after a while, and says so in its counters.
        if reservation is not None and reservation.keys:
            end(reservation, trio.current_time())

    def _policy(self) -> Policy:
        return self._quantum.policy.effective(self._tunnel.connection.peer_policy)

    def _say_refused(self, decision: Decision) -> None:
        self._log.warning(
            "tunnel_refused",
            policy=decision.policy,
            reason=decision.reason,
            obstacle=decision.obstacle,
            hint="the policy requires QKD and no key can be had; see the link_state and kme events",
        )

    def _say_waiting(self, decision: Decision) -> None:
        if decision.reason is not self._told:
            self._told = decision.reason
            self._log.warning(
                "epoch_waits", policy=decision.policy, reason=decision.reason, mode=self._mode
            )
