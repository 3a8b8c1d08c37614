"""The file that says which process runs a gateway, for ``qproxy reload``.

A process ID in a file may outlive its process and be another's by then. So the gateway keeps the
file locked for as long as it runs, and whoever reads it believes the number only while it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qproxy.errors import QproxyError

#: Everybody may read who runs here; only the owner may write.
PID_FILE_MODE: Final = 0o644
#: Largest file read, in bytes: far more than any process ID needs.
MAX_PID_FILE_BYTES: Final = 32

_PID: Final = re.compile(rb"[1-9][0-9]{0,9}\n?")


class PidFileError(QproxyError):
    """The file cannot be used, or what it says does not allow what was asked.

    Attributes:
        hint: what to do next, or None.
    """

    def __init__(self, path: Path, message: str, hint: str | None = None) -> None:
        super().__init__(f"{path}: {message}")
        self.hint = hint


@contextlib.contextmanager
def held_pid_file(path: Path | None) -> Iterator[None]:
    """Hold a file with our process ID; None for none.

    Raises:
        PidFileError: it cannot be written, or another gateway holds it.
    """
    if path is None:
        yield
        return
    try:
        descriptor = _write(path)
    except OSError as error:
        raise PidFileError(path, f"cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                path.unlink()
        os.close(descriptor)


def running_pid(path: Path) -> int | None:
    """The process ID of the gateway that holds the file; None where none does.

    Raises:
        PidFileError: the file cannot be read, or is no such file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PidFileError(path, f"cannot be read: {error.strerror or error}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PidFileError(path, "is not a file")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            content = os.read(descriptor, MAX_PID_FILE_BYTES)
        else:
            return None  # Left behind by a process that is gone.
    except OSError as error:
        raise PidFileError(path, f"cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
    if not _PID.fullmatch(content):
        raise PidFileError(path, "is locked, but holds no process ID", "is it another's file?")
    return int(content)


def signal_gateway(path: Path, number: signal.Signals) -> int:
    """Send a signal to the gateway that holds the file. Returns its process ID.

    Raises:
        PidFileError: no gateway holds it, or it is not ours to signal.
    """
    pid = running_pid(path)
    if pid is None:
        raise PidFileError(
            path, "no running gateway holds this file", "is it running, with this configuration?"
        )
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise PidFileError(
            path, f"process {pid} cannot be seen from here", "ask in the gateway's own container"
        ) from None
    except PermissionError:
        raise PidFileError(
            path, f"process {pid} belongs to another user", "ask as that user, or as root"
        ) from None
    except OverflowError:
        raise PidFileError(path, "holds no process ID", "is it another's file?") from None
    return pid


def _write(path: Path) -> int:
    """The locked file, put into its place whole. Returns its descriptor."""
    holder = running_pid(path)
    if holder is not None:
        raise PidFileError(
            path, f"process {holder} holds this file", "each gateway needs its own node.pid_file"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, PID_FILE_MODE)
    try:
        os.fchmod(descriptor, PID_FILE_MODE)  # whatever the umask says
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, b"%d\n" % os.getpid())
        temporary.rename(path)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor
