"""The master's stock of QKD keys: drawn ahead of need, used once, wiped on every way out.

A key's life::

    drawn ──► stored ──► reserved ──► offered ──► confirmed    the epoch committed
                │  ▲         │            └─────► orphaned     it failed, or nobody said
                │  └─────────┘ released: no OFFER was sent
                └─► aged out, discarded

A key ID is burnt when the OFFER that names it is sent, whatever comes of it (docs/protocol.md):
from then on it cannot go back, and its tombstone stands in
:class:`~qproxy.quantum.spent.SpentIds`. The stock owns every key until it is wiped; a
:class:`Reservation` lends it to one epoch.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import MIN_QKD_KEY_BYTES, QkdKey
from qproxy.quantum.spent import SpentIds, canonical_key_id

#: Most keys a stock may be told to hold.
MAX_STOCK_KEYS: Final = 4096
#: Most reservations under way at once; one per tunnel and epoch attempt.
MAX_RESERVATIONS: Final = 1024
#: Most keys one reservation takes.
MAX_KEYS_PER_RESERVATION: Final = 64
#: Over how many seconds the rate of use is averaged.
USE_WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StockSettings:
    """Bounds of a stock.

    Attributes:
        low_water: keys in stock below which drawing starts. 8: a pool of tunnels can rekey at once.
        high_water: keys in stock at which it stops, at most 4096. 32: more would only lie about in
            memory, where the KME guards them better.
        max_age_s: how long a key may lie here before it is wiped. 600: the peer's KME need not keep
            its copy for ever.
        offer_timeout_s: how long an offered key waits for its epoch to end before it counts as
            orphaned. 60: longer than any epoch's timers.
        max_draw: most keys in one call for keys. 128.
        rate_share: part of the link's key rate that may be drawn, 0 to 1. 0.9: what is left covers
            a rate that was told too high.
        min_rate_keys_per_s: what may always be drawn, whatever rate the link tells. 1: a rate of 0
            must not hide the keys that are still stored.
    """

    low_water: int = 8
    high_water: int = 32
    max_age_s: float = 600.0
    offer_timeout_s: float = 60.0
    max_draw: int = 128
    rate_share: float = 0.9
    min_rate_keys_per_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other, with ValueError naming them."""
        if not 1 <= self.low_water <= self.high_water <= MAX_STOCK_KEYS:
            raise ValueError(f"stock: need 1 <= low_water <= high_water <= {MAX_STOCK_KEYS}")
        if self.max_draw < 1 or not 0 < self.rate_share <= 1:
            raise ValueError("stock: need max_draw >= 1 and 0 < rate_share <= 1")
        if min(self.max_age_s, self.offer_timeout_s, self.min_rate_keys_per_s) <= 0:
            raise ValueError("stock: ages, timeouts and rates must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class StockCounters:
    """What became of every key, counted since the start. All but ``drawn`` are ways out.

    Attributes:
        drawn: keys that came from the source and were taken in.
        confirmed: went into an epoch that committed.
        orphaned: burnt by an OFFER whose epoch did not commit.
        aged_out: too old before anybody needed them.
        discarded: given up unused: the peer could not redeem them, or the stock was closed.
        refused: came from the source and were not taken in: no room, too short, or an ID that is
            already known or spent. Not part of ``drawn``.
    """

    drawn: int = 0
    confirmed: int = 0
    orphaned: int = 0
    aged_out: int = 0
    discarded: int = 0
    refused: int = 0

    def __add__(self, other: StockCounters) -> StockCounters:
        """Of two stocks together."""
        names = [entry.name for entry in fields(self)]
        return StockCounters(**{name: getattr(self, name) + getattr(other, name) for name in names})


class ReservationState(enum.StrEnum):
    """Where a reservation stands."""

    RESERVED = "reserved"
    OFFERED = "offered"
    CONFIRMED = "confirmed"
    ORPHANED = "orphaned"
    RELEASED = "released"


@dataclass(slots=True)
class _Stored:
    key: QkdKey
    drawn_at: float
    announced: bool = False
    held: bool = False


class Reservation:
    """Keys lent to one epoch attempt. Exactly one of the endings is called, once.

    Attributes:
        keys: the keys, in the order their IDs stand in the OFFER; empty once it has ended.
        key_ids: their IDs, which stay for log and audit.
        held: the peer has said of one of them that it holds it.
        state: where it stands.
    """

    __slots__ = ("_entries", "_since", "_stock", "held", "key_ids", "keys", "state")

    def __init__(self, stock: KeyStock, stored: list[_Stored], now: float) -> None:
        self._stock = stock
        self._entries = stored
        self._since = now
        self.keys = tuple(entry.key for entry in stored)
        self.key_ids = tuple(entry.key.key_id for entry in stored)
        self.held = any(entry.held for entry in stored)
        self.state = ReservationState.RESERVED

    def offered(self, now: float) -> None:
        """The OFFER that names these IDs is about to be sent: they are burnt from here on.

        Raises:
            LocalProtocolError: key_spent, where an ID was burnt before; the OFFER must not be
                sent, and the keys are orphaned.
        """
        self._expect(ReservationState.RESERVED)
        claims = [self._stock.spent.claim(key_id, now) for key_id in self.key_ids]
        self.state = ReservationState.OFFERED
        self._since = now
        if not all(claims):
            self.orphaned(now)
            raise LocalProtocolError(Reason.KEY_SPENT, "a key ID of this reservation is spent")

    def confirmed(self, now: float) -> None:
        """The epoch committed. The keys are wiped: their secret lives on in the epoch's keys."""
        self._end(ReservationState.OFFERED, ReservationState.CONFIRMED, now)

    def orphaned(self, now: float) -> None:
        """The epoch failed after its OFFER was sent. The keys are wiped, never to be used."""
        self._end(ReservationState.OFFERED, ReservationState.ORPHANED, now)

    def released(self, now: float) -> None:
        """No OFFER was sent: the keys go back into the stock, with the age they have."""
        self._expect(ReservationState.RESERVED)
        self.state = ReservationState.RELEASED
        self.keys = ()
        entries, self._entries = self._entries, []
        self._stock._take_back(self, entries, now)

    def _end(self, expected: ReservationState, new: ReservationState, now: float) -> None:
        self._expect(expected)
        self.state = new
        self.keys = ()
        entries, self._entries = self._entries, []
        for entry in entries:
            entry.key.wipe()
        self._stock._ended(self, len(entries), now)

    def _expect(self, expected: ReservationState) -> None:
        if self.state is not expected:
            raise LocalProtocolError(
                Reason.INTERNAL_ERROR, f"reservation: expected {expected}, is {self.state}"
            )

    def _stale(self, now: float, timeout_s: float) -> bool:
        return now - self._since >= timeout_s


class KeyStock:
    """A bounded pool of keys for one pair of SAEs, on the side that draws them.

    Args:
        settings: its bounds.
        spent: tombstones of that pair of SAEs.
        now: seconds of the caller's monotonic clock, which every later call continues.
    """

    def __init__(self, settings: StockSettings, spent: SpentIds, now: float) -> None:
        self.spent = spent
        self._settings = settings
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        self._reservations: dict[int, Reservation] = {}
        self._lent_ids: set[str] = set()
        self._counters = StockCounters()
        self._in_flight = 0
        self._filling = True
        self._rate_keys_per_s: float | None = None
        self._source_count: int | None = None
        self._allowance = float(settings.high_water)
        self._allowance_at = now
        self._use = 0.0
        self._use_at = now
        self._started_at = now
        self._closed = False

    # --- drawing -------------------------------------------------------------------------

    def link_report(
        self, now: float, *, stored_key_count: int | None, key_rate_keys_per_s: float | None
    ) -> None:
        """Take in what the source says it has, and makes: bounds for :meth:`want`.

        Args:
            now: when.
            stored_key_count: keys ready at the KME, or None.
            key_rate_keys_per_s: keys of our size that the link makes each second, or None.
        """
        self._refill(now)
        self._source_count = stored_key_count
        self._rate_keys_per_s = key_rate_keys_per_s

    def want(self, now: float) -> int:
        """How many keys to draw in the next call; 0 for none.

        Drawing starts below low water and goes on to high water. It is bounded by room, by calls
        under way, by one call's limit, by what the source says it has (but for one key, since a
        count may be stale), and by the link's rate with at most ``high_water`` in a burst.
        """
        self.expire(now)
        self._refill(now)
        if self._closed:
            return 0
        have = len(self._stored) + self._in_flight
        if have < self._settings.low_water:
            self._filling = True
        if have >= self._settings.high_water:
            self._filling = False
        if not self._filling:
            return 0
        number = min(self._settings.high_water - have, self._settings.max_draw)
        if self._source_count is not None:
            number = min(number, max(1, self._source_count - self._in_flight))
        if self._rate_keys_per_s is not None:
            number = min(number, int(self._allowance))
        return max(0, number)

    def begin_draw(self, number: int, now: float) -> None:
        """A call for ``number`` keys starts: they count as if they were here.

        :meth:`end_draw` must follow, however the call ends.
        """
        self._refill(now)
        self._in_flight += number
        self._allowance = max(0.0, self._allowance - number)

    def end_draw(self, number: int, keys: Iterable[QkdKey], now: float) -> int:
        """The call ended and brought ``keys``, possibly none. Returns how many were taken in.

        The stock owns them from here on, and wipes those it does not take: too short for hybrid, an
        ID that is here, lent or spent already, or no room.
        """
        self._in_flight = max(0, self._in_flight - number)
        taken = 0
        for key in keys:
            if self._acceptable(key, now):
                self._stored[canonical_key_id(key.key_id)] = _Stored(key, now)
                taken += 1
            else:
                key.wipe()
                self._count(refused=1)
        self._count(drawn=taken)
        if self._source_count is not None:
            self._source_count = max(0, self._source_count - taken)
        return taken

    def _acceptable(self, key: QkdKey, now: float) -> bool:
        key_id = canonical_key_id(key.key_id)
        return (
            not self._closed
            and len(self._stored) < self._settings.high_water
            and len(key.key) >= MIN_QKD_KEY_BYTES
            and key_id not in self._stored
            and key_id not in self._lent_ids
            and not self.spent.spent(key_id, now)
        )

    def _refill(self, now: float) -> None:
        rate = self._settings.min_rate_keys_per_s
        if self._rate_keys_per_s is not None:
            rate = max(rate, self._settings.rate_share * self._rate_keys_per_s)
        earned = rate * max(0.0, now - self._allowance_at)
        self._allowance = min(float(self._settings.high_water), self._allowance + earned)
        self._allowance_at = now

    # --- announcing ----------------------------------------------------------------------

    def announce(self, limit: int) -> tuple[str, ...]:
        """Up to ``limit`` IDs, oldest first, that the peer has not been told of yet.

        They count as told from here on. Announcing does not burn an ID.
        """
        fresh = [entry for entry in self._stored.values() if not entry.announced][: max(0, limit)]
        for entry in fresh:
            entry.announced = True
        return tuple(entry.key.key_id for entry in fresh)

    def oldest_announced(self) -> str | None:
        """The ID of the oldest stored key that the peer has been told of, or None."""
        told = (entry.key.key_id for entry in self._stored.values() if entry.announced)
        return next(told, None)

    def stores(self, key_id: str) -> bool:
        """Whether this key is here, and lent to nobody."""
        return canonical_key_id(key_id) in self._stored

    @property
    def announced(self) -> int:
        """Stored keys that the peer has been told of."""
        return sum(entry.announced for entry in self._stored.values())

    def held_by_peer(self, key_ids: Iterable[str]) -> None:
        """The peer says that it has redeemed these: an epoch that takes them waits for no KME."""
        for key_id in key_ids:
            entry = self._stored.get(canonical_key_id(key_id))
            if entry is not None:
                entry.held = True

    def discard_held(self) -> int:
        """The peer's process is another one: what the last one had redeemed is lost with it.

        Returns how many keys were wiped.
        """
        return self.discard([entry.key.key_id for entry in self._stored.values() if entry.held])

    def discard(self, key_ids: Iterable[str]) -> int:
        """Wipe stored keys that are of no use, such as those the peer could not redeem.

        Unknown IDs are passed over. Returns how many were wiped.
        """
        wiped = 0
        for key_id in key_ids:
            entry = self._stored.pop(canonical_key_id(key_id), None)
            if entry is not None:
                entry.key.wipe()
                wiped += 1
        self._count(discarded=wiped)
        return wiped

    def discard_unless_held(self, key_ids: Iterable[str]) -> int:
        """Wipe those of these that the peer has not redeemed yet: it will hardly be able to.

        Unknown IDs are passed over. Returns how many were wiped.
        """
        known = [(key_id, self._stored.get(canonical_key_id(key_id))) for key_id in key_ids]
        return self.discard([key_id for key_id, entry in known if entry and not entry.held])

    def discard_all(self) -> int:
        """The two ends' keys are out of step: nothing drawn so far can be relied on.

        Returns how many keys were wiped.
        """
        return self.discard(tuple(self._stored))

    # --- using ---------------------------------------------------------------------------

    def reserve(self, number: int, now: float, *, fresh: bool = False) -> Reservation | None:
        """Lend ``number`` keys to an epoch: all of them or None.

        Those the peer holds come first, then announced ones, and the oldest first among equals.

        Args:
            number: how many.
            now: when.
            fresh: the other way round, for a peer that may have restarted since it was told.

        Raises:
            LocalProtocolError: internal_error, where ``number`` is not 1 to 64.
        """
        if not 1 <= number <= MAX_KEYS_PER_RESERVATION:
            raise LocalProtocolError(
                Reason.INTERNAL_ERROR,
                f"reserve: expected 1 to {MAX_KEYS_PER_RESERVATION} keys, got {number}",
            )
        self.expire(now)
        if len(self._stored) < number or len(self._reservations) >= MAX_RESERVATIONS:
            return None
        # Sorting is stable, and the stored keys stand in the order of their age.
        ids = sorted(self._stored, key=self._distance_from_peer, reverse=fresh)[:number]
        reservation = Reservation(self, [self._stored.pop(key_id) for key_id in ids], now)
        self._reservations[id(reservation)] = reservation
        self._lent_ids.update(ids)
        return reservation

    def _distance_from_peer(self, key_id: str) -> int:
        entry = self._stored[key_id]
        return 0 if entry.held else 1 if entry.announced else 2

    def _take_back(self, reservation: Reservation, entries: list[_Stored], now: float) -> None:
        self._forget(reservation)
        for entry in entries:
            room = len(self._stored) < self._settings.high_water
            if room and not self._closed:
                self._stored[canonical_key_id(entry.key.key_id)] = entry
            else:
                entry.key.wipe()
                self._count(discarded=1)
        # Back among the oldest, where they came from.
        self._stored = OrderedDict(sorted(self._stored.items(), key=lambda item: item[1].drawn_at))
        self._age_out(now)

    def _forget(self, reservation: Reservation) -> None:
        del self._reservations[id(reservation)]
        self._lent_ids.difference_update(map(canonical_key_id, reservation.key_ids))

    def _ended(self, reservation: Reservation, number: int, now: float) -> None:
        self._forget(reservation)
        if reservation.state is ReservationState.CONFIRMED:
            self._count(confirmed=number)
        else:
            self._count(orphaned=number)
        self._use = self._use_now(now) + number
        self._use_at = now

    # --- keeping -------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Wipe keys that lay here for too long, and orphan offers that nobody ended."""
        self._age_out(now)
        for reservation in tuple(self._reservations.values()):
            if reservation._stale(now, self._settings.offer_timeout_s):
                if reservation.state is ReservationState.OFFERED:
                    reservation.orphaned(now)
                else:
                    reservation.released(now)

    def _age_out(self, now: float) -> None:
        while self._stored:
            key_id, entry = next(iter(self._stored.items()))
            if now - entry.drawn_at < self._settings.max_age_s:
                break
            del self._stored[key_id]
            entry.key.wipe()
            self._count(aged_out=1)

    def next_expiry(self) -> float | None:
        """When :meth:`expire` next has something to do, or None."""
        times = [r._since + self._settings.offer_timeout_s for r in self._reservations.values()]
        if self._stored:
            times.append(next(iter(self._stored.values())).drawn_at + self._settings.max_age_s)
        return min(times, default=None)

    def close(self, now: float) -> None:
        """Wipe everything, lent keys too. Idempotent; nothing is taken in afterwards."""
        self._closed = True
        for reservation in tuple(self._reservations.values()):
            if reservation.state is ReservationState.OFFERED:
                reservation.orphaned(now)
            else:
                reservation.released(now)
        self.discard_all()

    # --- telling -------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Keys that can be reserved now."""
        return len(self._stored)

    @property
    def lent(self) -> int:
        """Keys in reservations that have not ended."""
        return sum(len(reservation.keys) for reservation in self._reservations.values())

    @property
    def low(self) -> bool:
        """Whether the stock is below low water."""
        return len(self._stored) < self._settings.low_water

    @property
    def counters(self) -> StockCounters:
        """What became of every key so far."""
        return self._counters

    def use_keys_per_s(self, now: float) -> float:
        """Keys burnt each second, averaged over the last minute or so."""
        # The average of a young stock would be too low: it has not seen a whole window yet.
        seen = -math.expm1(-max(0.0, now - self._started_at) / USE_WINDOW_S)
        return self._use_now(now) / USE_WINDOW_S / max(seen, 1.0 / USE_WINDOW_S)

    def time_to_exhaustion_s(self, now: float, supply_keys_per_s: float = 0.0) -> float:
        """Seconds until the stock is empty at today's use; infinity where it does not shrink."""
        shrinking = self.use_keys_per_s(now) - supply_keys_per_s
        return len(self._stored) / shrinking if shrinking > 0 else math.inf

    def _use_now(self, now: float) -> float:
        return self._use * math.exp(-max(0.0, now - self._use_at) / USE_WINDOW_S)

    def _count(self, **more: int) -> None:
        self._counters = replace(
            self._counters,
            **{name: getattr(self._counters, name) + number for name, number in more.items()},
        )
