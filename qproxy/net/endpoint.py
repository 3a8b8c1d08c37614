"""Local connections, for a hot path that tries first and waits after.

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

from qproxy.errors import QproxyError, Reason
from qproxy.net.reactor import ALL_BUT_ROOM, ALL_CHANGES, OnReady, Reactor, current_reactor

#: Views given to one ``sendmsg``: Linux's IOV_MAX.
MAX_SEND_VIEWS = 1024
#: How soon to try again where two tasks wait for the same of one socket, in seconds.
_BUSY_WAIT_S = 0.01

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


class SocketEndpoint:
    """What plain and TLS endpoints share: the socket, waiting for it, and closing it.

    Args:
        sock: a connected stream socket; owned by the endpoint from here on.
    """

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


class TcpEndpoint(SocketEndpoint):
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
                raise lost_by(error) from None
            self._on_ready = None

    def try_receive_into(self, buffer: memoryview) -> int | None:
        """See :meth:`Endpoint.try_receive_into`."""
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise lost_by(error) from None

    def try_receive_vectors(self, buffers: Sequence[memoryview]) -> int | None:
        """See :meth:`Endpoint.try_receive_vectors`."""
        try:
            if len(buffers) == 1:
                return self._socket.recv_into(buffers[0])
            return self._socket.recvmsg_into(buffers)[0]
        except BlockingIOError:
            return None
        except OSError as error:
            raise lost_by(error) from None

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
                raise eof_was_sent() from None
            raise lost_by(error) from None
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
            raise lost_by(error) from None
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


@contextlib.contextmanager
def closed_on_failure(sock: socket.socket) -> Iterator[None]:
    """Close a socket where what is made of it cannot be made; cancellation is a failure, too."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _closed_here() -> ConnectionLost:
    return ConnectionLost(Reason.CLOSED, "the connection was closed on this side")


def eof_was_sent() -> ConnectionLost:
    """For one who sends after ``send_eof``."""
    return ConnectionLost(Reason.CLOSED, "this side has ended its direction")


def lost_by(error: OSError) -> ConnectionLost:
    """What a failed system call on a connected socket means."""
    if error.errno == errno.EBADF:
        return _closed_here()
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return ConnectionLost(Reason.CONNECTION_RESET, f"the connection was lost ({name})")
