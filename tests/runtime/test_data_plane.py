"""Two gateways' data planes in one process, over real TCP connections."""

from __future__ import annotations

import socket

import trio.testing

from qproxy.net.endpoint import TcpEndpoint
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import StreamRequested
from tests.net.helpers import socket_pair
from tests.runtime.test_hot_path import clock, settle, tunnels

__all__ = ["clock"]


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
