"""An endpoint as a trio stream, for libraries that want ``send_all`` and ``receive_some``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from qproxy.errors import Reason
from qproxy.net.endpoint import ConnectionLost, Endpoint

#: Bytes received at once where the caller names no size.
DEFAULT_RECEIVE_BYTES = 65536


class EndpointStream(trio.abc.HalfCloseableStream):
    """A :class:`trio.abc.HalfCloseableStream` over any endpoint, which it owns.

    A lost connection is a :class:`trio.BrokenResourceError` whose ``__cause__`` is the
    :class:`~qproxy.net.endpoint.ConnectionLost`, and so has the reason.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._sending = False
        self._receiving = False
        self._eof_sent = False
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. See :meth:`trio.abc.SendStream.send_all`."""
        with self._sender(), _as_trio_errors():
            await trio.lowlevel.checkpoint()
            rest = memoryview(data).cast("B")
            while rest:
                taken = self.endpoint.try_send((rest,))
                rest = rest[taken:]
                if not taken:
                    await self.endpoint.wait_sendable()

    async def wait_send_all_might_not_block(self) -> None:
        """See :meth:`trio.abc.SendStream.wait_send_all_might_not_block`."""
        with self._sender(), _as_trio_errors():
            await trio.lowlevel.checkpoint()
            await self.endpoint.wait_sendable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or ``b""`` at a clean end.

        Args:
            max_bytes: at most so many; 64 KiB where None.
        """
        size = DEFAULT_RECEIVE_BYTES if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiver(), _as_trio_errors():
            await trio.lowlevel.checkpoint()
            buffer = bytearray(min(size, DEFAULT_RECEIVE_BYTES))
            while True:
                count = self.endpoint.try_receive_into(memoryview(buffer))
                if count is not None:
                    return bytes(memoryview(buffer)[:count])
                await self.endpoint.wait_receivable()

    async def send_eof(self) -> None:
        """End this direction; receiving goes on. Idempotent."""
        if self._eof_sent and not self._closed:
            await trio.lowlevel.checkpoint()
            return
        with self._sender(), _as_trio_errors():
            await trio.lowlevel.checkpoint()
            while not self.endpoint.send_eof():
                await self.endpoint.wait_sendable()
            self._eof_sent = True

    async def aclose(self) -> None:
        """Close in order; never waits for the peer. Idempotent."""
        self._closed = True
        self.endpoint.close()
        await trio.lowlevel.checkpoint()

    @contextlib.contextmanager
    def _sender(self) -> Iterator[None]:
        if self._closed or self._eof_sent:
            raise trio.ClosedResourceError("the stream is closed for sending")
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    @contextlib.contextmanager
    def _receiver(self) -> Iterator[None]:
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            yield
        finally:
            self._receiving = False


@contextlib.contextmanager
def _as_trio_errors() -> Iterator[None]:
    try:
        yield
    except ConnectionLost as lost:
        if lost.reason is Reason.CLOSED:
            raise trio.ClosedResourceError("the stream is closed") from None
        raise trio.BrokenResourceError(str(lost)) from lost
