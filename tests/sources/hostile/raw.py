"""A server that sends prepared bytes on every connection, and what such bytes are made with."""

from __future__ import annotations

import json

import trio


def http(body, *, status="200 OK", length=None, headers=""):
    """A response as bytes, its length told or mistold."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + body


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
