"""The HTTP client against our own server, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import logging
import socket

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.errors import Reason
from qproxy.modes import ClientAuth
from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.http_client import HttpClient, HttpClientError, HttpErrorKind, HttpResponse
from qproxy.net.http_server import HttpLimits, Response, serve_http
from qproxy.net.listen import accept, open_listeners
from qproxy.tls.context import client_context, server_context
from tests import pki
from tests.net.helpers import CA, SERVER_NAME, client_identity, receive, server_identity

SECRET = "c2VjcmV0IGtleQ"


@contextlib.asynccontextmanager
async def server(handler, **options):
    """Our server on loopback; gives "127.0.0.1:port"."""
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    host, port = listener.getsockname()
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            await serve_http(handler, [listener], task_status=task_status, **options)

        await nursery.start(serve)
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def scripted(*scripts):
    """A server that treats its n-th connection as the n-th script says; gives "host:port"."""
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    host, port = listener.getsockname()

    async def serve():
        for script in scripts:
            endpoint = TcpEndpoint(await accept(listener))
            nursery.start_soon(run, script, endpoint)

    async def run(script, endpoint):
        try:
            await script(endpoint)
        finally:
            endpoint.close()

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield f"{host}:{port}"
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def client(**options):
    made = HttpClient(**{"tls": None, **options})
    try:
        yield made
    finally:
        await made.aclose()


async def failure(http, url, method="GET", **options) -> HttpClientError:
    with pytest.raises(HttpClientError) as caught:
        await http.request(method, url, **options)
    assert SECRET not in str(caught.value)
    return caught.value


async def echo(request):
    answer = {"method": request.method, "target": request.target, "headers": request.headers}
    answer["body"] = request.body.decode()
    return Response(200, json.dumps(answer).encode(), headers=(("X-A", "1"), ("x-a", "2")))


async def test_an_exchange():
    async with server(echo) as where, client() as http:
        response = await http.request("POST", f"http://{where}/a%20b?c=d", json={"k": [1]})
    assert response.status == 200
    assert response.headers["x-a"] == "1, 2"
    answer = json.loads(response.body)
    assert (answer["method"], answer["target"]) == ("POST", "/a%20b?c=d")
    assert json.loads(answer["body"]) == {"k": [1]}
    assert answer["headers"]["host"] == where
    assert answer["headers"]["content-type"] == "application/json"


async def test_statuses_are_responses_and_redirects_are_not_followed():
    seen = []

    async def handler(request):
        seen.append(request.path)
        return Response(int(request.path[1:]), b"{}", headers=(("Location", "/200"),))

    async with server(handler) as where, client() as http:
        for status in (301, 302, 307, 400, 401, 503):
            assert (await http.request("GET", f"http://{where}/{status}")).status == status
    assert seen == ["/301", "/302", "/307", "/400", "/401", "/503"]


def test_a_response_does_not_show_its_body():
    response = HttpResponse(200, {"x": SECRET}, SECRET.encode())
    assert SECRET not in repr(response)


async def test_connection_refused():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = "http://{}:{}/".format(*sock.getsockname())
        async with client() as http:
            error = await failure(http, url)
    assert error.kind is HttpErrorKind.CONNECT
    assert error.reason is Reason.CONNECT_REFUSED


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "http://", "ftp://x/", "http://x:99999/", "https://x/", "http://\u00e4/"],
)
async def test_a_url_that_cannot_be_used(url):
    async with client() as http:
        assert (await failure(http, url)).kind is HttpErrorKind.PROTOCOL


async def test_tls_cannot_be_taken_away_by_a_url():
    async with server(echo) as where, client(tls=client_context(trust=CA.trust)) as http:
        assert (await failure(http, f"http://{where}/")).kind is HttpErrorKind.PROTOCOL


async def test_a_server_that_never_answers_is_a_timeout(autojump_clock):
    async def silent(endpoint):
        await trio.sleep_forever()

    async with scripted(silent) as where, client(request_timeout_s=3) as http:
        started = trio.current_time()
        error = await failure(http, f"http://{where}/")
        assert error.kind is HttpErrorKind.TIMEOUT
        assert trio.current_time() - started == pytest.approx(3)


async def test_a_server_that_dribbles_is_a_timeout(autojump_clock):
    async def dribbling(endpoint):
        endpoint.try_send((memoryview(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),))
        while True:
            await trio.sleep(1)
            endpoint.try_send((memoryview(b"x"),))

    async with scripted(dribbling) as where, client(request_timeout_s=10) as http:
        started = trio.current_time()
        assert (await failure(http, f"http://{where}/")).kind is HttpErrorKind.TIMEOUT
        assert trio.current_time() - started == pytest.approx(10)


async def test_a_tls_server_that_never_shakes_hands_is_a_connect_timeout(autojump_clock):
    async def silent(endpoint):
        await trio.sleep_forever()

    tls = client_context(trust=CA.trust)
    async with scripted(silent) as where, client(tls=tls, connect_timeout_s=2) as http:
        started = trio.current_time()
        error = await failure(http, f"https://{where}/")
        assert (error.kind, error.reason) == (HttpErrorKind.TIMEOUT, Reason.CONNECT_TIMEOUT)
        assert trio.current_time() - started == pytest.approx(2)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit(announced):
    async def endless(endpoint):
        length = b"Content-Length: 1001" if announced else b"Transfer-Encoding: chunked"
        data = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n"
        data += b"x" * 1001 if announced else b"64\r\n%b\r\n" % (b"x" * 100) * 11
        endpoint.try_send((memoryview(data),))
        await receive(endpoint)
        await trio.sleep_forever()

    async with scripted(endless, endless) as where, client(max_response_bytes=1000) as http:
        for _ in range(2):  # and the client is fit for use afterwards
            assert (await failure(http, f"http://{where}/")).kind is HttpErrorKind.TOO_LARGE


async def test_a_body_at_the_limit():
    async def handler(request):
        return Response(200, b"x" * 1000)

    async with server(handler) as where, client(max_response_bytes=1000) as http:
        assert len((await http.request("GET", f"http://{where}/")).body) == 1000


BROKEN = {
    "not HTTP": b"SSH-2.0-" + SECRET.encode() + b"\r\n\r\n",
    "bad header": b"HTTP/1.1 200 OK\r\n" + SECRET.encode() + b"\r\n\r\n",
    "cut in the head": b"HTTP/1.1 200 OK\r\nX: " + SECRET.encode(),
    "cut in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + SECRET.encode(),
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + SECRET.encode() * 20_000,
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_response_is_a_protocol_error_that_quotes_nothing(case, caplog):
    async def broken(endpoint):
        await receive(endpoint)
        rest = memoryview(BROKEN[case])
        while rest:
            rest = rest[endpoint.try_send((rest,)) :]
            await endpoint.wait_sendable()

    with caplog.at_level(logging.INFO):
        async with scripted(broken) as where, client() as http:
            error = await failure(http, f"http://{where}/?key_ID={SECRET}")
    assert error.kind is HttpErrorKind.PROTOCOL
    assert SECRET not in caplog.text


async def test_a_connection_is_used_again():
    peers = []

    async def handler(request):
        return Response(200, b"{}")

    async def counted(endpoint):
        peers.append(endpoint)
        while data := await receive(endpoint):
            assert data.startswith(b"GET")
            endpoint.try_send((memoryview(OK),))

    async with scripted(counted, counted) as where, client() as http:
        for _ in range(3):
            assert (await http.request("GET", f"http://{where}/")).status == 200
    assert len(peers) == 1


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def read_request(endpoint):
    data = b""
    while not data.endswith(b"{}" if data.startswith(b"POST") else b"\r\n\r\n"):
        data += await receive(endpoint)


async def answer_once(endpoint):
    await read_request(endpoint)
    endpoint.try_send((memoryview(OK),))


async def answer_once_and_wait(endpoint):
    await answer_once(endpoint)
    await receive(endpoint)


async def answer_once_and_drop_the_next(endpoint):
    """Closes only once the next request is there: no check beforehand can see it coming."""
    await answer_once(endpoint)
    await read_request(endpoint)


async def test_a_kept_connection_that_the_server_closed_is_replaced():
    async with scripted(answer_once, answer_once) as where, client() as http:
        for _ in range(2):
            response = await http.request("POST", f"http://{where}/", json={})
            assert response.status == 200
            await trio.testing.wait_all_tasks_blocked()


async def test_what_may_be_repeated_is_sent_again_when_a_kept_connection_was_dead():
    async with scripted(answer_once_and_drop_the_next, answer_once) as where, client() as http:
        for _ in range(2):
            got = await http.request("GET", f"http://{where}/", repeatable=True)
            assert got.status == 200


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", {})])
async def test_a_request_that_reached_a_server_is_never_sent_twice_unasked(method, body):
    """A GET may well take keys from a store: a second one would take others."""
    seen = []

    async def count(endpoint):
        await answer_once(endpoint)
        seen.append(await receive(endpoint))

    async with scripted(count, count) as where, client() as http:
        assert (await http.request(method, f"http://{where}/", json=body)).status == 200
        error = await failure(http, f"http://{where}/", method, json=body)
        assert error.kind is HttpErrorKind.LOST
        assert len(seen) == 1
        # and what comes next has a fresh connection
        assert (await http.request(method, f"http://{where}/", json=body)).status == 200


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_get_lost_on_a_fresh_connection_is_not_sent_again(repeatable):
    seen = []

    async def drop(endpoint):
        seen.append(await receive(endpoint))

    async with scripted(drop, drop) as where, client() as http:
        error = await failure(http, f"http://{where}/", repeatable=repeatable)
        assert error.kind is HttpErrorKind.LOST
    assert len(seen) == 1


@pytest.mark.parametrize("part", [b"H", OK[:-1]])
async def test_what_began_to_be_answered_is_not_sent_again(part):
    seen = []

    async def half(endpoint):
        await answer_once(endpoint)
        seen.append(await receive(endpoint))
        endpoint.try_send((memoryview(part),))

    async with scripted(half, half) as where, client() as http:
        await http.request("GET", f"http://{where}/")
        error = await failure(http, f"http://{where}/", repeatable=True)
    assert error.kind is HttpErrorKind.PROTOCOL
    assert len(seen) == 1


async def test_what_did_not_leave_this_machine_is_sent_over_another_connection(monkeypatch):
    """Nobody can have seen it, so this is no repetition."""
    refused = []
    try_send = TcpEndpoint.try_send

    def break_down(endpoint, data):
        if refused == [None]:
            refused.append(data)
            raise ConnectionLost(Reason.CONNECTION_RESET, "gone")
        return try_send(endpoint, data)

    monkeypatch.setattr(TcpEndpoint, "try_send", break_down)
    async with scripted(answer_once_and_wait, answer_once) as where, client() as http:
        await http.request("POST", f"http://{where}/", json={})
        refused.append(None)
        assert (await http.request("POST", f"http://{where}/", json={})).status == 200
    assert len(refused) == 2


async def test_bytes_after_a_response_are_no_answer_to_the_next_request():
    async def twice(endpoint):
        await read_request(endpoint)
        endpoint.try_send((memoryview(OK + OK.replace(b"{}", b"[]")),))
        await receive(endpoint)

    async with scripted(twice, twice) as where, client() as http:
        for _ in range(2):
            assert (await http.request("GET", f"http://{where}/")).body == b"{}"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK, HttpErrorKind.PROTOCOL),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 8 + OK, None),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", HttpErrorKind.PROTOCOL),
        (OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), HttpErrorKind.PROTOCOL),
        (OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: Identity\r\n\r\n"), None),
    ],
)
async def test_what_is_no_plain_answer_is_refused(head, kind):
    async def answer(endpoint):
        await read_request(endpoint)
        endpoint.try_send((memoryview(head),))
        await receive(endpoint)

    async with scripted(answer) as where, client() as http:
        if kind is None:
            assert (await http.request("GET", f"http://{where}/")).body == b"{}"
        else:
            assert (await failure(http, f"http://{where}/")).kind is kind


async def test_bytes_that_are_no_body_are_limited_as_well():
    """A chunk of one byte may carry kilobytes of extension."""
    taken = []

    async def padded(endpoint):
        await read_request(endpoint)
        endpoint.try_send((memoryview(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),))
        with contextlib.suppress(ConnectionLost):
            while True:
                taken.append(endpoint.try_send((memoryview(b"1;" + b"x" * 8000 + b"\r\n \r\n"),)))
                await endpoint.wait_sendable()

    async with scripted(padded) as where, client(max_response_bytes=100_000) as http:
        assert (await failure(http, f"http://{where}/")).kind is HttpErrorKind.TOO_LARGE


async def test_a_client_that_was_closed_stays_closed():
    async with server(echo) as where:
        http = HttpClient(tls=None)
        assert (await http.request("GET", f"http://{where}/")).status == 200
        await http.aclose()
        await http.aclose()
        assert (await failure(http, f"http://{where}/")).kind is HttpErrorKind.CONNECT


async def test_closing_ends_exchanges_under_way(autojump_clock):
    async def silent(endpoint):
        await trio.sleep_forever()

    async with scripted(silent) as where:
        http = HttpClient(tls=None)

        async def close():
            await trio.testing.wait_all_tasks_blocked()
            await http.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            error = await failure(http, f"http://{where}/", repeatable=True)
        assert error.kind is HttpErrorKind.LOST


async def test_no_more_connections_than_allowed():
    at_once = highest = 0

    async def handler(request):
        nonlocal at_once, highest
        at_once += 1
        highest = max(highest, at_once)
        await trio.testing.wait_all_tasks_blocked()
        at_once -= 1
        return Response(200, b"{}")

    async with (
        server(handler) as where,
        client(max_connections=2) as http,
        trio.open_nursery() as nursery,
    ):
        for _ in range(6):
            nursery.start_soon(http.request, "GET", f"http://{where}/")
    assert highest == 2


# --- TLS ---------------------------------------------------------------------------------------


def serving_tls(identity=None, **options):
    return server_context(identity or server_identity(), **options)


async def test_https_by_address_and_by_another_name():
    async def who(request):
        names = request.peer_certificate.subject.rfc4514_string()
        return Response(200, names.encode())

    tls = serving_tls(trust=CA.trust, client_auth=ClientAuth.REQUIRED)
    context = client_context(trust=CA.trust, identity=client_identity())
    async with server(who, tls=tls) as where:
        for name in (None, SERVER_NAME):
            async with client(tls=context, server_name=name) as http:
                for _ in range(2):
                    response = await http.request("GET", f"https://{where}/")
                    assert response.body == b"CN=client.test"


REFUSED = {
    "untrusted CA": (
        lambda: pki.identity(pki.authority("other CA"), "127.0.0.1"),
        Reason.CERTIFICATE_INVALID,
    ),
    "wrong name": (lambda: pki.identity(CA, "other.test"), Reason.PEER_NAME_MISMATCH),
    "wrong address": (lambda: pki.identity(CA, "127.0.0.2"), Reason.PEER_NAME_MISMATCH),
    "expired": (
        lambda: pki.identity(CA, "127.0.0.1", expired=True),
        Reason.CERTIFICATE_EXPIRED,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_server_that_is_not_the_one_is_refused(case):
    make, reason = REFUSED[case]
    context = client_context(trust=CA.trust)
    async with server(echo, tls=serving_tls(make())) as where, client(tls=context) as http:
        error = await failure(http, f"https://{where}/")
    assert (error.kind, error.reason) == (HttpErrorKind.TLS, reason)


@pytest.mark.parametrize("who", [None, pki.identity(pki.authority("other CA"), "client.test")])
async def test_a_client_that_is_refused_hears_of_tls(who):
    tls = serving_tls(trust=CA.trust, client_auth=ClientAuth.REQUIRED)
    context = client_context(trust=CA.trust, identity=who)
    async with server(echo, tls=tls) as where, client(tls=context) as http:
        error = await failure(http, f"https://{where}/")
    assert (error.kind, error.reason) == (HttpErrorKind.TLS, Reason.TLS_FAILURE)


async def test_a_server_that_speaks_no_tls():
    async with server(echo) as where, client(tls=client_context(trust=CA.trust)) as http:
        assert (await failure(http, f"https://{where}/")).kind is HttpErrorKind.TLS


async def test_a_kept_tls_connection_that_the_server_lets_go_is_replaced(autojump_clock):
    limits = HttpLimits(idle_timeout_s=5)
    context = client_context(trust=CA.trust)
    serving = server(echo, tls=serving_tls(), limits=limits)
    async with serving as where, client(tls=context) as http:
        for _ in range(2):
            assert (await http.request("POST", f"https://{where}/", json={})).status == 200
            await trio.sleep(10)
