"""How many keys a run takes, and what it asks for: said before, and never exceeded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.kme_check.plan import BEYOND_LIMITS, Limits, make_plan, steps

USUAL = Limits(256, 64, 1024, 128, 0, told=True)
limits = st.builds(
    lambda low, step, more, number, saes: Limits(
        low + step, low, low + step + more, number, saes, told=True
    ),
    st.integers(1, 4096), st.integers(0, 4096), st.integers(0, 4096), st.integers(1, 10**6),
    st.integers(0, 10**6),
)  # fmt: skip


def test_the_usual_plan():
    plan = make_plan([USUAL, USUAL], 320)
    assert (plan.gives, plan.worst, plan.left_out) == (16, 290, {})


def test_the_greediest_request_is_left_out_first_and_at_both_ends():
    plan = make_plan([USUAL, USUAL], 100)
    assert set(plan.left_out) == {"too-many"}
    assert plan.gives == 16
    assert plan.worst <= 100


@given(st.lists(limits, min_size=1, max_size=2), st.integers(0, 500))
def test_no_plan_exceeds_its_bound(each, max_keys):
    plan = make_plan(each, max_keys)
    assert plan.gives <= plan.worst <= max_keys
    names = {step.name for chosen in plan.steps for step in chosen}
    assert names.isdisjoint(plan.left_out)


@given(limits)
def test_what_conforming_kmes_are_asked_for_is_within_their_limits(each):
    size = each.another_size_bits
    if each.key_size_bits % 8 == 0:
        assert size % 8 == 0
    assert each.min_key_size_bits <= size <= each.max_key_size_bits or size == each.key_size_bits
    assert each.odd_size_bits != each.key_size_bits
    for step in steps(each):
        assert step.gives <= each.max_key_per_request
        assert (step.gives == 0) == (step.name in REFUSED)


REFUSED = {"size-odd-get", "size-odd-post", "size-large", "size-small", "mandatory", "additional",
           "unknown-sae", "malformed", "too-many"}  # fmt: skip


def test_another_size_where_there_is_one():
    assert USUAL.another_size_bits == 512
    assert Limits(256, 64, 256, 1).another_size_bits == 128
    assert Limits(256, 256, 256, 1).another_size_bits == 256


def test_beyond_limits_that_nobody_told_nothing_is_tried():
    names = {step.name for step in steps(Limits())}
    assert names.isdisjoint(BEYOND_LIMITS)


@pytest.mark.parametrize("count", [0, 3, 63])
def test_one_more_additional_sae_than_allowed(count):
    found = {step.name: step for step in steps(Limits(256, 64, 1024, 8, count, told=True))}
    sent = found["additional"].json["additional_slave_SAE_IDs"]
    assert len(set(sent)) == count + 1


@pytest.mark.parametrize("count", [64, 10**6])
def test_too_many_additional_saes_to_exceed_are_not_tried(count):
    names = {step.name for step in steps(Limits(256, 64, 1024, 8, count, told=True))}
    assert "additional" not in names
