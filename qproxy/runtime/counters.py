"""Counts of what happened, kept where it happens: plain integers, read by the admin side.

A tally costs one dictionary update per event and none of the events counted here is a data frame,
so nothing on the data path pays for being watched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qproxy.errors import Reason
from qproxy.keys import KeyOrigin
from qproxy.modes import Mode

KeyT = TypeVar("KeyT")


@dataclass(slots=True)
class Tally(Generic[KeyT]):
    """How often each of a closed set of things happened, and which was last.

    Keys are members of enums or tuples of them, so that a tally cannot grow without bound.

    Attributes:
        counts: times each happened.
        last: which happened last, or None.
        last_at: when, in seconds of the runtime's monotonic clock; 0 where nothing happened.
    """

    counts: Counter[KeyT] = field(default_factory=Counter)
    last: KeyT | None = None
    last_at: float = 0.0

    def add(self, key: KeyT, now: float) -> None:
        """Count one."""
        self.counts[key] += 1
        self.last = key
        self.last_at = now


@dataclass(slots=True)
class ListenerCounters:
    """What applications did at one listener.

    Attributes:
        accepted: connections taken from the kernel.
        open: those still in progress.
        full: times that accepting paused because ``max_connections`` were open.
        refused: connections that got no stream, by reason.
        failed: connections whose stream was reset by either side, by reason.
    """

    accepted: int = 0
    open: int = 0
    full: int = 0
    refused: Tally[Reason] = field(default_factory=Tally)
    failed: Tally[Reason] = field(default_factory=Tally)


@dataclass(slots=True)
class TunnelFacts:
    """What is known of one tunnel beside its core.

    Attributes:
        began_at: when its TCP connection was there.
        tls_group: key agreement of the TLS handshake; empty before its end.
        tls_cipher: TLS cipher suite; empty before its end.
        authenticated_at: when the TLS handshake was over; 0 before.
        established_at: when streams could be opened; 0 before.
        mode: mode of the running epoch, or None before the first.
        mode_reason: why the tunnel came to be in this mode.
        mode_at: when it did.
        committed_at: when the running epoch was committed.
        origins: where the keys last mixed in came from, one for each key.
        round_trip_s: smoothed, or None before the first answer to a ping.
    """

    began_at: float = 0.0
    tls_group: str = ""
    tls_cipher: str = ""
    authenticated_at: float = 0.0
    established_at: float = 0.0
    mode: Mode | None = None
    mode_reason: Reason | None = None
    mode_at: float = 0.0
    committed_at: float = 0.0
    origins: tuple[KeyOrigin, ...] = ()
    round_trip_s: float | None = None
