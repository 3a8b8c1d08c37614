"""ANNOUNCE and REPORT: which QKD keys will be offered, and which of them the server holds.

The client names keys ahead of need; the server redeems them when it likes and reports. Neither
message burns an ID: an OFFER does (rule R5). What is held is bounded per peer, by whoever drives
the core (rule R13); here only the sizes of the messages are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES, MIN_QKD_KEY_BYTES
from qproxy.tunnel.codec import FieldReader, encode_text, is_usable_text, malformed
from qproxy.tunnel.messages import (
    MAX_SOURCE_BYTES,
    OfferedKey,
    decode_offered_key,
    encode_offered_key,
)

#: Keys in one ANNOUNCE or REPORT at most.
MAX_KEYS_PER_ANNOUNCE = 64
#: The server's process, in REPORT: random, fixed while it runs.
INSTANCE_ID_BYTES = 8

_HELD = 0


@dataclass(frozen=True, slots=True)
class KeyReport:
    """REPORT.

    Attributes:
        instance_id: 8 bytes naming the server's process.
        results: IDs, each with None where the key is held, or the reason why it is not.
    """

    instance_id: bytes
    results: tuple[tuple[str, Reason | None], ...]

    def encode(self) -> bytes:
        """The frame's payload."""
        body = b"".join(
            encode_text(key_id) + bytes([_HELD if reason is None else reason.code])
            for key_id, reason in self.results
        )
        return self.instance_id + bytes([len(self.results)]) + body


def encode_announce(keys: Sequence[OfferedKey]) -> bytes:
    """ANNOUNCE's payload: a count, then the keys as in an OFFER."""
    return bytes([len(keys)]) + b"".join(encode_offered_key(key) for key in keys)


def check_announced(keys: Sequence[OfferedKey]) -> None:
    """Whether the server would take an ANNOUNCE: a KME must not be able to end a tunnel (rule R7).

    Raises:
        LocalProtocolError: ``key_invalid``.
    """
    named = {(key.source, key.key_id) for key in keys}
    if not 1 <= len(keys) <= MAX_KEYS_PER_ANNOUNCE or len(named) != len(keys):
        raise LocalProtocolError(Reason.KEY_INVALID, f"{len(keys)} keys, {len(named)} of them new")
    for key in keys:
        usable = (
            is_usable_text(key.source, MAX_SOURCE_BYTES)
            and is_usable_text(key.key_id, MAX_KEY_ID_BYTES)
            and MIN_QKD_KEY_BYTES <= key.size_bytes <= MAX_QKD_KEY_BYTES
        )
        if not usable:
            raise LocalProtocolError(Reason.KEY_INVALID, "a key that cannot be announced")


def check_report(report: KeyReport) -> None:
    """Whether the client would take a REPORT. Raises LocalProtocolError (``key_invalid``)."""
    usable = (
        len(report.instance_id) == INSTANCE_ID_BYTES
        and 1 <= len(report.results) <= MAX_KEYS_PER_ANNOUNCE
        and all(is_usable_text(key_id, MAX_KEY_ID_BYTES) for key_id, _reason in report.results)
    )
    if not usable:
        raise LocalProtocolError(Reason.KEY_INVALID, "a report that cannot be sent")


def decode_announce(payload: bytes) -> tuple[OfferedKey, ...]:
    """Parse ANNOUNCE. Raises RemoteProtocolError (``malformed_message``)."""
    reader = FieldReader(payload, "ANNOUNCE")
    keys = tuple(decode_offered_key(reader) for _ in range(_count(reader, "ANNOUNCE")))
    reader.finish()
    if len({(key.source, key.key_id) for key in keys}) != len(keys):
        raise malformed("ANNOUNCE names one key twice")
    return keys


def decode_report(payload: bytes) -> KeyReport:
    """Parse REPORT. Raises RemoteProtocolError (``malformed_message``)."""
    reader = FieldReader(payload, "REPORT")
    instance_id = reader.take(INSTANCE_ID_BYTES, "instance_id")
    results = []
    for _ in range(_count(reader, "REPORT")):
        key_id = reader.text("key_id", limit=MAX_KEY_ID_BYTES, minimum=1)
        code = reader.uint(1, "result")
        # A reason this version has no word for says no all the same.
        reason = None if code == _HELD else Reason.from_code(code) or Reason.KEY_NOT_FOUND
        results.append((key_id, reason))
    reader.finish()
    return KeyReport(instance_id, tuple(results))


def _count(reader: FieldReader, what: str) -> int:
    count = reader.uint(1, "count")
    if not 1 <= count <= MAX_KEYS_PER_ANNOUNCE:
        raise malformed(f"{what} of {count} keys, expected 1 to {MAX_KEYS_PER_ANNOUNCE}")
    return count
