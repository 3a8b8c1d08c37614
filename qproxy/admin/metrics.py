"""Prometheus metrics: families made from one snapshot at scrape time.

Names carry units, counters end in ``_total``. Labels are peers, listeners and services of the
configuration, and members of closed enums (mode, state, policy, reason, outcome): no peer, client
or KME can bring a new label value into being. docs/operations.md lists every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qproxy.admin.assess import Assessment
from qproxy.admin.edge_metrics import listener_families, service_families
from qproxy.admin.metric_families import Sample, counter, gauge, of_each
from qproxy.admin.peer_metrics import peer_families
from qproxy.admin.status import AuditStatus, GatewayStatus, WorkerState, WorkerStatus

_WORKER: Final = ("worker",)


class StatusCollector(Collector):
    """Shows one snapshot to a registry. Holds no state of its own."""

    def __init__(self, status: GatewayStatus, assessment: Assessment) -> None:
        """Show ``status`` and what follows from it."""
        self._status = status
        self._assessment = assessment

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        yield from _gateway_families(self._status, self._assessment)
        yield from peer_families(self._status.peers)
        yield from listener_families(self._status.listeners)
        yield from service_families(self._status.services, self._status.unknown_services)


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


def _gateway_families(status: GatewayStatus, assessment: Assessment) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "qproxy_build",
        "What runs.",
        {"node": status.node, "version": status.version, "kem_provider": status.kem_provider},
    )
    yield gauge("uptime_seconds", "Since the gateway was built.", (), [((), status.uptime_s)])
    yield gauge("ready", "1 where every peer's policy is met.", (), [((), assessment.ready)])
    yield gauge("draining", "1 while shutting down.", (), [((), status.draining)])
    yield counter(
        "unauthenticated_tunnels",
        "Incoming tunnels that ended before they proved whose they are.",
        ("reason",),
        [((reason.value,), count) for reason, count in status.unauthenticated.by_reason.items()],
    )
    yield from _audit_families(status.audits)
    yield from _worker_families(status.workers)


def _audit_families(audits: tuple[AuditStatus, ...]) -> Iterator[Metric]:
    """Without samples where there is no log: a 0 would look like one that works."""

    def of(value: Callable[[AuditStatus], float]) -> list[Sample]:
        return [((), sum(value(audit) for audit in audits))] if audits else []

    yield gauge(
        "audit_failing",
        "1 while the audit log cannot be written; of several logs, how many.",
        (),
        of(lambda log: log.failing is not None),
    )
    yield gauge(
        "audit_sequence",
        "Number of the last record in the audit log; of several logs, the sum.",
        (),
        of(lambda log: log.sequence),
    )
    yield counter("audit_failures", "Outages of the audit log.", (), of(lambda log: log.failures))
    yield counter(
        "audit_records", "Records written to the audit log.", (), of(lambda log: log.records)
    )
    yield counter(
        "audit_lost_records",
        "Records of the audit trail that were never written.",
        (),
        of(lambda log: log.records_lost),
    )


def _worker_families(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    """Without samples where there is but one process."""

    def of(value: Callable[[WorkerStatus], float | None]) -> Iterator[Sample]:
        return of_each(((str(worker.number), worker) for worker in workers), value)

    yield gauge(
        "workers",
        "Worker processes by what they are doing.",
        ("state",),
        (
            ((state.value,), sum(worker.state is state for worker in workers))
            for state in WorkerState
            if workers
        ),
    )
    yield gauge(
        "worker_ready",
        "1 where the worker runs and can carry what it gets.",
        _WORKER,
        of(lambda worker: worker.ready),
    )
    yield counter(
        "worker_starts", "Times it was started.", _WORKER, of(lambda worker: worker.starts)
    )
    yield gauge(
        "worker_uptime_seconds",
        "Since its process was started; none while it waits to be.",
        _WORKER,
        of(lambda worker: worker.uptime_s),
    )
    yield gauge(
        "worker_tunnels", "Tunnels in the worker.", _WORKER, of(lambda worker: worker.tunnels)
    )
    yield gauge(
        "worker_streams",
        "Streams in progress in the worker.",
        _WORKER,
        of(lambda worker: worker.streams_open),
    )
    yield counter(
        "worker_cpu_seconds",
        "Processor time of its process.",
        _WORKER,
        of(lambda worker: worker.cpu_s),
    )
    yield gauge(
        "worker_resident_memory_bytes",
        "Memory of its process.",
        _WORKER,
        of(lambda worker: worker.resident_bytes),
    )
    yield gauge(
        "worker_open_fds",
        "File descriptors of its process.",
        _WORKER,
        of(lambda worker: worker.open_fds),
    )
    yield gauge(
        "worker_max_fds", "How many it may have.", _WORKER, of(lambda worker: worker.max_fds)
    )
