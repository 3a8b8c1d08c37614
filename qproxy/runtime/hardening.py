"""What the process asks of the operating system, for its secrets' sake and for its load."""

from __future__ import annotations

import contextlib
import ctypes
import resource

#: prctl(2): whether a core is dumped, and whether processes of the same user may look inside.
_PR_SET_DUMPABLE = 4


def disable_core_dumps() -> None:
    """No core: it would hold every key in memory. The limit cannot be raised again.

    The limit does not hold where the kernel pipes cores into a program (core(5)); on Linux the
    process is made undumpable, too, which also keeps the user's other processes from tracing it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_descriptor_limit() -> None:
    """As many open files as the system allows us: every stream costs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
