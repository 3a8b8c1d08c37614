"""One key source towards one peer: its keys in stock ahead of need, and the health of its link.

Nothing on the data path waits for a KME. One task probes the key source and refills the stock; the
epochs of a tunnel's client take from the stock, and those of its server redeem IDs in tasks of
their own. All calls go through here, so that the link's health hears of every one of them.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from qproxy.config.model import PeerConfig
from qproxy.errors import KeySourceError, Reason
from qproxy.keys import KeyNature, KeyOrigin, QkdKey, SourceKind, source_label, wipe_keys
from qproxy.log import Logger
from qproxy.quantum.combine import PathView
from qproxy.quantum.health import LinkChange, LinkHealth, LinkReport, LinkState
from qproxy.quantum.redeemed import RedeemedKeys, RedeemedSettings
from qproxy.quantum.spent import SpentIds
from qproxy.quantum.stock import MAX_STOCK_KEYS, KeyStock, StockSettings
from qproxy.runtime.counters import Tally
from qproxy.sources.base import KeySource, SourceStatus, SpareKmes
from qproxy.sources.file import LOW_PAD_KEYS
from qproxy.tunnel.messages import OfferedKey

#: Shortest pause between two calls for keys, in seconds.
MIN_DRAW_PAUSE_S = 0.05
#: Keys in stock, at most, while only a trial epoch can heal the link: if the two KMEs are out of
#: step, more would only be wasted.
MAX_TRIAL_STOCK_KEYS = 8

#: How long a key of a pad waits in stock, in seconds: a week.
MAX_PAD_KEY_AGE_S = 604_800.0

#: Failures of a key after which others drawn with it are not to be trusted either.
_OUT_OF_STEP = frozenset({Reason.KEY_NOT_FOUND, Reason.KEY_MISMATCH, Reason.KEY_INVALID})


def _stock_settings(config: PeerConfig, workers: int, kind: str) -> StockSettings:
    """The configured bounds, or more where the tunnels of a pool use more between two draws.

    A KME need not keep its copy for ever, but what ages here, or is here at the end, is gone from a
    pad. So few of a pad's keys are drawn ahead, and they wait as long as it takes.
    """
    kept = config.key_stock
    round_of_rekeys = config.tunnels * config.qkd_keys_per_epoch
    pad = kind == SourceKind.FILE
    return StockSettings(
        low_water=min(MAX_STOCK_KEYS, max(0 if pad else kept.low_water, 2 * round_of_rekeys)),
        high_water=min(MAX_STOCK_KEYS, max(0 if pad else kept.high_water, 4 * round_of_rekeys)),
        max_age_s=MAX_PAD_KEY_AGE_S if pad else kept.max_age_s,
        min_rate_keys_per_s=StockSettings().min_rate_keys_per_s / workers,
    )


class KeyPath:
    """Keys and link health of one source towards one peer.

    Attributes:
        name: what both ends call this pair of sources; empty where it is the only one.
        kind: what the source is ("etsi-qkd-014", "skip", "file").
        health: state of its link.
        stock: keys drawn ahead, for the tunnels this gateway dials.
        simulated: the source says that its keys are simulated.
        redeemed: keys redeemed for tunnels that the peer dialled.
        last_status: what the source last said of itself, or None.
        failures: calls to the source that failed, by reason.
        link_changes: changes of the link's state, by the state from then on.
    """

    def __init__(
        self,
        config: PeerConfig,
        source: KeySource,
        kind: str,
        log: Logger,
        *,
        now: float,
        name: str = "",
        workers: int = 1,
        on_change: Callable[[KeyPath, LinkChange | None], None] = lambda _path, _change: None,
        on_keys: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing runs yet.

        Args:
            config: the peer's configuration.
            source: where keys are drawn and redeemed.
            kind: what it is.
            log: where changes are told.
            now: seconds of trio's clock.
            name: see the attributes.
            workers: processes that share the link's keys evenly, this one among them.
            on_change: called after every sign of the link, with the change it brought about.
            on_keys: called whenever keys have come into the stock.
        """
        self.name = name
        self.kind = kind
        self.simulated = False
        self.redeemed = 0
        self.last_status: SourceStatus | None = None
        self.failures: Tally[Reason] = Tally()
        self.link_changes: Tally[tuple[LinkState, Reason]] = Tally()
        self.health = LinkHealth(config.link_health, now, random=random.random)
        self._config = config
        self._workers = workers
        self._source = source
        self._log = log
        self._settings = config.link_health
        self._draws = config.address is not None
        self._redeemable = SpentIds()
        self._held = RedeemedKeys(RedeemedSettings(), now)
        self._fetch_ended = trio.Event()
        self._first_word = trio.Event()
        self._nudge = trio.Event()
        self._on_change = on_change
        self._on_keys = on_keys
        self._rate: float | None = None
        self._status_at = now
        self._detail: str | None = None
        self._heard = False
        self._pad_limit = LOW_PAD_KEYS
        self._stock_settings = _stock_settings(config, workers, kind)
        self.stock = KeyStock(self._stock_settings, SpentIds(), now)

    @property
    def source_name(self) -> str:
        """The configured name of the source."""
        return self._source.name

    @property
    def draws(self) -> bool:
        """Whether a stock is kept: this gateway dials."""
        return self._draws

    @property
    def label(self) -> str:
        """How offers name the source, the same at both ends."""
        return source_label(self.kind, self.name)

    @property
    def nature(self) -> KeyNature:
        """What its keys may be called; nothing before it has been heard."""
        nature = KeyOrigin(self.source_name, self.kind, self.simulated).nature
        return nature if self._heard or nature is not KeyNature.QKD else KeyNature.UNSTATED

    @property
    def rate_keys_per_s(self) -> float | None:
        """Keys of our size that the link makes each second, where the source says so."""
        return self._rate

    def view(self, *, on_trial: bool = False) -> PathView:
        """How it stands, for who decides on an epoch."""
        return PathView(
            name=self.name,
            state=self.health.state,
            reason=self.health.reason,
            keys_available=self.stock.available,
            awaits_trial=self.health.awaits_trial,
            on_trial=on_trial,
            proven=self.health.proven,
        )

    async def use_source(self, source: KeySource) -> None:
        """Call another source of the same keys from now on; returns when the one before is closed.

        Its connections may have been made with certificates that are replaced by now.
        """
        before, self._source = self._source, source
        try:
            await trio.sleep(max(self._config.kme_timeout_s, self._settings.probe_timeout_s))
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await before.aclose()

    async def first_word(self) -> None:
        """Wait until keys are there or the link is known to be down."""
        await self._first_word.wait()

    def nudge(self) -> None:
        """Keys were taken: look at the stock now rather than at the next probe."""
        self._nudge.set()

    async def run(self) -> None:
        """Probe and draw for as long as the gateway runs."""
        try:
            while True:
                source = self._source
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

    def claim(self, key_ids: Sequence[str]) -> bool:
        """Burn the IDs that an OFFER names (rule R5): whether each was claimed the first time."""
        now = trio.current_time()
        # Every ID is claimed, also after one was refused.
        claims = [self._redeemable.claim(key_id, now) for key_id in key_ids]
        return all(claims)

    def holds(self, key_id: str, now: float) -> bool:
        """Whether this one has been redeemed ahead: :meth:`take_held` has it at the same time."""
        return self._held.holds(key_id, now)

    def take_held(self, key_ids: Sequence[str], now: float) -> list[QkdKey]:
        """Keys of claimed IDs that are all held, in the order asked; the caller's to wipe."""
        taken = (self._held.take(key_id, now) for key_id in key_ids)
        return self._count_redeemed([key for key in taken if key is not None])

    async def redeem(self, key_ids: Sequence[str]) -> list[QkdKey] | Reason:
        """Take or fetch the keys of claimed IDs.

        Returns:
            The keys in the order asked, the caller's to wipe; or why they cannot be had.
        """
        redeemed = await self._in_time(self._take_or_fetch(key_ids))
        return redeemed if isinstance(redeemed, Reason) else self._count_redeemed(redeemed)

    async def redeem_ahead(self, keys: Sequence[OfferedKey]) -> dict[str, Reason | None]:
        """Fetch announced keys, as far as there is room: by ID, why it is not held, or None."""
        now = trio.current_time()
        results = {key.key_id: self._refusal_ahead(key, now) for key in keys}
        wanted = [key_id for key_id, refusal in results.items() if refusal is None]
        if wanted:
            failure = await self._fetch_ahead(wanted)
            if failure is not None:
                results.update(dict.fromkeys(wanted, failure))
        return results

    # The client's side of announcing.

    def keys_to_announce(self, limit: int) -> tuple[OfferedKey, ...]:
        """Keys the peer should redeem ahead; at most half of the stock is ever told.

        The other half is for the first epoch with a peer that has restarted: what it had
        redeemed is lost with its memory.
        """
        if not self._draws or self.health.state is LinkState.DOWN:
            return ()
        if self.kind == SourceKind.FILE:
            # There is nothing to be faster than, and what the peer holds for too long is gone.
            return ()
        room = self._stock_settings.high_water // 2 - self.stock.announced
        ids = self.stock.announce(min(room, limit))
        return tuple(self._offered(key_id) for key_id in ids)

    def announced_key(self) -> OfferedKey | None:
        """A key that the peer was told of, to be announced again: does it hold it still?"""
        key_id = self.stock.oldest_announced()
        return None if key_id is None else self._offered(key_id)

    def peer_restarted(self) -> int:
        """What the peer held is lost with its process: wipe it here; how many keys that was."""
        self.nudge()
        return self.stock.discard_held()

    def refused_ahead(self, refused: Mapping[str, Reason]) -> None:
        """The peer cannot have these announced keys: wipe those that are here, and draw others.

        Of those that are not here any more, such as what a restarted peer held, it says nothing.
        """
        here = [key_id for key_id in refused if self.stock.stores(key_id)]
        if self.stock.discard(here):
            self.nudge()
        for reason in {refused[key_id] for key_id in here}:
            self._blame([key_id for key_id in here if refused[key_id] is reason], reason)

    # What epochs say of the keys.

    def key_failed(self, reason: Reason, key_ids: Sequence[str] = ()) -> None:
        """A hybrid epoch with these keys failed for one of them, here or at the peer."""
        self._told(self.health.key_failed(reason, trio.current_time()))
        if self.health.awaits_trial and reason in _OUT_OF_STEP:
            # A KME that was restarted has forgotten every key: those drawn before would fail one
            # by one, at one trial every few seconds.
            self.stock.discard_all()
            self.nudge()
        self._blame(key_ids, reason)

    def key_confirmed(self, key_ids: Sequence[str] = ()) -> None:
        """A hybrid epoch with these keys committed."""
        if isinstance(self._source, SpareKmes):
            self._source.keys_confirmed(key_ids)
        self._told(self.health.key_confirmed(trio.current_time()))

    # Inside.

    def _offered(self, key_id: str) -> OfferedKey:
        return OfferedKey(self.label, self._config.qkd_key_size_bits // 8, key_id)

    def _blame(self, key_ids: Sequence[str], reason: Reason) -> None:
        """The peer could not use these: maybe the source has another KME to get keys from."""
        if not isinstance(self._source, SpareKmes):
            return
        doubtful = self._source.keys_failed(key_ids, reason)
        if not doubtful:
            return
        if reason is Reason.KEY_MISMATCH:
            self.stock.discard(doubtful)
        else:
            self.stock.discard_unless_held(doubtful)
        self.nudge()

    def _refusal_ahead(self, key: OfferedKey, now: float) -> Reason | None:
        """Why an announced key is not fetched, or None."""
        if self._workers > 1 or self.kind == SourceKind.FILE:
            # The tunnel whose OFFER names it may be in another worker, which could not have it;
            # and a key of a pad would be gone, were it never offered.
            return Reason.LIMIT_REACHED
        if key.size_bytes * 8 != self._config.qkd_key_size_bits:
            return Reason.KEY_INVALID
        if self._redeemable.spent(key.key_id, now):
            return Reason.KEY_SPENT
        return self._held.admit(key.key_id, now)

    def _count_redeemed(self, keys: list[QkdKey]) -> list[QkdKey]:
        self.redeemed += len(keys)
        if keys:
            self.simulated = keys[0].simulated
        return keys

    async def _take_or_fetch(self, key_ids: Sequence[str]) -> list[QkdKey]:
        """Keys held already, the others from the source; in the order asked."""
        while any(self._held.is_fetching(key_id) for key_id in key_ids):
            await self._fetch_ended.wait()
        now = trio.current_time()
        found = {key_id: self._held.take(key_id, now) for key_id in key_ids}
        missing = [key_id for key_id, key in found.items() if key is None]
        try:
            if missing:
                fetched = await self._get_by_id(missing)
                found.update(zip(missing, fetched, strict=True))
                self._told(self.health.success(trio.current_time()))
        except BaseException:
            wipe_keys([key for key in found.values() if key is not None])
            raise
        return [key for key in found.values() if key is not None]

    async def _fetch_ahead(self, key_ids: list[str]) -> Reason | None:
        try:
            keys = await self._in_time(self._get_by_id(key_ids))
            if isinstance(keys, Reason):
                return keys
            now = trio.current_time()
            for key in keys:
                self._held.fetched(key, now)
            self._told(self.health.success(now))
            return None
        finally:
            self._held.not_fetched(key_ids)
            self._fetch_ended.set()
            self._fetch_ended = trio.Event()

    async def _in_time(self, keys: Awaitable[list[QkdKey]]) -> list[QkdKey] | Reason:
        """What a source was asked for, or why it did not come; that counts for its link."""
        try:
            with trio.fail_after(self._config.kme_timeout_s):
                return await keys
        except trio.TooSlowError:
            self._failed(Reason.KME_TIMEOUT, "no answer in time", drawing=False)
            return Reason.KME_TIMEOUT
        except KeySourceError as error:
            self._fetch_failed(error)
            return error.reason

    async def _get_by_id(self, key_ids: Sequence[str]) -> list[QkdKey]:
        keys = await self._source.get_keys_by_id(key_ids, self._config.qkd_key_size_bits)
        return self._stamped(keys)

    def _stamped(self, keys: list[QkdKey]) -> list[QkdKey]:
        """Keys say where they are from for as long as they live."""
        for key in keys:
            key.kind, key.path = self.kind, self.name
            # It may say so in its status alone.
            key.simulated = key.simulated or self.simulated
        self._heard = self._heard or bool(keys)
        return keys

    def _fetch_failed(self, error: KeySourceError) -> None:
        """Failures that speak of one key say nothing of the link."""
        if error.reason in {Reason.KEY_NOT_FOUND, Reason.KEY_INVALID}:
            self.failures.add(error.reason, trio.current_time())
        else:
            self._failed(error.reason, str(error), drawing=False)

    async def _one_round(self, source: KeySource) -> None:
        now = trio.current_time()
        wanted = self.stock.want(now) if self._draws else 0
        if self.health.wants_draw and self._draws:
            # A KME answers a call wholly or not at all: after one that failed, ask for the least
            # that is of use, or few keys would look like none.
            wanted = self._config.qkd_keys_per_epoch
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
                keys = self._stamped(await source.get_keys(number, self._config.qkd_key_size_bits))
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
            self._on_keys()
            if self.stock.want(trio.current_time()):
                self.nudge()  # It gives few at a time.

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
        self._heard = True
        self._watch_pad(status.stored_key_count)
        size_bits = self._config.qkd_key_size_bits
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

    def _watch_pad(self, left: int | None) -> None:
        """Warn when a pad runs low, and again at each tenth of what is left then."""
        if self.kind != SourceKind.FILE or left is None:
            return
        if left >= LOW_PAD_KEYS:
            self._pad_limit = LOW_PAD_KEYS
        elif left < self._pad_limit:
            self._pad_limit = left // 10 or min(left, 1)
            self._log.warning(
                "pad_low",
                source=self.source_name,
                keys_left=left,
                hint="make another with qproxy pad make, and carry it to the other site",
            )

    def _failed(self, reason: Reason, detail: str, *, drawing: bool) -> None:
        self._log.debug("kme_call_failed", source=self.source_name, reason=reason, detail=detail)
        self.failures.add(reason, trio.current_time())
        self._detail = detail
        change = self.health.failure(reason, trio.current_time(), drawing=drawing)
        self._told(change)

    def _told(self, change: LinkChange | None) -> None:
        if self.health.state is LinkState.DOWN:
            self._first_word.set()
        if change is not None:
            self.link_changes.add((change.new, change.reason), change.now)
            write = self._log.warning if change.new is not LinkState.HEALTHY else self._log.info
            write(
                "link_state",
                old=change.old,
                new=change.new,
                reason=change.reason,
                source=self.source_name,
                kind=self.kind,
                keys_are=self.nature,
                path=self.name or None,
                simulated=self.simulated,
                stock=self.stock.available,
                detail=self._detail if change.reason is not Reason.LINK_HEALTHY else None,
            )
        self._on_change(self, change)
