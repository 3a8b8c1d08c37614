"""Listening, accepting and dialling: addresses in, plain non-blocking sockets out.

TCP sockets have TCP_NODELAY: what is sent leaves at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from qproxy.address import Address, TcpAddress, UnixAddress, parse_address
from qproxy.errors import Reason
from qproxy.net.endpoint import ConnectionLost, closed_on_failure
from qproxy.net.reactor import WHILE_READABLE, current_reactor

__all__ = [
    "Acceptor",
    "Connecting",
    "accept",
    "literal",
    "open_connection",
    "open_listeners",
    "parse_address",
    "reserve_port",
]

#: Connections the kernel holds for a listener before anybody accepts them.
DEFAULT_BACKLOG = 1024
#: Addresses of one name that are tried or listened on.
MAX_ADDRESSES = 8
#: Connections accepted in a row, before those that are open have their turn.
ACCEPTS_IN_A_ROW = 16
#: Rest after the system ran out of descriptors or memory, in seconds.
_EXHAUSTED_REST_S = 0.1

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
#: accept(2): errors of the connection that was about to be accepted, not of the listener.
_STILLBORN = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)

_Found = tuple[socket.AddressFamily, Any]


def open_listeners(
    address: Address, backlog: int = DEFAULT_BACKLOG, *, reuse_port: bool = False
) -> list[socket.socket]:
    """Listen on an address.

    Args:
        address: where. A host name is resolved here, blocking, and every address it has gets a
            listener; with port 0 all of them share the first one's port. A unix socket's file
            has mode 0600; one left over from before is removed only if nobody answers on it.
        backlog: connections the kernel holds before they are accepted.
        reuse_port: let several processes share the port (SO_REUSEPORT).

    Returns:
        Non-blocking listening sockets, at least one.

    Raises:
        OSError: the address cannot be resolved or bound, or somebody listens there.
    """
    if isinstance(address, UnixAddress):
        return [_listen_unix(address, backlog)]
    return _on_each_address(
        address, lambda family, sockaddr: _listen_tcp(family, sockaddr, backlog, reuse_port)
    )


def reserve_port(address: TcpAddress) -> list[socket.socket]:
    """Bind and do not listen, so that other processes of ours can with ``reuse_port``.

    While the sockets are open the port is ours: no connection goes to them, and where nobody
    listens beside them connections are refused. Whoever listens there already is noticed, even with
    SO_REUSEPORT, which would let the two of us share the port and its connections unawares.

    Args:
        address: as for :func:`open_listeners`.

    Raises:
        OSError: the address cannot be resolved or bound, or somebody listens there.
    """
    return _on_each_address(address, _reserve_tcp)


def _on_each_address(
    address: TcpAddress, make: Callable[[socket.AddressFamily, Any], socket.socket]
) -> list[socket.socket]:
    """A socket for every address of a host name, all on one port."""
    found = [
        (family, sockaddr)
        for family, _, _, _, sockaddr in socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    ]
    made: list[socket.socket] = []
    try:
        port = address.port
        for family, sockaddr in dict.fromkeys(found[:MAX_ADDRESSES]):
            made.append(make(family, (sockaddr[0], port, *sockaddr[2:])))
            port = made[-1].getsockname()[1]
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


async def accept(listener: socket.socket) -> socket.socket:
    """Wait for the next connection.

    Always gives way first: under a storm of connections the loop that accepts would otherwise
    never let the tunnels have their turn. Connections that die while they wait are passed over,
    and where the system is out of descriptors or memory it is given a moment.

    Returns:
        A non-blocking socket, owned by the caller.

    Raises:
        OSError: the listener itself is broken.
        trio.ClosedResourceError: the listener was closed meanwhile.
    """
    await trio.lowlevel.checkpoint()
    while True:
        try:
            accepted = _accept_one(listener)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise trio.ClosedResourceError("the listener is closed") from None
            if error.errno not in _EXHAUSTED:
                raise
            await trio.sleep(_EXHAUSTED_REST_S)
        else:
            if accepted is not None:
                return accepted[0]


def _accept_one(listener: socket.socket) -> tuple[socket.socket, Any] | None:
    """A connection and its address; None for one that died while it waited."""
    try:
        sock, address = listener.accept()
    except OSError as error:
        if error.errno in _STILLBORN:
            return None
        raise
    sock.setblocking(False)
    return sock, address


class Acceptor:
    """Accepts from one listening socket, for the reactor: no task waits for connections."""

    def __init__(
        self, listener: socket.socket, on_accepted: Callable[[socket.socket, Any], None]
    ) -> None:
        """Begin.

        Args:
            listener: non-blocking; the caller closes it after :meth:`close`.
            on_accepted: called with each connection, whose socket is its own, and its address.
        """
        self._listener = listener
        self._on_accepted = on_accepted
        self._paused = False
        self._resting = False
        self._closed = False
        #: The last turn that had more than one connection, or may have had.
        self._busy_turn = -1
        self._reactor = current_reactor()
        self._watch()

    def pause(self) -> None:
        """Leave connections in the kernel's backlog."""
        self._paused = True
        self._reactor.forget(self._listener)

    def resume(self) -> None:
        """Accept again."""
        self._paused = False
        self._watch()

    def close(self) -> None:
        """Accept no more. Idempotent."""
        if not self._closed:
            self._closed = True
            self._reactor.forget(self._listener)

    def _watch(self) -> None:
        if not (self._paused or self._resting or self._closed):
            self._reactor.watch(self._listener, self._on_ready, WHILE_READABLE)

    def _rest(self) -> None:
        self._resting = True
        self._reactor.forget(self._listener)
        self._reactor.call_later(_EXHAUSTED_REST_S, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._watch()

    def _on_ready(self, _change: int) -> None:
        """Take one, or many where the turn before had many: to ask in vain costs a call."""
        turn = self._reactor.turns
        for taken in range(ACCEPTS_IN_A_ROW if turn == self._busy_turn + 1 else 1):
            try:
                accepted = _accept_one(self._listener)
            except BlockingIOError:
                if taken > 1:
                    self._busy_turn = turn
                return
            except OSError as error:
                self._rest()
                if error.errno not in _EXHAUSTED:
                    raise
                return
            if accepted is not None:
                self._on_accepted(*accepted)
            if self._paused or self._closed:
                return
        self._busy_turn = turn


async def open_connection(address: Address, timeout_s: float) -> socket.socket:
    """Connect, trying each address of a host name in turn.

    Args:
        address: where to.
        timeout_s: for all tries together; each gets an equal share of what is left.

    Returns:
        A connected non-blocking socket, owned by the caller.

    Raises:
        ConnectionLost: CONNECT_REFUSED, CONNECT_TIMEOUT or CONNECT_FAILED, of the last try.
    """
    deadline = trio.current_time() + timeout_s
    with trio.move_on_after(timeout_s):
        candidates = await _resolve(address)
        failure = ConnectionLost(Reason.CONNECT_FAILED, f"{address} has no address")
        for position, (family, sockaddr) in enumerate(candidates):
            left_s = max(0.0, deadline - trio.current_time())
            failure = ConnectionLost(
                Reason.CONNECT_TIMEOUT, f"no answer from {address} in {timeout_s} s"
            )
            with trio.move_on_after(left_s / (len(candidates) - position)):
                try:
                    return await _connect(family, sockaddr)
                except OSError as error:
                    failure = _connect_failure(address, error)
        raise failure
    raise ConnectionLost(Reason.CONNECT_TIMEOUT, f"no answer from {address} in {timeout_s} s")


def literal(address: Address) -> tuple[socket.AddressFamily, Any] | None:
    """Where to connect, if that takes no name to be resolved: an IP address or a unix socket."""
    if isinstance(address, UnixAddress):
        return socket.AF_UNIX, address.path
    try:
        found = socket.getaddrinfo(
            address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
    except (OSError, UnicodeError):
        return None
    family, _, _, _, sockaddr = found[0]
    return family, sockaddr


class Connecting:
    """One try to connect a socket, for the reactor: no task waits for it."""

    def __init__(
        self,
        address: Address,
        family: socket.AddressFamily,
        sockaddr: Any,
        done: Callable[[socket.socket | ConnectionLost], None],
    ) -> None:
        """Nothing is done before :meth:`begin`.

        Args:
            address: what messages call it.
            family: of the socket.
            sockaddr: in the family's form.
            done: called once with the connected socket, which is the callee's, or with the failure.
        """
        self._address = address
        self._family = family
        self._sockaddr = sockaddr
        self._done = done
        #: As long as it connects.
        self._sock: socket.socket | None = None

    def begin(self) -> None:
        """Connect. Where the answer is there at once, ``done`` is called before this returns."""
        try:
            self._sock = _dialling_socket(self._family)
        except OSError as error:
            self._fail(error)
        else:
            self._try()

    def cancel(self) -> None:
        """Give up without a word; nothing, once it is done."""
        sock = self._let_go()
        if sock is not None:
            sock.close()

    def _try(self, _change: int = 0) -> None:
        """Ask again: on the same machine the answer is there at once, and saves a turn."""
        sock = self._sock
        if sock is None:
            return
        failed = sock.connect_ex(self._sockaddr)
        if failed == errno.EINPROGRESS:
            failed = sock.connect_ex(self._sockaddr)
        if failed in (0, errno.EISCONN):
            self._let_go()
            self._done(sock)
        elif failed == errno.EALREADY:
            try:
                current_reactor().watch(sock, self._try)
            except OSError as error:
                self._fail(error)
        else:
            self._fail(OSError(failed, os.strerror(failed)))

    def _fail(self, error: OSError) -> None:
        self.cancel()
        self._done(_connect_failure(self._address, error))

    def _let_go(self) -> socket.socket | None:
        """The socket is somebody else's, who may close it without a word to the reactor."""
        sock, self._sock = self._sock, None
        if sock is not None:
            current_reactor().forget(sock)
        return sock


async def _resolve(address: Address) -> Sequence[_Found]:
    if isinstance(address, UnixAddress):
        return [(socket.AF_UNIX, address.path)]
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConnectionLost(
            Reason.CONNECT_FAILED, f"the name {address.host!r} cannot be resolved"
        ) from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found[:MAX_ADDRESSES]]


async def _connect(family: socket.AddressFamily, sockaddr: Any) -> socket.socket:
    sock = _dialling_socket(family)
    with closed_on_failure(sock):
        try:
            sock.connect(sockaddr)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:  # a unix listener's backlog is full
                raise
            await trio.lowlevel.wait_writable(sock)
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, os.strerror(failed)) from None
    return sock


def _dialling_socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_failure(address: Address, error: OSError) -> ConnectionLost:
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    if error.errno == errno.ETIMEDOUT:
        return ConnectionLost(Reason.CONNECT_TIMEOUT, f"no answer from {address} ({name})")
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
        return ConnectionLost(Reason.CONNECT_REFUSED, f"{address} refuses the connection ({name})")
    return ConnectionLost(Reason.CONNECT_FAILED, f"cannot connect to {address} ({name})")


def _listen_tcp(
    family: socket.AddressFamily, sockaddr: Any, backlog: int, reuse_port: bool
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    with closed_on_failure(listener):
        if reuse_port and sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind_tcp(listener, sockaddr)
        # What is accepted from it has that, too.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.listen(backlog)
        listener.setblocking(False)
    return listener


def _reserve_tcp(family: socket.AddressFamily, sockaddr: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    with closed_on_failure(sock):
        # Only once it is bound: before, it would not mind others who listen.
        _bind_tcp(sock, sockaddr)
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def _bind_tcp(sock: socket.socket, sockaddr: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(sockaddr)


def _listen_unix(address: UnixAddress, backlog: int) -> socket.socket:
    _remove_stale(Path(address.path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with closed_on_failure(listener):
        # By umask and not by chmod afterwards: nobody else may connect in between.
        previous = os.umask(0o177)
        try:
            listener.bind(address.path)
        finally:
            os.umask(previous)
        listener.listen(backlog)
        listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on.

    Raises:
        OSError: EADDRINUSE where somebody does, or where it is no socket at all.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "a file that is no socket stands there", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except BlockingIOError:
            pass  # a full backlog: somebody is there
    raise OSError(errno.EADDRINUSE, "somebody listens there", str(path))
