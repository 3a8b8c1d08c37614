"""Records, their one spelling in bytes, and the chain through them.

A line of a log, here broken in two::

    {"hash":"<96 hexadecimal digits>","record":
    {"kind":"epoch_confirmed",...,"offset_us":1200345,"sequence":17,"time":"2026-01-31T..."}}

The inner object is canonical JSON: keys sorted, no white space, whole numbers, printable ASCII. The
hash is over the hash of the record before it (48 bytes; zeros before the first) and those bytes, in
a keyed log as an HMAC. So a line vouches for every line before it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NoReturn

from qproxy.audit.facts import (
    MAX_NUMBER,
    Algorithm,
    Facts,
    FactsError,
    Plain,
    decode_facts,
    encode_facts,
)

#: Size of a hash, in bytes: SHA-384.
HASH_BYTES: Final = 48
#: What the first record of a chain runs on from.
CHAIN_START: Final = bytes(HASH_BYTES)
#: Longest line of a log, its newline included, in bytes.
MAX_LINE_BYTES: Final = 16 * 1024
#: Size of a chain's HMAC key, in bytes.
HMAC_KEY_BYTES: Final = 32

_BEFORE_HASH: Final = b'{"hash":"'
_AFTER_HASH: Final = b'","record":'
_END: Final = b"}\n"
_BODY_AT: Final = len(_BEFORE_HASH) + 2 * HASH_BYTES + len(_AFTER_HASH)
_HASH: Final = re.compile(rb"[0-9a-f]{%d}" % (2 * HASH_BYTES))
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_FRAME_FIELDS: Final = ("kind", "offset_us", "sequence", "time")


class RecordError(ValueError):
    """A line that is no record. The message says what is wrong and repeats none of it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """When something happened.

    Attributes:
        time: UTC by the machine's clock, to the microsecond.
        offset_us: microseconds since this run of the gateway began, on a clock that nobody sets.
    """

    time: str
    offset_us: int

    @classmethod
    def at(cls, time: datetime, offset_us: int) -> Stamp:
        """A stamp from a time with a zone."""
        return cls(f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z", offset_us)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record: what happened, when, and its place in the chain.

    Attributes:
        sequence: from 1, without gaps, through all files of a chain.
        stamp: when.
        facts: what.
    """

    sequence: int
    stamp: Stamp
    facts: Facts


@dataclass(frozen=True, slots=True)
class Chain:
    """How the records of a log are chained.

    Attributes:
        key: 32 bytes for a keyed chain, or None for a bare one.
    """

    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a key of another size, with ValueError."""
        if self.key is not None and len(self.key) != HMAC_KEY_BYTES:
            raise ValueError(f"HMAC key: expected {HMAC_KEY_BYTES} bytes, got {len(self.key)}")

    @property
    def algorithm(self) -> Algorithm:
        """The name it has in headers."""
        return Algorithm.SHA_384 if self.key is None else Algorithm.HMAC_SHA_384

    def next_hash(self, previous: bytes, body: bytes) -> bytes:
        """The hash of a record, 48 bytes, from the hash before it and its canonical JSON."""
        if self.key is None:
            return hashlib.sha384(previous + body).digest()
        return hmac.digest(self.key, previous + body, "sha384")


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: whoever knows it can tell whether anything before it was changed.

    Attributes:
        sequence: of the last record, 0 before the first.
        hash: of the last record, 48 bytes.
    """

    sequence: int = 0
    hash: bytes = CHAIN_START


def canonical_json(record: AuditRecord) -> bytes:
    """The one spelling of a record.

    Raises:
        FactsError: a field is not of its type.
    """
    fields = encode_facts(record.facts)
    fields["kind"] = record.facts.kind
    fields["sequence"] = record.sequence
    fields["time"] = record.stamp.time
    fields["offset_us"] = record.stamp.offset_us
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def encode_line(record: AuditRecord, previous: bytes, chain: Chain) -> tuple[bytes, bytes]:
    """A line with its newline, and the record's hash.

    Raises:
        FactsError: a field is not of its type, or the line would be too long.
    """
    body = canonical_json(record)
    digest = chain.next_hash(previous, body)
    line = _BEFORE_HASH + digest.hex().encode("ascii") + _AFTER_HASH + body + _END
    if len(line) > MAX_LINE_BYTES:
        raise FactsError(f"record of {len(line)} bytes, limit {MAX_LINE_BYTES}")
    return line, digest


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """The hash a line states, 48 bytes, and the bytes of its record, not looked at yet.

    Raises:
        RecordError: not a line of a log.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RecordError(f"longer than {MAX_LINE_BYTES} bytes")
    if not line.endswith(b"\n"):
        raise RecordError("torn: it does not end with a newline")
    digits = line[len(_BEFORE_HASH) : len(_BEFORE_HASH) + 2 * HASH_BYTES]
    framed = (
        line.startswith(_BEFORE_HASH)
        and line[len(_BEFORE_HASH) + 2 * HASH_BYTES :].startswith(_AFTER_HASH)
        and line.endswith(_END)
        and len(line) > _BODY_AT + len(_END)
    )
    if not framed or not _HASH.fullmatch(digits):
        raise RecordError('expected {"hash":"<96 hexadecimal digits>","record":{...}}')
    return bytes.fromhex(digits.decode("ascii")), line[_BODY_AT : -len(_END)]


def decode_record(body: bytes) -> AuditRecord:
    """A record from its canonical JSON, whole, or an error.

    Raises:
        RecordError: not JSON, not canonical, or not a record that this version knows.
    """
    fields = _parse(body)
    frame = {name: fields.pop(name, None) for name in _FRAME_FIELDS}
    kind, time = frame["kind"], frame["time"]
    if not isinstance(kind, str):
        raise RecordError("kind: expected a word")
    if not isinstance(time, str) or not _is_time(time):
        raise RecordError("time: expected YYYY-MM-DDThh:mm:ss.ffffffZ")
    stamp = Stamp(time, _whole(frame["offset_us"], "offset_us"))
    try:
        facts = decode_facts(kind, fields)
    except FactsError as error:
        raise RecordError(str(error)) from None
    record = AuditRecord(_whole(frame["sequence"], "sequence"), stamp, facts)
    # Whatever JSON lets one write in two ways (white space, order, escapes, a key given twice)
    # ends here.
    if canonical_json(record) != body:
        raise RecordError("not in canonical form")
    return record


def _parse(body: bytes) -> dict[str, Plain]:
    try:
        value = json.loads(body.decode("ascii"), parse_float=_refuse, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise RecordError(f"not ASCII at byte {_BODY_AT + error.start + 1}") from None
    except (ValueError, RecursionError):
        problem = "not JSON, or nested too deep, or with numbers that are not whole"
        raise RecordError(problem) from None
    if not isinstance(value, dict):
        raise RecordError("record: expected an object")
    return value


def _refuse(_text: str) -> NoReturn:
    raise ValueError


def _whole(value: Plain, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise RecordError(f"{name}: expected a whole number")
    return value


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
