"""Tombstones of key IDs: what was used, or given up, once is never accepted again."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import OrderedDict
from typing import Final

#: Most tombstones any settings may ask for. One takes about 250 bytes.
MAX_TOMBSTONES: Final = 1 << 20
#: Tombstones kept unless told otherwise, about 16 MB.
DEFAULT_TOMBSTONES: Final = 1 << 16
#: How long a tombstone is kept unless told otherwise, in seconds: a day.
DEFAULT_TOMBSTONE_AGE_S: Final = 86_400.0

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+")


def canonical_key_id(key_id: str) -> str:
    """One spelling for each key ID.

    A UUID may be written in capitals, in braces or without hyphens, and a KME may take all of these
    for the same key; so must we. So it is with the hexadecimal digits of SKIP and their capitals.
    Any other ID is its own canonical form.
    """
    try:
        return str(uuid.UUID(key_id))
    except ValueError:
        return key_id.lower() if _HEX.fullmatch(key_id) else key_id


class SpentIds:
    """A bounded set of the key IDs that may not be used again, for one pair of SAEs.

    The gateway claims an ID at the moment it is burnt: the master when the OFFER that names it is
    sent, the slave when it redeems the ID, whatever comes of it. A claim is atomic: of any number
    of claims of one ID, from however many tunnels, the first alone succeeds. The set belongs to the
    peer and not to a tunnel, so it outlives reconnects and restarts of the peer.

    Memory is bounded by count and by age, and the oldest go first. The trade-off: an ID whose
    tombstone is gone could be claimed once more. What then still stands in the way is the KME,
    which removes a key when it hands it out (ETSI GS QKD 014), and the transcript, which is fresh
    in every epoch, so that even the same key gives other traffic secrets. Whoever fills the set to
    push out an old ID needs as many new IDs as it holds, and those are rate-limited where they come
    in. :attr:`evicted` counts what went before its time.

    Args:
        max_count: most tombstones, 1 to 1,048,576.
        max_age_s: how long one is kept, in seconds.
    """

    def __init__(
        self,
        max_count: int = DEFAULT_TOMBSTONES,
        max_age_s: float = DEFAULT_TOMBSTONE_AGE_S,
    ) -> None:
        if not 1 <= max_count <= MAX_TOMBSTONES:
            raise ValueError(f"max_count: expected 1 to {MAX_TOMBSTONES}, got {max_count}")
        if not max_age_s > 0:
            raise ValueError(f"max_age_s: expected more than 0, got {max_age_s}")
        self._max_count = max_count
        self._max_age_s = max_age_s
        self._claimed: OrderedDict[bytes, float] = OrderedDict()
        self.refused = 0
        self.evicted = 0

    def claim(self, key_id: str, now: float) -> bool:
        """Claim an ID for ever: True for the first claim, False for every later one.

        A refused claim does not renew the tombstone, or a peer could keep one alive at will.
        """
        self.expire(now)
        digest = self._digest(key_id)
        if digest in self._claimed:
            self.refused += 1
            return False
        self._claimed[digest] = now
        if len(self._claimed) > self._max_count:
            self._claimed.popitem(last=False)
            self.evicted += 1
        return True

    def spent(self, key_id: str, now: float) -> bool:
        """Whether a claim would be refused, without claiming."""
        self.expire(now)
        return self._digest(key_id) in self._claimed

    def expire(self, now: float) -> None:
        """Let go of tombstones older than ``max_age_s``."""
        while self._claimed:
            digest, claimed_at = next(iter(self._claimed.items()))
            if now - claimed_at < self._max_age_s:
                return
            del self._claimed[digest]

    def __len__(self) -> int:
        return len(self._claimed)

    @staticmethod
    def _digest(key_id: str) -> bytes:
        # A hash, so that the memory for a tombstone does not depend on what a peer sends.
        # "surrogatepass": an ID from JSON may hold lone surrogates, and is refused elsewhere.
        return hashlib.sha256(canonical_key_id(key_id).encode("utf-8", "surrogatepass")).digest()
