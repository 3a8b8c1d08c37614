"""The ETSI GS QKD 014 codec: what it reads, what it refuses, and that it never tells a secret."""

import base64
import contextlib
import json
import math
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES
from qproxy.sources.etsi014_wire import (
    MAX_BODY_BYTES,
    MAX_LIST_ITEMS,
    ErrorMessage,
    KeyContainer,
    KeyRequest,
    Status,
    WireKey,
    decode_error,
    decode_key_container,
    decode_key_ids,
    decode_key_request,
    decode_status,
    encode_error,
    encode_key_container,
    encode_key_ids,
    encode_key_request,
    encode_status,
)

KEY = bytes(range(100, 132))
SECRET = base64.b64encode(KEY).decode()
ID = "bc490419-7d60-487f-adc1-4ddcc177c139"

# The examples of the standard, clause 6, shortened.
STATUS = {
    "source_KME_ID": "AAAABBBBCCCCDDDD",
    "target_KME_ID": "EEEEFFFFGGGGHHHH",
    "master_SAE_ID": "IIIIJJJJKKKKLLLL",
    "slave_SAE_ID": "MMMMNNNNOOOOPPPP",
    "key_size": 352,
    "stored_key_count": 25000,
    "max_key_count": 100000,
    "max_key_per_request": 128,
    "max_key_size": 1024,
    "min_key_size": 64,
    "max_SAE_ID_count": 0,
}

DECODERS = [
    decode_status,
    decode_key_container,
    decode_error,
    decode_key_request,
    decode_key_ids,
]


def dump(value):
    return json.dumps(value).encode()


def container(*keys, name="keys", **more):
    return dump({name: [{"key_ID": key_id, "key": key} for key_id, key in keys], **more})


def refused(decoder, body):
    with pytest.raises(KeySourceError) as caught:
        decoder(body)
    return caught.value


# --- what is read -------------------------------------------------------------------------


def test_the_status_of_the_standards_example():
    status = decode_status(dump(STATUS))
    assert status.source_kme_id == "AAAABBBBCCCCDDDD"
    assert status.key_size_bits == 352
    assert status.stored_key_count == 25000
    assert status.max_key_per_request == 128
    assert (status.min_key_size_bits, status.max_key_size_bits) == (64, 1024)
    assert status.extension == {}


def test_integer_ids_in_a_status_are_read_as_text():
    assert decode_status(dump({**STATUS, "slave_SAE_ID": 25})).slave_sae_id == "25"


@pytest.mark.parametrize("name", ["stored_key_count", "max_key_count", "max_SAE_ID_count"])
def test_a_status_may_leave_out_what_nothing_depends_on(name):
    body = {key: value for key, value in STATUS.items() if key != name}
    assert decode_status(dump(body)).source_kme_id == "AAAABBBBCCCCDDDD"


@pytest.mark.parametrize("name", ["keys", "Keys"])
def test_keys_are_read_under_both_names_of_the_standard(name):
    (key,) = decode_key_container(container((ID, SECRET), name=name)).keys
    assert (key.key_id, bytes(key.key)) == (ID, KEY)


def test_keys_under_both_names_at_once_are_refused():
    body = dump({"keys": [], "Keys": []})
    assert refused(decode_key_container, body).reason is Reason.KME_INVALID_RESPONSE


def test_extensions_of_keys_are_ignored_and_that_of_the_container_is_kept():
    body = dump(
        {
            "keys": [{"key_ID": ID, "key_ID_extension": {}, "key": SECRET, "key_extension": 1}],
            "key_container_extension": {"simulated": True},
        }
    )
    assert decode_key_container(body).extension == {"simulated": True}


def test_an_empty_request_body_is_an_empty_request():
    assert decode_key_request(b"") == decode_key_request(b"{}") == KeyRequest()


@given(
    st.builds(
        Status,
        *[st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)] * 4,
        st.integers(1, 10**6),
        st.none() | st.integers(0, 10**9),
        st.none() | st.integers(0, 10**9),
        *[st.integers(1, 10**6)] * 3,
        st.integers(0, 10),
        st.dictionaries(st.text(max_size=5), st.integers() | st.booleans(), max_size=3),
    )
)
def test_status_round_trip(status):
    assert decode_status(encode_status(status)) == status


@given(st.lists(st.binary(min_size=1, max_size=MAX_QKD_KEY_BYTES), max_size=4))
def test_key_container_round_trip(secrets):
    keys = tuple(WireKey(f"id-{i}", bytearray(secret)) for i, secret in enumerate(secrets))
    back = decode_key_container(encode_key_container(KeyContainer(keys, {"simulated": True})))
    assert [(k.key_id, k.key) for k in back.keys] == [(k.key_id, k.key) for k in keys]
    assert back.extension == {"simulated": True}


def test_key_request_round_trip():
    request = KeyRequest(3, 1024, ("a", "b"), ({"abc_route_type": "direct"},), ({"x": [1, None]},))
    assert decode_key_request(encode_key_request(request)) == request


@given(st.lists(st.uuids().map(str), min_size=1, max_size=5, unique=True))
def test_key_ids_round_trip(key_ids):
    assert decode_key_ids(encode_key_ids(key_ids)) == tuple(key_ids)


def test_error_round_trip():
    error = decode_error(encode_error("no", [{"a": 1}]))
    assert (error.message, error.details) == ("no", ({"a": 1},))


@pytest.mark.parametrize("details", ["text", {"a": 1}, 3, ["text"], [{"a": 1}, None], [[]]])
def test_an_error_is_understood_by_its_message_whatever_its_details_are(details):
    error = decode_error(dump({"message": ErrorMessage.KEYS_NOT_FOUND, "details": details}))
    assert (error.message, error.details) == (ErrorMessage.KEYS_NOT_FOUND, ())


@pytest.mark.parametrize("message", ErrorMessage)
def test_prescribed_messages_are_recognised_whatever_their_capitals(message):
    assert ErrorMessage.meant_by(f" {message.upper()}. ") is message
    assert ErrorMessage.meant_by(f"{message} not") is None


# --- what is refused ----------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
NAMES = st.sampled_from(
    ["keys", "Keys", "key_IDs", "key_ID", "key", "message", "details", "number", "size", *STATUS]
)
NEAR = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([ID, SECRET, "AA=="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)


@pytest.mark.parametrize("decoder", DECODERS)
@given(body=st.binary() | JSON.map(dump) | NEAR.map(dump) | st.text().map(str.encode))
def test_whatever_comes_a_decoder_returns_or_raises_key_source_error(decoder, body):
    with contextlib.suppress(KeySourceError):
        decoder(body)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'"keys"',
        b"<html>500</html>",
        b"\xff\xfe{",
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b'{"message":"a","message":"b"}',
        b'{"number":' + b"9" * 5000 + b"}",
        b'{"key_size":NaN}',
        b'{"message":"\\ud800"}',
        b"{" + b" " * MAX_BODY_BYTES + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_broken_documents_are_refused(decoder, body):
    refused(decoder, body)


@pytest.mark.parametrize(
    "change",
    [
        {"key_size": 0},
        {"key_size": "256"},
        {"key_size": 256.0},
        {"key_size": True},
        {"key_size": None},
        {"key_size": 2**53},
        {"stored_key_count": -1},
        {"max_key_per_request": 0},
        {"source_KME_ID": ""},
        {"source_KME_ID": ["a"]},
        {"source_KME_ID": "a" * 257},
        {"target_KME_ID": -1},
        {"status_extension": []},
    ],
    ids=str,
)
def test_a_wrong_status_member_is_refused_by_name(change):
    error = refused(decode_status, dump({**STATUS, **change}))
    assert error.reason is Reason.KME_INVALID_RESPONSE
    assert next(iter(change)) in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!!!",
        SECRET + "=",
        SECRET[:-1],
        SECRET + "\n",
        " " + SECRET,
        SECRET.replace("Z", "_"),
        "AB==",  # padding bits that are not zero
        "é===",
        base64.b64encode(bytes(MAX_QKD_KEY_BYTES + 1)).decode(),
    ],
)
def test_a_key_that_is_no_canonical_base64_of_a_sane_length_is_refused(text):
    error = refused(decode_key_container, container((ID, text)))
    assert error.reason is Reason.KME_INVALID_RESPONSE


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"keys": {}},
        {"keys": [1]},
        {"keys": [{"key_ID": ID}]},
        {"keys": [{"key": SECRET}]},
        {"keys": [{"key_ID": 7, "key": SECRET}]},
        {"keys": [{"key_ID": "", "key": SECRET}]},
        {"keys": [{"key_ID": "a" * (MAX_KEY_ID_BYTES + 1), "key": SECRET}]},
        {"keys": [{"key_ID": "\ud800", "key": SECRET}]},
        {"keys": [{"key_ID": ID, "key": SECRET}] * 2},
        {"keys": [{"key_ID": f"{i}", "key": "AA=="} for i in range(1025)]},
        {"keys": [], "key_container_extension": "x"},
    ],
    ids=lambda body: str(body)[:50],
)
def test_a_wrong_key_container_is_refused(body):
    assert refused(decode_key_container, dump(body)).reason is Reason.KME_INVALID_RESPONSE


@pytest.mark.parametrize(
    "body",
    [
        {"number": "1"},
        {"number": -1},
        {"size": 256.5},
        {"siez": 256},
        {"additional_slave_SAE_IDs": "a"},
        {"additional_slave_SAE_IDs": [""]},
        {"additional_slave_SAE_IDs": ["a"] * (MAX_LIST_ITEMS + 1)},
        {"extension_mandatory": {}},
        {"extension_optional": [1]},
    ],
    ids=str,
)
def test_a_wrong_key_request_is_refused(body):
    error = refused(decode_key_request, dump(body))
    assert error.reason is Reason.KME_BAD_REQUEST
    assert not error.retryable


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"key_IDs": []},
        {"key_IDs": [ID]},
        {"key_IDs": [{"key_id": ID}]},
        {"key_IDs": [{"key_ID": ID}, {"key_ID": ID}]},
        {"key_IDs": [{"key_ID": ID}], "more": 1},
        {"key_IDs": [{"key_ID": ID}], "key_IDs_extension": 1},
    ],
    ids=str,
)
def test_wrong_key_ids_are_refused(body):
    assert refused(decode_key_ids, dump(body)).reason is Reason.KME_BAD_REQUEST


def test_a_limit_on_keys_fits_into_the_limit_on_documents():
    """The largest permitted single key and the most permitted ordinary ones are both readable."""
    most = container(*[(f"{i:036d}", SECRET) for i in range(1024)])
    largest = container((ID, base64.b64encode(bytes(MAX_QKD_KEY_BYTES)).decode()))
    assert len(decode_key_container(most).keys) == 1024
    assert math.isclose(len(decode_key_container(largest).keys[0].key), MAX_QKD_KEY_BYTES)


# --- secrets ------------------------------------------------------------------------------


LEAKS = [
    container((ID, SECRET), (ID, SECRET)),
    container((ID, SECRET), ("b", SECRET + "!")),
    container((ID, SECRET + "!")),
    container((SECRET * 10, ID)),
    dump({"keys": [{"key_ID": ID, "key": SECRET, "x": 1}, SECRET]}),
    dump({"keys": SECRET}),
    dump({SECRET: 1}),
    container((ID, SECRET))[:-1],
    container((ID, SECRET)) + b"}",
    b'{"message":' + SECRET.encode(),
]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("body", LEAKS, ids=range(len(LEAKS)))
def test_no_error_nor_anything_chained_to_it_holds_what_came(decoder, body):
    error = refused(decoder, body)
    seen = []
    link: BaseException | None = error
    while link is not None:
        seen.append(f"{link!r} {vars(link)!r} {link.args!r}")
        link = link.__cause__ or link.__context__
    seen.extend(traceback.format_exception(error))
    assert SECRET not in "".join(seen)
    assert len(seen) > 1


def test_keys_read_before_a_bad_one_are_wiped(monkeypatch):
    made = []

    class Spy(WireKey):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("qproxy.sources.etsi014_wire.WireKey", Spy)
    refused(decode_key_container, container((ID, SECRET), ("b", SECRET), ("c", "?")))
    assert [bytes(key.key) for key in made] == [b"", b""]


def test_no_repr_shows_a_key():
    key = WireKey(ID, bytearray(KEY))
    shown = repr(KeyContainer((key,))) + repr(decode_error(encode_error(SECRET)))
    assert SECRET not in shown
    assert repr(KEY)[2:-1] not in shown
    assert ID in shown


def test_what_is_wiped_is_gone():
    key = bytearray(KEY)
    view = memoryview(key).toreadonly()
    del view
    KeyContainer((WireKey(ID, key),)).wipe()
    assert key == b""
