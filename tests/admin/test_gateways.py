"""Snapshots of real gateways: two of them in one process, over loopback, with simulated KMEs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio
from trio.testing import MockClock

from qproxy.admin.assess import assess
from qproxy.admin.document import load_schema
from qproxy.admin.server import serve_admin
from qproxy.admin.snapshot import snapshot, snapshot_peer
from qproxy.admin.status import GatewayStatus, KeyUse
from qproxy.config.reader import load_gateway_config, load_kme_sim_config
from qproxy.errors import Reason
from qproxy.log import get_logger
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState
from qproxy.runtime.gateway import Gateway
from qproxy.sim.server import run_kme_sim
from qproxy.tunnel.settings import Role
from tests.e2e.pair import write_pki
from tests.runtime.pair import gateway_pair

PSK = "5a" * 31 + "5b"
COMMON = """\
node: {{name: {name}}}
identity: {{certificate: pki/{name}.pem, private_key: pki/{name}.key, ca: pki/ca.pem}}
key_sources:
  kme: {{type: etsi-qkd-014, url: 'https://{kme}', ca: pki/ca.pem,
        certificate: pki/{name}.pem, private_key: pki/{name}.key}}
admin: {{listen: '127.0.0.1:0'}}
"""
SIM = """\
kme_sim:
  kmes:
    kme-a: {listen: '127.0.0.1:0', certificate: pki/kme-a.pem, private_key: pki/kme-a.key,
            ca: pki/ca.pem}
    kme-b: {listen: '127.0.0.1:0', certificate: pki/kme-b.pem, private_key: pki/kme-b.key,
            ca: pki/ca.pem}
  saes: {gw-a: kme-a, gw-b: kme-b}
"""
GW_A = """\
peers: {{gw-b: {{address: '127.0.0.1:{port}', key_source: kme, psk_file: psk}}}}
listeners:
  echo: {{listen: '127.0.0.1:0', peer: gw-b, service: echo}}
  none: {{listen: '127.0.0.1:0', peer: gw-b, service: none}}
"""
GW_B = """\
tunnel: {{listen: '127.0.0.1:0'}}
peers: {{gw-a: {{key_source: kme, policy: require, psk_file: psk}}}}
services: {{echo: {{connect: '127.0.0.1:{port}'}}}}
"""


@dataclass
class Two:
    """Gateway a dials gateway b, which requires QKD; each with its admin address."""

    a: Gateway
    b: Gateway
    admin_a: str
    admin_b: str

    async def until(self, condition: Callable[[GatewayStatus, GatewayStatus], bool]) -> None:
        with trio.fail_after(20):
            while not condition(*self.snapshots()):
                await trio.sleep(0.01)

    def snapshots(self) -> tuple[GatewayStatus, GatewayStatus]:
        now = trio.current_time()
        return snapshot(self.a, now), snapshot(self.b, now)


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def get(address: str, path: str) -> tuple[int, bytes]:
    host, port = address.rsplit(":", 1)
    request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
    return await exchange(host, int(port), request)


async def exchange(host: str, port: int, data: bytes) -> tuple[int, bytes]:
    stream = await trio.open_tcp_stream(host, port)
    async with stream:
        await stream.send_all(data)
        received = b"".join([part async for part in stream])
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@asynccontextmanager
async def two_gateways(room: Path) -> AsyncIterator[Two]:
    write_pki(room / "pki")
    (room / "psk").touch(mode=0o600)
    (room / "psk").write_text(PSK)
    (room / "sim.yaml").write_text(SIM)
    log = get_logger("qproxy.test")
    async with trio.open_nursery() as nursery:
        kmes = (await nursery.start(run_kme_sim, load_kme_sim_config(room / "sim.yaml"))).kmes
        served = await nursery.start(trio.serve_tcp, echo, 0)
        echo_port = served[0].socket.getsockname()[1]

        async def start(name: str, kme: str, rest: str) -> tuple[Gateway, str]:
            text = COMMON.format(name=name, kme=kmes[kme]) + rest
            (room / f"{name}.yaml").write_text(text)
            gateway = Gateway(load_gateway_config(room / f"{name}.yaml"), log)
            gateway.open()
            await gateway.run(nursery)

            async def serve(task_status: Any) -> None:
                await serve_admin(gateway, gateway.config.admin, log=log, task_status=task_status)

            (address,) = await nursery.start(serve)
            return gateway, address

        b, admin_b = await start("gw-b", "kme-b", GW_B.format(port=echo_port))
        port = b.tunnel_sockets[0].getsockname()[1]
        a, admin_a = await start("gw-a", "kme-a", GW_A.format(port=port))
        try:
            yield Two(a, b, admin_a, admin_b)
        finally:
            a.close_listeners()
            b.close_listeners()
            nursery.cancel_scope.cancel()


def secrets_of(gateway: Gateway) -> list[bytes]:
    """Everything of a gateway that must not be seen, in the forms it could be seen in."""
    stored = [
        entry.key
        for peer in gateway.peers.values()
        for path in peer.quantum.paths
        for entry in path.stock._stored.values()
    ]
    assert stored
    found = [bytes.fromhex(PSK), *(bytes(key.key) for key in stored)]
    texts = [form(secret) for secret in found for form in (bytes.hex, base64.b64encode)]
    texts += [key.key_id for key in stored]
    return [text.encode() if isinstance(text, str) else text for text in texts]


async def test_what_two_gateways_say_of_each_other(
    tmp_path: Path, unhurried_clock: MockClock
) -> None:
    async with two_gateways(tmp_path) as two:
        # Nothing has been dialled yet.
        status, body = await get(two.admin_b, "/readyz")
        assert (status, json.loads(body)["not_ready"][0]["reason"]) == (503, "no_tunnel")

        await two.until(lambda a, b: assess(a).ready and assess(b).ready)
        data = b"HTTP/1.1 299 echo\r\n\r\n" + bytes(1000)
        (listener,) = two.a.listeners["echo"].sockets
        stream = await trio.open_tcp_stream(*listener.getsockname())
        async with stream:
            await stream.send_all(data)
            received = b""
            while len(received) < len(data):
                received += await stream.receive_some()
            a, b = two.snapshots()
            assert a.listeners[0].connections_open == a.peers[0].streams_open == 1
            assert b.services[0].connections_open == 1

        (refused,) = two.a.listeners["none"].sockets
        stream = await trio.open_tcp_stream(*refused.getsockname())
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.receive_some()
        await two.until(lambda _a, b: b.unknown_services.total == 1)
        await two.until(
            lambda a, _b: (
                all(entry.connections_open == 0 for entry in a.listeners)
                and a.peers[0].tunnels[0].round_trip_s is not None
            )
        )
        # On a machine with much else to do a KME may have been slow.
        await two.until(lambda *both: all(link_state(it) is LinkState.HEALTHY for it in both))
        a, b = two.snapshots()
        assert (a.listeners[0].connections_accepted, b.services[0].connections_opened) == (1, 1)
        assert a.listeners[1].failed.by_reason == {Reason.SERVICE_UNKNOWN: 1}
        check_peers(a, b, len(data))

        for address, gateway in ((two.admin_a, two.a), (two.admin_b, two.a)):
            code, body = await get(address, "/status")
            assert code == 200
            found = json.loads(body)
            jsonschema.Draft202012Validator(load_schema()).validate(found)
            _, metrics = await get(address, "/metrics")
            assert b"qproxy_ready 1.0" in metrics
            for secret in secrets_of(gateway):
                assert secret not in body
                assert secret not in metrics
            assert (await get(address, "/readyz"))[0] == 200

        two.b.draining = True
        assert (await get(two.admin_b, "/readyz"))[0] == 503
        assert (await get(two.admin_b, "/healthz"))[0] == 200


def link_state(gateway: GatewayStatus) -> LinkState | None:
    link = gateway.peers[0].link
    return None if link is None else link.state


def check_peers(a: GatewayStatus, b: GatewayStatus, moved: int) -> None:
    (to_b,), (to_a,) = a.peers, b.peers
    for peer in (to_b, to_a):
        assert peer.mode is Mode.HYBRID
        assert peer.source_key is KeyUse.FRESH
        assert peer.policy.effective is Policy.REQUIRE
        assert peer.psk
        assert peer.epochs == {Mode.HYBRID: 1, Mode.CLASSICAL_ONLY: 0}
        assert peer.mode_changes[0].count == 1
        assert (peer.bytes_sent, peer.bytes_received) == (moved, moved)
        assert peer.streams_opened == 2
        (tunnel,) = peer.tunnels
        assert tunnel.tls_group == "X25519MLKEM768"
        assert tunnel.tls_group_hybrid
        assert tunnel.simulated
        assert tunnel.source_key_deadline_s is not None
        assert 200 < tunnel.source_key_deadline_s <= 300
        assert peer.link is not None
        assert peer.link.state is LinkState.HEALTHY
        assert peer.link.simulated
    assert to_b.policy.local is Policy.PREFER
    assert to_b.policy.peer is Policy.REQUIRE
    assert (to_b.tunnels[0].role, to_a.tunnels[0].role) == (Role.CLIENT, Role.SERVER)
    assert (to_b.tunnels[0].rekey_interval_s, to_a.tunnels[0].rekey_interval_s) == (60.0, None)
    assert to_b.stock is not None
    assert to_a.stock is not None
    assert (to_b.stock.kept, to_b.stock.confirmed, to_a.stock.kept) == (True, 1, False)
    assert to_a.stock.redeemed == 1


@pytest.mark.hastened
async def test_a_fall_back_is_seen_with_its_reason_at_both_ends() -> None:
    async with gateway_pair(rekey_interval_s=0.5) as pair:
        await pair.until_mode(Mode.HYBRID)
        pair.client_source.failure = Reason.KME_UNREACHABLE
        await pair.until_mode(Mode.CLASSICAL_ONLY)
        client = snapshot_peer(pair.client, trio.current_time())
        server = snapshot_peer(pair.server, trio.current_time())
        for peer in (client, server):
            assert peer.mode is Mode.CLASSICAL_ONLY
            assert peer.source_key is KeyUse.CHAINED
            assert peer.source_key_age_s is not None
            (tunnel,) = peer.tunnels
            assert tunnel.mode_reason is Reason.KME_UNREACHABLE
            changes = {(entry.mode, entry.reason): entry.count for entry in peer.mode_changes}
            assert changes[Mode.CLASSICAL_ONLY, Reason.KME_UNREACHABLE] == 1
        assert client.link is not None
        assert (client.link.state, client.link.reason) == (
            LinkState.DOWN,
            Reason.KME_UNREACHABLE,
        )
        assert client.link.failures.last_reason is Reason.KME_UNREACHABLE
        assert client.link.failures.total >= 1
        assert [entry.count for entry in client.link.changes if entry.state is LinkState.DOWN]
        assert server.link is not None
        assert server.link.state is LinkState.HEALTHY


async def test_a_tunnel_that_broke_on_a_fault_of_ours_is_not_shown_as_usable(
    tmp_path: Path,
) -> None:
    async with two_gateways(tmp_path) as two:
        await two.until(lambda a, b: assess(a).ready and assess(b).ready)
        (broken,) = two.b.peers["gw-a"].tunnels

        async def fault(_now: float) -> None:
            raise RuntimeError("a fault of ours")

        broken._check_streams = fault  # type: ignore[method-assign]
        with trio.fail_after(10):
            await broken.closed.wait()
        await two.until(lambda a, _b: a.peers[0].tunnels_opened == 2)
        assert broken not in two.b.peers["gw-a"].tunnels
        (shown,) = two.snapshots()[1].peers[0].tunnels
        assert shown.usable
