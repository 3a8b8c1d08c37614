"""What the process asks of the operating system, for its secrets' sake and for its load."""

from __future__ import annotations

import contextlib
import resource


def disable_core_dumps() -> None:
    """No core file: it would hold every key in memory. The limit cannot be raised again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_descriptor_limit() -> None:
    """As many open files as the system allows us: every stream costs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
