"""Gateways of several workers: all of them serve, and what ends one leaves the others alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from qproxy.admin.document import load_schema
from tests.e2e.conftest import MakePair
from tests.e2e.pair import GatewayPair
from tests.e2e.processes import Program, poll, run
from tests.e2e.sockets import (
    Backend,
    TwoWayTraffic,
    assert_reset,
    proxied,
    receive_all,
    round_trip,
)
from tests.e2e.test_shutdown import refuses

ADMIN = {"admin": {"listen": "127.0.0.1:0"}}
#: Enough that no hash gives all of them to one of two workers.
MANY = 32


def workers(count: int, **more: Any) -> dict[str, Any]:
    return {"node": {"workers": count, **more.pop("node", {})}, **ADMIN, **more}


def ask(gateway: Program, path: str) -> str:
    (address,) = gateway.wait_for_event("admin_listening")["addresses"]
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as response:
        return response.read().decode()


def status(gateway: Program) -> dict[str, Any]:
    return json.loads(ask(gateway, "/status"))


def until(gateway: Program, what: str, condition: Callable[[dict[str, Any]], bool]) -> Any:
    """A status of which something is true; waits for it."""

    def look() -> dict[str, Any] | None:
        found = status(gateway)
        return found if condition(found) else None

    return poll(what, look)


def all_ready(found: dict[str, Any]) -> bool:
    return all(worker["ready"] for worker in found["workers"]) and found["ready"]


def metrics(gateway: Program) -> dict[str, float]:
    lines = [line for line in ask(gateway, "/metrics").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def pids(gateway: Program) -> list[int]:
    return [worker["pid"] for worker in status(gateway)["workers"]]


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in {"Z", "X"}


@contextlib.contextmanager
def many(pair: GatewayPair, backend: Backend, count: int = MANY) -> Iterator[list[Any]]:
    """Connections through the pair, each with its far end, all of which work."""
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(count):
            near, far = stack.enter_context(proxied(pair.address("app"), backend))
            round_trip(near, far)
            ends.append((near, far))
        yield ends


@pytest.fixture
def pair(make_pair: MakePair) -> GatewayPair:
    """Two workers at both ends."""
    pair = make_pair(kme=False, config_a=workers(2), config_b=workers(2))
    for gateway in (pair.a, pair.b):
        until(gateway, "every worker is ready", all_ready)
    return pair


def test_both_workers_serve_and_are_shown_as_one(pair: GatewayPair, backend: Backend) -> None:
    with many(pair, backend):
        found = until(
            pair.a, "all are counted", lambda s: s["listeners"][0]["connections_open"] == MANY
        )
        jsonschema.Draft202012Validator(load_schema()).validate(found)
        parts = [worker["connections_open"] for worker in found["workers"]]
        assert sum(parts) == MANY
        assert min(parts) > 0
        (to_b,) = found["peers"]
        assert to_b["tunnels_wanted"] == len(to_b["tunnels"]) == 2
        assert sorted(tunnel["worker"] for tunnel in to_b["tunnels"]) == [0, 1]
        assert to_b["streams_open"] == MANY
        values = metrics(pair.a)
        assert values['qproxy_listener_accepted_total{listener="app"}'] == MANY
        assert values['qproxy_workers{state="running"}'] == 2
        assert values["qproxy_ready"] == 1
        # Hashing could give both tunnels to one worker there; placing does not.
        far = status(pair.b)
        assert [worker["tunnels"] for worker in far["workers"]] == [1, 1]
        assert sum(worker["streams_open"] for worker in far["workers"]) == MANY
    for gateway in (pair.a, pair.b):
        own = [line for line in gateway.events if line["event"] == "tunnel_up"]
        assert {line["worker"] for line in own} == {0, 1}


@pytest.mark.parametrize("name", ["a", pytest.param("b", marks=pytest.mark.slow)])
def test_the_death_of_one_worker_takes_its_own_streams_alone(
    pair: GatewayPair, backend: Backend, name: str
) -> None:
    gateway: Program = getattr(pair, name)
    with many(pair, backend) as ends:
        before = until(
            pair.a, "all are counted", lambda s: s["listeners"][0]["connections_open"] == MANY
        )
        counted = metrics(pair.a)
        traffic = [TwoWayTraffic(near, far) for near, far in ends[:12]]
        idle = ends[12:]
        first, second = pids(gateway)
        mark = gateway.mark()
        os.kill(first, signal.SIGKILL)
        died = gateway.wait_for_event("worker_died", after=mark)
        assert (died["worker"], died["how"]) == (0, "killed by SIGKILL")
        gateway.wait_for_event("worker_started", after=mark, worker=0)

        lost = 0
        for near, far in idle:
            try:
                round_trip(near, far)
            except (OSError, AssertionError):
                lost += 1
        assert 0 < lost < len(idle)
        survived = 0
        for one in traffic:
            try:
                assert one.finish() > 0
            except (OSError, AssertionError):
                continue
            survived += 1
        assert survived > 0

        after = until(gateway, "every worker is ready", all_ready)
        assert after["workers"][0]["pid"] not in {None, first}
        assert after["workers"][1]["pid"] == second
        assert [worker["starts"] for worker in after["workers"]] == [2, 1]
        assert "killed by SIGKILL" in after["workers"][0]["last_end"]
        assert before["node"] == "gw-a"
        for key, value in metrics(pair.a).items():
            if key.startswith("qproxy_") and "_total" in key and "worker" not in key:
                assert value >= counted.get(key, 0), key
    until(pair.a, "both are ready", all_ready)
    with many(pair, backend):
        found = until(
            pair.a, "all are counted", lambda s: s["listeners"][0]["connections_open"] == MANY
        )
        assert min(worker["connections_open"] for worker in found["workers"]) > 0


def test_every_epoch_finds_its_keys_whichever_workers_a_tunnel_joins(make_pair: MakePair) -> None:
    peer = {"tunnels": 2, "rekey": {"interval_s": 0.5}}
    pair = make_pair(config_a=workers(2), config_b=workers(2), peer=peer)
    for gateway in (pair.a, pair.b):
        until(gateway, "every worker is ready", all_ready)
        found = until(gateway, "epochs", lambda s: s["peers"][0]["epochs"]["hybrid"] >= 24)
        (other,) = found["peers"]
        assert other["mode"] == "hybrid"
        assert other["epochs"]["classical-only"] == 0
        assert other["epoch_failures"] == []
        assert sorted(tunnel["worker"] for tunnel in other["tunnels"]) == [0, 0, 1, 1]
        assert {tunnel["mode"] for tunnel in other["tunnels"]} == {"hybrid"}
    assert not pair.a.find("peer_restarted")


def test_sigterm_drains_every_worker(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=workers(2, shutdown={"drain_s": 3600}))
    until(pair.a, "every worker is ready", all_ready)
    with many(pair, backend) as ends:
        pair.a.signal(signal.SIGTERM)
        pair.a.wait_for_event("draining", worker=0)
        pair.a.wait_for_event("draining", worker=1)
        assert status(pair.a)["draining"]
        poll("new connections are refused", lambda: refuses(pair.address("app")))
        for near, far in ends:
            round_trip(near, far)
            near.shutdown(1)
            assert receive_all(far) == b""
            far.shutdown(1)
            assert receive_all(near) == b""
    assert pair.a.wait_for_exit() == 0
    drained = pair.a.find("drained")
    assert sorted((line["worker"], line["streams_cut"]) for line in drained) == [(0, 0), (1, 0)]
    assert pair.a.events[-1]["event"] == "gateway_stopped"
    assert "worker" not in pair.a.events[-1]
    assert not pair.a.find("worker_died")


def test_a_second_sigterm_ends_every_worker_at_once(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=workers(2, shutdown={"drain_s": 3600}))
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        pair.a.signal(signal.SIGTERM)
        pair.a.wait_for_event("draining")
        pair.a.signal(signal.SIGTERM)
        assert pair.a.wait_for_exit() == 0
        assert_reset(near)


def test_a_worker_that_is_told_to_end_drains_alone_and_is_replaced(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, config_a=workers(2))
    first, _ = pids(pair.a)
    os.kill(first, signal.SIGTERM)
    pair.a.wait_for_event("drained", worker=0)
    pair.a.wait_for_event("worker_started", worker=0, starts=2)
    assert not pair.a.find("drained", worker=1)
    until(pair.a, "every worker is ready", all_ready)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_a_hung_worker_is_killed_and_replaced(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=workers(2, node={"worker_timeout_s": 3}))
    first, second = pids(pair.a)
    os.kill(first, signal.SIGSTOP)
    pair.a.wait_for_event("worker_hung", worker=0)
    died = pair.a.wait_for_event("worker_died", worker=0)
    assert died["how"] == "hung, and was killed"
    pair.a.wait_for_event("worker_started", worker=0, starts=2)
    found = until(pair.a, "every worker is ready", all_ready)
    assert found["workers"][1]["pid"] == second
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_workers_end_with_their_supervisor(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=workers(2))
    before = pids(pair.a)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        os.kill(pair.a.pid, signal.SIGKILL)
        poll("the workers are gone", lambda: all(is_gone(pid) for pid in before))
        assert_reset(near)
    pair.a.wait_for_event("supervisor_gone")


def test_a_unix_socket_is_served_by_all_and_gone_at_the_end(
    make_pair: MakePair, backend: Backend, tmp_path: Path
) -> None:
    path = tmp_path / "near.sock"
    pair = make_pair(kme=False, listeners={"app": {"listen": f"unix:{path}"}}, config_a=workers(2))
    until(pair.a, "every worker is ready", all_ready)
    with many(pair, backend, 8):
        os.kill(pids(pair.a)[0], signal.SIGKILL)
        pair.a.wait_for_event("worker_started", worker=0, starts=2)
    assert path.exists()
    until(pair.a, "every worker is ready", all_ready)
    with many(pair, backend, 8):
        pass
    pair.a.signal(signal.SIGTERM)
    assert pair.a.wait_for_exit() == 0
    assert not path.exists()


def test_a_reload_is_all_workers_or_none(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=workers(2))
    until(pair.a, "every worker is ready", all_ready)
    with many(pair, backend) as ends:
        pair.a.signal(signal.SIGHUP)
        assert pair.a.wait_for_event("reloaded")["workers"] == [0, 1]
        for number in (0, 1):
            pair.a.wait_for_event("reauthenticated", worker=number)
        ca = pair.directory / "pki" / "ca.pem"
        good = ca.read_bytes()
        ca.write_bytes(b"no certificate")
        mark = pair.a.mark()
        pair.a.signal(signal.SIGHUP)
        failed = pair.a.wait_for_event("reload_failed", after=mark, cause="signal")
        assert str(ca) in failed["detail"]
        assert not pair.a.find("reauthenticated", after=mark)
        ca.write_bytes(good)
        for near, far in ends:
            round_trip(near, far)


def errors_of(pair: GatewayPair) -> list[str]:
    """What a gateway said that could not start, once it has ended."""
    pair.tunnel_address = "127.0.0.1:1"
    with pytest.raises(AssertionError, match="no event gateway_started"):
        pair.start_a()
    pair.a.wait_for_exit()
    return [line for line in pair.a.plain_lines if line.startswith("error: ")]


def test_what_is_wrong_at_the_start_is_said_once(tmp_path: Path) -> None:
    pair = GatewayPair(tmp_path, listeners={}, services={}, kme=False, config_a=workers(2))
    (tmp_path / "pki" / "gw-a.key").write_bytes(b"no key")
    (error,) = errors_of(pair)
    assert "gw-a.key: holds no readable private key" in error
    assert pair.a.wait_for_exit() == 78
    pair.close()


def test_a_port_in_use_is_a_plain_error(tmp_path: Path, backend: Backend) -> None:
    listeners = {"app": {"listen": backend.address}}
    pair = GatewayPair(tmp_path, listeners=listeners, services={}, kme=False, config_a=workers(2))
    (error,) = errors_of(pair)
    assert "listeners.app.listen" in error
    assert pair.a.wait_for_exit() == 1
    pair.close()


def test_the_pid_file_names_the_supervisor(make_pair: MakePair) -> None:
    pair = make_pair(kme=False, config_a=workers(2, node={"pid_file": "a.pid"}))
    path = pair.config_path("gw-a")
    assert yaml.safe_load(path.read_text())["node"]["pid_file"] == "a.pid"
    assert int((pair.directory / "a.pid").read_text()) == pair.a.pid


def audited(name: str, count: int) -> dict[str, Any]:
    return workers(count, audit={"file": f"{name}.jsonl"})


def test_each_worker_keeps_a_trail_and_together_they_tell_the_story(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(config_a=audited("gw-a", 2), config_b=audited("gw-b", 2))
    for gateway in (pair.a, pair.b):
        until(gateway, "every worker is ready", all_ready)
    with many(pair, backend):
        first, _ = pids(pair.a)
        os.kill(first, signal.SIGKILL)
        pair.a.wait_for_event("worker_started", worker=0, starts=2)
        until(pair.a, "every worker is ready", all_ready)
    files = [worker["audit"]["file"] for worker in status(pair.a)["workers"]]
    assert [Path(file).name for file in files] == ["gw-a-w0.jsonl", "gw-a-w1.jsonl"]
    for gateway in (pair.a, pair.b):
        gateway.signal(signal.SIGTERM)
        assert gateway.wait_for_exit() == 0
    logs = [pair.directory / f"{name}.jsonl" for name in ("gw-a", "gw-b")]
    for log in logs:
        verified = run(sys.executable, "-m", "qproxy", "audit", "verify", log)
        assert verified.returncode == 0, verified.stderr
        assert verified.stdout.count(b"ok: log of") == 2
    compared = run(sys.executable, "-m", "qproxy", "audit", "compare", *logs)
    assert compared.returncode == 0, compared.stdout
    assert b"gw-a and gw-b agree: " in compared.stdout


def test_without_its_audit_log_no_worker_goes_on(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=audited("gw-a", 2))
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        log = pair.directory / "gw-a-w1.jsonl"
        log.unlink()
        log.mkdir()
        # The next record of that worker's cannot be written.
        pair.a.signal(signal.SIGHUP)
        assert pair.a.wait_for_exit() == 1
        assert_reset(near)
    assert pair.a.find("audit_failure", worker=1)
    assert pair.a.find("worker_ended", worker=0)
    (error,) = [line for line in pair.a.plain_lines if line.startswith("error: ")]
    assert "the audit log cannot be written" in error
    pair.a.lines.clear()  # which that error is not to be found in as something unforeseen
