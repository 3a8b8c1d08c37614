"""An HTTP/1.1 client: h11 over our own endpoints, and a few connections kept for reuse.

Connecting and TLS are ours, so that key sources are reached with the same OpenSSL and the same
checks as everything else, X25519MLKEM768 included. Redirects are never followed, no proxy is taken
from the environment and no content coding is asked for or accepted.

A request is sent once. Over HTTP nobody can tell a request that was lost from one that was obeyed
and whose answer was lost, and a key source gives each key once, to a GET as well: sent again, it
would give others, and the first would be gone. So a kept connection that turns out dead costs a
failed exchange, unless nothing of the request had left or the caller says that it may be repeated.
"""

from __future__ import annotations

import contextlib
import enum
import json as jsonlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11
import trio
from OpenSSL import SSL

from qproxy.address import TcpAddress
from qproxy.errors import QproxyError, Reason
from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.listen import open_connection
from qproxy.net.stream import EndpointStream
from qproxy.net.tls_endpoint import TLS_REFUSALS, TlsEndpoint

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
#: Largest status line and headers of a response, in bytes.
MAX_HEAD_BYTES = 65536
#: Most interim (1xx) responses before the one that counts.
MAX_INTERIM_RESPONSES = 8

_RECEIVE_BYTES = 65536
_URL = re.compile(r"[!-~]{1,8192}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpErrorKind(enum.StrEnum):
    """What went wrong with an exchange."""

    CONNECT = "connect"  # no connection: refused, unreachable, no such name
    TLS = "tls"  # one side refused the other
    TIMEOUT = "timeout"  # connecting or the exchange took too long
    LOST = "lost"  # the connection ended before the response began
    PROTOCOL = "protocol"  # what came is no whole response, or not HTTP
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


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a request goes."""

    host: str
    port: int
    host_header: bytes
    path: bytes

    @property
    def where(self) -> str:
        return self.host_header.decode("ascii")


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
        self._tls = tls
        self._scheme = "http" if tls is None else "https"
        self._server_name = server_name
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._max_response_bytes = max_response_bytes
        self._max_connections = max_connections
        self._idle_timeout_s = idle_timeout_s
        self._slots = trio.Semaphore(max_connections)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._closed = False

    async def request(
        self, method: str, url: str, *, json: object | None = None, repeatable: bool = False
    ) -> HttpResponse:
        """One exchange.

        Args:
            method: such as ``GET``.
            url: absolute, with the scheme that ``tls`` calls for.
            json: a value to send as the body; None for no body.
            repeatable: whether the server may get the request twice. Where a connection that was
                kept from an earlier exchange turns out dead before a byte of the response came,
                it is then sent again. Nothing else is ever retried.

        Raises:
            HttpClientError: no response, or none that is acceptable. A status of 400 or 500 is
                a response like any other.
        """
        target = _parse(url, self._scheme)
        data, head = _encode(method, target, json)
        with trio.move_on_after(self._request_timeout_s):
            async with self._slot():
                # One kept connection after the other may turn out dead; then comes a fresh one.
                for _ in range(self._max_connections + 1):
                    async with self._connection(target) as connection:
                        response = await connection.exchange(
                            head, data, self._max_response_bytes, repeatable=repeatable
                        )
                    if response is not None:
                        return response
            raise HttpClientError(HttpErrorKind.LOST, f"{target.where} keeps closing connections")
        raise HttpClientError(
            HttpErrorKind.TIMEOUT, f"no response from {target.where} in {self._request_timeout_s} s"
        )

    async def aclose(self) -> None:
        """Close every connection. Exchanges under way fail. Idempotent."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        await trio.lowlevel.checkpoint()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of ``max_connections``. Lets no other task go first where one is free."""
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.asynccontextmanager
    async def _connection(self, target: _Target) -> AsyncIterator[_Connection]:
        """A connection for one exchange: a kept one that still looks alive, or a fresh one."""
        connection = self._take_kept(target)
        if connection is None:
            connection = _Connection(await self._connect(target), target)
        self._busy.add(connection)
        try:
            if self._closed:
                raise _is_closed()
            yield connection
            if connection.is_reusable and not self._closed:
                connection.kept_at = trio.current_time()
                self._idle.append(connection)
        finally:
            self._busy.discard(connection)
            if connection not in self._idle:
                connection.close()

    def _take_kept(self, target: _Target) -> _Connection | None:
        oldest = trio.current_time() - self._idle_timeout_s
        for connection in [kept for kept in self._idle if kept.kept_at < oldest or kept.has_input]:
            self._idle.remove(connection)
            connection.close()
        for connection in reversed(self._idle):
            if (connection.target.host, connection.target.port) == (target.host, target.port):
                self._idle.remove(connection)
                return connection
        if len(self._idle) + len(self._busy) >= self._max_connections:
            self._idle.pop(0).close()  # another server's; those in use have a slot each
        return None

    async def _connect(self, target: _Target) -> TcpEndpoint | TlsEndpoint:
        """Connect, TLS included, so that one timeout covers both."""
        if self._closed:
            raise _is_closed()
        try:
            with trio.fail_after(self._connect_timeout_s):
                return await self._open_endpoint(target)
        except trio.TooSlowError:
            raise HttpClientError(
                HttpErrorKind.TIMEOUT,
                f"no connection to {target.where} in {self._connect_timeout_s} s",
                reason=Reason.CONNECT_TIMEOUT,
            ) from None

    async def _open_endpoint(self, target: _Target) -> TcpEndpoint | TlsEndpoint:
        try:
            address = TcpAddress(target.host, target.port)
            sock = await open_connection(address, self._connect_timeout_s)
        except ConnectionLost as lost:
            timed_out = lost.reason is Reason.CONNECT_TIMEOUT
            kind = HttpErrorKind.TIMEOUT if timed_out else HttpErrorKind.CONNECT
            raise HttpClientError(kind, str(lost), reason=lost.reason) from None
        if self._tls is None:
            return TcpEndpoint(sock)
        name = self._server_name or target.host
        endpoint = TlsEndpoint.client(sock, self._tls, server_name=name)
        try:
            await endpoint.handshake()
        except ConnectionLost as lost:
            raise HttpClientError(
                HttpErrorKind.TLS, f"{target.where}: {lost}", reason=lost.reason
            ) from None
        finally:
            if not endpoint.handshake_done:
                endpoint.close()
        return endpoint


class _Connection:
    """One connection, its h11 state, and one exchange after the other on it."""

    def __init__(self, endpoint: TcpEndpoint | TlsEndpoint, target: _Target) -> None:
        self.target = target
        #: When the last exchange ended.
        self.kept_at = 0.0
        #: Whether another exchange may follow.
        self.is_reusable = False
        self._endpoint = endpoint
        self._stream = EndpointStream(endpoint)
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._was_kept = False
        self._left = False
        self._received_bytes = 0
        self._max_received_bytes = 0

    @property
    def has_input(self) -> bool:
        """Whether anything came that nobody asked for, such as the end."""
        try:
            return self._endpoint.try_receive_into(memoryview(bytearray(1))) is not None
        except ConnectionLost:
            return True

    def close(self) -> None:
        """Close in order, without waiting. Idempotent."""
        self._endpoint.close()

    async def exchange(
        self, head: h11.Request, body: bytes, max_response_bytes: int, *, repeatable: bool
    ) -> HttpResponse | None:
        """Send a request and read its response.

        Returns:
            The response; None where the request is to be sent over another connection.
        """
        self.is_reusable, self._left, self._received_bytes = False, False, 0
        # Chunk headers and the like come on top of head and body; nobody needs as much again.
        self._max_received_bytes = 2 * (max_response_bytes + MAX_HEAD_BYTES)
        try:
            await self._send(head, body)
            return await self._receive(max_response_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError) as error:
            _raise_refusal(error)
            if self._received_bytes:
                raise self._broken() from None
            if self._was_kept and (repeatable or not self._left):
                return None
            raise HttpClientError(
                HttpErrorKind.LOST, f"{self.target.where} closed the connection without a response"
            ) from None

    async def _send(self, head: h11.Request, body: bytes) -> None:
        parts = [self._http.send(head), self._http.send(h11.Data(body)) if body else b""]
        parts.append(self._http.send(h11.EndOfMessage()))
        rest = memoryview(b"".join(part or b"" for part in parts))
        while rest:
            try:
                taken = self._endpoint.try_send((rest,))
                if not taken:
                    await self._endpoint.wait_sendable()
            except ConnectionLost as lost:
                if not self._left:
                    raise trio.BrokenResourceError from lost
                return  # the server may have said why before it went
            self._left = self._left or taken > 0
            rest = rest[taken:]

    async def _receive(self, max_response_bytes: int) -> HttpResponse:
        head = await self._receive_head()
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            if len(body) + len(event.data) > max_response_bytes:
                raise self._too_large(max_response_bytes)
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            raise self._broken()
        response = HttpResponse(head.status_code, _headers(head), bytes(body))
        done = (self._http.our_state, self._http.their_state) == (h11.DONE, h11.DONE)
        # What came after the response would be taken for the next one.
        if done and self._http.trailing_data == (b"", False):
            self._http.start_next_cycle()
            self.is_reusable = self._was_kept = True
        return response

    async def _receive_head(self) -> h11.Response:
        for _ in range(MAX_INTERIM_RESPONSES + 1):
            event = await self._next_event()
            if isinstance(event, h11.Response):
                # h11 measures only what has not come whole.
                size = sum(len(name) + len(value) + 4 for name, value in event.headers)
                coding = _headers(event).get("content-encoding", "identity")
                if size > MAX_HEAD_BYTES or coding.lower() != "identity":
                    break
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
        raise self._broken()

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            self._received_bytes += len(data)
            if self._received_bytes > self._max_received_bytes:
                raise self._too_large(self._max_received_bytes)
            self._http.receive_data(data)
        return event

    def _broken(self) -> HttpClientError:
        # A library's message may quote what came, and so may not be told.
        return HttpClientError(
            HttpErrorKind.PROTOCOL, f"what {self.target.where} sent is no whole response"
        )

    def _too_large(self, limit_bytes: int) -> HttpClientError:
        return HttpClientError(
            HttpErrorKind.TOO_LARGE,
            f"the response of {self.target.where} is larger than {limit_bytes} bytes",
        )


def _parse(url: str, scheme: str) -> _Target:
    problem = None
    host, port, path = "", None, ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    except ValueError:
        problem = "the URL cannot be parsed"
    if problem is None and (not _URL.fullmatch(url) or "@" in parts.netloc or "#" in url):
        problem = "expected a URL of printable ASCII without user and fragment"
    if problem is None and (parts.scheme != scheme or not host or port == 0):
        problem = f"expected a URL with scheme {scheme!r} and a host"
    if problem is not None:  # raised out here: the library's exception quotes the URL
        raise HttpClientError(HttpErrorKind.PROTOCOL, problem)
    header = f"[{host}]" if ":" in host else host
    default = _DEFAULT_PORTS[scheme]
    port = default if port is None else port
    header = header if port == default else f"{header}:{port}"
    return _Target(host, port, header.encode("ascii"), path.encode("ascii"))


def _encode(method: str, target: _Target, json: object | None) -> tuple[bytes, h11.Request]:
    headers = [
        (b"Host", target.host_header),
        (b"Accept", b"application/json"),
        (b"Accept-Encoding", b"identity"),
    ]
    body = b""
    if json is not None:
        body = jsonlib.dumps(json, separators=(",", ":")).encode()
        headers.append((b"Content-Type", b"application/json"))
        headers.append((b"Content-Length", str(len(body)).encode()))
    return body, h11.Request(method=method, target=target.path, headers=headers)


def _headers(head: h11.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _raise_refusal(error: BaseException) -> None:
    """Tell a TLS alert apart: a TLS 1.3 server refuses a client only after the handshake."""
    lost = error.__cause__
    if isinstance(lost, ConnectionLost) and lost.reason in TLS_REFUSALS:
        raise HttpClientError(HttpErrorKind.TLS, str(lost), reason=lost.reason) from None


def _is_closed() -> HttpClientError:
    return HttpClientError(HttpErrorKind.CONNECT, "this client has been closed")
