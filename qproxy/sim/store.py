"""Keys that a master SAE has taken and its slave SAE has not yet.

``enc_keys`` at one KME puts a key here, ``dec_keys`` at the other one takes it out; both happen
in one step each, so a key is given to the master once and to the slave once, however many
requests run at the same time.

The standard says nothing about how long a key waits. Here it waits ``max_age_s``, a pair of SAEs
may have MAX_UNCLAIMED_KEYS waiting, and all pairs together MAX_WAITING_KEYS; at either bound new
keys are refused, because dropping old ones would take away keys that the slave has been told of.

A KME tells the age of a key by its own clock, from the time that the other KME wrote on it. So a
clock that is ahead makes keys old before their time, and one that is behind makes them keys of
the future, which it does not give out: both are "not found".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from qproxy.sources.etsi014_wire import WireKey

#: Most keys that wait for one slave SAE from one master SAE.
MAX_UNCLAIMED_KEYS = 20_000
#: Most keys that wait at all: an SAE may name hundreds of others, and would be alone in filling the
#: memory. With their IDs 500,000 keys of 256 bits take some 380 MB.
MAX_WAITING_KEYS = 500_000
#: How long a key waits for its slave SAE, in seconds, where nothing else is said.
DEFAULT_MAX_AGE_S = 3600.0
#: How far in the future a key may have been made, by the clock of the slave's KME, in seconds.
CLOCK_TOLERANCE_S = 1.0


class StoreFull(Exception):  # noqa: N818 - an ordinary answer, and part of the interface
    """Slave SAEs have not fetched enough of their keys. Nothing was added."""


class NotNamed(Exception):  # noqa: N818 - likewise
    """A key was made for other SAEs. Nothing was taken."""


class KeysNotFound(Exception):  # noqa: N818 - likewise
    """A key is not there (any more). Nothing was taken."""


@dataclass(frozen=True, slots=True)
class SaePair:
    """Who asked for a key, and who else is to have it."""

    master_sae_id: str
    slave_sae_id: str


@dataclass(slots=True)
class _Waiting:
    """One key that waits; times in seconds."""

    pair: SaePair
    key: WireKey
    since: float


@dataclass(slots=True)
class _Named:
    """Whom a key was made for, and for how many of them it still waits."""

    slaves: set[str] = field(default_factory=set)
    waiting: int = 0


#: A key ID and the slave SAE for which a copy waits under it.
_Place = tuple[str, str]


class KeyStore:
    """Every key between ``enc_keys`` and ``dec_keys``.

    Args:
        max_age_s: how long a key waits, in seconds.
        max_unclaimed: how many keys may wait for one pair of SAEs.
        max_waiting: how many may wait for all of them; a key for several slaves counts for each.
    """

    def __init__(
        self,
        *,
        max_age_s: float = DEFAULT_MAX_AGE_S,
        max_unclaimed: int = MAX_UNCLAIMED_KEYS,
        max_waiting: int = MAX_WAITING_KEYS,
    ) -> None:
        self._max_age_s = max_age_s
        self._max_unclaimed = max_unclaimed
        self._max_waiting = max_waiting
        # Oldest first: a dict keeps the order of insertion, and time does not run back.
        self._waiting: dict[_Place, _Waiting] = {}
        self._counts: dict[SaePair, int] = {}
        #: Key ID to the slave SAEs it was made for, as long as it waits for one of them.
        self._named: dict[str, _Named] = {}

    def unclaimed(self, pair: SaePair, now: float) -> int:
        """How many keys wait for the slave SAE of a pair."""
        self._expire(now)
        return self._counts.get(pair, 0)

    def check_room(
        self, pair: SaePair, number: int, now: float, *, also: Sequence[SaePair] = ()
    ) -> None:
        """Whether ``number`` more keys may wait for a pair, and as many for each of some others.

        Raises:
            StoreFull: they may not.
        """
        pairs = (pair, *also)
        if any(self.unclaimed(each, now) + number > self._max_unclaimed for each in pairs):
            raise StoreFull
        if len(self._waiting) + number * len(pairs) > self._max_waiting:
            raise StoreFull

    def add(self, pair: SaePair, keys: Sequence[WireKey], now: float) -> None:
        """Let keys wait for a slave SAE. The store owns them from here on.

        Keys under the same IDs may wait for several slave SAEs, each with a copy of its own.

        Raises:
            StoreFull: there is no room for all of them.
        """
        self.check_room(pair, len(keys), now)
        for key in keys:
            self._waiting[key.key_id, pair.slave_sae_id] = _Waiting(pair, key, now)
            named = self._named.setdefault(key.key_id, _Named())
            named.slaves.add(pair.slave_sae_id)
            named.waiting += 1
        self._counts[pair] = self._counts.get(pair, 0) + len(keys)

    def take(
        self,
        pair: SaePair,
        key_ids: Iterable[str],
        now: float,
        *,
        skew_s: float = 0.0,
        in_step: bool = True,
    ) -> list[WireKey]:
        """Take keys out for the slave SAE of ``pair``: all of them, or none.

        Args:
            pair: the requester as slave, and the master it named.
            key_ids: distinct IDs.
            now: the true time.
            skew_s: how far the clock of the slave's KME is ahead of that of the master's.
            in_step: False: the slave SAE finds every ID, and under it other bytes than the
                master's. Neither KME notices; only the two SAEs can, together.

        Returns:
            The keys in the order asked, owned by the caller.

        Raises:
            NotNamed: one of them was made for another slave SAE.
            KeysNotFound: one of them is not there, was asked for by another master SAE, or is
                too old or too new by the clock of the slave's KME.
        """
        self._expire(now)
        key_ids = tuple(key_ids)
        slave = pair.slave_sae_id
        if any(i in self._named and slave not in self._named[i].slaves for i in key_ids):
            raise NotNamed
        found = [self._waiting[i, slave] for i in key_ids if (i, slave) in self._waiting]
        if len(found) < len(key_ids) or any(entry.pair != pair for entry in found):
            raise KeysNotFound
        ages_s = [now - entry.since + skew_s for entry in found]
        if any(not -CLOCK_TOLERANCE_S <= age_s < self._max_age_s for age_s in ages_s):
            raise KeysNotFound
        keys = [self._remove((key_id, slave)) for key_id in key_ids]
        if not in_step:
            for key in keys:
                key.key[:] = bytes(byte ^ 0xFF for byte in key.key)
        return keys

    def drop(self, slave_sae_ids: Collection[str]) -> int:
        """Lose every key that waits for one of some slave SAEs.

        Returns:
            How many keys that were.
        """
        lost = [place for place in self._waiting if place[1] in slave_sae_ids]
        for place in lost:
            self._remove(place).wipe()
        return len(lost)

    def _expire(self, now: float) -> None:
        while self._waiting:
            place, oldest = next(iter(self._waiting.items()))
            if now - oldest.since < self._max_age_s:
                return
            self._remove(place).wipe()

    def _remove(self, place: _Place) -> WireKey:
        entry = self._waiting.pop(place)
        named = self._named[place[0]]
        named.waiting -= 1
        if not named.waiting:
            del self._named[place[0]]
        self._counts[entry.pair] -= 1
        if not self._counts[entry.pair]:
            del self._counts[entry.pair]
        return entry.key
