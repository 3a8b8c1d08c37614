"""How much the demonstration moves, and how long each step may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qproxy.errors import QproxyError

MB: Final = 1_000_000

DEFAULT_MEGABYTES: Final = 300
DEFAULT_CONNECTIONS: Final = 2000

#: Connections that carry the bulk data of one direction side by side.
BULK_STREAMS: Final = 4
#: Short connections open at once.
SHORT_CONCURRENCY: Final = 32
#: What a short connection sends and wants back, in bytes.
SHORT_BYTES: Final = 1024
#: How often the tunnel rekeys by time, in seconds.
REKEY_INTERVAL_S: Final = 1.0
#: And by application bytes under one key, so that bulk data is sure to meet a rekey. The tunnel
#: ends at twice as many, which leaves time for the exchange at any speed that was ever seen.
REKEY_BYTES: Final = 64 * 1024 * 1024
#: Each part lasts until its load is done and so many epochs were committed under it.
MIN_EPOCHS_PER_PART: Final = 2

#: A child that has just been started says that it is ready, in seconds.
START_TIMEOUT_S: Final = 20.0
#: The first tunnel is up on both gateways.
TUNNEL_TIMEOUT_S: Final = 15.0
#: From the cut to classical-only on both gateways.
FALL_BACK_TIMEOUT_S: Final = 10.0
#: From the restored link to hybrid on both gateways, and to a link that both call healthy.
CLIMB_BACK_TIMEOUT_S: Final = 20.0
#: MIN_EPOCHS_PER_PART epochs, after the load is done.
EPOCHS_TIMEOUT_S: Final = 15.0
#: One connection makes no progress at all.
STALL_TIMEOUT_S: Final = 15.0
#: A gateway ends after SIGTERM.
STOP_TIMEOUT_S: Final = 10.0
#: A child ends while the demonstration is given up, before it is killed.
GIVE_UP_TIMEOUT_S: Final = 2.0
#: Longest silence on the long-lived stream that still counts as running on.
MAX_GAP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks for.

    Attributes:
        megabytes: bulk data in units of 10^6 bytes, half of it in each direction.
        connections: short connections.
        keep_dir: work here and leave everything there; None for a directory that is removed.
        json: print one JSON document on standard output, progress on standard error.
    """

    megabytes: int = DEFAULT_MEGABYTES
    connections: int = DEFAULT_CONNECTIONS
    keep_dir: Path | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the load.

    Attributes:
        name: for people.
        up_bytes: bulk data towards the service.
        down_bytes: bulk data from the service.
        connections: short connections.
    """

    name: str
    up_bytes: int
    down_bytes: int
    connections: int


def split_load(options: DemoOptions) -> tuple[Part, Part, Part]:
    """Half of the load before the cut, a quarter while it lasts, the rest after it."""
    total = options.megabytes * MB
    up, connections = total // 2, options.connections
    down = total - up
    shares = [("hybrid", 2), ("classical-only", 1), ("hybrid again", 1)]
    parts = []
    for name, quarters in shares[:-1]:
        parts.append(
            Part(name, up * quarters // 4, down * quarters // 4, connections * quarters // 4)
        )
    rest = Part(
        shares[-1][0],
        up - sum(part.up_bytes for part in parts),
        down - sum(part.down_bytes for part in parts),
        connections - sum(part.connections for part in parts),
    )
    return parts[0], parts[1], rest


class DemoError(QproxyError):
    """The demonstration cannot go on.

    Attributes:
        hint: what to do next.
        log_lines: last lines of the log that tells more, oldest first.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, log_lines: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.log_lines = log_lines
