"""A local connection over TLS: all that :mod:`qproxy.net.endpoint` says holds for it, too."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

import trio
from cryptography import x509
from OpenSSL import SSL

from qproxy.errors import LocalProtocolError, ProtocolError, Reason
from qproxy.net.endpoint import (
    ConnectionLost,
    SocketEndpoint,
    closed_on_failure,
    eof_was_sent,
    lost_by,
)
from qproxy.net.reactor import ALL_CHANGES, READABLE, WRITABLE, OnReady
from qproxy.tls.context import expect_server_name, verify_failure, verify_failure_detail

#: Plaintext in one TLS record, in bytes (RFC 9846 §5.1). OpenSSL reads and writes no more at once.
MAX_TLS_PLAINTEXT_BYTES = 16384
#: Bytes of a refused handshake read and dropped, so that the alert is not lost to a reset.
MAX_DISCARDED_BYTES = 65536
#: A TLS record shorter than this is taken for the last one there is just now, in bytes.
_SHORT_RECORD_BYTES = 4096

#: What of TLS means that one side refused the other, rather than that the line broke.
TLS_REFUSALS = frozenset(
    {
        Reason.TLS_FAILURE,
        Reason.CERTIFICATE_INVALID,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_REVOKED,
        Reason.PEER_NAME_MISMATCH,
    }
)


class TlsEndpoint(SocketEndpoint):
    """A TLS connection by OpenSSL straight on the socket. :meth:`handshake` comes first.

    Attributes:
        group: key exchange group, such as ``X25519MLKEM768``; None before the handshake.
        tls_version: such as ``TLSv1.3``; empty before the handshake.
        alpn: the protocol agreed on; empty where none was.
        peer_certificate: the peer's own certificate, verified as the context says; None where
            it sent none.
    """

    __slots__ = (
        "_blocked_bytes",
        "_connection",
        "_eof_received",
        "_lost",
        "_ready",
        "_receive_wants_write",
        "_send_wants_read",
        "alpn",
        "group",
        "peer_certificate",
        "tls_version",
    )
    holds_data = True

    def __init__(self, sock: socket.socket, connection: SSL.Connection) -> None:
        super().__init__(sock)
        self._connection = connection
        self._ready = False
        self._lost: ConnectionLost | None = None
        self._eof_received = False
        #: Length of the write OpenSSL must see again before any other, in bytes; 0 for none.
        self._blocked_bytes = 0
        self._receive_wants_write = False
        self._send_wants_read = False
        self.group: str | None = None
        self.tls_version = ""
        self.alpn = b""
        self.peer_certificate: x509.Certificate | None = None

    @classmethod
    def server(cls, sock: socket.socket, context: SSL.Context) -> TlsEndpoint:
        """The accepting side of a connected socket, which the endpoint owns from here on.

        Raises:
            Exception: it cannot be made; the socket is closed.
        """
        with closed_on_failure(sock):
            connection = SSL.Connection(context, sock)
            connection.set_accept_state()
            return cls(sock, connection)

    @classmethod
    def client(
        cls, sock: socket.socket, context: SSL.Context, *, server_name: str | None
    ) -> TlsEndpoint:
        """The dialling side of a connected socket, which the endpoint owns from here on.

        Args:
            sock: a connected stream socket.
            context: from :func:`qproxy.tls.context.client_context`.
            server_name: DNS name or IP address the certificate must be for. None only where
                the caller compares :attr:`peer_certificate` with a pinned one.

        Raises:
            Exception: it cannot be made; the socket is closed.
        """
        with closed_on_failure(sock):
            connection = SSL.Connection(context, sock)
            connection.set_connect_state()
            if server_name is not None:
                expect_server_name(connection, server_name)
            return cls(sock, connection)

    @property
    def handshake_done(self) -> bool:
        """Whether :meth:`handshake` ended well."""
        return self._ready

    async def handshake(self) -> None:
        """Run the TLS handshake. A deadline is the caller's, who closes where it passes.

        Raises:
            ConnectionLost: TLS_FAILURE, a certificate reason or PEER_NAME_MISMATCH where one
                side refused the other; TRUNCATED or CONNECTION_RESET where the peer went. The
                endpoint is closed by then; the peer saw an ordinary alert.
        """
        await trio.lowlevel.checkpoint()
        while not self.try_handshake():
            if self._send_wants_read:
                await self._wait(trio.lowlevel.wait_readable)
            else:
                await self._wait(trio.lowlevel.wait_writable)

    def try_handshake(self) -> bool:
        """Take the handshake as far as it goes now. For one who watches the endpoint.

        Returns:
            Whether it ended well; False where the connection must change first.

        Raises:
            ConnectionLost: as :meth:`handshake`.
        """
        self._check_open()
        try:
            self._connection.do_handshake()
        except (SSL.WantReadError, SSL.WantWriteError) as want:
            self._send_wants_read = isinstance(want, SSL.WantReadError)
            return False
        except (SSL.Error, ProtocolError) as error:
            lost = self._tls_lost(error)
            self._refuse()
            raise lost from None
        self._send_wants_read = False
        self._ready = True
        self._note_parameters()
        return True

    def watch(self, on_ready: OnReady) -> None:
        """See :meth:`Endpoint.watch`. Reading may have to wait for room to write (KeyUpdate)."""

        def either_way(change: int) -> None:
            if change & WRITABLE and self._receive_wants_write:
                change |= READABLE
            if change & READABLE and self._send_wants_read:
                change |= WRITABLE
            on_ready(change)

        self._watch(either_way, ALL_CHANGES)

    def want_room(self) -> None:
        """See :meth:`Endpoint.want_room`: that is always told."""

    def try_receive_into(self, buffer: memoryview) -> int | None:
        """See :meth:`Endpoint.try_receive_into`."""
        self._check_usable()
        if self._eof_received:
            return 0
        total, size = 0, len(buffer)
        while total < size:
            try:
                count = self._connection.recv_into(buffer[total:], MAX_TLS_PLAINTEXT_BYTES)
            except SSL.WantReadError:
                self._receive_wants_write = False
                break
            except SSL.WantWriteError:
                self._receive_wants_write = True
                break
            except SSL.ZeroReturnError:
                self._eof_received = True
                break
            except (SSL.Error, ProtocolError) as error:
                self._lost = self._tls_lost(error)
                break
            total += count
            if count < _SHORT_RECORD_BYTES:
                break
        if total:
            return total
        if self._lost is not None:
            raise _again(self._lost)
        return 0 if self._eof_received else None

    def try_receive_vectors(self, buffers: Sequence[memoryview]) -> int | None:
        """See :meth:`Endpoint.try_receive_vectors`."""
        total = 0
        for buffer in buffers:
            try:
                count = self.try_receive_into(buffer)
            except ConnectionLost:
                # Told again by the next call; what came before it is not lost.
                if total:
                    return total
                raise
            total += count or 0
            if count is None or count < len(buffer):
                return total or count
        return total

    def try_send(self, data: Sequence[memoryview]) -> int:
        """See :meth:`Endpoint.try_send`. Small views share a record.

        Raises:
            LocalProtocolError: fewer bytes are offered than the last call left over.
        """
        self._check_usable()
        if self._eof_sent:
            raise eof_was_sent()
        taken = index = offset = 0
        while index < len(data):
            chunk = _chunk(data, index, offset, self._blocked_bytes or MAX_TLS_PLAINTEXT_BYTES)
            count = self._write(chunk)
            if not count:
                break
            taken += count
            offset += count
            while index < len(data) and offset >= len(data[index]):
                offset -= len(data[index])
                index += 1
        return taken

    async def wait_receivable(self) -> None:
        """See :meth:`Endpoint.wait_receivable`."""
        self._check_open()
        if self._eof_received or self._lost is not None or self._connection.pending():
            await trio.lowlevel.checkpoint()
        elif self._receive_wants_write:
            await self._wait(trio.lowlevel.wait_writable)
        else:
            await self._wait(trio.lowlevel.wait_readable)

    async def wait_sendable(self) -> None:
        """See :meth:`Endpoint.wait_sendable`."""
        if self._send_wants_read:
            await self._wait(trio.lowlevel.wait_readable)
        else:
            await self._wait(trio.lowlevel.wait_writable)

    def send_eof(self) -> bool:
        """Send close_notify and FIN. See :meth:`Endpoint.send_eof`.

        Raises:
            LocalProtocolError: bytes that the last :meth:`try_send` left over were not offered
                again; nothing may overtake them.
        """
        self._check_usable()
        if self._eof_sent:
            return True
        if self._blocked_bytes:
            raise LocalProtocolError(
                Reason.INTERNAL_ERROR, "send_eof before the rest of the data was sent"
            )
        try:
            self._connection.shutdown()
            self._eof_sent = True
            self._socket.shutdown(socket.SHUT_WR)
        except (SSL.WantWriteError, SSL.WantReadError):
            return False
        except SSL.Error as error:
            self._lost = self._tls_lost(error)
            raise _again(self._lost) from None
        except OSError as error:
            self._lost = lost_by(error)
            raise _again(self._lost) from None
        return True

    def end(self) -> bool:
        """See :meth:`Endpoint.end`."""
        if not self.send_eof():
            return False
        self.close()
        return True

    def close(self) -> None:
        """See :meth:`Endpoint.close`. Sends close_notify where the kernel takes it."""
        if self._closed:
            return
        if self._ready and self._lost is None:
            if self._has_unread_data():
                self.abort()
                return
            if not self._eof_sent and not self._blocked_bytes:
                with contextlib.suppress(SSL.Error, OSError):
                    self._connection.shutdown()
        self._close_socket()

    def _has_unread_data(self) -> bool:
        """Whether data is waiting that nobody will read.

        Reads past a session ticket that may lie there: left unread, it would make the kernel
        turn an orderly close into a reset that drops our last data.
        """
        try:
            return not self._eof_received and bool(self._connection.recv(1))
        except (SSL.Error, ProtocolError):
            return False

    def _write(self, chunk: memoryview | bytes) -> int:
        """One SSL_write. After a "would block" OpenSSL must get the same bytes again."""
        if len(chunk) < self._blocked_bytes:
            raise LocalProtocolError(
                Reason.INTERNAL_ERROR,
                f"{self._blocked_bytes} bytes were left over, {len(chunk)} are offered again",
            )
        try:
            count = self._connection.send(chunk)
        except (SSL.WantWriteError, SSL.WantReadError) as want:
            self._send_wants_read = isinstance(want, SSL.WantReadError)
            self._blocked_bytes = len(chunk)
            return 0
        except (SSL.Error, ProtocolError) as error:
            self._lost = self._tls_lost(error)
            raise _again(self._lost) from None
        self._blocked_bytes = 0
        self._send_wants_read = False
        return count

    def _note_parameters(self) -> None:
        connection = self._connection
        self.group = connection.get_group_name()
        self.tls_version = connection.get_protocol_version_name()
        self.alpn = connection.get_alpn_proto_negotiated()
        try:
            self.peer_certificate = connection.get_peer_certificate(as_cryptography=True)
        except ValueError:
            self.close()
            raise ConnectionLost(
                Reason.CERTIFICATE_INVALID, "the peer's certificate cannot be parsed"
            ) from None

    def _check_usable(self) -> None:
        self._check_open()
        if self._lost is not None:
            raise _again(self._lost)
        if not self._ready:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no TLS handshake yet")

    def _refuse(self) -> None:
        """Close after a failed handshake so that the alert just sent can arrive."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            discarded = 0
            while discarded < MAX_DISCARDED_BYTES and (dropped := self._socket.recv(16384)):
                discarded += len(dropped)
        self._close_socket()

    def _tls_lost(self, error: SSL.Error | ProtocolError) -> ConnectionLost:
        if isinstance(error, ProtocolError):
            return ConnectionLost(error.reason, str(error))
        if isinstance(error, SSL.SysCallError):
            return _lost_syscall(error)
        reason = verify_failure(self._connection)
        if reason is not None:
            detail = verify_failure_detail(self._connection)
            return ConnectionLost(reason, f"the peer's certificate is refused: {detail}")
        return ConnectionLost(Reason.TLS_FAILURE, f"TLS failed: {_openssl_text(error)}")


def _chunk(data: Sequence[memoryview], index: int, offset: int, size: int) -> memoryview | bytes:
    """At most ``size`` bytes of ``data`` from a position on; copied only across views."""
    view = data[index][offset : offset + size]
    if len(view) == size or index == len(data) - 1:
        return view
    parts, missing = [view], size - len(view)
    for following in data[index + 1 :]:
        parts.append(following[:missing])
        missing -= len(parts[-1])
        if not missing:
            break
    return b"".join(parts)


def _again(lost: ConnectionLost) -> ConnectionLost:
    """A fresh copy to raise: one object raised at every later call would gather tracebacks."""
    return ConnectionLost(lost.reason, str(lost))


def _lost_syscall(error: SSL.SysCallError) -> ConnectionLost:
    number = error.args[0] if error.args else -1
    if number == -1:  # pyOpenSSL's word for an end of file inside TLS
        return ConnectionLost(Reason.TRUNCATED, "the connection ended without close_notify")
    return lost_by(OSError(number, ""))


def _openssl_text(error: SSL.Error) -> str:
    """OpenSSL's own reason text, such as ``tlsv1 alert unknown ca``; never data."""
    entries = error.args[0] if error.args else ()
    if isinstance(entries, list) and entries:
        return str(entries[-1][-1])
    return type(error).__name__
