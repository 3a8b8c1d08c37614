"""Data without end that two programs can make from the same number, for byte-for-byte checks.

It is AES-128-CTR over zeros: fast, and never the same at two places, so that a byte that was lost,
doubled or moved is seen. The key is made of a public number; nothing here is secret.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

#: Most bytes made in one go.
MAX_CHUNK_BYTES: Final = 256 * 1024

_ZEROS: Final = memoryview(bytes(MAX_CHUNK_BYTES))


class Pattern:
    """The bytes that belong to one number, from the first on."""

    def __init__(self, seed: int) -> None:
        key = hashlib.sha256(b"qproxy demo pattern %d" % seed).digest()[:16]
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        """The next `count` bytes, at most MAX_CHUNK_BYTES. Raises ValueError beyond that."""
        if not 0 <= count <= MAX_CHUNK_BYTES:
            raise ValueError(f"expected 0 to {MAX_CHUNK_BYTES} bytes, got {count}")
        return self._stream.update(_ZEROS[:count])


def chunks(count: int) -> list[int]:
    """Sizes of the pieces that `count` bytes are made in."""
    whole, rest = divmod(count, MAX_CHUNK_BYTES)
    return [MAX_CHUNK_BYTES] * whole + ([rest] if rest else [])
