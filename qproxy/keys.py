"""A QKD key as it passes from a key source to the tunnel core."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

#: Shortest QKD key that may count towards ``hybrid``, in bytes.
MIN_QKD_KEY_BYTES = 32
#: Longest single QKD key accepted from any source, in bytes.
MAX_QKD_KEY_BYTES = 1024
#: Longest key ID accepted from any source or peer, in UTF-8 bytes. A UUID has 36.
MAX_KEY_ID_BYTES = 128


class SourceKind(enum.StrEnum):
    """What a key source is, in configurations, offers, logs and records."""

    ETSI_014 = "etsi-qkd-014"
    """A KME behind ETSI GS QKD 014."""
    SKIP = "skip"
    """A key provider behind SKIP (draft-cisco-skip)."""
    FILE = "file"
    """A directory of keys written ahead."""


class KeyNature(enum.StrEnum):
    """What a key may be called: never more than its source says of it."""

    QKD = "qkd"
    """Its source is an interface for QKD and does not say otherwise."""
    SIMULATED = "simulated"
    """Its source says that no photon was involved."""
    UNSTATED = "unstated"
    """Its source does not say how both sites came by it."""
    PAD = "pre-shared-pad"
    """Random numbers that were written ahead and carried to both sites."""


@dataclass(frozen=True, slots=True)
class KeyOrigin:
    """Where a key came from, as this gateway knows it.

    Attributes:
        source: name of the key source in this gateway's configuration.
        kind: what that source is; empty where nobody said.
        simulated: it says that no photon was involved.
        path: name that both ends have for the pair of sources; empty where there is but one.
    """

    source: str
    kind: str
    simulated: bool
    path: str = ""

    @property
    def nature(self) -> KeyNature:
        """What the key may be called."""
        if self.kind == SourceKind.FILE:
            return KeyNature.PAD
        if self.simulated:
            return KeyNature.SIMULATED
        return KeyNature.QKD if self.kind == SourceKind.ETSI_014 else KeyNature.UNSTATED

    @property
    def label(self) -> str:
        """How offers name the source, the same at both ends; empty where nobody said."""
        return source_label(self.kind, self.path)


def source_label(kind: str, path: str) -> str:
    """How offers name a source: its kind, and the path where there are several."""
    return f"{kind}/{path}" if path else kind


@dataclass(slots=True, eq=False)
class QkdKey:
    """One key of a key source, and its ID. Not every key is QKD's: see :attr:`origin`.

    Attributes:
        key_id: the KME's ID (a UUID in ETSI GS QKD 014), at most 128 bytes of UTF-8.
        key: the secret; a bytearray so that :meth:`wipe` can overwrite it. Whoever holds the
            object last owns it and wipes it.
        source: name of the configured key source it came from.
        simulated: True where the source says that no photon was involved.
        kind: what the source is; set by whoever configured it.
        path: name that both ends have for the pair of sources; empty where there is but one.
    """

    key_id: str
    key: bytearray = field(repr=False)
    source: str = ""
    simulated: bool = False
    kind: str = ""
    path: str = ""

    @property
    def origin(self) -> KeyOrigin:
        """Where it came from; outlives the secret."""
        return KeyOrigin(self.source, self.kind, self.simulated, self.path)

    def wipe(self) -> None:
        """Overwrite the secret. Copies that a library made are out of reach (SECURITY.md)."""
        self.key[:] = bytes(len(self.key))
        del self.key[:]


def wipe_keys(keys: Iterable[QkdKey]) -> None:
    """Overwrite QKD keys that have done their work, or never will."""
    for key in keys:
        key.wipe()
