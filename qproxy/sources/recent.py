"""Which keys a source gave lately, without the keys: to notice one that comes again.

A key that comes twice under two IDs would be mixed into two epochs that look independent. What is
kept of a key is a hash under a secret of this process, so that nothing can be learnt from it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict

#: Keys that are remembered, the last ones. At one key a minute this is half a working day.
MAX_RECENT_KEYS = 512

_HASH_BYTES = 16
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def folded_key_id(key_id: str) -> str:
    """A key ID as it is compared: a UUID means the same in capitals (RFC 9562 §4)."""
    return key_id.lower() if _UUID.fullmatch(key_id) else key_id


class RecentKeys:
    """Hashes of the last keys and of their IDs."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._ids_by_key: OrderedDict[bytes, bytes] = OrderedDict()
        self._ids: set[bytes] = set()

    def knows_id(self, key_id: str) -> bool:
        """Whether a key of this ID is remembered."""
        return self._hash(b"id", folded_key_id(key_id).encode()) in self._ids

    def add(self, key_id: str, key: bytearray) -> bool:
        """Remember a key. False where it came before under another ID."""
        id_hash = self._hash(b"id", folded_key_id(key_id).encode())
        key_hash = self._hash(b"key", key)
        if self._ids_by_key.setdefault(key_hash, id_hash) != id_hash:
            return False
        self._ids.add(id_hash)
        while len(self._ids_by_key) > MAX_RECENT_KEYS:
            _, oldest = self._ids_by_key.popitem(last=False)
            self._ids.discard(oldest)
        return True

    def _hash(self, what: bytes, data: bytes | bytearray) -> bytes:
        return hashlib.blake2b(
            data, digest_size=_HASH_BYTES, key=self._secret, person=what
        ).digest()
