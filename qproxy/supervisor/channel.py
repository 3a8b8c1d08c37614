"""The private line between the supervisor and one worker: bounded frames, now and then a socket.

It is one end of a socket pair that was made for two processes and is in nobody else's hands: it has
no name, and every other child is started without it. So what comes is believed, but it is bounded:
a frame has a largest size, and so has the queue of what waits to be sent. When the other process is
gone, whatever took it, the line ends.

A frame is four bytes of length, one byte that says whether a socket comes with it, and the body.
The socket travels beside the frame's first byte (SCM_RIGHTS), so it is there before the last.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import trio

from qproxy.errors import QproxyError

#: Largest body of a frame, in bytes: the status of a worker with some ten thousand tunnels.
MAX_FRAME_BYTES: Final = 64 << 20
#: Frames that may wait to be sent. A process that takes none for so long does not live.
MAX_QUEUED_FRAMES: Final = 256
#: Sockets that came and are not claimed by a frame yet.
MAX_QUEUED_SOCKETS: Final = 16

_HEADER: Final = struct.Struct(">I?")
_RECEIVE_BYTES: Final = 1 << 16
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_QUEUED_SOCKETS * struct.calcsize("i"))


class ChannelError(QproxyError):
    """What came is no frame, or nothing more can be queued."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What came: a body, and a socket where one came with it, the receiver's to close."""

    body: bytes
    sock: socket.socket | None = None

    def message(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ChannelError."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ChannelError("a frame without a message")
        return found


class Channel:
    """One end of the line. Owns its socket; :meth:`run` must be running for anything to be sent."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected unix stream socket."""
        sock.setblocking(False)
        self._sock = sock
        self._received = bytearray()
        self._sockets: deque[socket.socket] = deque()
        self._queue: deque[tuple[bytes, socket.socket | None]] = deque()
        self._news = trio.Event()
        self._sent_all = trio.Event()

    # Sending.

    def send(self, message: dict[str, Any], sock: socket.socket | None = None) -> None:
        """Queue a message.

        Args:
            message: what JSON can say.
            sock: goes with it; this end's copy is closed once it is sent.

        Raises:
            ChannelError: too much waits already, or it is too large; the socket stays the caller's.
        """
        self.send_bytes(json.dumps(message).encode(), sock)

    def send_bytes(self, body: bytes, sock: socket.socket | None = None) -> None:
        """The same for a body that is no JSON. Raises ChannelError."""
        if len(self._queue) >= MAX_QUEUED_FRAMES or len(body) > MAX_FRAME_BYTES:
            raise ChannelError("nothing more can be queued")
        self._queue.append((_HEADER.pack(len(body), sock is not None) + body, sock))
        self._news.set()

    async def run(self) -> None:
        """Send what is queued, until cancelled or the other end is gone."""
        try:
            while True:
                while self._queue:
                    data, sock = self._queue[0]
                    await self._send(data, sock)
                    self._queue.popleft()
                    if sock is not None:
                        sock.close()
                self._sent_all.set()
                self._news = trio.Event()
                await self._news.wait()
                self._sent_all = trio.Event()
        except OSError:
            return  # whoever receives sees the end, too

    async def flush(self) -> None:
        """Wait until everything queued was given to the kernel."""
        while self._queue:
            await self._sent_all.wait()

    async def _send(self, data: bytes, sock: socket.socket | None) -> None:
        view = memoryview(data)
        while view:
            try:
                if sock is None:
                    sent = self._sock.send(view)
                else:
                    sent = socket.send_fds(self._sock, [view], [sock.fileno()])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
                continue
            # It went with the first byte.
            sock, view = None, view[sent:]

    # Receiving.

    async def receive(self) -> Frame | None:
        """The next frame; None where the other end is gone. Raises ChannelError."""
        while (frame := self._next_frame()) is None:
            await trio.lowlevel.checkpoint()
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    _RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError:
                return None
            self._sockets += [socket.socket(fileno=one) for one in _descriptors(ancillary)]
            if flags & socket.MSG_CTRUNC or len(self._sockets) > MAX_QUEUED_SOCKETS:
                raise ChannelError("more sockets than frames for them")
            if not data:
                return None
            self._received += data
        return frame

    def _next_frame(self) -> Frame | None:
        if len(self._received) < _HEADER.size:
            return None
        size, with_socket = _HEADER.unpack_from(self._received)
        if size > MAX_FRAME_BYTES:
            raise ChannelError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} may come")
        end = _HEADER.size + size
        if len(self._received) < end:
            return None
        body = bytes(self._received[_HEADER.size : end])
        del self._received[:end]
        if with_socket and not self._sockets:
            raise ChannelError("a frame without its socket")
        return Frame(body, self._sockets.popleft() if with_socket else None)

    def close(self) -> None:
        """End the line, and what was still on its way. Idempotent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        for _, sock in self._queue:
            if sock is not None:
                sock.close()
        self._queue.clear()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that came beside some bytes. (``socket.recv_fds`` loses the flag that closes them.)"""
    return [
        descriptor
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (descriptor,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])
    ]
