"""Both ends of a proxied connection in the hands of one test: clients, services, and endings.

Every socket has a timeout, so that nothing here waits for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.processes import DEADLINE_S

#: ``host:port`` or ``unix:/path``, as configurations write it.
Address = str


def connect(address: Address) -> socket.socket:
    """A connected client socket."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(DEADLINE_S)
        try:
            sock.connect(address.removeprefix("unix:"))
        except BaseException:
            sock.close()
            raise
        return sock
    return socket.create_connection(host_and_port(address), timeout=DEADLINE_S)


def host_and_port(address: Address) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


class Backend:
    """A service whose accepted connections the test holds itself.

    Attributes:
        address: what a gateway connects to.
    """

    def __init__(self, path: Path | None = None, *, backlog: int = 1024) -> None:
        if path is None:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listener.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            self.address = f"unix:{path}"
        self._listener.settimeout(DEADLINE_S)
        self._listener.listen(backlog)

    def accept(self) -> socket.socket:
        """The next connection; it comes from a gateway. Waits for it."""
        sock, _ = self._listener.accept()
        sock.settimeout(DEADLINE_S)
        return sock

    def nobody_is_waiting(self) -> bool:
        """Whether no connection is there to be accepted at this moment."""
        self._listener.setblocking(False)
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return True
        finally:
            self._listener.settimeout(DEADLINE_S)
        sock.close()
        return False

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ReservedPort:
    """A port that refuses connections until somebody is told to use it.

    Bound and not listening: nobody else gets it, and a connection to it is refused.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def release(self) -> None:
        """From here on whoever wants may listen there."""
        self._socket.close()

    def __enter__(self) -> ReservedPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class BlackHole:
    """A TCP address that answers no SYN: a listener whose queue is full."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        listener = self._open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        # One connection fits into a queue of length 0; the system drops the next ones' SYN.
        for _ in range(8):
            sock = self._open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(listener.getsockname())

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


# What goes through.


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """``size`` bytes. Raises AssertionError where the connection ends before."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 16))
        assert piece, f"the connection ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the peer's orderly end."""
    data = bytearray()
    while piece := sock.recv(1 << 16):
        data += piece
    return bytes(data)


def round_trip(near: socket.socket, far: socket.socket, data: bytes = b"are you there?") -> None:
    """Send something there and the same back, and check both."""
    near.sendall(data)
    assert receive_exactly(far, len(data)) == data
    far.sendall(data[::-1])
    assert receive_exactly(near, len(data)) == data[::-1]


def pattern(seed: bytes, size: int) -> bytes:
    """Bytes without order that the seed determines."""
    return hashlib.shake_256(seed).digest(size)


class Pump:
    """Sends without pause in a thread until told to stop, then ends its direction.

    Attributes:
        sent_bytes: how much went out.
        sha256: digest of all of it, once finished.
    """

    def __init__(self, sock: socket.socket, seed: bytes) -> None:
        self.sent_bytes = 0
        self.sha256 = ""
        self._sock = sock
        self._block = pattern(seed, 1 << 16)
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def finish(self) -> str:
        """Stop, wait for the end, and give the digest. Raises what went wrong."""
        self.stop()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"still sending after {self.sent_bytes} bytes"
        if self._fault is not None:
            raise self._fault
        return self.sha256

    def _run(self) -> None:
        digest = hashlib.sha256()
        try:
            while not self._stop.is_set():
                # No two blocks are alike: a lost, repeated or swapped one changes the digest.
                block = self.sent_bytes.to_bytes(8, "big") + self._block
                self._sock.sendall(block)
                digest.update(block)
                self.sent_bytes += len(block)
            self._sock.shutdown(socket.SHUT_WR)
        except BaseException as error:
            self._fault = error
        self.sha256 = digest.hexdigest()


class Drain:
    """Receives in a thread up to the end of the other direction.

    Attributes:
        received_bytes: how much came in so far.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.received_bytes = 0
        self._sock = sock
        self._digest = hashlib.sha256()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> str:
        """Wait for the end and give the digest. Raises what went wrong."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"no end after {self.received_bytes} bytes"
        if self._fault is not None:
            raise self._fault
        return self._digest.hexdigest()

    def _run(self) -> None:
        try:
            while data := self._sock.recv(1 << 16):
                self._digest.update(data)
                self.received_bytes += len(data)
        except BaseException as error:
            self._fault = error


class TwoWayTraffic:
    """Data both ways without pause over one proxied connection, checked by hash at the end."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._pumps = (Pump(near, b"near to far"), Pump(far, b"far to near"))
        self._drains = (Drain(far), Drain(near))

    @property
    def received_bytes(self) -> tuple[int, int]:
        """What has arrived so far, per direction."""
        return self._drains[0].received_bytes, self._drains[1].received_bytes

    def finish(self) -> int:
        """Stop, check that every byte arrived, and give how many that were in all."""
        sent = [pump.finish() for pump in self._pumps]
        assert [drain.finish() for drain in self._drains] == sent
        assert min(self.received_bytes) > 0
        return sum(self.received_bytes)


# How connections end.


def reset(sock: socket.socket) -> None:
    """End a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_reset(sock: socket.socket) -> None:
    """The next thing to come, after data that may have been under way, is RST."""
    count = 0
    try:
        while data := sock.recv(1 << 16):
            count += len(data)
    except ConnectionResetError:
        return
    raise AssertionError(f"after {count} bytes the connection ended in order, RST was expected")


def assert_refused(address: Address) -> None:
    """A new connection gets RST, be it so soon that connecting itself ends with it."""
    try:
        near = connect(address)
    except ConnectionResetError:
        return
    with near:
        assert_reset(near)


@contextlib.contextmanager
def proxied(address: Address, backend: Backend) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through the gateways: the client's end, and the service's."""
    with connect(address) as near, backend.accept() as far:
        yield near, far
