"""What a megabyte, a message and a stream cost, in counts and not in seconds.

Both gateways' data planes run in this process over unix sockets, one thread, no other process: so
the counts are the same from run to run, whatever else the machine does. The bounds are a little
above what was counted when they were set. A change that passes them by a wide margin may lower
them; one that breaks them pays for itself elsewhere, and says so.
"""

from __future__ import annotations

import gc
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

import qproxy
from qproxy.address import TcpAddress
from qproxy.config.model import ListenerConfig, PeerConfig, ServiceConfig
from qproxy.log import get_logger
from qproxy.net.endpoint import TcpEndpoint
from qproxy.net.reactor import current_reactor
from qproxy.runtime.listeners import Listener
from qproxy.runtime.peer import Peer
from qproxy.runtime.services import Services
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import Event, StreamRequested
from qproxy.tunnel.settings import Role
from tests.tunnel.helpers import established

MIB = 1 << 20
#: Functions of C that are system calls here. Waiting is counted apart, in turns.
SYSTEM_CALLS = frozenset(
    [
        "recv",
        "recv_into",
        "recvmsg_into",
        "send",
        "sendmsg",
        "accept",
        "_accept",
        "connect",
        "connect_ex",
        "shutdown",
        "close",
        "setsockopt",
        "getsockopt",
        "getsockname",
        "getpeername",
        "setblocking",
        "register",
        "modify",
        "unregister",
        "sched_yield",
    ]
)
SEALED = frozenset({"encrypt_into", "decrypt_into"})
_QPROXY = str(Path(qproxy.__file__).parent)


class Counts:
    """What was called while it counted."""

    def __init__(self) -> None:
        self.calls = 0
        self.of_c: Counter[str] = Counter()

    @property
    def system_calls(self) -> int:
        return sum(count for name, count in self.of_c.items() if name in SYSTEM_CALLS)

    @property
    def records(self) -> int:
        return sum(count for name, count in self.of_c.items() if name in SEALED)

    def __enter__(self) -> Counts:
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> None:
        if not frame.f_code.co_filename.startswith(_QPROXY):
            return
        if event == "call":
            self.calls += 1
        elif event == "c_call":
            self.of_c[argument.__name__] += 1


class Owner:
    """Of a tunnel: hands on what the peer asks for."""

    def __init__(self, on_requested: Callable[[Tunnel, StreamRequested], None]) -> None:
        self._on_requested = on_requested

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        pass

    def on_stream_requested(self, tunnel: Tunnel, event: StreamRequested) -> None:
        self._on_requested(tunnel, event)


@asynccontextmanager
async def tunnels(
    on_requested: Callable[[Tunnel, StreamRequested], None],
) -> AsyncIterator[tuple[Tunnel, Tunnel]]:
    """A near and a far tunnel at work, with the clock of the cores' test pair."""
    near_sock, far_sock = wide_pair()
    pair = established()
    near = Tunnel(near_sock, pair.end(Role.CLIENT), Owner(lambda _t, _e: None))
    far = Tunnel(far_sock, pair.end(Role.SERVER), Owner(on_requested))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.run)
        nursery.start_soon(far.run)
        await settle()
        yield near, far
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """As the cores' test pair has it: 1000 s at its beginning, and standing."""
    clock = trio.testing.MockClock()
    clock.jump(1000)
    return clock


def wide_pair() -> tuple[socket.socket, socket.socket]:
    """A pair whose buffers are the same everywhere, and no larger than any Linux allows."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200 * 1024)
    return pair


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def one_stream() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """An application and a service, joined by a stream through both tunnels."""
    app, near_end = wide_pair()
    far_end, service = wide_pair()

    def serve(tunnel: Tunnel, event: StreamRequested) -> None:
        relay = tunnel.attach(event.stream_id)
        tunnel.accept_stream(event.stream_id)
        relay.start(TcpEndpoint(far_end))

    with app, service:
        app.setblocking(False)
        service.setblocking(False)
        async with tunnels(serve) as (near, _far):
            relay = near.attach(near.open_stream("web", "app", "here"))
            relay.start(TcpEndpoint(near_end))
            await settle()
            yield app, service


async def push(source: socket.socket, sink: socket.socket, total: int) -> None:
    """Send from one end and read at the other until all has arrived."""
    block, buffer = memoryview(bytes(MIB)), bytearray(MIB)
    sent = received = 0
    while received < total:
        with suppress(BlockingIOError):
            sent += source.send(block[: min(MIB, total - sent)]) if sent < total else 0
        await settle()
        try:
            while count := sink.recv_into(buffer):
                received += count
        except BlockingIOError:
            pass


async def exchange(app: socket.socket, service: socket.socket, size: int) -> None:
    """One small request and its answer."""
    app.send(b"q" * size)
    await settle()
    assert len(service.recv(2 * size)) == size
    service.send(b"a" * size)
    await settle()
    assert len(app.recv(2 * size)) == size


async def test_what_a_megabyte_costs(clock: trio.testing.MockClock) -> None:
    async with one_stream() as (app, service):
        await push(app, service, 4 * MIB)
        turns = current_reactor().turns
        with Counts() as counts:
            await push(app, service, 16 * MIB)
        turns = current_reactor().turns - turns
    per_mib = {
        "system calls": counts.system_calls / 16,
        "turns": turns / 16,
        "records": counts.records / 16,
        "calls": counts.calls / 16,
    }
    # These sockets pass some 50 KiB at once. TCP's buffers grow to ten times that, and the counts,
    # which follow how often there is something to do, shrink.
    assert per_mib["system calls"] <= 110
    assert per_mib["turns"] <= 26
    # 65 full records, sealed and opened once each, and what of a read does not fill one.
    assert 130 <= per_mib["records"] <= 180
    assert per_mib["calls"] <= 3200


async def test_what_a_small_message_costs(clock: trio.testing.MockClock) -> None:
    async with one_stream() as (app, service):
        for _ in range(10):
            await exchange(app, service, 256)
        turns = current_reactor().turns
        with Counts() as counts:
            for _ in range(100):
                await exchange(app, service, 256)
        turns = current_reactor().turns - turns
    assert turns <= 600  # one wake-up for each of the four passes, and two of this test's settling
    # Four passes: each way through two gateways.
    per_pass = {
        "system calls": counts.system_calls / 400,
        "records": counts.records / 400,
        "calls": counts.calls / 400,
    }
    assert per_pass["system calls"] == 2.0  # what comes in is read once, and sent on once
    assert per_pass["records"] == 1.0
    assert per_pass["calls"] <= 57


async def test_messages_of_many_streams_share_records_and_system_calls(
    clock: trio.testing.MockClock,
) -> None:
    streams = 50
    ends: list[tuple[socket.socket, socket.socket]] = []
    services: list[socket.socket] = []

    def serve(tunnel: Tunnel, event: StreamRequested) -> None:
        far_end, service = socket.socketpair()
        service.setblocking(False)
        services.append(service)
        relay = tunnel.attach(event.stream_id)
        tunnel.accept_stream(event.stream_id)
        relay.start(TcpEndpoint(far_end))

    async with tunnels(serve) as (near, _far):
        for _ in range(streams):
            app, near_end = socket.socketpair()
            ends.append((app, near_end))
            near.attach(near.open_stream("web", "app", "here")).start(TcpEndpoint(near_end))
        await settle()
        with Counts() as counts:
            for app, _ in ends:
                app.send(b"q" * 64)
            await settle()
        assert all(service.recv(100) == b"q" * 64 for service in services)
        # One record and one call for all of them on the tunnel; each stream's own two remain.
        assert counts.records == 2
        assert counts.of_c["send"] + counts.of_c["sendmsg"] == streams + 1
    for app, _ in ends:
        app.close()
    for service in services:
        service.close()


async def test_what_a_stream_costs(clock: trio.testing.MockClock) -> None:
    streams = 50
    log = get_logger("qproxy.test")
    with socket.create_server(("127.0.0.1", 0), backlog=streams) as service:
        services = Services(
            {"web": ServiceConfig(name="web", connect=TcpAddress(*service.getsockname()))}, log
        )
        peer_config = PeerConfig(name="gw-a", local_sae_id="gw-b", peer_sae_id="gw-a")
        async with (
            tunnels(lambda tunnel, event: services.answer(peer_config, tunnel, event)) as (near, _),
            trio.open_nursery() as nursery,
        ):
            peer = SimpleNamespace(config=peer_config, tunnel_now=lambda _policy: near)
            config = ListenerConfig(
                name="web", listen=TcpAddress("127.0.0.1", 0), peer="gw-b", service="web"
            )
            listener = Listener(config, cast(Peer, peer), log)
            listener.open()
            nursery.start_soon(listener.run)
            await settle()
            address = listener.sockets[0].getsockname()
            await come_and_go(address, service)
            with Counts() as counts:
                for _ in range(streams):
                    await come_and_go(address, service)
            listener.close()
            nursery.cancel_scope.cancel()
    per_stream = {
        "system calls": counts.system_calls / streams,
        "records": counts.records / streams,
        "calls": counts.calls / streams,
    }
    assert listener.counters.open == 0
    assert per_stream["system calls"] <= 24
    # The application's first words leave with what opens the stream.
    assert per_stream["records"] <= 10
    assert per_stream["calls"] <= 710


async def come_and_go(address: Any, service: socket.socket) -> None:
    """One connection: a byte there, a byte back, and both ends go."""
    with socket.create_connection(address) as app:
        app.send(b"q")
        await settle()
        served, _ = service.accept()
        with served:
            assert served.recv(1) == b"q"
            served.send(b"a")
            await settle()
            assert app.recv(1) == b"a"
            app.shutdown(socket.SHUT_WR)
            await settle()
            assert served.recv(1) == b""
        await settle()
        assert app.recv(1) == b""
    await settle()


async def test_what_is_allocated_on_the_way(clock: trio.testing.MockClock) -> None:
    async with one_stream() as (app, service):
        await push(app, service, 16 * MIB)  # buffers have grown to what they need
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            await push(app, service, 16 * MIB)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # The two buffers of 1 MiB each are this test's own. No byte of the 16 MiB is copied into an
    # object of its own on the way while the service reads.
    assert peak - before <= 2.5 * MIB
    assert after - before <= 0.1 * MIB
