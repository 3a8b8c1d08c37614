"""The ETSI GS QKD 014 client, HTTP client included, against a server that misbehaves.

Plain HTTP on a loopback port: the bytes are what matters here.
"""

import base64
import contextlib
import functools
import json
import logging
import socket
import traceback

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.net.http_client import HttpClient
from qproxy.sources.etsi014 import Etsi014Source

KEY = b"\x07" * 32
SECRET = base64.b64encode(KEY).decode()


def http(body, *, status="200 OK", length=None, headers=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + body


def keys(*items):
    return {"keys": [{"key_ID": key_id, "key": key} for key_id, key in items]}


def zeros(size):
    """An endless key, in pieces, so that no test holds it whole."""
    yield f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + b'{"keys":[{"key":"'
    for _ in range(size // 65536):
        yield b"A" * 65536


GOOD = http(keys(("a", SECRET)))

#: Name; what the server sends, whole or in parts; the reason at the other end.
CASES = [
    ("closes at once", b"", Reason.KME_UNREACHABLE),
    ("half a response, then closes", GOOD[:-20], Reason.KME_INVALID_RESPONSE),
    ("half a status line", b"HTTP/1.1 2", Reason.KME_INVALID_RESPONSE),
    ("no HTTP at all", b"SSH-2.0-OpenSSH_9\r\n\r\n", Reason.KME_INVALID_RESPONSE),
    ("a header that holds the key", b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % SECRET.encode(),
     Reason.KME_INVALID_RESPONSE),
    ("endless headers", [b"HTTP/1.1 200 OK\r\n"] + [b"X: y\r\n" * 10000] * 20,
     Reason.KME_INVALID_RESPONSE),
    ("a negative length", http(b"", length=-1), Reason.KME_INVALID_RESPONSE),
    ("100 MB of JSON", zeros, Reason.KME_INVALID_RESPONSE),
    ("deep JSON", http(b"[" * 200_000), Reason.KME_INVALID_RESPONSE),
    ("HTML with 200", http(b"<html>hello</html>"), Reason.KME_INVALID_RESPONSE),
    ("HTML with 500", http(b"<html>oops</html>", status="500 X"), Reason.KME_UNAVAILABLE),
    ("a redirect", http(b"", status="302 X", headers="Location: http://127.0.0.1:1/\r\n"),
     Reason.KME_INVALID_RESPONSE),
    ("an empty answer", http(b""), Reason.KME_INVALID_RESPONSE),
    ("401", http({"message": "no"}, status="401 X"), Reason.KME_UNAUTHORIZED),
    ("503", http({"message": SECRET}, status="503 X"), Reason.KME_UNAVAILABLE),
    ("no keys", http(keys()), Reason.KEYS_EXHAUSTED),
    ("wrong base64", http(keys(("a", SECRET[:-1] + "!"))), Reason.KME_INVALID_RESPONSE),
    ("URL-safe base64", http(keys(("a", "-_" * 20 + "AAA="))), Reason.KME_INVALID_RESPONSE),
    ("hex", http(keys(("a", KEY.hex()))), Reason.KEY_INVALID),
    ("a short key", http(keys(("a", SECRET[:40]))), Reason.KEY_INVALID),
    ("too many keys", http(keys(("a", SECRET), ("b", "CA" + SECRET[2:]))),
     Reason.KME_INVALID_RESPONSE),
    ("one ID twice", http(keys(("a", SECRET), ("a", SECRET))), Reason.KME_INVALID_RESPONSE),
    ("an all-zero key", http(keys(("a", "A" * 43 + "="))), Reason.KEY_INVALID),
    ("the key as its own ID", http(keys((SECRET, SECRET[:-4]))), Reason.KEY_INVALID),
]  # fmt: skip


async def serve(what, stream):
    """Read the head of a request, send what was prepared, close."""
    async with stream:
        request = b""
        while b"\r\n\r\n" not in request:
            more = await stream.receive_some(65536)
            if not more:
                return
            request += more
        parts = what(100 << 20) if callable(what) else [what] if isinstance(what, bytes) else what
        for part in parts:
            if part is None:
                await trio.sleep_forever()
            try:
                await stream.send_all(part)
            except trio.BrokenResourceError:
                return  # the client has seen enough


@contextlib.asynccontextmanager
async def source_behind(what):
    """A client whose KME sends ``what`` on every connection."""
    async with trio.open_nursery() as nursery:
        handler = functools.partial(serve, what)
        server = functools.partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        listeners = await nursery.start(server)
        port = listeners[0].socket.getsockname()[1]
        source = Etsi014Source(
            "kme", HttpClient(tls=None), f"http://127.0.0.1:{port}", "gw-a", "gw-b"
        )
        yield source
        await source.aclose()
        nursery.cancel_scope.cancel()


def everything_said(error):
    said = "".join(traceback.format_exception(error)) + repr(vars(error))
    link: BaseException | None = error
    while link is not None:
        said += f"{link!r}{link.args!r}"
        link = link.__cause__ or link.__context__
    return said


async def check(what, reason, caplog):
    async with source_behind(what) as source:
        with pytest.raises(KeySourceError) as caught:
            await source.get_keys(1, 256)
        assert caught.value.reason is reason
        assert SECRET not in everything_said(caught.value)
        with pytest.raises(KeySourceError) as caught:
            await source.status()
        assert SECRET not in everything_said(caught.value)
        with pytest.raises(KeySourceError) as caught:
            await source.get_keys_by_id(["one"], 256)
        assert SECRET not in everything_said(caught.value)
    assert SECRET not in "".join(r.getMessage() for r in caplog.records if r.name[:6] == "qproxy")


@pytest.mark.parametrize(("what", "reason"), [pytest.param(*c[1:], id=c[0]) for c in CASES])
async def test_a_server_that_misbehaves(what, reason, caplog):
    caplog.set_level(logging.DEBUG, logger="qproxy")
    await check(what, reason, caplog)


@pytest.mark.parametrize(
    "what",
    [[None], [GOOD[:-20], None], [b"HTTP/1.1 200 OK\r\nX: y\r\n", None]],
    ids=["no answer", "half an answer", "half a head"],
)
async def test_a_server_that_hangs(what, caplog, autojump_clock):
    await check(what, Reason.KME_TIMEOUT, caplog)


async def test_a_server_that_drips(autojump_clock):
    """The time limit is for the whole exchange, not from one byte to the next."""

    async def drip(stream):
        async with stream:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                await trio.sleep(1)
                try:
                    await stream.send_all(b" ")
                except trio.BrokenResourceError:
                    return

    async with trio.open_nursery() as nursery:
        server = functools.partial(trio.serve_tcp, drip, 0, host="127.0.0.1")
        port = (await nursery.start(server))[0].socket.getsockname()[1]
        source = Etsi014Source(
            "kme", HttpClient(tls=None), f"http://127.0.0.1:{port}", "gw-a", "gw-b"
        )
        with pytest.raises(KeySourceError) as caught:
            await source.status()
        assert caught.value.reason is Reason.KME_TIMEOUT
        await source.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source = Etsi014Source("kme", HttpClient(tls=None), f"http://127.0.0.1:{port}", "a", "b")
    with pytest.raises(KeySourceError) as caught:
        await source.status()
    assert caught.value.reason is Reason.KME_UNREACHABLE
    await source.aclose()


async def test_a_url_that_is_none_is_an_error_like_any_other():
    source = Etsi014Source("kme", HttpClient(tls=None), "ftp://[", "a", "b")
    with pytest.raises(KeySourceError):
        await source.status()
    await source.aclose()


async def test_the_same_server_behaving_is_believed():
    """So that what is refused above is refused for what is wrong with it."""
    async with source_behind(GOOD) as source:
        (key,) = await source.get_keys(1, 256)
        assert (key.key_id, bytes(key.key)) == ("a", KEY)
        (key,) = await source.get_keys_by_id(["a"], 256)
        assert bytes(key.key) == KEY
