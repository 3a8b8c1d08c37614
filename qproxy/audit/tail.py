"""Reading the files of an audit log: their lines, and the end that a new run goes on from."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from qproxy.audit.facts import Algorithm, LogHeader
from qproxy.audit.record import (
    MAX_LINE_BYTES,
    Chain,
    Head,
    RecordError,
    decode_record,
    split_line,
)
from qproxy.errors import QproxyError

#: How much of an existing file's end is checked before it is gone on with, in bytes.
TAIL_BYTES: Final = 1024 * 1024


class AuditError(QproxyError):
    """An audit log cannot be written or gone on with.

    Attributes:
        hint: what to do next, where there is something to say.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DamagedError(AuditError):
    """What lies at the log's place is not the log it should be."""


class LockedError(AuditError):
    """Another process writes the log."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of an existing file.

    Attributes:
        header: its first record.
        head: its last whole record.
        size_bytes: up to the end of that record.
        torn: what stands after it.
    """

    header: LogHeader
    head: Head
    size_bytes: int
    torn: bytes


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their newlines.

    Of a line longer than MAX_LINE_BYTES only so much comes, and one byte more. Raises OSError.
    """
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            yield line


def torn_header(path: Path) -> bytes | None:
    """All that is in a file whose first line was never finished; None for any other, or none.

    Raises OSError.
    """
    try:
        with _open(path) as file:
            data = file.read(MAX_LINE_BYTES + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= MAX_LINE_BYTES and b"\n" not in data else None


def read_tail(path: Path, chain: Chain) -> Tail:
    """Check the header and the last lines of a file.

    Raises:
        DamagedError: they are not those of a log of this chain.
        OSError: the file cannot be read.
    """
    with _open(path) as file:
        first = file.readline(MAX_LINE_BYTES + 1)
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        data = file.read(size - start)
    header = _read_header(path, first, chain)
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines(keepends=True)
    if start:
        del lines[:1]  # most likely only the end of a line
    if not lines:
        raise DamagedError(f"{path}: no whole record in its last {TAIL_BYTES} bytes")
    head = _check_lines(path, lines, chain, None if start else bytes.fromhex(header.previous_hash))
    return Tail(header, head, start + whole, data[whole:])


def _read_header(path: Path, line: bytes, chain: Chain) -> LogHeader:
    try:
        stated, body = split_line(line)
        record = decode_record(body)
    except RecordError as error:
        raise DamagedError(f"{path}, line 1: {error}") from None
    header = record.facts
    if not isinstance(header, LogHeader):
        raise DamagedError(f"{path}, line 1: not a header")
    if header.algorithm is not chain.algorithm:
        keyed = header.algorithm is Algorithm.HMAC_SHA_384
        raise AuditError(
            f"{path}: its chain is {'keyed' if keyed else 'not keyed'}",
            "a chain cannot change that; move the log's files away to begin a new one",
        )
    if chain.next_hash(bytes.fromhex(header.previous_hash), body) != stated:
        raise DamagedError(f"{path}, line 1: the hash is not that of the record, or of another key")
    return header


def _check_lines(path: Path, lines: list[bytes], chain: Chain, previous: bytes | None) -> Head:
    head: Head | None = None
    for line in lines:
        try:
            stated, body = split_line(line)
            record = decode_record(body)
        except RecordError as error:
            raise DamagedError(f"{path}, among the last lines: {error}") from None
        if previous is not None and chain.next_hash(previous, body) != stated:
            raise DamagedError(f"{path}: the hash of record {record.sequence} does not follow")
        if head is not None and record.sequence != head.sequence + 1:
            raise DamagedError(f"{path}: record {record.sequence} follows {head.sequence}")
        head, previous = Head(record.sequence, stated), stated
    if head is None:
        raise DamagedError(f"{path}: no records")
    return head


def _open(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe would hang, and a link lead elsewhere."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")
