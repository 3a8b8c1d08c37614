"""Prometheus metrics: families made from one snapshot at scrape time.

Names carry units, counters end in ``_total``. Labels are peers, listeners and services of the
configuration, and members of closed enums (mode, state, policy, reason, outcome): no peer, client
or KME can bring a new label value into being. docs/operations.md lists every family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qproxy.admin.assess import Assessment, peer_obstacle
from qproxy.admin.status import (
    AuditStatus,
    GatewayStatus,
    LinkStatus,
    PeerStatus,
    ReasonCounts,
    StockStatus,
    WorkerState,
    WorkerStatus,
)
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState

_PEER: Final = ("peer",)
_WORKER: Final = ("worker",)
_Sample = tuple[tuple[str, ...], float]


class StatusCollector(Collector):
    """Shows one snapshot to a registry. Holds no state of its own."""

    def __init__(self, status: GatewayStatus, assessment: Assessment) -> None:
        """Show ``status`` and what follows from it."""
        self._status = status
        self._assessment = assessment

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        yield from _gateway_families(self._status, self._assessment)
        yield from _tunnel_families(self._status.peers)
        yield from _epoch_families(self._status.peers)
        yield from _link_families(self._status.peers)
        yield from _source_families(self._status.peers)
        yield from _stock_families(self._status.peers)
        yield from _traffic_families(self._status)


def render_metrics(
    status: GatewayStatus, assessment: Assessment, accept: str, *, process: bool = True
) -> tuple[bytes, str]:
    """A snapshot in the form a scraper asks for.

    Args:
        status: the snapshot.
        assessment: what follows from it.
        accept: the request's Accept header; OpenMetrics or the classic text form.
        process: also say what the operating system knows of this process.

    Returns:
        The body and its content type.
    """
    registry = CollectorRegistry()
    registry.register(StatusCollector(status, assessment))
    if process:
        ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


# --- how families are made ---------------------------------------------------------------


def _gauge(name: str, text: str, labels: Iterable[str], samples: Iterable[_Sample]) -> Metric:
    family = GaugeMetricFamily(f"qproxy_{name}", text, labels=list(labels))
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def _counter(name: str, text: str, labels: Iterable[str], samples: Iterable[_Sample]) -> Metric:
    family = CounterMetricFamily(f"qproxy_{name}_total", text, labels=list(labels))
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def _of_peers(
    peers: Iterable[PeerStatus], value: Callable[[PeerStatus], float | None]
) -> Iterator[_Sample]:
    """One sample for each peer that has a value."""
    for peer in peers:
        found = value(peer)
        if found is not None:
            yield (peer.name,), float(found)


def _of_links(
    peers: Iterable[PeerStatus], value: Callable[[LinkStatus], float | None]
) -> Iterator[_Sample]:
    return _of_peers(peers, lambda peer: None if peer.link is None else value(peer.link))


def _of_stocks(
    peers: Iterable[PeerStatus], value: Callable[[StockStatus], float | None]
) -> Iterator[_Sample]:
    """Of peers this gateway keeps a stock for; elsewhere a gauge of 0 would look like trouble."""
    return _of_peers(
        peers,
        lambda peer: value(peer.stock) if peer.stock is not None and peer.stock.kept else None,
    )


def _by_reason(named: Iterable[tuple[str, ReasonCounts]]) -> Iterator[_Sample]:
    for name, counts in named:
        for reason, count in counts.by_reason.items():
            yield (name, reason.value), count


# --- families ----------------------------------------------------------------------------


def _gateway_families(status: GatewayStatus, assessment: Assessment) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "qproxy_build",
        "What runs.",
        {"node": status.node, "version": status.version, "kem_provider": status.kem_provider},
    )
    yield _gauge("uptime_seconds", "Since the gateway was built.", (), [((), status.uptime_s)])
    yield _gauge("ready", "1 where every peer's policy is met.", (), [((), assessment.ready)])
    yield _gauge("draining", "1 while shutting down.", (), [((), status.draining)])
    yield _counter(
        "unauthenticated_tunnels",
        "Incoming tunnels that ended before they proved whose they are.",
        ("reason",),
        [((reason.value,), count) for reason, count in status.unauthenticated.by_reason.items()],
    )
    yield from _audit_families(status.audits)
    yield from _worker_families(status.workers)


def _audit_families(audits: tuple[AuditStatus, ...]) -> Iterator[Metric]:
    """Without samples where there is no log: a 0 would look like one that works."""

    def of(value: Callable[[AuditStatus], float]) -> list[_Sample]:
        return [((), sum(value(audit) for audit in audits))] if audits else []

    yield _gauge(
        "audit_failing",
        "1 while the audit log cannot be written; of several logs, how many.",
        (),
        of(lambda log: log.failing is not None),
    )
    yield _gauge(
        "audit_sequence",
        "Number of the last record in the audit log; of several logs, the sum.",
        (),
        of(lambda log: log.sequence),
    )
    yield _counter("audit_failures", "Outages of the audit log.", (), of(lambda log: log.failures))
    yield _counter(
        "audit_records", "Records written to the audit log.", (), of(lambda log: log.records)
    )
    yield _counter(
        "audit_lost_records",
        "Records of the audit trail that were never written.",
        (),
        of(lambda log: log.records_lost),
    )


def _worker_families(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    """Without samples where there is but one process."""

    def of(value: Callable[[WorkerStatus], float | None]) -> Iterator[_Sample]:
        for worker in workers:
            found = value(worker)
            if found is not None:
                yield (str(worker.number),), float(found)

    yield _gauge(
        "workers",
        "Worker processes by what they are doing.",
        ("state",),
        (
            ((state.value,), sum(worker.state is state for worker in workers))
            for state in WorkerState
            if workers
        ),
    )
    yield _gauge(
        "worker_ready",
        "1 where the worker runs and can carry what it gets.",
        _WORKER,
        of(lambda worker: worker.ready),
    )
    yield _counter(
        "worker_starts", "Times it was started.", _WORKER, of(lambda worker: worker.starts)
    )
    yield _gauge(
        "worker_uptime_seconds",
        "Since its process was started; none while it waits to be.",
        _WORKER,
        of(lambda worker: worker.uptime_s),
    )
    yield _gauge(
        "worker_tunnels", "Tunnels in the worker.", _WORKER, of(lambda worker: worker.tunnels)
    )
    yield _gauge(
        "worker_streams",
        "Streams in progress in the worker.",
        _WORKER,
        of(lambda worker: worker.streams_open),
    )
    yield _counter(
        "worker_cpu_seconds",
        "Processor time of its process.",
        _WORKER,
        of(lambda worker: worker.cpu_s),
    )
    yield _gauge(
        "worker_resident_memory_bytes",
        "Memory of its process.",
        _WORKER,
        of(lambda worker: worker.resident_bytes),
    )
    yield _gauge(
        "worker_open_fds",
        "File descriptors of its process.",
        _WORKER,
        of(lambda worker: worker.open_fds),
    )
    yield _gauge(
        "worker_max_fds", "How many it may have.", _WORKER, of(lambda worker: worker.max_fds)
    )


def _tunnel_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield _gauge(
        "peer_ready",
        "1 where the peer's policy is met.",
        _PEER,
        _of_peers(peers, lambda peer: peer_obstacle(peer) is None),
    )
    yield _gauge(
        "tunnels",
        "Established tunnels by the mode of their running epoch.",
        ("peer", "mode"),
        (
            ((peer.name, mode.value), sum(tunnel.mode is mode for tunnel in peer.tunnels))
            for peer in peers
            for mode in Mode
        ),
    )
    yield _gauge(
        "tunnels_usable",
        "Tunnels that take new streams.",
        _PEER,
        _of_peers(peers, lambda peer: sum(tunnel.usable for tunnel in peer.tunnels)),
    )
    yield _gauge(
        "tunnels_wanted",
        "Tunnels this gateway keeps up; none where the peer dials.",
        _PEER,
        _of_peers(peers, lambda peer: peer.tunnels_wanted),
    )
    yield _counter(
        "tunnels_opened",
        "Tunnels established.",
        _PEER,
        _of_peers(peers, lambda peer: peer.tunnels_opened),
    )
    yield _counter(
        "tunnels_closed",
        "Tunnels that are over, established or not, by local cause.",
        ("peer", "reason"),
        _by_reason((peer.name, peer.tunnels_closed) for peer in peers),
    )
    yield _counter(
        "dial_failures",
        "Attempts to dial without a TCP connection.",
        ("peer", "reason"),
        _by_reason((peer.name, peer.not_connected) for peer in peers),
    )
    yield _gauge(
        "tunnels_classical_group",
        "Tunnels whose TLS handshake had no ML-KEM in it.",
        _PEER,
        _of_peers(peers, lambda peer: sum(not tunnel.tls_group_hybrid for tunnel in peer.tunnels)),
    )
    yield _gauge(
        "round_trip_seconds",
        "Longest smoothed round trip of a tunnel.",
        _PEER,
        _of_peers(peers, _round_trip_s),
    )
    yield _gauge(
        "peer_policy",
        "1 for the policy that holds, the stricter of both ends'.",
        ("peer", "policy"),
        (
            ((peer.name, policy.value), peer.policy.effective is policy)
            for peer in peers
            for policy in Policy
        ),
    )


def _round_trip_s(peer: PeerStatus) -> float | None:
    measured = [t.round_trip_s for t in peer.tunnels if t.round_trip_s is not None]
    return max(measured, default=None)


def _epoch_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield _counter(
        "epochs",
        "Epochs committed.",
        ("peer", "mode"),
        (((peer.name, mode.value), count) for peer in peers for mode, count in peer.epochs.items()),
    )
    yield _counter(
        "epoch_failures",
        "Attempts at an epoch that came to nothing, by the mode attempted.",
        ("peer", "mode", "reason"),
        (
            ((peer.name, entry.mode.value, entry.reason.value), entry.count)
            for peer in peers
            for entry in peer.epoch_failures
        ),
    )
    yield _counter(
        "mode_changes",
        "First epochs of tunnels and changes of mode, by the mode from then on.",
        ("peer", "mode", "reason"),
        (
            ((peer.name, entry.mode.value, entry.reason.value), entry.count)
            for peer in peers
            for entry in peer.mode_changes
        ),
    )
    yield _counter(
        "keys_used",
        "Keys that went into committed epochs, by source and by what they may be called.",
        ("peer", "source", "keys_are"),
        (
            ((peer.name, used.source, used.keys_are.value), used.count)
            for peer in peers
            for used in peer.keys_used
        ),
    )
    yield _gauge(
        "source_key_age_seconds",
        "Since a key of a source was last mixed in, the oldest over the tunnels; "
        "none where a tunnel never had one.",
        _PEER,
        _of_peers(peers, lambda peer: peer.source_key_age_s),
    )
    yield _gauge(
        "keys_simulated",
        "1 where keys in a tunnel are simulated and protect nothing.",
        _PEER,
        _of_peers(peers, lambda peer: any(tunnel.simulated for tunnel in peer.tunnels)),
    )
    yield _gauge(
        "rekey_interval_seconds",
        "How long an epoch may last now, the longest over the tunnels dialled here.",
        _PEER,
        _of_peers(peers, _rekey_interval_s),
    )
    yield _gauge(
        "rekey_economy",
        "1 while epochs are stretched because keys are short.",
        _PEER,
        _of_peers(peers, lambda peer: any(tunnel.economy for tunnel in peer.tunnels)),
    )


def _rekey_interval_s(peer: PeerStatus) -> float | None:
    known = [t.rekey_interval_s for t in peer.tunnels if t.rekey_interval_s is not None]
    return max(known, default=None)


def _link_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    linked = [(peer.name, peer.link) for peer in peers if peer.link is not None]
    yield _gauge(
        "link_state",
        "1 for the state the quantum link is in.",
        ("peer", "state"),
        (
            ((name, state.value), link.state is state)
            for name, link in linked
            for state in LinkState
        ),
    )
    yield _gauge(
        "link_state_reason",
        "1 for why it is in that state.",
        ("peer", "reason"),
        (((name, link.reason.value), 1) for name, link in linked),
    )
    yield _gauge(
        "link_state_age_seconds",
        "How long it has been in that state.",
        _PEER,
        _of_links(peers, lambda link: link.age_s),
    )
    yield _counter(
        "link_changes",
        "Changes of the quantum link's state, by the state from then on.",
        ("peer", "state", "reason"),
        (
            ((name, entry.state.value, entry.reason.value), entry.count)
            for name, link in linked
            for entry in link.changes
        ),
    )
    yield _counter(
        "key_source_failures",
        "Calls to the key source that failed.",
        ("peer", "reason"),
        _by_reason((name, link.failures) for name, link in linked),
    )
    yield _gauge(
        "kme_stored_keys",
        "Keys in the KME's store, as it says.",
        _PEER,
        _of_links(peers, lambda link: link.stored_keys),
    )
    yield _gauge(
        "kme_exhaustion_seconds",
        "Until the KME's store is empty by its trend; +Inf where it does not shrink.",
        _PEER,
        _of_links(peers, _kme_exhaustion_s),
    )
    yield _gauge(
        "kme_key_rate_bits_per_second",
        "Secret key rate, as the KME says.",
        _PEER,
        _of_links(peers, lambda link: link.key_rate_bps),
    )
    yield _gauge(
        "kme_qber_ratio",
        "Quantum bit error rate from 0 to 1, as the KME says.",
        _PEER,
        _of_links(peers, lambda link: link.qber),
    )


def _source_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    named = [(peer.name, source) for peer in peers for source in peer.sources]
    labels = ("peer", "source")
    yield _gauge(
        "source_state",
        "1 for the state the link of one key source is in.",
        (*labels, "state"),
        (
            ((name, source.name, state.value), source.link.state is state)
            for name, source in named
            for state in LinkState
        ),
    )
    yield _gauge(
        "source_info",
        "1 for what one key source is, and what its keys may be called.",
        (*labels, "kind", "keys_are"),
        (((name, source.name, source.kind, source.keys_are.value), 1) for name, source in named),
    )
    yield _gauge(
        "source_stored_keys",
        "Keys that one key source has ready, as it says.",
        labels,
        (
            ((name, source.name), float(source.link.stored_keys))
            for name, source in named
            if source.link.stored_keys is not None
        ),
    )
    yield _gauge(
        "source_stock_keys",
        "Keys of one source held ahead of need; none where the peer dials.",
        labels,
        (
            ((name, source.name), source.stock.available)
            for name, source in named
            if source.stock.kept
        ),
    )
    yield _gauge(
        "source_kme_in_use",
        "1 for the KME of a source that answers now.",
        (*labels, "kme"),
        (((name, source.name, source.kme), 1) for name, source in named if source.kme is not None),
    )
    yield _gauge(
        "source_kme_failing",
        "1 for each KME of a source that is left out now, because it failed.",
        (*labels, "kme"),
        (((name, source.name, kme), 1) for name, source in named for kme in source.failing_kmes),
    )
    yield _counter(
        "source_kme_failures",
        "Calls that failed at each of several KMEs of a source.",
        (*labels, "kme"),
        (
            ((name, source.name, kme), count)
            for name, source in named
            for kme, count in source.kme_failures.items()
        ),
    )
    yield _counter(
        "source_kme_switches",
        "Times that another KME of a source than before came to give the keys.",
        labels,
        (((name, source.name), source.kme_switches) for name, source in named),
    )
    yield _counter(
        "source_failures",
        "Calls to one key source that failed.",
        (*labels, "reason"),
        (
            ((name, source.name, reason.value), count)
            for name, source in named
            for reason, count in source.link.failures.by_reason.items()
        ),
    )


def _kme_exhaustion_s(link: LinkStatus) -> float | None:
    if link.stored_keys is None:
        return None
    return math.inf if link.stored_keys_exhaustion_s is None else link.stored_keys_exhaustion_s


def _stock_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield _gauge(
        "stock_keys",
        "Keys held ahead of need; none where the peer dials.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.available),
    )
    yield _gauge(
        "stock_low",
        "1 where the stock is below low water.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.low),
    )
    yield _gauge(
        "stock_exhaustion_seconds",
        "Until the stock is empty at today's use and supply; +Inf where it does not shrink.",
        _PEER,
        _of_stocks(peers, lambda s: math.inf if s.exhaustion_s is None else s.exhaustion_s),
    )
    yield _gauge(
        "stock_use_keys_per_second",
        "Keys used, averaged over a minute.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.use_keys_per_s),
    )
    yield _counter(
        "stock_drawn_keys",
        "Keys taken from the key source ahead of need.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.drawn),
    )
    yield _counter(
        "stock_ended_keys",
        "What became of drawn keys.",
        ("peer", "outcome"),
        (
            ((peer.name, outcome), getattr(peer.stock, outcome))
            for peer in peers
            if peer.stock is not None and peer.stock.kept
            for outcome in ("confirmed", "orphaned", "aged_out", "discarded", "refused")
        ),
    )
    yield _counter(
        "redeemed_keys",
        "Keys fetched by ID for tunnels that the peer dialled.",
        _PEER,
        _of_peers(peers, lambda peer: None if peer.stock is None else peer.stock.redeemed),
    )


def _traffic_families(status: GatewayStatus) -> Iterator[Metric]:
    peers, listeners, services = status.peers, status.listeners, status.services
    yield _gauge(
        "streams", "Streams in progress.", _PEER, _of_peers(peers, lambda p: p.streams_open)
    )
    yield _counter(
        "streams_opened",
        "Streams opened by either end.",
        _PEER,
        _of_peers(peers, lambda peer: peer.streams_opened),
    )
    yield _counter(
        "sent_bytes",
        "Application bytes sent through tunnels.",
        _PEER,
        _of_peers(peers, lambda peer: peer.bytes_sent),
    )
    yield _counter(
        "received_bytes",
        "Application bytes received through tunnels.",
        _PEER,
        _of_peers(peers, lambda peer: peer.bytes_received),
    )
    yield _gauge(
        "listener_open_connections",
        "Connections of applications in progress.",
        ("listener",),
        (((entry.name,), entry.connections_open) for entry in listeners),
    )
    yield _gauge(
        "listener_max_connections",
        "How many may be.",
        ("listener",),
        (((entry.name,), entry.max_connections) for entry in listeners),
    )
    yield _counter(
        "listener_accepted",
        "Connections of applications accepted.",
        ("listener",),
        (((entry.name,), entry.connections_accepted) for entry in listeners),
    )
    yield _counter(
        "listener_full",
        "Times that accepting paused at max_connections.",
        ("listener",),
        (((entry.name,), entry.full) for entry in listeners),
    )
    yield _counter(
        "listener_refused",
        "Connections of applications that got no stream.",
        ("listener", "reason"),
        _by_reason((entry.name, entry.refused) for entry in listeners),
    )
    yield _counter(
        "listener_failed",
        "Connections of applications whose stream was reset, or refused by the far gateway.",
        ("listener", "reason"),
        _by_reason((entry.name, entry.failed) for entry in listeners),
    )
    yield _gauge(
        "listener_policy_met",
        "1 where a usable tunnel has what the listener's own require demands; none without one.",
        ("listener",),
        (
            ((entry.name,), entry.policy_met)
            for entry in listeners
            if entry.policy is Policy.REQUIRE
        ),
    )
    yield _gauge(
        "service_open_connections",
        "Connections to services in progress.",
        ("service",),
        (((entry.name,), entry.connections_open) for entry in services),
    )
    yield _counter(
        "service_opened",
        "Connections made to services.",
        ("service",),
        (((entry.name,), entry.connections_opened) for entry in services),
    )
    yield _counter(
        "service_refused",
        "Streams of peers refused; service is empty for those to services that do not exist.",
        ("service", "reason"),
        _by_reason(
            [("", status.unknown_services), *((entry.name, entry.refused) for entry in services)]
        ),
    )
    yield _counter(
        "service_failed",
        "Connections to services whose stream was reset by either side.",
        ("service", "reason"),
        _by_reason((entry.name, entry.failed) for entry in services),
    )
    yield _gauge(
        "service_policy_met",
        "1 where a usable tunnel of the peer has what the service's own require demands; "
        "none without one.",
        ("service", "peer"),
        (((entry.name, peer), met) for entry in services for peer, met in entry.policy_met.items()),
    )
