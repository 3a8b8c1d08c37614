"""How connections carry data and how they end, over real loopback sockets."""

from __future__ import annotations

import socket
from functools import partial

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from qproxy.errors import LocalProtocolError, Reason
from qproxy.modes import ClientAuth
from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.reactor import WRITABLE
from qproxy.net.tls_endpoint import TlsEndpoint
from qproxy.tls.context import client_context, server_context
from qproxy.tls.identity import TrustStore
from tests import pki
from tests.net.helpers import (
    CA,
    SERVER_NAME,
    client_identity,
    receive,
    receive_all,
    send,
    send_eof,
    server_identity,
    shake,
    socket_pair,
    tcp_pair,
    tls12_client_context,
    tls_contexts,
    tls_pair,
    unshaken_pair,
)

PAIRS = [pytest.param(tcp_pair, id="tcp"), pytest.param(tls_pair, id="tls")]


async def lost(call) -> Reason:
    with pytest.raises(ConnectionLost) as caught:
        await call()
    return caught.value.reason


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_data_goes_both_ways(make_pair):
    a, b = await make_pair()
    await send(a, b"question")
    assert await receive(b) == b"question"
    await send(b, b"answer")
    assert await receive(a) == b"answer"
    a.close()
    b.close()


def test_a_socket_whose_context_is_of_no_use_is_closed():
    sock = socket.socket()
    with pytest.raises(TypeError):
        TlsEndpoint.server(sock, None)
    assert sock.fileno() == -1


def test_a_socket_whose_servers_name_cannot_be_asked_for_is_closed():
    sock = socket.socket()
    with pytest.raises(TypeError):
        TlsEndpoint.client(sock, tls_contexts()[1], server_name="a\0.test")
    assert sock.fileno() == -1


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_nothing_there_would_block(make_pair):
    a, b = await make_pair()
    assert a.try_receive_into(memoryview(bytearray(10))) is None
    a.close()
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_many_views_arrive_as_one_stream(make_pair):
    a, b = await make_pair()
    views = [memoryview(bytes([i % 256]) * (i % 7)) for i in range(400)]
    expected = b"".join(views)
    received = bytearray()
    while views:
        taken = a.try_send(views)
        while views and taken >= len(views[0]):
            taken -= len(views.pop(0))
        if views:
            views[0] = views[0][taken:]
    while len(received) < len(expected):
        received += await receive(b)
    assert received == expected
    a.close()
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_less_than_all_is_taken_only_where_the_kernel_is_full(make_pair):
    # Whoever is told of changes waits for room after it, and room that was always there is no
    # change: a view left over for no reason would be left for ever.
    a, b = await make_pair()
    small = [memoryview(b"x" * 7)] * 3000
    assert a.try_send(small) == 21000
    received = 0
    while received < 21000:
        received += len(await receive(b))
    a.abort()
    b.abort()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_megabytes_through_a_full_socket_arrive_whole(make_pair):
    a, b = await make_pair()
    for endpoint, option in ((a, socket.SO_SNDBUF), (b, socket.SO_RCVBUF)):
        endpoint.sock.setsockopt(socket.SOL_SOCKET, option, 32768)
    data = bytes(range(256)) * 12_000  # 3 MB: more than the socket buffers hold
    blocked = []
    full = trio.Event()

    async def sender():
        rest = memoryview(data)
        while rest:
            # Views of odd sizes, divided differently at each retry.
            step = 1000 + len(blocked) % 7 * 3001
            views = [rest[i : i + step] for i in range(0, min(len(rest), 300_000), step)]
            taken = a.try_send(views)
            rest = rest[taken:]
            if not taken:
                blocked.append(len(rest))
                full.set()
                await a.wait_sendable()
        await send_eof(a)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender)
        await full.wait()
        assert await receive_all(b) == data
    assert len(blocked) > 1
    a.close()
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
@pytest.mark.parametrize("first", [0, 1])
async def test_half_close_leaves_the_other_direction_open(make_pair, first):
    pair = await make_pair()
    ending, going_on = pair[first], pair[1 - first]
    await send(ending, b"last words")
    await send_eof(ending)
    assert ending.send_eof()  # idempotent
    assert await receive_all(going_on) == b"last words"
    assert await receive(going_on) == b""  # the end stays the end
    data = b"x" * 200_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, going_on, data)
        received = bytearray()
        while len(received) < len(data):
            received += await receive(ending)
    assert received == data
    await send_eof(going_on)
    assert await receive(ending) == b""
    ending.close()
    going_on.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_abort_is_a_reset_to_the_receiver(make_pair):
    a, b = await make_pair()
    a.abort()
    a.abort()
    assert await lost(partial(receive, b)) is Reason.CONNECTION_RESET
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_abort_is_a_reset_to_the_sender(make_pair):
    a, b = await make_pair()
    a.abort()
    await b.wait_receivable()

    async def send_on():
        while True:
            b.try_send((memoryview(b"x" * 1000),))

    assert await lost(send_on) is Reason.CONNECTION_RESET
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_abort_wakes_a_sender_whose_socket_is_full(make_pair):
    a, b = await make_pair()
    data = memoryview(bytes(100_000))
    while b.try_send((data,)):
        pass

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def blocked():
            await b.wait_sendable()
            with pytest.raises(ConnectionLost) as caught:
                b.try_send((data,))
            assert caught.value.reason is Reason.CONNECTION_RESET

        await trio.testing.wait_all_tasks_blocked()
        a.abort()
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_two_tasks_may_wait_for_one_full_socket(make_pair):
    # In TLS one that sends, and one whose reading must answer a KeyUpdate before it goes on.
    a, b = await make_pair()
    data = memoryview(bytes(100_000))
    while b.try_send((data,)):
        pass
    buffer = memoryview(bytearray(1 << 20))
    woken = 0

    async def wait():
        nonlocal woken
        await b.wait_sendable()
        woken += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            while woken < 2:
                a.try_receive_into(buffer)
                await trio.lowlevel.checkpoint()
    a.abort()
    b.abort()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_close_is_a_clean_end_and_what_was_sent_arrives(make_pair):
    a, b = await make_pair()
    await send(a, b"goodbye")
    a.close()
    a.close()
    assert await receive_all(b) == b"goodbye"
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_close_on_unread_data_is_a_reset(make_pair):
    a, b = await make_pair()
    await send(b, b"never read")
    await a.wait_receivable()
    a.close()
    assert await lost(partial(receive, b)) is Reason.CONNECTION_RESET
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_wakes_a_waiting_task(make_pair, how):
    a, b = await make_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def waiting():
            assert await lost(a.wait_receivable) is Reason.CLOSED

        await trio.testing.wait_all_tasks_blocked()
        getattr(a, how)()
    assert a.closed
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_everything_after_close_says_closed(make_pair):
    a, b = await make_pair()
    a.close()

    async def receive_now():
        a.try_receive_into(memoryview(bytearray(1)))

    async def send_now():
        a.try_send((memoryview(b"x"),))

    async def eof_now():
        a.send_eof()

    for call in (receive_now, send_now, eof_now, a.wait_receivable, a.wait_sendable):
        assert await lost(call) is Reason.CLOSED
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_sending_after_the_end_of_this_direction_says_closed(make_pair):
    a, b = await make_pair()
    await send_eof(a)
    assert await lost(partial(send, a, b"more")) is Reason.CLOSED
    a.close()
    b.close()


async def test_unix_sockets_carry_data_and_half_close():
    one, other = socket.socketpair()
    a, b = TcpEndpoint(one), TcpEndpoint(other)
    await send(a, b"hello")
    a.send_eof()
    assert await receive_all(b) == b"hello"
    await send(b, b"hi")
    assert await receive(a) == b"hi"
    a.close()
    b.close()


async def test_tcp_delivers_small_writes_at_once():
    a, b = await tcp_pair()
    for endpoint in (a, b):
        assert endpoint.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        endpoint.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_room_is_told_of_once_somebody_wants_it(make_pair):
    a, b = await make_pair()
    told = []
    a.watch(told.append)
    block = memoryview(bytes(1 << 20))
    while a.try_send((block,)):
        pass
    a.want_room()
    a.want_room()
    await trio.testing.wait_all_tasks_blocked()
    told.clear()
    buffer = memoryview(bytearray(1 << 20))
    with trio.fail_after(10):
        while not any(change & WRITABLE for change in told):
            b.try_receive_into(buffer)
            await trio.testing.wait_all_tasks_blocked()
    a.close()
    b.close()


@pytest.mark.parametrize("make_pair", PAIRS)
async def test_the_last_end_is_a_clean_one_and_what_was_sent_arrives(make_pair):
    a, b = await make_pair()
    await send(a, b"last words")
    await send_eof(b)
    assert await receive_all(a) == b""
    assert a.end()
    assert a.closed
    assert await receive_all(b) == b"last words"
    b.close()


# --- TLS ---------------------------------------------------------------------------------------


async def test_handshake_agrees_on_a_post_quantum_group():
    a, b = await tls_pair()
    assert a.group == b.group == "X25519MLKEM768"
    assert a.tls_version == b.tls_version == "TLSv1.3"
    assert a.alpn == b.alpn == b""
    assert a.peer_certificate == client_identity().certificate
    assert b.peer_certificate == server_identity().certificate
    a.close()
    b.close()


async def test_fin_without_close_notify_is_a_truncation_after_the_data():
    a, b = await tls_pair()
    await send(a, b"half a mess")
    a.sock.shutdown(socket.SHUT_WR)
    assert await receive(b) == b"half a mess"
    assert await lost(partial(receive, b)) is Reason.TRUNCATED
    assert await lost(partial(receive, b)) is Reason.TRUNCATED
    await b.wait_receivable()  # does not hang
    a.close()
    b.close()


async def test_a_cut_inside_a_record_is_a_truncation():
    accepted, dialled = await socket_pair()
    relay_in, relay_out = await socket_pair()
    server_tls, client_tls = tls_contexts()
    server = TlsEndpoint.server(relay_in, server_tls)
    client = TlsEndpoint.client(dialled, client_tls, server_name=SERVER_NAME)
    left = TcpEndpoint(accepted)
    right = TcpEndpoint(relay_out)
    async with trio.open_nursery() as nursery:

        async def pump(source, target):
            while data := await receive(source):
                await send(target, data)

        nursery.start_soon(pump, left, right)
        nursery.start_soon(pump, right, left)
        await shake(server, client)
        nursery.cancel_scope.cancel()
    await send(client, b"x" * 1000)
    record = await receive(left)
    await send(right, record[:-1])
    right.send_eof()
    assert await lost(partial(receive, server)) is Reason.TRUNCATED
    for endpoint in (server, client, left, right):
        endpoint.abort()


async def test_a_flipped_bit_on_the_path_is_a_tls_failure_and_seen_by_both():
    a, b = await tls_pair()
    b.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await lost(partial(receive, a)) is Reason.TLS_FAILURE
    assert await lost(partial(send, a, b"x")) is Reason.TLS_FAILURE
    assert await lost(partial(receive, b)) is Reason.TLS_FAILURE  # the alert
    a.close()
    b.close()


async def test_fewer_bytes_offered_again_is_refused():
    a, b = await tls_pair()
    data = memoryview(bytes(16384))
    while a.try_send((data,)):
        pass
    with pytest.raises(LocalProtocolError):
        a.try_send((data[:10],))
    with pytest.raises(LocalProtocolError):
        a.send_eof()
    a.abort()
    b.abort()


async def test_use_before_the_handshake_is_refused():
    a, b = await unshaken_pair(*tls_contexts())
    with pytest.raises(LocalProtocolError):
        a.try_send((memoryview(b"too early"),))
    a.close()
    b.close()


async def test_an_unread_session_ticket_does_not_turn_close_into_a_reset():
    a, b = await tls_pair()
    a.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    b.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    data = bytes(250_000)
    assert b.try_send((memoryview(data),)) == len(data)  # most of it still in b's kernel
    b.close()
    assert await receive_all(a) == data
    a.close()


async def test_pending_plaintext_makes_waiting_return_at_once():
    a, b = await tls_pair()
    await send(a, b"0123456789")
    assert await receive(b, 4) == b"0123"
    await b.wait_receivable()
    assert await receive(b, 100) == b"456789"
    a.close()
    b.close()


async def test_tls12_works_where_it_is_allowed():
    server = server_context(server_identity())
    a, b = await tls_pair(server, tls12_client_context())
    assert b.tls_version == "TLSv1.2"
    await send(a, b"hello")
    await send_eof(a)
    assert await receive_all(b) == b"hello"
    a.close()
    b.close()


async def test_tls12_is_refused_where_only_tls13_is_allowed():
    server = server_context(server_identity(), tls13_only=True)
    assert await refused(server, tls12_client_context()) == (
        Reason.TLS_FAILURE,
        Reason.TLS_FAILURE,
    )


async def refused(server, client, server_name=SERVER_NAME):
    """What each side says of a handshake that fails, and nobody's socket is left open."""
    pair = await unshaken_pair(server, client, server_name)
    reasons = [None, None]

    async def run(side):
        endpoint = pair[side]
        try:
            await endpoint.handshake()
            # A TLS 1.3 server refuses a client after the client's handshake has ended.
            assert await receive(endpoint) == b"", "not refused"
        except ConnectionLost as error:
            reasons[side] = error.reason
        finally:
            endpoint.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 0)
        nursery.start_soon(run, 1)
    assert pair[0].closed
    assert pair[1].closed
    return tuple(reasons)


def asking(**options):
    return server_context(
        server_identity(),
        **{"trust": CA.trust, "client_auth": ClientAuth.REQUIRED, **options},
    )


@pytest.mark.parametrize("mode", list(ClientAuth))
async def test_client_certificate_by_mode(mode):
    server = server_context(server_identity(), trust=CA.trust, client_auth=mode)
    a, b = await tls_pair(server, client_context(trust=CA.trust, identity=client_identity()))
    expected = None if mode is ClientAuth.NONE else client_identity().certificate
    assert a.peer_certificate == expected
    a.close()
    b.close()


@pytest.mark.parametrize("mode", [ClientAuth.NONE, ClientAuth.OPTIONAL])
async def test_no_client_certificate_is_fine_unless_required(mode):
    server = server_context(server_identity(), trust=CA.trust, client_auth=mode)
    a, b = await tls_pair(server, client_context(trust=CA.trust))
    assert a.peer_certificate is None
    a.close()
    b.close()


async def test_no_client_certificate_is_refused_where_required():
    assert await refused(asking(), client_context(trust=CA.trust)) == (
        Reason.TLS_FAILURE,
        Reason.TLS_FAILURE,
    )


BAD_CLIENTS = {
    "expired": (lambda: pki.identity(CA, "client.test", expired=True), Reason.CERTIFICATE_EXPIRED),
    "other CA": (
        lambda: pki.identity(pki.authority("other CA"), "client.test"),
        Reason.CERTIFICATE_INVALID,
    ),
    "not yet": (
        lambda: pki.identity(CA, "client.test", not_yet_valid=True),
        Reason.CERTIFICATE_INVALID,
    ),
    "server only": (
        lambda: pki.identity(CA, "client.test", client=False),
        Reason.CERTIFICATE_INVALID,
    ),
}


@pytest.mark.parametrize("mode", [ClientAuth.OPTIONAL, ClientAuth.REQUIRED])
@pytest.mark.parametrize("case", BAD_CLIENTS)
async def test_bad_client_certificate_is_told_apart_here_and_an_alert_there(case, mode):
    make, reason = BAD_CLIENTS[case]
    client = client_context(trust=CA.trust, identity=make())
    assert await refused(asking(client_auth=mode), client) == (reason, Reason.TLS_FAILURE)


BAD_SERVERS = {
    "expired": (lambda: pki.identity(CA, SERVER_NAME, expired=True), Reason.CERTIFICATE_EXPIRED),
    "other CA": (
        lambda: pki.identity(pki.authority("other CA"), SERVER_NAME),
        Reason.CERTIFICATE_INVALID,
    ),
    "other name": (lambda: pki.identity(CA, "other.test"), Reason.PEER_NAME_MISMATCH),
    "name in the CN only": (
        lambda: pki.identity(CA, common_name=SERVER_NAME),
        Reason.PEER_NAME_MISMATCH,
    ),
    "client only": (
        lambda: pki.identity(CA, SERVER_NAME, server=False),
        Reason.CERTIFICATE_INVALID,
    ),
}


@pytest.mark.parametrize("case", BAD_SERVERS)
async def test_bad_server_certificate_is_told_apart_here_and_an_alert_there(case):
    make, reason = BAD_SERVERS[case]
    server = server_context(make())
    assert await refused(server, client_context(trust=CA.trust)) == (Reason.TLS_FAILURE, reason)


@pytest.mark.parametrize("mode", [ClientAuth.OPTIONAL, ClientAuth.REQUIRED])
async def test_revoked_client_is_refused_and_another_is_not(mode):
    bad, good = client_identity(), pki.identity(CA, "good.test")
    trust = TrustStore((CA.certificate,), (pki.crl(CA, bad.certificate),))
    server = asking(trust=trust, client_auth=mode)
    assert await refused(server, client_context(trust=CA.trust, identity=bad)) == (
        Reason.CERTIFICATE_REVOKED,
        Reason.TLS_FAILURE,
    )
    a, b = await tls_pair(server, client_context(trust=CA.trust, identity=good))
    a.close()
    b.close()


async def test_the_peer_going_away_in_the_handshake_is_told_apart():
    a, b = await unshaken_pair(*tls_contexts())
    b.close()
    assert await lost(a.handshake) is Reason.TRUNCATED
    a, b = await unshaken_pair(*tls_contexts())
    b.abort()
    assert await lost(a.handshake) is Reason.CONNECTION_RESET


async def test_a_client_that_speaks_no_tls_is_refused():
    a, b = await unshaken_pair(*tls_contexts())
    b.sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await lost(a.handshake) is Reason.TLS_FAILURE
    b.close()


async def test_a_session_cannot_be_resumed():
    server, client = tls_contexts()
    a, b = await tls_pair(server, client)
    await send(a, b"x")
    await receive(b)  # and the ticket with it
    session = b._connection.get_session()
    a.close()
    b.close()
    a, b = await unshaken_pair(server, client)
    b._connection.set_session(session)
    verified = []
    real = SSL.Connection.get_app_data

    def counting(connection):
        verified.append(connection)
        return real(connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSL.Connection, "get_app_data", counting)
        await shake(a, b)
    assert b._connection in verified, "the server's certificate was not verified anew"
    a.close()
    b.close()
