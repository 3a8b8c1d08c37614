"""What a gateway looks like at one moment: frozen values, ages in seconds, no secret anywhere.

The names of these fields are those of the ``/status`` document (``status.schema.json``), so a
field renamed here is a new version there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qproxy.audit.writer import AuditFault
from qproxy.config.model import OnAuditFailure
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.quantum.health import LinkState
from qproxy.tunnel.settings import Role


class WorkerState(enum.StrEnum):
    """What a worker process is doing."""

    STARTING = "starting"
    """It has not said yet that it serves."""
    RUNNING = "running"
    ENDING = "ending"
    """It takes nothing new."""
    WAITING = "waiting"
    """It died, and waits to be started again."""


class KeyUse(enum.StrEnum):
    """Where keys of key sources are in what protects a tunnel."""

    FRESH = "fresh"
    """One is in the running epoch."""
    CHAINED = "chained"
    """One is in an earlier epoch that the running one is chained to."""
    NEVER = "never"
    """None ever was."""


#: From the weakest to the strongest: a peer is as well off as its worst tunnel.
MODES: Final = (Mode.CLASSICAL_ONLY, Mode.HYBRID)
KEY_USES: Final = (KeyUse.NEVER, KeyUse.CHAINED, KeyUse.FRESH)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCounts:
    """How often something happened, by reason.

    Attributes:
        total: times altogether.
        by_reason: times by reason; only reasons that occurred.
        last_reason: the last one, or None.
        last_age_s: seconds since then, or None.
    """

    total: int = 0
    by_reason: Mapping[Reason, int]
    last_reason: Reason | None = None
    last_age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeReasonCount:
    """How often an epoch in a mode failed, or a tunnel came into it, for one reason."""

    mode: Mode
    reason: Reason
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReasonCount:
    """How often the quantum link came into a state for one reason."""

    state: LinkState
    reason: Reason
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatus:
    """What is demanded of the quantum link.

    Attributes:
        local: this end's policy.
        peer: the peer's, as its tunnels authenticated it, or None without a tunnel.
        effective: the stricter of both.
        max_without_qkd_s: this end's limit under ``require``.
    """

    local: Policy
    peer: Policy | None
    effective: Policy
    max_without_qkd_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelStatus:
    """One established tunnel.

    Attributes:
        role: who dialled: ``client`` means this gateway did.
        usable: it takes new streams.
        age_s: since it was established.
        mode: mode of the running epoch.
        mode_reason: why it came into this mode.
        mode_age_s: how long it has been in it.
        epoch: number of the running epoch.
        epoch_age_s: since that one was committed.
        source_key: where keys of key sources are in its protection.
        source_key_age_s: since a key of a source was last mixed in, or None for never.
        source_key_deadline_s: seconds until the tunnel ends for want of a fresh key (below 0: it is
            about to), or None where neither end requires one.
        sources: names of the key sources that the keys last mixed in came from.
        keys_are: what those keys may be called.
        simulated: some of them are simulated.
        policy: the policies that hold in it.
        tls_group: key agreement of its TLS handshake.
        tls_group_hybrid: whether ML-KEM is in that group.
        tls_cipher: TLS cipher suite of its handshake.
        rekey_interval_s: how long an epoch may last now; None where the peer decides.
        economy: its epoch is stretched because keys are short.
        waits_for: what keeps a wanted epoch from being offered, or None.
        round_trip_s: smoothed, or None before the first measurement.
        streams_open: streams in progress.
        streams_opened: opened by either end since it was established.
        bytes_sent: application bytes.
        bytes_received: application bytes.
        worker: number of the worker that it is in, or None with a single process.
    """

    role: Role
    usable: bool
    age_s: float
    mode: Mode | None
    mode_reason: Reason | None
    mode_age_s: float
    epoch: int
    epoch_age_s: float
    source_key: KeyUse
    source_key_age_s: float | None
    source_key_deadline_s: float | None
    sources: tuple[str, ...]
    keys_are: tuple[KeyNature, ...]
    simulated: bool
    policy: PolicyStatus
    tls_group: str
    tls_group_hybrid: bool
    tls_cipher: str
    rekey_interval_s: float | None
    economy: bool
    waits_for: Reason | None
    round_trip_s: float | None
    streams_open: int
    streams_opened: int
    bytes_sent: int
    bytes_received: int
    worker: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """The link of one key source towards one peer; or of all its sources together, and then the
    worst of their figures.

    Attributes:
        source: name of the key source in the configuration; of several, joined by "+".
        kind: what it is, as offers name it; of several, joined by "+".
        simulated: the source says that its keys are simulated.
        state: healthy, degraded or down.
        reason: why.
        age_s: how long it has been in this state.
        changes: changes of state since the start, by the state from then on.
        failures: calls to the source that failed.
        stored_keys: keys in the KME's store by its last status, or None.
        stored_keys_exhaustion_s: seconds until that store is empty by its trend; None where it is
            not known or does not shrink.
        key_rate_bps: secret key rate by its last status, in bits per second, or None.
        qber: quantum bit error rate by its last status, 0 to 1, or None.
    """

    source: str
    kind: str | None
    simulated: bool
    state: LinkState
    reason: Reason
    age_s: float
    changes: tuple[StateReasonCount, ...]
    failures: ReasonCounts
    stored_keys: int | None
    stored_keys_exhaustion_s: float | None
    key_rate_bps: float | None
    qber: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StockStatus:
    """Keys of one source, or of all, that this gateway holds ahead of need; what became of all.

    Attributes:
        kept: this gateway keeps a stock, because it dials; the other end only redeems.
        available: keys that can be used now.
        lent: keys in epoch attempts under way.
        low: below low water.
        use_keys_per_s: keys used each second over the last minute.
        supply_keys_per_s: keys the link makes each second, or None where it does not say.
        exhaustion_s: seconds until the stock is empty at this use and supply; None where it does
            not shrink.
        drawn, confirmed, orphaned, aged_out, discarded, refused: keys since the start; see
            :class:`~qproxy.quantum.stock.StockCounters`.
        redeemed: keys fetched by ID for tunnels that the peer dialled.
    """

    kept: bool
    available: int
    lent: int
    low: bool
    use_keys_per_s: float
    supply_keys_per_s: float | None
    exhaustion_s: float | None
    drawn: int
    confirmed: int
    orphaned: int
    aged_out: int
    discarded: int
    refused: int
    redeemed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySourceStatus:
    """One key source towards one peer.

    Attributes:
        name: its name in the configuration.
        path: what both ends call this source and its counterpart; empty where it is the only one.
        kind: what it is, as offers name it.
        keys_are: what its keys may be called.
        says: how it says that it comes by its keys, or None; nothing here is proof.
        kme: configured name of the KME that answers now, or None where it has no such names.
        failing_kmes: configured names of KMEs that are left out now.
        kme_switches: times that another KME than before came to give the keys.
        kme_failures: calls that failed at each of several KMEs, by its configured name.
        link: its link.
        stock: its keys.
    """

    name: str
    path: str
    kind: str
    keys_are: KeyNature
    says: str | None
    kme: str | None
    failing_kmes: tuple[str, ...]
    kme_switches: int
    kme_failures: Mapping[str, int]
    link: LinkStatus
    stock: StockStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysUsed:
    """How many keys of one source went into epochs.

    Attributes:
        source: name of the key source in the configuration.
        kind: what it is, as offers name it.
        keys_are: what those keys may be called.
        count: keys since the start.
    """

    source: str
    kind: str
    keys_are: KeyNature
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One configured peer.

    Attributes:
        name: the peer's name.
        address: where it is dialled, or None where it dials.
        tunnels_wanted: tunnels this gateway keeps up; None where the peer dials.
        mode: the weakest mode of its established tunnels, or None without one.
        source_key: the weakest use of keys among them, or None without one.
        source_key_age_s: the oldest last key among them; None without a tunnel or where one of them
            never had any.
        policy: what is demanded of the quantum link.
        kem: ML-KEM parameter set.
        aead: record protection offered.
        psk: a pre-shared key is configured.
        tunnels: the established ones.
        sources: its key sources.
        at_least: how many of them an epoch needs to be hybrid.
        link: the links of all sources together, or None without a key source.
        stock: the keys of all sources together, or None without a key source.
        epochs: committed since the start, by mode.
        keys: keys of key sources that went into them.
        keys_used: the same by source and by what they may be called.
        epoch_failures: attempts that came to nothing.
        mode_changes: first epochs and changes of mode.
        tunnels_opened: tunnels established since the start.
        tunnels_closed: tunnels over since the start, established or not.
        not_connected: attempts to dial without a TCP connection.
        streams_open, streams_opened, bytes_sent, bytes_received: over all tunnels since the
            start.
    """

    name: str
    address: str | None
    tunnels_wanted: int | None
    mode: Mode | None
    source_key: KeyUse | None
    source_key_age_s: float | None
    policy: PolicyStatus
    kem: KemAlgorithm
    aead: Aead
    psk: bool
    tunnels: tuple[TunnelStatus, ...]
    sources: tuple[KeySourceStatus, ...]
    at_least: int
    link: LinkStatus | None
    stock: StockStatus | None
    epochs: Mapping[Mode, int]
    keys: int
    keys_used: tuple[KeysUsed, ...]
    epoch_failures: tuple[ModeReasonCount, ...]
    mode_changes: tuple[ModeReasonCount, ...]
    tunnels_opened: int
    tunnels_closed: ReasonCounts
    not_connected: ReasonCounts
    streams_open: int
    streams_opened: int
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerStatus:
    """One listener for applications.

    Attributes:
        name: its name in the configuration.
        addresses: where it listens now; empty while draining.
        peer, service: where its connections lead.
        tls: TLS ends here.
        policy: its own policy, or None for whatever the peer's allows.
        max_without_qkd_s: its limit under ``require``, or the peer's.
        policy_met: a usable tunnel has what its own policy demands; True where that demands
            nothing.
        connections_open: in progress.
        connections_accepted: since the start.
        max_connections: how many may be open.
        full: times that accepting paused at that limit.
        refused: connections that got no stream.
        failed: connections whose stream was reset by either side, or refused by the far gateway.
    """

    name: str
    addresses: tuple[str, ...]
    peer: str
    service: str
    tls: bool
    policy: Policy | None
    max_without_qkd_s: float
    policy_met: bool
    connections_open: int
    connections_accepted: int
    max_connections: int
    full: int
    refused: ReasonCounts
    failed: ReasonCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service that peers may open streams to.

    Attributes:
        name: its name in the configuration.
        policy: its own policy, or None for whatever the peers' allow.
        max_without_qkd_s: its own limit under ``require``, or None for each peer's.
        policy_met: by peer with a usable tunnel that may use the service, whether one of them has
            what its own policy demands; empty where that demands nothing.
        connections_open: in progress or being opened.
        connections_opened: since the start.
        max_connections: how many may be open.
        refused: streams refused.
        failed: connections whose stream was reset by either side.
    """

    name: str
    policy: Policy | None
    max_without_qkd_s: float | None
    policy_met: Mapping[str, bool]
    connections_open: int
    connections_opened: int
    max_connections: int
    refused: ReasonCounts
    failed: ReasonCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStatus:
    """The audit log.

    Attributes:
        file: the file in use.
        failure: what the gateway does where it cannot be written.
        failing: why records are not being written now, or None.
        failures: outages since the start.
        records: records written since the start.
        records_lost: records that never will be.
        sequence: of the last record in the log; it is the head of the chain.
        head: its hash, 96 hexadecimal digits.
    """

    file: str
    failure: OnAuditFailure
    failing: AuditFault | None
    failures: int
    records: int
    records_lost: int
    sequence: int
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker process of a gateway with several.

    Attributes:
        number: which one, from 0.
        state: what it is doing.
        pid: its process ID, or None where it has no process.
        uptime_s: since its process was started, or None.
        answers: it answered this time; where it did not, what follows is of its last answer.
        ready: the policy of every peer that its own listeners or tunnels need is met in it.
        obstacle: why not, in words, or None.
        starts: how often it was started.
        last_end: how it ended the last time, in words, or None.
        last_end_age_s: seconds since then, or None.
        tunnels: established in it.
        streams_open: streams in progress in it.
        connections_open: connections of applications in progress in it.
        cpu_s: processor time that its process has used, or None.
        resident_bytes: memory that it has, or None.
        open_fds: file descriptors that it has open, or None.
        max_fds: how many it may have, or None.
        audit: its audit log, or None without one.
    """

    number: int
    state: WorkerState
    pid: int | None
    uptime_s: float | None
    answers: bool
    ready: bool
    obstacle: str | None
    starts: int
    last_end: str | None
    last_end_age_s: float | None
    tunnels: int = 0
    streams_open: int = 0
    connections_open: int = 0
    cpu_s: float | None = None
    resident_bytes: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    audit: AuditStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """A whole gateway.

    Attributes:
        node: its name.
        version: of qproxy.
        kem_provider: library that computes ML-KEM.
        uptime_s: since it was built.
        draining: it takes nothing new.
        peers, listeners, services: in the configuration's order.
        unauthenticated: incoming tunnels that ended before they proved whose they are.
        unknown_services: streams that peers asked for to services that do not exist.
        audit: the audit log, or None without one or where each worker has its own.
        workers: the worker processes; empty with a single process.
    """

    node: str
    version: str
    kem_provider: str
    uptime_s: float
    draining: bool
    peers: tuple[PeerStatus, ...]
    listeners: tuple[ListenerStatus, ...]
    services: tuple[ServiceStatus, ...]
    unauthenticated: ReasonCounts
    unknown_services: ReasonCounts
    audit: AuditStatus | None = None
    workers: tuple[WorkerStatus, ...] = ()

    @property
    def audits(self) -> tuple[AuditStatus, ...]:
        """Every audit log: the one, or those of the workers."""
        found = (self.audit, *(worker.audit for worker in self.workers))
        return tuple(audit for audit in found if audit is not None)
