"""Local connections, plain or TLS, for a hot path that tries first and waits after.

Theory of operation
===================

An endpoint owns one non-blocking socket. ``try_receive_into`` and ``try_send`` never block and
never suspend: they do what the kernel can do now and say how much that was. Only when nothing
could be done does the caller wait: a task of trio's by ``wait_receivable`` or ``wait_sendable``;
the data plane, which has no tasks, by ``watch``, after which the endpoint is waited for in no
other way.

How a connection ends is told apart, in both directions, because a proxy must hand it on:

================================  =====================================================
the peer                          here
================================  =====================================================
FIN; with TLS close_notify        ``try_receive_into`` gives 0, sending goes on
RST                               ``ConnectionLost(CONNECTION_RESET)``
TLS: FIN without close_notify     ``ConnectionLost(TRUNCATED)``, after all that came before
TLS: anything OpenSSL refuses     ``ConnectionLost(TLS_FAILURE)`` or a certificate reason
closed or aborted on this side    ``ConnectionLost(CLOSED)``, also for a task that waits
================================  =====================================================

``send_eof`` sends FIN (with TLS, close_notify and FIN) and receiving goes on; ``abort`` sends
RST; ``close`` ends both directions in order. TLS 1.2 peers answer a close_notify by ending
their own direction too (RFC 5246 §7.2.1); TLS 1.3 peers need not (RFC 9846 §6.1).

One task may receive and one may send at the same time, not two of a kind. Waiting may end early.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import trio
from cryptography import x509
from OpenSSL import SSL

from qproxy.errors import LocalProtocolError, ProtocolError, QproxyError, Reason
from qproxy.net.reactor import (
    ALL_BUT_ROOM,
    ALL_CHANGES,
    READABLE,
    WRITABLE,
    OnReady,
    Reactor,
    current_reactor,
)
from qproxy.tls.context import expect_server_name, verify_failure, verify_failure_detail

#: Plaintext in one TLS record, in bytes (RFC 9846 §5.1). OpenSSL reads and writes no more at once.
MAX_TLS_PLAINTEXT_BYTES = 16384
#: Views given to one ``sendmsg``: Linux's IOV_MAX.
MAX_SEND_VIEWS = 1024
#: Bytes of a refused handshake read and dropped, so that the alert is not lost to a reset.
MAX_DISCARDED_BYTES = 65536
#: A TLS record shorter than this is taken for the last one there is just now, in bytes.
_SHORT_RECORD_BYTES = 4096
#: How soon to try again where two tasks wait for the same of one socket, in seconds.
_BUSY_WAIT_S = 0.01

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

_LINGER_ABORT = struct.pack("ii", 1, 0)


class ConnectionLost(QproxyError):  # noqa: N818 - says what happened, not that code is wrong
    """A local connection ended otherwise than in order.

    Attributes:
        reason: the closed-set cause, for the stream's reset, the log and the metric.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Endpoint(Protocol):
    """One end of a local connection. See this module's theory of operation.

    Attributes:
        holds_data: it may hold received bytes that the kernel knows nothing of (TLS): where less
            came than was asked for, there may be more all the same.
    """

    holds_data: bool

    def watch(self, on_ready: OnReady) -> None:
        """Have the reactor call this with every change, until the endpoint is closed.

        That there is room to send need not be told before :meth:`want_room` asked for it.

        Raises:
            ConnectionLost: CLOSED.
            OSError: the kernel cannot watch it.
        """
        ...

    def want_room(self) -> None:
        """Less was taken than was offered: tell when there is room, beginning with now. Idempotent.

        Raises:
            ConnectionLost: the kernel cannot watch it.
        """
        ...

    def try_receive_into(self, buffer: memoryview) -> int | None:
        """Receive what is there, at most ``len(buffer)`` bytes, into a non-empty buffer.

        Returns:
            Bytes received; 0 at a clean end (again at every later call); None where nothing is
            there yet.

        Raises:
            ConnectionLost: reset, truncated, refused by TLS, or closed on this side.
        """
        ...

    def try_receive_vectors(self, buffers: Sequence[memoryview]) -> int | None:
        """The same into several non-empty buffers, filled one after the other."""
        ...

    def try_send(self, data: Sequence[memoryview]) -> int:
        """Send from the front of ``data``, until all is taken or the kernel takes no more.

        Bytes not taken must come first in the next call, in any division into views and not
        fewer of them than before: TLS may hold an encrypted record that the kernel would not
        take.

        Returns:
            Bytes taken. Where that is less than all, the kernel is full and has more room later.

        Raises:
            ConnectionLost: reset, or closed on this side.
        """
        ...

    async def wait_receivable(self) -> None:
        """Wait until ``try_receive_into`` is worth another try; at once after the end.

        Raises:
            ConnectionLost: CLOSED where this side closes meanwhile.
        """
        ...

    async def wait_sendable(self) -> None:
        """Wait until ``try_send`` or ``send_eof`` is worth another try.

        Raises:
            ConnectionLost: CLOSED where this side closes meanwhile.
        """
        ...

    def send_eof(self) -> bool:
        """End this direction only, after all data taken so far. Idempotent.

        Returns:
            False where it would block: call again after ``wait_sendable``.

        Raises:
            ConnectionLost: reset, or closed on this side.
        """
        ...

    def end(self) -> bool:
        """End this direction as :meth:`send_eof` does, and close: the other has ended already.

        Returns:
            False where it would block: call again after ``wait_sendable``.

        Raises:
            ConnectionLost: reset, or closed on this side.
        """
        ...

    def abort(self) -> None:
        """Reset the connection (RST) at once, dropping what the kernel holds. Idempotent."""
        ...

    def close(self) -> None:
        """End both directions in order, without waiting. Idempotent.

        Where the peer has sent what nobody read, it sees a reset: it must not take that for
        delivered.
        """
        ...


class _SocketEndpoint:
    """What plain and TLS endpoints share: the socket, waiting for it, and closing it."""

    __slots__ = ("_closed", "_eof_sent", "_reactor", "_socket")
    holds_data = False

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0.0:
            sock.setblocking(False)
        self._socket = sock
        self._closed = False
        self._eof_sent = False
        self._reactor: Reactor | None = None

    def _watch(self, on_ready: OnReady, told: int) -> None:
        self._check_open()
        reactor = current_reactor()
        reactor.watch(self._socket, on_ready, told)
        self._reactor = reactor

    @property
    def sock(self) -> socket.socket:
        """The socket, for its addresses and options. Reading or writing it breaks the endpoint."""
        return self._socket

    @property
    def closed(self) -> bool:
        """Whether this side has closed or aborted."""
        return self._closed

    def abort(self) -> None:
        """Reset the connection (RST) at once. A unix socket has no reset: its peer sees an end."""
        if self._closed:
            return
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ABORT)
        self._close_socket()

    def _close_socket(self) -> None:
        self._closed = True
        if self._reactor is not None:
            self._reactor.close_socket(self._socket)
        else:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise _closed_here()

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        self._check_open()
        try:
            await wait(self._socket)
        except trio.ClosedResourceError:
            raise _closed_here() from None
        except trio.BusyResourceError:
            # In TLS reading may have to write first (KeyUpdate), while another task waits to send.
            await trio.sleep(_BUSY_WAIT_S)


class TcpEndpoint(_SocketEndpoint):
    """A plain TCP or unix stream connection.

    Args:
        sock: a connected stream socket, with TCP_NODELAY as :mod:`qproxy.net.listen` makes them;
            owned by the endpoint from here on.
    """

    __slots__ = ("_on_ready",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        #: Whom to tell that there is room, too, once somebody asks; None where that is told.
        self._on_ready: OnReady | None = None

    def watch(self, on_ready: OnReady) -> None:
        """See :meth:`Endpoint.watch`."""
        self._watch(on_ready, ALL_BUT_ROOM)
        self._on_ready = on_ready

    def want_room(self) -> None:
        """See :meth:`Endpoint.want_room`."""
        if self._on_ready is not None:
            try:
                self._watch(self._on_ready, ALL_CHANGES)
            except OSError as error:
                raise _lost(error) from None
            self._on_ready = None

    def try_receive_into(self, buffer: memoryview) -> int | None:
        """See :meth:`Endpoint.try_receive_into`."""
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error) from None

    def try_receive_vectors(self, buffers: Sequence[memoryview]) -> int | None:
        """See :meth:`Endpoint.try_receive_vectors`."""
        try:
            if len(buffers) == 1:
                return self._socket.recv_into(buffers[0])
            return self._socket.recvmsg_into(buffers)[0]
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error) from None

    def try_send(self, data: Sequence[memoryview]) -> int:
        """See :meth:`Endpoint.try_send`."""
        taken = 0
        try:
            if len(data) == 1:
                return self._socket.send(data[0])
            if len(data) <= MAX_SEND_VIEWS:
                return self._socket.sendmsg(data)
            for start in range(0, len(data), MAX_SEND_VIEWS):
                views = data[start : start + MAX_SEND_VIEWS]
                count = self._socket.sendmsg(views)
                taken += count
                if count < sum(map(len, views)):
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if self._eof_sent and error.errno == errno.EPIPE:
                raise _eof_was_sent() from None
            raise _lost(error) from None
        return taken

    async def wait_receivable(self) -> None:
        """See :meth:`Endpoint.wait_receivable`."""
        await self._wait(trio.lowlevel.wait_readable)

    async def wait_sendable(self) -> None:
        """See :meth:`Endpoint.wait_sendable`."""
        await self._wait(trio.lowlevel.wait_writable)

    def send_eof(self) -> bool:
        """Send FIN. Never would block. See :meth:`Endpoint.send_eof`."""
        if self._eof_sent:
            return True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _lost(error) from None
        self._eof_sent = True
        return True

    def end(self) -> bool:
        """See :meth:`Endpoint.end`: closing sends FIN, too."""
        self.close()
        return True

    def close(self) -> None:
        """See :meth:`Endpoint.close`."""
        if not self._closed:
            self._close_socket()


class TlsEndpoint(_SocketEndpoint):
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
        with _closed_on_failure(sock):
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
        with _closed_on_failure(sock):
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
            raise _eof_was_sent()
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
            self._lost = _lost(error)
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


@contextlib.contextmanager
def _closed_on_failure(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


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


def _closed_here() -> ConnectionLost:
    return ConnectionLost(Reason.CLOSED, "the connection was closed on this side")


def _eof_was_sent() -> ConnectionLost:
    return ConnectionLost(Reason.CLOSED, "this side has ended its direction")


def _again(lost: ConnectionLost) -> ConnectionLost:
    """A fresh copy to raise: one object raised at every later call would gather tracebacks."""
    return ConnectionLost(lost.reason, str(lost))


def _lost(error: OSError) -> ConnectionLost:
    """What a failed system call on a connected socket means."""
    if error.errno == errno.EBADF:
        return _closed_here()
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return ConnectionLost(Reason.CONNECTION_RESET, f"the connection was lost ({name})")


def _lost_syscall(error: SSL.SysCallError) -> ConnectionLost:
    number = error.args[0] if error.args else -1
    if number == -1:  # pyOpenSSL's word for an end of file inside TLS
        return ConnectionLost(Reason.TRUNCATED, "the connection ended without close_notify")
    return _lost(OSError(number, ""))


def _openssl_text(error: SSL.Error) -> str:
    """OpenSSL's own reason text, such as ``tlsv1 alert unknown ca``; never data."""
    entries = error.args[0] if error.args else ()
    if isinstance(entries, list) and entries:
        return str(entries[-1][-1])
    return type(error).__name__
