"""An HTTP/1.1 client: httpcore's connection pool over our own endpoints.

httpcore brings the pool and the protocol; connecting and TLS are ours, so that key sources are
reached with the same OpenSSL and the same checks as everything else, X25519MLKEM768 included.
Redirects are never followed and no proxy is taken from the environment.
"""

from __future__ import annotations

import enum
import json as jsonlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpcore
import trio
from OpenSSL import SSL

from qproxy.address import TcpAddress
from qproxy.errors import QproxyError, Reason
from qproxy.net.endpoint import TLS_REFUSALS, ConnectionLost, TcpEndpoint, TlsEndpoint
from qproxy.net.listen import open_connection
from qproxy.net.stream import EndpointStream

#: Default for ``connect_timeout_s``: TCP and TLS together.
DEFAULT_CONNECT_TIMEOUT_S = 5.0
#: Default for ``request_timeout_s``: the whole exchange, connecting included.
DEFAULT_REQUEST_TIMEOUT_S = 10.0
#: Default for ``max_response_bytes``.
DEFAULT_MAX_RESPONSE_BYTES = 1 << 20
#: Default for ``max_connections``.
DEFAULT_MAX_CONNECTIONS = 4
#: Default for ``idle_timeout_s``.
DEFAULT_IDLE_TIMEOUT_S = 30.0

#: Methods that may be sent again when a kept connection turns out dead (RFC 9110 §9.2.2).
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class HttpErrorKind(enum.StrEnum):
    """What went wrong with an exchange."""

    CONNECT = "connect"  # no connection: refused, unreachable, no such name
    TLS = "tls"  # one side refused the other
    TIMEOUT = "timeout"  # connecting or the exchange took too long
    PROTOCOL = "protocol"  # the connection broke, or what came is not HTTP
    TOO_LARGE = "too_large"  # the body is over the limit


class HttpClientError(QproxyError):
    """An exchange without a response. The message holds no header, no body and no query.

    Attributes:
        kind: what went wrong.
        reason: the closed-set cause where the connection gave one.
    """

    def __init__(self, kind: HttpErrorKind, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response.

    Attributes:
        status: 200 to 599, redirects included.
        headers: names in lower case; values of a repeated name joined by a comma and a space.
        body: at most ``max_response_bytes``; may hold keys, so it is not shown.
    """

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class HttpClient:
    """A client for one server or a few, keeping connections for reuse.

    Args:
        tls: a client context, for ``https`` URLs only; None, for ``http`` URLs only. So no URL
            can take the TLS away that was configured.
        server_name: DNS name or IP address that the server's certificate must be for; the
            URL's host where None.
        connect_timeout_s: for TCP and TLS together.
        request_timeout_s: for a whole exchange: waiting for a free connection, connecting,
            sending, and the response to its last byte.
        max_response_bytes: largest response body.
        max_connections: open at once.
        idle_timeout_s: how long a connection is kept for reuse.
    """

    def __init__(
        self,
        *,
        tls: SSL.Context | None,
        server_name: str | None = None,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        max_response_bytes: int = DEFAULT_MAX_RESPONSE_BYTES,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S,
    ) -> None:
        self._scheme = "http" if tls is None else "https"
        self._request_timeout_s = request_timeout_s
        self._max_response_bytes = max_response_bytes
        self._max_connections = max_connections
        self._pool = httpcore.AsyncConnectionPool(
            # Never used: without one httpcore would load the system's CAs for nothing.
            ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=idle_timeout_s,
            network_backend=_Backend(tls, server_name, connect_timeout_s),
        )

    async def request(self, method: str, url: str, *, json: object | None = None) -> HttpResponse:
        """One exchange.

        A connection that was kept from an earlier exchange and turns out dead before the
        response's headers came is replaced, and the request sent again, where the method is
        idempotent. Nothing else is retried.

        Args:
            method: such as ``GET``.
            url: absolute, with the scheme that ``tls`` calls for.
            json: a value to send as the body; None for no body.

        Raises:
            HttpClientError: no response, or none that is acceptable. A status of 400 or 500 is
                a response like any other.
        """
        try:
            target = httpcore.URL(url)
        except (ValueError, TypeError):
            raise HttpClientError(HttpErrorKind.PROTOCOL, "the URL cannot be parsed") from None
        where = target.host.decode("ascii", "replace")
        if target.scheme != self._scheme.encode() or not where:
            raise HttpClientError(
                HttpErrorKind.PROTOCOL, f"expected a URL with scheme {self._scheme!r} and a host"
            )
        headers, body = _encode(json)
        with trio.move_on_after(self._request_timeout_s):
            # One kept connection after the other may turn out dead; then comes a fresh one.
            for _ in range(self._max_connections + 1):
                progress = _Progress()
                try:
                    return await self._exchange(method, target, headers, body, progress)
                except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                    if progress.can_retry and method in _IDEMPOTENT:
                        continue
                    raise _broken(where, error) from None
            raise HttpClientError(HttpErrorKind.PROTOCOL, f"{where} keeps closing connections")
        raise HttpClientError(
            HttpErrorKind.TIMEOUT, f"no response from {where} in {self._request_timeout_s} s"
        )

    async def aclose(self) -> None:
        """Close every connection. Exchanges under way fail."""
        await self._pool.aclose()

    async def _exchange(
        self,
        method: str,
        target: httpcore.URL,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        progress: _Progress,
    ) -> HttpResponse:
        async with self._pool.stream(
            method,
            target,
            headers=[(b"Host", _host_header(target)), *headers],
            content=body,
            extensions={"trace": progress.trace},
        ) as response:
            received = bytearray()
            async for part in response.aiter_stream():
                if len(received) + len(part) > self._max_response_bytes:
                    # Not raised here: httpcore's generators end cleanly only from below.
                    _refuse_further(response, self._max_response_bytes)
                else:
                    received += part
            _check_refused(response)
            return HttpResponse(response.status, _headers(response.headers), bytes(received))


class _Progress:
    """How far an exchange came, from httpcore's own trace events."""

    def __init__(self) -> None:
        self._connected = False
        self._answered = False

    async def trace(self, event: str, _info: dict[str, Any]) -> None:
        """httpcore's trace extension."""
        if event == "connection.connect_tcp.started":
            self._connected = True
        elif event == "http11.receive_response_headers.complete":
            self._answered = True

    @property
    def can_retry(self) -> bool:
        """Whether the connection was a kept one and no response began on it."""
        return not self._connected and not self._answered


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects, and wraps in TLS, for httpcore."""

    def __init__(
        self, tls: SSL.Context | None, server_name: str | None, connect_timeout_s: float
    ) -> None:
        self._tls = tls
        self._server_name = server_name
        self._connect_timeout_s = connect_timeout_s

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, TLS included, so that one timeout covers both."""
        try:
            with trio.fail_after(self._connect_timeout_s):
                return await self._connect(host, port)
        except trio.TooSlowError:
            raise HttpClientError(
                HttpErrorKind.TIMEOUT,
                f"no connection to {host}:{port} in {self._connect_timeout_s} s",
                reason=Reason.CONNECT_TIMEOUT,
            ) from None

    async def sleep(self, seconds: float) -> None:
        """Needed by httpcore's own retries, which are off."""
        await trio.sleep(seconds)

    async def _connect(self, host: str, port: int) -> _NetworkStream:
        try:
            sock = await open_connection(TcpAddress(host, port), self._connect_timeout_s)
        except ConnectionLost as lost:
            timed_out = lost.reason is Reason.CONNECT_TIMEOUT
            kind = HttpErrorKind.TIMEOUT if timed_out else HttpErrorKind.CONNECT
            raise HttpClientError(kind, str(lost), reason=lost.reason) from None
        if self._tls is None:
            return _NetworkStream(TcpEndpoint(sock))
        endpoint = TlsEndpoint.client(sock, self._tls, server_name=self._server_name or host)
        try:
            await endpoint.handshake()
        except ConnectionLost as lost:
            raise HttpClientError(
                HttpErrorKind.TLS, f"{host}:{port}: {lost}", reason=lost.reason
            ) from None
        finally:
            if not endpoint.handshake_done:
                endpoint.close()
        return _NetworkStream(endpoint)


class _NetworkStream(httpcore.AsyncNetworkStream):
    """An endpoint as httpcore wants it. Timeouts are the whole exchange's, not its steps'."""

    def __init__(self, endpoint: TcpEndpoint | TlsEndpoint) -> None:
        self._endpoint = endpoint
        self._stream = EndpointStream(endpoint)
        #: What the next read raises instead of reading.
        self.failure: HttpClientError | None = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive some; empty at the end."""
        if self.failure is not None:
            raise self.failure
        try:
            return await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _raise_refusal(error)
            raise httpcore.ReadError("the connection was lost") from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all."""
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # httpcore reads on after this: the server may have said why before it went.
            raise httpcore.WriteError("the connection was lost") from None

    async def aclose(self) -> None:
        """Close in order."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Nothing: the backend has already done it, with its own context and name."""
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of a kept connection: whether anything, such as an end, came."""
        return self._has_input() if info == "is_readable" else None

    def _has_input(self) -> bool:
        try:
            return self._endpoint.try_receive_into(memoryview(bytearray(1))) is not None
        except ConnectionLost:
            return True


def _refuse_further(response: httpcore.Response, limit_bytes: int) -> None:
    stream = response.extensions["network_stream"]
    stream.failure = HttpClientError(
        HttpErrorKind.TOO_LARGE, f"the response is larger than {limit_bytes} bytes"
    )


def _check_refused(response: httpcore.Response) -> None:
    """Raise where the response came to its end before another read."""
    failure = response.extensions["network_stream"].failure
    if failure is not None:
        raise failure


def _raise_refusal(error: BaseException) -> None:
    """Tell a TLS alert apart: a TLS 1.3 server refuses a client only after the handshake."""
    lost = error.__cause__
    if isinstance(lost, ConnectionLost) and lost.reason in TLS_REFUSALS:
        raise HttpClientError(HttpErrorKind.TLS, str(lost), reason=lost.reason) from None


def _broken(where: str, error: Exception) -> HttpClientError:
    # The library's message may quote what came; its type says enough.
    return HttpClientError(
        HttpErrorKind.PROTOCOL, f"the exchange with {where} broke: {type(error).__name__}"
    )


def _encode(json: object | None) -> tuple[list[tuple[bytes, bytes]], bytes]:
    headers = [(b"Accept", b"application/json")]
    if json is None:
        return headers, b""
    body = jsonlib.dumps(json, separators=(",", ":")).encode()
    headers.append((b"Content-Type", b"application/json"))
    headers.append((b"Content-Length", str(len(body)).encode()))
    return headers, body


def _host_header(target: httpcore.URL) -> bytes:
    host = b"[%b]" % target.host if b":" in target.host else target.host
    default = {b"http": 80, b"https": 443}[target.scheme]
    return host if target.port in (None, default) else b"%b:%d" % (host, target.port)


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
