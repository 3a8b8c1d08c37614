"""What one site writes for the other: read back whole, and nothing else is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.kme_check.hand_over import (
    MAX_FILE_BYTES,
    HandOver,
    HandOverError,
    decode_hand_over,
    encode_hand_over,
)
from qproxy.kme_check.plan import Limits
from qproxy.kme_check.probe import gather
from tests.kme_check.flawed import flawed_pair


async def test_a_file_reads_back_as_it_was_written_and_holds_no_key(tmp_path):
    async with flawed_pair(tmp_path) as ends:
        seen = await gather(ends[:1], 320, lambda _plan: None)
        secrets = ends[0].pair.secrets
    data = encode_hand_over(seen.hand_over)
    assert decode_hand_over(data) == HandOver(
        "gw-a",
        "gw-b",
        seen.hand_over.secret,
        Limits(256, 256, 256, 8),
        seen.hand_over.keys,
    )
    assert len(secrets) == 3 * 8
    assert [secret for secret in secrets if secret in data.decode()] == []


async def test_with_both_ends_there_is_nothing_to_hand_over(tmp_path):
    async with flawed_pair(tmp_path) as ends:
        assert (await gather(ends, 320, lambda _plan: None)).hand_over is None


def document(**changes):
    key = {"key_ID": "one", "size": 256, "hash": "ab" * 32}
    return {
        "qproxy_kme_check": 1,
        "master_SAE_ID": "gw-a",
        "slave_SAE_ID": "gw-b",
        "secret": "00" * 32,
        "key_size": 256,
        "max_key_per_request": 8,
        "keys": {"get-default": [key]},
    } | changes


def test_the_least_there_is():
    found = decode_hand_over(json.dumps(document()).encode())
    assert [key.key_id for key in found.keys["get-default"]] == ["one"]
    assert found.keys["post-several"] == ()


KEY = {"key_ID": "one", "size": 256, "hash": "ab" * 32}


@pytest.mark.parametrize(
    "changes",
    [
        {"qproxy_kme_check": 2},
        {"master_SAE_ID": 1},
        {"master_SAE_ID": "x" * 300},
        {"slave_SAE_ID": "a\x1b[2J"},
        {"secret": "00"},
        {"secret": "zz" * 32},
        {"key_size": 0},
        {"key_size": True},
        {"max_key_per_request": -1},
        {"keys": []},
        {"keys": {"get-default": 1}},
        {"keys": {"get-default": [1]}},
        {"keys": {"get-default": [KEY | {"key_ID": "\x00"}]}},
        {"keys": {"get-default": [KEY | {"size": 10**9}]}},
        {"keys": {"get-default": [KEY | {"hash": "ab"}]}},
        {"keys": {"get-default": [KEY] * 257}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_anything_else_is_refused(changes):
    with pytest.raises(HandOverError):
        decode_hand_over(json.dumps(document(**changes)).encode())


@given(st.binary(max_size=100) | st.just(b"{" + b" " * MAX_FILE_BYTES + b"}"))
def test_whatever_comes_it_is_one_error(data):
    with pytest.raises(HandOverError):
        decode_hand_over(data)
