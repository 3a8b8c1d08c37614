"""Keeps cores from sleeping, so that waking them up is not what is measured.

On each core runs a program of the scheduling class SCHED_IDLE: it has the core only while nobody
else wants it, and gives it up at once. Virtual machines take tens of microseconds to wake a core.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.children import Child, children

#: Ends with the process that started it, however that ends.
_SPIN = """
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def cores_awake(*, wanted: bool = True) -> Iterator[list[Child]]:
    """Keep every core awake that this process may use; gives the programs that do.

    Args:
        wanted: else do nothing.
    """
    with tempfile.TemporaryDirectory(prefix="qproxy-awake-") as directory, children() as started:
        for core in sorted(os.sched_getaffinity(0)) if wanted else ():
            code = (
                "import os\n"
                f"os.sched_setaffinity(0, {{{core}}})\n"
                "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
                f"{_SPIN}"
            )
            log = Path(directory) / f"{core}.log"
            started.append(Child(f"core {core}", [sys.executable, "-c", code], log))
        yield started
