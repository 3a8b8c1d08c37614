"""What the process asks of the operating system, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PR_GET_DUMPABLE = 3


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_no_core_is_dumped_to_a_file_or_into_a_program() -> None:
    code = (
        "import ctypes, resource\n"
        "from qproxy.runtime.hardening import disable_core_dumps\n"
        "disable_core_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE),"
        f" ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "(0, 0) 0\n"
