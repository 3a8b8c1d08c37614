"""Where stream data is received so that it can be sealed without being copied.

A slot is the inner plaintext of one full record: room for the frame header, the payload, and the
content type. An application's socket is read straight into the payloads (one system call for all of
them), the headers are written around what came, and the slots are sealed from where they lie.
"""

from __future__ import annotations

from qproxy.crypto.records import CONTENT_APPLICATION_DATA, MAX_CONTENT_BYTES
from qproxy.tunnel.frames import FRAME_HEADER_BYTES, MAX_PAYLOAD_BYTES

#: Slots of one buffer: with 16 KiB each, half a mebibyte for one read.
SLOTS = 32
_SLOT_BYTES = MAX_CONTENT_BYTES + 1


class DataSlots:
    """One read buffer, cut into record-sized slots. May serve any number of streams in turn.

    Attributes:
        capacity: payload bytes of all slots together.
        inners: each slot whole, 2^14 + 1 bytes; the last byte is the content type already.
    """

    __slots__ = ("_payloads", "capacity", "inners")

    def __init__(self) -> None:
        whole = memoryview(bytearray(SLOTS * _SLOT_BYTES))
        self.capacity = SLOTS * MAX_PAYLOAD_BYTES
        self.inners = [
            whole[start : start + _SLOT_BYTES] for start in range(0, len(whole), _SLOT_BYTES)
        ]
        for inner in self.inners:
            inner[MAX_CONTENT_BYTES] = CONTENT_APPLICATION_DATA
        self._payloads = [inner[FRAME_HEADER_BYTES:MAX_CONTENT_BYTES] for inner in self.inners]

    def views(self, limit: int) -> list[memoryview]:
        """Payload room for at most ``limit`` bytes, at least one, in the order it is filled."""
        if limit >= self.capacity:
            return self._payloads
        full, rest = divmod(limit, MAX_PAYLOAD_BYTES)
        views = self._payloads[:full]
        if rest:
            views.append(self._payloads[full][:rest])
        return views
