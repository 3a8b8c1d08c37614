"""How gateways end: drained, cut at the deadline, at once, or never having started."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import MakePair
from tests.e2e.pair import GatewayPair, write_pki
from tests.e2e.processes import Program, poll, run
from tests.e2e.sockets import (
    Backend,
    ReservedPort,
    assert_reset,
    connect,
    proxied,
    receive_all,
    round_trip,
)

#: Longer than any wait of these tests: who needs it fails.
NEVER_S = 3600


def with_drain(seconds: float) -> dict[str, object]:
    return {"shutdown": {"drain_s": seconds}}


def refuses(address: str) -> bool:
    try:
        connect(address).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def finish(near: socket.socket, far: socket.socket) -> None:
    """End a connection in order from both sides."""
    near.shutdown(socket.SHUT_WR)
    assert receive_all(far) == b""
    far.shutdown(socket.SHUT_WR)
    assert receive_all(near) == b""


def test_sigterm_lets_open_streams_finish_and_takes_no_new_ones(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, config_a=with_drain(NEVER_S))
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        pair.a.signal(signal.SIGTERM)
        pair.a.wait_for_event("draining")
        poll("new connections are refused", lambda: refuses(pair.address("app")))
        round_trip(near, far)
        assert pair.a.running
        finish(near, far)
    assert pair.a.wait_for_exit() == 0
    drained = pair.a.find("drained")[0]
    assert (drained["streams_cut"], drained["level"]) == (0, "info")
    assert pair.a.events[-1]["event"] == "gateway_stopped"
    # The far end was told, and heard an authenticated end.
    pair.b.wait_for_event("peer_going_away", reason="shutdown")
    assert pair.b.wait_for_event("tunnel_closed")["clean"] is True


def test_sigterm_at_the_services_side_lets_open_streams_finish(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, config_b=with_drain(NEVER_S))
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        pair.b.signal(signal.SIGTERM)
        pair.a.wait_for_event("peer_going_away", reason="shutdown")
        round_trip(near, far)
        finish(near, far)
    assert pair.b.wait_for_exit() == 0
    assert pair.b.find("drained")[0]["streams_cut"] == 0
    assert pair.a.wait_for_event("tunnel_closed")["clean"] is True
    # A lives on, and serves again as soon as B is back.
    mark = pair.a.mark()
    pair.start_b()
    pair.a.wait_for_event("tunnel_up", after=mark)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


@pytest.mark.parametrize("gateway", ["a", "b"])
def test_the_drain_deadline_cuts_what_is_left(
    make_pair: MakePair, backend: Backend, gateway: str
) -> None:
    pair = make_pair(kme=False, config_a=with_drain(0.2), config_b=with_drain(0.2))
    ending: Program = getattr(pair, gateway)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        ending.signal(signal.SIGTERM)
        assert_reset(near)
        assert_reset(far)
    assert ending.wait_for_exit() == 0
    drained = ending.find("drained")[0]
    assert (drained["streams_cut"], drained["level"]) == (1, "warning")


def test_a_second_sigterm_ends_at_once(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, config_a=with_drain(NEVER_S))
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        pair.a.signal(signal.SIGTERM)
        pair.a.wait_for_event("draining")
        pair.a.signal(signal.SIGTERM)
        assert pair.a.wait_for_exit() == 0
        assert pair.a.find("ending_at_once")
        assert_reset(near)
        assert_reset(far)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_gateway_does_not_wait_for_its_drain_deadline(
    make_pair: MakePair, number: signal.Signals
) -> None:
    pair = make_pair(config_a=with_drain(NEVER_S), config_b=with_drain(NEVER_S))
    for gateway in (pair.a, pair.b):
        gateway.signal(number)
        assert gateway.wait_for_exit() == 0
        assert gateway.find("drained")[0]["streams_cut"] == 0


def test_a_gateway_without_its_peer_ends_on_sigterm(make_pair: MakePair) -> None:
    pair = make_pair(kme=False, config_a=with_drain(NEVER_S), start=False)
    with ReservedPort() as nobody:
        pair.tunnel_address = nobody.address
        pair.start_a()
        pair.a.wait_for_event("tunnel_not_connected", reason="connect_refused")
        pair.a.signal(signal.SIGTERM)
        assert pair.a.wait_for_exit() == 0
        pair.b = pair.a


def test_the_simulated_kmes_end_on_sigint(make_pair: MakePair) -> None:
    pair = make_pair()
    assert pair.kme is not None
    pair.kme.program.signal(signal.SIGINT)
    assert pair.kme.program.wait_for_exit() == 0
    assert pair.kme.program.plain_lines == []


def test_a_unix_socket_is_gone_after_the_end_and_a_stale_one_is_replaced(
    make_pair: MakePair, backend: Backend, tmp_path: Path
) -> None:
    path = tmp_path / "near.sock"
    pair = make_pair(kme=False, listeners={"app": {"listen": f"unix:{path}"}})
    pair.a.signal(signal.SIGTERM)
    assert pair.a.wait_for_exit() == 0
    assert not path.exists()

    pair.start_a()
    pair.a.kill()
    assert path.exists()
    pair.start_a()
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


# Never having started.


@pytest.fixture
def config(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """A configuration that works, to be spoilt: its path and its content."""
    write_pki(tmp_path / "pki")
    content: dict[str, object] = {
        "node": {"name": "gw-b"},
        "identity": {
            "certificate": "pki/gw-b.pem",
            "private_key": "pki/gw-b.key",
            "ca": "pki/ca.pem",
        },
        "tunnel": {"listen": "127.0.0.1:0"},
        "peers": {"gw-a": {"policy": "off"}},
    }
    return tmp_path / "gateway.yaml", content


def run_gateway(path: Path, content: dict[str, object]) -> tuple[int, str]:
    """Exit code and standard error of a gateway that should not start."""
    path.write_text(yaml.safe_dump(content))
    done = run(sys.executable, "-m", "qproxy", "run", path)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nodes": {}}, "nodes"),
        ({"node": {"name": "a gateway"}}, "node.name"),
        ({"peers": {"gw-a": {"policy": "maybe"}}}, "peers.gw-a.policy"),
        ({"identity": {"certificate": "nowhere.pem", "private_key": "x", "ca": "x"}}, "nowhere"),
        ({"listeners": {"web": {"listen": "0.0.0.0:0", "peer": "gw-a", "service": "s"}}}, "unsafe"),
    ],
)
def test_a_wrong_configuration_is_an_error_with_its_place_and_code_78(
    config: tuple[Path, dict[str, object]], change: dict[str, object], told: str
) -> None:
    path, content = config
    code, complaints = run_gateway(path, content | change)
    assert code == 78, complaints
    assert complaints.startswith(f"error: {path}:")
    assert told in complaints
    assert "Traceback" not in complaints


def test_a_private_key_of_somebody_else_is_an_error_of_the_configuration(
    config: tuple[Path, dict[str, object]],
) -> None:
    path, content = config
    assert isinstance(content["identity"], dict)
    content["identity"]["private_key"] = "pki/gw-a.key"
    code, complaints = run_gateway(path, content)
    assert code == 78, complaints
    assert complaints.startswith("error: ")
    assert "Traceback" not in complaints


@pytest.mark.parametrize("place", ["tunnel", "listener"])
def test_a_port_in_use_is_a_plain_error_with_code_1(
    config: tuple[Path, dict[str, object]], backend: Backend, place: str
) -> None:
    path, content = config
    if place == "tunnel":
        content["tunnel"] = {"listen": backend.address}
        key = "tunnel.listen"
    else:
        listener = {"listen": backend.address, "peer": "gw-a", "service": "app"}
        content["listeners"] = {"app": listener}
        key = "listeners.app.listen"
    code, complaints = run_gateway(path, content)
    assert code == 1, complaints
    errors = [line for line in complaints.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert key in errors[0]
    assert backend.address in errors[0]
    assert "Traceback" not in complaints


def test_a_missing_file_and_wrong_usage_have_their_own_codes(tmp_path: Path) -> None:
    missing = run(sys.executable, "-m", "qproxy", "run", tmp_path / "nowhere.yaml")
    assert missing.returncode == 78
    assert missing.stderr.startswith(b"error: ")
    usage = run(sys.executable, "-m", "qproxy", "walk")
    assert usage.returncode == 2
    assert usage.stderr.startswith(b"error: ")


def test_the_configuration_of_these_tests_would_start(
    config: tuple[Path, dict[str, object]],
) -> None:
    path, content = config
    path.write_text(yaml.safe_dump({**content, "log": {"format": "json"}}))
    with Program.qproxy("gateway", "run", path) as gateway:
        gateway.wait_for_event("gateway_started")


def test_the_commands_of_the_example_configuration_work(
    tmp_path: Path, backend: Backend, make_pair: MakePair
) -> None:
    """`qproxy pki init` and the minimal pair as they are, but for their ports."""
    pair: GatewayPair = make_pair(start=False)
    made = run(sys.executable, "-m", "qproxy", "pki", "init", tmp_path / "trial")
    assert made.returncode == 0, made.stderr
    for path in (tmp_path / "trial").glob("*.*"):
        (pair.directory / "pki" / path.name).write_bytes(path.read_bytes())
    pair.start()
    assert pair.a.find("tunnel_up")[0]["mode"] == "hybrid"
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
