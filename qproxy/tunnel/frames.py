"""Frames: what a record's content is made of once a tunnel is up.

A frame is a 7-byte header (type, stream ID, payload length) and its payload; it never spans two
records. One record may hold many. Byte tables: docs/protocol.md, "Frames".
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from qproxy.crypto.records import MAX_CONTENT_BYTES
from qproxy.errors import Reason
from qproxy.tunnel.codec import FieldReader, encode_text, malformed
from qproxy.tunnel.constants import MAX_NAME_BYTES, PING_BYTES

#: type u8, stream u32, length u16.
FRAME_HEADER = struct.Struct(">BIH")
FRAME_HEADER_BYTES = FRAME_HEADER.size
#: Payload of a frame at most, in bytes.
MAX_PAYLOAD_BYTES = MAX_CONTENT_BYTES - FRAME_HEADER_BYTES
#: Highest stream ID.
MAX_STREAM_ID = 0xFFFF_FFFF
#: Highest value of a credit limit: 2^62, out of reach of any addition that could wrap.
MAX_CREDIT = 1 << 62


class FrameType(enum.IntEnum):
    """First byte of a frame. Unknown types are fatal (rule R14)."""

    DATA = 1
    OPEN = 2
    OPENED = 3
    REFUSED = 4
    STREAM_CREDIT = 5
    SESSION_CREDIT = 6
    HALF_CLOSE = 7
    RESET = 8
    PING = 9
    PONG = 10
    GO_AWAY = 11
    END = 12
    EPOCH = 13
    SWITCH = 14
    COMMITTED = 15
    REQUEST = 16
    ANNOUNCE = 17
    REPORT = 18
    TLS = 19


#: Frames that belong to a stream; every other type carries stream ID 0.
STREAM_FRAMES = frozenset(
    {
        FrameType.DATA,
        FrameType.OPEN,
        FrameType.OPENED,
        FrameType.REFUSED,
        FrameType.STREAM_CREDIT,
        FrameType.HALF_CLOSE,
        FrameType.RESET,
    }
)
#: Frames that must be the only one of their record.
LONE_FRAMES = frozenset({FrameType.EPOCH, FrameType.SWITCH, FrameType.COMMITTED, FrameType.END})


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """OPEN's payload.

    Attributes:
        service: the service's name in the far gateway's configuration, 1 to 255 bytes.
        client_address: the application's address as text ("host:port" or "unix"), for logs and
            the PROXY protocol; the far gateway believes the near one, nobody else.
        listener_address: the address the application connected to, as text.
    """

    service: str
    client_address: str = ""
    listener_address: str = ""

    def encode(self) -> bytes:
        """Three texts."""
        return (
            encode_text(self.service)
            + encode_text(self.client_address)
            + encode_text(self.listener_address)
        )


def decode_open(payload: bytes) -> OpenRequest:
    """Parse OPEN's payload. Raises RemoteProtocolError (``malformed_message``)."""
    reader = FieldReader(payload, "OPEN")
    request = OpenRequest(
        service=reader.text("service", limit=MAX_NAME_BYTES, minimum=1),
        client_address=reader.text("client_address", limit=MAX_NAME_BYTES),
        listener_address=reader.text("listener_address", limit=MAX_NAME_BYTES),
    )
    reader.finish()
    return request


def decode_reason(payload: bytes, what: str) -> Reason:
    """Parse a payload that is one reason byte.

    A reason this version does not know becomes ``closed``: a newer peer may have words of its
    own, and none of them changes what the frame does.
    """
    if len(payload) != 1:
        raise malformed(f"{what} of {len(payload)} bytes, expected 1")
    return Reason.from_code(payload[0]) or Reason.CLOSED


def decode_credit(payload: bytes, what: str) -> int:
    """Parse an absolute credit limit in bytes, at most 2^62."""
    if len(payload) != 8:
        raise malformed(f"{what} of {len(payload)} bytes, expected 8")
    limit = int.from_bytes(payload, "big")
    if limit > MAX_CREDIT:
        raise malformed(f"{what} above 2^62")
    return limit


def decode_ping(payload: bytes, what: str) -> bytes:
    """Parse the 8 opaque bytes of PING and PONG."""
    if len(payload) != PING_BYTES:
        raise malformed(f"{what} of {len(payload)} bytes, expected {PING_BYTES}")
    return payload


def decode_epoch_number(payload: bytes, what: str) -> int:
    """Parse the epoch number of SWITCH and COMMITTED."""
    if len(payload) != 4:
        raise malformed(f"{what} of {len(payload)} bytes, expected 4")
    return int.from_bytes(payload, "big")


def decode_empty(payload: bytes, what: str) -> None:
    """OPENED and HALF_CLOSE have no payload."""
    if payload:
        raise malformed(f"{what} of {len(payload)} bytes, expected none")
