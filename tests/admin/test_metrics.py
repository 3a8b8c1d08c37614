"""Metrics are a function of a snapshot, bounded in what they can grow to, and documented."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from qproxy.admin.assess import assess
from qproxy.admin.metrics import StatusCollector, render_metrics
from qproxy.admin.status import WorkerState
from qproxy.errors import Reason
from qproxy.keys import KeyNature, SourceKind
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState
from tests.admin import made

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(status):
    """(name, labels) -> value of everything qproxy says of a snapshot."""
    body, content_type = render_metrics(status, assess(status), "", process=False)
    assert content_type.startswith("text/plain; version=")
    found = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.values()))
            assert key not in found
            found[key] = sample.value
    return found


def test_what_a_scraper_reads_is_the_snapshot():
    found = samples(made.GATEWAY)
    assert found["qproxy_ready",] == 1
    assert found["qproxy_build_info", "1.2.3", "gw-a", "liboqs"] == 1
    assert found["qproxy_tunnels", "gw-b", "hybrid"] == 1
    assert found["qproxy_tunnels", "classical-only", "gw-b"] == 0
    assert found["qproxy_epochs_total", "gw-b", "hybrid"] == 84
    assert found["qproxy_epoch_failures_total", "gw-b", "hybrid", "key_not_found"] == 2
    assert found["qproxy_mode_changes_total", "gw-b", "hybrid", "initial"] == 1
    assert found["qproxy_source_key_age_seconds", "gw-b"] == 12.5
    assert found["qproxy_link_state", "gw-b", "healthy"] == 1
    assert found["qproxy_link_state", "down", "gw-b"] == 0
    assert found["qproxy_stock_exhaustion_seconds", "gw-b"] == float("inf")
    assert found["qproxy_stock_ended_keys_total", "confirmed", "gw-b"] == 84
    assert found["qproxy_peer_policy", "gw-b", "prefer"] == 1
    assert found["qproxy_sent_bytes_total", "gw-b"] == 10_000
    assert found["qproxy_round_trip_seconds", "gw-b"] == 0.0021
    assert found["qproxy_listener_accepted_total", "web"] == 702
    assert found["qproxy_service_opened_total", "db"] == 9


def test_what_is_not_known_has_no_sample():
    for status in (made.NO_TUNNEL, made.WITHOUT_QKD):
        assert ("qproxy_source_key_age_seconds", "gw-b") not in samples(status)
    without = samples(made.WITHOUT_QKD)
    assert not [key for key in without if key[0].startswith(("qproxy_stock", "qproxy_link"))]
    # A gateway that is dialled keeps no stock: a gauge of 0 there would look like trouble.
    waits = dataclasses.replace(made.STOCK, kept=False, redeemed=7)
    found = samples(made.with_peer(stock=waits))
    assert ("qproxy_stock_keys", "gw-b") not in found
    assert found["qproxy_redeemed_keys_total", "gw-b"] == 7


def test_trouble_shows_with_its_reason():
    found = samples(made.DRAINING)
    assert found["qproxy_ready",] == 0
    assert found["qproxy_draining",] == 1
    assert found["qproxy_unauthenticated_tunnels_total", "certificate_expired"] == 1
    assert found["qproxy_listener_refused_total", "no_tunnel", "web"] == 1
    assert found["qproxy_service_refused_total", "", "service_unknown"] == 1
    fallen = samples(made.FALLEN_BACK)
    assert fallen["qproxy_tunnels", "classical-only", "gw-b"] == 1
    assert fallen["qproxy_link_state_reason", "gw-b", "kme_unreachable"] == 1
    assert samples(made.NO_TUNNEL)["qproxy_dial_failures_total", "connect_refused", "gw-b"] == 5


def test_the_kme_in_use_shows_and_those_that_are_left_out():
    found = samples(made.ON_THE_SPARE_KME)
    assert found["qproxy_source_kme_in_use", "gw-b", "kme-a", "south"] == 1
    assert found["qproxy_source_kme_failing", "gw-b", "kme-a", "north"] == 1
    assert found["qproxy_source_kme_switches_total", "gw-b", "kme-a"] == 3
    assert found["qproxy_source_kme_failures_total", "gw-b", "kme-a", "north"] == 7


@pytest.mark.parametrize("name", made.ALL)
def test_names_labels_and_help_follow_the_rules(name):
    status = made.ALL[name]
    closed = {
        "mode": set(Mode),
        "policy": set(Policy),
        "reason": set(Reason),
        "state": set(LinkState) | set(WorkerState),
        "worker": {"0", "1", "2"},
        "outcome": {"confirmed", "orphaned", "aged_out", "discarded", "refused"},
        "peer": {"gw-b"},
        "source": {"kme-a"},
        "kme": {"kme-a", "north", "south"},
        "kind": set(SourceKind),
        "keys_are": set(KeyNature),
        "listener": {"web"},
        "service": {"", "db"},
    }
    for family in StatusCollector(status, assess(status)).collect():
        assert re.fullmatch(r"qproxy_[a-z][a-z_]*", family.name)
        assert family.documentation.endswith(".")
        assert family.type in {"gauge", "counter", "info"}
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"
            if family.type != "info":
                for label, value in sample.labels.items():
                    assert value in closed[label]


@pytest.mark.parametrize("name", made.ALL)
def test_openmetrics_is_spoken_where_it_is_asked_for(name):
    status = made.ALL[name]
    body, content_type = render_metrics(status, assess(status), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name for family in parse_openmetrics(body.decode())}
    assert {"qproxy_ready", "process_open_fds"} <= families


def test_nothing_is_left_in_the_library_s_global_registry():
    before = prometheus_client.generate_latest()
    render_metrics(made.GATEWAY, assess(made.GATEWAY), "")
    assert b"qproxy" not in before
    assert b"qproxy" not in prometheus_client.generate_latest()


def test_the_docs_list_every_family_with_its_labels_and_no_other():
    rows = re.findall(r"^\| `(qproxy_\w+)` \| (.*?) \|", OPERATIONS.read_text(), re.MULTILINE)
    documented = {name: set(re.findall(r"\w+", labels)) for name, labels in rows}
    assert len(documented) == len(rows)
    real = {}
    for status in made.ALL.values():
        for family in StatusCollector(status, assess(status)).collect():
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = {label for sample in family.samples for label in sample.labels}
            real.setdefault(family.name + suffix, set()).update(labels)
    assert documented == real


def test_a_stricter_policy_of_a_listener_or_service_shows_where_there_is_one():
    found = samples(made.PAYMENTS_REFUSED)
    assert found["qproxy_listener_policy_met", "web"] == 0
    assert found["qproxy_service_policy_met", "db", "gw-b"] == 0
    assert found["qproxy_service_failed_total", "db", "qkd_too_old"] == 4
    names = {key[0] for key in samples(made.GATEWAY)}
    assert not names & {"qproxy_listener_policy_met", "qproxy_service_policy_met"}


def test_the_audit_log_shows_where_there_is_one():
    found = samples(made.AUDIT_GOES_ON)
    assert found["qproxy_audit_failing",] == 1
    assert found["qproxy_audit_failures_total",] == 2
    assert found["qproxy_audit_records_total",] == 512
    assert found["qproxy_audit_lost_records_total",] == 7
    assert found["qproxy_audit_sequence",] == 900
    assert samples(made.AUDITED)["qproxy_audit_failing",] == 0
    assert not [key for key in samples(made.GATEWAY) if key[0].startswith("qproxy_audit")]


def test_workers_show_where_there_are_several():
    found = samples(made.WORKERS)
    assert found["qproxy_workers", "running"] == 2
    assert found["qproxy_workers", "waiting"] == 1
    assert [found["qproxy_worker_ready", number] for number in "012"] == [1, 0, 0]
    assert found["qproxy_worker_starts_total", "1"] == 4
    assert ("qproxy_worker_uptime_seconds", "1") not in found
    assert found["qproxy_worker_cpu_seconds_total", "0"] == 12.5
    assert found["qproxy_audit_records_total",] == 512
    assert found["qproxy_ready",] == 0
    assert not [key for key in samples(made.GATEWAY) if key[0].startswith("qproxy_worker")]
