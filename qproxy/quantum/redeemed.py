"""Keys the peer has announced and this end has redeemed ahead, at the slave's side (rule R13).

One such table belongs to a peer and not to a tunnel, so that neither many tunnels nor reconnects
get round its bounds: so many IDs being fetched, so many keys held, so many new IDs a second, and an
age at which a key that nobody offered is wiped. Announcing burns no ID; an OFFER does, and
:meth:`RedeemedKeys.take` gives a key out once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from qproxy.errors import Reason
from qproxy.keys import QkdKey
from qproxy.quantum.spent import canonical_key_id

#: Keys held at most, whatever the settings say.
MAX_HELD_KEYS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RedeemedSettings:
    """Bounds of the table.

    Attributes:
        max_keys: keys held and being fetched, together. 256: more than half the stock of a client
            with a pool of sixty-four tunnels, and that half is all it announces.
        max_age_s: how long a held key waits for its OFFER. 900: longer than a client keeps it.
        rate_keys_per_s: announced IDs taken each second, in the long run. 128: thirty-two tunnels
            that rekey every second with four keys each.
    """

    max_keys: int = 256
    max_age_s: float = 900.0
    rate_keys_per_s: float = 128.0

    def __post_init__(self) -> None:
        """Refuse settings out of range, with ValueError naming them."""
        if not 1 <= self.max_keys <= MAX_HELD_KEYS:
            raise ValueError(f"redeemed: need 1 <= max_keys <= {MAX_HELD_KEYS}")
        if min(self.max_age_s, self.rate_keys_per_s) <= 0:
            raise ValueError("redeemed: ages and rates must be more than 0")


@dataclass(slots=True)
class _Held:
    key: QkdKey
    since: float


class RedeemedKeys:
    """Announced keys of one peer: being fetched, or held for their OFFER.

    Attributes:
        aged_out: held keys wiped because no OFFER named them in time.
        refused: announced IDs not taken, for want of room or rate.
    """

    def __init__(self, settings: RedeemedSettings, now: float) -> None:
        self.aged_out = 0
        self.refused = 0
        self._settings = settings
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._fetching: set[str] = set()
        self._allowance = float(settings.max_keys)
        self._allowance_at = now

    def __len__(self) -> int:
        return len(self._held)

    @property
    def fetching(self) -> int:
        """IDs admitted whose key is not here yet."""
        return len(self._fetching)

    def admit(self, key_id: str, now: float) -> Reason | None:
        """Take an announced ID in: None to go and fetch it, or why not.

        An ID that is here already, or on its way, is refused as ``limit_reached``: once is enough.
        """
        self.expire(now)
        earned = self._settings.rate_keys_per_s * max(0.0, now - self._allowance_at)
        self._allowance = min(float(self._settings.max_keys), self._allowance + earned)
        self._allowance_at = now
        name = canonical_key_id(key_id)
        full = len(self._held) + len(self._fetching) >= self._settings.max_keys
        if full or self._allowance < 1.0 or name in self._held or name in self._fetching:
            self.refused += 1
            return Reason.LIMIT_REACHED
        self._allowance -= 1.0
        self._fetching.add(name)
        return None

    def is_fetching(self, key_id: str) -> bool:
        """Whether a fetch of this ID is under way: an OFFER that names it waits for it."""
        return canonical_key_id(key_id) in self._fetching

    def fetched(self, key: QkdKey, now: float) -> None:
        """A key came. It is this table's from here on, until it is taken."""
        name = canonical_key_id(key.key_id)
        self._fetching.discard(name)
        if name in self._held:
            key.wipe()
            return
        self._held[name] = _Held(key, now)

    def not_fetched(self, key_ids: Iterable[str]) -> None:
        """The fetch of these IDs came to nothing."""
        self._fetching.difference_update(map(canonical_key_id, key_ids))

    def holds(self, key_id: str, now: float) -> bool:
        """Whether :meth:`take` would give this one out now."""
        self.expire(now)
        return canonical_key_id(key_id) in self._held

    def take(self, key_id: str, now: float) -> QkdKey | None:
        """Give a held key out, once; None where it is not here. The caller owns and wipes it."""
        self.expire(now)
        held = self._held.pop(canonical_key_id(key_id), None)
        return held.key if held is not None else None

    def expire(self, now: float) -> None:
        """Wipe keys that waited too long."""
        while self._held:
            name, held = next(iter(self._held.items()))
            if now - held.since < self._settings.max_age_s:
                return
            del self._held[name]
            held.key.wipe()
            self.aged_out += 1

    def close(self) -> None:
        """Wipe everything."""
        for held in self._held.values():
            held.key.wipe()
        self._held.clear()
        self._fetching.clear()
