"""What is read out of two gateways' logs."""

import pytest

from bench.gateway_log import GatewayLog, changed_at, first_bad_sign
from qproxy.modes import Mode


def line(second, event, **fields):
    return {"time": f"2026-01-31T12:00:{second:06.3f}Z", "event": event, **fields}


@pytest.fixture
def logs():
    return GatewayLog("gw-a"), GatewayLog("gw-b")


BEGAN_S = 1769860800.0  # 2026-01-31T12:00:00Z


def test_a_change_is_over_when_the_second_gateway_has_made_it(logs):
    near, far = logs
    near.take(line(1, "mode_changed", mode="classical-only"))
    assert changed_at(logs, Mode.CLASSICAL_ONLY, BEGAN_S) is None
    far.take(line(1.25, "mode_changed", mode="classical-only"))
    assert changed_at(logs, Mode.CLASSICAL_ONLY, BEGAN_S) == BEGAN_S + 1.25
    assert changed_at(logs, Mode.CLASSICAL_ONLY, BEGAN_S + 1.1) is None
    assert changed_at(logs, Mode.HYBRID, BEGAN_S) is None


def test_the_first_bad_sign_is_the_earliest_of_either_log(logs):
    near, far = logs
    near.take(line(0.5, "kme_call_failed", reason="kme_timeout"))
    near.take(line(1, "link_state", new="healthy"))
    near.take(line(3, "link_state", new="down"))
    far.take(line(2, "epoch_failed", reason="key_mismatch"))
    sign = first_bad_sign(logs, BEGAN_S + 0.75)
    assert (sign.name, sign.at_s) == ("epoch_failed", BEGAN_S + 2)
    assert first_bad_sign(logs, BEGAN_S + 4) is None


def test_events_are_found_by_their_fields_and_the_last_mode_holds(logs):
    near, _ = logs
    assert near.mode_changes == []
    for second, mode in ((1, "hybrid"), (2, "classical-only")):
        near.take(line(second, "mode_changed", mode=mode, epoch=second, epoch_id="x", reason="r"))
    near.take({"event": "a line without a time"})
    assert [event.fields["epoch"] for event in near.find("mode_changed", mode="hybrid")] == [1]
    assert near.mode_changes == [(1, "x", "hybrid", "r"), (2, "x", "classical-only", "r")]
