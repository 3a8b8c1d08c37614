"""What a gateway's log lines come to."""

import pytest

from qproxy.demo.facts import MAX_COMPLAINTS, MAX_MODE_CHANGES, GatewayFacts
from qproxy.modes import Mode


def taken(*events, disturbed=False):
    facts = GatewayFacts("gw-a", disturbed=disturbed)
    for number, event in enumerate(events):
        facts.take({"level": "info", **event}, float(number))
    return facts


def committed(mode, keys=0, simulated=None):
    return {
        "level": "debug",
        "event": "epoch_committed",
        "mode": mode,
        "keys": keys,
        "simulated": simulated,
    }


def test_epochs_and_keys_are_counted():
    facts = taken(
        committed("hybrid", 1, True), committed("hybrid", 2, True), committed("classical-only")
    )
    assert facts.epochs == {Mode.HYBRID: 2, Mode.CLASSICAL_ONLY: 1}
    assert (facts.epoch_count, facts.keys, facts.simulated) == (3, 3, True)


@pytest.mark.parametrize("other", [False, None])
def test_one_key_that_is_not_said_to_be_simulated_is_enough(other):
    assert taken(committed("hybrid", 1, other), committed("hybrid", 1, True)).simulated is False
    assert taken(committed("hybrid", 1, True), committed("hybrid", 1, other)).simulated is False


def test_modes_keep_when_and_why():
    event = {"event": "mode_changed", "mode": "hybrid", "reason": "initial", "epoch": 1}
    facts = taken({"event": "other"}, event)
    (change,) = facts.mode_changes
    assert (change.at_s, change.mode, change.reason, change.epoch) == (1.0, "hybrid", "initial", 1)
    assert facts.mode == "hybrid"


def test_mode_changes_without_end_are_a_complaint():
    event = {"event": "mode_changed", "mode": "hybrid"}
    facts = taken(*[event] * (MAX_MODE_CHANGES + 1))
    assert len(facts.mode_changes) == MAX_MODE_CHANGES
    assert facts.complaints


@pytest.mark.parametrize(
    ("level", "event", "disturbed", "complains"),
    [
        ("debug", "kme_call_failed", False, False),
        ("info", "tunnel_up", False, False),
        ("warning", "link_state", True, False),
        ("warning", "link_state", False, True),
        ("warning", "mode_changed", False, True),
        ("warning", "epoch_failed", True, False),
        ("warning", "tunnel_closed", True, True),
        ("warning", "client_refused", True, True),
        ("error", "link_state", True, True),
        (None, "link_state", True, True),
    ],
)
def test_only_a_cut_link_excuses_warnings_about_it(level, event, disturbed, complains):
    facts = taken({"level": level, "event": event}, disturbed=disturbed)
    assert bool(facts.complaints) is complains


def test_slow_answers_of_a_kme_are_no_complaint_but_a_dead_one_is():
    slow = {"level": "warning", "event": "link_state", "reason": "link_degraded"}
    assert taken(slow).complaints == []
    assert taken({**slow, "reason": "kme_timeout"}).complaints


def test_complaints_and_stray_lines_are_bounded():
    facts = taken(*[{"level": "error", "event": "x"}] * 100)
    assert len(facts.complaints) == MAX_COMPLAINTS
    for _ in range(100):
        facts.take_stray("y" * 1000)
    assert len(facts.stray) == MAX_COMPLAINTS
    assert len(facts.stray[0]) == 200


def test_fields_of_other_types_do_no_harm():
    facts = taken(
        {"event": "gateway_started", "listeners": [1], "tunnel_listen": {"a": 1}},
        {"event": "mode_changed", "mode": 5, "epoch": "x"},
        {"event": "epoch_committed", "mode": None, "keys": "many"},
        {"event": "peer_totals", "peer": "gw-b", "streams": 3, "tunnels": True},
    )
    assert (facts.listeners, facts.tunnel_listen, facts.mode) == ({}, [], "?")
    assert facts.totals == {"streams": 3}
