"""Announced keys at the slave's side: bounded over all tunnels, given out once (rule R13)."""

from __future__ import annotations

import pytest

from qproxy.errors import Reason
from qproxy.keys import QkdKey
from qproxy.quantum.redeemed import RedeemedKeys, RedeemedSettings


def key(key_id: str) -> QkdKey:
    return QkdKey(key_id, bytearray(b"k" * 32))


def table(**settings: float) -> RedeemedKeys:
    return RedeemedKeys(RedeemedSettings(**settings), now=0.0)  # type: ignore[arg-type]


def hold(keys: RedeemedKeys, key_id: str, now: float = 0.0) -> QkdKey:
    assert keys.admit(key_id, now) is None
    held = key(key_id)
    keys.fetched(held, now)
    return held


def test_r13_a_held_key_is_given_out_once() -> None:
    keys = table()
    held = hold(keys, "a")
    assert keys.take("a", 1.0) is held
    assert keys.take("a", 1.0) is None


def test_r13_ids_and_keys_are_bounded_together() -> None:
    keys = table(max_keys=3)
    hold(keys, "a")
    assert keys.admit("b", 0.0) is None
    assert keys.admit("c", 0.0) is None
    assert keys.fetching == 2
    assert keys.admit("d", 0.0) is Reason.LIMIT_REACHED
    keys.not_fetched(["b"])
    assert keys.admit("d", 10.0) is None
    assert keys.refused == 1


def test_r13_the_rate_is_bounded_over_reconnects() -> None:
    keys = table(max_keys=4, rate_keys_per_s=2.0)
    for number in range(4):
        hold(keys, f"a{number}")
        assert keys.take(f"a{number}", 0.0) is not None
    assert keys.admit("b", 0.0) is Reason.LIMIT_REACHED
    assert keys.admit("b", 0.5) is None
    assert keys.admit("c", 0.5) is Reason.LIMIT_REACHED


def test_r13_keys_that_nobody_offers_are_wiped() -> None:
    keys = table(max_age_s=10.0)
    old, young = hold(keys, "old", 0.0), hold(keys, "young", 5.0)
    keys.expire(10.0)
    assert not old.key
    assert young.key
    assert keys.take("old", 10.0) is None
    assert keys.aged_out == 1


@pytest.mark.parametrize("again", ["a", "A"])
def test_r13_one_id_twice_is_fetched_once(again: str) -> None:
    first = "00000000-0000-4000-8000-00000000000a"
    keys = table()
    assert keys.admit(first, 0.0) is None
    assert keys.is_fetching(first)
    assert keys.admit(first[:-1] + again, 0.0) is Reason.LIMIT_REACHED
    keys.fetched(key(first), 0.0)
    assert keys.admit(first[:-1] + again, 0.0) is Reason.LIMIT_REACHED
    assert len(keys) == 1


def test_closing_wipes_everything() -> None:
    keys = table()
    held = hold(keys, "a")
    keys.close()
    assert not held.key
    assert len(keys) == 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="max_keys"):
        RedeemedSettings(max_keys=0)
    with pytest.raises(ValueError, match="more than 0"):
        RedeemedSettings(max_age_s=0)
