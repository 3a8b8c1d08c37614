"""How the kernel's TCP runs over a :mod:`bench.path`: settings of its network namespace alone."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

from bench.path import (
    DEVICE,
    FAR_HOST,
    NEAR_HOST,
    NEAR_SEEN,
    PATH_HOST,
    SEGMENT_BYTES,
    PathSettings,
)
from bench.stats import BenchError

#: Most bytes TCP may have under way on a connection. Debian's 4 MiB cannot fill 100 ms at 1 Gbit/s
#: whatever runs on top.
MAX_BUFFER_BYTES = 64 * 1024 * 1024
#: Part of what fits on a path that a window may have under way: full, but not to the last byte.
WINDOW_SHARE = 0.97
_MIN_WINDOW_SEGMENTS = 10
_METRICS_S = 10.0
_POLL_S = 0.05
_NET_SETTINGS = Path("/proc/sys/net/ipv4")


def set_up(settings: PathSettings) -> None:
    """Lead both sides' connections over the path, with the buffers and the TCP it asks for.

    Raises:
        BenchError: the kernel refuses.
    """
    (_NET_SETTINGS / "tcp_rmem").write_text(f"4096 131072 {MAX_BUFFER_BYTES}")
    (_NET_SETTINGS / "tcp_wmem").write_text(f"4096 16384 {MAX_BUFFER_BYTES}")
    # A connection must not start with what an earlier one learned.
    (_NET_SETTINGS / "tcp_no_metrics_save").write_text("1")
    for command in route_commands(settings):
        _ip(command)
    if settings.window:
        _make_metrics()


def route_commands(settings: PathSettings) -> list[str]:
    """Arguments of ``ip`` for the routes of both sides.

    Congestion control is given to the routes: not every algorithm may be a whole namespace's.
    """
    algorithm = settings.congestion_control
    options = f" congctl lock {algorithm}" if algorithm else ""
    if settings.window:
        options += f" cwnd lock {window_segments(settings)}"
    return [
        f"route replace {host}/32 dev {DEVICE} src {source}{options}"
        for host, source in ((PATH_HOST, NEAR_HOST), (NEAR_SEEN, FAR_HOST))
    ]


def window_segments(settings: PathSettings) -> int:
    """The congestion window that fills a path and leaves its queue empty, in segments.

    So would an ideal congestion control. What small messages then wait for beside a bulk transfer
    is what the programs at the ends keep them waiting, not the network.
    """
    path_bytes = settings.payload_mb_per_s * 1e6 * settings.round_trip_ms / 1000
    return max(_MIN_WINDOW_SEGMENTS, int(WINDOW_SHARE * path_bytes / SEGMENT_BYTES))


def _make_metrics() -> None:
    """Have the kernel keep metrics of the path's addresses: without, it ignores a route's window.

    They come with the end of a connection, while connections may leave some.
    """
    (_NET_SETTINGS / "tcp_no_metrics_save").write_text("0")
    with (
        socket.create_server((FAR_HOST, 0)) as listening,
        socket.create_connection((PATH_HOST, listening.getsockname()[1])) as near,
        listening.accept()[0] as far,
    ):
        near.sendall(b"?")
        far.sendall(far.recv(1))
        near.recv(1)
    deadline = time.monotonic() + _METRICS_S
    while not has_metrics(_ip("tcp_metrics show")):
        if time.monotonic() > deadline:
            raise BenchError("the kernel keeps no metrics of the path")
        time.sleep(_POLL_S)
    (_NET_SETTINGS / "tcp_no_metrics_save").write_text("1")


def has_metrics(shown: str) -> bool:
    """Whether ``ip tcp_metrics`` shows a window for both sides."""
    return all(
        re.search(rf"^{re.escape(host)} .*\bcwnd \d", shown, re.MULTILINE)
        for host in (PATH_HOST, NEAR_SEEN)
    )


def _ip(arguments: str) -> str:
    result = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"ip {arguments}: {result.stderr.strip()}")
    return result.stdout
