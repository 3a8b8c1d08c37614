"""A network namespace of its own for a benchmark, so that it leaves the machine's network alone.

The benchmark's own process cannot leave a user namespace again, so the part that needs one runs as
a program inside: :func:`run_inside` starts it by util-linux's ``unshare``, as root or, where the
kernel allows it, as anybody. The namespace goes when its last process ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.pairs.base import output_of
from bench.stats import BenchError

_ROOT = Path(__file__).resolve().parent.parent
_TRY_TIMEOUT_S = 10.0
#: What a program inside must be able to do: name it in the same words as the reason it cannot.
_TRIAL = "from bench.path import open_device; open_device()"


def unshare_command() -> list[str]:
    """How to start a command in a new network namespace, with loopback up."""
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    up = 'ip link set lo up && exec "$@"'
    return ["unshare", *mapped, "--net", "--", "sh", "-c", up, "sh"]


def missing() -> str | None:
    """Why no namespace with a delayed path can be had here, or None."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    command = [*unshare_command(), sys.executable, "-c", _TRIAL]
    try:
        tried = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=_TRY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "a network namespace with a TUN device could not be made in time"
    if tried.returncode:
        last = tried.stderr.strip().rpartition("\n")[2]
        return f"a network namespace with a TUN device cannot be made here: {last}"
    return None


def tools() -> str:
    """Versions of what makes namespaces and paths."""
    told = [output_of("ip", "-V"), output_of("unshare", "--version")]
    return ", ".join(text.strip() for text in told if text) or "none"


def run_inside(module: str, arguments: Sequence[str]) -> None:
    """Run a module of this package in a new namespace; its standard error is ours.

    Raises:
        BenchError: it failed.
    """
    command = [*unshare_command(), sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except BaseException:
            # It ends what it started before it ends.
            process.terminate()
            raise
    if code:
        raise BenchError(f"{module} ended with {code} in its network namespace")
