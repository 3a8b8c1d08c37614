"""Whether the audit logs of two gateways tell the same story. Pure.

Epochs are matched by the tunnel's connection ID and the epoch's number; everything both gateways
must have seen the same is compared, and what one sent under an epoch with what the other received
under it. What ordinary misfortune explains (a tunnel cut while bytes were under way) is a remark;
what it cannot explain is a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from qproxy.audit.facts import (
    EndedBy,
    EpochCommittedFacts,
    EpochConfirmedFacts,
    EpochEndedFacts,
    GatewayStarted,
    GatewayStopped,
    LogHeader,
    LogResumed,
    ModeChangedFacts,
    RecordsLost,
    TunnelClosedFacts,
)
from qproxy.audit.record import AuditRecord

#: Most epochs of one log that are compared.
MAX_EPOCHS: Final = 1_000_000
#: Most findings of a kind that are kept; the rest are counted.
MAX_FINDINGS: Final = 1000

#: What both gateways must have recorded alike.
_SAME: Final = (
    "epoch_id",
    "mode",
    "previous_mode",
    "reason",
    "attempt",
    "source_key_ever",
    "reauthenticated",
    "key_digests",
    "key_count",
    "key_kinds",
    "key_paths",
    "keys_are",
    "kem",
    "aead",
    "tls_group",
    "policy_effective",
)


class CompareError(ValueError):
    """The logs are too large to compare at once."""


@dataclass(slots=True)
class Epoch:
    """What one gateway recorded about one epoch."""

    committed: EpochCommittedFacts
    time: str
    confirmed: bool
    ended: EpochEndedFacts | None = None
    mode_changed: ModeChangedFacts | None = None


@dataclass(slots=True)
class TunnelStory:
    """What one gateway recorded about one tunnel.

    Attributes:
        peer: the other gateway, as named here.
        epochs: by number.
        closed: how it ended, None while it is open or where nothing was recorded.
        abandoned: the gateway's run ended, and the tunnel's end was not recorded.
    """

    peer: str
    epochs: dict[int, Epoch] = field(default_factory=dict)
    closed: TunnelClosedFacts | None = None
    abandoned: bool = False


class Story:
    """What one log says about tunnels. Feed it every record of a log that was verified.

    Attributes:
        node: name of the gateway.
        tunnels: by connection ID.
        lost: records that the gateway says it lost.
    """

    def __init__(self) -> None:
        self.node = ""
        self.tunnels: dict[str, TunnelStory] = {}
        self.lost = 0
        self._epochs = 0
        self._open: dict[str, TunnelStory] = {}

    def add(self, record: AuditRecord) -> None:
        """Take in one record. Raises CompareError where there are too many epochs."""
        facts = record.facts
        match facts:
            case LogHeader(node=node):
                self.node = node
            case LogResumed() | GatewayStarted() | GatewayStopped():
                for story in self._open.values():
                    story.abandoned = True
                self._open.clear()
            case RecordsLost(count=count):
                self.lost += count
            case EpochCommittedFacts():
                self._committed(facts, record.stamp.time)
            case EpochConfirmedFacts():
                if (epoch := self._epoch(facts.connection_id, facts.epoch)) is not None:
                    epoch.confirmed = True
            case EpochEndedFacts():
                if (epoch := self._epoch(facts.connection_id, facts.epoch)) is not None:
                    epoch.ended = facts
            case ModeChangedFacts():
                if (epoch := self._epoch(facts.connection_id, facts.epoch)) is not None:
                    epoch.mode_changed = facts
            case TunnelClosedFacts(connection_id=str(connection_id)):
                self._open.pop(connection_id, None)
                if (tunnel := self.tunnels.get(connection_id)) is not None:
                    tunnel.closed = facts

    def join(self, other: Story) -> None:
        """Take in the story of another log of the same gateway, of another worker.

        Raises:
            CompareError: it is another gateway's, or there are too many epochs.
        """
        if other.node != self.node:
            raise CompareError(f"a log of {other.node} stands among those of {self.node}")
        self._count(other._epochs)
        self.tunnels.update(other.tunnels)
        self.lost += other.lost

    def _count(self, epochs: int) -> None:
        self._epochs += epochs
        if self._epochs > MAX_EPOCHS:
            raise CompareError(f"more than {MAX_EPOCHS} epochs; compare fewer files at once")

    def _committed(self, facts: EpochCommittedFacts, time: str) -> None:
        self._count(1)
        tunnel = self.tunnels.get(facts.connection_id)
        if tunnel is None:
            tunnel = self.tunnels[facts.connection_id] = TunnelStory(facts.peer)
            self._open[facts.connection_id] = tunnel
        tunnel.epochs[facts.epoch] = Epoch(facts, time, facts.confirmed)

    def _epoch(self, connection_id: str, number: int) -> Epoch | None:
        tunnel = self.tunnels.get(connection_id)
        return None if tunnel is None else tunnel.epochs.get(number)


@dataclass(slots=True)
class CompareReport:
    """What the comparison found.

    Attributes:
        tunnels: tunnels between the two gateways, in either log.
        epochs: epochs in both logs.
        differences: what nothing explains, most of it by tunnel and epoch.
        remarks: what is explained and worth knowing.
        dropped: findings beyond MAX_FINDINGS of a kind.
    """

    tunnels: int = 0
    epochs: int = 0
    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    dropped: int = 0

    @property
    def agree(self) -> bool:
        """Nothing is left unexplained."""
        return not self.differences

    def differ(self, text: str) -> None:
        """Add a difference."""
        self._add(self.differences, text)

    def remark(self, text: str) -> None:
        """Add a remark."""
        self._add(self.remarks, text)

    def _add(self, findings: list[str], text: str) -> None:
        if len(findings) < MAX_FINDINGS:
            findings.append(text)
        else:
            self.dropped += 1


@dataclass(frozen=True, slots=True)
class Window:
    """Which epochs are looked at: those that either gateway committed in it.

    Attributes:
        since: earliest time, as in records or the beginning of it; empty for none.
        until: latest time, likewise: `2026-01-31` is the whole day; empty for none.
    """

    since: str = ""
    until: str = ""

    def __contains__(self, time: str) -> bool:
        return self.since <= time and time[: len(self.until)] <= self.until


def compare(a: Story, b: Story, window: Window | None = None) -> CompareReport:
    """Compare what two gateways say about the tunnels between them.

    Args:
        a: one gateway's story.
        b: the other's.
        window: leave out what is before or after; for logs that begin or end at other times.
    """
    report = CompareReport()
    if a.node == b.node:
        report.differ(f"both logs are of {a.node}; there is nothing to compare")
        return report
    for story in (a, b):
        if story.lost:
            report.remark(f"{story.node} says that it lost {story.lost} records")
    for connection_id in _between(a, b):
        pair = _Pair(a, b, connection_id, window or Window(), report)
        pair.compare()
    return report


def _between(a: Story, b: Story) -> Iterator[str]:
    """Tunnels that are between these two, as far as either says, in the order recorded."""
    for connection_id, tunnel in a.tunnels.items():
        if tunnel.peer == b.node or connection_id in b.tunnels:
            yield connection_id
    for connection_id, tunnel in b.tunnels.items():
        if tunnel.peer == a.node and connection_id not in a.tunnels:
            yield connection_id


class _Pair:
    """One tunnel, as both gateways recorded it."""

    def __init__(
        self, a: Story, b: Story, connection_id: str, window: Window, report: CompareReport
    ) -> None:
        self._a, self._b = a, b
        self._tunnel_a = a.tunnels.get(connection_id)
        self._tunnel_b = b.tunnels.get(connection_id)
        self._name = f"tunnel {connection_id}"
        self._window = window
        self._report = report

    def compare(self) -> None:
        """Compare names, then every epoch."""
        epochs_a = {} if self._tunnel_a is None else self._tunnel_a.epochs
        epochs_b = {} if self._tunnel_b is None else self._tunnel_b.epochs
        numbers = sorted(
            number
            for number in epochs_a.keys() | epochs_b.keys()
            if any(
                number in epochs and epochs[number].time in self._window
                for epochs in (epochs_a, epochs_b)
            )
        )
        if not numbers:
            return
        self._report.tunnels += 1
        self._compare_names()
        last = max(epochs_a.keys() | epochs_b.keys())
        for number in numbers:
            a, b = epochs_a.get(number), epochs_b.get(number)
            if a is None:
                self._one_sided(number, last, b, self._b, self._tunnel_b, self._a)
            elif b is None:
                self._one_sided(number, last, a, self._a, self._tunnel_a, self._b)
            else:
                self._report.epochs += 1
                self._compare_epoch(number, last, a, b)

    def _compare_names(self) -> None:
        for tunnel, here, there in (
            (self._tunnel_a, self._a, self._b),
            (self._tunnel_b, self._b, self._a),
        ):
            if tunnel is not None and tunnel.peer != there.node:
                self._report.differ(
                    f"{self._name}: {here.node} says its peer is {tunnel.peer}, not {there.node}"
                )

    def _one_sided(
        self,
        number: int,
        last: int,
        epoch: Epoch | None,
        here: Story,
        tunnel: TunnelStory | None,
        there: Story,
    ) -> None:
        """An epoch that only one gateway recorded."""
        if epoch is None or tunnel is None:
            return
        text = f"{self._name}, epoch {number}: only {here.node} committed it"
        over = tunnel.closed is not None or tunnel.abandoned
        if not epoch.confirmed and number == last and over:
            # The client commits before the server; the tunnel ended in between (rule R3).
            self._report.remark(
                f"{text}; it was never confirmed, and the tunnel ended: "
                f"what was sent under it is not known to have arrived"
            )
        elif there.lost:
            self._report.differ(f"{text}; {there.node} may have lost its record of it")
        else:
            self._report.differ(
                f"{text}; the log of {there.node} ended before, or a record is missing there"
            )

    def _compare_epoch(self, number: int, last: int, a: Epoch, b: Epoch) -> None:
        where = f"{self._name}, epoch {number}"
        for name in _SAME:
            self._compare_value(where, name, getattr(a.committed, name), getattr(b.committed, name))
        if a.committed.role is b.committed.role:
            self._report.differ(f"{where}: both say they are the {a.committed.role}")
        self._compare_policies(where, a.committed, b.committed)
        self._compare_mode_changes(where, a, b)
        for epoch, here, tunnel in (
            (a, self._a, self._tunnel_a),
            (b, self._b, self._tunnel_b),
        ):
            self._check_confirmed(where, number == last, epoch, here, tunnel)
        self._compare_ends(where, number == last, a, b)

    def _compare_value(self, where: str, name: str, a: object, b: object) -> None:
        if a != b:
            shown_a, shown_b = _shown(a), _shown(b)
            self._report.differ(
                f"{where}: {name} is {shown_a} at {self._a.node} and {shown_b} at {self._b.node}"
            )

    def _compare_policies(self, where: str, a: EpochCommittedFacts, b: EpochCommittedFacts) -> None:
        for own, other, here, there in (
            (a, b, self._a, self._b),
            (b, a, self._b, self._a),
        ):
            if own.policy_local is not other.policy_peer:
                self._report.differ(
                    f"{where}: the policy of {here.node} is {own.policy_local} there "
                    f"and {other.policy_peer} at {there.node}"
                )

    def _compare_mode_changes(self, where: str, a: Epoch, b: Epoch) -> None:
        change_a, change_b = a.mode_changed, b.mode_changed
        for epoch, here in ((a, self._a), (b, self._b)):
            committed = epoch.committed
            changed = committed.previous_mode is not committed.mode
            if changed != (epoch.mode_changed is not None):
                what = "has no record of the mode change" if changed else "records a mode change"
                self._report.differ(f"{where}: {here.node} {what}")
        if change_a is not None and change_b is not None:
            for name in ("was", "mode", "reason"):
                self._compare_value(
                    f"{where}, mode change", name, getattr(change_a, name), getattr(change_b, name)
                )

    def _check_confirmed(
        self, where: str, is_last: bool, epoch: Epoch, here: Story, tunnel: TunnelStory | None
    ) -> None:
        if epoch.confirmed or tunnel is None:
            return
        text = f"{where}: never confirmed at {here.node}"
        if not is_last:
            self._report.differ(f"{text}, though epochs followed")
        elif tunnel.closed is not None or tunnel.abandoned:
            self._report.remark(f"{text}: the tunnel ended before")
        else:
            self._report.remark(f"{text} so far: the tunnel is open")

    def _compare_ends(self, where: str, is_last: bool, a: Epoch, b: Epoch) -> None:
        """What was carried under an epoch: who sent what, and did it arrive."""
        if a.ended is not None and b.ended is not None:
            self._compare_bytes(where, a.ended, b.ended, self._a, self._b, self._tunnel_b)
            self._compare_bytes(where, b.ended, a.ended, self._b, self._a, self._tunnel_a)
            return
        if a.ended is None and b.ended is None:
            if not is_last:
                self._report.differ(
                    f"{where}: neither says what was carried, though epochs followed"
                )
            elif not (self._abandoned(self._tunnel_a) and self._abandoned(self._tunnel_b)):
                self._report.remark(f"{where}: still in use at the end of both logs")
            return
        missing, tunnel = (
            (self._a, self._tunnel_a) if a.ended is None else (self._b, self._tunnel_b)
        )
        text = f"{where}: {missing.node} does not say what was carried"
        if self._abandoned(tunnel):
            self._report.remark(f"{text}: its run ended first")
        else:
            self._report.differ(f"{text}: its log ends before that, or records are missing")

    def _compare_bytes(
        self,
        where: str,
        sent: EpochEndedFacts,
        received: EpochEndedFacts,
        sender: Story,
        receiver: Story,
        receiver_tunnel: TunnelStory | None,
    ) -> None:
        arrived = received.bytes_received + received.bytes_discarded
        if arrived == sent.bytes_sent:
            return
        text = (
            f"{where}: {sender.node} sent {sent.bytes_sent} bytes, "
            f"{receiver.node} received {arrived}"
        )
        cut = (
            received.ended_by is EndedBy.CLOSE
            and receiver_tunnel is not None
            and receiver_tunnel.closed is not None
            and not receiver_tunnel.closed.clean
        )
        if arrived < sent.bytes_sent and cut:
            self._report.remark(f"{text}: the tunnel was cut while the rest was under way")
        else:
            self._report.differ(text)

    @staticmethod
    def _abandoned(tunnel: TunnelStory | None) -> bool:
        return tunnel is not None and tunnel.abandoned


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
