"""Record protection in the TLS 1.3 record format, under an epoch's keys.

On the wire a record is ``17 03 03 len`` and ``AEAD(key, iv XOR seq, content ‖ type ‖ zeros)`` with
the five header bytes as associated data: RFC 9846 §5.1 to §5.3. Only the keys are ours.

Theory of operation: one :class:`RecordSealer` per direction and epoch writes, one
:class:`RecordOpener` reads. Both work into buffers the caller owns, so that a record costs no
allocation of its own size. Neither keeps the traffic secret: key and IV are derived once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from qproxy.crypto import labels
from qproxy.crypto.schedule import expand
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Aead

#: ContentType of TLS records (RFC 9846 §5.1).
CONTENT_CHANGE_CIPHER_SPEC = 20
CONTENT_ALERT = 21
CONTENT_HANDSHAKE = 22
CONTENT_APPLICATION_DATA = 23

#: Record header: type, legacy version, length.
HEADER_BYTES = 5
#: Content of a record at most (RFC 9846 §5.1: 2^14).
MAX_CONTENT_BYTES = 1 << 14
#: AEAD tag of both suites (RFC 9846 §5.2).
TAG_BYTES = 16
#: What a record adds to its content: header, inner type, tag.
OVERHEAD_BYTES = HEADER_BYTES + 1 + TAG_BYTES
#: Encrypted part of a record at most (RFC 9846 §5.2: 2^14 + 256).
MAX_CIPHERTEXT_BYTES = MAX_CONTENT_BYTES + 256
#: A whole record at most.
MAX_RECORD_BYTES = HEADER_BYTES + MAX_CIPHERTEXT_BYTES

KEY_BYTES = 32
IV_BYTES = 12

#: Records under one AES-GCM key at most: 2^24.5 full-size records (RFC 9846 §5.5).
#: ChaCha20-Poly1305 has no such limit before the sequence number wraps; the same number is kept
#: for both, so that no deployment changes its rekey behaviour by changing its suite.
MAX_RECORDS_PER_KEY = 23_726_566

_AeadCipher: TypeAlias = AESGCM | ChaCha20Poly1305
_CIPHERS: dict[Aead, type[AESGCM] | type[ChaCha20Poly1305]] = {
    Aead.AES_256_GCM: AESGCM,
    Aead.CHACHA20_POLY1305: ChaCha20Poly1305,
}
_HEADER_PREFIX = b"\x17\x03\x03"
_FULL_CIPHERTEXT_BYTES = MAX_CONTENT_BYTES + 1 + TAG_BYTES
#: Header and size of a record that holds as much content as it may, and no padding.
FULL_RECORD_HEADER = _HEADER_PREFIX + _FULL_CIPHERTEXT_BYTES.to_bytes(2, "big")
FULL_RECORD_BYTES = HEADER_BYTES + _FULL_CIPHERTEXT_BYTES


def _cipher_and_iv(aead: Aead, traffic_secret: bytes | bytearray) -> tuple[_AeadCipher, int]:
    """The traffic key's cipher object, and the IV as a number (RFC 9846 §7.3, our labels)."""
    key = bytearray(expand(traffic_secret, labels.KEY, b"", KEY_BYTES))
    iv = expand(traffic_secret, labels.IV, b"", IV_BYTES)
    cipher = _CIPHERS[aead](key)
    key[:] = bytes(KEY_BYTES)
    return cipher, int.from_bytes(iv, "big")


class RecordSealer:
    """Protects the records of one direction of one epoch.

    Attributes:
        records: sequence number of the next record; how many were sealed so far.
    """

    __slots__ = ("_cipher", "_iv", "records")

    def __init__(self, aead: Aead, traffic_secret: bytes | bytearray) -> None:
        self._cipher, self._iv = _cipher_and_iv(aead, traffic_secret)
        self.records = 0

    def seal_into(self, inner: memoryview, out: memoryview) -> int:
        """Write one record.

        Args:
            inner: content followed by its type byte, 1 to 2^14 + 1 bytes.
            out: where the record goes, at least ``len(inner) + 21`` bytes.

        Returns:
            The record's length: ``len(inner) + 21``.

        Raises:
            LocalProtocolError: the key has protected all the records it may.
        """
        if self.records >= MAX_RECORDS_PER_KEY:
            raise LocalProtocolError(Reason.SEQUENCE_LIMIT, "record limit of this key reached")
        sealed_bytes = len(inner) + TAG_BYTES
        header = _HEADER_PREFIX + sealed_bytes.to_bytes(2, "big")
        out[:HEADER_BYTES] = header
        nonce = (self._iv ^ self.records).to_bytes(IV_BYTES, "big")
        end = HEADER_BYTES + sealed_bytes
        self._cipher.encrypt_into(nonce, inner, header, out[HEADER_BYTES:end])
        self.records += 1
        return end

    def seal_full_run(self, inners: Sequence[memoryview], out: memoryview) -> int:
        """Write one record for each of several inner plaintexts of the largest size.

        The same as :meth:`seal_into` for each in turn, without its cost in between.

        Args:
            inners: 2^14 + 1 bytes each, content and type.
            out: where the records go, one behind the other.

        Returns:
            The length of all records.

        Raises:
            LocalProtocolError: the key may not protect so many more.
        """
        if self.records + len(inners) > MAX_RECORDS_PER_KEY:
            raise LocalProtocolError(Reason.SEQUENCE_LIMIT, "record limit of this key reached")
        encrypt_into, iv, sequence, position = self._cipher.encrypt_into, self._iv, self.records, 0
        for inner in inners:
            body = position + HEADER_BYTES
            end = body + _FULL_CIPHERTEXT_BYTES
            out[position:body] = FULL_RECORD_HEADER
            nonce = (iv ^ sequence).to_bytes(IV_BYTES, "big")
            encrypt_into(nonce, inner, FULL_RECORD_HEADER, out[body:end])
            sequence += 1
            position = end
        self.records = sequence
        return position


class RecordOpener:
    """Opens the records of one direction of one epoch, in order.

    Attributes:
        records: sequence number of the next record; how many were opened so far.
    """

    __slots__ = ("_cipher", "_iv", "records")

    def __init__(self, aead: Aead, traffic_secret: bytes | bytearray) -> None:
        self._cipher, self._iv = _cipher_and_iv(aead, traffic_secret)
        self.records = 0

    def open_into(self, record: memoryview, out: memoryview) -> int:
        """Open one whole record.

        Args:
            record: the record with its header; its length has been checked by the splitter.
            out: where the inner plaintext goes, at least ``len(record) - 21 + 1`` bytes.

        Returns:
            The length of the content now at the start of ``out``.

        Raises:
            RemoteProtocolError: ``bad_record_mac`` (the same for every cause of a failed tag),
                ``record_overflow``, ``unexpected_message`` for another inner type, or
                ``sequence_limit``.
        """
        if self.records >= MAX_RECORDS_PER_KEY:
            raise RemoteProtocolError(Reason.SEQUENCE_LIMIT, "record limit of this key passed")
        inner_bytes = len(record) - HEADER_BYTES - TAG_BYTES
        if inner_bytes < 1:
            raise RemoteProtocolError(Reason.BAD_RECORD_MAC, "record shorter than its tag")
        nonce = (self._iv ^ self.records).to_bytes(IV_BYTES, "big")
        try:
            self._cipher.decrypt_into(
                nonce, record[HEADER_BYTES:], record[:HEADER_BYTES], out[:inner_bytes]
            )
        except InvalidTag:
            raise RemoteProtocolError(Reason.BAD_RECORD_MAC, "a record did not verify") from None
        self.records += 1
        return self._content_end(out, inner_bytes - 1)

    def open_full_run(self, records: Sequence[memoryview], out: memoryview) -> tuple[int, int]:
        """Open records of the largest size, one after the other, for as long as they are full.

        The same as :meth:`open_into` for each in turn, without its cost in between. Stops behind a
        record that holds less content than fits, for what follows it may be under another key, and
        before one that does not verify, which the next call refuses.

        Args:
            records: at least one, each ``FULL_RECORD_BYTES`` long, with its header.
            out: where the contents go, one behind the other, with room for all of them and 1 byte.

        Returns:
            How many records were opened, and the length of the last one's content; all others
            have 2^14 bytes.

        Raises:
            RemoteProtocolError: as :meth:`open_into`.
        """
        if self.records + len(records) > MAX_RECORDS_PER_KEY:
            raise RemoteProtocolError(Reason.SEQUENCE_LIMIT, "record limit of this key passed")
        decrypt_into, iv, sequence, position = self._cipher.decrypt_into, self._iv, self.records, 0
        length = MAX_CONTENT_BYTES
        for record in records:
            end = position + MAX_CONTENT_BYTES
            nonce = (iv ^ sequence).to_bytes(IV_BYTES, "big")
            try:
                decrypt_into(
                    nonce, record[HEADER_BYTES:], FULL_RECORD_HEADER, out[position : end + 1]
                )
            except InvalidTag:
                break
            sequence += 1
            if out[end] != CONTENT_APPLICATION_DATA:
                length = self._content_end(out[position : end + 1], MAX_CONTENT_BYTES)
                break
            position = end
        opened, self.records = sequence - self.records, sequence
        if not opened:
            raise RemoteProtocolError(Reason.BAD_RECORD_MAC, "a record did not verify")
        return opened, length

    def _content_end(self, out: memoryview, end: int) -> int:
        """Length of the content whose inner type, or padding behind it, ends at ``end``."""
        if out[end] == 0:
            end = self._skip_padding(out, end)
        if out[end] != CONTENT_APPLICATION_DATA:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"inner content type {out[end]}, expected 23"
            )
        if end > MAX_CONTENT_BYTES:
            raise RemoteProtocolError(
                Reason.RECORD_OVERFLOW, f"content of {end} bytes, limit {MAX_CONTENT_BYTES}"
            )
        return end

    @staticmethod
    def _skip_padding(out: memoryview, end: int) -> int:
        """Index of the inner type, before the zero padding (RFC 9846 §5.4)."""
        content = bytes(out[: end + 1]).rstrip(b"\0")
        if not content:
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "a record of padding only")
        return len(content) - 1
