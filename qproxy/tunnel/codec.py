"""Reading and writing fields: the few primitives every message and frame is made of.

Integers are unsigned and big-endian. ``vec8`` and ``vec16`` are a length of one or two bytes and
that many bytes. A decoder returns a whole value or raises
:class:`~qproxy.errors.RemoteProtocolError` with ``malformed_message``; it never guesses.
"""

from __future__ import annotations

from qproxy.errors import Reason, RemoteProtocolError


def malformed(what: str) -> RemoteProtocolError:
    """The error every decoder raises."""
    return RemoteProtocolError(Reason.MALFORMED_MESSAGE, what)


class FieldReader:
    """Takes fields off the front of a message. Checks every length before it slices."""

    __slots__ = ("_data", "_offset", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    def take(self, length: int, field: str) -> bytes:
        """The next ``length`` bytes."""
        end = self._offset + length
        if end > len(self._data):
            raise malformed(f"{self._what}.{field}: message ends inside it")
        value = self._data[self._offset : end]
        self._offset = end
        return value

    def uint(self, length: int, field: str) -> int:
        """An unsigned integer of ``length`` bytes."""
        return int.from_bytes(self.take(length, field), "big")

    def vector(self, length_bytes: int, field: str, *, limit: int, minimum: int = 0) -> bytes:
        """A length-prefixed byte string of ``minimum`` to ``limit`` bytes."""
        length = self.uint(length_bytes, field)
        if not minimum <= length <= limit:
            raise malformed(f"{self._what}.{field}: {length} bytes, expected {minimum} to {limit}")
        return self.take(length, field)

    def text(self, field: str, *, limit: int, minimum: int = 0) -> str:
        """A vec8 of printable UTF-8."""
        raw = self.vector(1, field, limit=limit, minimum=minimum)
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise malformed(f"{self._what}.{field}: not UTF-8") from None
        if not value.isprintable():
            raise malformed(f"{self._what}.{field}: holds unprintable characters")
        return value

    def finish(self) -> None:
        """Nothing may follow the last field."""
        left = len(self._data) - self._offset
        if left:
            raise malformed(f"{self._what}: {left} bytes after its last field")


def encode_vec8(value: bytes) -> bytes:
    """A byte string of at most 255 bytes behind its length. Raises OverflowError when longer."""
    return len(value).to_bytes(1, "big") + value


def encode_vec16(value: bytes) -> bytes:
    """A byte string of at most 65,535 bytes behind its length. Raises OverflowError if longer."""
    return len(value).to_bytes(2, "big") + value


def encode_text(value: str) -> bytes:
    """A text as vec8 of UTF-8."""
    return encode_vec8(value.encode("utf-8"))


def is_usable_text(value: str, limit: int) -> bool:
    """Whether a decoder would take ``value`` as a text of 1 to ``limit`` bytes.

    For words that come from elsewhere, such as a KME's key IDs. A printable string can be encoded.
    """
    return value.isprintable() and 1 <= len(value.encode("utf-8")) <= limit
