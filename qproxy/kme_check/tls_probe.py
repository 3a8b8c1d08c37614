"""What a KME makes of TLS: of an ordinary handshake, of one without a certificate, of TLS 1.1.

The offer of TLS 1.1 is a ClientHello of our own making, since a current OpenSSL makes none. It is
never completed: whether a ServerHello or an alert comes back says all there is to know.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
from typing import Final
from urllib.parse import urlsplit

import trio
from OpenSSL import SSL

from qproxy.address import TcpAddress
from qproxy.kme_check.ends import End
from qproxy.kme_check.evidence import Refusal, Transport
from qproxy.net.endpoint import ConnectionLost, TcpEndpoint
from qproxy.net.http_client import HttpClient, HttpClientError, HttpErrorKind
from qproxy.net.listen import open_connection
from qproxy.net.stream import EndpointStream
from qproxy.net.tls_endpoint import TlsEndpoint
from qproxy.tls.context import client_context
from qproxy.tls.identity import TrustStore
from qproxy.tls.names import is_ip_address

_TLS_1_1: Final = 0x0302
_ALERT, _HANDSHAKE, _SERVER_HELLO = 21, 22, 2
#: Record header, handshake header and version: what of an answer is looked at, in bytes.
_LOOKED_AT: Final = 11
#: RSA and ECDHE with AES-CBC and SHA-1: what TLS 1.1 has.
_SUITES: Final = (0xC009, 0xC00A, 0xC013, 0xC014, 0x002F, 0x0035)
_GROUPS: Final = (23, 24, 29)


async def probe_transport(end: End, tls: SSL.Context, path: str) -> Transport:
    """Look at a KME's TLS from three sides. Takes no key.

    Args:
        end: who asks, and where the KME is.
        tls: the context of its own requests.
        path: of a request that nobody may make without a certificate.
    """
    try:
        version, group = await _handshake(end, tls)
    except ConnectionLost as lost:
        return Transport(failure=lost.reason)
    except trio.TooSlowError:
        return Transport(failure="no end of the handshake in time")
    return Transport(
        version,
        group,
        old_tls=await _offer_old_tls(end),
        without_certificate=await _ask_without_certificate(end, path),
    )


def address_of(end: End) -> TcpAddress:
    """Where the KME of an end listens."""
    parts = urlsplit(end.kme.url)
    return TcpAddress(parts.hostname or "", parts.port or 443)


async def _handshake(end: End, tls: SSL.Context) -> tuple[str, str | None]:
    address = address_of(end)
    with trio.fail_after(end.connect_timeout_s):
        sock = await open_connection(address, end.connect_timeout_s)
        name = end.kme.server_name or address.host
        endpoint = TlsEndpoint.client(sock, tls, server_name=name)
        try:
            await endpoint.handshake()
            return endpoint.tls_version, endpoint.group
        finally:
            endpoint.close()


async def _ask_without_certificate(end: End, path: str) -> Refusal:
    client = HttpClient(
        tls=client_context(trust=TrustStore.load(end.kme.ca)),
        server_name=end.kme.server_name,
        connect_timeout_s=end.connect_timeout_s,
        request_timeout_s=end.request_timeout_s,
    )
    try:
        response = await client.request("GET", f"{end.kme.url}{path}")
    except HttpClientError as error:
        # A TLS 1.3 server refuses after the handshake, and some just close.
        refused = {HttpErrorKind.TLS, HttpErrorKind.LOST, HttpErrorKind.PROTOCOL}
        return Refusal.REFUSED if error.kind in refused else Refusal.UNCLEAR
    finally:
        await client.aclose()
    if 200 <= response.status <= 299:
        return Refusal.ACCEPTED
    return Refusal.REFUSED if 400 <= response.status <= 499 else Refusal.UNCLEAR


async def _offer_old_tls(end: End) -> Refusal:
    address = address_of(end)
    name = end.kme.server_name or address.host
    try:
        hello = encode_old_client_hello(
            secrets.token_bytes(32), None if is_ip_address(name) else name
        )
    except UnicodeError:  # a name that is none for DNS; the certificate may have it all the same
        hello = encode_old_client_hello(secrets.token_bytes(32), None)
    received = b""
    with trio.move_on_after(end.connect_timeout_s) as scope:
        try:
            sock = await open_connection(address, end.connect_timeout_s)
        except ConnectionLost:
            return Refusal.UNCLEAR
        stream = EndpointStream(TcpEndpoint(sock))
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(hello)
                while len(received) < _LOOKED_AT:
                    more = await stream.receive_some(_LOOKED_AT - len(received))
                    if not more:
                        break
                    received += more
    return Refusal.UNCLEAR if scope.cancelled_caught else judge_old_tls(received)


def encode_old_client_hello(random: bytes, server_name: str | None) -> bytes:
    """A ClientHello that offers TLS 1.1 at most. Source: RFC 4346 §7.4.1.2, RFC 8422 §5.1.

    Args:
        random: 32 bytes.
        server_name: for the server name extension, or None for none.
    """
    extensions = b""
    if server_name is not None:
        name = server_name.encode("idna")
        extensions += _extension(0, _vector(2, b"\0" + _vector(2, name)))
    extensions += _extension(10, _vector(2, struct.pack(f">{len(_GROUPS)}H", *_GROUPS)))
    extensions += _extension(11, _vector(1, b"\0"))
    extensions += _extension(0xFF01, _vector(1, b""))
    body = (
        struct.pack(">H", _TLS_1_1)
        + random
        + _vector(1, b"")
        + _vector(2, struct.pack(f">{len(_SUITES)}H", *_SUITES))
        + _vector(1, b"\0")
        + _vector(2, extensions)
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + _vector(2, message)


def judge_old_tls(received: bytes) -> Refusal:
    """What the first bytes of an answer say to an offer of TLS 1.1 at most."""
    if not received or received[0] == _ALERT:
        return Refusal.REFUSED
    if len(received) >= _LOOKED_AT and (received[0], received[5]) == (_HANDSHAKE, _SERVER_HELLO):
        return Refusal.ACCEPTED
    return Refusal.UNCLEAR


def _vector(length_bytes: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_bytes, "big") + content


def _extension(number: int, content: bytes) -> bytes:
    return struct.pack(">H", number) + _vector(2, content)
