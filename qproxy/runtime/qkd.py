"""The quantum side of one peer: keys in stock ahead of need, and the health of the link.

Nothing on the data path waits for a KME. One task probes the key source and refills the stock; the
epochs of a tunnel's client take from the stock, and those of its server redeem IDs in a task of
their own. All calls go through here, so that the link's health hears of every one of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import trio

from qproxy.config.model import PeerConfig
from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey, wipe_keys
from qproxy.log import Logger
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkChange, LinkHealth, LinkReport, LinkState
from qproxy.quantum.policy import ModePolicy
from qproxy.quantum.redeemed import RedeemedKeys, RedeemedSettings
from qproxy.quantum.spent import SpentIds
from qproxy.quantum.stock import MAX_STOCK_KEYS, KeyStock, StockSettings
from qproxy.runtime.counters import Tally
from qproxy.sources.base import KeySource, SourceStatus
from qproxy.tunnel.announce import INSTANCE_ID_BYTES, MAX_KEYS_PER_ANNOUNCE, KeyReport
from qproxy.tunnel.events import KeysReported
from qproxy.tunnel.messages import OfferedKey

#: How long a new gateway waits for the first word from its key source before it dials, so that a
#: tunnel does not begin in classical-only mode just because the first key was under way.
FIRST_WORD_S = 3.0
#: Names this process to peers, which must know when announced keys are lost with it.
INSTANCE_ID = os.urandom(INSTANCE_ID_BYTES)
#: Shortest pause between two calls for keys, in seconds.
MIN_DRAW_PAUSE_S = 0.05
#: Keys in stock, at most, while only a trial epoch can heal the link: if the two KMEs are out of
#: step, more would only be wasted.
MAX_TRIAL_STOCK_KEYS = 8

#: Share of ``rekey.max_age_s`` that an epoch may be stretched to while keys are short. Both ends
#: close the tunnel at the full age, so enough must be left for several attempts at an epoch.
STRETCH_SHARE = 0.5

#: Failures of a key after which others drawn with it are not to be trusted either.
_OUT_OF_STEP = frozenset({Reason.KEY_NOT_FOUND, Reason.KEY_MISMATCH, Reason.KEY_INVALID})


def _stock_settings(config: PeerConfig, workers: int) -> StockSettings:
    """The configured bounds, or more where the tunnels of a pool use more between two draws."""
    kept = config.key_stock
    round_of_rekeys = config.tunnels * config.qkd_keys_per_epoch
    return StockSettings(
        low_water=min(MAX_STOCK_KEYS, max(kept.low_water, 2 * round_of_rekeys)),
        high_water=min(MAX_STOCK_KEYS, max(kept.high_water, 4 * round_of_rekeys)),
        max_age_s=kept.max_age_s,
        min_rate_keys_per_s=StockSettings().min_rate_keys_per_s / workers,
    )


class QuantumSide:
    """Keys and link health towards one peer.

    Attributes:
        config: the peer's configuration.
        source_kind: how offers name the source ("etsi-qkd-014", "file"), or None without one.
        health: state of the link.
        stock: keys drawn ahead, for the tunnels this gateway dials.
        policy: what this end demands.
        simulated: the source says that its keys are simulated.
        redeemed: keys redeemed for tunnels that the peer dialled.
        last_status: what the source last said of itself, or None.
        failures: calls to the source that failed, by reason.
        link_changes: changes of the link's state, by the state from then on.
    """

    def __init__(
        self,
        config: PeerConfig,
        source: KeySource | None,
        source_kind: str | None,
        log: Logger,
        *,
        now: float,
        workers: int = 1,
    ) -> None:
        """Nothing runs yet.

        Args:
            config: the peer's configuration.
            source: where keys come from, or None.
            source_kind: how offers name it, or None.
            log: where changes are told.
            now: seconds of the runtime's monotonic clock.
            workers: processes that share the link's keys evenly, this one among them.
        """
        self.config = config
        self._workers = workers
        self._source = source
        self._log = log
        self._settings = config.link_health
        self._draws = config.address is not None
        self._redeemable = SpentIds()
        self._held = RedeemedKeys(RedeemedSettings(), now)
        self._fetch_ended = trio.Event()
        self._peer_instance: bytes | None = None
        self._first_word = trio.Event()
        self._nudge = trio.Event()
        self._listeners: list[Callable[[LinkChange], None]] = []
        self._draw_listeners: list[Callable[[], None]] = []
        self._rate: float | None = None
        self._status_at = now
        self.source_kind = source_kind
        self.simulated = False
        self.redeemed = 0
        self.last_status: SourceStatus | None = None
        self.failures: Tally[Reason] = Tally()
        self.link_changes: Tally[tuple[LinkState, Reason]] = Tally()
        self.health = LinkHealth(self._settings, now, random=random.random)
        self._stock_settings = _stock_settings(config, workers)
        self.stock = KeyStock(self._stock_settings, SpentIds(), now)
        self.policy = ModePolicy(
            policy=config.policy,
            max_without_qkd_s=config.max_without_qkd_s,
            rekey_interval_s=config.rekey.interval_s,
            max_interval_s=max(config.rekey.interval_s, STRETCH_SHARE * config.rekey.max_age_s),
            keys_per_epoch=config.qkd_keys_per_epoch,
            has_key_source=source is not None,
        )

    @property
    def source_name(self) -> str:
        """The configured name of the source, for logs; empty without one."""
        return self._source.name if self._source is not None else ""

    @property
    def draws(self) -> bool:
        """Whether this side keeps a stock: it dials. The other side redeems what was offered."""
        return self._draws

    @property
    def rate_keys_per_s(self) -> float | None:
        """Keys of our size that the link makes each second, where the source says so."""
        return self._rate

    def on_link_change(self, listener: Callable[[LinkChange], None]) -> None:
        """Call this with every change of the link's state."""
        self._listeners.append(listener)

    def on_keys_drawn(self, listener: Callable[[], None]) -> None:
        """Call this whenever keys have come into the stock."""
        self._draw_listeners.append(listener)

    async def use_source(self, source: KeySource) -> None:
        """Call another source of the same keys from now on; returns when the one before is closed.

        Its connections may have been made with certificates that are replaced by now.
        """
        before, self._source = self._source, source
        if before is None:
            return
        try:
            await trio.sleep(max(self.config.kme_timeout_s, self._settings.probe_timeout_s))
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await before.aclose()

    async def first_word(self) -> None:
        """Wait until keys are there or the link is known to be down, but not for long."""
        if self._source is not None and self.config.policy is not Policy.OFF:
            with trio.move_on_after(FIRST_WORD_S):
                await self._first_word.wait()

    def nudge(self) -> None:
        """Keys were taken: look at the stock now rather than at the next probe."""
        self._nudge.set()

    async def run(self) -> None:
        """Probe and draw for as long as the gateway runs."""
        if self._source is None:
            return
        try:
            while (source := self._source) is not None:
                try:
                    await self._one_round(source)
                except Exception as error:  # a fault of ours must not leave the link unwatched
                    self._log.unexpected("key_source_failed", error, source=source.name)
                    self._failed(Reason.INTERNAL_ERROR, type(error).__name__, drawing=True)
                await self._pause()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._source.aclose()
            self.stock.close(trio.current_time())
            self._held.close()

    # The server's side.

    async def redeem(
        self, keys: tuple[OfferedKey, ...], peer_policy: Policy
    ) -> list[QkdKey] | Reason:
        """The server's side of an OFFER: claim every ID once, then take or fetch the keys.

        Returns:
            The keys in the order offered, the caller's to wipe; or why they cannot be had.
        """
        now = trio.current_time()
        source = self._source
        if source is None:
            return Reason.NO_KEY_SOURCE
        size_bits = self.config.qkd_key_size_bits
        if any(key.size_bytes * 8 != size_bits for key in keys):
            return Reason.KEY_INVALID
        # Every ID is claimed, also after one was refused: an ID in an OFFER is burnt (rule R5).
        claims = [self._redeemable.claim(key.key_id, now) for key in keys]
        if not all(claims):
            return Reason.KEY_SPENT
        refusal = self._refusal(peer_policy)
        if refusal is not None:
            return refusal
        try:
            with trio.fail_after(self.config.kme_timeout_s):
                redeemed = await self._take_or_fetch(source, [key.key_id for key in keys])
        except trio.TooSlowError:
            self._failed(Reason.KME_TIMEOUT, "no answer in time", drawing=False)
            return Reason.KME_TIMEOUT
        except KeySourceError as error:
            self._fetch_failed(error)
            return error.reason
        self.redeemed += len(redeemed)
        if redeemed:
            self.simulated = redeemed[0].simulated
        return redeemed

    async def redeem_ahead(self, keys: tuple[OfferedKey, ...]) -> KeyReport:
        """The server's side of an ANNOUNCE: fetch what there is room for, and say what is held."""
        now = trio.current_time()
        results: dict[str, Reason | None] = {}
        for key in keys:
            results[key.key_id] = self._refusal_ahead(key, now)
        wanted = [key_id for key_id, refusal in results.items() if refusal is None]
        if wanted and self._source is not None:
            failure = await self._fetch_ahead(self._source, wanted)
            if failure is not None:
                results.update(dict.fromkeys(wanted, failure))
        # What holds nothing loses nothing: to the peer, workers that come and go are one gateway.
        instance_id = INSTANCE_ID if self._workers == 1 else bytes(INSTANCE_ID_BYTES)
        return KeyReport(instance_id, tuple(results.items()))

    # The client's side of announcing.

    def keys_to_announce(self) -> tuple[OfferedKey, ...]:
        """Keys the peer should redeem ahead; at most half of the stock is ever told.

        The other half is for the first epoch with a peer that has restarted: what it had
        redeemed is lost with its memory.
        """
        kind = self.source_kind
        if kind is None or not self._draws or self.health.state is LinkState.DOWN:
            return ()
        room = self._stock_settings.high_water // 2 - self.stock.announced
        size_bytes = self.config.qkd_key_size_bits // 8
        ids = self.stock.announce(min(room, MAX_KEYS_PER_ANNOUNCE))
        return tuple(OfferedKey(kind, size_bytes, key_id) for key_id in ids)

    def not_announced(self, keys: tuple[OfferedKey, ...]) -> None:
        """These keys cannot be told to the peer, whatever their source was thinking: wipe them."""
        wiped = self.stock.discard([key.key_id for key in keys])
        self._log.debug("keys_not_announced", keys_discarded=wiped)

    def on_report(self, event: KeysReported) -> None:
        """What the peer says of announced keys. Those it cannot have are wiped."""
        if self._peer_instance not in {None, event.instance_id}:
            self._log.info("peer_restarted", keys_discarded=self.stock.discard_held())
        self._peer_instance = event.instance_id
        self.stock.held_by_peer(event.held)
        lost = [key_id for key_id, reason in event.refused if reason is not Reason.LIMIT_REACHED]
        if lost:
            reasons = sorted({reason for _, reason in event.refused})
            self._log.debug("announced_keys_refused", count=len(lost), reasons=reasons)
            self.stock.discard(lost)
            self.nudge()

    def _refusal_ahead(self, key: OfferedKey, now: float) -> Reason | None:
        """Why an announced key is not fetched, or None."""
        if self._source is None:
            return Reason.NO_KEY_SOURCE
        if self._workers > 1:
            # The tunnel whose OFFER names it may be in another worker, which could not have it.
            return Reason.LIMIT_REACHED
        if key.size_bytes * 8 != self.config.qkd_key_size_bits or key.source != self.source_kind:
            return Reason.KEY_INVALID
        if self._redeemable.spent(key.key_id, now):
            return Reason.KEY_SPENT
        return self._held.admit(key.key_id, now)

    async def _take_or_fetch(self, source: KeySource, key_ids: list[str]) -> list[QkdKey]:
        """Keys held already, the others from the source; in the order asked."""
        while any(self._held.is_fetching(key_id) for key_id in key_ids):
            await self._fetch_ended.wait()
        now = trio.current_time()
        found = {key_id: self._held.take(key_id, now) for key_id in key_ids}
        missing = [key_id for key_id, key in found.items() if key is None]
        try:
            if missing:
                fetched = await source.get_keys_by_id(missing, self.config.qkd_key_size_bits)
                found.update(zip(missing, fetched, strict=True))
                self._told(self.health.success(trio.current_time()))
        except BaseException:
            wipe_keys([key for key in found.values() if key is not None])
            raise
        return [key for key in found.values() if key is not None]

    async def _fetch_ahead(self, source: KeySource, key_ids: list[str]) -> Reason | None:
        try:
            with trio.fail_after(self.config.kme_timeout_s):
                keys = await source.get_keys_by_id(key_ids, self.config.qkd_key_size_bits)
        except trio.TooSlowError:
            self._failed(Reason.KME_TIMEOUT, "no answer in time", drawing=False)
            return Reason.KME_TIMEOUT
        except KeySourceError as error:
            self._fetch_failed(error)
            return error.reason
        else:
            now = trio.current_time()
            for key in keys:
                self._held.fetched(key, now)
            self._told(self.health.success(now))
            return None
        finally:
            self._held.not_fetched(key_ids)
            self._fetch_ended.set()
            self._fetch_ended = trio.Event()

    def _fetch_failed(self, error: KeySourceError) -> None:
        """Failures that speak of one key say nothing of the link."""
        if error.reason in {Reason.KEY_NOT_FOUND, Reason.KEY_INVALID}:
            self.failures.add(error.reason, trio.current_time())
        else:
            self._failed(error.reason, str(error), drawing=False)

    def _refusal(self, peer_policy: Policy) -> Reason | None:
        """Why this end will not have a hybrid epoch just now, although it was offered one.

        With the link down there is no sense in spending what is held, unless somebody requires it.
        A link that is down for its keys is no reason: only an epoch can heal it.
        """
        health, reason = self.health, self.health.reason
        refusal = self.policy.answer(Mode.HYBRID, peer_policy, health.state, reason)
        if refusal is None and health.state is LinkState.DOWN and not health.awaits_trial:
            required = self.policy.effective(peer_policy) is Policy.REQUIRE
            return None if required else reason
        return refusal

    def key_failed(self, reason: Reason) -> None:
        """A hybrid epoch failed for its key, here or at the peer."""
        self._told(self.health.key_failed(reason, trio.current_time()))
        if self.health.awaits_trial and reason in _OUT_OF_STEP:
            # A KME that was restarted has forgotten every key: those drawn before would fail one
            # by one, at one trial every few seconds.
            self.stock.discard_all()
            self.nudge()

    def key_confirmed(self) -> None:
        """A hybrid epoch committed."""
        self._told(self.health.key_confirmed(trio.current_time()))

    # Inside.

    async def _one_round(self, source: KeySource) -> None:
        now = trio.current_time()
        wanted = self.stock.want(now) if self._draws else 0
        if self.health.wants_draw and self._draws:
            # A KME answers a call wholly or not at all: after one that failed, ask for the least
            # that is of use, or few keys would look like none.
            wanted = self.config.qkd_keys_per_epoch
        if self.health.awaits_trial:
            wanted = min(wanted, max(0, MAX_TRIAL_STOCK_KEYS - self.stock.available))
        probe_due = self._next_look_at(now) <= now
        if self.health.state is LinkState.DOWN and not probe_due:
            return
        if wanted:
            await self._draw(source, wanted)
        if probe_due and not (wanted and self.health.wants_draw):
            await self._probe(source)

    async def _pause(self) -> None:
        now = trio.current_time()
        until = self._next_look_at(now)
        with trio.move_on_at(max(until, now + MIN_DRAW_PAUSE_S)):
            await self._nudge.wait()
            await trio.sleep(MIN_DRAW_PAUSE_S)
        self._nudge = trio.Event()

    def _next_look_at(self, now: float) -> float:
        """When to probe or draw for the link's sake.

        Every sign puts the next probe off, a successful call for keys too. But only a status tells
        QBER and rate, so while the link is not down one is asked for at least every interval.
        """
        probe_at = self.health.next_probe_at(now)
        if self.health.state is LinkState.DOWN:
            return probe_at
        return max(now, min(probe_at, self._status_at + self._settings.probe_interval_s))

    async def _draw(self, source: KeySource, number: int) -> None:
        keys: list[QkdKey] = []
        self.stock.begin_draw(number, trio.current_time())
        began = trio.current_time()
        try:
            with trio.fail_after(self._settings.probe_timeout_s):
                keys = await source.get_keys(number, self.config.qkd_key_size_bits)
        except trio.TooSlowError:
            self._failed(Reason.KME_TIMEOUT, "no keys in time", drawing=True)
        except KeySourceError as error:
            self._failed(error.reason, str(error), drawing=True)
        else:
            now = trio.current_time()
            if keys:
                self.simulated = keys[0].simulated
            self._told(self.health.success(now, latency_s=now - began, drew_keys=True))
        finally:
            self.stock.end_draw(number, keys, trio.current_time())
        if keys:
            self._first_word.set()
            for listener in self._draw_listeners:
                listener()

    async def _probe(self, source: KeySource) -> None:
        began = self._status_at = trio.current_time()
        try:
            with trio.fail_after(self._settings.probe_timeout_s):
                status = await source.status()
        except trio.TooSlowError:
            self._failed(Reason.KME_TIMEOUT, "no status in time", drawing=False)
        except KeySourceError as error:
            self._failed(error.reason, str(error), drawing=False)
        else:
            self._take_status(status, began)

    def _take_status(self, status: SourceStatus, began: float) -> None:
        now = trio.current_time()
        self.simulated = status.simulated
        self.last_status = status
        size_bits = self.config.qkd_key_size_bits
        rate_bps = status.key_rate_bps
        stored = status.stored_key_count
        self._rate = rate_bps / size_bits / self._workers if rate_bps is not None else None
        self.stock.link_report(
            now,
            stored_key_count=None if stored is None else -(-stored // self._workers),
            key_rate_keys_per_s=self._rate,
        )
        report = LinkReport(
            stored_key_count=status.stored_key_count,
            qber=status.qber,
            key_rate_bps=rate_bps,
        )
        self._told(self.health.success(now, latency_s=now - began, report=report))
        if not self._draws:
            self._first_word.set()

    def _failed(self, reason: Reason, detail: str, *, drawing: bool) -> None:
        self._log.debug("kme_call_failed", source=self.source_name, reason=reason, detail=detail)
        self.failures.add(reason, trio.current_time())
        change = self.health.failure(reason, trio.current_time(), drawing=drawing)
        self._told(change)

    def _told(self, change: LinkChange | None) -> None:
        if self.health.state is LinkState.DOWN:
            self._first_word.set()
        if change is None:
            return
        self.link_changes.add((change.new, change.reason), change.now)
        write = self._log.warning if change.new is not LinkState.HEALTHY else self._log.info
        write(
            "link_state",
            old=change.old,
            new=change.new,
            reason=change.reason,
            source=self.source_name,
            simulated=self.simulated,
            stock=self.stock.available,
        )
        for listener in self._listeners:
            listener(change)
