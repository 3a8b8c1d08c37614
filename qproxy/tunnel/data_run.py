"""Bulk data, handed over for many records at a time.

Bulk traffic is a row of records that hold one DATA frame each, for one stream. Taken together they
cost one look-up, one credit update and one event, instead of one each. Whatever is not such a
record is left for the general path, in its place in the order.
"""

from __future__ import annotations

from qproxy.crypto.records import MAX_CONTENT_BYTES
from qproxy.tunnel.frames import (
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameType,
)
from qproxy.tunnel.session import Session

_DATA = int(FrameType.DATA)


class DataRun:
    """Data of one stream from records that follow each other, not yet handed over."""

    __slots__ = ("_now", "_session", "_size", "_stream_id", "_views")

    def __init__(self, session: Session, now: float) -> None:
        self._session = session
        self._now = now
        self._stream_id = 0
        self._views: list[memoryview] = []
        self._size = 0

    def take(self, plain: memoryview, start: int, end: int) -> bool:
        """Take a record's content, if it is one DATA frame and nothing else."""
        body = start + FRAME_HEADER_BYTES
        if body >= end or plain[start] != _DATA:
            return False
        _, stream_id, length = FRAME_HEADER.unpack_from(plain, start)
        if body + length != end:
            return False
        if stream_id != self._stream_id:
            if self._views:
                self.flush()
            self._stream_id = stream_id
        self._views.append(plain[body:end])
        self._size += length
        return True

    def take_full(self, plain: memoryview, start: int, count: int) -> int:
        """Take the contents of full records that lie one behind the other.

        Returns:
            How many were taken: those up to the first that is not one DATA frame and nothing else.
        """
        taken = 0
        header = b""
        while taken < count:
            body = start + FRAME_HEADER_BYTES
            end = start + MAX_CONTENT_BYTES
            if plain[start:body] == header:
                self._views.append(plain[body:end])
                self._size += MAX_PAYLOAD_BYTES
            elif self.take(plain, start, end):
                header = bytes(plain[start:body])
            else:
                break
            taken += 1
            start = end
        return taken

    def flush(self) -> None:
        """Hand over what was taken. Raises RemoteProtocolError where it was not allowed."""
        if self._views:
            views, size = self._views, self._size
            self._views, self._size = [], 0
            self._session.on_data(self._stream_id, views, size, self._now)
