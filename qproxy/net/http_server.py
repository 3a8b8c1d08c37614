"""A small HTTP/1.1 server on h11: one handler, whole requests in, whole responses out.

For control and key delivery between programs, not for the web: bodies are held in memory under
a limit, a connection serves one request at a time (pipelined ones wait), and there is no routing.

Which limit governs which phase:

==========================  ==========================================================
TLS handshake               ``handshake_timeout_s``
waiting for a request       ``idle_timeout_s``
reading one, first to last  ``read_timeout_s``
the handler                 none: its own
writing the response        ``write_timeout_s``
==========================  ==========================================================
"""

from __future__ import annotations

import email.utils
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import h11
import trio
from cryptography import x509
from OpenSSL import SSL

from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.listen import accept
from qproxy.net.stream import EndpointStream
from qproxy.net.tls_endpoint import TlsEndpoint

#: Time a client is given to read a last response before the connection goes, in seconds.
LINGER_S = 1.0
#: What a client may still send in that time, in bytes, before it is cut off.
MAX_LINGER_BYTES = 1 << 20
_RECEIVE_BYTES = 16384

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one server allows its clients.

    Attributes:
        max_body_bytes: largest request body; more is answered 413.
        max_header_bytes: request line and headers together; more is answered 431.
        max_connections: at once, over all listeners; more wait (one a listener accepted, the
            rest in the backlog).
        read_timeout_s: from a request's first byte to its last; more is answered 408.
        write_timeout_s: for one response.
        idle_timeout_s: between requests.
        handshake_timeout_s: for the TLS handshake.
    """

    max_body_bytes: int = 256 * 1024
    max_header_bytes: int = 16 * 1024
    max_connections: int = 256
    read_timeout_s: float = 10.0
    write_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    handshake_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request.

    Attributes:
        method: as sent; case matters.
        target: raw path and query, starting with a slash, still percent-encoded.
        path: the part of ``target`` before the first ``?``, still percent-encoded.
        query: the part after it; empty where there is none.
        headers: names in lower case; values of a repeated name joined by a comma and a space.
        body: at most ``max_body_bytes``; may hold secrets, so it is not shown.
        peer_certificate: the client's, verified as the TLS context says; None where it sent
            none.
    """

    method: str
    target: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    peer_certificate: x509.Certificate | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response.

    Attributes:
        status: 200 to 599.
        body: may hold secrets, so it is not shown.
        content_type: sent where there is a body.
        headers: further ones. Content-Length, Date and Connection are the server's.
    """

    status: int
    body: bytes = field(default=b"", repr=False)
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


async def serve_http(
    handler: Handler,
    listeners: Sequence[socket.socket],
    *,
    tls: SSL.Context | None = None,
    limits: HttpLimits | None = None,
    log: logging.Logger | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Nothing a client does ends the server.

    Args:
        handler: makes a response of a request. An exception out of it becomes a bare 500.
        listeners: non-blocking listening sockets; closed when this ends.
        tls: a server context, or None for plain HTTP.
        limits: what clients may do; the defaults where None.
        log: where refused clients and failed handlers go. Never a body, never a header.
        task_status: started once connections are accepted.
    """
    limits = limits or HttpLimits()
    log = log or _log
    slots = trio.CapacityLimiter(limits.max_connections)

    async def serve_one(sock: socket.socket) -> None:
        # Whoever serves it closes it; this is for a cancellation before that.
        with sock:
            async with slots:
                await _serve_socket(handler, sock, tls, limits, log)

    async def serve_listener(listener: socket.socket) -> None:
        while True:
            # A free slot first, so that clients above the limit stay in the backlog.
            await _until_free(slots)
            nursery.start_soon(serve_one, await accept(listener))

    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(serve_listener, listener)
            task_status.started()
    finally:
        for listener in listeners:
            trio.lowlevel.notify_closing(listener)
            listener.close()


async def serve_connection(
    handler: Handler,
    stream: trio.abc.HalfCloseableStream,
    *,
    limits: HttpLimits | None = None,
    peer_certificate: x509.Certificate | None = None,
    log: logging.Logger | None = None,
) -> None:
    """Serve one connection to its end, and close it.

    Args:
        handler: as in :func:`serve_http`.
        stream: a connected stream, after any TLS handshake; owned from here on.
        limits: what the client may do; the defaults where None.
        peer_certificate: handed on in each request.
        log: where a failed handler goes.
    """
    connection = _Connection(handler, stream, limits or HttpLimits(), peer_certificate, log or _log)
    try:
        await connection.run()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client went; nobody is left to be told
    except Exception as error:
        (log or _log).error("HTTP connection failed: %s", _describe(error))
    finally:
        await trio.aclose_forcefully(stream)


async def _until_free(slots: trio.CapacityLimiter) -> None:
    async with slots:
        pass


async def _serve_socket(
    handler: Handler,
    sock: socket.socket,
    tls: SSL.Context | None,
    limits: HttpLimits,
    log: logging.Logger,
) -> None:
    if tls is None:
        stream = EndpointStream(TcpEndpoint(sock))
        await serve_connection(handler, stream, limits=limits, log=log)
        return
    endpoint = TlsEndpoint.server(sock, tls)
    try:
        with trio.fail_after(limits.handshake_timeout_s):
            await endpoint.handshake()
    except ConnectionLost as lost:
        log.info("TLS handshake failed: %s (%s)", lost.reason, lost)
        return
    except trio.TooSlowError:
        log.info("TLS handshake failed: no end after %s s", limits.handshake_timeout_s)
        return
    finally:
        if not endpoint.handshake_done:
            endpoint.close()
    await serve_connection(
        handler,
        EndpointStream(endpoint),
        limits=limits,
        peer_certificate=endpoint.peer_certificate,
        log=log,
    )


class _RefusedError(Exception):
    """The client gets this status, and then no more."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Connection:
    """One client: its h11 state and the stream under it."""

    def __init__(
        self,
        handler: Handler,
        stream: trio.abc.HalfCloseableStream,
        limits: HttpLimits,
        peer_certificate: x509.Certificate | None,
        log: logging.Logger,
    ) -> None:
        self._handler = handler
        self._stream = stream
        self._limits = limits
        self._peer_certificate = peer_certificate
        self._log = log
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_header_bytes)
        self._head_only = False

    async def run(self) -> None:
        """Request after request, until either side has had enough."""
        try:
            while await self._wait_for_request():
                request = await self._read_request()
                if request is None:
                    return
                response = await self._respond_to(request)
                await self._send(response)
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
        except _RefusedError as refusal:
            await self._refuse(refusal.status)
        await self._linger()

    async def _wait_for_request(self) -> bool:
        """Wait for the next request's first byte. False where none comes."""
        data, ended = self._http.trailing_data
        if data:
            return True  # pipelined
        if ended:
            return False
        with trio.move_on_after(self._limits.idle_timeout_s):
            received = await self._stream.receive_some(_RECEIVE_BYTES)
            self._http.receive_data(bytes(received))
            return bool(received)
        return False

    async def _read_request(self) -> Request | None:
        """Read one request whole. None where the client ends before it began one."""
        self._head_only = False
        try:
            with trio.fail_after(self._limits.read_timeout_s):
                head = await self._next_event()
                if not isinstance(head, h11.Request):
                    return None
                return await self._read_body(head)
        except trio.TooSlowError:
            raise _RefusedError(408) from None
        except h11.RemoteProtocolError as error:
            raise _RefusedError(error.error_status_hint) from None

    async def _read_body(self, head: h11.Request) -> Request:
        self._head_only = head.method == b"HEAD"
        if _head_size(head) > self._limits.max_header_bytes:
            raise _RefusedError(431)  # h11 measures only what has not come whole
        headers = _headers(head)
        target = head.target.decode("ascii")
        if not target.startswith("/"):
            raise _RefusedError(400)  # this is no forward proxy
        self._check_length(int(headers.get("content-length", "0")))
        if self._http.they_are_waiting_for_100_continue:
            interim = h11.InformationalResponse(status_code=100, headers=[])
            await self._stream.send_all(self._http.send(interim) or b"")
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            self._check_length(len(body) + len(event.data))
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            raise _RefusedError(400)
        path, _, query = target.partition("?")
        return Request(
            head.method.decode("ascii"),
            target,
            path,
            query,
            headers,
            bytes(body),
            self._peer_certificate,
        )

    def _check_length(self, length: int) -> None:
        if length > self._limits.max_body_bytes:
            raise _RefusedError(413)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(bytes(await self._stream.receive_some(_RECEIVE_BYTES)))
        return event

    async def _respond_to(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except Exception as error:
            self._log.error("HTTP handler failed: %s", _describe(error))
            return _plain(500)

    async def _send(self, response: Response) -> None:
        try:
            data = self._encode(response)
        except h11.LocalProtocolError:
            self._log.error("HTTP handler gave a response that cannot be sent")
            data = self._encode(_plain(500))
        await self._write(data)

    def _encode(self, response: Response) -> bytes:
        bodiless = response.status in (204, 304)
        headers = [("Date", email.utils.formatdate(usegmt=True)), *response.headers]
        if not bodiless:
            headers.append(("Content-Length", str(len(response.body))))
        if response.body and not bodiless:
            headers.append(("Content-Type", response.content_type))
        # Built before anything reaches h11's state, so that a bad one can be replaced.
        head = h11.Response(status_code=response.status, headers=headers)
        parts = [self._http.send(head)]
        if response.body and not bodiless and not self._head_only:
            parts.append(self._http.send(h11.Data(data=response.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        return b"".join(part for part in parts if part)

    async def _write(self, data: bytes) -> None:
        with trio.move_on_after(self._limits.write_timeout_s) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")

    async def _refuse(self, status: int) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._write(self._encode(_plain(status, (("Connection", "close"),))))

    async def _linger(self) -> None:
        """Let a last response arrive: closing on unread input would reset the connection."""
        left = MAX_LINGER_BYTES
        with trio.move_on_after(LINGER_S):
            await self._stream.send_eof()
            while left > 0 and (dropped := await self._stream.receive_some(_RECEIVE_BYTES)):
                left -= len(dropped)


def _describe(error: Exception) -> str:
    """Type and place only: the message may quote a request or a key."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown"
    return f"{type(error).__name__} at {place}"


def _plain(status: int, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status, b'{"message":"%s"}' % _PHRASES.get(status, b"error"), headers=headers)


_PHRASES = {
    400: b"bad request",
    408: b"request timeout",
    413: b"request body too large",
    431: b"request headers too large",
    500: b"internal error",
    501: b"not implemented",
}


def _head_size(head: h11.Request) -> int:
    """Bytes of the request line and headers, as good as on the wire."""
    fields = sum(len(name) + len(value) + 4 for name, value in head.headers)
    return len(head.method) + len(head.target) + 12 + fields


def _headers(head: h11.Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
