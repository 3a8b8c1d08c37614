"""One long-lived stream that sends numbered frames all the time and verifies each that comes back.

A frame is its number in 8 bytes and a piece of the pattern that depends on the number. Sending does
not wait for what comes back, so a stall shows as a gap between two frames that arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from qproxy.demo.load import Connection, Fault
from qproxy.demo.pattern import MAX_CHUNK_BYTES, Pattern
from qproxy.demo.record import HeartbeatRecord, Traffic

#: Size of a frame, in bytes, its number included.
FRAME_BYTES: Final = 1024
#: Pause between two frames, in seconds.
FRAME_INTERVAL_S: Final = 0.005

_NUMBER_BYTES: Final = 8
_PAYLOAD_BYTES: Final = FRAME_BYTES - _NUMBER_BYTES
#: Odd, so that frame after frame takes its payload from another place of the pool.
_STRIDE: Final = 7919


class Frames:
    """Makes frames, and checks the stream of those that come back."""

    def __init__(self) -> None:
        self._pool = Pattern(0).take(MAX_CHUNK_BYTES)
        self._pending = bytearray()
        self.verified = 0

    def make(self, number: int) -> bytes:
        """The frame of a number."""
        start = number * _STRIDE % (len(self._pool) - _PAYLOAD_BYTES)
        return number.to_bytes(_NUMBER_BYTES, "big") + self._pool[start : start + _PAYLOAD_BYTES]

    def take(self, data: bytes | memoryview) -> int:
        """Check bytes that came back.

        Returns:
            How many frames they completed.

        Raises:
            Fault: they are not the next frames.
        """
        self._pending += data
        whole = len(self._pending) // FRAME_BYTES
        for index in range(whole):
            frame = self._pending[index * FRAME_BYTES : (index + 1) * FRAME_BYTES]
            if frame != self.make(self.verified):
                raise Fault(f"long-lived stream: frame {self.verified} came back wrong")
            self.verified += 1
        del self._pending[: whole * FRAME_BYTES]
        return whole

    def finish(self, sent: int) -> None:
        """The end came. Raises Fault where it is not behind the last frame sent."""
        if self.verified != sent or self._pending:
            raise Fault(f"long-lived stream: {self.verified} of {sent} frames came back")


class Heartbeat:
    """The long-lived stream.

    Args:
        record: what it measures.
        traffic: counts its bytes and connection with all the others.
        began_at: the start of the demonstration, in seconds of trio's clock.
        on_frames: told, by trio's clock, of every moment at which whole frames came back.
    """

    def __init__(
        self,
        record: HeartbeatRecord,
        traffic: Traffic,
        began_at: float,
        on_frames: Callable[[float], None] | None = None,
    ) -> None:
        self._record = record
        self._traffic = traffic
        self._began_at = began_at
        self._on_frames = on_frames
        self._frames = Frames()
        self._stop = trio.Event()
        self._ended = trio.Event()

    async def run(
        self, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until :meth:`stop`, or until something is wrong; never raises a fault.

        Args:
            port: of the near gateway's listener, on 127.0.0.1.
            task_status: started when the first frame is back.
        """
        try:
            connection = await Connection.open(port, self._traffic)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, connection)
                    await self._receive(connection, task_status)
                    nursery.cancel_scope.cancel()
            finally:
                connection.close()
        except* Fault as group:
            self._record.fault = str(group.exceptions[0])
            self._traffic.fail(self._record.fault)
        finally:
            self._account()
            self._ended.set()
        if self._record.began_at_s is None:
            task_status.started()  # it failed before its first frame; the verdict will say so

    async def stop(self) -> None:
        """FIN, and wait until the far end's FIN came behind every frame."""
        self._stop.set()
        await self._ended.wait()

    def _account(self) -> None:
        record = self._record
        record.frames_verified = self._frames.verified
        self._traffic.expected_bytes += record.frames_sent * FRAME_BYTES
        self._traffic.verified_bytes += record.frames_verified * FRAME_BYTES

    async def _send(self, connection: Connection) -> None:
        await connection.send(b"ECHO\n")
        while not self._stop.is_set():
            number = self._record.frames_sent
            self._record.frames_sent += 1
            await connection.send(self._frames.make(number))
            with trio.move_on_after(FRAME_INTERVAL_S):
                await self._stop.wait()
        connection.end()

    async def _receive(self, connection: Connection, task_status: trio.TaskStatus[None]) -> None:
        record = self._record
        buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
        last: float | None = None
        while count := await connection.receive_into(buffer):
            if not self._frames.take(buffer[:count]):
                continue
            now = trio.current_time()
            if self._on_frames is not None:
                self._on_frames(now)
            if last is None:
                record.began_at_s = now - self._began_at
                task_status.started()
            elif now - last > record.longest_gap_s:
                record.longest_gap_s = now - last
                record.longest_gap_at_s = now - self._began_at
            last = now
        if not self._stop.is_set():
            raise Fault("long-lived stream: ended from afar")
        self._frames.finish(record.frames_sent)
        record.ended_at_s = trio.current_time() - self._began_at
