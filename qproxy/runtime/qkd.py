"""The quantum side of one peer: every key source it shares with us, and what they amount to.

Each source is a :class:`~qproxy.runtime.key_path.KeyPath` with a stock and a link health of its
own; what they are together, and which of them an epoch is made from, is decided by
:mod:`qproxy.quantum.combine`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import trio

from qproxy.config.model import PeerConfig
from qproxy.errors import Reason
from qproxy.keys import QkdKey, wipe_keys
from qproxy.log import Logger
from qproxy.modes import Mode, Policy
from qproxy.quantum.combine import (
    CombinedReservation,
    Suspects,
    choose_paths,
    combined_state,
)
from qproxy.quantum.health import LinkChange, LinkState
from qproxy.quantum.policy import ModePolicy
from qproxy.quantum.stock import Reservation, StockCounters
from qproxy.runtime.counters import Tally
from qproxy.runtime.key_path import KeyPath
from qproxy.sources.base import KeySource
from qproxy.tunnel.announce import INSTANCE_ID_BYTES, MAX_KEYS_PER_ANNOUNCE, KeyReport
from qproxy.tunnel.events import KeysReported
from qproxy.tunnel.messages import OfferedKey

#: How long a new gateway waits for the first word from its key sources before it dials, so that a
#: tunnel does not begin in classical-only mode just because the first key was under way.
FIRST_WORD_S = 3.0
#: Names this process to peers, which must know when announced keys are lost with it.
INSTANCE_ID = os.urandom(INSTANCE_ID_BYTES)

#: How long, at most, a failed epoch of several sources keeps others like it from being made before
#: they are due, in seconds. It begins with one and doubles.
MAX_WIDEN_WAIT_S = 300.0

#: Share of ``rekey.max_age_s`` that an epoch may be stretched to while keys are short. Both ends
#: close the tunnel at the full age, so enough must be left for several attempts at an epoch.
STRETCH_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class SourceInUse:
    """A key source towards one peer.

    Attributes:
        source: where keys are drawn and redeemed.
        kind: what it is ("etsi-qkd-014", "skip", "file").
        path: what both ends call this pair of sources; empty where it is the only one.
    """

    source: KeySource
    kind: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next hybrid epoch would be made from.

    Attributes:
        paths: names; empty where there are too few.
        trial: one of them may be used although its link is down.
        keys_available: keys in stock of the binding path.
        awaits_trial: only an epoch can heal the binding path.
        supply_keys_per_s: keys the binding path's link makes each second, or None.
        stock_low: the binding path's stock is below its low water.
    """

    paths: tuple[str, ...]
    trial: bool
    keys_available: int
    awaits_trial: bool
    supply_keys_per_s: float | None
    stock_low: bool


class QuantumSide:
    """Keys and link health towards one peer.

    Attributes:
        config: the peer's configuration.
        paths: its key sources, in the configuration's order; none with policy ``off``.
        policy: what this end demands.
        at_least: how many paths make an epoch hybrid: what is configured, or more where the peer
            has said that it insists.
        link_changes: changes of the state of all links together, by the state from then on.
        since: when it came into that state.
    """

    def __init__(
        self,
        config: PeerConfig,
        sources: Sequence[SourceInUse],
        log: Logger,
        *,
        now: float,
        workers: int = 1,
    ) -> None:
        """Nothing runs yet.

        Args:
            config: the peer's configuration.
            sources: where keys come from.
            log: where changes are told.
            now: seconds of trio's clock.
            workers: processes that share the links' keys evenly, this one among them.
        """
        self.config = config
        self._workers = workers
        self.at_least = config.combine_at_least
        self.link_changes: Tally[tuple[LinkState, Reason]] = Tally()
        self.since = now
        self._log = log
        self._peer_instance: bytes | None = None
        self._peer_is_known = False
        self._suspects = Suspects()
        self._widen_at = -math.inf
        self._listeners: list[Callable[[LinkChange], None]] = []
        self._path_listeners: list[Callable[[KeyPath, LinkChange], None]] = []
        self._draw_listeners: list[Callable[[], None]] = []
        self.paths = tuple(
            KeyPath(
                config,
                entry.source,
                entry.kind,
                log,
                now=now,
                name=entry.path,
                workers=workers,
                on_change=self._on_path_change,
                on_keys=self._on_keys,
            )
            for entry in sources
        )
        self._by_name = {path.name: path for path in self.paths}
        self._by_label = {path.label: path for path in self.paths}
        self._state = self.state
        self.policy = ModePolicy(
            policy=config.policy,
            max_without_qkd_s=config.max_without_qkd_s,
            rekey_interval_s=config.rekey.interval_s,
            max_interval_s=max(config.rekey.interval_s, STRETCH_SHARE * config.rekey.max_age_s),
            keys_per_epoch=config.qkd_keys_per_epoch,
            has_key_source=bool(self.paths),
        )

    @property
    def state(self) -> LinkState:
        """State of all links together; DEGRADED, not known, without any source."""
        return self._combined()[0]

    @property
    def reason(self) -> Reason:
        """Why it is in that state."""
        return self._combined()[1]

    @property
    def draws(self) -> bool:
        """Whether this side keeps stocks: it dials. The other side redeems what was offered."""
        return self.config.address is not None

    @property
    def available(self) -> int:
        """Keys that can be reserved now, over all stocks."""
        return sum(path.stock.available for path in self.paths)

    @property
    def counters(self) -> StockCounters:
        """What became of every key so far, over all stocks."""
        total = StockCounters()
        for path in self.paths:
            total += path.stock.counters
        return total

    @property
    def redeemed(self) -> int:
        """Keys redeemed for tunnels that the peer dialled."""
        return sum(path.redeemed for path in self.paths)

    def on_link_change(self, listener: Callable[[LinkChange], None]) -> None:
        """Call this with every change of the state of all links together."""
        self._listeners.append(listener)

    def on_path_change(self, listener: Callable[[KeyPath, LinkChange], None]) -> None:
        """Call this with every change of the state of one source's link."""
        self._path_listeners.append(listener)

    def on_keys_drawn(self, listener: Callable[[], None]) -> None:
        """Call this whenever keys have come into a stock."""
        self._draw_listeners.append(listener)

    async def first_word(self) -> None:
        """Wait until every source has given keys or is known to be down, but not for long."""
        if self.config.policy is not Policy.OFF:
            with trio.move_on_after(FIRST_WORD_S):
                for path in self.paths:
                    await path.first_word()

    async def use_source(self, entry: SourceInUse) -> None:
        """Call another source of the same keys on its path from now on."""
        await self._by_name[entry.path].use_source(entry.source)

    async def run(self) -> None:
        """Watch every source for as long as the gateway runs."""
        async with trio.open_nursery() as nursery:
            for path in self.paths:
                nursery.start_soon(path.run)

    # The client's side of an epoch.

    def plan(
        self,
        now: float,
        *,
        running: Collection[str] | None,
        barred: Collection[str] = (),
        spend_stock: bool = False,
        may_try: bool = False,
        widen: bool = False,
    ) -> Plan:
        """What the next hybrid epoch would be made from. Without any source: nothing.

        Args:
            now: seconds of trio's clock.
            running: paths of the running epoch; None where none runs yet.
            barred: paths that failed in this very epoch.
            spend_stock: keys in stock may be used up where no more come.
            may_try: where too few paths can be used, one whose link is down for its keys may be
                tried, which uses up its trial.
            widen: the same, where there is nothing else that the running epoch has not.
        """
        steady = self._choose(running, barred, spend_stock, frozenset())
        on_trial: frozenset[str] = frozenset()
        if may_try and (not steady or (widen and set(steady) <= set(running or ()))):
            on_trial = self._take_trials(now, barred, enough=not steady)
        chosen = steady
        if on_trial:
            chosen = self._choose(running, barred, spend_stock, on_trial) or steady
        binding = self._binding(barred, on_trial)
        if binding is None:
            return Plan((), False, 0, False, None, False)
        # One source alone is weighed by the policy; of several it cannot know which have keys.
        counts = chosen or len(self.paths) == 1
        return Plan(
            paths=chosen,
            trial=any(self._by_name[name].health.state is LinkState.DOWN for name in chosen),
            keys_available=binding.stock.available if counts else 0,
            awaits_trial=binding.health.awaits_trial,
            supply_keys_per_s=binding.rate_keys_per_s,
            stock_low=binding.stock.low,
        )

    def reserve(
        self, paths: Sequence[str], now: float, *, fresh: bool
    ) -> CombinedReservation | None:
        """Lend an epoch its keys: from all of these paths, or None.

        Args:
            paths: names.
            now: seconds of trio's clock.
            fresh: the peer may have restarted: take keys first that it was not told of.
        """
        number = self.policy.keys_per_epoch
        parts: list[tuple[str, Reservation]] = []
        for name in paths:
            part = self._by_name[name].stock.reserve(number, now, fresh=fresh)
            if part is None:
                CombinedReservation(parts).released(now)
                return None
            parts.append((name, part))
        for name in paths:
            self._by_name[name].nudge()
        return CombinedReservation(parts) if parts else None

    def key_failed(
        self, used: Sequence[str], reason: Reason, key_ids: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """A hybrid epoch of these paths failed for a key, here or at the peer.

        Args:
            used: names of the paths.
            reason: why.
            key_ids: of all keys in its OFFER.

        Returns:
            The paths to blame; none where others must be tried first to find out.
        """
        if reason is Reason.TOO_FEW_SOURCES:
            self._peer_insists(len(used) + 1)
            return tuple(used)
        blamed = self._suspects.failed(used, self.at_least)
        if not blamed:
            # Somebody may do this on purpose, to use up the keys of the other paths.
            wait_s = min(MAX_WIDEN_WAIT_S, 2.0 ** min(30, self._suspects.joint_failures - 1))
            self._widen_at = trio.current_time() + wait_s
        for name in blamed:
            self._by_name[name].key_failed(reason, key_ids)
        return blamed

    def begin_tunnel(self) -> None:
        """A tunnel is about to be dialled: what the peer insisted on may be another thing now."""
        self.at_least = self.config.combine_at_least
        self._settle()

    def key_confirmed(self, used: Sequence[str], key_ids: Sequence[str] = ()) -> None:
        """A hybrid epoch of these paths committed, made from the keys of these IDs."""
        self._suspects.confirmed(used)
        for name in used:
            self._by_name[name].key_confirmed(key_ids)

    def hasten_trials(self, now: float) -> None:
        """The peer says that its link is well again."""
        for path in self.paths:
            path.health.hasten_trial(now)

    def can_widen(self, running: Collection[str], now: float) -> bool:
        """Whether an epoch could have a path that the running one has not."""
        for path in self.paths:
            if path.name in running:
                continue
            trial_at = path.health.next_trial_at()
            up = path.health.state is not LinkState.DOWN or path.health.proven
            up = up and (now >= self._widen_at or not running)
            due = trial_at is not None and trial_at <= now
            keys = self.policy.keys_per_epoch * (2 if up and running else 1)
            if (up or due) and path.stock.available >= keys:
                return True
        return False

    # The server's side.

    async def redeem(
        self, keys: tuple[OfferedKey, ...], peer_policy: Policy
    ) -> list[QkdKey] | Reason:
        """The server's side of an OFFER: claim every ID once, then take or fetch the keys.

        Returns:
            The keys in the order offered, the caller's to wipe; or why they cannot be had.
        """
        wanted = self._claim(keys, peer_policy)
        return wanted if isinstance(wanted, Reason) else await self._redeem_all(keys, wanted)

    def redeem_held(
        self, keys: tuple[OfferedKey, ...], peer_policy: Policy
    ) -> list[QkdKey] | Reason | None:
        """The same at once where all keys were redeemed ahead; else None, and none is claimed."""
        now = trio.current_time()  # of all looks: none ages out between them
        if not all(
            (path := self._by_label.get(key.source)) and path.holds(key.key_id, now) for key in keys
        ):
            return None
        wanted = self._claim(keys, peer_policy)
        if isinstance(wanted, Reason):
            return wanted
        held = {path: path.take_held(key_ids, now) for path, key_ids in wanted.items()}
        return _in_order(keys, wanted, held)

    async def redeem_ahead(self, keys: tuple[OfferedKey, ...]) -> KeyReport:
        """The server's side of an ANNOUNCE: fetch what there is room for, and say what is held."""
        results: dict[tuple[str, str], Reason | None] = {}
        wanted: dict[KeyPath, list[OfferedKey]] = {}
        for key in keys:
            # What no source here can have is refused at once.
            results[key.source, key.key_id] = Reason.KEY_INVALID
            if not self.paths:
                results[key.source, key.key_id] = Reason.NO_KEY_SOURCE
            elif path := self._by_label.get(key.source):
                wanted.setdefault(path, []).append(key)

        async def fetch(path: KeyPath) -> None:
            found = await path.redeem_ahead(wanted[path])
            results.update({(path.label, key_id): reason for key_id, reason in found.items()})

        async with trio.open_nursery() as nursery:
            for path in wanted:
                nursery.start_soon(fetch, path)
        # What holds nothing loses nothing: to the peer, workers that come and go are one gateway.
        instance_id = INSTANCE_ID if self._workers == 1 else bytes(INSTANCE_ID_BYTES)
        return KeyReport(
            instance_id, tuple((key_id, reason) for (_, key_id), reason in results.items())
        )

    # The client's side of announcing.

    def keys_to_announce(self) -> tuple[OfferedKey, ...]:
        """Keys the peer should redeem ahead, of every source a fair part.

        Where the peer may have restarted, one of those that it was told of comes first: what it
        answers tells, and nothing else would before an epoch fails for such a key.
        """
        asked = () if self._peer_is_known else self._announced_key()
        share = (MAX_KEYS_PER_ANNOUNCE - len(asked)) // max(1, len(self.paths))
        return (*asked, *(key for path in self.paths for key in path.keys_to_announce(share)))

    @property
    def knows_peer(self) -> bool:
        """What the peer said it holds, it holds: a tunnel has been up ever since it said so."""
        return self._peer_is_known

    def tunnels_lost(self) -> None:
        """No tunnel to the peer is up: when one is again, its process may be another one."""
        self._peer_is_known = False

    def peer_lost(self) -> None:
        """The peer's process is another one than the one that said what it holds."""
        self._peer_instance, self._peer_is_known = None, False
        discarded = sum(path.peer_restarted() for path in self.paths)
        self._log.info("peer_restarted", keys_discarded=discarded)

    def not_announced(self, keys: tuple[OfferedKey, ...]) -> None:
        """These keys cannot be told to the peer, whatever their source was thinking: wipe them."""
        wiped = 0
        for label, path in self._by_label.items():
            wiped += path.stock.discard([key.key_id for key in keys if key.source == label])
        self._log.debug("keys_not_announced", keys_discarded=wiped)

    def on_report(self, event: KeysReported) -> None:
        """What the peer says of announced keys. Those it cannot have are wiped."""
        if self._peer_instance not in {None, event.instance_id}:
            self.peer_lost()
        self._peer_instance, self._peer_is_known = event.instance_id, True
        lost = {k: reason for k, reason in event.refused if reason is not Reason.LIMIT_REACHED}
        if lost:
            reasons = sorted({reason for _, reason in event.refused})
            self._log.debug("announced_keys_refused", count=len(lost), reasons=reasons)
        for path in self.paths:
            path.stock.held_by_peer(event.held)
            path.refused_ahead(lost)

    # Inside.

    def _announced_key(self) -> tuple[OfferedKey, ...]:
        """One key that the peer was told of, or none."""
        told = (path.announced_key() for path in self.paths)
        return tuple(key for key in told if key is not None)[:1]

    def _combined(self) -> tuple[LinkState, Reason]:
        if not self.paths:
            return LinkState.DEGRADED, Reason.INITIAL
        states = [(path.health.state, path.health.reason) for path in self.paths]
        return combined_state(states, self.at_least)

    def _on_path_change(self, path: KeyPath, change: LinkChange | None) -> None:
        if change is not None:
            for listener in self._path_listeners:
                listener(path, change)
        self._settle()

    def _settle(self) -> None:
        """Tell everybody where the state of all links together is another one than before."""
        old, (new, reason) = self._state, self._combined()
        if new is old:
            return
        now = trio.current_time()
        self._state, self.since = new, now
        self.link_changes.add((new, reason), now)
        if len(self.paths) > 1:
            write = self._log.warning if new is not LinkState.HEALTHY else self._log.info
            write(
                "combined_link_state",
                old=old,
                new=new,
                reason=reason,
                usable=[p.name for p in self.paths if p.health.state is not LinkState.DOWN],
                down=[p.name for p in self.paths if p.health.state is LinkState.DOWN],
                at_least=self.at_least,
            )
        for listener in self._listeners:
            listener(LinkChange(old, new, reason, now))

    def _on_keys(self) -> None:
        for listener in self._draw_listeners:
            listener()

    def _peer_insists(self, number: int) -> None:
        """The peer takes no epoch of so few paths."""
        if number > self.at_least:
            self.at_least = number
            self._log.warning(
                "peer_wants_more_sources",
                at_least=number,
                configured=self.config.combine_at_least,
                hint="give both ends the same combine_at_least and the same paths in key_sources",
            )
            self._settle()

    def _choose(
        self,
        running: Collection[str] | None,
        barred: Collection[str],
        spend_stock: bool,
        on_trial: frozenset[str],
    ) -> tuple[str, ...]:
        return choose_paths(
            [path.view(on_trial=path.name in on_trial) for path in self.paths],
            self._suspects,
            at_least=self.at_least,
            keys_per_epoch=self.policy.keys_per_epoch,
            running=running,
            barred=barred,
            spend_stock=spend_stock,
        )

    def _take_trials(self, now: float, barred: Collection[str], *, enough: bool) -> frozenset[str]:
        """Paths that may be tried now; one, or with ``enough`` as many as an epoch needs."""
        usable = sum(path.health.state is not LinkState.DOWN for path in self.paths)
        wanted = max(1, self.at_least - usable) if enough else 1
        taken: set[str] = set()
        for path in self.paths:
            down = path.health.state is LinkState.DOWN and not path.health.proven
            may = down and path.name not in barred and len(taken) < wanted
            stocked = path.stock.available >= self.policy.keys_per_epoch
            if may and stocked and path.health.take_trial(now):
                taken.add(path.name)
        return frozenset(taken)

    def _binding(self, barred: Collection[str], on_trial: Collection[str]) -> KeyPath | None:
        """The path without which no epoch is hybrid: of all, the ``at_least``-th best."""

        def badness(path: KeyPath) -> tuple[bool, bool, int]:
            excused = path.name in on_trial or path.health.proven
            down = path.health.state is LinkState.DOWN and not excused
            return path.name in barred, down, -path.stock.available

        order = sorted(self.paths, key=badness)
        return order[min(self.at_least, len(order)) - 1] if order else None

    def _refusal(self, path: KeyPath, peer_policy: Policy) -> Reason | None:
        """Why this end will not have an epoch with this path's keys just now, or None.

        With the link down there is no sense in spending what is held, unless somebody requires it.
        A link that is down for its keys is no reason: only an epoch can heal it.
        """
        health, reason = path.health, path.health.reason
        refusal = self.policy.answer(Mode.HYBRID, peer_policy, health.state, reason)
        if refusal is None and health.state is LinkState.DOWN and not health.awaits_trial:
            required = self.policy.effective(peer_policy) is Policy.REQUIRE
            return None if required else reason
        return refusal

    def _claim(
        self, keys: tuple[OfferedKey, ...], peer_policy: Policy
    ) -> dict[KeyPath, list[str]] | Reason:
        """Claim every ID of an OFFER once: what to redeem at each path, or why nothing is."""
        if not self.paths:
            return Reason.NO_KEY_SOURCE
        wanted: dict[KeyPath, list[str]] = {}
        for key in keys:
            path = self._by_label.get(key.source)
            if path is None:
                return Reason.NO_KEY_SOURCE
            wanted.setdefault(path, []).append(key.key_id)
        if any(8 * key.size_bytes != self.config.qkd_key_size_bits for key in keys):
            return Reason.KEY_INVALID
        # Every ID is claimed, also after one was refused: an ID in an OFFER is burnt (rule R5).
        claims = [path.claim(key_ids) for path, key_ids in wanted.items()]
        if not all(claims):
            return Reason.KEY_SPENT
        if len(wanted) < self.config.combine_at_least:
            return Reason.TOO_FEW_SOURCES
        for path in wanted:
            refusal = self._refusal(path, peer_policy)
            if refusal is not None:
                return refusal
        return wanted

    async def _redeem_all(
        self, keys: tuple[OfferedKey, ...], wanted: dict[KeyPath, list[str]]
    ) -> list[QkdKey] | Reason:
        """Every source is asked at once; all keys, or the reason of the first that has none."""
        found: dict[KeyPath, list[QkdKey]] = {}
        failures: list[Reason] = []

        async def redeem(path: KeyPath) -> None:
            answer = await path.redeem(wanted[path])
            if isinstance(answer, Reason):
                failures.append(answer)
            else:
                found[path] = answer

        try:
            if len(wanted) == 1:  # the usual case, and a nursery is two turns of trio's
                await redeem(next(iter(wanted)))
            else:
                async with trio.open_nursery() as nursery:
                    for path in wanted:
                        nursery.start_soon(redeem, path)
        except BaseException:
            wipe_keys(itertools.chain(*found.values()))
            raise
        if failures:
            wipe_keys(itertools.chain(*found.values()))
            return failures[0]
        return _in_order(keys, wanted, found)


def _in_order(
    keys: tuple[OfferedKey, ...],
    wanted: Mapping[KeyPath, list[str]],
    found: Mapping[KeyPath, list[QkdKey]],
) -> list[QkdKey]:
    """The keys of all paths in the order offered."""
    by_id = {
        (path.label, key_id): key
        for path, key_ids in wanted.items()
        for key_id, key in zip(key_ids, found[path], strict=True)
    }
    return [by_id[key.source, key.key_id] for key in keys]
