"""Two gateways' data planes in one process, over real TCP connections.

The storm at the end is played by a seed: connections of every size, plain or TLS, whose ends read
slowly or not at all for a while, half-close, and reset in the middle. Whatever they do, each end
receives what the other sent, whole and in order, or finds the connection reset; and nothing of it
is left behind.
"""

from __future__ import annotations

import functools
import hashlib
import random
import socket
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from qproxy.address import TcpAddress
from qproxy.config.model import ListenerConfig, ServiceConfig
from qproxy.log import get_logger
from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.listen import accept, open_connection, open_listeners
from qproxy.net.reactor import current_reactor
from qproxy.net.tls_endpoint import TlsEndpoint
from qproxy.runtime import loop
from qproxy.runtime.listeners import Listener
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import StreamRequested
from tests.net.helpers import SERVER_NAME, send, send_eof, socket_pair, tls_contexts
from tests.runtime.pair import GatewayPair, gateway_pair
from tests.runtime.test_hot_path import clock, settle, tunnels

__all__ = ["clock"]

#: How many connections of a storm are open at once.
AT_ONCE = 40
#: Everything of a storm has to be over by then, in seconds.
STORM_LIMIT_S = 60.0
NUMBER_BYTES = 4
#: What the kernel takes at once on a tunnel and from a gateway to an application: little, so that
#: everything has to wait now and then.
SEND_BUFFER_BYTES = 32 * 1024
#: What the kernel holds for a slow reader: little, but more than two of loopback's segments.
SLOW_BUFFER_BYTES = 160 * 1024


async def test_what_comes_behind_urgent_data_is_read_too(clock: trio.testing.MockClock) -> None:
    near_end, app = await socket_pair()
    far_end, service = await socket_pair()

    def serve(tunnel: Tunnel, event: StreamRequested) -> None:
        relay = tunnel.attach(event.stream_id)
        tunnel.accept_stream(event.stream_id)
        relay.start(TcpEndpoint(far_end))

    with app, service:
        async with tunnels(serve) as (near, _far):
            near.attach(near.open_stream("web", "", "")).start(TcpEndpoint(near_end))
            await settle()
            app.send(b"before")
            app.send(b"!", socket.MSG_OOB)
            app.send(b" and after")
            await settle()
            assert service.recv(100) == b"before and after"


@dataclass(frozen=True)
class Part:
    """What one end of a connection does.

    Attributes:
        seed: of what it sends.
        size: how much that is, in bytes.
        reset_at: after so many bytes it resets; None to end in order.
        slow: it reads little at a time, with pauses.
        answers: it sends only once the other end has half-closed.
    """

    seed: str
    size: int
    reset_at: int | None
    slow: bool
    answers: bool

    @functools.cached_property
    def data(self) -> bytes:
        return random.Random(self.seed).randbytes(self.size)


def parts(seed: int, number: int) -> tuple[Part, Part]:
    """What the application and the service of a connection do."""
    dice = random.Random(f"{seed}/{number}")

    def part(side: str, *, may_reset: bool, answers: bool) -> Part:
        size = dice.choice((0, 1, 300, 5000, 5000, 16384, 70_000, 300_000, 1_500_000))
        return Part(
            seed=f"{seed}/{number}/{side}",
            size=size,
            reset_at=dice.randrange(size + 1) if may_reset else None,
            slow=dice.random() < 0.3,
            answers=answers,
        )

    reset_by = dice.choice((None, None, None, 0, 1))
    answers = dice.random() < 0.3
    return (
        part("app", may_reset=reset_by == 0, answers=False),
        part("service", may_reset=reset_by == 1, answers=answers),
    )


class Reset(Exception):  # noqa: N818 - not a fault
    """An end has reset the connection, as it should."""


async def play(endpoint: TcpEndpoint | TlsEndpoint, mine: Part, theirs: Part) -> None:
    """Do one end's part, and check what comes from the other."""
    ended = trio.Event()
    digest, received = hashlib.sha256(), 0
    dice = random.Random(mine.seed)

    async def write() -> None:
        if mine.answers:
            await ended.wait()
        offset = 0
        end = mine.size if mine.reset_at is None else mine.reset_at
        while offset < end:
            step = min(dice.choice((1, 700, 9000, 40_000, 200_000)), end - offset)
            await send(endpoint, mine.data[offset : offset + step])
            offset += step
            if dice.random() < 0.2:
                await trio.sleep(0.001)
        if mine.reset_at is not None:
            raise Reset
        await send_eof(endpoint)

    async def read() -> None:
        nonlocal received
        buffer = memoryview(bytearray(256 * 1024))
        while True:
            if mine.slow and dice.random() < 0.3:
                await trio.sleep(dice.choice((0.001, 0.02)))
            most = 20_000 if mine.slow else len(buffer)
            count = endpoint.try_receive_into(buffer[:most])
            if count is None:
                await endpoint.wait_receivable()
                continue
            if not count:
                break
            digest.update(buffer[:count])
            received += count
        ended.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
    except* (Reset, ConnectionLost) as group:
        endpoint.abort()
        if mine.reset_at is None and theirs.reset_at is None:
            raise AssertionError("reset, and nobody had") from group
    else:
        endpoint.close()
        assert theirs.reset_at is None
        assert received == theirs.size
        assert digest.digest() == hashlib.sha256(theirs.data).digest()


class Storm:
    """Both ends of all connections, around two gateways.

    Attributes:
        done: applications whose part is over.
        answering: connections that the service has and is not done with.
    """

    def __init__(self, seed: int, connections: int, *, tls: bool) -> None:
        self.done = 0
        self.answering = 0
        self._seed = seed
        self._connections = connections
        self._tls = tls_contexts() if tls else None

    async def run(self, pair: GatewayPair, service: socket.socket, entrance: TcpAddress) -> None:
        """Until all that were planned are over."""
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as services:
            services.start_soon(self._serve, service, services)
            async with trio.open_nursery() as apps:
                for number in range(self._connections):
                    apps.start_soon(self._connect, entrance, number, limit)
            await pair.until(lambda: not (pair.client.streams or pair.server.streams))
            # The last connections may be gone before a service that pauses has looked.
            await pair.until(lambda: not self.answering)
            services.cancel_scope.cancel()

    async def _connect(
        self, entrance: TcpAddress, number: int, limit: trio.CapacityLimiter
    ) -> None:
        mine, theirs = parts(self._seed, number)
        async with limit:
            with await open_connection(entrance, 10) as sock:
                await self._ask(sock, number, mine, theirs)
        self.done += 1

    async def _ask(self, sock: socket.socket, number: int, mine: Part, theirs: Part) -> None:
        if mine.slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        endpoint: TcpEndpoint | TlsEndpoint = TcpEndpoint(sock)
        if self._tls is not None:
            endpoint = TlsEndpoint.client(sock, self._tls[1], server_name=SERVER_NAME)
            await endpoint.handshake()
        await send(endpoint, number.to_bytes(NUMBER_BYTES, "big"))
        await play(endpoint, mine, theirs)

    async def _serve(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            nursery.start_soon(self.answer, await accept(listening))

    async def answer(self, sock: socket.socket) -> None:
        """Do the service's part on a connection, and close it whatever happens."""
        self.answering += 1
        try:
            with sock:
                await self._answer(sock)
        finally:
            self.answering -= 1

    async def _answer(self, sock: socket.socket) -> None:
        endpoint: TcpEndpoint | TlsEndpoint = TcpEndpoint(sock)
        number, buffer = b"", memoryview(bytearray(NUMBER_BYTES))
        try:
            if self._tls is not None:
                endpoint = TlsEndpoint.server(sock, self._tls[0])
                await endpoint.handshake()
            while len(number) < NUMBER_BYTES:
                count = endpoint.try_receive_into(buffer[len(number) :])
                if count is None:
                    await endpoint.wait_receivable()
                    continue
                assert count
                number += buffer[:count]
        except ConnectionLost:
            endpoint.abort()  # reset before its number came through
            return
        theirs, mine = parts(self._seed, int.from_bytes(number, "big"))
        if mine.slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        await play(endpoint, mine, theirs)


async def storm(seed: int, connections: int, *, tls: bool, tunnels: int) -> None:
    """Play one, and see that nothing is left of it."""
    (service,) = open_listeners(TcpAddress("127.0.0.1", 0))
    offered = ServiceConfig(name="web", connect=TcpAddress(*service.getsockname()))
    config = ListenerConfig(
        name="web", listen=TcpAddress("127.0.0.1", 0), peer="gw-b", service="web"
    )
    played = Storm(seed, connections, tls=tls)
    with service, trio.fail_after(STORM_LIMIT_S):
        async with (
            gateway_pair(services={"web": offered}, tunnels=tunnels) as pair,
            trio.open_nursery() as nursery,
        ):
            await pair.until(
                lambda: len(pair.client.tunnels) == len(pair.server.tunnels) == tunnels
            )
            watched = current_reactor().watched
            listener = Listener(config, pair.client, get_logger("qproxy.test"))
            listener.open()
            tight = [tunnel._sock for tunnel in pair.client.tunnels + pair.server.tunnels]
            for sock in tight + listener.sockets:  # the latter hand it on to what they accept
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            nursery.start_soon(listener.run)
            web = pair.server.services.configured["web"]
            if tls:
                server, client = tls_contexts()
                listener.use_tls(server)
                web.use_tls(client)
            await played.run(pair, service, TcpAddress(*listener.sockets[0].getsockname()))
            listener.close()
            assert played.done == connections
            assert listener.counters.open == 0
            assert web.connections == 0
            assert current_reactor().watched == watched
            assert not pair.closed
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tls", [False, True])
def test_a_storm_of_connections_leaves_every_byte_in_its_place_and_nothing_behind(
    tls: bool,
) -> None:
    loop.run(functools.partial(storm, 1, 120, tls=tls, tunnels=1))


async def test_the_same_where_trio_has_the_thread() -> None:
    await storm(2, 60, tls=False, tunnels=2)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_service_that_is_stopped_amid_its_part_leaves_no_socket_behind(tls: bool) -> None:
    played = Storm(1, 1, tls=tls)
    accepted, dialled = await socket_pair()
    with dialled:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(played.answer, accepted)
            await settle()
            assert played.answering == 1
            nursery.cancel_scope.cancel()
    assert accepted.fileno() == -1
    assert played.answering == 0


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("seed", range(100, 115))
def test_many_storms(seed: int, tls: bool) -> None:
    loop.run(functools.partial(storm, seed, 400, tls=tls, tunnels=1 + seed % 3))
