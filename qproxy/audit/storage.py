"""The files of an audit log: found, opened, gone on with, appended to and rotated.

Theory of operation. The log at ``FILE`` is the one in use; when it is full it becomes
``FILE.000001``, ``FILE.000002`` and so on, by the number in its header, and the chain runs on in a
new ``FILE``. Nothing is ever deleted here. A batch of records is appended whole or not at all:
where writing fails halfway the file is cut back to where it was, then or before the next batch.

Going on with a file that is there already: its last lines are checked against each other (all of it
is ``verify``'s work). A crash in the middle of a write leaves a torn last line; it is cut off, and
the first record of the new run says how long it was and what its hash is. Anything else that is
wrong is damage, and not repaired.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from qproxy.audit.facts import (
    ChainBroken,
    Facts,
    LogHeader,
    LogResumed,
)
from qproxy.audit.record import (
    AuditRecord,
    Chain,
    Head,
    Stamp,
    encode_line,
)
from qproxy.audit.tail import (
    AuditError,
    DamagedError,
    LockedError,
    read_tail,
    torn_header,
)
from qproxy.audit.trail import audit_text
from qproxy.log import escape

#: Size at which a file is rotated unless told otherwise, and the least that may be asked for.
DEFAULT_MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MIN_MAX_FILE_BYTES: Final = 64 * 1024
#: Highest number of a rotated file; after it the log cannot go on.
MAX_FILE_NUMBER: Final = 999_999

_NUMBERED: Final = re.compile(r"\.(\d{6})")


class LogFile(Protocol):
    """An open file of a log, as the writer needs it. Every method may raise OSError."""

    def append(self, data: bytes) -> None:
        """Write all of it at the end."""

    def truncate(self, size_bytes: int) -> None:
        """Cut back to a size."""

    def sync(self) -> None:
        """Wait until what was written is on the disk."""

    def size_if_in_place(self) -> int | None:
        """Its size, or None where the path no longer leads to it."""

    def close(self) -> None:
        """Give the descriptor back; raises nothing."""


class DiskFile:
    """A :class:`LogFile` on the disk, mode 0600, created where it is not there."""

    def __init__(self, path: Path) -> None:
        """Open it for appending. Raises OSError; a symbolic link or a pipe is refused."""
        self._path = path
        # Not blocking, or opening a pipe would wait for its reader.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "not a regular file", str(path))

    def append(self, data: bytes) -> None:
        """Write all of it at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def truncate(self, size_bytes: int) -> None:
        """Cut back to a size."""
        os.ftruncate(self._fd, size_bytes)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._fd)

    def size_if_in_place(self) -> int | None:
        """Its size, or None where the path no longer leads to it."""
        ours = os.fstat(self._fd)
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            return None
        return ours.st_size if os.path.samestat(ours, there) else None

    def close(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


OpenFile = Callable[[Path], LogFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogIdentity:
    """What a header says of the gateway.

    Attributes:
        node: its name.
        version: of qproxy.
        random_bytes: source of a new chain's ID; ``os.urandom`` outside tests.
    """

    node: str
    version: str
    random_bytes: Callable[[int], bytes] = os.urandom


class ChainFile:
    """The file in use and the end of the chain in it. Used by one thread at a time.

    Attributes:
        head: the last record written.
        header: of the file in use.
    """

    def __init__(
        self,
        path: Path,
        chain: Chain,
        identity: LogIdentity,
        *,
        max_file_bytes: int = DEFAULT_MAX_FILE_BYTES,
        open_file: OpenFile = DiskFile,
    ) -> None:
        """Nothing is opened yet."""
        if max_file_bytes < MIN_MAX_FILE_BYTES:
            raise ValueError(f"max_file_bytes: expected at least {MIN_MAX_FILE_BYTES}")
        self.head = Head()
        self.header: LogHeader | None = None
        self._path = path
        self._chain = chain
        self._identity = identity
        self._max_file_bytes = max_file_bytes
        self._open_file = open_file
        self._file: LogFile | None = None
        self._size = 0
        self._dirty = False
        self._lock: int | None = None

    def open(self, stamp: Stamp) -> None:
        """Go on with the log that is there, or begin one.

        Args:
            stamp: of the record that says so.

        Raises:
            DamagedError: what is there cannot be gone on with.
            LockedError: another process writes this log.
            OSError: the file cannot be opened or written.
        """
        self._take_lock()
        self._close_file()
        try:
            self._open(stamp)
        except (AuditError, OSError):
            self._close_file()
            self.header, self.head = None, Head()
            raise

    def restart(self, stamp: Stamp, problem: str) -> None:
        """Move what is at the log's place aside and go on in a new file.

        The chain runs on where this process wrote its last record, if it wrote any; else a new one
        begins. Either way ``chain_broken`` says so.

        Raises:
            LockedError: another process writes this log.
            OSError: the file cannot be moved, opened or written.
        """
        self._take_lock()
        self._close_file()
        moved = _move_aside(self._path)
        text = audit_text(problem)
        name = None if moved is None else audit_text(moved.name)
        self._begin(stamp, ChainBroken(problem=text, moved_to=name))

    def append(self, stamped: Sequence[tuple[Stamp, Facts]], *, sync: bool = False) -> None:
        """Append records, all or none of them.

        Args:
            stamped: at least one.
            sync: whether to wait for the disk too; where that fails, none of them is appended.

        Raises:
            DamagedError: somebody else moved, cut or wrote the file.
            OSError: the disk is full, or writing failed otherwise.
            FactsError: a record that cannot be written, ever.
        """
        if self._file is None and self.header is not None:
            self._begin(stamped[0][0])  # it could not be made when the one before was full
        self._check_in_place()
        if self._size >= self._max_file_bytes:
            self._rotate(stamped[0][0])
        self._append(stamped, sync=sync)

    def sync(self) -> None:
        """Wait until every record appended is on the disk. Raises OSError."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Close the file and let others write it."""
        self._close_file()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self, stamp: Stamp) -> None:
        torn = torn_header(self._path)
        last = self._last_file(torn)
        if last is None:
            self._begin(stamp, *([self._resumed(torn)] if torn else []))
            return
        tail = read_tail(last, self._chain)
        if tail.header.node != self._identity.node:
            raise AuditError(
                f"{last}: the log of {escape(tail.header.node)}",
                "each gateway needs a file of its own",
            )
        self.header, self.head = tail.header, tail.head
        if last != self._path:
            # A crash between renaming the full file and beginning the next one.
            self._begin(stamp, self._resumed(torn or b""))
            return
        self._file, self._size = self._open_file(self._path), tail.size_bytes
        if tail.torn:
            self._file.truncate(tail.size_bytes)
        self.append([(stamp, self._resumed(tail.torn))])

    def _append(self, stamped: Sequence[tuple[Stamp, Facts]], *, sync: bool = False) -> None:
        if self._file is None:
            raise DamagedError(f"{self._path}: not open")
        head, lines = self.head, []
        for stamp, facts in stamped:
            record = AuditRecord(head.sequence + 1, stamp, facts)
            line, digest = encode_line(record, head.hash, self._chain)
            head = Head(record.sequence, digest)
            lines.append(line)
        data = b"".join(lines)
        self._dirty = True
        try:
            self._file.append(data)
            if sync:
                self._file.sync()
        except OSError:
            with contextlib.suppress(OSError):  # then before the next batch
                self._cut_back()
            raise
        self._dirty = False
        self._size += len(data)
        self.head = head

    def _check_in_place(self) -> None:
        """Find out before writing whether the file is still the one that we left."""
        if self._file is None:
            raise DamagedError(f"{self._path}: not open")
        if self._dirty:
            self._cut_back()
        size = self._file.size_if_in_place()
        if size is None:
            raise DamagedError(f"{self._path}: the file was moved or deleted")
        if size != self._size:
            raise DamagedError(
                f"{self._path}: somebody else changed the file: "
                f"expected {self._size} bytes, found {size}"
            )

    def _cut_back(self) -> None:
        if self._file is not None:
            self._file.truncate(self._size)
            self._dirty = False

    def _rotate(self, stamp: Stamp) -> None:
        if self._file is None or self.header is None:
            return
        self._file.sync()
        target = numbered(self._path, self.header.file_number)
        if _exists(target):
            raise DamagedError(f"{target}: there already, and not by this process")
        self._path.rename(target)
        self._close_file()
        self._begin(stamp)

    def _begin(self, stamp: Stamp, *first: Facts) -> None:
        """Make a new file: its header, and records that say why, whole or not at all."""
        old = self.header
        number = 1 + max(_highest_number(self._path), 0 if old is None else old.file_number)
        if number > MAX_FILE_NUMBER:
            raise OSError(errno.EFBIG, f"file number {number}", str(self._path))
        if _exists(self._path) and torn_header(self._path) is None:
            raise DamagedError(f"{self._path}: there already, and not by this process")
        header = LogHeader(
            node=self._identity.node,
            version=self._identity.version,
            algorithm=self._chain.algorithm,
            chain_id=self._identity.random_bytes(16).hex() if old is None else old.chain_id,
            file_number=number,
            previous_hash=self.head.hash.hex(),
        )
        self._close_file()
        self._file, self._size = self._open_file(self._path), 0
        try:
            self._file.truncate(0)
            self._append([(stamp, header), *((stamp, facts) for facts in first)])
            self._file.sync()
            _sync_directory(self._path.parent)
        except OSError:
            self._close_file()
            raise
        self.header = header

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._dirty = False

    def _resumed(self, torn: bytes) -> LogResumed:
        return LogResumed(
            version=self._identity.version,
            torn_bytes=len(torn),
            torn_sha384=hashlib.sha384(torn).hexdigest() if torn else None,
        )

    def _last_file(self, torn_header: bytes | None) -> Path | None:
        """The file that the chain goes on in: the one in use, else the last rotated one."""
        if torn_header is None and _exists(self._path):
            return self._path
        rotated = rotated_files(self._path)
        return rotated[-1] if rotated else None

    def _take_lock(self) -> None:
        """Two writers would break the chain. The lock's file stays, empty."""
        if self._lock is not None:
            return
        path = self._path.with_name(self._path.name + ".lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(path, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise LockedError(
                f"{self._path}: another process writes this log",
                "each gateway needs a file of its own",
            ) from None
        self._lock = lock


def numbered(path: Path, number: int) -> Path:
    """Where the file of a number goes when it is full."""
    return path.with_name(f"{path.name}.{number:06d}")


def rotated_files(path: Path) -> list[Path]:
    """What was rotated out of a log, oldest first. Raises OSError."""
    found = [
        other
        for other in path.parent.iterdir()
        if other.name.startswith(path.name) and _NUMBERED.fullmatch(other.name[len(path.name) :])
    ]
    return sorted(found)


def log_files(path: Path) -> list[Path]:
    """All files of a log, oldest first, the one in use last. Raises OSError."""
    rotated = rotated_files(path)
    return [*rotated, path] if path.exists() or not rotated else rotated


def _exists(path: Path) -> bool:
    """Whether anything has the name; a symbolic link is something."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _highest_number(path: Path) -> int:
    rotated = rotated_files(path)
    return int(rotated[-1].name[-6:]) if rotated else 0


def _move_aside(path: Path) -> Path | None:
    """Give a damaged file a name of its own; None where there is nothing or an empty file."""
    if not _exists(path) or torn_header(path) == b"":
        return None
    number = 1
    while _exists(target := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    path.rename(target)
    return target


def _sync_directory(directory: Path) -> None:
    """Make a new name in it last."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
