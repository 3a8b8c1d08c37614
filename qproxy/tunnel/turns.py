"""Turns: who may add data to the output next, and how much of it.

What is sealed leaves in the order in which it was sealed, so the output is kept short
(:mod:`qproxy.tunnel.pace`) and streams take turns at what little room there is:

* A stream that never has much to send at once goes first, and finds room where bulk finds none. It
  is the rule of fq_codel (RFC 8290 §4.2): a flow that does not build up a queue does not wait in
  one.
* Streams with much to send get a turn each, in order.

Nothing here is a queue of data. A stream that was told there is no room is remembered, and
:meth:`Turns.next` names it when it is its turn to be asked for data.
"""

from __future__ import annotations

from qproxy.tunnel.frames import MAX_PAYLOAD_BYTES
from qproxy.tunnel.records_out import RecordWriter
from qproxy.tunnel.streams import Stream

#: A stream that sends less than this at once, and has nothing left then, is no bulk, in bytes.
SMALL_BYTES = MAX_PAYLOAD_BYTES
#: Room beyond what the core holds for streams that are no bulk, in bytes.
SMALL_RESERVE_BYTES = 64 * 1024
#: What a turn is at least, in bytes: whole records.
MIN_TURN_BYTES = 4 * MAX_PAYLOAD_BYTES


class Turns:
    """Who waits for room in the output of one tunnel.

    Attributes:
        waiting: how many streams do.
        more: whoever asked or added last had more to send than it could.
    """

    __slots__ = ("_bulk", "_small", "_writer", "more", "waiting")

    def __init__(self, writer: RecordWriter) -> None:
        self.waiting = 0
        self.more = False
        self._writer = writer
        self._small: dict[Stream, None] = {}
        self._bulk: dict[Stream, None] = {}

    def room(self, stream: Stream) -> int:
        """Bytes the stream may add now. With 0 it is remembered, and named by :meth:`next`."""
        room = self._writer.data_room
        bulk = stream.bulk
        if self.waiting > stream.waiting:
            # Others wait: nobody has more than a turn, and a second one only after them.
            if bulk and stream.turn == self._writer.drained:
                room = 0
            elif room > (turn := self._turn_bytes()):
                room = turn
        if room < SMALL_BYTES:
            # Everybody waits for room for a full record, only that small streams have more room.
            if bulk or self._writer.data_room + SMALL_RESERVE_BYTES < SMALL_BYTES:
                self._wait(stream)
                return 0
            room = SMALL_BYTES
        if stream.waiting:
            self.forget(stream)
        return room - room % MAX_PAYLOAD_BYTES

    def added(self, stream: Stream, count: int) -> None:
        """The stream added ``count`` bytes, out of those it was offered last."""
        self.more = stream.bulk = count >= stream.offered or count >= SMALL_BYTES
        stream.turn = self._writer.drained

    def next(self) -> Stream | None:
        """The stream whose turn it is, or None while nobody waits or there is no room."""
        if self._small and self._writer.data_room + SMALL_RESERVE_BYTES >= SMALL_BYTES:
            queue = self._small
        elif self._bulk and self._writer.data_room >= SMALL_BYTES:
            queue = self._bulk
        else:
            return None
        stream = next(iter(queue))
        self.forget(stream)
        stream.turn = -1
        return stream

    def forget(self, stream: Stream) -> None:
        """The stream waits no more."""
        stream.waiting = False
        self._small.pop(stream, None)
        self._bulk.pop(stream, None)
        self.waiting = len(self._small) + len(self._bulk)

    def _wait(self, stream: Stream) -> None:
        """A stream that asks again while it waits keeps its place."""
        if not stream.waiting:
            stream.waiting = True
            (self._bulk if stream.bulk else self._small)[stream] = None
            self.waiting += 1

    def _turn_bytes(self) -> int:
        quarter = self._writer.pace.high_water // 4
        return max(MIN_TURN_BYTES, quarter - quarter % MAX_PAYLOAD_BYTES)
