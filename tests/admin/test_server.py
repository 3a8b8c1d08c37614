"""The admin listener: what it answers, whom it answers, and what it leaves behind."""

from __future__ import annotations

import json
import socket
import types
from pathlib import Path

import pytest
import trio

from qproxy.address import TcpAddress, UnixAddress
from qproxy.admin.server import AdminApi, allowed_host, serve_admin
from qproxy.config.model import AdminConfig
from qproxy.log import get_logger
from qproxy.net.http_server import Request
from tests.admin import made

LOOPBACK = AdminConfig(listen=TcpAddress("127.0.0.1", 9464))
UNIX = AdminConfig(listen=UnixAddress("/run/admin.sock"))


async def ask(path, *, status=made.GATEWAY, method="GET", host="localhost", config=LOOPBACK):
    headers = {} if host is None else {"host": host}

    async def take_snapshot():
        return status

    api = AdminApi(take_snapshot, config)
    return await api.handle(Request(method, path, path, "", headers, b""))


async def test_alive_and_ready_are_two_questions():
    for status in (made.GATEWAY, made.NO_TUNNEL, made.DRAINING):
        assert (await ask("/healthz", status=status)).status == 200
    ready = await ask("/readyz")
    assert ready.status == 200
    assert json.loads(ready.body) == {"ready": True, "not_ready": []}
    for status, reason in (
        (made.NO_TUNNEL, "no_tunnel"),
        (made.DRAINING, "shutdown"),
        (made.AUDIT_STOPS, "audit_failure"),
    ):
        response = await ask("/readyz", status=status)
        assert response.status == 503
        assert json.loads(response.body)["not_ready"][0]["reason"] == reason


async def test_status_and_metrics_show_the_snapshot():
    status = await ask("/status")
    assert json.loads(status.body)["node"] == "gw-a"
    metrics = await ask("/metrics")
    assert b'qproxy_tunnels{mode="hybrid",peer="gw-b"} 1.0' in metrics.body
    assert metrics.content_type.startswith("text/plain")
    for response in (status, metrics):
        assert ("Cache-Control", "no-store") in response.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_nothing_can_be_changed(method):
    response = await ask("/status", method=method)
    assert response.status == 405
    assert ("Allow", "GET, HEAD") in response.headers


@pytest.mark.parametrize("path", ["/", "/status/", "/Status", "/../status", "/%73tatus"])
async def test_there_is_nothing_else(path):
    assert (await ask(path)).status == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/status", "/other"])
@pytest.mark.parametrize("host", [None, "", "attacker.example", "attacker.example:9464"])
async def test_a_web_page_under_another_name_gets_nothing(path, host):
    response = await ask(path, host=host)
    assert response.status == 421
    assert b"gw-b" not in response.body


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:9464", True),
        ("localhost.", True),
        ("127.0.0.1", True),
        ("127.8.9.1:80", True),
        ("[::1]", True),
        ("[::1]:9464", True),
        ("192.0.2.1", False),
        ("[2001:db8::1]:9464", False),
        ("::1", False),
        ("[::1", False),
        ("[::1]x", False),
        ("localhost:", False),
        ("localhost:1:2", False),
        ("localhost:99999999", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("localhost, attacker.example", False),
        ("0x7f000001", False),
        ("2130706433", False),
    ],
)
def test_hosts_on_loopback(host, allowed):
    assert allowed_host(host, LOOPBACK) is allowed


def test_further_hosts_are_those_configured():
    named = AdminConfig(listen=TcpAddress("127.0.0.1", 1), hosts=("Gw-A.ops.example",))
    assert allowed_host("gw-a.ops.example:9464", named)
    assert not allowed_host("gw-b.ops.example", named)
    remote = AdminConfig(listen=TcpAddress("gw-a.internal", 1), unsafe_allow_remote=True)
    assert allowed_host("192.0.2.1", remote)
    assert allowed_host("gw-a.internal", remote)
    assert not allowed_host("attacker.example", remote)
    assert not allowed_host("", remote)


async def test_a_unix_socket_asks_for_no_host():
    assert (await ask("/healthz", host="whatever", config=UNIX)).status == 200


class Gateway:
    """The least a snapshot reads."""

    def __init__(self):
        self.config = types.SimpleNamespace(node=types.SimpleNamespace(name="gw-a"))
        self.kem_provider = "liboqs"
        self.started_at = trio.current_time()
        self.draining = False
        self.peers = self.listeners = {}
        self.services = types.SimpleNamespace(configured={}, refused_unknown=tally())
        self.audit = types.SimpleNamespace(writer=None)
        self.refused = tally()


def tally():
    from qproxy.runtime.counters import Tally

    return Tally()


async def exchange(stream, request):
    async with stream:
        await stream.send_all(request)
        received = b""
        async for part in stream:
            received += part
        return received


async def test_over_tcp_head_has_no_body_and_bodies_are_not_taken():
    config = AdminConfig(listen=TcpAddress("127.0.0.1", 0))
    log = get_logger("qproxy.test")
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            await serve_admin(Gateway(), config, log=log, task_status=task_status)

        (address,) = await nursery.start(serve)
        host, port = address.rsplit(":", 1)
        ends = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        with trio.fail_after(10):
            stream = await trio.open_tcp_stream(host, int(port))
            answer = await exchange(stream, b"HEAD /status" + ends + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n")
            stream = await trio.open_tcp_stream(host, int(port))
            answer = await exchange(stream, b"GET /status" + ends + b"Content-Length: 1\r\n\r\nx")
            assert answer.startswith(b"HTTP/1.1 413 ")
            stream = await trio.open_tcp_stream(host, int(port))
            answer = await exchange(stream, b"GET /readyz" + ends + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
        nursery.cancel_scope.cancel()


async def test_a_unix_socket_is_private_and_goes_with_the_gateway(tmp_path):
    path = tmp_path / "admin.sock"
    config = AdminConfig(listen=UnixAddress(str(path)))
    log = get_logger("qproxy.test")
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            await serve_admin(Gateway(), config, log=log, task_status=task_status)

        assert await nursery.start(serve) == (f"unix:{path}",)
        assert Path(path).stat().st_mode & 0o777 == 0o600
        with trio.fail_after(10):
            stream = await trio.open_unix_socket(path)
            answer = await exchange(
                stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
        assert answer.startswith(b"HTTP/1.1 200 ")
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_an_address_in_use_is_said_before_it_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = AdminConfig(listen=TcpAddress("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(OSError, match="in use"):
            await serve_admin(Gateway(), config, log=get_logger("qproxy.test"))
