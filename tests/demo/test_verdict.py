"""A run that was not as it should be is never called PASS."""

import pytest

from qproxy.demo.facts import ModeChange
from qproxy.demo.report import document, result, table
from qproxy.demo.verdict import find_problems
from qproxy.modes import Mode
from tests.demo.helpers import OPTIONS, good_record


def spoil(path, value):
    """A good record with one value changed; `path` as in Python."""
    record = good_record()
    *parents, name = path.split(".")
    target = record
    for parent in parents:
        target = target[int(parent)] if parent.isdigit() else getattr(target, parent)
    if isinstance(target, dict):
        target[name] = value
    else:
        getattr(target, name)  # a misspelt path must not pass for a fault
        setattr(target, name, value)
    return record


def test_a_run_that_went_well_has_no_problem():
    assert find_problems(good_record(), OPTIONS) == []


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("traffic.failed", 1, "1 of 109 connections failed"),
        ("traffic.verified_bytes", 15_999_999, "1 bytes were lost or wrong"),
        ("traffic.sent_bytes", 9001, "bytes towards the service"),
        ("traffic.received_bytes", 7999, "bytes from the service"),
        ("traffic.opened", 110, "connections: 109 and 110"),
        ("heartbeat.ended_at_s", None, "no clean end"),
        ("heartbeat.frames_verified", 999, "999 of 1000 frames"),
        ("heartbeat.longest_gap_s", 5.1, "silent for 5.1 s"),
        ("parts", [], "0 of 3 parts"),
        ("parts.0.epochs", 1, "1 epochs were committed"),
        ("parts.1.modes_seen", [Mode.CLASSICAL_ONLY, Mode.HYBRID], "was not classical-only"),
        ("parts.2.down_bytes", 1, "not all of the load"),
        ("fall_back_s", None, "no fall back"),
        ("fall_back_s", 10.5, "took 10.5 s"),
        ("climb_back_s", None, "no climb back"),
        ("climb_back_s", 20.5, "took 20.5 s"),
        ("near.exit_code", 1, "gw-a ended with exit code 1"),
        ("far.exit_code", None, "gw-b ended with exit code None"),
        ("far.killed", True, "was killed"),
        ("near.facts.stopped", False, "did not log its end"),
        ("near.facts.complaints", ["warning: tunnel_closed"], "log of gw-a: warning"),
        ("far.facts.stray", ["Traceback"], "log of gw-b: no event: Traceback"),
        ("far.facts.tls_group", "x25519", "TLS group was x25519"),
        ("near.facts.tunnels_up", 2, "gw-a had 2 tunnels"),
        ("near.facts.simulated", False, "are simulated"),
        ("near.facts.totals", None, "did not log its totals"),
        ("near.facts.totals.keys", 5, "keys"),
        ("far.facts.totals.bytes_received", 8999, "9000 and 8999"),
        ("far.facts.totals.keys_redeemed", 5, "redeemed 5 keys and used 6"),
        ("far.facts.mode_changes", [], "gw-b went through the modes none"),
        ("service_complaints", ["log of service: request_failed"], "request_failed"),
        ("aborted", "gw-a ended with exit code 1", "gw-a ended"),
    ],
)
def test_each_fault_is_told_and_makes_the_run_fail(path, value, word):
    record = spoil(path, value)
    problems = find_problems(record, OPTIONS)
    assert any(word in problem for problem in problems), problems
    assert result(problems) == "FAIL"
    assert document(record, problems)["result"] == "FAIL"
    assert table(record, problems)[-1].endswith("FAIL")


def test_a_second_fall_back_is_a_problem():
    record = good_record()
    record.near.facts.mode_changes.append(ModeChange(5.0, Mode.CLASSICAL_ONLY, "reason", 9))
    assert find_problems(record, OPTIONS) == [
        "gw-a went through the modes hybrid -> classical-only -> hybrid -> classical-only"
    ]


def test_a_run_that_was_given_up_tells_why_and_what_the_gateways_complained_of():
    record = good_record()
    record.aborted, record.parts = "kme-sim ended", []
    record.far.facts.complaints.append("warning: link_state")
    assert find_problems(record, OPTIONS) == ["kme-sim ended", "log of gw-b: warning: link_state"]
