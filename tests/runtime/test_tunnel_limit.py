"""How many tunnels a gateway takes."""

from __future__ import annotations

import os
from pathlib import Path

import trio
import trio.testing

from qproxy.address import TcpAddress
from qproxy.config.reader import load_gateway_config
from qproxy.errors import Reason
from qproxy.log import get_logger
from qproxy.modes import Mode
from qproxy.net.listen import open_connection
from qproxy.runtime.build import build_tunnel_contexts
from qproxy.runtime.gateway import Gateway
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import EpochDue, Event, StreamRequested
from qproxy.tunnel.settings import Role
from tests.e2e.pair import write_pki
from tests.tunnel.helpers import KEM

TUNNELS, LIMIT = 5, 2
IDENTITY = """\
node: {{name: {name}}}
identity: {{certificate: pki/{name}.pem, private_key: pki/{name}.key, ca: pki/ca.pem}}
"""
GW_A = "peers: {gw-b: {address: '127.0.0.1:1', policy: 'off'}}\n"
GW_B = f"""\
tunnel: {{listen: '127.0.0.1:0', max_tunnels: {LIMIT}}}
peers: {{gw-a: {{policy: 'off'}}}}
"""


def gateway(room: Path, name: str, text: str) -> Gateway:
    path = room / f"{name}.yaml"
    path.write_text(IDENTITY.format(name=name) + text)
    return Gateway(load_gateway_config(path), get_logger("qproxy.test"))


class Authenticated:
    """A peer's tunnels that make no OFFER before all of them have proved who they are."""

    def __init__(self) -> None:
        self.tunnels: list[Tunnel] = []

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        if isinstance(event, EpochDue):
            self.tunnels.append(tunnel)

    def on_stream_requested(self, tunnel: Tunnel, event: StreamRequested) -> None:
        raise AssertionError(event)


async def test_tunnels_that_come_all_at_once_do_not_pass_the_limit(tmp_path: Path) -> None:
    write_pki(tmp_path / "pki")
    a, b = gateway(tmp_path, "gw-a", GW_A), gateway(tmp_path, "gw-b", GW_B)
    b.open()
    address = TcpAddress(*b.tunnel_sockets[0].getsockname())
    context = build_tunnel_contexts(a.config).client
    peer = b.peers["gw-a"]

    async def come(number: int) -> list[Tunnel]:
        owner = Authenticated()
        for _ in range(number):
            connection = Connection(
                Role.CLIENT,
                a.peers["gw-b"].settings,
                tls_context=context,
                kem=KEM,
                random_bytes=os.urandom,
                now=trio.current_time(),
            )
            tunnel = Tunnel(await open_connection(address, 5), connection, owner)
            nursery.start_soon(tunnel.run)
        with trio.fail_after(20):
            while len(owner.tunnels) < number:
                await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.1)
        for tunnel in owner.tunnels:
            if not tunnel.connection.closed:
                tunnel.tell_core(
                    lambda core, now: core.start_epoch(Mode.CLASSICAL_ONLY, Reason.INITIAL, (), now)
                )
        return owner.tunnels

    async def until(tunnels: int, refused: int) -> None:
        closed = peer.totals.tunnels_closed.counts
        with trio.fail_after(20):
            while peer.totals.tunnels + closed[Reason.LIMIT_REACHED] < tunnels + refused:
                await trio.sleep(0.001)
        assert (peer.totals.tunnels, closed[Reason.LIMIT_REACHED]) == (tunnels, refused)

    async with trio.open_nursery() as nursery:
        await b.run(nursery)
        tunnels = await come(TUNNELS)
        await until(LIMIT, TUNNELS - LIMIT)
        with trio.fail_after(20):
            while sum(tunnel.open for tunnel in tunnels) < LIMIT:  # COMMITTED is under way
                await trio.sleep(0.001)
        for tunnel in tunnels:
            tunnel.end(Reason.SHUTDOWN)
            with trio.fail_after(20):
                await tunnel.closed.wait()
        with trio.fail_after(20):
            while peer.tunnels:
                await trio.sleep(0.001)
        await come(LIMIT)  # the places are free again
        await until(2 * LIMIT, TUNNELS - LIMIT)
        nursery.cancel_scope.cancel()
    b.close_listeners()
