"""Several sources as one link: its state, what an epoch is made from, and who is to blame."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import QkdKey
from qproxy.quantum.combine import (
    CombinedReservation,
    PathView,
    Suspects,
    choose_paths,
    combined_state,
)
from qproxy.quantum.health import LinkState
from qproxy.quantum.spent import SpentIds
from qproxy.quantum.stock import KeyStock, ReservationState, StockSettings

HEALTHY = (LinkState.HEALTHY, Reason.LINK_HEALTHY)
WEAK = (LinkState.DEGRADED, Reason.KEYS_EXHAUSTED)
DOWN = (LinkState.DOWN, Reason.KME_UNREACHABLE)


# --- one link of several ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "at_least", "together"),
    [
        ([HEALTHY], 1, HEALTHY),
        ([WEAK], 1, WEAK),
        ([DOWN], 1, DOWN),
        ([HEALTHY, HEALTHY], 1, HEALTHY),
        ([HEALTHY, HEALTHY], 2, HEALTHY),
        ([HEALTHY, WEAK], 1, WEAK),
        ([HEALTHY, DOWN], 1, (LinkState.DEGRADED, Reason.KME_UNREACHABLE)),
        ([WEAK, DOWN], 1, (LinkState.DEGRADED, Reason.KME_UNREACHABLE)),
        ([DOWN, DOWN], 1, DOWN),
        ([HEALTHY, DOWN], 2, DOWN),
        ([HEALTHY, WEAK], 2, WEAK),
        ([HEALTHY, DOWN, HEALTHY], 2, (LinkState.DEGRADED, Reason.KME_UNREACHABLE)),
        ([HEALTHY, DOWN, DOWN], 2, DOWN),
        ([HEALTHY], 2, (LinkState.DOWN, Reason.TOO_FEW_SOURCES)),
    ],
)
def test_a_link_is_as_good_as_its_paths(paths, at_least, together):
    assert combined_state(paths, at_least) == together


@given(
    st.lists(st.sampled_from([HEALTHY, WEAK, DOWN]), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_the_link_is_down_exactly_where_too_few_paths_are_left(paths, at_least):
    state, reason = combined_state(paths, at_least)
    usable = sum(path is not DOWN for path in paths)
    assert (state is LinkState.DOWN) == (usable < at_least)
    assert (state is LinkState.HEALTHY) == (all(p is HEALTHY for p in paths) and usable >= at_least)
    assert (reason is Reason.LINK_HEALTHY) == (state is LinkState.HEALTHY)


# --- which paths ------------------------------------------------------------------------------


def view(name, **changes):
    return replace(
        PathView(name=name, state=LinkState.HEALTHY, reason=Reason.LINK_HEALTHY, keys_available=10),
        **changes,
    )


def down(name, **changes):
    return view(name, state=LinkState.DOWN, reason=Reason.KME_UNREACHABLE, **changes)


def choose(*paths, suspects=None, at_least=1, keys=1, running=("a", "b"), **options):
    return choose_paths(
        paths,
        suspects or Suspects(),
        at_least=at_least,
        keys_per_epoch=keys,
        running=running,
        **options,
    )


def test_every_path_that_has_keys_goes_into_an_epoch():
    assert choose(view("a"), view("b")) == ("a", "b")
    assert choose(view("b"), view("a")) == ("b", "a")
    assert choose(view("a"), view("b", keys_available=0)) == ("a",)
    assert choose(view("a"), down("b")) == ("a",)
    assert choose(down("a"), down("b")) == ()


def test_fewer_than_at_least_are_none():
    assert choose(view("a"), down("b"), at_least=2) == ()
    assert choose(view("a"), view("b"), at_least=2) == ("a", "b")
    assert choose(view("a"), at_least=2) == ()


def test_a_path_that_is_not_in_the_running_epoch_needs_the_keys_of_two():
    few = view("b", keys_available=1)
    assert choose(view("a"), few, running=("a", "b")) == ("a", "b")
    assert choose(view("a"), few, running=("a",)) == ("a",)
    assert choose(view("a"), view("b", keys_available=2), running=("a",)) == ("a", "b")
    assert choose(view("a"), few, running=()) == ("a",)
    assert choose(view("a"), few, running=None) == ("a", "b")
    assert choose(view("a"), view("b", keys_available=7), running=("a",), keys=4) == ("a",)


def test_barred_paths_are_left_out():
    assert choose(view("a"), view("b"), barred={"a"}) == ("b",)
    assert choose(view("a"), barred={"a"}) == ()


def test_what_is_in_stock_may_be_spent_where_no_more_comes():
    assert choose(down("a"), spend_stock=True) == ("a",)
    assert choose(down("a", awaits_trial=True), spend_stock=True) == ()
    eavesdropped = view("a", state=LinkState.DOWN, reason=Reason.QBER_HIGH)
    assert choose(eavesdropped, spend_stock=True) == ()


def test_a_trial_takes_no_more_paths_along_than_an_epoch_needs():
    tried = down("b", awaits_trial=True, on_trial=True)
    assert choose(view("a"), tried, running=("a",)) == ("b",)
    assert choose(view("a"), tried, running=("a",), at_least=2) == ("a", "b")
    assert choose(view("a"), tried, view("c"), running=("a", "c"), at_least=2) == ("a", "b")


def test_a_path_that_was_proven_is_like_any_other():
    assert choose(view("a"), down("b", proven=True), running=("a",)) == ("a", "b")


def test_suspects_are_offered_alone_one_after_the_other():
    suspects = Suspects()
    assert suspects.failed(("a", "b"), 1) == ()
    assert choose(view("a"), view("b"), suspects=suspects) == ("a",)
    assert suspects.failed(("a",), 1) == ("a",)
    # "a" has failed alone: it is "b"'s turn.
    assert choose(view("a"), view("b"), suspects=suspects) == ("b",)
    suspects.confirmed(("b",))
    assert choose(view("a"), view("b"), suspects=suspects, running=("b",)) == ("a",)
    suspects.confirmed(("a",))
    assert choose(view("a"), view("b"), suspects=suspects, running=("a",)) == ("a", "b")
    assert suspects.joint_failures == 1
    suspects.confirmed(("a", "b"))
    assert (suspects.strikes, suspects.joint_failures) == ({}, 0)


def test_a_source_that_lies_beside_others_only_cannot_have_them_blamed():
    """It knows its own keys: the others are what it would have left out."""
    suspects, used = Suspects(), []
    for _attempt in range(60):
        chosen = choose(view("liar"), view("honest"), suspects=suspects, running=None)
        used.append(chosen)
        if len(chosen) > 1:
            assert suspects.failed(chosen, 1) == ()
        else:
            suspects.confirmed(chosen)
    assert used.count(("honest",)) == used.count(("liar",)) == 20


def test_paths_that_cannot_be_told_apart_are_all_to_blame():
    assert Suspects().failed(("a", "b"), 2) == ("a", "b")
    suspects = Suspects()
    assert suspects.failed(("a", "b", "c"), 2) == ()
    assert choose(view("a"), view("b"), view("c"), suspects=suspects, at_least=2) == ("a", "b")
    assert suspects.failed(("a", "b"), 2) == ("a", "b")
    chosen = choose(view("a"), view("b"), view("c"), suspects=suspects, at_least=2, barred={"a"})
    assert chosen == ("b", "c")


@given(
    liars=st.sets(st.sampled_from("abcd"), max_size=3),
    number=st.integers(1, 4),
    at_least=st.integers(1, 4),
)
def test_liars_are_found_and_the_others_are_used_while_enough_are_honest(liars, number, at_least):
    """Each liar fails every epoch it is in; what failed alone is barred from this epoch."""
    names = "abcd"[:number]
    honest = [name for name in names if name not in liars]
    suspects, barred = Suspects(), set()
    for _attempt in range(4 * number + 4):
        chosen = choose_paths(
            [view(name) for name in names],
            suspects,
            at_least=at_least,
            keys_per_epoch=1,
            running=None,
            barred=barred,
        )
        if not chosen:
            break
        if not liars & set(chosen):
            suspects.confirmed(chosen)
            assert len(chosen) >= at_least
            return
        barred.update(suspects.failed(chosen, at_least))
    # No epoch came about: then no majority of honest paths could have been told apart.
    assert len(honest) < at_least or at_least > 1


# --- keys of several stocks -------------------------------------------------------------------


def stock(*ids):
    made = KeyStock(StockSettings(), SpentIds(), 0.0)
    made.begin_draw(len(ids), 0.0)
    made.end_draw(len(ids), [QkdKey(key_id, bytearray(b"k" * 32)) for key_id in ids], 0.0)
    return made


def lent(*stocks, now=0.0):
    parts = []
    for number, each in enumerate(stocks):
        reservation = each.reserve(1, now)
        assert reservation is not None
        parts.append((f"path-{number}", reservation))
    return CombinedReservation(parts)


def test_keys_come_in_the_order_of_their_paths_and_end_together():
    one, two = stock("a1"), stock("b1")
    reservation = lent(one, two)
    assert reservation.paths == ("path-0", "path-1")
    assert [key.key_id for key in reservation.keys] == ["a1", "b1"]
    keys = reservation.keys
    reservation.offered(1.0)
    reservation.confirmed(2.0)
    assert reservation.keys == ()
    assert all(key.key == b"" for key in keys)
    assert (one.counters.confirmed, two.counters.confirmed) == (1, 1)


def test_keys_that_were_not_offered_go_back():
    one, two = stock("a1"), stock("b1")
    lent(one, two).released(1.0)
    assert (one.available, two.available) == (1, 1)


def test_one_spent_id_orphans_all():
    one, two = stock("a1"), stock("b1")
    reservation = lent(one, two)
    keys = reservation.keys
    assert two.spent.claim("b1", 0.0)
    with pytest.raises(LocalProtocolError) as caught:
        reservation.offered(1.0)
    assert caught.value.reason is Reason.KEY_SPENT
    assert all(key.key == b"" for key in keys)
    assert (one.counters.orphaned, two.counters.orphaned) == (1, 1)
    assert one.spent.spent("a1", 1.0)


def test_a_stock_that_gave_up_on_an_offer_does_not_keep_the_other_from_ending():
    one, two = stock("a1"), stock("b1")
    reservation = lent(one, two)
    reservation.offered(1.0)
    one.expire(1000.0)
    reservation.confirmed(1000.0)
    assert (one.counters.orphaned, two.counters.confirmed) == (1, 1)
    assert [part.state for part in reservation._parts] == [
        ReservationState.ORPHANED,
        ReservationState.CONFIRMED,
    ]
