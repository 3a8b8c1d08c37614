"""How metric families are made of values: names, labels and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from qproxy.admin.status import ReasonCounts

ItemT = TypeVar("ItemT")

#: Values of the labels, and the sample's own.
Sample = tuple[tuple[str, ...], float]


def gauge(name: str, text: str, labels: Iterable[str], samples: Iterable[Sample]) -> Metric:
    """A family of gauges.

    Args:
        name: without ``qproxy_``.
        text: what it says.
        labels: their names.
        samples: with a value for each label.
    """
    family = GaugeMetricFamily(f"qproxy_{name}", text, labels=list(labels))
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def counter(name: str, text: str, labels: Iterable[str], samples: Iterable[Sample]) -> Metric:
    """A family of counters; arguments as for :func:`gauge`, the name without ``_total``."""
    family = CounterMetricFamily(f"qproxy_{name}_total", text, labels=list(labels))
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def of_each(
    named: Iterable[tuple[str, ItemT]], value: Callable[[ItemT], float | None]
) -> Iterator[Sample]:
    """One sample for each named thing that has a value."""
    for name, item in named:
        found = value(item)
        if found is not None:
            yield (name,), float(found)


def by_reason(named: Iterable[tuple[str, ReasonCounts]]) -> Iterator[Sample]:
    """One sample for each reason that occurred with each name."""
    for name, counts in named:
        for reason, count in counts.by_reason.items():
            yield (name, reason.value), count
