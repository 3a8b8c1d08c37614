"""A KME on a loopback port that behaves, until a test tells it otherwise."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import trio

from qproxy.net.http_client import HttpClient
from qproxy.sources.etsi014 import Etsi014Source

#: Beside bytes, what an answer may be made of. A number is a pause in seconds.
HANG, CLOSE, RESET = object(), object(), object()
Part = bytes | int | float | object

STATUS: dict[str, Any] = {
    "source_KME_ID": "kme-a",
    "target_KME_ID": "kme-b",
    "master_SAE_ID": "gw-a",
    "slave_SAE_ID": "gw-b",
    "key_size": 256,
    "stored_key_count": 7,
    "max_key_count": 100,
    "max_key_per_request": 128,
    "max_key_size": 1024,
    "min_key_size": 64,
    "max_SAE_ID_count": 0,
}


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    target: str
    document: Any

    @property
    def call(self) -> str:
        return self.target.partition("?")[0].rpartition("/")[2]

    @property
    def query(self) -> dict[str, str]:
        return {k: v[0] for k, v in parse_qs(self.target.partition("?")[2]).items()}

    @property
    def number(self) -> int:
        asked = self.document if self.method == "POST" else self.query
        return int(asked.get("number", 1))

    @property
    def size_bytes(self) -> int:
        asked = self.document if self.method == "POST" else self.query
        return int(asked.get("size", 256)) // 8

    @property
    def key_ids(self) -> list[str]:
        if self.method == "GET":
            return [self.query["key_ID"]]
        return [entry["key_ID"] for entry in self.document["key_IDs"]]


def http(body: bytes, status: str = "200 OK", *headers: str, length: object = None) -> bytes:
    """A response as bytes; ``length`` in place of the true one."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def http_json(document: object, status: str = "200 OK", *headers: str) -> bytes:
    return http(json.dumps(document).encode(), status, *headers)


def chunked(*chunks: bytes) -> bytes:
    parts = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    parts += [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join([*parts, b"0\r\n\r\n"])


@dataclass(eq=False)
class Kme:
    """What it was asked, what it gave, and what it does.

    Attributes:
        misbehave: in place of the right answer to a call; None lets it behave.
        only: the call that ``misbehave`` is for; None for every one.
        asked: every request, in order.
        secrets: every key it ever wrote to anybody.
        entries_given: the same, with their IDs.
        connections: how many were made.
        sent_bytes: how much of its answers was taken.
    """

    misbehave: Callable[[Kme, Asked], Iterable[Part]] | None = None
    only: str | None = None
    asked: list[Asked] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)
    entries_given: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0
    port: int = 0

    def new_key(self, size_bytes: int = 32) -> bytes:
        """A key that was never there before."""
        seed = f"key {len(self.secrets)} of a test".encode()
        key = hashlib.shake_256(seed).digest(size_bytes)
        self.secrets.append(key)
        return key

    def entry(self, key_id: str | None = None, size_bytes: int = 32) -> dict[str, Any]:
        """One element of a key container."""
        key = self.new_key(size_bytes)
        if key_id is None:
            key_id = f"6f2ab81c-9f0e-4f3a-8b56-{len(self.secrets):012x}"
        entry = {"key_ID": key_id, "key": base64.b64encode(key).decode()}
        self.entries_given.append(entry)
        return entry

    def entries(self, asked: Asked) -> list[dict[str, Any]]:
        """What a well-behaved KME gives."""
        if asked.call == "dec_keys":
            return [self.entry(key_id) for key_id in asked.key_ids]
        number = 2 if asked.call == "status" else asked.number
        return [self.entry(None, asked.size_bytes) for _ in range(number)]

    def behave(self, asked: Asked) -> Iterable[Part]:
        """The right answer."""
        if asked.call == "status":
            return [http_json(STATUS)]
        return [http_json({"keys": self.entries(asked)})]

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """One connection, to its end."""
        self.connections += 1
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                while (asked := await _read_request(stream)) is not None:
                    self.asked.append(asked)
                    mine = self.misbehave is not None and self.only in {None, asked.call}
                    parts = self.misbehave(self, asked) if mine else self.behave(asked)
                    if not await self._send(stream, parts):
                        return

    async def _send(self, stream: Any, parts: Iterable[Part]) -> bool:
        for part in parts:
            if part is HANG:
                await trio.sleep_forever()
            elif part is CLOSE:
                return False
            elif part is RESET:
                linger = struct.pack("ii", 1, 0)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
            elif isinstance(part, bytes):
                await stream.send_all(part)
                self.sent_bytes += len(part)
            else:
                await trio.sleep(part)
        return True


async def _read_request(stream: Any) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields.get(b"content-length", 0)):
        body += await stream.receive_some()
    return Asked(method, target, json.loads(body) if body else {})


@contextlib.asynccontextmanager
async def listening(kme: Kme):
    """The KME on a loopback port, in plain HTTP: what matters here are the bytes."""
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, kme.serve, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        kme.port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{kme.port}"
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def client_of(kme: Kme, **options: Any):
    """A source over that KME."""
    async with listening(kme) as url:
        http_client = HttpClient(tls=None, request_timeout_s=2)
        source = Etsi014Source("kme", http_client, url, "gw-a", "gw-b", **options)
        try:
            yield source
        finally:
            await source.aclose()
