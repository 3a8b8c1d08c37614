"""The epoch messages: OFFER, ACCEPT, REJECT, CONFIRM, ABORT.

Frozen values with ``encode`` and one :func:`decode_epoch_message`. Byte tables:
docs/protocol.md, "Epoch messages". Nothing here is secret: the ML-KEM ciphertext and the key IDs
may be read by anybody without loss.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from qproxy.crypto.kem import SIZES as KEM_SIZES
from qproxy.crypto.schedule import HASH_BYTES, MODE_CODES
from qproxy.errors import Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES, MIN_QKD_KEY_BYTES
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.tunnel.codec import FieldReader, encode_text, encode_vec8, encode_vec16, malformed
from qproxy.tunnel.constants import (
    MAX_EPOCH_MESSAGE_BYTES,
    MAX_KEYS_PER_OFFER,
    MAX_NAME_BYTES,
    PROTOCOL_VERSION,
)

NONCE_BYTES = 32
CONNECTION_ID_BYTES = 16
REAUTH_ID_BYTES = 16
#: OFFER.reauth_id and ACCEPT.reauth_id where no re-authentication is being mixed in.
NO_REAUTH = bytes(REAUTH_ID_BYTES)
MAX_SOURCE_BYTES = 32

AEAD_CODES = {Aead.AES_256_GCM: 1, Aead.CHACHA20_POLY1305: 2}
KEM_CODES = {KemAlgorithm.ML_KEM_768: 1, KemAlgorithm.ML_KEM_1024: 2}
POLICY_CODES = {Policy.OFF: 0, Policy.PREFER: 1, Policy.REQUIRE: 2}

_MAX_CIPHERTEXT_BYTES = max(sizes.ciphertext for sizes in KEM_SIZES.values())
_AEADS = {code: value for value, code in AEAD_CODES.items()}
_KEMS = {code: value for value, code in KEM_CODES.items()}
_POLICIES = {code: value for value, code in POLICY_CODES.items()}
_MODES = {code: value for value, code in MODE_CODES.items()}


class MessageType(enum.IntEnum):
    """First byte of an epoch message."""

    OFFER = 1
    ACCEPT = 2
    REJECT = 3
    CONFIRM = 4
    ABORT = 5


@dataclass(frozen=True, slots=True)
class OfferedKey:
    """A QKD key named in an OFFER: source kind, exact size in bytes, and ID."""

    source: str
    size_bytes: int
    key_id: str


@dataclass(frozen=True, slots=True)
class Binding:
    """What both ends of a tunnel know about themselves and each other (rule R10).

    Hashes are SHA-384 of the certificate in DER, 48 bytes.
    """

    client_certificate_hash: bytes
    server_certificate_hash: bytes
    client_name: str
    server_name: str
    client_sae_id: str
    server_sae_id: str

    def encode(self) -> bytes:
        """Two hashes, then four texts."""
        return (
            self.client_certificate_hash
            + self.server_certificate_hash
            + encode_text(self.client_name)
            + encode_text(self.server_name)
            + encode_text(self.client_sae_id)
            + encode_text(self.server_sae_id)
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """OFFER, client to server: everything an epoch will be made from, but the secrets."""

    epoch: int
    attempt: int
    mode: Mode
    reason: Reason
    aead: Aead
    kem: KemAlgorithm
    policy: Policy
    max_without_qkd_s: int
    connection_id: bytes
    nonce: bytes
    history: bytes
    reauth_id: bytes
    binding: Binding
    encapsulation_key: bytes
    keys: tuple[OfferedKey, ...]
    version: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """The message's bytes, as they enter the transcript."""
        fixed = struct.pack(
            ">BBBBIHBBBI",
            MessageType.OFFER,
            self.version,
            AEAD_CODES[self.aead],
            KEM_CODES[self.kem],
            self.epoch,
            self.attempt,
            MODE_CODES[self.mode],
            self.reason.code,
            POLICY_CODES[self.policy],
            self.max_without_qkd_s,
        )
        keys = b"".join(encode_offered_key(key) for key in self.keys)
        return (
            fixed
            + self.connection_id
            + self.nonce
            + encode_vec8(self.history)
            + self.reauth_id
            + self.binding.encode()
            + encode_vec16(self.encapsulation_key)
            + bytes([len(self.keys)])
            + keys
        )


@dataclass(frozen=True, slots=True)
class Accept:
    """ACCEPT, server to client. ``mac`` is empty in the form that enters the transcript."""

    epoch: int
    attempt: int
    mode: Mode
    policy: Policy
    max_without_qkd_s: int
    nonce: bytes
    reauth_id: bytes
    ciphertext: bytes
    mac: bytes = b""

    def encode_without_mac(self) -> bytes:
        """What enters T_n."""
        fixed = struct.pack(
            ">BIHBBI",
            MessageType.ACCEPT,
            self.epoch,
            self.attempt,
            MODE_CODES[self.mode],
            POLICY_CODES[self.policy],
            self.max_without_qkd_s,
        )
        return fixed + self.nonce + self.reauth_id + encode_vec16(self.ciphertext)

    def encode(self) -> bytes:
        """The message's bytes on the wire."""
        return self.encode_without_mac() + self.mac


@dataclass(frozen=True, slots=True)
class Reject:
    """REJECT, server to client: no epoch from this attempt; the client may make a new OFFER."""

    epoch: int
    attempt: int
    reason: Reason
    policy: Policy
    max_without_qkd_s: int

    def encode(self) -> bytes:
        """The message's bytes, as they enter the history."""
        return struct.pack(
            ">BIHBBI",
            MessageType.REJECT,
            self.epoch,
            self.attempt,
            self.reason.code,
            POLICY_CODES[self.policy],
            self.max_without_qkd_s,
        )


@dataclass(frozen=True, slots=True)
class Confirm:
    """CONFIRM, client to server."""

    epoch: int
    attempt: int
    mac: bytes

    def encode(self) -> bytes:
        """The message's bytes on the wire."""
        return struct.pack(">BIH", MessageType.CONFIRM, self.epoch, self.attempt) + self.mac


@dataclass(frozen=True, slots=True)
class Abort:
    """ABORT, client to server: the attempt is over; its keys are burnt."""

    epoch: int
    attempt: int
    reason: Reason

    def encode(self) -> bytes:
        """The message's bytes, as they enter the history."""
        return struct.pack(">BIHB", MessageType.ABORT, self.epoch, self.attempt, self.reason.code)


EpochMessage: TypeAlias = Offer | Accept | Reject | Confirm | Abort


def decode_epoch_message(data: bytes) -> EpochMessage:
    """Parse one epoch message.

    Raises:
        RemoteProtocolError: ``malformed_message``, or ``unsupported_version`` for an OFFER of
            another version.
    """
    if len(data) > MAX_EPOCH_MESSAGE_BYTES:
        raise malformed(f"epoch message of {len(data)} bytes, limit {MAX_EPOCH_MESSAGE_BYTES}")
    if not data:
        raise malformed("empty epoch message")
    try:
        message_type = MessageType(data[0])
    except ValueError:
        raise malformed(f"epoch message type {data[0]} is unknown") from None
    reader = FieldReader(data[1:], message_type.name)
    message = _DECODERS[message_type](reader)
    reader.finish()
    return message


def _mode(reader: FieldReader) -> Mode:
    code = reader.uint(1, "mode")
    if code not in _MODES:
        raise malformed(f"mode {code} is unknown")
    return _MODES[code]


def _policy(reader: FieldReader) -> Policy:
    code = reader.uint(1, "policy")
    if code not in _POLICIES:
        raise malformed(f"policy {code} is unknown")
    return _POLICIES[code]


def _reason(reader: FieldReader) -> Reason:
    code = reader.uint(1, "reason")
    reason = Reason.from_code(code)
    if reason is None:
        raise malformed(f"reason {code} is unknown")
    return reason


def _attempt_of(reader: FieldReader) -> tuple[int, int]:
    epoch = reader.uint(4, "epoch")
    attempt = reader.uint(2, "attempt")
    if epoch == 0 or attempt == 0:
        raise malformed("epoch and attempt count from 1")
    return epoch, attempt


def encode_offered_key(key: OfferedKey) -> bytes:
    """Source, size and ID of one QKD key."""
    return encode_text(key.source) + key.size_bytes.to_bytes(2, "big") + encode_text(key.key_id)


def decode_offered_key(reader: FieldReader) -> OfferedKey:
    """Parse source, size and ID of one QKD key. Raises RemoteProtocolError."""
    source = reader.text("source", limit=MAX_SOURCE_BYTES, minimum=1)
    size_bytes = reader.uint(2, "size_bytes")
    if not MIN_QKD_KEY_BYTES <= size_bytes <= MAX_QKD_KEY_BYTES:
        raise malformed(
            f"QKD key of {size_bytes} bytes, expected {MIN_QKD_KEY_BYTES} to {MAX_QKD_KEY_BYTES}"
        )
    key_id = reader.text("key_id", limit=MAX_KEY_ID_BYTES, minimum=1)
    return OfferedKey(source, size_bytes, key_id)


def _decode_binding(reader: FieldReader) -> Binding:
    return Binding(
        client_certificate_hash=reader.take(HASH_BYTES, "client_certificate_hash"),
        server_certificate_hash=reader.take(HASH_BYTES, "server_certificate_hash"),
        client_name=reader.text("client_name", limit=MAX_NAME_BYTES, minimum=1),
        server_name=reader.text("server_name", limit=MAX_NAME_BYTES, minimum=1),
        client_sae_id=reader.text("client_sae_id", limit=MAX_NAME_BYTES),
        server_sae_id=reader.text("server_sae_id", limit=MAX_NAME_BYTES),
    )


def _decode_offer(reader: FieldReader) -> Offer:
    version = reader.uint(1, "version")
    if version != PROTOCOL_VERSION:
        error = malformed(f"protocol version {version}, this gateway speaks {PROTOCOL_VERSION}")
        error.reason = Reason.UNSUPPORTED_VERSION
        raise error
    aead = _AEADS.get(reader.uint(1, "aead"))
    kem = _KEMS.get(reader.uint(1, "kem"))
    if aead is None or kem is None:
        raise malformed("AEAD or KEM is unknown")
    epoch, attempt = _attempt_of(reader)
    mode = _mode(reader)
    offer = Offer(
        version=version,
        aead=aead,
        kem=kem,
        epoch=epoch,
        attempt=attempt,
        mode=mode,
        reason=_reason(reader),
        policy=_policy(reader),
        max_without_qkd_s=reader.uint(4, "max_without_qkd_s"),
        connection_id=reader.take(CONNECTION_ID_BYTES, "connection_id"),
        nonce=reader.take(NONCE_BYTES, "nonce"),
        history=reader.vector(1, "history", limit=HASH_BYTES),
        reauth_id=reader.take(REAUTH_ID_BYTES, "reauth_id"),
        binding=_decode_binding(reader),
        encapsulation_key=reader.vector(
            2,
            "encapsulation_key",
            limit=KEM_SIZES[kem].encapsulation_key,
            minimum=KEM_SIZES[kem].encapsulation_key,
        ),
        keys=_decode_offered_keys(reader),
    )
    _check_keys_fit_mode(offer)
    return offer


def _decode_offered_keys(reader: FieldReader) -> tuple[OfferedKey, ...]:
    count = reader.uint(1, "key_count")
    if count > MAX_KEYS_PER_OFFER:
        raise malformed(f"{count} QKD keys offered, limit {MAX_KEYS_PER_OFFER}")
    return tuple(decode_offered_key(reader) for _ in range(count))


def _check_keys_fit_mode(offer: Offer) -> None:
    if len(offer.history) not in {0, HASH_BYTES}:
        raise malformed(f"history of {len(offer.history)} bytes, expected 0 or {HASH_BYTES}")
    if (offer.mode is Mode.HYBRID) != bool(offer.keys):
        raise malformed(f"{offer.mode} with {len(offer.keys)} QKD keys")
    if len({(key.source, key.key_id) for key in offer.keys}) != len(offer.keys):
        raise malformed("one QKD key named twice")


def _decode_accept(reader: FieldReader) -> Accept:
    epoch, attempt = _attempt_of(reader)
    return Accept(
        epoch=epoch,
        attempt=attempt,
        mode=_mode(reader),
        policy=_policy(reader),
        max_without_qkd_s=reader.uint(4, "max_without_qkd_s"),
        nonce=reader.take(NONCE_BYTES, "nonce"),
        reauth_id=reader.take(REAUTH_ID_BYTES, "reauth_id"),
        ciphertext=reader.vector(2, "ciphertext", limit=_MAX_CIPHERTEXT_BYTES, minimum=1),
        mac=reader.take(HASH_BYTES, "mac"),
    )


def _decode_reject(reader: FieldReader) -> Reject:
    epoch, attempt = _attempt_of(reader)
    return Reject(
        epoch=epoch,
        attempt=attempt,
        reason=_reason(reader),
        policy=_policy(reader),
        max_without_qkd_s=reader.uint(4, "max_without_qkd_s"),
    )


def _decode_confirm(reader: FieldReader) -> Confirm:
    epoch, attempt = _attempt_of(reader)
    return Confirm(epoch, attempt, reader.take(HASH_BYTES, "mac"))


def _decode_abort(reader: FieldReader) -> Abort:
    epoch, attempt = _attempt_of(reader)
    return Abort(epoch, attempt, _reason(reader))


_DECODERS: dict[MessageType, Callable[[FieldReader], EpochMessage]] = {
    MessageType.OFFER: _decode_offer,
    MessageType.ACCEPT: _decode_accept,
    MessageType.REJECT: _decode_reject,
    MessageType.CONFIRM: _decode_confirm,
    MessageType.ABORT: _decode_abort,
}
