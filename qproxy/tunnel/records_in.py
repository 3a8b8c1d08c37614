"""The one record splitter, for the TLS phase and for the records after it.

Received bytes go straight into a buffer that the core owns (the driver's ``recv_into`` target), so
that nothing is copied between the socket and decryption. Because one splitter cuts both phases,
the hand-over from OpenSSL falls exactly on a record boundary (rule R11).
"""

from __future__ import annotations

from qproxy.crypto.records import (
    CONTENT_ALERT,
    CONTENT_APPLICATION_DATA,
    CONTENT_CHANGE_CIPHER_SPEC,
    CONTENT_HANDSHAKE,
    FULL_RECORD_BYTES,
    FULL_RECORD_HEADER,
    HEADER_BYTES,
    MAX_CIPHERTEXT_BYTES,
    MAX_RECORD_BYTES,
)
from qproxy.errors import Reason, RemoteProtocolError

#: Receive buffer of a tunnel that moves little, in bytes.
SMALL_BUFFER_BYTES = 2 * MAX_RECORD_BYTES
#: Receive buffer of a tunnel that moves much: thirty-two full records.
LARGE_BUFFER_BYTES = 32 * MAX_RECORD_BYTES

_TLS_PHASE_TYPES = frozenset(
    {CONTENT_CHANGE_CIPHER_SPEC, CONTENT_ALERT, CONTENT_HANDSHAKE, CONTENT_APPLICATION_DATA}
)

_NONE: list[memoryview] = []
_APPLICATION_DATA = bytes([CONTENT_APPLICATION_DATA, 3, 3])


class RecordSplitter:
    """Cuts a byte stream into whole records.

    Attributes:
        tls_phase: True while OpenSSL reads; afterwards only ``17 03 03`` is a record.
    """

    def __init__(self) -> None:
        self.tls_phase = True
        self._buffer = bytearray(SMALL_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._filled = False

    @property
    def buffered(self) -> int:
        """Bytes received and not yet taken."""
        return self._end - self._start

    @property
    def capacity(self) -> int:
        """Size of the buffer, in bytes."""
        return len(self._buffer)

    def free_space(self) -> memoryview:
        """Where the next bytes go. Never empty: a whole record always fits.

        Views handed out by :meth:`next_record` are invalid after this call.
        """
        if self._start == self._end:
            self._start = self._end = 0
            if self._filled and len(self._buffer) < LARGE_BUFFER_BYTES:
                self._resize(LARGE_BUFFER_BYTES)
        elif len(self._buffer) - self._end < MAX_RECORD_BYTES:
            if self._filled and len(self._buffer) < LARGE_BUFFER_BYTES:
                self._resize(LARGE_BUFFER_BYTES)
            else:
                kept = self.buffered
                self._view[:kept] = bytes(self._view[self._start : self._end])
                self._start, self._end = 0, kept
        return self._view[self._end :]

    def advance(self, count: int) -> None:
        """``count`` bytes were written to the start of :meth:`free_space`."""
        self._end += count
        self._filled = self._end == len(self._buffer)

    def shrink(self) -> None:
        """Back to the small buffer, if nothing is in it: the tunnel has been idle."""
        if not self.buffered and len(self._buffer) > SMALL_BUFFER_BYTES:
            self._resize(SMALL_BUFFER_BYTES)

    def next_record(self) -> memoryview | None:
        """The next whole record with its header, or None until more bytes arrive.

        Raises:
            RemoteProtocolError: ``malformed_message`` for a header that is none, or
                ``record_overflow`` for a length over the limit. Checked as soon as the header
                is there, before the body is waited for.
        """
        available = self._end - self._start
        if available < HEADER_BYTES:
            return None
        start = self._start
        buffer = self._buffer
        length = buffer[start + 3] << 8 | buffer[start + 4]
        if length > MAX_CIPHERTEXT_BYTES or buffer[start : start + 3] != _APPLICATION_DATA:
            self._check_header(buffer[start], buffer[start + 1], buffer[start + 2], length)
        if available < HEADER_BYTES + length:
            return None
        self._start = start + HEADER_BYTES + length
        return self._view[start : self._start]

    def next_full_records(self) -> list[memoryview]:
        """As many whole records of the largest size as stand next, possibly none."""
        start, last, buffer = self._start, self._end - FULL_RECORD_BYTES, self._buffer
        if start > last or buffer[start : start + HEADER_BYTES] != FULL_RECORD_HEADER:
            return _NONE
        view, records = self._view, []
        while start <= last and buffer[start : start + HEADER_BYTES] == FULL_RECORD_HEADER:
            end = start + FULL_RECORD_BYTES
            records.append(view[start:end])
            start = end
        self._start = start
        return records

    def put_back(self, count: int) -> None:
        """The last ``count`` of :meth:`next_full_records` were not used: they stand next again."""
        self._start -= count * FULL_RECORD_BYTES

    def _check_header(self, content_type: int, major: int, minor: int, length: int) -> None:
        if self.tls_phase:
            # legacy_record_version of a first ClientHello may be 03 01 (RFC 9846 §5.1).
            known = content_type in _TLS_PHASE_TYPES and major == 3 and minor in {1, 3}
        else:
            known = content_type == CONTENT_APPLICATION_DATA and major == 3 and minor == 3
        if not known:
            raise RemoteProtocolError(
                Reason.MALFORMED_MESSAGE,
                f"record header {content_type:02x} {major:02x} {minor:02x} is not TLS 1.3's",
            )
        if length > MAX_CIPHERTEXT_BYTES:
            raise RemoteProtocolError(
                Reason.RECORD_OVERFLOW, f"record of {length} bytes, limit {MAX_CIPHERTEXT_BYTES}"
            )

    def _resize(self, size: int) -> None:
        fresh = bytearray(size)
        kept = self.buffered
        fresh[:kept] = self._view[self._start : self._end]
        self._buffer = fresh
        self._view = memoryview(fresh)
        self._start, self._end = 0, kept
        self._filled = False
