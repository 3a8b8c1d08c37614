"""The audit logs of two running gateways: whole, in agreement, and in agreement with all else."""

from __future__ import annotations

import json
import re
import resource
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import MakePair
from tests.e2e.pair import QUICK_TO_CLIMB, GatewayPair, write_pki
from tests.e2e.processes import Program, poll, run
from tests.e2e.sockets import Backend, TwoWayTraffic, assert_reset, connect, proxied, round_trip

Record = dict[str, Any]
GATEWAYS = ("gw-a", "gw-b")
LOG = "audit.jsonl"


def audited(**section: Any) -> dict[str, Any]:
    """Overrides of both gateways' configurations: a log each, and an admin listener."""
    return {
        f"config_{name[-1]}": {
            "audit": {"file": f"{name}/{LOG}", **section},
            "admin": {"listen": "127.0.0.1:0"},
        }
        for name in GATEWAYS
    }


@pytest.fixture
def make_audited(make_pair: MakePair) -> MakePair:
    """A pair with audit logs."""

    def make(*, failure: str = "stop", **options: Any) -> GatewayPair:
        pair = make_pair(start=False, level="debug", **(audited(failure=failure) | options))
        for name in GATEWAYS:
            (pair.directory / name).mkdir(mode=0o700)
        return pair.start()

    return make


def log_of(pair: GatewayPair, name: str) -> Path:
    return pair.directory / name / LOG


def records(path: Path) -> list[Record]:
    return [json.loads(line)["record"] for line in path.read_text().splitlines()]


def of(path: Path, kind: str) -> list[Record]:
    return [record for record in records(path) if record["kind"] == kind]


def both_committed(pair: GatewayPair, epoch: int) -> bool:
    """Both have written that they did."""
    return all(
        epoch in [record["epoch"] for record in of(log_of(pair, name), "epoch_committed")]
        for name in GATEWAYS
    )


def audit(*arguments: str | Path) -> tuple[int, str]:
    done = run(sys.executable, "-m", "qproxy", "audit", *arguments)
    return done.returncode, (done.stdout + done.stderr).decode()


def metrics(gateway: Program) -> str:
    address = gateway.wait_for_event("admin_listening")["addresses"][0]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def mode_changes_counted(gateway: Program) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(metrics(gateway)):
        for sample in family.samples:
            if sample.name == "qproxy_mode_changes_total":
                found[sample.labels["mode"], sample.labels["reason"]] += int(sample.value)
    return found


def stop(*gateways: Program) -> None:
    for gateway in gateways:
        gateway.terminate()
        assert gateway.wait_for_exit() == 0, gateway.failure("ended badly")


def size_limit(gateway: Program, size_bytes: int) -> None:
    """From now on no file of this process may grow beyond; as good as a full disk."""
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def test_log_metric_audit_and_messages_agree_on_every_mode_change(
    make_audited: MakePair, backend: Backend
) -> None:
    pair = make_audited(peer=QUICK_TO_CLIMB | {"rekey": {"interval_s": 0.3}})
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        # The one that offers notices by itself; the one that answers says so in a REJECT.
        for kme in ("kme-a", "kme-b"):
            both_change(pair, "classical-only", "unavailable", kme=kme)
            both_change(pair, "hybrid", "restore", kme=kme)
        pair.b.wait_for_event("epoch_committed", after=pair.b.mark(), reason="rekey_interval")
        moved = traffic.finish()
    for _ in range(5):
        with proxied(pair.address("app"), backend) as (near, far):
            round_trip(near, far)
    counted = {"gw-a": mode_changes_counted(pair.a), "gw-b": mode_changes_counted(pair.b)}
    stop(pair.a, pair.b)

    stories = {}
    for name, gateway in zip(GATEWAYS, (pair.a, pair.b), strict=True):
        changes = of(log_of(pair, name), "mode_changed")
        recorded = [
            (change["was"], change["mode"], change["reason"], change["epoch"], change["epoch_id"])
            for change in changes
        ]
        # The log line, the counter and the record, on this gateway.
        logged = [
            (line["was"], line["mode"], line["reason"], line["epoch"], line["epoch_id"])
            for line in gateway.find("mode_changed")
        ]
        assert logged == recorded
        assert counted[name] == Counter((mode, reason) for _, mode, reason, _, _ in recorded)
        # The authenticated messages: every epoch both ends derived keys for, by its ID.
        committed = [
            (record["epoch"], record["epoch_id"], record["mode"], record["reason"])
            for record in of(log_of(pair, name), "epoch_committed")
        ]
        assert committed == [
            (line["epoch"], line["epoch_id"], line["mode"], line["reason"])
            for line in gateway.find("epoch_committed")
        ]
        stories[name] = (recorded, committed)
    # And all of it the same on the other one.
    assert stories["gw-a"] == stories["gw-b"]
    modes = [mode for _, mode, _, _, _ in stories["gw-a"][0]]
    assert modes == ["hybrid", "classical-only", "hybrid", "classical-only", "hybrid"]

    # The logs are whole and tell one story, which accounts for every byte.
    for name in GATEWAYS:
        code, said = audit("verify", log_of(pair, name))
        assert code == 0, said
    code, said = audit("compare", *(log_of(pair, name) for name in GATEWAYS))
    assert code == 0, said
    assert "difference" not in said
    ended = of(log_of(pair, "gw-a"), "epoch_ended")
    assert sum(record["bytes_sent"] + record["bytes_received"] for record in ended) >= moved
    (closed,) = of(log_of(pair, "gw-a"), "tunnel_closed")
    assert (closed["reason"], closed["clean"], closed["streams_opened"]) == ("shutdown", True, 6)
    first, last = records(log_of(pair, "gw-a"))[1], records(log_of(pair, "gw-a"))[-1]
    assert first["kind"] == "gateway_started"
    assert (last["kind"], last["reason"]) == ("gateway_stopped", "shutdown")
    committed = of(log_of(pair, "gw-a"), "epoch_committed")[0]
    assert (committed["key_sources"], committed["key_kinds"]) == (["kme-a"], ["etsi-qkd-014"])
    assert committed["keys_are"] == ["simulated"]
    assert committed["tls_group"] == "X25519MLKEM768"
    assert (committed["policy_local"], committed["policy_effective"]) == ("prefer", "prefer")

    tampering_is_found(pair)


def both_change(pair: GatewayPair, mode: str, action: str, **arguments: object) -> None:
    """Do something to the link, and wait until both ends are in the mode that follows."""
    assert pair.kme is not None
    marks = [(gateway, gateway.mark()) for gateway in (pair.a, pair.b)]
    pair.kme.control(action, **arguments)
    for gateway, mark in marks:
        gateway.wait_for_event("mode_changed", after=mark, mode=mode)


def tampering_is_found(pair: GatewayPair) -> None:
    """One word of one line, and one line less."""
    good = log_of(pair, "gw-a")
    lines = good.read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if '"mode":"classical-only"' in line)
    spoilt = {
        "changed": [
            *lines[:number],
            lines[number].replace("classical-only", "hybrid"),
            *lines[number + 1 :],
        ],
        "removed": [*lines[:number], *lines[number + 1 :]],
    }
    for name, content in spoilt.items():
        path = pair.directory / f"{name}.jsonl"
        path.write_text("".join(content))
        assert audit("verify", path)[0] == 1
        assert audit("compare", path, log_of(pair, "gw-b"))[0] == 1
    # Cut short it verifies, and the other gateway's log gives it away.
    path = pair.directory / "short.jsonl"
    path.write_text("".join(lines[:number]))
    assert audit("verify", path)[0] == 0
    code, said = audit("compare", path, log_of(pair, "gw-b"))
    assert code == 1
    assert "only gw-b committed it" in said


def test_a_full_disk_under_stop_ends_every_tunnel_and_the_gateway(
    make_audited: MakePair, backend: Backend
) -> None:
    pair = make_audited(peer={"rekey": {"interval_s": 0.1}})
    address = pair.address("app")
    with proxied(address, backend) as (near, far):
        round_trip(near, far)
        size_limit(pair.a, log_of(pair, "gw-a").stat().st_size + 200)
        assert_reset(near)
        assert pair.a.wait_for_exit() == 1
    told = pair.a.wait_for_event("audit_failure")
    assert (told["level"], told["reason"], told["fault"]) == ("error", "audit_failure", "disk_full")
    closed = pair.a.wait_for_event("tunnel_closed")
    assert (closed["reason"], closed["clean"]) == ("audit_failure", True)
    # The peer was told why, in an authenticated END.
    assert pair.b.wait_for_event("tunnel_closed")["reason"] == "audit_failure"
    assert any("error: " in line and LOG in line for line in pair.a.plain_lines)
    assert any("hint: " in line for line in pair.a.plain_lines)
    pair.a.lines[:] = [line for line in pair.a.lines if line.startswith("{")]
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    # What was written is whole. The next start goes on with it.
    assert audit("verify", log_of(pair, "gw-a"))[0] == 0
    pair.start_a()
    pair.wait_for_tunnel(after_b=pair.b.events.index(pair.b.find("tunnel_closed")[-1]))
    stop(pair.a, pair.b)
    assert audit("verify", log_of(pair, "gw-a"))[0] == 0
    assert of(log_of(pair, "gw-a"), "log_resumed")


def test_a_full_disk_under_continue_is_loud_and_loses_no_traffic_and_what_was_queued(
    make_audited: MakePair, backend: Backend
) -> None:
    pair = make_audited(failure="continue", peer={"rekey": {"interval_s": 0.1}})
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        size_limit(pair.a, log_of(pair, "gw-a").stat().st_size + 200)
        told = pair.a.wait_for_event("audit_failure")
        assert (told["level"], told["failure"]) == ("error", "continue")
        assert re.search(r"^qproxy_audit_failing 1\.0$", metrics(pair.a), re.MULTILINE)
        assert re.search(r"^qproxy_ready 1\.0$", metrics(pair.a), re.MULTILINE)
        mark = pair.a.mark()
        pair.a.wait_for_event("epoch_committed", after=mark)
        size_limit(pair.a, resource.RLIM_INFINITY)
        pair.a.wait_for_event("audit_recovered")
        poll(
            "the queue is written",
            lambda: re.search(r"^qproxy_audit_failing 0\.0$", metrics(pair.a), re.MULTILINE),
        )
        traffic.finish()
    assert len(pair.a.find("tunnel_up")) == 1
    stop(pair.a, pair.b)
    code, said = audit("compare", *(log_of(pair, name) for name in GATEWAYS))
    assert code == 0, said
    assert not of(log_of(pair, "gw-a"), "records_lost")


def test_a_log_that_cannot_be_opened_under_continue(make_pair: MakePair, backend: Backend) -> None:
    section = {"file": "missing/audit.jsonl", "failure": "continue"}
    pair = make_pair(kme=False, config_b={"audit": section})
    assert pair.b.wait_for_event("audit_failure")["fault"] == "unwritable"
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_a_log_that_cannot_be_opened_under_stop_keeps_the_gateway_from_starting(
    tmp_path: Path,
) -> None:
    write_pki(tmp_path / "pki")
    config = {
        "node": {"name": "gw-a"},
        "identity": {
            "certificate": "pki/gw-a.pem",
            "private_key": "pki/gw-a.key",
            "ca": "pki/ca.pem",
        },
        "peers": {"gw-b": {"address": "127.0.0.1:1", "policy": "off"}},
        "audit": {"file": "missing/audit.jsonl"},
    }
    path = tmp_path / "gw-a.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run(sys.executable, "-m", "qproxy", "run", path)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert "missing/audit.jsonl" in said
    assert "hint: with audit.failure: stop" in said
    assert "gateway_started" not in said


def test_a_gateway_that_is_killed_leaves_a_log_that_goes_on_and_agrees(
    make_audited: MakePair, backend: Backend
) -> None:
    # Only traffic brings about epochs: none is under way when A is killed, and none is unwritten.
    pair = make_audited(peer={"rekey": {"interval_s": 600, "records": 16}})
    with proxied(pair.address("app"), backend) as (near, far):
        for epoch in (2, 3):
            for _ in range(18):
                round_trip(near, far)
            poll(f"epoch {epoch} in both logs", lambda epoch=epoch: both_committed(pair, epoch))
        pair.a.kill()
        pair.b.wait_for_event("tunnel_closed")
    mark = pair.b.mark()
    pair.start_a()
    pair.wait_for_tunnel(after_b=mark)
    stop(pair.a, pair.b)
    for name in GATEWAYS:
        assert audit("verify", log_of(pair, name))[0] == 0
    assert len(of(log_of(pair, "gw-a"), "log_resumed")) == 1
    code, said = audit("compare", *(log_of(pair, name) for name in GATEWAYS))
    assert code == 0, said
