"""A pre-shared pad: keys from a directory that was written ahead on both sites.

Nothing quantum happened here: the keys are random numbers that somebody carried over.

One site's directory, and the other site's, which holds the same files with the roles swapped::

    site-a/master/5f2d...-00000001.key    ==    site-b/slave/5f2d...-00000001.key
    site-a/slave/91c0...-00000001.key     ==    site-b/master/91c0...-00000001.key

``master`` holds the keys for tunnels that this site dials, ``slave`` those for tunnels that the
other site dials. Two halves, because either site may be the master SAE: with one heap both could
take the same key for different ends.

Theory of operation: a key is used once, whatever happens. To take keys is four steps, and a step
begins only when the one before is done for all of them:

1. each file is renamed into ``claimed``, which exactly one process can do;
2. the directories are synced: from here on no crash, of the program or of the machine, brings a
   file back to where it could be taken again;
3. the files are read, overwritten with zeros, synced and unlinked;
4. only then are the keys handed out.

A crash before step 2 may leave a key where it was, but then nobody has seen it. A crash after it
loses the key. What a crash leaves in ``claimed`` is wiped by the next process that looks, once it
is a minute old, and is never read again.

Overwriting is as good as the file system under it. One that writes in place (ext4, XFS without
reflinks) on a magnetic disk keeps no copy. Journals of data, copy-on-write (Btrfs, ZFS), snapshots,
backups and the spare blocks of flash may keep one, and nothing here can reach it: put the directory
on an encrypted file system or a tmpfs where that matters.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_QKD_KEY_BYTES, QkdKey, wipe_keys
from qproxy.sources.base import SourceStatus, check_request

#: Most keys in one half of a directory.
MAX_KEYS_PER_DIRECTORY = 100_000
#: Most keys taken in one call: each costs the disk a sync, and a caller does not wait long.
MAX_KEYS_AT_ONCE = 8
#: Keys left in a pad that are few: sixteen hours' worth, at one a minute.
LOW_PAD_KEYS = 1000
#: Age at which a claim counts as left by a crash, in seconds.
STALE_CLAIM_S = 60.0
#: How long a count of the files is good for, in seconds; what we take ourselves is known.
RECOUNT_S = 30.0

_MASTER, _SLAVE, _CLAIMED = "master", "slave", "claimed"
_SUFFIX = ".key"
#: 16 hex digits of the batch, then the number. Nothing else ever becomes part of a path.
_KEY_ID = re.compile(r"[0-9a-f]{16}-[0-9]{8}")


@dataclass(frozen=True, slots=True)
class PadFacts:
    """What lies in a directory.

    Attributes:
        master_keys: keys left for tunnels that this site dials.
        slave_keys: keys left for tunnels that the other site dials.
        key_size_bits: size of each; 0 where none is left.
    """

    master_keys: int
    slave_keys: int
    key_size_bits: int


def inspect_pad(directory: Path) -> PadFacts:
    """Look at a directory and take nothing.

    Raises:
        KeySourceError: it is not there, or may be read by others.
    """
    source = FileSource("", directory)
    master, slave = source._key_ids(_MASTER), source._key_ids(_SLAVE)
    half, first = (_MASTER, master) if master else (_SLAVE, slave)
    return PadFacts(len(master), len(slave), source._size_bits(half, first))


class FileSource:
    """A :class:`~qproxy.sources.base.KeySource` over one site's directory.

    Args:
        name: the source's key in ``key_sources``.
        directory: one side of what :func:`make_key_directories` made; mode 0700, ours.
        dials: this site dials, so that its ``master`` half is what is left; else its ``slave``.
    """

    def __init__(self, name: str, directory: Path, *, dials: bool = True) -> None:
        self.name = name
        self._directory = directory
        self._half = _MASTER if dials else _SLAVE
        self._lock = threading.Lock()
        self._next: deque[str] = deque()
        self._count = self._size = 0
        self._counted_at = -RECOUNT_S

    async def status(self) -> SourceStatus:
        """How many keys are left to this site, and their size."""
        return await trio.to_thread.run_sync(self._status)

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """Take up to ``number`` of the lowest-numbered keys of the master half."""
        return await trio.to_thread.run_sync(self._take_next, number, size_bits)

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """Take keys of the slave half. Either all of them are there, or none is touched."""
        return await trio.to_thread.run_sync(self._take_named, list(key_ids), size_bits)

    async def aclose(self) -> None:
        """Nothing is open between calls."""
        await trio.lowlevel.checkpoint()

    # Everything below runs in a worker thread, and any number of processes may run it at once.

    def _status(self) -> SourceStatus:
        with self._lock:
            self._check_permissions()
            if time.monotonic() - self._counted_at >= RECOUNT_S:
                self._recount()
            left, size_bits = self._count, self._size
        return SourceStatus(
            stored_key_count=left,
            max_key_count=MAX_KEYS_PER_DIRECTORY,
            key_size_bits=size_bits,
            max_key_per_request=MAX_KEYS_AT_ONCE,
            min_key_size_bits=size_bits,
            max_key_size_bits=size_bits,
            source_kme_id="file",
            target_kme_id="file",
        )

    def _recount(self) -> None:
        """List the half in use, and clear away what crashes have left."""
        names = self._key_ids(self._half)
        if self._half is _MASTER:
            self._next = deque(names)
        self._count = len(names)
        self._size = self._size_bits(self._half, names)
        self._counted_at = time.monotonic()
        claimed = self._directory / _CLAIMED
        with _still_there(), _disk_errors(claimed / "x"):
            left = list(claimed.iterdir())
        for path in left:
            with contextlib.suppress(OSError):
                if path.suffix == _SUFFIX and time.time() - path.lstat().st_ctime > STALE_CLAIM_S:
                    _wipe_file(path)

    def _take_next(self, number: int, size_bits: int) -> list[QkdKey]:
        check_request(number, size_bits)
        size_bytes = size_bits // 8
        with self._lock:
            self._check_permissions()
            claimed: list[str] = []
            fresh = False
            while len(claimed) < min(number, MAX_KEYS_AT_ONCE):
                if not self._next:
                    if fresh:
                        break
                    # Somebody may have put more there, or have taken what was listed.
                    self._next, fresh = deque(self._key_ids(_MASTER)), True
                    continue
                key_id = self._next[0]
                with contextlib.suppress(_Gone):
                    try:
                        self._claim(_MASTER, key_id, size_bytes)
                    except KeySourceError:
                        if claimed:
                            break  # what is claimed is given; the next call meets the bad one
                        raise
                    claimed.append(key_id)
                self._next.popleft()
            if not claimed:
                raise KeySourceError(Reason.KEYS_EXHAUSTED, "no key is left in the pad")
            return self._read(_MASTER, claimed, size_bytes)

    def _take_named(self, key_ids: list[str], size_bits: int) -> list[QkdKey]:
        check_request(len(key_ids), size_bits)
        size_bytes = size_bits // 8
        with self._lock:
            self._check_permissions()
            # The IDs are a peer's, so they are judged before they become file names.
            plausible = len(set(key_ids)) == len(key_ids) and all(map(_KEY_ID.fullmatch, key_ids))
            if not plausible or not all(os.path.lexists(self._path(_SLAVE, i)) for i in key_ids):
                raise _not_found()
            claimed: list[str] = []
            try:
                for key_id in key_ids:
                    self._claim(_SLAVE, key_id, size_bytes)
                    claimed.append(key_id)
            except (_Gone, KeySourceError) as error:
                # What is claimed already cannot go back: somebody may have seen it go.
                self._drop(_SLAVE, claimed)
                if isinstance(error, _Gone):
                    raise _not_found() from None
                raise
            return self._read(_SLAVE, claimed, size_bytes)

    def _claim(self, half: str, key_id: str, size_bytes: int) -> None:
        """Take one key out of everybody's reach (step 1).

        Raises:
            _Gone: another process has it.
            KeySourceError: the file is not what it should be, or the disk fails.
        """
        found = self._path(half, key_id)
        with _disk_errors(found):
            _check_file(found, found.lstat(), size_bytes)
            _rename(found, self._path(_CLAIMED, key_id))
        if half is self._half:
            self._count = max(0, self._count - 1)

    def _read(self, half: str, key_ids: Sequence[str], size_bytes: int) -> list[QkdKey]:
        """The keys of claimed files, which are gone from the disk then (steps 2 to 4)."""
        keys: list[QkdKey] = []
        try:
            self._sync(half)
            for key_id in key_ids:
                claimed = self._path(_CLAIMED, key_id)
                with _still_there(), _disk_errors(claimed):
                    keys.append(QkdKey(key_id, _read_exactly(claimed, size_bytes), self.name))
                    _wipe_file(claimed)
        except BaseException:
            wipe_keys(keys)
            self._drop(half, key_ids)
            raise
        return keys

    def _drop(self, half: str, key_ids: Sequence[str]) -> None:
        """Wipe claimed files that nobody will read."""
        with contextlib.suppress(KeySourceError, OSError):
            self._sync(half)
        for key_id in key_ids:
            with contextlib.suppress(OSError):
                _wipe_file(self._path(_CLAIMED, key_id))

    def _sync(self, half: str) -> None:
        for directory in (self._directory / _CLAIMED, self._directory / half):
            with _still_there(), _disk_errors(directory / "x"):
                _sync_directory(directory)

    def _size_bits(self, half: str, names: Sequence[str]) -> int:
        for key_id in names:
            path = self._path(half, key_id)
            with contextlib.suppress(_Gone), _disk_errors(path):
                return path.lstat().st_size * 8
        return 0

    def _key_ids(self, half: str) -> list[str]:
        self._check_permissions()
        directory = self._directory / half
        with _still_there(), _disk_errors(directory), os.scandir(directory) as entries:
            found = []
            for entry in entries:
                key_id = entry.name.removesuffix(_SUFFIX)
                if key_id != entry.name and _KEY_ID.fullmatch(key_id):
                    found.append(key_id)
                if len(found) > MAX_KEYS_PER_DIRECTORY:
                    raise KeySourceError(
                        Reason.KME_UNAVAILABLE,
                        f"{directory} holds more than {MAX_KEYS_PER_DIRECTORY} keys",
                        retryable=False,
                    )
        return sorted(found)

    def _check_permissions(self) -> None:
        for directory in (self._directory, *(self._directory / half for half in _HALVES)):
            try:
                state = directory.lstat()
            except OSError as error:
                raise KeySourceError(
                    Reason.KME_UNREACHABLE, f"{directory}: {error.strerror}"
                ) from None
            if not stat.S_ISDIR(state.st_mode):
                raise _unfit(f"{directory} is no directory")
            _check_private(directory, state, 0o700)

    def _path(self, half: str, key_id: str) -> Path:
        return self._directory / half / f"{key_id}{_SUFFIX}"


_HALVES = (_MASTER, _SLAVE, _CLAIMED)


def make_key_directories(
    site_a: Path,
    site_b: Path,
    *,
    number: int,
    size_bits: int = 256,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> None:
    """Write the two matching directories of a trial.

    Carry ``site_b`` to the other site over a channel you trust, and delete it here.

    Args:
        site_a: made with mode 0700; must not exist.
        site_b: the same.
        number: keys for each direction, at most MAX_KEYS_PER_DIRECTORY.
        size_bits: size of each key, a multiple of 8, at most MAX_QKD_KEY_BYTES.
        random_bytes: where keys and batch names come from.

    Raises:
        ValueError: ``number`` or ``size_bits`` is out of range.
        FileExistsError: a directory exists; old and new keys are never mixed.
        OSError: the disk fails; what was begun stays under the name with ``.unfinished``.
    """
    if not 1 <= number <= MAX_KEYS_PER_DIRECTORY:
        raise ValueError(f"expected 1 to {MAX_KEYS_PER_DIRECTORY} keys, got {number}")
    if size_bits % 8 or not 8 <= size_bits <= MAX_QKD_KEY_BYTES * 8:
        raise ValueError(
            f"expected a size in bits, a multiple of 8 up to {MAX_QKD_KEY_BYTES * 8},"
            f" got {size_bits}"
        )
    making = {site: site.with_name(f"{site.name}.unfinished") for site in (site_a, site_b)}
    for site, unfinished in making.items():
        if os.path.lexists(site):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(site))
        for directory in (unfinished, *(unfinished / half for half in _HALVES)):
            directory.mkdir(mode=0o700)
    for master, slave in ((site_a, site_b), (site_b, site_a)):
        batch = random_bytes(8).hex()
        for index in range(1, number + 1):
            name = f"{batch}-{index:08d}{_SUFFIX}"
            key = random_bytes(size_bits // 8)
            _write_new(making[master] / _MASTER / name, key)
            _write_new(making[slave] / _SLAVE / name, key)
    # Both are whole before either has its name, so that no half of a pad is ever carried away.
    os.sync()
    for site, unfinished in making.items():
        unfinished.rename(site)
        _sync_directory(site.parent)


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _check_file(path: Path, state: os.stat_result, size_bytes: int) -> None:
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
        raise _unfit(f"{path} is no plain file with one name")
    _check_private(path, state, 0o600)
    if state.st_size != size_bytes:
        raise KeySourceError(
            Reason.KEY_INVALID,
            f"a key file holds {state.st_size} bytes, expected {size_bytes}",
            retryable=False,
        )


def _check_private(path: Path, state: os.stat_result, mode: int) -> None:
    if state.st_uid != os.geteuid():
        raise _unfit(f"{path} belongs to user {state.st_uid}, expected {os.geteuid()}")
    if stat.S_IMODE(state.st_mode) & ~mode:
        raise _unfit(f"{path} has mode {stat.S_IMODE(state.st_mode):04o}, expected {mode:04o}")


def _read_exactly(path: Path, size_bytes: int) -> bytearray:
    key = bytearray(size_bytes)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        # Once more, of what was opened: it is this file that is believed.
        _check_file(path, os.fstat(descriptor), size_bytes)
        count = file.readinto(key)
    if count != size_bytes or not any(key):
        key[:] = bytes(size_bytes)
        raise KeySourceError(Reason.KEY_INVALID, "a key file is short or all zero")
    return key


def _rename(source: Path, target: Path) -> None:
    source.rename(target)


def _wipe_file(path: Path) -> None:
    """Overwrite a file as far as the file system lets us, then unlink it."""
    # A file that cannot be overwritten (a full copy-on-write file system) must still go.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _overwrite(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
    path.unlink()


def _overwrite(descriptor: int, size_bytes: int) -> None:
    zeros = bytes(min(size_bytes, MAX_QKD_KEY_BYTES))
    at = 0
    while at < size_bytes:
        at += os.pwrite(descriptor, zeros[: size_bytes - at], at)
    os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Gone(Exception):  # noqa: N818 - the ordinary end of a race, not an error
    """A key's file is not there any more."""


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says of ``path`` into a KeySourceError or, if it is not there, _Gone."""
    try:
        yield
    except FileNotFoundError:
        raise _Gone from None
    except OSError as error:
        raise KeySourceError(Reason.KME_UNAVAILABLE, f"{path.parent}: {error.strerror}") from None


@contextlib.contextmanager
def _still_there() -> Iterator[None]:
    """For what nobody but us may remove: that it is gone is an error."""
    try:
        yield
    except _Gone:
        raise _unfit("the key directory was changed by somebody else") from None


def _not_found() -> KeySourceError:
    return KeySourceError(
        Reason.KEY_NOT_FOUND, "one or more keys are not in the directory", retryable=False
    )


def _unfit(message: str) -> KeySourceError:
    return KeySourceError(Reason.KME_UNAVAILABLE, message, retryable=False)
