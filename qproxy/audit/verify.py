"""Whether a log is whole: nothing changed, nothing missing, everything in its place. Pure.

What is read may have been written by an attacker: a line is looked at only up to a limit, parsed
only after its hash was found to follow, and trusted only as far as docs/audit.md says. The first
thing that is wrong ends the check, for nothing after it is proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from qproxy.audit.facts import (
    FORMAT,
    FORMAT_VERSION,
    Algorithm,
    ChainBroken,
    GatewayStopped,
    LogHeader,
    LogResumed,
    RecordsLost,
)
from qproxy.audit.record import (
    CHAIN_START,
    AuditRecord,
    Chain,
    Head,
    RecordError,
    decode_record,
    split_line,
)

#: Most remarks kept about one log; the rest are counted.
MAX_REMARKS: Final = 100

#: A file of a log: its name, for messages, and its lines with their newlines.
NamedLines = tuple[str, Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Broken:
    """The first thing that is wrong with a log.

    Attributes:
        file: name of the file.
        line: in that file, from 1; 0 where it is about the whole file.
        problem: what is wrong.
    """

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{where}: {self.problem}"


@dataclass(slots=True)
class VerifyReport:
    """What a check of a log found.

    Attributes:
        broken: what is wrong, or None. All the rest is about what comes before it.
        header: of the first file, None where even that is wrong.
        files: how many were read.
        records: how many were right, headers included.
        first_sequence: of the first record: above 1 where older files are not here.
        head: the last record.
        first_time: of the first record.
        last_time: of the last record.
        remarks: what is worth knowing and not wrong, each with its place.
        remarks_dropped: remarks beyond MAX_REMARKS.
        sought_found: a record has the hash that was sought.
    """

    broken: Broken | None = None
    header: LogHeader | None = None
    files: int = 0
    records: int = 0
    first_sequence: int = 0
    head: Head = field(default_factory=Head)
    first_time: str = ""
    last_time: str = ""
    remarks: list[str] = field(default_factory=list)
    remarks_dropped: int = 0
    sought_found: bool = False

    @property
    def whole(self) -> bool:
        """Nothing is wrong, from the start of the chain on."""
        return self.broken is None and self.first_sequence == 1

    def remark(self, text: str) -> None:
        """Add a remark."""
        if len(self.remarks) < MAX_REMARKS:
            self.remarks.append(text)
        else:
            self.remarks_dropped += 1


def verify(
    files: Iterable[NamedLines],
    *,
    key: bytes | None = None,
    seek: bytes | None = None,
    on_record: Callable[[AuditRecord], None] | None = None,
) -> VerifyReport:
    """Check the files of one log, oldest first.

    Args:
        files: name and lines of each. Reading them may raise OSError, which passes through.
        key: the chain's HMAC key of 32 bytes, or None for a chain that is not keyed.
        seek: a hash of 48 bytes; the report says whether a record has it.
        on_record: given every record that was found right, as it is found.
    """
    checker = _Checker(Chain(key), seek)
    for record in checker.records(files):
        if on_record is not None:
            on_record(record)
    return checker.report


class _Stop(Exception):  # noqa: N818 - it never leaves this module
    """Something is wrong; the message says what."""


class _Checker:
    """The state of a check between two lines."""

    def __init__(self, chain: Chain, seek: bytes | None) -> None:
        self.report = VerifyReport()
        self._chain = chain
        self._seek = seek
        self._header: LogHeader | None = None
        self._previous: AuditRecord | None = None
        self._offset_us = 0
        self._stopped = False

    def records(self, files: Iterable[NamedLines]) -> Iterator[AuditRecord]:
        """Every record that is right, up to the first that is not."""
        name = "log"
        for name, lines in files:
            self.report.files += 1
            number = 0
            for number, line in enumerate(lines, start=1):
                try:
                    record = self._line(line, number)
                except (_Stop, RecordError) as error:
                    self.report.broken = Broken(name, number, str(error))
                    return
                self._note(record, f"{name}, line {number}")
                yield record
            if not number:
                self.report.broken = Broken(name, 0, "empty")
                return
        if not self.report.records:
            self.report.broken = Broken(name, 0, "no records")

    def _line(self, line: bytes, number: int) -> AuditRecord:
        """One line, whole and in its place, or an error."""
        stated, body = split_line(line)
        if number == 1:
            record = decode_record(body)
            self._check_header(record.facts)
            previous = self.report.head.hash if self._header else _previous_hash(record.facts)
        else:
            previous = self.report.head.hash
        if self._chain.next_hash(previous, body) != stated:
            raise _Stop(_hash_problem(self._chain, first=self._header is None))
        if number > 1:
            record = decode_record(body)
            if isinstance(record.facts, LogHeader):
                raise _Stop("a header in the middle of a file")
        self._check_order(record)
        if isinstance(record.facts, LogHeader):
            self._header = record.facts
        self._previous = record
        self.report.head = Head(record.sequence, stated)
        return record

    def _check_header(self, header: object) -> None:
        if not isinstance(header, LogHeader):
            raise _Stop("expected a header")
        if (header.format, header.format_version) != (FORMAT, FORMAT_VERSION):
            raise _Stop(f"expected format {FORMAT} {FORMAT_VERSION}")
        if header.algorithm is not self._chain.algorithm:
            if header.algorithm is Algorithm.HMAC_SHA_384:
                raise _Stop("the chain is keyed: its HMAC key is needed")
            raise _Stop("the chain is not keyed, though a key is expected")
        before = self._header
        if before is None:
            if header.file_number == 1 and header.previous_hash != CHAIN_START.hex():
                raise _Stop("file 1 of a chain that does not begin here")
            return
        for name in ("node", "chain_id"):
            if getattr(header, name) != getattr(before, name):
                raise _Stop(f"another chain begins here: another {name}")
        if header.file_number != before.file_number + 1:
            raise _Stop(f"file {header.file_number} follows file {before.file_number}")
        if header.previous_hash != self.report.head.hash.hex():
            raise _Stop("the file does not follow from the one before")

    def _check_order(self, record: AuditRecord) -> None:
        before = self._previous
        if before is None:
            self._offset_us = record.stamp.offset_us
            if _previous_hash(record.facts) == CHAIN_START and record.sequence != 1:
                raise _Stop(f"the chain begins here, with record {record.sequence}")
            return
        if record.sequence != before.sequence + 1:
            raise _Stop(f"record {record.sequence} follows record {before.sequence}")
        self._check_clock(record)

    def _check_clock(self, record: AuditRecord) -> None:
        """Within one run of the gateway, the monotonic clock never goes back."""
        offset_us = record.stamp.offset_us
        if isinstance(record.facts, LogHeader):
            return  # a file's first record may stand before the one that begins the run
        if not isinstance(record.facts, LogResumed) and offset_us < self._offset_us:
            raise _Stop(f"the monotonic clock went back from {self._offset_us} to {offset_us} us")
        self._offset_us = offset_us

    def _note(self, record: AuditRecord, where: str) -> None:
        """Take a record that is right into the report."""
        report = self.report
        if not report.records:
            report.header = self._header
            report.first_sequence = record.sequence
            report.first_time = record.stamp.time
        elif record.stamp.time < report.last_time:
            report.remark(
                f"{where}: the clock was set back from {report.last_time} to {record.stamp.time}"
            )
        report.records += 1
        report.last_time = record.stamp.time
        report.sought_found = report.sought_found or report.head.hash == self._seek
        text = self._remark_on(record)
        if text is not None:
            report.remark(f"{where}: {text}")

    def _remark_on(self, record: AuditRecord) -> str | None:
        match record.facts:
            case RecordsLost(count=count):
                return f"{count} records were lost here, says the gateway"
            case ChainBroken(problem=problem, moved_to=moved_to):
                there = f"; it was moved to {moved_to}" if moved_to else ""
                return f"the gateway could not go on with its log: {problem}{there}"
            case LogResumed(torn_bytes=torn):
                stopped, self._stopped = self._stopped, False
                if torn:
                    return f"the run before ended in the middle of a record, {torn} bytes cut off"
                return None if stopped else "the run before ended without gateway_stopped"
            case GatewayStopped():
                self._stopped = True
            case LogHeader():
                pass
            case _:
                self._stopped = False
        return None


def _previous_hash(facts: object) -> bytes:
    return bytes.fromhex(facts.previous_hash) if isinstance(facts, LogHeader) else CHAIN_START


def _hash_problem(chain: Chain, *, first: bool) -> str:
    keyed = " (or the HMAC key is another)" if chain.key is not None and first else ""
    return (
        "the hash does not follow from this record and the one before: "
        f"one of them was changed, removed, added or moved{keyed}"
    )
