"""The HTTP server: whole requests, whole responses, and what it does not put up with."""

from __future__ import annotations

import contextlib
import logging

import h11
import pytest
import trio
from trio.testing import memory_stream_pair

from qproxy.address import TcpAddress
from qproxy.net.endpoint import TcpEndpoint
from qproxy.net.http_server import HttpLimits, Request, Response, serve_connection, serve_http
from qproxy.net.listen import open_connection, open_listeners
from qproxy.net.stream import EndpointStream
from qproxy.net.tls_endpoint import TlsEndpoint
from tests.net.helpers import SERVER_NAME, client_identity, receive_all, send, tls_contexts

LIMITS = HttpLimits(max_body_bytes=100, max_header_bytes=1000)
GET = b"GET /path?a=%20b HTTP/1.1\r\nHost: x\r\n\r\n"


class Recorder:
    """A handler that keeps its requests and answers with the body it got."""

    def __init__(self):
        self.requests: list[Request] = []

    async def __call__(self, request):
        self.requests.append(request)
        return Response(200, request.body or b'{"ok":true}')


class Client:
    """The other end of a served memory stream."""

    def __init__(self, stream):
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)
        self.received = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def rest(self) -> bytes:
        """Everything until the server ends the connection."""
        while data := await self.stream.receive_some():
            self.received += data
        return self.received

    async def responses(self) -> list[tuple[int, bytes]]:
        """Everything until the end, as statuses and bodies."""
        return parse(await self.rest())


def parse(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        http.send(h11.EndOfMessage())
        http.receive_data(data)
        head = http.next_event()
        if isinstance(head, h11.InformationalResponse):
            found.append((head.status_code, b""))
            data = data.partition(b"\r\n\r\n")[2]
            continue
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := http.next_event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        found.append((head.status_code, body))
        data = http.trailing_data[0]
    return found


@contextlib.asynccontextmanager
async def served(handler, limits=LIMITS, **options):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            await serve_connection(handler, theirs, limits=limits, **options)

        yield Client(ours)
        await ours.aclose()


async def exchange(handler, data, limits=LIMITS, **options):
    async with served(handler, limits, **options) as client:
        await client.send(data)
        await client.stream.send_eof()
        return await client.responses()


async def test_a_request_arrives_whole():
    handler = Recorder()
    data = (
        b"POST /path?a=%20b HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert await exchange(handler, data) == [(200, b"abc")]
    (request,) = handler.requests
    assert (request.method, request.target) == ("POST", "/path?a=%20b")
    assert (request.path, request.query) == ("/path", "a=%20b")
    assert request.headers == {"host": "x", "x-a": "1, 2", "content-length": "3"}
    assert request.body == b"abc"
    assert request.peer_certificate is None


async def test_a_request_byte_by_byte_is_the_same_request():
    handler = Recorder()
    async with served(handler) as client:
        for byte in GET:
            await client.send(bytes([byte]))
        await client.stream.send_eof()
        assert await client.responses() == [(200, b'{"ok":true}')]


async def test_pipelined_requests_are_answered_in_order():
    handler = Recorder()
    data = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (i, i) for i in range(5)
    )
    assert await exchange(handler, data) == [(200, b"%d" % i) for i in range(5)]
    assert [r.path for r in handler.requests] == [f"/{i}" for i in range(5)]


async def test_the_connection_is_kept_for_the_next_request():
    async with served(Recorder()) as client:
        for _ in range(3):
            await client.send(GET)
            assert parse(bytes(await client.stream.receive_some())) == [(200, b'{"ok":true}')]


@pytest.mark.parametrize(
    "data",
    [GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), GET.replace(b"/1.1", b"/1.0")],
)
async def test_the_connection_ends_where_the_client_wants_it(data):
    async with served(Recorder()) as client:
        await client.send(data)
        assert await client.responses() == [(200, b'{"ok":true}')]


async def test_head_has_no_body():
    async with served(Recorder()) as client:
        await client.send(GET.replace(b"GET", b"HEAD"))
        await client.stream.send_eof()
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"Content-Length: 11" in head
    assert body == b""


async def test_204_has_no_body_and_no_length():
    async def handler(request):
        return Response(204, b"ignored")

    async with served(handler) as client:
        await client.send(GET)
        await client.stream.send_eof()
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert b"Content-Length" not in head
    assert body == b""


async def test_expect_100_continue():
    data = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with served(Recorder()) as client:
        await client.send(data)
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await client.send(b"hi")
        await client.stream.send_eof()
        assert await client.responses() == [(200, b"hi")]


def post(length, extra=b""):
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + extra + b"Content-Length: %d\r\n\r\n" % length


def chunked(*sizes):
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in sizes)
    return b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


REFUSED = {
    "body over the limit": (post(101) + b"x" * 101, 413),
    "body over the limit, expected first": (post(101, b"Expect: 100-continue\r\n"), 413),
    "chunks over the limit": (chunked(60, 60), 413),
    "absurd length": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 900 + b"\r\n\r\n",
        400,
    ),
    "two lengths": (post(1, b"Content-Length: 2\r\n") + b"xx", 400),
    "negative length": (post(-1), 400),
    "headers over the limit": (GET[:-2] + b"X: " + b"x" * 1000 + b"\r\n\r\n", 431),
    "headers without an end": (GET[:-2] + b"X: " + b"x" * 5000, 431),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "absolute target": (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "asterisk target": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "unknown coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "body cut short": (post(10) + b"x", 400),
    "headers cut short": (GET[:-2], 400),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused_with_a_status_and_then_no_more(case):
    data, status = REFUSED[case]
    handler = Recorder()
    responses = await exchange(handler, data)
    assert [code for code, _ in responses] == [status]
    assert handler.requests == []


async def test_chunks_within_the_limit_are_one_body():
    assert await exchange(Recorder(), chunked(50, 50, 0)) == [(200, b"x" * 100)]


async def test_a_good_request_before_a_bad_one_is_answered():
    responses = await exchange(Recorder(), GET + post(101))
    assert [code for code, _ in responses] == [200, 413]


SECRET = "c2VjcmV0IGtleQ"


async def test_a_failing_handler_is_a_bare_500_and_the_next_request_is_served(caplog):
    async def handler(request):
        if request.body:
            raise ValueError(f"cannot use {SECRET}")
        return Response(200, b"fine")

    with caplog.at_level(logging.DEBUG):
        responses = await exchange(handler, post(1) + b"x" + GET)
    assert responses == [(500, b'{"message":"internal error"}'), (200, b"fine")]
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "response",
    [
        Response(200, SECRET.encode(), headers=(("X-Bad\r\nInjected", "1"),)),
        Response(200, SECRET.encode(), headers=(("X-Bad", "1\r\nInjected: 1"),)),
        Response(99, SECRET.encode()),
        Response(200, SECRET.encode(), content_type="a\r\nInjected: 1"),
    ],
)
async def test_a_response_that_cannot_be_sent_is_a_500(response, caplog):
    async def handler(request):
        return response

    assert await exchange(handler, GET) == [(500, b'{"message":"internal error"}')]
    assert SECRET not in caplog.text


def test_bodies_are_not_shown():
    request = Request("POST", "/", "/", "", {}, SECRET.encode())
    assert SECRET not in repr(request)
    assert SECRET not in repr(Response(200, SECRET.encode()))


async def test_a_slow_client_gets_408(autojump_clock):
    handler = Recorder()
    async with served(handler) as client:
        await trio.sleep(LIMITS.idle_timeout_s - 1)
        await client.send(post(100))
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def dribble():
                with contextlib.suppress(trio.BrokenResourceError):
                    while True:
                        await client.send(b"x")
                        await trio.sleep(LIMITS.read_timeout_s / 4)

            responses = await client.responses()
            assert trio.current_time() - started == pytest.approx(LIMITS.read_timeout_s)
        assert [code for code, _ in responses] == [408]
    assert handler.requests == []


async def test_an_idle_client_is_let_go_without_a_word(autojump_clock):
    async with served(Recorder()) as client:
        started = trio.current_time()
        assert await client.rest() == b""
        assert trio.current_time() - started == pytest.approx(LIMITS.idle_timeout_s)


async def test_a_client_that_does_not_read_is_let_go(autojump_clock):
    ours, theirs = memory_stream_pair()

    async def never():
        await trio.sleep_forever()

    theirs.send_stream.send_all_hook = never
    await ours.send_all(GET)
    with trio.fail_after(LIMITS.write_timeout_s + 1):
        await serve_connection(Recorder(), theirs, limits=LIMITS)
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await ours.send_all(GET)


async def test_a_client_that_goes_on_sending_after_its_refusal_is_cut_off(autojump_clock):
    async with served(Recorder()) as client:
        await client.send(post(101))

        async def flood():
            with contextlib.suppress(trio.BrokenResourceError):  # or it never ends
                while True:
                    await client.send(bytes(65536))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            assert [code for code, _ in await client.responses()] == [413]


async def test_a_client_that_vanishes_ends_its_connection_only():
    async with served(Recorder()) as client:
        await client.send(GET[:10])
        await client.stream.aclose()


# --- over sockets ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(handler, **options):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    address = TcpAddress(*listener.getsockname())
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            await serve_http(handler, [listener], task_status=task_status, **options)

        await nursery.start(serve)
        yield address
        nursery.cancel_scope.cancel()
    assert listener.fileno() == -1


async def test_tls_gives_the_handler_the_peers_certificate():
    handler = Recorder()
    server, client = tls_contexts()
    async with running(handler, tls=server) as address:
        endpoint = TlsEndpoint.client(
            await open_connection(address, 5), client, server_name=SERVER_NAME
        )
        await endpoint.handshake()
        peer = Client(EndpointStream(endpoint))
        await peer.send(GET)
        await peer.stream.send_eof()
        assert await peer.responses() == [(200, b'{"ok":true}')]
        await peer.stream.aclose()
    assert handler.requests[0].peer_certificate == client_identity().certificate


async def test_clients_without_tls_or_without_patience_do_not_stop_the_server(caplog):
    server, client = tls_contexts()
    with caplog.at_level(logging.INFO):
        async with running(Recorder(), tls=server) as address:
            with await open_connection(address, 5) as plain:
                plain.send(GET)
                await trio.lowlevel.wait_readable(plain)
                assert plain.recv(100) == b""
            (await open_connection(address, 5)).close()
            endpoint = TlsEndpoint.client(
                await open_connection(address, 5), client, server_name=SERVER_NAME
            )
            await endpoint.handshake()
            endpoint.close()
    assert "tls_failure" in caplog.text


async def test_a_refusal_arrives_though_the_client_was_still_sending():
    async with running(Recorder(), limits=LIMITS) as address:
        client = TcpEndpoint(await open_connection(address, 5))
        await send(client, post(100_000) + bytes(100_000))
        assert parse(await receive_all(client))[0][0] == 413
        client.close()


async def test_a_silent_tls_client_is_let_go(autojump_clock):
    server, _ = tls_contexts()
    async with running(Recorder(), tls=server) as address:
        with await open_connection(address, 5) as silent:
            await trio.lowlevel.wait_readable(silent)
            assert silent.recv(10) == b""
            assert trio.current_time() >= HttpLimits().handshake_timeout_s


async def test_connections_over_the_limit_wait_their_turn():
    limits = HttpLimits(max_connections=1)
    async with running(Recorder(), limits=limits) as address:
        first, second = [await open_connection(address, 5) for _ in range(2)]
        with first, second:
            first.send(GET)
            await trio.lowlevel.wait_readable(first)
            assert first.recv(1000)
            second.send(GET)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                second.recv(1000)
            first.close()
            await trio.lowlevel.wait_readable(second)
            assert second.recv(1000).startswith(b"HTTP/1.1 200")
