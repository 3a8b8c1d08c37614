"""SKIP's JSON and URLs: what is read, what is refused, and that no error quotes what came."""

import json

import pytest

from qproxy.errors import KeySourceError, Reason
from qproxy.sources.skip_wire import (
    MAX_PATTERNS,
    Capabilities,
    capabilities_url,
    decode_capabilities,
    decode_key,
    is_key_id,
    key_url,
    new_key_url,
)

# The examples of draft-cisco-skip-02, figures 4 and 6.
CAPABILITIES = {
    "entropy": True,
    "key": True,
    "algorithm": "PRF",
    "localSystemID": "Alice",
    "remoteSystemID": ["Bob", "Eve"],
}
KEY = {
    "keyId": "1726e9AE76234FB1dd1283d4dca1911e1f93864d70f3069e",
    "key": "ad229dfb8a276e74c1f3b6c09349a69fb2fed73c541270663f0e5cbbfb031670",
}
SECRET = "5ec7e7" * 10


def encoded(document):
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def refused(decode, document):
    with pytest.raises(KeySourceError) as caught:
        decode(encoded(document))
    assert caught.value.reason is Reason.KME_INVALID_RESPONSE
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None
    return str(caught.value)


def test_the_drafts_examples_are_read():
    assert decode_capabilities(encoded(CAPABILITIES)) == Capabilities(
        True, True, "PRF", "Alice", ("Bob", "Eve")
    )
    key = decode_key(encoded(KEY))
    assert (key.key_id, key.key.hex()) == (KEY["keyId"], KEY["key"])
    assert KEY["key"] not in repr(key)
    key.wipe()
    assert key.key == b""


def test_members_of_later_versions_are_passed_over():
    assert decode_key(encoded(KEY | {"expires": 5})).key_id == KEY["keyId"]
    decode_capabilities(encoded(CAPABILITIES | {"version": 3}))


def test_urls_are_those_of_table_2():
    base = "https://kp:8443"
    assert capabilities_url(base) == f"{base}/capabilities"
    assert new_key_url(base, "Bob", 128) == f"{base}/key?remoteSystemID=Bob&size=128"
    assert key_url(base, "aB01", "Alice") == f"{base}/key/aB01?remoteSystemID=Alice"


def test_system_ids_cannot_change_a_url():
    url = new_key_url("https://kp", "a/b&size=8#?% ", 256)
    assert url == "https://kp/key?remoteSystemID=a%2Fb%26size%3D8%23%3F%25%20&size=256"


@pytest.mark.parametrize("text", ["ab", "AB01", "00" * 64])
def test_key_ids_are_whole_bytes_in_hexadecimal(text):
    assert is_key_id(text)


@pytest.mark.parametrize(
    "text", ["", "a", "abc", "ag", "ab ", " ab", "ab\n", "00" * 65, "../ab", "ab/cd", "٣٣", "0x10"]
)
def test_anything_else_is_no_key_id(text):
    assert not is_key_id(text)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b"<html>",
        b"\xff\xfe",
        b'{"keyId": "ab", "key": "' + SECRET.encode(),
        b'{"keyId":"ab","keyId":"cd","key":"' + SECRET.encode() + b'"}',
        {"key": SECRET},
        {"keyId": "ab"},
        {"keyId": 12, "key": SECRET},
        {"keyId": None, "key": SECRET},
        {"keyId": SECRET + "xx", "key": SECRET},
        {"keyId": "abc", "key": SECRET},
        {"keyId": "ab" * 65, "key": SECRET},
        {"keyId": "ab", "key": ""},
        {"keyId": "ab", "key": SECRET + "0"},
        {"keyId": "ab", "key": f"{SECRET} 00"},
        {"keyId": "ab", "key": f"0x{SECRET}"},
        {"keyId": "ab", "key": [SECRET]},
        {"keyId": "ab", "key": "00" * 1025},
        {"keyId": "ab", "key": "\u0663" * 64},
    ],
    ids=range(21),
)
def test_anything_but_a_key_is_refused(document):
    refused(decode_key, document)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "true"},
        {"key": 1},
        {"entropy": None},
        {"algorithm": 7},
        {"algorithm": "a\x1b[31m"},
        {"algorithm": "\ud800"},
        {"algorithm": "a" * 256},
        {"localSystemID": ""},
        {"localSystemID": ["Alice"]},
        {"remoteSystemID": "Bob"},
        {"remoteSystemID": []},
        {"remoteSystemID": ["Bob", 5]},
        {"remoteSystemID": ["Bob", ""]},
        {"remoteSystemID": ["x"] * 1025},
    ],
    ids=str,
)
def test_capabilities_of_other_types_are_refused(change):
    refused(decode_capabilities, CAPABILITIES | change)
    (name,) = change
    refused(decode_capabilities, {k: v for k, v in CAPABILITIES.items() if k != name})


@pytest.mark.parametrize(
    ("entry", "system_id", "served"),
    [
        ("Bob", "Bob", True),
        ("Bob", "bob", False),
        ("Bob", "Bobby", False),
        ("KP_*_LOC1", "KP_BOB_LOC1", True),
        ("KP_*_LOC1", "KP_BOB_LOC2", False),
        ("KP_?", "KP_1", True),
        ("KP_[12]", "KP_2", True),
        ("KP_[!12]", "KP_2", False),
        ("KP_[", "KP_[", True),
        ("a.c", "abc", False),
        ("(a+)+$", "a" * 40, False),
    ],
)
def test_remote_systems_may_be_patterns(entry, system_id, served):
    capabilities = decode_capabilities(encoded(CAPABILITIES | {"remoteSystemID": [entry]}))
    assert capabilities.serves(system_id) is served


def test_a_hostile_pattern_takes_no_time():
    # Backtracking on this would outlive any test run.
    capabilities = decode_capabilities(encoded(CAPABILITIES | {"remoteSystemID": ["*a" * 127]}))
    assert not capabilities.serves("a" * 250 + "b")


def test_patterns_beyond_a_limit_are_not_heeded_and_names_are():
    entries = [f"KP_{number}_*" for number in range(MAX_PATTERNS + 1)] + ["Bob"]
    capabilities = decode_capabilities(encoded(CAPABILITIES | {"remoteSystemID": entries}))
    assert capabilities.serves(f"KP_{MAX_PATTERNS - 1}_x")
    assert not capabilities.serves(f"KP_{MAX_PATTERNS}_x")
    assert capabilities.serves("Bob")
