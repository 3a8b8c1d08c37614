"""The thread that writes the audit log, and what happens when it cannot.

Theory of operation. :meth:`AuditWriter.write` stamps a record and puts it in a bounded queue, which
is all that the data path ever does. A thread takes batches from the front of the queue, appends
them, and waits for the disk as ``fsync`` says; a record leaves the queue when it is written. When
writing fails, records wait in the queue and the thread tries again every :data:`RETRY_S`; when the
queue is full, new records are lost, counted, and ``records_lost`` stands in their place once there
is room. So a short outage loses nothing, and a long one says how much.

Every outage is told once: an error in the log, :attr:`AuditWriter.failures` counted up, and
``on_failure`` called. What follows is the gateway's choice (``audit.failure: stop | continue``);
the writer goes on trying either way, so that the end of a gateway that stops is recorded if it can
be.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from qproxy.audit.facts import Facts, FactsError, RecordsLost, encode_facts
from qproxy.audit.record import Chain, Head, Stamp
from qproxy.audit.storage import (
    DEFAULT_MAX_FILE_BYTES,
    ChainFile,
    DiskFile,
    LogIdentity,
    OpenFile,
)
from qproxy.audit.tail import AuditError, DamagedError, LockedError
from qproxy.config.model import Fsync, OnAuditFailure
from qproxy.log import get_logger

#: Records that may wait for the disk before new ones are lost. About 4 MB.
MAX_QUEUED_RECORDS: Final = 4096
#: Most records appended at once.
MAX_BATCH_RECORDS: Final = 256
#: How long a record may wait for the disk before that counts as a failure, in seconds.
MAX_WAIT_S: Final = 10.0
#: Pause between attempts while writing fails, in seconds.
RETRY_S: Final = 1.0
#: How often the disk is waited for with ``fsync: interval``, in seconds.
SYNC_INTERVAL_S: Final = 1.0
#: How often the head is logged while records are written, in seconds.
HEAD_INTERVAL_S: Final = 300.0
#: How long the end of the program waits for records still in the queue, in seconds.
CLOSE_TIMEOUT_S: Final = 5.0

_Stamped: TypeAlias = tuple[Stamp, Facts]

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AuditFault(enum.StrEnum):
    """Why the log cannot be written."""

    DISK_FULL = "disk_full"
    UNWRITABLE = "unwritable"
    LOCKED = "locked"
    DAMAGED = "damaged"
    QUEUE_FULL = "queue_full"
    TOO_SLOW = "too_slow"
    INTERNAL_ERROR = "internal_error"


class AuditWriter:
    """Writes one gateway's audit log from a thread of its own.

    A process writes one log, and each process needs a file of its own.

    Attributes:
        failures: outages so far.
        records_written: records in the log, headers and the like not counted.
        records_lost: records that were never written, and will not be.
    """

    def __init__(
        self,
        path: Path,
        identity: LogIdentity,
        *,
        on_failure: Callable[[AuditFault], None],
        failure: OnAuditFailure = OnAuditFailure.STOP,
        fsync: Fsync = Fsync.INTERVAL,
        hmac_key: bytes | None = None,
        max_file_bytes: int = DEFAULT_MAX_FILE_BYTES,
        open_file: OpenFile = DiskFile,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        retry_s: float = RETRY_S,
    ) -> None:
        """Open the log and start the thread.

        Args:
            path: the file in use; rotated ones stand beside it.
            identity: what headers say.
            on_failure: called once for each outage, from any thread, while no lock is held; it
                must not block. trio code passes it on with ``TrioToken.run_sync_soon``.
            failure: ``STOP`` makes a log that cannot be opened an error here and now.
            fsync: when to wait for the disk.
            hmac_key: 32 bytes for a keyed chain, or None.
            max_file_bytes: size at which a file is rotated.
            open_file: how files are opened.
            utc_now: the machine's clock.
            monotonic: a clock that nobody sets, in seconds.
            retry_s: pause between attempts while writing fails.

        Raises:
            AuditError: with ``STOP``, the log cannot be opened.
        """
        self.failures = 0
        self.records_written = 0
        self.records_lost = 0
        self._path = path
        self._log = get_logger(__name__, file=path)
        self._on_failure = on_failure
        self._fsync = fsync
        self._utc_now = utc_now
        self._monotonic = monotonic
        self._retry_s = retry_s
        self._began = monotonic()
        self._opening = self._stamp()
        self._chain_file = ChainFile(
            path, Chain(hmac_key), identity, max_file_bytes=max_file_bytes, open_file=open_file
        )
        self._opened = False
        self._broken: str | None = None
        self._fault: AuditFault | None = None
        self._queue: deque[_Stamped] = deque()
        self._lost = 0
        self._lost_since_us = 0
        self._closing = False
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._unsynced_since: float | None = None
        self._head_logged_at = self._began
        self._head_logged = Head()
        self._open_first(failure)
        # A daemon: a disk that hangs must not keep the program alive.
        self._thread = threading.Thread(target=self._run, name="qproxy-audit", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> AuditFault | None:
        """Why records are not being written now, or None."""
        return self._fault

    @property
    def head(self) -> Head:
        """The last record written."""
        return self._chain_file.head

    def write(self, facts: Facts) -> None:
        """Record something that has just happened. Never waits for the disk, never raises."""
        fault: AuditFault | None = None
        with self._lock:
            stamp = self._stamp()
            waiting_us = stamp.offset_us - self._queue[0][0].offset_us if self._queue else 0
            if self._closing or len(self._queue) >= MAX_QUEUED_RECORDS:
                self._count_lost(stamp)
                fault = AuditFault.QUEUE_FULL
            else:
                self._note_lost(stamp)
                self._queue.append((stamp, facts))
                self._wake.notify()
                if waiting_us > MAX_WAIT_S * 1_000_000:
                    fault = AuditFault.TOO_SLOW
        if fault is not None and not self._closing:
            self._fail(fault, f"{len(self._queue)} records wait for the disk")

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> Head:
        """Write what is queued, for at most so long, and end the thread. Returns the head."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        with self._lock:
            left = len(self._queue)
            self.records_lost += left
            self._queue.clear()
        if left:
            self._log.error("audit_records_lost", count=left, reason=self._fault)
        self._log_head()
        return self.head

    # In any thread.

    def _stamp(self) -> Stamp:
        offset_us = max(0, int((self._monotonic() - self._began) * 1_000_000))
        return Stamp.at(self._utc_now(), offset_us)

    def _count_lost(self, stamp: Stamp) -> None:
        if not self._lost:
            self._lost_since_us = stamp.offset_us
        self._lost += 1
        self.records_lost += 1

    def _note_lost(self, stamp: Stamp) -> None:
        """Put ``records_lost`` where the lost ones would be. May exceed the queue by one."""
        if self._lost:
            lost = RecordsLost(count=self._lost, since_offset_us=self._lost_since_us)
            self._queue.append((stamp, lost))
            self._lost = 0

    def _fail(self, fault: AuditFault, detail: str) -> None:
        """Tell of an outage, once."""
        with self._lock:
            first = self._fault is None
            if first:
                self._fault = fault
                self.failures += 1
        if first:
            self._log.error("audit_failed", fault=fault, detail=detail)
            self._on_failure(fault)

    # In the constructor and then in the writing thread.

    def _open_first(self, failure: OnAuditFailure) -> None:
        try:
            self._open()
        except (AuditError, OSError) as error:
            if failure is OnAuditFailure.STOP:
                self._chain_file.close()
                raise _as_audit_error(error, self._path) from None
            if isinstance(error, DamagedError):
                self._broken = str(error)
            self._fail(_fault_of(error), str(error))

    def _open(self) -> None:
        self._chain_file.open(self._opening)
        self._opened = True
        self._log_head()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wait_for_work()
                if self._lost and len(self._queue) < MAX_QUEUED_RECORDS // 2:
                    self._note_lost(self._stamp())
                if self._closing and not self._queue:
                    break
                batch = list(itertools.islice(self._queue, MAX_BATCH_RECORDS))
                last_attempt = self._closing
            if not self._try(batch):
                if last_attempt:
                    break
                self._pause()
        with contextlib.suppress(OSError):
            self._chain_file.sync()
        self._chain_file.close()

    def _wait_for_work(self) -> None:
        """Wait for a record, the end, or until the disk must be waited for."""
        while not (self._queue or self._closing or self._lost) and self._opened:
            if self._unsynced_since is None:
                self._wake.wait()
            elif not self._wake.wait(SYNC_INTERVAL_S):
                return

    def _pause(self) -> None:
        """Wait before the next attempt; the end of the program brings the last one forward."""
        with self._lock:
            self._wake.wait_for(lambda: self._closing, self._retry_s)

    def _try(self, batch: list[_Stamped]) -> bool:
        """Write a batch; True if nothing of it needs to be tried again."""
        try:
            self._make_ready(batch)
            if batch:
                self._chain_file.append(batch, sync=self._fsync is Fsync.EACH)
                self._done(len(batch))
            self._sync_in_time()
            self._recovered()
        except FactsError as error:
            self._drop_bad(batch)
            self._fail(AuditFault.INTERNAL_ERROR, str(error))
        except DamagedError as error:
            self._broken = str(error)
            self._fail(_fault_of(error), str(error))
            return False
        except (AuditError, OSError) as error:
            self._fail(_fault_of(error), str(error))
            return False
        except Exception as error:  # a fault of ours must not end the audit trail silently
            self._log.unexpected("audit_fault", error)
            self._fail(AuditFault.INTERNAL_ERROR, type(error).__name__)
            return False
        return True

    def _make_ready(self, batch: list[_Stamped]) -> None:
        if self._broken is not None:
            stamp = (batch[0][0] if batch else self._stamp()) if self._opened else self._opening
            self._chain_file.restart(stamp, self._broken)
            self._broken, self._opened = None, True
        elif not self._opened:
            self._open()

    def _done(self, count: int) -> None:
        """A batch is in the log."""
        with self._lock:
            for _ in range(count):
                self._queue.popleft()
        self.records_written += count
        now = self._monotonic()
        if self._fsync is Fsync.INTERVAL and self._unsynced_since is None:
            self._unsynced_since = now
        if now - self._head_logged_at >= HEAD_INTERVAL_S:
            self._log_head()

    def _sync_in_time(self) -> None:
        since = self._unsynced_since
        if since is not None and self._monotonic() - since >= SYNC_INTERVAL_S:
            self._chain_file.sync()
            self._unsynced_since = None

    def _recovered(self) -> None:
        """Writing works; the outage is over once the queue is on its way to empty."""
        with self._lock:
            fault = self._fault
            if fault is None or len(self._queue) >= MAX_QUEUED_RECORDS // 2:
                return
            self._fault = None
        self._log.info("audit_recovered", reason=fault, records_lost=self.records_lost)

    def _drop_bad(self, batch: list[_Stamped]) -> None:
        """Give up the records that can never be written; the others follow in the next batch."""
        good = [stamped for stamped in batch if _encodes(stamped[1])]
        with self._lock:
            for _ in batch:
                self._queue.popleft()
            self._queue.extendleft(reversed(good))
            for _ in range(len(batch) - len(good)):
                self._count_lost(batch[0][0])

    def _log_head(self) -> None:
        """Tell the log, which goes elsewhere, what nobody can change in the file from now on."""
        self._head_logged_at = self._monotonic()
        head = self.head
        if head.sequence and head != self._head_logged:
            self._head_logged = head
            self._log.info("audit_head", sequence=head.sequence, hash=head.hash.hex())


def _encodes(facts: Facts) -> bool:
    try:
        encode_facts(facts)
    except FactsError:
        return False
    return True


def _fault_of(error: AuditError | OSError) -> AuditFault:
    if isinstance(error, DamagedError):
        return AuditFault.DAMAGED
    if isinstance(error, LockedError):
        return AuditFault.LOCKED
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return AuditFault.DISK_FULL
    return AuditFault.UNWRITABLE


def _as_audit_error(error: AuditError | OSError, path: Path) -> AuditError:
    if isinstance(error, AuditError):
        return error
    return AuditError(f"{path}: {error.strerror or type(error).__name__}")
