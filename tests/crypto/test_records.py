"""Records: their bytes against an implementation of its own, their limits, and tampering."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.crypto.records import (
    MAX_CONTENT_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORDS_PER_KEY,
    OVERHEAD_BYTES,
    RecordOpener,
    RecordSealer,
)
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Aead

SECRET = bytes(range(48))
CIPHERS = {Aead.AES_256_GCM: AESGCM, Aead.CHACHA20_POLY1305: ChaCha20Poly1305}
BOTH_SUITES = pytest.mark.parametrize("aead", list(Aead))


def seal(sealer: RecordSealer, content: bytes, *, inner_type: int = 23, padding: int = 0) -> bytes:
    inner = content + bytes([inner_type]) + bytes(padding)
    out = memoryview(bytearray(len(inner) + OVERHEAD_BYTES))
    return bytes(out[: sealer.seal_into(memoryview(inner), out)])


def open_record(opener: RecordOpener, record: bytes) -> bytes:
    out = memoryview(bytearray(max(1, len(record))))
    return bytes(out[: opener.open_into(memoryview(record), out)])


def expected_record(aead: Aead, sequence: int, content: bytes) -> bytes:
    """RFC 9846 §5.2 and §5.3 with this protocol's labels, from HMAC and the bare cipher."""

    def output(label: bytes, length: int) -> bytes:
        name = b"qproxy1 " + label
        info = length.to_bytes(2, "big") + len(name).to_bytes(4, "big") + name + bytes(4)
        return hmac.digest(SECRET, info + b"\1", "sha384")[:length]

    iv = int.from_bytes(output(b"iv", 12), "big")
    header = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
    nonce = (iv ^ sequence).to_bytes(12, "big")
    return header + CIPHERS[aead](output(b"key", 32)).encrypt(nonce, content + b"\x17", header)


@BOTH_SUITES
def test_bytes_are_those_of_the_specification(aead: Aead) -> None:
    sealer = RecordSealer(aead, SECRET)
    for sequence in range(3):
        assert seal(sealer, b"content") == expected_record(aead, sequence, b"content")
    sealer.records = 0x0102_0304 % MAX_RECORDS_PER_KEY
    sequence = sealer.records
    assert seal(sealer, b"content") == expected_record(aead, sequence, b"content")


@BOTH_SUITES
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    contents=st.lists(
        st.tuples(st.binary(max_size=300), st.integers(0, 40)), min_size=1, max_size=5
    )
)
def test_round_trip_with_padding(aead: Aead, contents: list[tuple[bytes, int]]) -> None:
    sealer, opener = RecordSealer(aead, SECRET), RecordOpener(aead, SECRET)
    for content, padding in contents:
        record = seal(sealer, content, padding=padding)
        assert len(record) == len(content) + OVERHEAD_BYTES + padding
        assert open_record(opener, record) == content
    assert sealer.records == opener.records == len(contents)


@BOTH_SUITES
def test_any_changed_bit_is_one_and_the_same_error(aead: Aead) -> None:
    record = seal(RecordSealer(aead, SECRET), b"content")
    words = set()
    for position in range(len(record) * 8):
        altered = bytearray(record)
        altered[position // 8] ^= 1 << position % 8
        opener = RecordOpener(aead, SECRET)
        with pytest.raises(RemoteProtocolError) as caught:
            open_record(opener, bytes(altered))
        assert caught.value.reason is Reason.BAD_RECORD_MAC
        assert opener.records == 0
        words.add(str(caught.value))
    assert len(words) == 1


@pytest.mark.parametrize("length", range(22))
def test_a_truncated_record_does_not_open(length: int) -> None:
    record = seal(RecordSealer(Aead.AES_256_GCM, SECRET), b"content")[: 5 + length]
    with pytest.raises(RemoteProtocolError) as caught:
        open_record(RecordOpener(Aead.AES_256_GCM, SECRET), record)
    assert caught.value.reason is Reason.BAD_RECORD_MAC


def test_a_replayed_or_skipped_record_does_not_open() -> None:
    sealer = RecordSealer(Aead.AES_256_GCM, SECRET)
    first, _second, third = (seal(sealer, b"content") for _ in range(3))
    for stray in (first, third):
        opener = RecordOpener(Aead.AES_256_GCM, SECRET)
        open_record(opener, first)
        with pytest.raises(RemoteProtocolError):
            open_record(opener, stray)


def test_a_record_of_another_suite_or_secret_does_not_open() -> None:
    record = seal(RecordSealer(Aead.AES_256_GCM, SECRET), b"content")
    for opener in (
        RecordOpener(Aead.CHACHA20_POLY1305, SECRET),
        RecordOpener(Aead.AES_256_GCM, bytes(48)),
    ):
        with pytest.raises(RemoteProtocolError):
            open_record(opener, record)


@pytest.mark.parametrize("inner_type", [*range(1, 23), *range(24, 256)])
def test_other_inner_types_are_refused(inner_type: int) -> None:
    record = seal(RecordSealer(Aead.AES_256_GCM, SECRET), b"content", inner_type=inner_type)
    with pytest.raises(RemoteProtocolError) as caught:
        open_record(RecordOpener(Aead.AES_256_GCM, SECRET), record)
    assert caught.value.reason is Reason.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("zeros", [1, 2, MAX_CONTENT_BYTES])
def test_a_record_of_padding_only_is_refused(zeros: int) -> None:
    record = seal(RecordSealer(Aead.AES_256_GCM, SECRET), b"", inner_type=0, padding=zeros - 1)
    with pytest.raises(RemoteProtocolError) as caught:
        open_record(RecordOpener(Aead.AES_256_GCM, SECRET), record)
    assert caught.value.reason is Reason.UNEXPECTED_MESSAGE


def test_content_ends_at_2_to_the_14() -> None:
    opener = RecordOpener(Aead.AES_256_GCM, SECRET)
    sealer = RecordSealer(Aead.AES_256_GCM, SECRET)
    assert len(open_record(opener, seal(sealer, bytes(MAX_CONTENT_BYTES)))) == MAX_CONTENT_BYTES
    with pytest.raises(RemoteProtocolError) as caught:
        open_record(opener, seal(sealer, bytes(MAX_CONTENT_BYTES + 1)))
    assert caught.value.reason is Reason.RECORD_OVERFLOW


@BOTH_SUITES
def test_a_key_protects_so_many_records_and_no_more(aead: Aead) -> None:
    sealer, opener = RecordSealer(aead, SECRET), RecordOpener(aead, SECRET)
    sealer.records = opener.records = MAX_RECORDS_PER_KEY - 1
    assert open_record(opener, seal(sealer, b"the last")) == b"the last"
    with pytest.raises(LocalProtocolError) as local:
        seal(sealer, b"one more")
    assert local.value.reason is Reason.SEQUENCE_LIMIT
    with pytest.raises(RemoteProtocolError) as remote:
        open_record(opener, expected_record(aead, MAX_RECORDS_PER_KEY, b"one more"))
    assert remote.value.reason is Reason.SEQUENCE_LIMIT


def test_full_records_stay_within_the_confidentiality_bound() -> None:
    assert int(2**24.5) == MAX_RECORDS_PER_KEY


def _sealed_run(aead: Aead, contents: list[bytes]) -> tuple[list[memoryview], RecordOpener]:
    """Records of the contents, each followed by its type, and an opener for them."""
    secret = bytes(range(48))
    sealer = RecordSealer(aead, secret)
    records = []
    for content in contents:
        out = memoryview(bytearray(MAX_RECORD_BYTES))
        records.append(out[: sealer.seal_into(memoryview(content), out)])
    return records, RecordOpener(aead, secret)


FULL = bytes(range(256)) * 64 + b"\x17"


@pytest.mark.parametrize("aead", list(Aead))
def test_a_run_of_full_records_is_sealed_and_opened_as_one_by_one(aead: Aead) -> None:
    one_by_one, opener = _sealed_run(aead, [FULL] * 3)
    out = memoryview(bytearray(3 * MAX_RECORD_BYTES))
    length = RecordSealer(aead, bytes(range(48))).seal_full_run([memoryview(FULL)] * 3, out)
    assert bytes(out[:length]) == b"".join(one_by_one)
    plain = memoryview(bytearray(3 * (1 << 14) + 1))
    assert opener.open_full_run(one_by_one, plain) == (3, 1 << 14)
    assert bytes(plain[: 3 << 14]) == FULL[:-1] * 3
    assert opener.records == 3


@pytest.mark.parametrize("aead", list(Aead))
def test_a_run_ends_behind_a_record_with_padding(aead: Aead) -> None:
    padded = b"switch\x17".ljust(len(FULL), b"\0")
    records, opener = _sealed_run(aead, [FULL, padded, FULL])
    plain = memoryview(bytearray(3 * (1 << 14) + 1))
    assert opener.open_full_run(records, plain) == (2, 6)
    assert bytes(plain[1 << 14 :][:6]) == b"switch"
    assert opener.open_full_run(records[2:], plain) == (1, 1 << 14)


@pytest.mark.parametrize("aead", list(Aead))
def test_a_run_ends_before_a_record_that_does_not_verify(aead: Aead) -> None:
    records, opener = _sealed_run(aead, [FULL, FULL])
    records[1][-1] ^= 1
    plain = memoryview(bytearray(2 * (1 << 14) + 1))
    assert opener.open_full_run(records, plain) == (1, 1 << 14)
    with pytest.raises(RemoteProtocolError) as caught:
        opener.open_full_run(records[1:], plain)
    assert caught.value.reason is Reason.BAD_RECORD_MAC


def test_a_run_of_another_inner_type_is_refused() -> None:
    records, opener = _sealed_run(Aead.AES_256_GCM, [FULL[:-1] + b"\x16"])
    with pytest.raises(RemoteProtocolError) as caught:
        opener.open_full_run(records, memoryview(bytearray(1 << 15)))
    assert caught.value.reason is Reason.UNEXPECTED_MESSAGE


def test_a_run_is_bound_to_what_the_key_may_protect() -> None:
    records, opener = _sealed_run(Aead.AES_256_GCM, [FULL] * 2)
    opener.records = MAX_RECORDS_PER_KEY - 1
    with pytest.raises(RemoteProtocolError) as caught:
        opener.open_full_run(records, memoryview(bytearray(1 << 16)))
    assert caught.value.reason is Reason.SEQUENCE_LIMIT
    sealer = RecordSealer(Aead.AES_256_GCM, bytes(48))
    sealer.records = MAX_RECORDS_PER_KEY - 1
    with pytest.raises(LocalProtocolError):
        sealer.seal_full_run([memoryview(FULL)] * 2, memoryview(bytearray(1 << 16)))
