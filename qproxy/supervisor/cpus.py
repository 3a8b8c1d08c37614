"""How many CPUs are there for us: fewer than the machine has, in a container or a cpuset."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from qproxy.config.schema import MAX_WORKERS

#: Where Linux shows control groups, and which ones this process is in.
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_SELF = Path("/proc/self/cgroup")


def worker_count(configured: int) -> int:
    """``node.workers`` as a number; 0 stands for one worker for each CPU that is there for us."""
    return configured or max(1, min(MAX_WORKERS, available_cpus()))


def available_cpus(root: Path = CGROUP_ROOT, of_self: Path = CGROUP_OF_SELF) -> int:
    """CPUs by affinity, or fewer by the quota of a control group; a part of a CPU is none.

    Args:
        root: the mount of the control groups.
        of_self: the file that says which of them we are in.
    """
    cpus = float(len(os.sched_getaffinity(0)))
    for quota in (_quota_v2(root, of_self), _quota_v1(root / "cpu")):
        if quota is not None:
            cpus = min(cpus, quota)
    return max(1, int(cpus))


def _quota_v2(root: Path, of_self: Path) -> float | None:
    """The least quota of our group and those around it, in CPUs."""
    try:
        lines = of_self.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    if inside is None:
        return None
    group = Path(inside.lstrip("/"))
    quotas = []
    for part in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (root / part / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
    return min((quota for quota in quotas if quota > 0), default=None)


def _quota_v1(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    return None
