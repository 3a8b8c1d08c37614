"""Where applications connect: how many there are, and who counts them."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from qproxy.address import TcpAddress, UnixAddress
from qproxy.config.model import ListenerConfig, PeerConfig
from qproxy.errors import LocalProtocolError, Reason
from qproxy.log import get_logger
from qproxy.net.listen import open_listeners
from qproxy.runtime.listeners import Listener, text_address
from qproxy.runtime.peer import Peer
from qproxy.runtime.tunnel import Tunnel
from tests.net.helpers import tls_contexts

PEER = PeerConfig(name="gw-b", local_sae_id="gw-a", peer_sae_id="gw-b")
HANDSHAKE_TIMEOUT_S = 7.0


class PeerWithoutTunnel(SimpleNamespace):
    """A peer whose tunnel may come up, for as long as a test waits."""

    config = PEER

    def tunnel_now(self, _policy: object) -> None:
        return None

    async def usable_tunnel(self, _policy: object) -> None:
        await trio.sleep_forever()


def listener(sockets: list[socket.socket], **settings: int) -> Listener:
    config = ListenerConfig(
        name="web",
        listen=TcpAddress("127.0.0.1", 0),
        peer="gw-b",
        service="web",
        handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
        **settings,
    )
    made = Listener(config, cast(Peer, PeerWithoutTunnel()), get_logger("qproxy.test"))
    made.open(sockets)
    return made


async def settle() -> None:
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()


async def test_the_limit_counts_the_connections_of_all_addresses_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sockets = [open_listeners(TcpAddress("127.0.0.1", 0))[0] for _ in range(2)]
    addresses = [sock.getsockname() for sock in sockets]
    web = listener(sockets, max_connections=3)
    web.use_tls(tls_contexts()[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(web.run)
        apps = [socket.create_connection(addresses[number % 2]) for number in range(10)]
        await settle()
        assert web.counters.open == 3
        most = 0
        while web.counters.accepted < 10:
            await trio.sleep(HANDSHAKE_TIMEOUT_S / 2)
            await settle()
            most = max(most, web.counters.open)
        assert most == 3
        await trio.sleep(2 * HANDSHAKE_TIMEOUT_S)
        assert web.counters.open == 0
        assert web.counters.refused.counts == {Reason.HANDSHAKE_TIMEOUT: 10}
        for app in apps:
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            app.close()
        nursery.cancel_scope.cancel()
    web.close()


@pytest.mark.parametrize("waits_for", ["a tunnel", "the handshake"])
async def test_who_has_no_stream_yet_is_reset_and_counted_out_when_all_ends(waits_for: str) -> None:
    sockets = open_listeners(TcpAddress("127.0.0.1", 0))
    address = sockets[0].getsockname()
    web = listener(sockets)
    if waits_for == "the handshake":
        web.use_tls(tls_contexts()[0])
    with socket.create_connection(address) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(web.run)
            await settle()
            assert web.counters.open == 1
            nursery.cancel_scope.cancel()
        assert web.counters.open == 0
        assert web.counters.refused.counts == {Reason.SHUTDOWN: 1}
        with pytest.raises(ConnectionResetError):
            app.recv(1)
    # Nobody is accepted any more, though the sockets are still open.
    with socket.create_connection(address):
        await settle()
        assert web.counters.accepted == 1
    web.close()


class NosyTunnel:
    """A tunnel that notes where applications connected to, and takes none."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def meets(self, _policy: object) -> bool:
        return True

    def open_stream(self, _service: str, _client: str, listener: str) -> int:
        self.told.append(listener)
        raise LocalProtocolError(Reason.GOING_AWAY, "as the test wants it")


@pytest.mark.parametrize(
    ("bound", "dialled"),
    [("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "127.0.0.3"), ("::1", "::1"), ("::", "::1")],
)
async def test_the_far_side_is_told_which_address_an_application_connected_to(
    bound: str, dialled: str
) -> None:
    try:
        sockets = open_listeners(TcpAddress(bound, 0))
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("no IPv6 loopback here")
    port = sockets[0].getsockname()[1]
    web, tunnel = listener(sockets), NosyTunnel()
    web.peer.tunnel_now = lambda _policy: cast("Tunnel", tunnel)  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(web.run)
        await settle()
        for _ in range(2):
            socket.create_connection((dialled, port)).close()
        await settle()
        nursery.cancel_scope.cancel()
    web.close()
    assert tunnel.told == [text_address((dialled, port))] * 2


async def test_an_application_at_a_unix_socket_is_said_to_be_at_one(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    web, tunnel = listener(open_listeners(UnixAddress(str(path)))), NosyTunnel()
    web.peer.tunnel_now = lambda _policy: cast("Tunnel", tunnel)  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(web.run)
        await settle()
        with socket.socket(socket.AF_UNIX) as app:
            app.connect(str(path))
            await settle()
        nursery.cancel_scope.cancel()
    web.close()
    assert tunnel.told == ["unix"]
