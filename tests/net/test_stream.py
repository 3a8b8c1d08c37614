"""EndpointStream keeps trio's contract for half-closeable streams."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import check_half_closeable_stream

from qproxy.errors import Reason
from qproxy.net.stream import EndpointStream
from tests.net.helpers import tcp_pair, tls_pair


async def streams(make_pair):
    a, b = await make_pair()
    return EndpointStream(a), EndpointStream(b)


async def clogged(make_pair):
    a, b = await streams(make_pair)
    for stream in (a, b):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            stream.endpoint.sock.setsockopt(socket.SOL_SOCKET, option, 4096)
    for stream in (a, b):
        for size in (65536, 1):
            while stream.endpoint.try_send((memoryview(bytes(size)),)):
                pass
    return a, b


async def test_tcp_stream_keeps_trios_contract():
    await check_half_closeable_stream(lambda: streams(tcp_pair), lambda: clogged(tcp_pair))


async def test_a_lost_connection_is_broken_and_says_why():
    for make_pair in (tcp_pair, tls_pair):
        a, b = await streams(make_pair)
        a.endpoint.abort()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await b.receive_some()
        assert caught.value.__cause__.reason is Reason.CONNECTION_RESET
        await b.aclose()


async def test_tls_stream_echoes_and_ends():
    a, b = await streams(tls_pair)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def echo():
            async for data in a:
                await a.send_all(data)
            await a.send_eof()

        data = bytes(100_000)

        @nursery.start_soon
        async def question():
            await b.send_all(data)
            await b.send_eof()

        assert b"".join([part async for part in b]) == data
    await a.aclose()
    await b.aclose()
