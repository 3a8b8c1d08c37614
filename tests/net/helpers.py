"""Connected endpoints over real loopback sockets, for the tests of this room."""

from __future__ import annotations

import socket

import trio

from qproxy.address import TcpAddress
from qproxy.modes import ClientAuth
from qproxy.net.endpoint import Endpoint, TcpEndpoint
from qproxy.net.listen import accept, open_connection, open_listeners
from qproxy.net.tls_endpoint import TlsEndpoint
from qproxy.tls.context import client_context, server_context
from tests import pki

CA = pki.authority()
SERVER_NAME = "server.test"


def server_identity():
    return pki.identity(CA, SERVER_NAME, "127.0.0.1", "localhost")


def client_identity():
    return pki.identity(CA, "client.test")


def tls_contexts(*, tls13_only=True):
    server = server_context(
        server_identity(), trust=CA.trust, client_auth=ClientAuth.OPTIONAL, tls13_only=tls13_only
    )
    client = client_context(trust=CA.trust, identity=client_identity(), tls13_only=tls13_only)
    return server, client


def tls12_client_context():
    from OpenSSL import SSL

    context = client_context(trust=CA.trust)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    return context


async def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair over TCP loopback: (accepted, dialled)."""
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    with listener:
        dialled = await open_connection(TcpAddress(*listener.getsockname()), 5)
        return await accept(listener), dialled


async def tcp_pair() -> tuple[TcpEndpoint, TcpEndpoint]:
    accepted, dialled = await socket_pair()
    return TcpEndpoint(accepted), TcpEndpoint(dialled)


async def unshaken_pair(server, client, server_name=SERVER_NAME):
    accepted, dialled = await socket_pair()
    return (
        TlsEndpoint.server(accepted, server),
        TlsEndpoint.client(dialled, client, server_name=server_name),
    )


async def shake(*endpoints: TlsEndpoint) -> None:
    async with trio.open_nursery() as nursery:
        for endpoint in endpoints:
            nursery.start_soon(endpoint.handshake)


async def tls_pair(server=None, client=None) -> tuple[TlsEndpoint, TlsEndpoint]:
    default_server, default_client = tls_contexts()
    pair = await unshaken_pair(server or default_server, client or default_client)
    await shake(*pair)
    return pair


async def receive(endpoint: Endpoint, size: int = 65536) -> bytes:
    """What comes next: at least one byte, or b"" at the end."""
    buffer = memoryview(bytearray(size))
    while (count := endpoint.try_receive_into(buffer)) is None:
        await endpoint.wait_receivable()
    return bytes(buffer[:count])


async def receive_all(endpoint: Endpoint) -> bytes:
    whole = bytearray()
    while data := await receive(endpoint):
        whole += data
    return bytes(whole)


async def send(endpoint: Endpoint, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        taken = endpoint.try_send((rest,))
        rest = rest[taken:]
        if not taken:
            await endpoint.wait_sendable()


async def send_eof(endpoint: Endpoint) -> None:
    while not endpoint.send_eof():
        await endpoint.wait_sendable()
