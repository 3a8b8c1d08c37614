"""The key schedule against an implementation of its own, made of HMAC alone."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.crypto import labels, schedule
from qproxy.crypto.schedule import ChainKey, PendingEpoch
from qproxy.modes import Mode

KEM_SECRET = bytes(range(32))
EXPORTER = bytes(range(100, 148))
QKD_KEYS = (b"\x11" * 32, b"\x22" * 40)
INPUTS: dict[str, Any] = {
    "mode": Mode.HYBRID,
    "offer": b"the offer",
    "accept": b"the accept",
    "kem_secret": KEM_SECRET,
    "exporter": EXPORTER,
    "qkd_keys": QKD_KEYS,
}


def derive(chain: ChainKey | None = None, **changes: Any) -> PendingEpoch:
    inputs = INPUTS | changes
    return (chain or ChainKey()).derive(inputs.pop("mode"), **inputs)


def outputs(pending: PendingEpoch) -> dict[str, bytes]:
    return {
        "chain": bytes(pending._next_chain_key),
        "client traffic": bytes(pending.client_traffic_secret),
        "server traffic": bytes(pending.server_traffic_secret),
        "client confirm": bytes(pending._client_confirm_key),
        "server confirm": bytes(pending._server_confirm_key),
        "epoch id": pending.epoch_id,
    }


# --- the same thing once more, from the specification ------------------------------------------


def lp(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def hkdf_expand(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 §2.3 with SHA-384."""
    block, output, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(secret, block + info + bytes([counter]), "sha384")
        output += block
        counter += 1
    return output[:length]


def expected_outputs(
    chain_key: bytes, previous: bytes, epoch: int, mode_code: int, qkd_keys: tuple[bytes, ...]
) -> dict[str, bytes]:
    transcript = hashlib.sha384(
        lp(b"qproxy1 transcript") + lp(previous) + lp(b"the offer") + lp(b"the accept")
    ).digest()
    qkd_key = b"".join(lp(key) for key in qkd_keys)
    ikm = lp(KEM_SECRET) + lp(EXPORTER) + lp(qkd_key)
    secret = hmac.digest(chain_key, ikm, "sha384")
    context = bytes([mode_code]) + epoch.to_bytes(4, "big") + transcript

    def output(label: bytes, length: int = 48) -> bytes:
        info = length.to_bytes(2, "big") + lp(b"qproxy1 " + label) + lp(context)
        return hkdf_expand(secret, info, length)

    return {
        "chain": output(b"chain"),
        "client traffic": output(b"client traffic"),
        "server traffic": output(b"server traffic"),
        "client confirm": output(b"client confirm"),
        "server confirm": output(b"server confirm"),
        "epoch id": output(b"epoch id", 16),
    }


@pytest.mark.parametrize("psk", [None, b"\x07" * 32])
@pytest.mark.parametrize(
    ("mode", "code", "qkd_keys"), [(Mode.HYBRID, 2, QKD_KEYS), (Mode.CLASSICAL_ONLY, 1, ())]
)
def test_outputs_are_those_of_the_specification(
    psk: bytes | None, mode: Mode, code: int, qkd_keys: tuple[bytes, ...]
) -> None:
    first = hmac.digest(b"qproxy1 init", psk or bytes(32), "sha384")
    chain = ChainKey(psk)
    pending = derive(chain, mode=mode, qkd_keys=qkd_keys)
    expected = expected_outputs(first, b"", 1, code, qkd_keys)
    assert outputs(pending) == expected
    transcript = pending.transcript_hash
    assert pending.client_mac() == hmac.digest(expected["client confirm"], transcript, "sha384")
    assert pending.server_mac() == hmac.digest(expected["server confirm"], transcript, "sha384")
    chain.commit(pending)
    second = derive(chain, mode=mode, qkd_keys=qkd_keys)
    assert outputs(second) == expected_outputs(expected["chain"], transcript, 2, code, qkd_keys)


def test_known_answer() -> None:
    """A value that no refactoring may change: a change means a new protocol version."""
    pending = derive()
    digest = hashlib.sha384(b"".join(outputs(pending).values())).hexdigest()
    assert pending.epoch_id.hex() == "b010c35502ab414ed418e4ea4b3f962b"
    assert digest[:32] == "32d841761534065d5487d6420e9faa51"


@pytest.mark.parametrize(
    "change",
    [
        {"offer": b"the 0ffer"},
        {"accept": b"the accep"},
        {"kem_secret": bytes(32)},
        {"exporter": b""},
        {"exporter": bytes(48)},
        {"qkd_keys": QKD_KEYS[::-1]},
        {"qkd_keys": QKD_KEYS[:1]},
        {"qkd_keys": (b"\x11" * 32 + b"\x22" * 40,)},
        {"qkd_keys": (b"\x11" * 31, b"\x11" + b"\x22" * 40)},
        {"mode": Mode.CLASSICAL_ONLY, "qkd_keys": ()},
        {"offer": b"the offerthe ", "accept": b"accept"},
    ],
    ids=",".join,
)
def test_every_input_changes_every_output(change: dict[str, Any]) -> None:
    before, after = outputs(derive()), outputs(derive(**change))
    assert all(before[name] != after[name] for name in before)


def test_every_output_depends_on_the_chain() -> None:
    before, after = outputs(derive()), outputs(derive(ChainKey(b"\x01" * 32)))
    assert all(before[name] != after[name] for name in before)


def test_outputs_differ_from_each_other() -> None:
    values = outputs(derive())
    assert len(set(values.values())) == len(values)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=4),
    st.lists(st.binary(min_size=1, max_size=40), max_size=4),
)
def test_qkd_keys_are_joined_injectively(one: list[bytes], two: list[bytes]) -> None:
    same = schedule.encode_qkd_keys(one) == schedule.encode_qkd_keys(two)
    assert same == (one == two)


@pytest.mark.parametrize(
    "change",
    [
        {"kem_secret": bytes(31)},
        {"kem_secret": b""},
        {"exporter": bytes(47)},
        {"qkd_keys": ()},
        {"qkd_keys": (b"",)},
        {"qkd_keys": (bytes(32), b"")},
        {"mode": Mode.CLASSICAL_ONLY},
    ],
    ids=str,
)
def test_inputs_of_another_shape_are_refused_and_move_nothing(change: dict[str, Any]) -> None:
    chain = ChainKey()
    before = bytes(chain._chain_key)
    with pytest.raises(ValueError, match=r"expected|hybrid"):
        derive(chain, **change)
    assert (bytes(chain._chain_key), chain.epoch, chain.transcript_hash) == (before, 1, b"")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_psk_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="expected 32"):
        ChainKey(bytes(size))


def test_a_pending_epoch_that_failed_leaves_the_chain_where_it_was() -> None:
    chain = ChainKey()
    derive(chain, offer=b"another attempt").wipe()
    assert outputs(derive(chain)) == outputs(derive())


def test_commit_erases_what_it_replaces() -> None:
    chain = ChainKey()
    old = chain._chain_key
    pending = derive(chain)
    secrets = [
        pending._next_chain_key,
        pending._client_confirm_key,
        pending._server_confirm_key,
        pending.client_traffic_secret,
        pending.server_traffic_secret,
    ]
    next_key = bytes(pending._next_chain_key)
    chain.commit(pending)
    assert not any(map(any, [old, *secrets]))
    assert (bytes(chain._chain_key), chain.epoch) == (next_key, 2)
    kept = chain._chain_key
    chain.wipe()
    assert not any(kept)


def test_an_epoch_cannot_be_committed_twice() -> None:
    chain = ChainKey()
    pending = derive(chain)
    chain.commit(pending)
    with pytest.raises(ValueError, match="expected epoch 2, got 1"):
        chain.commit(pending)


def test_macs_of_the_two_ends_cannot_stand_for_each_other() -> None:
    pending = derive()
    assert pending.client_mac_is(pending.client_mac())
    assert pending.server_mac_is(pending.server_mac())
    assert not pending.client_mac_is(pending.server_mac())
    assert not pending.server_mac_is(pending.client_mac())
    for wrong in (b"", pending.client_mac()[:-1], pending.client_mac() + b"\0", bytes(48)):
        assert not pending.client_mac_is(wrong)


def test_history_is_a_chain() -> None:
    one = schedule.history_hash(b"", b"offer", b"reject")
    assert one != schedule.history_hash(b"", b"offerr", b"eject")
    assert one != schedule.history_hash(one, b"offer", b"reject")
    assert one != schedule.transcript_hash(b"", b"offer", b"reject")


def test_no_label_is_used_twice() -> None:
    values = [value for value in vars(labels).values() if isinstance(value, bytes)]
    assert len(values) == len(set(values)) == 14


def test_reprs_hold_no_secret() -> None:
    chain = ChainKey(b"\x07" * 32)
    pending = derive(chain)
    assert repr(chain) == "ChainKey(epoch=1)"
    assert repr(pending) == "PendingEpoch(epoch=1, mode=hybrid)"
