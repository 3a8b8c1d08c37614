"""Keys from a directory that was written ahead on both sites. For trials.

Nothing quantum happened here: every key is labelled simulated.

One site's directory, and the other site's, which holds the same files with the roles swapped::

    site-a/master/5f2d...-00000001.key    ==    site-b/slave/5f2d...-00000001.key
    site-a/slave/91c0...-00000001.key     ==    site-b/master/91c0...-00000001.key

Each site takes from its own ``master`` and is told IDs out of its ``slave``. Two halves, because
either site may be the master SAE: with one heap both could take the same key for different ends.

A key is claimed by renaming its file into ``claimed``, which exactly one process can do, and
the claim is made durable before the key is used. A crash between claim and use loses the key;
nothing ever brings one back. Files are unlinked once read. Their blocks are not overwritten:
file systems and flash do not promise that this would reach them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_QKD_KEY_BYTES, QkdKey, wipe_keys
from qproxy.sources.base import MAX_KEYS_PER_CALL, SourceStatus

#: Most keys in one half of a directory.
MAX_KEYS_PER_DIRECTORY = 100_000

_MASTER, _SLAVE, _CLAIMED = "master", "slave", "claimed"
_SUFFIX = ".key"
#: 16 hex digits of the batch, then the number. Nothing else ever becomes part of a path.
_KEY_ID = re.compile(r"[0-9a-f]{16}-[0-9]{8}")


class FileSource:
    """A :class:`~qproxy.sources.base.KeySource` over one site's directory.

    Args:
        name: the source's key in ``key_sources``.
        directory: one side of what :func:`make_key_directories` made; mode 0700, ours.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._directory = directory

    async def status(self) -> SourceStatus:
        """How many keys are left to take as master, and their size."""
        return await trio.to_thread.run_sync(self._status)

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """Take the ``number`` lowest-numbered keys of the master half."""
        return await trio.to_thread.run_sync(self._take_next, number, size_bits)

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """Take keys of the slave half. Either all of them are there, or none is touched."""
        return await trio.to_thread.run_sync(self._take_named, list(key_ids), size_bits)

    async def aclose(self) -> None:
        """Nothing is open between calls."""
        await trio.lowlevel.checkpoint()

    # Everything below runs in a worker thread, and any number of processes may run it at once.

    def _status(self) -> SourceStatus:
        names = self._key_ids(_MASTER)
        size_bits = 0
        for key_id in names:
            path = self._path(_MASTER, key_id)
            with contextlib.suppress(_Gone), _disk_errors(path):
                size_bits = path.lstat().st_size * 8
                break
        return SourceStatus(
            stored_key_count=len(names),
            max_key_count=MAX_KEYS_PER_DIRECTORY,
            key_size_bits=size_bits,
            max_key_per_request=MAX_KEYS_PER_CALL,
            min_key_size_bits=size_bits,
            max_key_size_bits=size_bits,
            source_kme_id="file",
            target_kme_id="file",
            simulated=True,
        )

    def _take_next(self, number: int, size_bits: int) -> list[QkdKey]:
        size_bytes = _check_request(number, size_bits)
        candidates = self._key_ids(_MASTER)
        if len(candidates) < number:  # so that a request that cannot be met claims nothing
            raise _exhausted(number)
        keys: list[QkdKey] = []
        try:
            for key_id in candidates:
                with contextlib.suppress(_Gone):
                    keys.append(self._claim(_MASTER, key_id, size_bytes))
                if len(keys) == number:
                    return keys
        except KeySourceError:
            wipe_keys(keys)
            raise
        wipe_keys(keys)
        raise _exhausted(number)

    def _take_named(self, key_ids: list[str], size_bits: int) -> list[QkdKey]:
        size_bytes = _check_request(len(key_ids), size_bits)
        self._check_permissions()
        # The IDs are a peer's, so they are judged before they become file names.
        plausible = len(set(key_ids)) == len(key_ids) and all(map(_KEY_ID.fullmatch, key_ids))
        if not plausible or not all(os.path.lexists(self._path(_SLAVE, i)) for i in key_ids):
            raise _not_found()
        keys: list[QkdKey] = []
        try:
            for key_id in key_ids:
                keys.append(self._claim(_SLAVE, key_id, size_bytes))
        except _Gone:
            wipe_keys(keys)
            raise _not_found() from None
        except KeySourceError:
            wipe_keys(keys)
            raise
        return keys

    def _claim(self, half: str, key_id: str, size_bytes: int) -> QkdKey:
        """Take one key for good.

        Raises:
            _Gone: another process has it.
            KeySourceError: the file is not what it should be, or the disk fails.
        """
        found, claimed = self._path(half, key_id), self._path(_CLAIMED, key_id)
        with _disk_errors(found):
            _check_file(found, size_bytes)
            found.rename(claimed)
        with _still_there(), _disk_errors(claimed):
            _sync_directory(claimed.parent)
            _sync_directory(found.parent)
            key = _read_exactly(claimed, size_bytes)
            claimed.unlink()
        return QkdKey(key_id, key, source=self.name, simulated=True)

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
        OSError: the disk fails.
    """
    if not 1 <= number <= MAX_KEYS_PER_DIRECTORY:
        raise ValueError(f"expected 1 to {MAX_KEYS_PER_DIRECTORY} keys, got {number}")
    if size_bits % 8 or not 8 <= size_bits <= MAX_QKD_KEY_BYTES * 8:
        raise ValueError(
            f"expected a size in bits, a multiple of 8 up to {MAX_QKD_KEY_BYTES * 8},"
            f" got {size_bits}"
        )
    for site in (site_a, site_b):
        site.mkdir(mode=0o700)
        for half in _HALVES:
            (site / half).mkdir(mode=0o700)
    for master, slave in ((site_a, site_b), (site_b, site_a)):
        batch = random_bytes(8).hex()
        for index in range(1, number + 1):
            name = f"{batch}-{index:08d}{_SUFFIX}"
            key = random_bytes(size_bits // 8)
            _write_new(master / _MASTER / name, key)
            _write_new(slave / _SLAVE / name, key)


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _check_request(number: int, size_bits: int) -> int:
    size_ok = size_bits % 8 == 0 and 8 <= size_bits <= MAX_QKD_KEY_BYTES * 8
    if not size_ok or not 1 <= number <= MAX_KEYS_PER_CALL:
        raise KeySourceError(
            Reason.KME_BAD_REQUEST,
            f"expected 1 to {MAX_KEYS_PER_CALL} keys of a multiple of 8 bits,"
            f" got {number} of {size_bits}",
            retryable=False,
        )
    return size_bits // 8


def _check_file(path: Path, size_bytes: int) -> None:
    state = path.lstat()
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
        count = file.readinto(key)
    if count != size_bytes or not any(key):
        key[:] = bytes(size_bytes)
        raise KeySourceError(Reason.KEY_INVALID, "a key file is short or all zero")
    return key


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


def _exhausted(number: int) -> KeySourceError:
    return KeySourceError(Reason.KEYS_EXHAUSTED, f"fewer than {number} keys are left")


def _not_found() -> KeySourceError:
    return KeySourceError(
        Reason.KEY_NOT_FOUND, "one or more keys are not in the directory", retryable=False
    )


def _unfit(message: str) -> KeySourceError:
    return KeySourceError(Reason.KME_UNAVAILABLE, message, retryable=False)
