"""Readiness and warnings are functions of a snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qproxy.admin.assess import assess, format_duration
from qproxy.admin.status import KeyUse
from qproxy.errors import Reason
from qproxy.modes import Mode
from qproxy.quantum.health import LinkState
from tests.admin import made


def reasons(findings):
    return [finding.reason for finding in findings]


def test_where_all_is_well_nothing_is_said():
    found = assess(made.GATEWAY)
    assert found.ready
    assert found.not_ready == found.warnings == ()


def test_a_fall_back_under_prefer_is_ready_and_loud():
    found = assess(made.FALLEN_BACK)
    assert found.ready
    assert reasons(found.warnings) == [Reason.KME_UNREACHABLE] * 2
    assert "classical-only for 4 min 10 s: kme_unreachable" in found.warnings[0].detail
    assert "chained" in found.warnings[0].detail
    assert "quantum link down" in found.warnings[1].detail


def test_a_kme_that_is_left_out_is_told_though_another_does_its_work():
    found = assess(made.ON_THE_SPARE_KME)
    assert found.ready
    (warning,) = found.warnings
    assert warning.detail == "key source kme-a does without KME north"


def test_policy_off_wants_no_link_and_no_hybrid_mode():
    found = assess(made.WITHOUT_QKD)
    assert found.ready
    assert found.warnings == ()


def test_a_peer_without_a_usable_tunnel_is_not_ready_and_the_last_trouble_is_named():
    found = assess(made.NO_TUNNEL)
    assert reasons(found.not_ready) == [Reason.NO_TUNNEL]
    assert found.not_ready[0].detail.endswith("dialling failed 2.0 s ago: connect_refused")
    unusable = made.with_peer(tunnels=(made.tunnel(usable=False),))
    assert reasons(assess(unusable).not_ready) == [Reason.NO_TUNNEL]


def test_draining_is_not_ready():
    found = assess(made.DRAINING)
    assert reasons(found.not_ready) == [Reason.SHUTDOWN]
    assert found.not_ready[0].about == "gateway"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"source_key_age_s": 299.9, "source_key_deadline_s": 0.1}, None),
        ({"source_key_age_s": 300.1, "source_key_deadline_s": None}, Reason.QKD_TOO_OLD),
        (
            {"source_key_age_s": 61.0, "source_key_deadline_s": -1.0},
            Reason.QKD_TOO_OLD,
        ),  # the peer's limit
        ({"source_key": KeyUse.NEVER, "source_key_age_s": None}, Reason.POLICY_REQUIRE),
        # A classical-only epoch under "require" does not happen; a key that is fresh enough is
        # what counts.
        (
            {"mode": Mode.CLASSICAL_ONLY, "source_key": KeyUse.CHAINED, "source_key_age_s": 100.0},
            None,
        ),
    ],
)
def test_require_needs_a_fresh_key(changes, reason):
    status = made.with_peer(policy=made.REQUIRE, tunnels=(made.tunnel(**changes),))
    assert reasons(assess(status).not_ready) == ([] if reason is None else [reason])


def test_under_require_one_fresh_tunnel_is_enough_and_an_unusable_one_is_not():
    old = made.tunnel(source_key_age_s=400.0)
    both = made.with_peer(policy=made.REQUIRE, tunnels=(old, made.TUNNEL))
    assert assess(both).ready
    draining = made.with_peer(
        policy=made.REQUIRE, tunnels=(old, made.tunnel(usable=False, source_key_age_s=1.0))
    )
    assert reasons(assess(draining).not_ready) == [Reason.QKD_TOO_OLD]


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (made.with_peer(tunnels_wanted=2), Reason.NO_TUNNEL, "1 of 2 tunnels are up"),
        (
            made.with_peer(tunnels=(made.tunnel(tls_group="x25519", tls_group_hybrid=False),)),
            Reason.TLS_GROUP,
            "x25519, without ML-KEM",
        ),
        (
            made.with_peer(
                policy=made.REQUIRE, tunnels=(made.tunnel(source_key_deadline_s=100.0),)
            ),
            Reason.QKD_TOO_OLD,
            "ends in 1 min 40 s",
        ),
        (made.with_peer(tunnels=(made.tunnel(simulated=True),)), None, "SIMULATED"),
        (made.with_peer(link=replace(made.LINK, simulated=True)), None, "SIMULATED"),
        (
            made.with_peer(stock=replace(made.STOCK, low=True, available=2, exhaustion_s=5.0)),
            Reason.KEYS_EXHAUSTED,
            "2 keys in stock, for 5.0 s",
        ),
        (
            made.with_peer(tunnels=(made.tunnel(economy=True, rekey_interval_s=120.0),)),
            Reason.KEYS_EXHAUSTED,
            "stretched up to 2 min 0 s",
        ),
        (
            made.with_peer(link=replace(made.LINK, failures=made.counts(Reason.KME_TIMEOUT))),
            Reason.KME_TIMEOUT,
            "calls to kme-a fail",
        ),
        (
            made.gateway(listeners=(replace(made.LISTENER, connections_open=10_000),)),
            Reason.LIMIT_REACHED,
            "full",
        ),
        (
            made.gateway(
                listeners=(replace(made.LISTENER, refused=made.counts(Reason.CLIENT_TLS)),)
            ),
            Reason.CLIENT_TLS,
            "connections are refused",
        ),
        (
            made.gateway(
                listeners=(replace(made.LISTENER, failed=made.counts(Reason.CONNECT_REFUSED)),)
            ),
            Reason.CONNECT_REFUSED,
            "connections are reset",
        ),
        (
            made.gateway(
                services=(replace(made.SERVICE, refused=made.counts(Reason.CONNECT_REFUSED)),)
            ),
            Reason.CONNECT_REFUSED,
            "streams are refused",
        ),
        (
            made.gateway(unknown_services=made.counts(Reason.SERVICE_UNKNOWN)),
            Reason.SERVICE_UNKNOWN,
            "unknown services",
        ),
        (
            made.gateway(unauthenticated=made.counts(Reason.CERTIFICATE_EXPIRED)),
            Reason.CERTIFICATE_EXPIRED,
            "fail to authenticate",
        ),
    ],
)
def test_each_warning_names_its_reason(status, reason, words):
    found = assess(status)
    assert found.ready
    assert reasons(found.warnings) == [reason]
    assert words in found.warnings[0].detail


def test_what_was_refused_long_ago_is_no_warning():
    old = made.counts(Reason.CLIENT_TLS, age_s=61.0)
    status = made.gateway(listeners=(replace(made.LISTENER, refused=old),))
    assert assess(status).warnings == ()


def test_what_clients_reset_is_no_warning():
    reset = replace(made.LISTENER, failed=made.counts(Reason.CONNECTION_RESET))
    assert assess(made.gateway(listeners=(reset,))).warnings == ()


def test_a_link_that_has_just_begun_is_given_a_moment():
    young = replace(made.LINK, state=LinkState.DEGRADED, reason=Reason.INITIAL, age_s=1.0)
    assert assess(made.with_peer(link=young)).warnings == ()
    silent = replace(young, age_s=11.0)
    assert "no word" in assess(made.with_peer(link=silent)).warnings[0].detail


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0.0 s"),
        (0.25, "0.2 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (86_399.0, "23 h 59 min"),
        (90_000.0, "1 d 1 h"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert format_duration(seconds) == text


def test_a_stricter_service_that_is_refused_is_a_warning_and_the_gateway_stays_ready():
    judged = assess(made.PAYMENTS_REFUSED)
    assert judged.ready
    found = [
        (entry.about, entry.name, entry.detail.split(":")[0])
        for entry in judged.warnings
        if entry.reason is Reason.POLICY_REQUIRE
    ]
    assert found == [
        ("listener", "web", "a key is required here and no tunnel to gw-b has a fresh one"),
        ("service", "db", "a key is required here and no tunnel of gw-b has a fresh one"),
    ]


def test_a_log_that_fails_makes_the_gateway_unready_under_stop_and_warns_under_continue():
    (reason,) = assess(made.AUDIT_STOPS).not_ready
    assert (reason.reason, reason.about) == (Reason.AUDIT_FAILURE, "gateway")
    assert "disk_full" in reason.detail
    goes_on = assess(made.AUDIT_GOES_ON)
    assert goes_on.ready
    assert [finding.reason for finding in goes_on.warnings] == [Reason.AUDIT_FAILURE] * 2
    assert "traffic goes on without" in goes_on.warnings[0].detail
    assert "7 records" in goes_on.warnings[1].detail
    assert not assess(made.AUDITED).warnings
