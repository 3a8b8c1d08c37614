"""Facts and records: one spelling, and everything else refused."""

import dataclasses
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.audit.facts import (
    KINDS,
    MAX_ITEMS,
    MAX_NUMBER,
    Algorithm,
    ChainBroken,
    EpochCommittedFacts,
    EpochFailedFacts,
    FactsError,
    GatewayStarted,
    LinkChangedFacts,
    RecordsLost,
    decode_facts,
    encode_facts,
)
from qproxy.audit.record import (
    MAX_LINE_BYTES,
    AuditRecord,
    Chain,
    RecordError,
    Stamp,
    canonical_json,
    decode_record,
    encode_line,
    split_line,
)
from qproxy.audit.trail import audit_text, key_id_digest
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Mode
from qproxy.quantum.health import LinkState
from qproxy.tunnel.settings import Role
from tests.audit.helpers import KEY, committed, confirmed, ends, header, stamp, started

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=256)
NUMBERS = st.integers(0, MAX_NUMBER)


def every_kind():
    a, _b = ends()
    a.commit(committed(1))
    a.commit(committed(2, hybrid=False))
    a.close()
    facts = {type(fact): fact for fact in a.facts}
    failed = EpochFailedFacts(
        peer="gw-b",
        connection_id=None,
        role=Role.SERVER,
        epoch=1,
        attempt=2,
        mode=Mode.HYBRID,
        reason=Reason.KEYS_EXHAUSTED,
        remote=True,
    )
    from qproxy.audit.facts import GatewayStopped, LogResumed

    for fact in (
        failed,
        confirmed(1),
        LogResumed(version="1", torn_bytes=1, torn_sha384="ab" * 48),
        ChainBroken(problem="x", moved_to=None),
        RecordsLost(count=3, since_offset_us=4),
        GatewayStopped(reason=Reason.SHUTDOWN),
        LinkChangedFacts(
            peer="gw-b",
            key_source="kme-n",
            key_kind="etsi-qkd-014",
            key_path="north",
            keys_are=KeyNature.QKD,
            was=LinkState.HEALTHY,
            state=LinkState.DOWN,
            reason=Reason.KME_UNREACHABLE,
        ),
    ):
        facts[type(fact)] = fact
    return facts


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_record_survives_a_round_trip(kind):
    record = AuditRecord(7, stamp(12), every_kind()[kind])
    assert decode_record(canonical_json(record)) == record


def test_a_line_is_what_the_documentation_says():
    record = AuditRecord(1, stamp(5), started())
    line, digest = encode_line(record, bytes(48), Chain())
    body = (
        b'{"kem_provider":"openssl","kind":"gateway_started","offset_us":5,"sequence":1,'
        b'"time":"2026-01-31T12:00:00.000005Z","version":"0.1.0"}'
    )
    assert line == b'{"hash":"' + digest.hex().encode() + b'","record":' + body + b"}\n"
    assert digest == hashlib.sha384(bytes(48) + body).digest()
    assert json.loads(line)["record"]["sequence"] == 1


def test_a_keyed_line_is_an_hmac():
    record = AuditRecord(1, stamp(5), started())
    _line, digest = encode_line(record, b"p" * 48, Chain(KEY))
    body = canonical_json(record)
    assert digest == hmac.new(KEY, b"p" * 48 + body, "sha384").digest()
    assert Chain(KEY).algorithm is Algorithm.HMAC_SHA_384


def test_a_key_of_another_size_is_refused_and_never_shown():
    with pytest.raises(ValueError, match="expected 32 bytes, got 31"):
        Chain(KEY[:31])
    assert repr(Chain(KEY)) == "Chain()"


@given(text=PRINTABLE, count=NUMBERS, sequence=st.integers(1, MAX_NUMBER))
def test_any_printable_text_and_number_survives(text, count, sequence):
    for facts in (
        GatewayStarted(version=text, kem_provider=text[::-1]),
        RecordsLost(count=count, since_offset_us=count),
    ):
        record = AuditRecord(sequence, Stamp("2026-01-31T12:00:00.000000Z", count), facts)
        line, digest = encode_line(record, bytes(48), Chain())
        stated, body = split_line(line)
        assert stated == digest
        assert decode_record(body) == record


@given(text=st.text())
def test_audit_text_makes_any_text_recordable(text):
    encode_facts(GatewayStarted(version=audit_text(text), kem_provider=""))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", -1),
        ("epoch", True),
        ("epoch", 1.0),
        ("epoch", MAX_NUMBER + 1),
        ("epoch", None),
        ("confirmed", 1),
        ("mode", "quantum"),
        ("mode", 3),
        ("previous_mode", ""),
        ("epoch_id", "00" * 15),
        ("epoch_id", "AB" * 16),
        ("epoch_id", "ab" * 16 + "\n"),
        ("tls_group", "a\x1b[2J"),
        ("tls_group", "a\n"),
        ("tls_group", "\N{GREEK SMALL LETTER ALPHA}"),
        ("tls_group", "a" * 257),
        ("key_digests", "ab" * 16),
        ("key_digests", ["ab"]),
        ("key_digests", ["ab" * 16] * 65),
        ("key_digests", [["ab" * 16]]),
    ],
)
def test_a_field_of_another_type_is_refused_both_ways(field, value):
    facts = every_kind()[EpochCommittedFacts]
    fields = encode_facts(facts)
    assert decode_facts(facts.kind, fields) == facts
    with pytest.raises(FactsError, match=field):
        decode_facts(facts.kind, {**fields, field: value})
    if not isinstance(value, list):
        with pytest.raises(FactsError, match=field):
            encode_facts(dataclasses.replace(facts, **{field: value}))


def test_missing_and_unknown_fields_and_kinds_are_refused():
    fields = encode_facts(started())
    with pytest.raises(FactsError, match="kem_provider is missing"):
        decode_facts("gateway_started", {"version": "1"})
    with pytest.raises(FactsError, match="1 unknown field"):
        decode_facts("gateway_started", {**fields, "extra": 1})
    with pytest.raises(FactsError, match="unknown kind"):
        decode_facts("gateway_exploded", fields)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda body: body.replace(b":5,", b": 5,"), "canonical"),
        (lambda body: body.replace(b":5,", b":5.0,"), "not JSON"),
        (lambda body: body.replace(b":5,", b":5e0,"), "not JSON"),
        (lambda body: body.replace(b":5,", b":NaN,"), "not JSON"),
        (lambda body: body.replace(b":5,", b":" + b"9" * 5000 + b","), "not JSON"),
        (lambda body: body.replace(b":5,", b":" + b"9" * 30 + b","), "offset_us"),
        (lambda body: body.replace(b":5,", b":true,"), "offset_us"),
        (lambda body: body.replace(b"openssl", b"open\\u0073sl"), "canonical"),
        (lambda body: body.replace(b'"sequence":1', b'"sequence":2,"sequence":1'), "canonical"),
        (lambda body: body.replace(b"openssl", b"open\xffsl"), "not ASCII at byte"),
        (lambda body: body.replace(b"openssl", "öpenssl".encode()), "not ASCII at byte"),
        (lambda body: body.replace(b"openssl", b"open\x00sl"), "not JSON"),
        (lambda body: body.replace(b"gateway_started", b"gateway_burnt"), "unknown kind"),
        (lambda body: body.replace(b"2026-01-31", b"2026-02-31"), "time"),
        (lambda body: body.replace(b"000005Z", b"5Z"), "time"),
        (lambda body: body.replace(b'"kind":"gateway_started",', b""), "kind"),
        (lambda body: b"[" * 8000 + b"]" * 8000, "not JSON"),
        (lambda body: b'{"a":' * 3000 + b"1" + b"}" * 3000, "not JSON"),
        (lambda body: b"[1]", "expected an object"),
        (lambda body: b"", "not JSON"),
    ],
)
def test_a_record_has_one_spelling_only(change, problem):
    body = canonical_json(AuditRecord(1, stamp(5), started()))
    assert change(body) != body
    with pytest.raises(RecordError, match=problem):
        decode_record(change(body))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_a_clear_error(data):
    for call in (split_line, decode_record):
        try:
            call(data)
        except RecordError as error:
            assert str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b'{"hash":"' + b"0" * 96 + b'","record":}\n',
        b'{"hash":"' + b"G" * 96 + b'","record":{}}\n',
        b'{"hash":"' + b"A" * 96 + b'","record":{}}\n',
        b'{"hash":"' + b"0" * 95 + b'","record":{}}\n',
    ],
)
def test_a_line_of_another_shape_is_refused(line):
    with pytest.raises(RecordError):
        split_line(line)


def test_huge_and_torn_lines_are_told_apart():
    with pytest.raises(RecordError, match="longer than"):
        split_line(b"x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(RecordError, match="torn"):
        split_line(b'{"hash":"00')


def test_the_longest_record_fits_a_line():
    longest = dataclasses.replace(
        every_kind()[EpochCommittedFacts],
        peer='"' * 256,
        tls_group="\\" * 256,
        key_sources=('"' * 256,) * MAX_ITEMS,
        key_kinds=('"' * 256,) * MAX_ITEMS,
        key_paths=('"' * 256,) * MAX_ITEMS,
        keys_are=(KeyNature.PAD,) * MAX_ITEMS,
        key_digests=("ab" * 16,) * MAX_ITEMS,
        epoch=MAX_NUMBER,
        attempt=MAX_NUMBER,
        key_count=MAX_NUMBER,
    )
    line, _digest = encode_line(AuditRecord(MAX_NUMBER, stamp(1), longest), bytes(48), Chain())
    assert len(line) < MAX_LINE_BYTES


def test_key_digests_are_the_same_for_every_spelling_of_a_uuid_and_hold_no_id():
    plain = "0f8fad5b-d9cb-469f-a165-70867728950e"
    digest = hashlib.sha256(plain.encode()).hexdigest()[:32]
    for spelling in (plain, plain.upper(), plain.replace("-", ""), "{" + plain + "}"):
        assert key_id_digest(spelling) == digest
    assert key_id_digest("\ud800") != digest
    fact = next(f for f in every_kind().values() if isinstance(f, EpochCommittedFacts))
    assert "key-2" not in canonical_json(AuditRecord(1, stamp(1), fact)).decode()


def test_headers_name_format_and_algorithm():
    fields = encode_facts(header(key=KEY))
    assert fields["format"] == "qproxy-audit"
    assert fields["algorithm"] == "hmac-sha-384"
    assert "key" not in fields
