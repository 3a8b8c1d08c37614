"""Everything that one run of the demonstration measured. Times in seconds since its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from qproxy.demo.facts import GatewayFacts

#: Faults of connections that are kept with their text; all of them are counted.
MAX_FAULTS: Final = 20


@dataclass(slots=True)
class Traffic:
    """All connections together, as the client side saw them.

    Attributes:
        sent_bytes: application bytes handed to gw-a's listener, requests included.
        received_bytes: application bytes that came back from it.
        expected_bytes: what should have been verified.
        verified_bytes: what was.
        opened: connections.
        failed: connections that were refused, reset, cut short, silent or wrong.
        faults: what was wrong with the first few.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    expected_bytes: int = 0
    verified_bytes: int = 0
    opened: int = 0
    failed: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def lost_bytes(self) -> int:
        """Bytes that should have been verified and were not."""
        return self.expected_bytes - self.verified_bytes

    def fail(self, fault: str) -> None:
        """Count a failed connection."""
        self.failed += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)


@dataclass(slots=True)
class PartRecord:
    """One part of the load.

    Attributes:
        name: for people.
        mode: the mode it was to run in.
        modes_seen: modes of the epochs that were committed under it.
        epochs: epochs that were committed under it, the long-lived stream running all the time.
        busy_epochs: of them, those committed during bulk transfers and short connections.
        up_bytes: bulk data towards the service, verified by hash.
        up_s: how long that took.
        down_bytes: bulk data from the service, verified byte for byte.
        down_s: how long that took.
        connections: short connections, each request and response verified.
        connections_s: how long they took.
    """

    name: str
    mode: str
    modes_seen: list[str] = field(default_factory=list)
    epochs: int = 0
    busy_epochs: int = 0
    up_bytes: int = 0
    up_s: float = 0.0
    down_bytes: int = 0
    down_s: float = 0.0
    connections: int = 0
    connections_s: float = 0.0


@dataclass(slots=True)
class HeartbeatRecord:
    """The long-lived stream.

    Attributes:
        frames_sent: numbered frames sent.
        frames_verified: of them, came back in order and whole.
        frame_bytes: size of each.
        began_at_s: its first frame.
        ended_at_s: its clean end; None where it had none.
        longest_gap_s: longest time between two frames that came back.
        longest_gap_at_s: when that gap ended.
        fault: what was wrong with it, or None.
    """

    frame_bytes: int
    frames_sent: int = 0
    frames_verified: int = 0
    began_at_s: float | None = None
    ended_at_s: float | None = None
    longest_gap_s: float = 0.0
    longest_gap_at_s: float | None = None
    fault: str | None = None


@dataclass(slots=True)
class GatewayRecord:
    """One gateway.

    Attributes:
        facts: from its log.
        exit_code: after SIGTERM; None where it never came so far.
        killed: it did not end in time and was killed.
    """

    facts: GatewayFacts
    exit_code: int | None = None
    killed: bool = False


@dataclass(slots=True)
class Record:
    """One whole run.

    Attributes:
        near: gw-a, which clients connect to.
        far: gw-b, beside the service.
        traffic: all connections together.
        heartbeat: the long-lived stream.
        parts: the load before, during and after the cut, as far as it came.
        cut_at_s: when the quantum link was cut.
        fall_back_s: from there to classical-only epochs on both gateways.
        restored_at_s: when it was restored.
        climb_back_s: from there to hybrid epochs on both gateways.
        duration_s: the whole run.
        service_complaints: lines in the service's or the KMEs' log that should not be there.
        aborted: why the run was given up, or None.
    """

    near: GatewayRecord
    far: GatewayRecord
    traffic: Traffic
    heartbeat: HeartbeatRecord
    parts: list[PartRecord] = field(default_factory=list)
    cut_at_s: float | None = None
    fall_back_s: float | None = None
    restored_at_s: float | None = None
    climb_back_s: float | None = None
    duration_s: float = 0.0
    service_complaints: list[str] = field(default_factory=list)
    aborted: str | None = None

    @property
    def gateways(self) -> tuple[GatewayRecord, GatewayRecord]:
        """Both, the near one first."""
        return self.near, self.far


def rate(amount: float, duration_s: float) -> float | None:
    """Amount per second; None where no time passed."""
    return amount / duration_s if duration_s > 0 else None
