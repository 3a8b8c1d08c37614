"""Two SKIP key providers that share keys, for tests: handlers for the small HTTP server."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import trio
from OpenSSL import SSL

from qproxy.address import TcpAddress
from qproxy.net.http_server import Request, Response, serve_http
from qproxy.net.listen import open_listeners


@dataclass
class SharedKeys:
    """What the two providers have synchronised: key ID to key, and whom it is shared between."""

    keys: dict[str, tuple[bytes, frozenset[str]]] = field(default_factory=dict)


class FakeProvider:
    """One key provider.

    Attributes:
        asked: methods and targets of every request.
        given: key IDs given out, fresh or by ID.
        failing: status that every request for keys is answered with, or None.
        wrong_keys: keys given by ID are not those of the other provider.
    """

    def __init__(self, system_id: str, remote: list[str], shared: SharedKeys) -> None:
        self.system_id = system_id
        self.remote = remote
        self.algorithm = "test vectors"
        self.asked: list[tuple[str, str]] = []
        self.given: list[str] = []
        self.failing: int | None = None
        self.wrong_keys = False
        self._shared = shared

    async def answer(self, request: Request) -> Response:
        """Serve one request as draft-cisco-skip-02 has it."""
        await trio.lowlevel.checkpoint()
        self.asked.append((request.method, request.target))
        if request.method != "GET":
            return Response(405)
        if request.path == "/capabilities":
            return self._json(
                entropy=False,
                key=True,
                algorithm=self.algorithm,
                localSystemID=self.system_id,
                remoteSystemID=self.remote,
            )
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        remote = query.get("remoteSystemID", "")
        if self.failing is not None:
            return Response(self.failing)
        if request.path == "/key":
            return self._fresh(remote, int(query.get("size", "256")))
        if request.path.startswith("/key/"):
            return self._by_id(request.path.removeprefix("/key/").lower(), remote)
        return Response(404)

    def _fresh(self, remote: str, size_bits: int) -> Response:
        if remote not in self.remote:
            return Response(400)
        key_id, key = secrets.token_hex(16), secrets.token_bytes(size_bits // 8)
        self._shared.keys[key_id] = key, frozenset({self.system_id, remote})
        self.given.append(key_id)
        return self._json(keyId=key_id, key=key.hex())

    def _by_id(self, key_id: str, remote: str) -> Response:
        key, owners = self._shared.keys.pop(key_id, (b"", frozenset[str]()))
        if owners != {self.system_id, remote}:
            return Response(400)
        if self.wrong_keys:
            key = bytes(byte ^ 1 for byte in key)
        self.given.append(key_id)
        return self._json(keyId=key_id.upper(), key=key.hex())

    @staticmethod
    def _json(**members: object) -> Response:
        return Response(200, json.dumps(members).encode())


@contextlib.asynccontextmanager
async def serving(provider: FakeProvider, tls: SSL.Context | None = None) -> AsyncIterator[str]:
    """Serve on a free port of loopback. Gives the base URL."""
    listeners = open_listeners(TcpAddress("127.0.0.1", 0))
    port = listeners[0].getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_http(provider.answer, listeners, tls=tls))
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


def provider_pair() -> tuple[FakeProvider, FakeProvider]:
    """Providers Alice and Bob."""
    shared = SharedKeys()
    return FakeProvider("Alice", ["Bob"], shared), FakeProvider("Bob", ["Alice"], shared)
