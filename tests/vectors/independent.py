"""The qproxy/1 protocol's bytes a second time, written from docs/protocol.md alone.

It imports nothing of qproxy: `hashlib`, `hmac`, `struct` and two bare AEADs are all it has, so
that agreement with the published vectors says something about the document. Names are the
document's. It covers what is a function of bytes (messages, frames, key schedule, records) and
none of the steps.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305


class RefusedError(Exception):
    """Bytes that the document calls fatal; `reason` is its word for it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def _check(holds: bool, detail: str, reason: str = "malformed_message") -> None:
    if not holds:
        raise RefusedError(reason, detail)


# --- Notation -------------------------------------------------------------------------------


def u8(number: int) -> bytes:
    return struct.pack(">B", number)


def u16(number: int) -> bytes:
    return struct.pack(">H", number)


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def u64(number: int) -> bytes:
    return struct.pack(">Q", number)


def vec8(data: bytes) -> bytes:
    return u8(len(data)) + data


def vec16(data: bytes) -> bytes:
    return u16(len(data)) + data


def text(words: str) -> bytes:
    return vec8(words.encode("utf-8"))


def lp(data: bytes) -> bytes:
    return u32(len(data)) + data


def h(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha384")


def extract(salt: bytes, ikm: bytes) -> bytes:
    return mac(salt, ikm)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869, section 2.3)."""
    output = block = b""
    counter = 1
    while len(output) < length:
        block = mac(prk, block + info + u8(counter))
        output += block
        counter += 1
    return output[:length]


class Reader:
    """Takes fields off the front of a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        _check(len(self._data) - self._at >= size, "ends inside a field")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self, least: int, most: int) -> str:
        size = self.number(1)
        _check(least <= size <= most, "a text of a length outside its limits")
        try:
            words = self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise RefusedError("malformed_message", "not UTF-8") from None
        _check(words.isprintable(), "a character that is not printable")
        return words

    def code(self, codes: range) -> int:
        number = self.number(1)
        _check(number in codes, "an unknown code point")
        return number

    def counted(self, size: int) -> int:
        number = self.number(size)
        _check(number != 0, "a count of 0")
        return number

    def end(self) -> None:
        _check(self._at == len(self._data), "bytes after the last field")


# --- Code points ----------------------------------------------------------------------------

OFFER, ACCEPT, REJECT, CONFIRM, ABORT = range(1, 6)
CLASSICAL_ONLY, HYBRID = 1, 2
MODES, POLICIES, AEADS, KEMS, REASONS = (
    range(1, 3),
    range(3),
    range(1, 3),
    range(1, 3),
    range(1, 70),
)
KEY_NOT_FOUND, CLOSED = 42, 67
ENCAPSULATION_KEY_BYTES = {1: 1184, 2: 1568}
CIPHERTEXT_BYTES = {1: 1088, 2: 1568}


# --- Epoch messages -------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    source: str
    size_bytes: int
    key_id: str

    def encode(self) -> bytes:
        return text(self.source) + u16(self.size_bytes) + text(self.key_id)

    @classmethod
    def read(cls, reader: Reader) -> Key:
        key = cls(reader.text(1, 32), reader.number(2), reader.text(1, 128))
        _check(32 <= key.size_bytes <= 1024, "a key of a size outside its limits")
        return key


@dataclass(frozen=True)
class Offer:
    version: int
    aead: int
    kem: int
    epoch: int
    attempt: int
    mode: int
    reason: int
    policy: int
    max_without_qkd_s: int
    connection_id: bytes
    nonce: bytes
    history: bytes
    reauth_id: bytes
    client_certificate_hash: bytes
    server_certificate_hash: bytes
    client_name: str
    server_name: str
    client_sae_id: str
    server_sae_id: str
    encapsulation_key: bytes
    keys: tuple[Key, ...]

    def encode(self) -> bytes:
        return b"".join(
            [
                u8(OFFER),
                u8(self.version),
                u8(self.aead),
                u8(self.kem),
                u32(self.epoch),
                u16(self.attempt),
                u8(self.mode),
                u8(self.reason),
                u8(self.policy),
                u32(self.max_without_qkd_s),
                self.connection_id,
                self.nonce,
                vec8(self.history),
                self.reauth_id,
                self.client_certificate_hash,
                self.server_certificate_hash,
                text(self.client_name),
                text(self.server_name),
                text(self.client_sae_id),
                text(self.server_sae_id),
                vec16(self.encapsulation_key),
                u8(len(self.keys)),
                *(key.encode() for key in self.keys),
            ]
        )

    @classmethod
    def read(cls, reader: Reader) -> Offer:
        version = reader.number(1)
        _check(version == 1, "another version", "unsupported_version")
        aead, kem = reader.code(AEADS), reader.code(KEMS)
        epoch, attempt = reader.counted(4), reader.counted(2)
        mode, reason, policy = reader.code(MODES), reader.code(REASONS), reader.code(POLICIES)
        max_without_qkd_s = reader.number(4)
        connection_id, nonce = reader.take(16), reader.take(32)
        history_size = reader.number(1)
        _check(history_size in {0, 48}, "a history of another size")
        history, reauth_id = reader.take(history_size), reader.take(16)
        client_certificate_hash, server_certificate_hash = reader.take(48), reader.take(48)
        client_name, server_name = reader.text(1, 255), reader.text(1, 255)
        client_sae_id, server_sae_id = reader.text(0, 255), reader.text(0, 255)
        size = reader.number(2)
        _check(size == ENCAPSULATION_KEY_BYTES[kem], "an encapsulation key of another size")
        encapsulation_key = reader.take(size)
        count = reader.number(1)
        _check(count in (range(1, 9) if mode == HYBRID else range(1)), "a count of keys")
        keys = tuple(Key.read(reader) for _ in range(count))
        _check(len({(key.source, key.key_id) for key in keys}) == count, "a key named twice")
        return cls(
            version,
            aead,
            kem,
            epoch,
            attempt,
            mode,
            reason,
            policy,
            max_without_qkd_s,
            connection_id,
            nonce,
            history,
            reauth_id,
            client_certificate_hash,
            server_certificate_hash,
            client_name,
            server_name,
            client_sae_id,
            server_sae_id,
            encapsulation_key,
            keys,
        )


@dataclass(frozen=True)
class Accept:
    epoch: int
    attempt: int
    mode: int
    policy: int
    max_without_qkd_s: int
    nonce: bytes
    reauth_id: bytes
    ciphertext: bytes
    mac: bytes = b""

    def encode_without_mac(self) -> bytes:
        return b"".join(
            [
                u8(ACCEPT),
                u32(self.epoch),
                u16(self.attempt),
                u8(self.mode),
                u8(self.policy),
                u32(self.max_without_qkd_s),
                self.nonce,
                self.reauth_id,
                vec16(self.ciphertext),
            ]
        )

    def encode(self) -> bytes:
        return self.encode_without_mac() + self.mac

    @classmethod
    def read(cls, reader: Reader) -> Accept:
        epoch, attempt = reader.counted(4), reader.counted(2)
        mode, policy = reader.code(MODES), reader.code(POLICIES)
        max_without_qkd_s = reader.number(4)
        nonce, reauth_id = reader.take(32), reader.take(16)
        size = reader.number(2)
        # Which of the two it must be is known with the OFFER only (step C2).
        _check(size in CIPHERTEXT_BYTES.values(), "a ciphertext of another size")
        ciphertext = reader.take(size)
        return cls(
            epoch,
            attempt,
            mode,
            policy,
            max_without_qkd_s,
            nonce,
            reauth_id,
            ciphertext,
            reader.take(48),
        )


@dataclass(frozen=True)
class Reject:
    epoch: int
    attempt: int
    reason: int
    policy: int
    max_without_qkd_s: int

    def encode(self) -> bytes:
        place = u8(REJECT) + u32(self.epoch) + u16(self.attempt)
        return place + u8(self.reason) + u8(self.policy) + u32(self.max_without_qkd_s)

    @classmethod
    def read(cls, reader: Reader) -> Reject:
        epoch, attempt = reader.counted(4), reader.counted(2)
        return cls(epoch, attempt, reader.code(REASONS), reader.code(POLICIES), reader.number(4))


@dataclass(frozen=True)
class Confirm:
    epoch: int
    attempt: int
    mac: bytes

    def encode(self) -> bytes:
        return u8(CONFIRM) + u32(self.epoch) + u16(self.attempt) + self.mac

    @classmethod
    def read(cls, reader: Reader) -> Confirm:
        return cls(reader.counted(4), reader.counted(2), reader.take(48))


@dataclass(frozen=True)
class Abort:
    epoch: int
    attempt: int
    reason: int

    def encode(self) -> bytes:
        return u8(ABORT) + u32(self.epoch) + u16(self.attempt) + u8(self.reason)

    @classmethod
    def read(cls, reader: Reader) -> Abort:
        return cls(reader.counted(4), reader.counted(2), reader.code(REASONS))


Message = Offer | Accept | Reject | Confirm | Abort
_MESSAGES: dict[int, type[Message]] = {
    OFFER: Offer,
    ACCEPT: Accept,
    REJECT: Reject,
    CONFIRM: Confirm,
    ABORT: Abort,
}


def decode_message(data: bytes) -> Message:
    """One epoch message, whole."""
    _check(len(data) <= 8192, "longer than any epoch message")
    reader = Reader(data)
    kind = reader.number(1)
    _check(kind in _MESSAGES, "an unknown type of message")
    message: Message = _MESSAGES[kind].read(reader)
    reader.end()
    return message


# --- Key schedule ---------------------------------------------------------------------------


def history_hash(history: bytes, offer: bytes, outcome: bytes) -> bytes:
    """The history with one more failed attempt; `outcome` is its REJECT or ABORT."""
    return h(lp(b"qproxy1 history") + lp(history) + lp(offer) + lp(outcome))


def first_chain_key(pre_shared_key: bytes) -> bytes:
    """CK_1; an empty pre-shared key is none."""
    return extract(b"qproxy1 init", pre_shared_key or bytes(32))


@dataclass(frozen=True)
class EpochInputs:
    """All that goes into an epoch."""

    chain_key: bytes
    previous_transcript_hash: bytes
    offer: bytes
    accept_without_mac: bytes
    mode: int
    epoch: int
    kem_secret: bytes
    exporter: bytes
    qkd_keys: tuple[bytes, ...]


@dataclass(frozen=True)
class EpochOutputs:
    """All that comes out of it, intermediate values included."""

    transcript_hash: bytes
    qkd_key: bytes
    ikm: bytes
    epoch_secret: bytes
    context: bytes
    next_chain_key: bytes
    client_traffic_secret: bytes
    server_traffic_secret: bytes
    client_confirm_key: bytes
    server_confirm_key: bytes
    epoch_id: bytes
    client_mac: bytes
    server_mac: bytes


def transcript_hash(previous: bytes, offer: bytes, accept_without_mac: bytes) -> bytes:
    return h(lp(b"qproxy1 transcript") + lp(previous) + lp(offer) + lp(accept_without_mac))


def derive(given: EpochInputs) -> EpochOutputs:
    """The combiner and the key schedule of one epoch."""
    t = transcript_hash(given.previous_transcript_hash, given.offer, given.accept_without_mac)
    qkd_key = b"".join(lp(key) for key in given.qkd_keys)
    ikm = lp(given.kem_secret) + lp(given.exporter) + lp(qkd_key)
    es = extract(given.chain_key, ikm)
    context = u8(given.mode) + u32(given.epoch) + t

    def out(label: bytes, length: int = 48) -> bytes:
        return expand(es, u16(length) + lp(b"qproxy1 " + label) + lp(context), length)

    client_confirm_key, server_confirm_key = out(b"client confirm"), out(b"server confirm")
    return EpochOutputs(
        transcript_hash=t,
        qkd_key=qkd_key,
        ikm=ikm,
        epoch_secret=es,
        context=context,
        next_chain_key=out(b"chain"),
        client_traffic_secret=out(b"client traffic"),
        server_traffic_secret=out(b"server traffic"),
        client_confirm_key=client_confirm_key,
        server_confirm_key=server_confirm_key,
        epoch_id=out(b"epoch id", 16),
        client_mac=mac(client_confirm_key, t),
        server_mac=mac(server_confirm_key, t),
    )


# --- Record layer ---------------------------------------------------------------------------

MAX_RECORDS_PER_KEY = 23_726_566
CIPHERS: dict[int, type[AESGCM | ChaCha20Poly1305]] = {1: AESGCM, 2: ChaCha20Poly1305}


@dataclass(frozen=True)
class Protection:
    """One direction of one epoch."""

    aead: int
    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)

    @classmethod
    def of(cls, aead: int, traffic_secret: bytes) -> Protection:
        return cls(
            aead,
            expand(traffic_secret, u16(32) + lp(b"qproxy1 key") + lp(b""), 32),
            expand(traffic_secret, u16(12) + lp(b"qproxy1 iv") + lp(b""), 12),
        )

    def _nonce(self, sequence: int) -> bytes:
        _check(sequence < MAX_RECORDS_PER_KEY, "the key is used up", "sequence_limit")
        number = sequence.to_bytes(12, "big")
        return bytes(a ^ b for a, b in zip(self.iv, number, strict=True))

    def seal(self, sequence: int, content: bytes, padding: int = 0) -> bytes:
        inner = content + b"\x17" + bytes(padding)
        header = b"\x17\x03\x03" + u16(len(inner) + 16)
        nonce = self._nonce(sequence)
        return header + CIPHERS[self.aead](self.key).encrypt(nonce, inner, header)

    def open(self, sequence: int, record: bytes) -> bytes:
        header, body = record[:5], record[5:]
        _check(header[:3] == b"\x17\x03\x03", "another outer type or version")
        _check(len(header) == 5 and int.from_bytes(header[3:], "big") == len(body), "its length")
        _check(len(body) <= 16_640, "too long", "record_overflow")
        try:
            inner = CIPHERS[self.aead](self.key).decrypt(self._nonce(sequence), body, header)
        except InvalidTag:
            raise RefusedError("bad_record_mac", "the tag is wrong") from None
        inner = inner.rstrip(b"\x00")
        _check(inner[-1:] == b"\x17", "another inner type, or zeros only")
        content = inner[:-1]
        _check(1 <= len(content) <= 16_384, "content of a size outside its limits")
        return content


# --- Frames ---------------------------------------------------------------------------------

(
    DATA,
    OPEN,
    OPENED,
    REFUSED,
    STREAM_CREDIT,
    SESSION_CREDIT,
    HALF_CLOSE,
    RESET,
    PING,
    PONG,
    GO_AWAY,
    END,
    EPOCH,
    SWITCH,
    COMMITTED,
    REQUEST,
    ANNOUNCE,
    REPORT,
    TLS,
) = range(1, 20)
OF_A_STREAM = {DATA, OPEN, OPENED, REFUSED, STREAM_CREDIT, HALF_CLOSE, RESET}
ALONE = {END, EPOCH, SWITCH, COMMITTED}
MAX_PAYLOAD_BYTES = 16_377


@dataclass(frozen=True)
class Open:
    service: str
    client_address: str
    listener_address: str


@dataclass(frozen=True)
class Announce:
    keys: tuple[Key, ...]

    def encode(self) -> bytes:
        return u8(len(self.keys)) + b"".join(key.encode() for key in self.keys)

    @classmethod
    def read(cls, reader: Reader) -> Announce:
        count = reader.number(1)
        _check(1 <= count <= 64, "a count of keys")
        keys = tuple(Key.read(reader) for _ in range(count))
        _check(len({(key.source, key.key_id) for key in keys}) == count, "a key named twice")
        return cls(keys)


@dataclass(frozen=True)
class Report:
    instance_id: bytes
    results: tuple[tuple[str, int], ...]

    def encode(self) -> bytes:
        results = b"".join(text(key_id) + u8(result) for key_id, result in self.results)
        return self.instance_id + u8(len(self.results)) + results

    @classmethod
    def read(cls, reader: Reader) -> Report:
        instance_id, count = reader.take(8), reader.number(1)
        _check(1 <= count <= 64, "a count of keys")
        read = [(reader.text(1, 128), reader.number(1)) for _ in range(count)]
        known = {0, *REASONS}
        return cls(instance_id, tuple((i, r if r in known else KEY_NOT_FOUND) for i, r in read))


@dataclass(frozen=True)
class Tls:
    reauth_id: bytes
    tls: bytes

    def encode(self) -> bytes:
        return self.reauth_id + self.tls

    @classmethod
    def read(cls, data: bytes) -> Tls:
        _check(len(data) > 16, "TLS without an ID or without TLS bytes")
        _check(data[:16] != bytes(16), "TLS with an ID of zeros")
        return cls(data[:16], data[16:])


# What a payload holds: bytes (DATA, PING, PONG), a number (reason, limit, epoch), nothing, an
# OPEN's texts, fields of another frame, or an epoch message.
Payload = bytes | int | None | Open | Announce | Report | Tls | Message


@dataclass(frozen=True)
class Frame:
    type: int
    stream_id: int
    payload: Payload

    def encode_payload(self) -> bytes:
        match self.payload:
            case None:
                return b""
            case bytes():
                return self.payload
            case int():
                if self.type in {STREAM_CREDIT, SESSION_CREDIT}:
                    return u64(self.payload)
                return u32(self.payload) if self.type in {SWITCH, COMMITTED} else u8(self.payload)
            case Open(service, client_address, listener_address):
                return text(service) + text(client_address) + text(listener_address)
            case message:
                return message.encode()

    def encode(self) -> bytes:
        return u8(self.type) + u32(self.stream_id) + vec16(self.encode_payload())


def _decode_payload(kind: int, data: bytes) -> Payload:
    if kind == EPOCH:
        return decode_message(data)
    reader = Reader(data)
    payload: Payload = None
    if kind == DATA:
        _check(len(data) >= 1, "DATA without data")
        return data
    if kind == TLS:
        return Tls.read(data)
    if kind in {PING, PONG}:
        payload = reader.take(8)
    elif kind == OPEN:
        payload = Open(reader.text(1, 255), reader.text(0, 255), reader.text(0, 255))
    elif kind in {ANNOUNCE, REPORT}:
        payload = (Announce if kind == ANNOUNCE else Report).read(reader)
    elif kind in {REFUSED, RESET, GO_AWAY, END, REQUEST}:
        reason = reader.number(1)
        payload = reason if reason in REASONS else CLOSED
    elif kind in {STREAM_CREDIT, SESSION_CREDIT}:
        payload = reader.number(8)
        _check(payload <= 2**62, "a limit above 2^62")
    elif kind in {SWITCH, COMMITTED}:
        payload = reader.number(4)
        _check(kind == SWITCH or payload == 1, "COMMITTED of another epoch than 1")
    reader.end()
    return payload


def decode_frames(content: bytes) -> list[Frame]:
    """All frames of a record's content."""
    _check(len(content) >= 1, "an empty record")
    frames = []
    rest = Reader(content)
    left = len(content)
    while left:
        kind, stream_id, size = rest.number(1), rest.number(4), rest.number(2)
        _check(kind in range(DATA, TLS + 1), "an unknown frame")
        _check(size <= MAX_PAYLOAD_BYTES, "a payload that is too long")
        if kind in OF_A_STREAM:
            _check(stream_id != 0, "a stream frame without stream", "unexpected_message")
        else:
            _check(stream_id == 0, "a stream ID where 0 belongs")
        frames.append(Frame(kind, stream_id, _decode_payload(kind, rest.take(size))))
        left -= 7 + size
    _check(len(frames) == 1 or not any(f.type in ALONE for f in frames), "a frame not alone")
    return frames
