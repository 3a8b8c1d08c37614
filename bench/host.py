"""What a result depends on besides the code: the machine and its software."""

from __future__ import annotations

import os
import platform
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend

from qproxy import __version__


@dataclass(frozen=True, slots=True)
class Host:
    """Where a run took place.

    Attributes:
        cpu: model name.
        cores: those this process may use.
        memory_bytes: all of it.
        kernel: name, release and machine.
        python: implementation and version.
        openssl: the one in ``cryptography``, which qproxy uses.
        load_openssl: Python's own, for the check of what peers negotiate.
        qproxy: its version.
    """

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    openssl: str
    load_openssl: str
    qproxy: str

    @classmethod
    def here(cls) -> Host:
        """This machine."""
        cpuinfo = Path("/proc/cpuinfo").read_text()
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        system = platform.uname()
        return cls(
            cpu=model.group(1) if model else platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=f"{system.system} {system.release} {system.machine}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            openssl=backend.openssl_version_text(),
            load_openssl=ssl.OPENSSL_VERSION,
            qproxy=__version__,
        )


class OthersMeter:
    """What others had of the machine meanwhile.

    Args:
        ours: CPU time so far, in seconds, of all that is not others.
    """

    def __init__(self, ours: Callable[[], float]) -> None:
        self._ours = ours
        self._before = ours()
        self._busy, self._idle = cpu_times()

    def values(self) -> dict[str, float]:
        """Since the start: the part of the cores that others had, and the part nobody had."""
        busy, idle = cpu_times()
        ours = self._ours() - self._before
        whole = busy - self._busy + idle - self._idle
        if whole <= 0:
            return {}
        return {
            "others": max(0.0, busy - self._busy - ours) / whole,
            "idle": (idle - self._idle) / whole,
        }


def load_average() -> float:
    """How many processes wanted a core over the last minute."""
    return os.getloadavg()[0]


def cpu_times() -> tuple[float, float]:
    """Seconds all cores have been busy and idle since the start (proc(5), /proc/stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - idle) / ticks, idle / ticks
