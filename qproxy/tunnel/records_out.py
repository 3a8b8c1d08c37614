"""Outgoing frames, gathered into records and sealed into one contiguous buffer.

Small frames wait in a record-sized stage until it is full or the driver asks for output, so that
many of them share one record and one system call. Whatever the key in use at that moment is, a
change of key seals the stage first.
"""

from __future__ import annotations

from qproxy.crypto.records import (
    CONTENT_APPLICATION_DATA,
    MAX_CONTENT_BYTES,
    MAX_RECORDS_PER_KEY,
    OVERHEAD_BYTES,
    RecordSealer,
)
from qproxy.errors import LocalProtocolError, Reason
from qproxy.tunnel.frames import (
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    LONE_FRAMES,
    MAX_PAYLOAD_BYTES,
    FrameType,
)
from qproxy.tunnel.pace import Pace
from qproxy.tunnel.slots import DataSlots

#: Output buffer of a tunnel that moves little, in bytes.
SMALL_OUTPUT_BYTES = 64 * 1024
#: Data up to this size is copied into a record with other frames; more gets records of its own.
COPIED_DATA_BYTES = 2048
#: A peer that makes us answer while it does not read ends its tunnel at this, in bytes.
MAX_OUTPUT_BYTES = 4 * 1024 * 1024
#: Records under one key after which no stream data is taken: the rest of what the key may protect
#: is left for the frames that end streams and the tunnel.
MAX_DATA_RECORDS_PER_KEY = MAX_RECORDS_PER_KEY - (1 << 16)


class RecordWriter:
    """Seals frames of one direction of a tunnel, epoch after epoch.

    Attributes:
        drained: how often all that waited has been sent.
        sent_bytes: bytes sent since the tunnel began.
        pace: how much stream data may wait.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.drained = 0
        self.sent_bytes = 0
        self.pace = Pace(now)
        self._sealer: RecordSealer | None = None
        self._stage = bytearray(MAX_CONTENT_BYTES + 1)
        self._stage_view = memoryview(self._stage)
        self._staged = 0
        self._buffer = bytearray(0)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    @property
    def pending(self) -> int:
        """Bytes sealed or staged and not yet sent."""
        return self._end - self._start + self._staged

    @property
    def capacity(self) -> int:
        """Size of the output buffer, in bytes."""
        return len(self._buffer)

    @property
    def records(self) -> int:
        """Records sealed under the current key."""
        return self._sealer.records if self._sealer is not None else 0

    @property
    def data_room(self) -> int:
        """Bytes of stream data that may be added now; negative above the high-water mark."""
        if self._sealer is not None and self._sealer.records >= MAX_DATA_RECORDS_PER_KEY:
            return -MAX_OUTPUT_BYTES
        return self.pace.core_high_water - (self._end - self._start + self._staged)

    def install(self, sealer: RecordSealer) -> None:
        """Seal everything from now on under a new key."""
        self._seal_stage()
        self._sealer = sealer

    def add_raw(self, data: bytes) -> None:
        """Bytes that are records already: OpenSSL's, in the TLS phase."""
        self._reserve(len(data))
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)

    def add_frame(self, frame_type: FrameType, stream_id: int, payload: bytes = b"") -> None:
        """One frame that is not DATA."""
        lone = frame_type in LONE_FRAMES
        size = FRAME_HEADER_BYTES + len(payload)
        if lone or self._staged + size > MAX_CONTENT_BYTES:
            self._seal_stage()
        FRAME_HEADER.pack_into(self._stage, self._staged, frame_type, stream_id, len(payload))
        start = self._staged + FRAME_HEADER_BYTES
        self._stage_view[start : start + len(payload)] = payload
        self._staged += size
        if lone:
            self._seal_stage()

    def add_data(self, stream_id: int, data: memoryview) -> None:
        """Stream data, cut into as many DATA frames as it needs."""
        offset = 0
        total = len(data)
        while offset < total:
            room = MAX_CONTENT_BYTES - self._staged - FRAME_HEADER_BYTES
            if room <= 0:
                self._seal_stage()
                continue
            size = min(room, total - offset)
            FRAME_HEADER.pack_into(self._stage, self._staged, FrameType.DATA, stream_id, size)
            start = self._staged + FRAME_HEADER_BYTES
            self._stage_view[start : start + size] = data[offset : offset + size]
            self._staged = start + size
            offset += size

    def add_slots(self, stream_id: int, slots: DataSlots, count: int) -> None:
        """Stream data that lies in slots already: sealed from there, nothing is copied."""
        if count <= COPIED_DATA_BYTES:
            # Little data shares a record with whatever else waits.
            self.add_data(
                stream_id, slots.inners[0][FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + count]
            )
            return
        self._seal_stage()
        if self._sealer is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "data before the first epoch")
        full, rest = divmod(count, MAX_PAYLOAD_BYTES)
        self._reserve(count + (full + 1) * (FRAME_HEADER_BYTES + OVERHEAD_BYTES))
        if full:
            header = FRAME_HEADER.pack(FrameType.DATA, stream_id, MAX_PAYLOAD_BYTES)
            inners = slots.inners[:full]
            for inner in inners:
                inner[:FRAME_HEADER_BYTES] = header
            self._end += self._sealer.seal_full_run(inners, self._view[self._end :])
        if rest:
            inner = slots.inners[full][: FRAME_HEADER_BYTES + rest + 1]
            FRAME_HEADER.pack_into(inner, 0, FrameType.DATA, stream_id, rest)
            inner[-1] = CONTENT_APPLICATION_DATA
            self._end += self._sealer.seal_into(inner, self._view[self._end :])

    def output(self) -> memoryview:
        """Everything that waits to be sent; valid until the next call that adds anything."""
        self._seal_stage()
        return self._view[self._start : self._end]

    def sent(self, count: int) -> None:
        """``count`` bytes from the front of :meth:`output` are on their way."""
        self.sent_bytes += count
        self._start += count
        if self._start >= self._end:
            self._start = self._end = 0
            self.drained += 1

    def transport_full(self, now: float) -> int:
        """The transport took less than was there. Returns what it should hold, in bytes."""
        self.pace.transport_full(self.sent_bytes, now)
        return self.pace.high_water

    def discard(self) -> None:
        """Drop everything that was not sent: nothing more may leave (no alert, no ticket)."""
        self._start = self._end = self._staged = 0

    def shrink(self) -> None:
        """Give the buffer back, if it is empty: the tunnel has been idle."""
        if not self.pending and len(self._buffer) > SMALL_OUTPUT_BYTES:
            self._replace_buffer(SMALL_OUTPUT_BYTES)

    def close(self) -> None:
        """Forget the key."""
        self._sealer = None

    def _seal_stage(self) -> None:
        staged = self._staged
        if not staged:
            return
        if self._sealer is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "frames before the first epoch")
        self._reserve(staged + OVERHEAD_BYTES)
        self._stage[staged] = CONTENT_APPLICATION_DATA
        self._end += self._sealer.seal_into(self._stage_view[: staged + 1], self._view[self._end :])
        self._staged = 0

    def _reserve(self, size: int) -> None:
        """Make room for ``size`` more bytes behind what waits."""
        if len(self._buffer) - self._end >= size:
            return
        waiting = self._end - self._start
        needed = waiting + size
        if self._start >= size and waiting <= self._start:
            # The gap in front is large enough, and the move copies less than was sent already.
            self._view[:waiting] = self._view[self._start : self._end]
            self._start, self._end = 0, waiting
            return
        capacity = max(SMALL_OUTPUT_BYTES, len(self._buffer))
        while capacity < needed:
            capacity *= 2
        self._replace_buffer(capacity)

    def _replace_buffer(self, capacity: int) -> None:
        waiting = self._end - self._start
        fresh = bytearray(capacity)
        fresh[:waiting] = self._view[self._start : self._end]
        self._buffer = fresh
        self._view = memoryview(fresh)
        self._start, self._end = 0, waiting
