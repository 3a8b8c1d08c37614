"""New certificates and revocation lists under live tunnels; broken ones change nothing."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from qproxy.config.model import GatewayConfig
from qproxy.config.reader import load_gateway_config
from qproxy.errors import Reason
from qproxy.log import Logger, get_logger
from qproxy.runtime.gateway import Gateway
from qproxy.runtime.reload import FILES_CHECK_S, Reloader, TlsMaterial, load_tls, stamps
from qproxy.tls.identity import TlsIdentity
from qproxy.tls.names import certificate_hash
from qproxy.tunnel.events import EpochCommitted, Event, Reauthenticated, TunnelClosed
from tests import pki

CA = pki.authority()
OTHER_CA = pki.authority("another CA")
FIRST = pki.identity(CA, "gw-a")
SECOND = pki.identity(CA, "gw-a", common_name="the second")
GW_A = """\
node: {{name: gw-a}}
identity: {{certificate: gw-a.pem, private_key: gw-a.key, ca: ca.pem}}
peers: {{gw-b: {{address: '127.0.0.1:{port}', policy: 'off'}}}}
listeners: {{echo: {{listen: '127.0.0.1:0', peer: gw-b, service: echo}}}}
"""
GW_B = """\
node: {{name: gw-b}}
identity: {{certificate: gw-b.pem, private_key: gw-b.key, ca: ca.pem, crl: b.crl}}
tunnel: {{listen: '127.0.0.1:0'}}
peers: {{gw-a: {{policy: 'off'}}}}
services: {{echo: {{connect: '127.0.0.1:{port}'}}}}
"""


@dataclass
class Recorder:
    """A log that keeps its lines."""

    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __getattr__(self, level: str) -> Callable[..., None]:
        def write(event: str, *_error: object, **fields: Any) -> None:
            self.lines.append((level, event, fields))

        return write

    @property
    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]

    def count(self, event: str) -> int:
        return self.events.count(event)


def write_files(room: Path) -> None:
    pki.write_identity(room, "gw-a", FIRST, CA)
    pki.write_identity(room, "gw-b", pki.identity(CA, "gw-b"), CA)
    (room / "b.crl").write_bytes(pki.crl_pem(pki.crl(CA)))


@dataclass
class Side:
    """One gateway, what it said while it reloaded, and what its tunnels did."""

    gateway: Gateway
    reloader: Reloader
    said: Recorder
    seen: list[Event]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


@dataclass
class Two:
    """Gateway a dials gateway b, and both look at their files all the time."""

    a: Side
    b: Side
    room: Path

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():
                await trio.sleep(0.005)

    async def connect(self) -> trio.SocketStream:
        sock = self.a.gateway.listeners["echo"].sockets[0]
        return await trio.open_tcp_stream(*sock.getsockname()[:2])


async def round_trip(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    received = b""
    with trio.fail_after(20):
        while len(received) < len(data):
            part = await stream.receive_some()
            assert part
            received += part
    assert received == data


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # its tunnel was closed


def watched(gateway: Gateway, peer_name: str) -> list[Event]:
    """Every event of one peer's tunnels, from now on."""
    peer, seen = gateway.peers[peer_name], []
    handle = peer.on_tunnel_event

    def on_tunnel_event(tunnel: Any, event: Event) -> None:
        seen.append(event)
        handle(tunnel, event)

    setattr(peer, "on_tunnel_event", on_tunnel_event)  # noqa: B010 - an instance's own
    return seen


@asynccontextmanager
async def two_gateways(room: Path) -> AsyncIterator[Two]:
    write_files(room)
    async with trio.open_nursery() as nursery:
        served = await nursery.start(trio.serve_tcp, echo, 0)

        async def start(name: str, peer: str, text: str) -> Side:
            (room / f"{name}.yaml").write_text(text)
            gateway = Gateway(load_gateway_config(room / f"{name}.yaml"), get_logger("qproxy.test"))
            gateway.open()
            said, seen = Recorder(), watched(gateway, peer)
            reloader = Reloader(gateway, cast("Logger", said), period_s=0.02)
            await gateway.run(nursery)
            nursery.start_soon(reloader.run)
            return Side(gateway, reloader, said, seen)

        port = served[0].socket.getsockname()[1]
        b = await start("gw-b", "gw-a", GW_B.format(port=port))
        port = b.gateway.tunnel_sockets[0].getsockname()[1]
        a = await start("gw-a", "gw-b", GW_A.format(port=port))
        try:
            yield Two(a, b, room)
        finally:
            a.gateway.close_listeners()
            b.gateway.close_listeners()
            nursery.cancel_scope.cancel()


async def test_a_rotated_certificate_takes_hold_and_no_stream_is_lost(tmp_path: Path) -> None:
    async with two_gateways(tmp_path) as two, await two.connect() as stream:
        await round_trip(stream, b"before")
        (tmp_path / "gw-a.key").write_bytes(pki.key_pem(SECOND.private_key))
        (tmp_path / "gw-a.pem").write_bytes(pki.certificate_pem(*SECOND.chain))

        def proved_again() -> bool:
            return any(event.reauthenticated for event in two.b.of(EpochCommitted))

        while_rotating = 0
        with trio.fail_after(20):
            while not proved_again():
                await round_trip(stream, b"%d" % while_rotating)
                while_rotating += 1
        await round_trip(stream, b"after")
        shown = [event.peer_certificate_hash for event in two.b.of(Reauthenticated)]
        assert shown == [certificate_hash(SECOND.certificate)]
        assert two.a.said.events == ["reloaded"]
        assert not two.a.of(TunnelClosed)
        assert two.a.gateway.peers["gw-b"].totals.tunnels == 1


async def test_a_revoked_peer_loses_its_tunnel_and_gets_no_other(tmp_path: Path) -> None:
    async with two_gateways(tmp_path) as two, await two.connect() as stream:
        await round_trip(stream, b"before")
        (tmp_path / "b.crl").write_bytes(pki.crl_pem(pki.crl(CA, FIRST.certificate)))
        await two.until(lambda: bool(two.b.of(TunnelClosed)))
        assert two.b.of(TunnelClosed)[0].reason is Reason.CERTIFICATE_REVOKED
        assert two.b.said.events == ["reloaded"]
        # It dials again, and is refused at the door.
        await two.until(lambda: two.b.gateway.refused.counts[Reason.CERTIFICATE_REVOKED] > 0)
        assert two.b.gateway.peers["gw-a"].tunnels == []
        assert two.b.gateway.peers["gw-a"].totals.tunnels == 1


async def test_a_broken_file_is_loud_and_the_old_one_stays_in_use(tmp_path: Path) -> None:
    async with two_gateways(tmp_path) as two, await two.connect() as stream:
        await round_trip(stream, b"before")
        good = (tmp_path / "b.crl").read_bytes()
        (tmp_path / "b.crl").write_bytes(b"half a li")
        await two.until(lambda: bool(two.b.said.lines))
        level, event, fields = two.b.said.lines[0]
        assert (level, event) == ("error", "reload_failed")
        assert "b.crl" in fields["detail"]
        # A new connection, and a tunnel that proves itself again, by what was loaded before.
        two.a.reloader.ask()
        await two.until(lambda: any(event.reauthenticated for event in two.b.of(EpochCommitted)))
        await round_trip(stream, b"after")
        assert not two.b.of(TunnelClosed)
        assert two.b.said.events == ["reload_failed"]
        (tmp_path / "b.crl").write_bytes(good + b"\n")
        await two.until(lambda: two.b.said.count("reloaded") == 1)
        await round_trip(stream, b"healed")


async def test_a_signal_makes_both_ends_prove_again_though_nothing_changed(tmp_path: Path) -> None:
    async with two_gateways(tmp_path) as two, await two.connect() as stream:
        await round_trip(stream, b"before")
        two.b.reloader.ask()
        await two.until(lambda: any(event.reauthenticated for event in two.b.of(EpochCommitted)))
        await round_trip(stream, b"after")
        assert two.b.said.events == ["reloaded"]
        assert not two.b.of(TunnelClosed)


# --- what is loaded, and when ------------------------------------------------------------------


def config_in(room: Path) -> GatewayConfig:
    write_files(room)
    (room / "gw-b.yaml").write_text(GW_B.format(port=1))
    return load_gateway_config(room / "gw-b.yaml")


NOW = dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("who", "told"),
    [
        (pki.identity(CA, "gw-x"), "expected 'gw-b'"),
        (pki.identity(CA, "gw-b", expired=True), "is valid from"),
        (pki.identity(CA, "gw-b", not_yet_valid=True), "is valid from"),
    ],
)
async def test_a_certificate_that_every_peer_would_refuse_is_not_taken(
    tmp_path: Path, who: TlsIdentity, told: str
) -> None:
    config = config_in(tmp_path)
    load_tls(config, NOW)
    pki.write_identity(tmp_path, "gw-b", who, CA)
    with pytest.raises(Exception, match=told):
        load_tls(config, NOW)


async def test_a_revocation_list_out_of_date_is_not_taken(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    (tmp_path / "b.crl").write_bytes(pki.crl_pem(pki.crl(CA, expired=True)))
    with pytest.raises(Exception, match="out of date"):
        load_tls(config, NOW)


@dataclass
class FakeGateway:
    """Takes note of what it is given."""

    config: GatewayConfig
    loaded_files: Any
    used: list[tuple[bool, frozenset[str]]] = field(default_factory=list)

    async def use_tls(
        self, material: TlsMaterial, *, tunnels: bool, sources: frozenset[str]
    ) -> None:
        self.used.append((tunnels, sources))


class Watching:
    """A reloader over a fake gateway, on a clock that a test turns."""

    def __init__(self, room: Path, clock: trio.testing.MockClock) -> None:
        config = config_in(room)
        self.gateway = FakeGateway(config, stamps(config))
        self.said = Recorder()
        self.reloader = Reloader(self.gateway, cast("Logger", self.said))
        self._clock = clock

    async def looks(self, times: int) -> None:
        """Let it look at the files so often, and finish what it began."""
        for _ in range(times):
            await trio.testing.wait_all_tasks_blocked()
            self._clock.jump(FILES_CHECK_S)
            await trio.testing.wait_all_tasks_blocked()


async def settled(watching: Watching, events: int) -> None:
    """Wait, in real time, for what a thread loads."""
    for _ in range(2000):
        if len(watching.said.lines) >= events:
            return
        await trio.to_thread.run_sync(lambda: None)
    raise AssertionError(watching.said.lines)


async def test_files_are_taken_once_they_rest_and_a_broken_one_is_told_once(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    watching = Watching(tmp_path, mock_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watching.reloader.run)
        await watching.looks(3)
        assert watching.said.lines == []

        (tmp_path / "gw-b.pem").write_bytes(b"")  # being written
        await watching.looks(1)
        assert watching.said.lines == []
        await watching.looks(1)
        await settled(watching, 1)
        await watching.looks(3)
        assert watching.said.events == ["reload_failed"]
        assert watching.gateway.used == []

        pki.write_identity(tmp_path, "gw-b", pki.identity(CA, "gw-b", common_name="new"), CA)
        await watching.looks(2)
        await settled(watching, 2)
        await watching.looks(3)
        assert watching.said.events == ["reload_failed", "reloaded"]
        assert watching.gateway.used == [(True, frozenset())]

        (tmp_path / "b.crl").unlink()
        await watching.looks(2)
        await settled(watching, 3)
        assert watching.said.events[2:] == ["reload_failed"]
        nursery.cancel_scope.cancel()


async def test_a_configuration_that_changed_is_said_to_take_a_restart(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    watching = Watching(tmp_path, mock_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watching.reloader.run)
        watching.reloader.ask()
        await settled(watching, 1)
        assert watching.said.events == ["reloaded"]
        path = tmp_path / "gw-b.yaml"
        path.write_text(path.read_text() + "shutdown: {drain_s: 3}\n")
        watching.reloader.ask()
        await settled(watching, 3)
        assert watching.said.events[1:] == ["configuration_changed", "reloaded"]
        path.write_text("node: {")
        watching.reloader.ask()
        await settled(watching, 5)
        assert watching.said.events[3:] == ["configuration_not_read", "reloaded"]
        nursery.cancel_scope.cancel()


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    before, crl = stamps(config), tmp_path / "b.crl"
    old = crl.stat()
    (tmp_path / "new").write_bytes(crl.read_bytes())
    os.utime(tmp_path / "new", ns=(old.st_atime_ns, old.st_mtime_ns))
    (tmp_path / "new").rename(crl)
    assert stamps(config) != before
