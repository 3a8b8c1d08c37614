"""The store between enc_keys and dec_keys: once, to whom it was meant, not for ever."""

import pytest

from qproxy.sim.store import KeysNotFound, KeyStore, NotNamed, SaePair, StoreFull
from qproxy.sources.etsi014_wire import WireKey

PAIR = SaePair("gw-a", "gw-b")


def key(key_id, value=b"k" * 32):
    return WireKey(key_id, bytearray(value))


@pytest.fixture
def store():
    store = KeyStore(max_age_s=60.0, max_unclaimed=3)
    store.add(PAIR, [key("one"), key("two")], 0.0)
    return store


def test_the_slave_takes_each_key_once_in_the_order_asked(store):
    taken = store.take(PAIR, ["two", "one"], 1.0)
    assert [k.key_id for k in taken] == ["two", "one"]
    assert bytes(taken[0].key) == b"k" * 32
    with pytest.raises(KeysNotFound):
        store.take(PAIR, ["one"], 1.0)


def test_out_of_step_the_slave_finds_other_bytes_under_the_same_id(store):
    (taken,) = store.take(PAIR, ["one"], 1.0, in_step=False)
    assert taken.key_id == "one"
    assert len(taken.key) == 32
    assert taken.key != bytearray(b"k" * 32)
    (taken,) = store.take(PAIR, ["two"], 1.0)
    assert taken.key == bytearray(b"k" * 32)


def test_one_missing_key_leaves_the_others(store):
    with pytest.raises(KeysNotFound):
        store.take(PAIR, ["one", "three"], 1.0)
    assert len(store.take(PAIR, ["one", "two"], 1.0)) == 2


def test_only_the_slave_that_was_named_gets_it(store):
    for other in (SaePair("gw-a", "gw-c"), SaePair("gw-b", "gw-a")):
        with pytest.raises(NotNamed):
            store.take(other, ["one"], 1.0)
    assert len(store.take(PAIR, ["one"], 1.0)) == 1


def test_the_slave_must_name_the_master_that_took_it(store):
    with pytest.raises(KeysNotFound):
        store.take(SaePair("gw-c", "gw-b"), ["one"], 1.0)
    assert store.unclaimed(PAIR, 1.0) == 2


def test_a_key_of_another_slave_among_ones_own_takes_nothing(store):
    store.add(SaePair("gw-a", "gw-c"), [key("theirs")], 0.0)
    with pytest.raises(NotNamed):
        store.take(PAIR, ["one", "theirs"], 1.0)
    assert store.unclaimed(PAIR, 1.0) == 2


def test_all_pairs_together_have_a_bound_too():
    store = KeyStore(max_age_s=60.0, max_unclaimed=3, max_waiting=4)
    other = SaePair("gw-a", "gw-c")
    store.add(PAIR, [key("one"), key("two")], 0.0)
    store.check_room(other, 2, 0.0)
    with pytest.raises(StoreFull):
        store.check_room(PAIR, 1, 0.0, also=[other, SaePair("gw-a", "gw-d")])
    store.add(other, [key("three"), key("four")], 0.0)
    with pytest.raises(StoreFull):
        store.add(PAIR, [key("five")], 0.0)
    store.take(other, ["three"], 1.0)
    store.add(PAIR, [key("five")], 1.0)


def test_keys_that_nobody_fetches_are_wiped_when_their_time_is_over(store):
    late = key("late")
    store.add(PAIR, [late], 30.0)
    assert store.unclaimed(PAIR, 59.9) == 3
    assert store.unclaimed(PAIR, 60.0) == 1
    with pytest.raises(KeysNotFound):
        store.take(PAIR, ["one"], 60.0)
    assert late.key
    assert store.unclaimed(PAIR, 90.0) == 0
    assert not late.key


def test_at_the_bound_new_keys_are_refused_and_old_ones_stay(store):
    with pytest.raises(StoreFull):
        store.add(PAIR, [key("three"), key("four")], 1.0)
    store.add(PAIR, [key("three")], 1.0)
    with pytest.raises(StoreFull):
        store.check_room(PAIR, 1, 1.0)
    assert len(store.take(PAIR, ["one", "two", "three"], 1.0)) == 3
    store.check_room(PAIR, 3, 1.0)


def test_one_pair_at_its_bound_does_not_stop_another(store):
    store.add(PAIR, [key("three")], 1.0)
    store.add(SaePair("gw-c", "gw-b"), [key("other")], 1.0)
    assert store.unclaimed(SaePair("gw-c", "gw-b"), 1.0) == 1


@pytest.mark.parametrize(
    ("skew_s", "at_s", "found"),
    [
        (0.0, 59.9, True),
        (30.0, 29.9, True),
        (30.0, 30.1, False),  # old before its time
        (-30.0, 28.9, False),  # made in the future, by that clock
        (-30.0, 29.1, True),
        (-0.5, 0.0, True),
    ],
)
def test_the_age_of_a_key_is_told_by_the_clock_of_the_slaves_kme(store, skew_s, at_s, found):
    if found:
        assert len(store.take(PAIR, ["one"], at_s, skew_s=skew_s)) == 1
        return
    with pytest.raises(KeysNotFound):
        store.take(PAIR, ["one"], at_s, skew_s=skew_s)
    assert store.unclaimed(PAIR, at_s) == 2  # it may be found yet


def test_what_a_slaves_kme_loses_is_wiped_and_gone(store):
    theirs, ours = key("theirs"), key("ours")
    store.add(SaePair("gw-b", "gw-a"), [theirs], 0.0)
    store.add(PAIR, [ours], 0.0)
    assert store.drop({"gw-b"}) == 3
    assert not ours.key
    with pytest.raises(KeysNotFound):
        store.take(PAIR, ["ours"], 1.0)
    assert len(store.take(SaePair("gw-b", "gw-a"), ["theirs"], 1.0)) == 1
