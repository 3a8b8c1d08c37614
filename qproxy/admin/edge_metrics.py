"""Metrics of the edge: listeners for applications, and services."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from qproxy.admin.metric_families import by_reason, counter, gauge
from qproxy.admin.status import ListenerStatus, ReasonCounts, ServiceStatus
from qproxy.modes import Policy


def listener_families(listeners: tuple[ListenerStatus, ...]) -> Iterator[Metric]:
    """Every family of listeners."""
    yield gauge(
        "listener_open_connections",
        "Connections of applications in progress.",
        ("listener",),
        (((entry.name,), entry.connections_open) for entry in listeners),
    )
    yield gauge(
        "listener_max_connections",
        "How many may be.",
        ("listener",),
        (((entry.name,), entry.max_connections) for entry in listeners),
    )
    yield counter(
        "listener_accepted",
        "Connections of applications accepted.",
        ("listener",),
        (((entry.name,), entry.connections_accepted) for entry in listeners),
    )
    yield counter(
        "listener_full",
        "Times that accepting paused at max_connections.",
        ("listener",),
        (((entry.name,), entry.full) for entry in listeners),
    )
    yield counter(
        "listener_refused",
        "Connections of applications that got no stream.",
        ("listener", "reason"),
        by_reason((entry.name, entry.refused) for entry in listeners),
    )
    yield counter(
        "listener_failed",
        "Connections of applications whose stream was reset, or refused by the far gateway.",
        ("listener", "reason"),
        by_reason((entry.name, entry.failed) for entry in listeners),
    )
    yield gauge(
        "listener_policy_met",
        "1 where a usable tunnel has what the listener's own require demands; none without one.",
        ("listener",),
        (
            ((entry.name,), entry.policy_met)
            for entry in listeners
            if entry.policy is Policy.REQUIRE
        ),
    )


def service_families(
    services: tuple[ServiceStatus, ...], unknown: ReasonCounts
) -> Iterator[Metric]:
    """Every family of services.

    Args:
        services: those of the configuration.
        unknown: streams that peers asked for to services that do not exist.
    """
    yield gauge(
        "service_open_connections",
        "Connections to services in progress.",
        ("service",),
        (((entry.name,), entry.connections_open) for entry in services),
    )
    yield counter(
        "service_opened",
        "Connections made to services.",
        ("service",),
        (((entry.name,), entry.connections_opened) for entry in services),
    )
    yield counter(
        "service_refused",
        "Streams of peers refused; service is empty for those to services that do not exist.",
        ("service", "reason"),
        by_reason([("", unknown), *((entry.name, entry.refused) for entry in services)]),
    )
    yield counter(
        "service_failed",
        "Connections to services whose stream was reset by either side.",
        ("service", "reason"),
        by_reason((entry.name, entry.failed) for entry in services),
    )
    yield gauge(
        "service_policy_met",
        "1 where a usable tunnel of the peer has what the service's own require demands; "
        "none without one.",
        ("service", "peer"),
        (((entry.name, peer), met) for entry in services for peer, met in entry.policy_met.items()),
    )
