"""A QKD key as it passes from a key source to the tunnel core."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: Shortest QKD key that may count towards ``hybrid``, in bytes.
MIN_QKD_KEY_BYTES = 32
#: Longest single QKD key accepted from any source, in bytes.
MAX_QKD_KEY_BYTES = 1024
#: Longest key ID accepted from any source or peer, in UTF-8 bytes. A UUID has 36.
MAX_KEY_ID_BYTES = 128


@dataclass(slots=True, eq=False)
class QkdKey:
    """One QKD key and its ID.

    Attributes:
        key_id: the KME's ID (a UUID in ETSI GS QKD 014), at most 128 bytes of UTF-8.
        key: the secret; a bytearray so that :meth:`wipe` can overwrite it. Whoever holds the
            object last owns it and wipes it.
        source: name of the configured key source it came from.
        simulated: True where the source says that no photon was involved.
    """

    key_id: str
    key: bytearray = field(repr=False)
    source: str = ""
    simulated: bool = False

    def wipe(self) -> None:
        """Overwrite the secret. Copies that a library made are out of reach (SECURITY.md)."""
        self.key[:] = bytes(len(self.key))
        del self.key[:]


def wipe_keys(keys: Iterable[QkdKey]) -> None:
    """Overwrite QKD keys that have done their work, or never will."""
    for key in keys:
        key.wipe()
