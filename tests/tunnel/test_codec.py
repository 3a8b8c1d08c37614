"""Messages and frames: round trips, exact sizes, limits, and nothing but one kind of error."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qproxy.crypto.kem import SIZES
from qproxy.errors import WIRE_CODES, Reason, RemoteProtocolError
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.tunnel.codec import encode_text, encode_vec8, encode_vec16
from qproxy.tunnel.constants import MAX_EPOCH_MESSAGE_BYTES, MAX_KEYS_PER_OFFER
from qproxy.tunnel.frames import (
    MAX_CREDIT,
    OpenRequest,
    decode_credit,
    decode_empty,
    decode_epoch_number,
    decode_open,
    decode_ping,
    decode_reason,
)
from qproxy.tunnel.messages import (
    Abort,
    Accept,
    Binding,
    Confirm,
    Offer,
    OfferedKey,
    Reject,
    decode_epoch_message,
)

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


def fits(limit: int) -> Any:
    return lambda text: text.isprintable() and len(text.encode()) <= limit


def texts(minimum: int, limit: int) -> st.SearchStrategy[str]:
    alphabet = st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Cn", "Co"])
    return st.text(alphabet, min_size=minimum, max_size=limit // 4).filter(fits(limit))


EPOCHS = st.integers(1, 0xFFFF_FFFF)
ATTEMPTS = st.integers(1, 0xFFFF)
SECONDS = st.integers(0, 0xFFFF_FFFF)
REASONS = st.sampled_from(list(Reason))
POLICIES = st.sampled_from(list(Policy))
MODES = st.sampled_from(list(Mode))
KEYS = st.builds(OfferedKey, texts(1, 32), st.integers(32, 1024), texts(1, 128))
BINDINGS = st.builds(
    Binding,
    st.binary(min_size=48, max_size=48),
    st.binary(min_size=48, max_size=48),
    texts(1, 255),
    texts(1, 255),
    texts(0, 255),
    texts(0, 255),
)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    kem = draw(st.sampled_from(list(KemAlgorithm)))
    size = SIZES[kem].encapsulation_key
    keys = draw(
        st.lists(KEYS, max_size=MAX_KEYS_PER_OFFER, unique_by=lambda k: (k.source, k.key_id))
    )
    return Offer(
        epoch=draw(EPOCHS),
        attempt=draw(ATTEMPTS),
        mode=Mode.HYBRID if keys else Mode.CLASSICAL_ONLY,
        reason=draw(REASONS),
        aead=draw(st.sampled_from(list(Aead))),
        kem=kem,
        policy=draw(POLICIES),
        max_without_qkd_s=draw(SECONDS),
        connection_id=draw(st.binary(min_size=16, max_size=16)),
        nonce=draw(st.binary(min_size=32, max_size=32)),
        history=draw(st.sampled_from([b"", bytes(48), bytes(range(48))])),
        reauth_id=draw(st.binary(min_size=16, max_size=16)),
        binding=draw(BINDINGS),
        encapsulation_key=draw(st.integers(0, 255)).to_bytes(1, "big") * size,
        keys=tuple(keys),
    )


ACCEPTS = st.builds(
    Accept,
    EPOCHS,
    ATTEMPTS,
    MODES,
    POLICIES,
    SECONDS,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
    st.integers(1, 1568).map(bytes),
    st.binary(min_size=48, max_size=48),
)
REJECTS = st.builds(Reject, EPOCHS, ATTEMPTS, REASONS, POLICIES, SECONDS)
CONFIRMS = st.builds(Confirm, EPOCHS, ATTEMPTS, st.binary(min_size=48, max_size=48))
ABORTS = st.builds(Abort, EPOCHS, ATTEMPTS, REASONS)
MESSAGES = st.one_of(offers(), ACCEPTS, REJECTS, CONFIRMS, ABORTS)

OFFER = Offer(
    epoch=7,
    attempt=3,
    mode=Mode.HYBRID,
    reason=Reason.REKEY_INTERVAL,
    aead=Aead.AES_256_GCM,
    kem=KemAlgorithm.ML_KEM_768,
    policy=Policy.PREFER,
    max_without_qkd_s=300,
    connection_id=bytes(16),
    nonce=bytes(32),
    history=bytes(48),
    reauth_id=bytes(16),
    binding=Binding(bytes(48), bytes(48), "gw-a", "gw-b", "sae-a", "sae-b"),
    encapsulation_key=bytes(1184),
    keys=(OfferedKey("etsi-qkd-014", 32, "00000000-0000-4000-8000-000000000001"),),
)


def refused(data: bytes, reason: Reason = Reason.MALFORMED_MESSAGE) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_epoch_message(data)
    assert caught.value.reason is reason


@PROPERTY
@given(MESSAGES)
def test_messages_round_trip(message: Any) -> None:
    assert decode_epoch_message(message.encode()) == message


@settings(PROPERTY, max_examples=100)
@given(MESSAGES, st.data())
def test_no_message_survives_being_cut_or_extended(message: Any, data: st.DataObject) -> None:
    encoded = message.encode()
    refused(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    refused(encoded + data.draw(st.binary(min_size=1, max_size=40)))


@settings(PROPERTY, max_examples=500)
@given(MESSAGES, st.data())
def test_an_altered_message_is_refused_or_says_just_what_its_bytes_say(
    message: Any, data: st.DataObject
) -> None:
    """Decoding is injective: no two byte strings mean the same message."""
    encoded = bytearray(message.encode())
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_epoch_message(bytes(encoded))
    except RemoteProtocolError:
        return
    assert decoded != message
    assert decoded.encode() == bytes(encoded)


@settings(PROPERTY, max_examples=500)
@given(st.one_of(st.binary(max_size=200), st.integers(1, 5).flatmap(
    lambda kind: st.binary(max_size=2600).map(lambda rest: bytes([kind]) + rest)
)))  # fmt: skip
def test_garbage_is_refused(data: bytes) -> None:
    try:
        decoded = decode_epoch_message(data)
    except RemoteProtocolError:
        return
    assert decoded.encode() == data


def test_exact_sizes() -> None:
    accept = Accept(1, 1, Mode.HYBRID, Policy.OFF, 0, bytes(32), bytes(16), bytes(1568), bytes(48))
    assert len(accept.encode()) == 13 + 32 + 16 + 2 + 1568 + 48
    assert accept.encode() == accept.encode_without_mac() + bytes(48)
    assert len(Reject(1, 1, Reason.KEY_SPENT, Policy.OFF, 0).encode()) == 13
    assert len(Confirm(1, 1, bytes(48)).encode()) == 7 + 48
    assert len(Abort(1, 1, Reason.KEY_MISMATCH).encode()) == 8
    assert len(OFFER.encode()) == 17 + 16 + 32 + 49 + 16 + 96 + 22 + 2 + 1184 + 1 + 52


def test_the_largest_offer_fits_the_limit() -> None:
    largest = dataclasses.replace(
        OFFER,
        kem=KemAlgorithm.ML_KEM_1024,
        encapsulation_key=bytes(1568),
        binding=Binding(bytes(48), bytes(48), *("x" * 255 for _ in range(4))),
        keys=tuple(OfferedKey("s" * 32, 1024, f"{n}" * 128) for n in range(8)),
    )
    assert len(largest.encode()) <= MAX_EPOCH_MESSAGE_BYTES
    assert decode_epoch_message(largest.encode()) == largest


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"attempt": 0},
        {"history": bytes(47)},
        {"history": bytes(1)},
        {"history": bytes(49)},
        {"connection_id": bytes(15)},
        {"connection_id": bytes(17)},
        {"nonce": bytes(31)},
        {"reauth_id": bytes(17)},
        {"encapsulation_key": bytes(1183)},
        {"encapsulation_key": bytes(1185)},
        {"encapsulation_key": bytes(1568)},
        {"encapsulation_key": b""},
        {"kem": KemAlgorithm.ML_KEM_1024},
        {"mode": Mode.CLASSICAL_ONLY},
        {"keys": ()},
        {"keys": tuple(OfferedKey("s", 32, f"k{number}") for number in range(9))},
        {"keys": (OfferedKey("s", 32, "k"),) * 2},
        {"keys": (OfferedKey("s", 32, "k"), OfferedKey("s", 64, "k"))},
        {"keys": (OfferedKey("s", 31, "k"),)},
        {"keys": (OfferedKey("s", 0, "k"),)},
        {"keys": (OfferedKey("s", 1025, "k"),)},
        {"keys": (OfferedKey("", 32, "k"),)},
        {"keys": (OfferedKey("s" * 33, 32, "k"),)},
        {"keys": (OfferedKey("s", 32, ""),)},
        {"keys": (OfferedKey("s", 32, "k" * 129),)},
        {"keys": (OfferedKey("s", 32, "new\nline"),)},
        {"keys": (OfferedKey("s", 32, "\x1b[2J"),)},
        {"binding": Binding(bytes(47), bytes(48), "a", "b", "c", "d")},
        {"binding": Binding(bytes(48), bytes(48), "", "b", "c", "d")},
        {"binding": Binding(bytes(48), bytes(48), "a", "", "c", "d")},
        {"binding": Binding(bytes(48), bytes(48), "a", "b\0", "c", "d")},
    ],
    ids=lambda change: f"{next(iter(change))}={str(next(iter(change.values())))[:40]}",
)
def test_offers_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    refused(dataclasses.replace(OFFER, **change).encode())


def test_another_version_is_told_apart() -> None:
    for version in (0, 2, 255):
        refused(dataclasses.replace(OFFER, version=version).encode(), Reason.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    ("offset", "codes"),
    [(2, {1, 2}), (3, {1, 2}), (10, {1, 2}), (11, set(WIRE_CODES.values())), (12, {0, 1, 2})],
    ids=["aead", "kem", "mode", "reason", "policy"],
)
def test_unknown_codes_of_an_offer_are_refused(offset: int, codes: set[int]) -> None:
    encoded = OFFER.encode()
    assert encoded[offset] in codes
    for code in set(range(256)) - codes:
        refused(encoded[:offset] + bytes([code]) + encoded[offset + 1 :])


def test_names_that_are_not_utf8_are_refused() -> None:
    encoded = OFFER.encode()
    assert encoded.count(b"gw-a") == 1
    for wrong in (b"\xff\xfe-a", b"\xed\xa0\x80a", b"gw-\x80"):
        refused(encoded.replace(b"gw-a", wrong))


@pytest.mark.parametrize("size", [0, MAX_EPOCH_MESSAGE_BYTES + 1, 16_384])
def test_messages_of_no_or_too_many_bytes_are_refused(size: int) -> None:
    refused(bytes(size))


@pytest.mark.parametrize("kind", [0, 6, 7, 255])
def test_unknown_message_types_are_refused(kind: int) -> None:
    refused(bytes([kind]) + OFFER.encode()[1:])


@pytest.mark.parametrize("size", [0, 1569, 0xFFFF])
def test_ciphertexts_of_impossible_sizes_are_refused(size: int) -> None:
    refused(
        Accept(
            1, 1, Mode.HYBRID, Policy.OFF, 0, bytes(32), bytes(16), bytes(size), bytes(48)
        ).encode()
    )


# --- frames ----------------------------------------------------------------------------------


@PROPERTY
@given(texts(1, 255), texts(0, 255), texts(0, 255))
def test_open_round_trips(service: str, client: str, listener: str) -> None:
    request = OpenRequest(service, client, listener)
    assert decode_open(request.encode()) == request


@PROPERTY
@given(st.binary(max_size=60))
def test_open_of_garbage_is_refused(data: bytes) -> None:
    try:
        request = decode_open(data)
    except RemoteProtocolError:
        return
    assert request.encode() == data


@pytest.mark.parametrize(
    "request_",
    [
        OpenRequest(""),
        OpenRequest("web\n"),
        OpenRequest("web", "127.0.0.1:1\r\nPROXY"),
        OpenRequest("web", "", "\x7f"),
    ],
    ids=repr,
)
def test_open_with_empty_or_unprintable_texts_is_refused(request_: OpenRequest) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_open(request_.encode())


DECODERS = {
    "reason": (lambda data: decode_reason(data, "RESET"), 1),
    "credit": (lambda data: decode_credit(data, "CREDIT"), 8),
    "ping": (lambda data: decode_ping(data, "PING"), 8),
    "epoch number": (lambda data: decode_epoch_number(data, "SWITCH"), 4),
    "empty": (lambda data: decode_empty(data, "OPENED"), 0),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, 8, 9, 300])
def test_payloads_have_one_size(name: str, length: int) -> None:
    decode, size = DECODERS[name]
    if length == size:
        decode(bytes(length))
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes(length))
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


def test_credit_has_a_limit() -> None:
    assert decode_credit(MAX_CREDIT.to_bytes(8, "big"), "CREDIT") == MAX_CREDIT
    for value in (MAX_CREDIT + 1, 1 << 63, (1 << 64) - 1):
        with pytest.raises(RemoteProtocolError):
            decode_credit(value.to_bytes(8, "big"), "CREDIT")


def test_unknown_reasons_of_frames_become_closed() -> None:
    known = set(WIRE_CODES.values())
    for code in range(256):
        reason = decode_reason(bytes([code]), "RESET")
        assert reason is (Reason.from_code(code) if code in known else Reason.CLOSED)


def test_every_reason_has_a_code_of_its_own_in_one_byte() -> None:
    assert set(WIRE_CODES) == set(Reason)
    assert len(set(WIRE_CODES.values())) == len(Reason)
    assert all(1 <= code <= 255 for code in WIRE_CODES.values())


# --- fields ----------------------------------------------------------------------------------


@PROPERTY
@given(st.binary(max_size=300))
def test_vectors(value: bytes) -> None:
    assert encode_vec16(value) == len(value).to_bytes(2, "big") + value
    assume(len(value) <= 255)
    assert encode_vec8(value) == bytes([len(value)]) + value


def test_vectors_that_do_not_fit_are_not_cut() -> None:
    with pytest.raises(OverflowError):
        encode_vec8(bytes(256))
    with pytest.raises(OverflowError):
        encode_vec16(bytes(65_536))
    with pytest.raises(OverflowError):
        encode_text("ä" * 128)
