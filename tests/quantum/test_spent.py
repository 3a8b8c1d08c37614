"""Tombstones: a spent key ID is never claimed twice while it is remembered."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.quantum.spent import MAX_TOMBSTONES, SpentIds, canonical_key_id

UUID = "bc490419-7d60-487f-adc1-4ddcc177c139"


def test_the_first_claim_alone_succeeds():
    spent = SpentIds()
    assert not spent.spent(UUID, 0)
    assert spent.claim(UUID, 0)
    assert spent.spent(UUID, 1)
    assert not spent.claim(UUID, 1)
    assert spent.claim("another", 1)
    assert (len(spent), spent.refused) == (2, 1)


@pytest.mark.parametrize(
    "spelling",
    [UUID.upper(), f"{{{UUID}}}", UUID.replace("-", ""), f"urn:uuid:{UUID}"],
)
def test_another_spelling_of_a_uuid_is_the_same_id(spelling):
    spent = SpentIds()
    assert spent.claim(UUID, 0)
    assert not spent.claim(spelling, 0)


def test_hexadecimal_digits_are_the_same_id_in_capitals():
    spent = SpentIds()
    assert spent.claim("1726e9AE76234FB1dd1283d4dca1911e1f93864d70f3069e", 0)
    assert not spent.claim("1726E9ae76234fb1DD1283D4DCA1911E1F93864D70F3069E", 0)
    assert spent.claim("1726e9", 0)


def test_an_id_that_is_no_uuid_is_taken_as_it_is():
    spent = SpentIds()
    assert spent.claim("Key-1", 0)
    assert spent.claim("key-1", 0)
    assert not spent.claim("Key-1", 0)


def test_a_lone_surrogate_is_an_id_like_any_other():
    spent = SpentIds()
    assert spent.claim("\ud800", 0)
    assert not spent.claim("\ud800", 0)


def test_the_oldest_goes_first_and_is_counted():
    spent = SpentIds(max_count=2)
    for key_id in ("a", "b", "c"):
        assert spent.claim(key_id, 0)
    assert (len(spent), spent.evicted) == (2, 1)
    assert not spent.claim("b", 0)
    assert not spent.claim("c", 0)
    assert spent.claim("a", 0)


def test_a_refused_claim_does_not_renew_a_tombstone():
    spent = SpentIds(max_age_s=10)
    assert spent.claim("a", 0)
    assert not spent.claim("a", 9)
    assert spent.claim("a", 10)
    assert spent.evicted == 0


@pytest.mark.parametrize(("count", "age"), [(0, 1), (MAX_TOMBSTONES + 1, 1), (1, 0), (1, -1)])
def test_bounds_that_make_no_sense_are_refused(count, age):
    with pytest.raises(ValueError, match="max_"):
        SpentIds(count, age)


@settings(deadline=None)
@given(
    claims=st.lists(st.tuples(st.integers(0, 20), st.floats(0, 3))),
    max_count=st.integers(1, 10),
)
def test_it_is_bounded_and_refuses_all_that_it_remembers(claims, max_count):
    spent = SpentIds(max_count, max_age_s=10)
    remembered: dict[str, float] = {}
    now = 0.0
    for number, step in claims:
        now += step
        key_id = str(uuid.UUID(int=number))
        remembered = {k: t for k, t in remembered.items() if now - t < 10}
        assert spent.claim(key_id, now) == (key_id not in remembered)
        remembered.setdefault(key_id, now)
        if len(remembered) > max_count:
            del remembered[min(remembered, key=lambda k: list(remembered).index(k))]
        assert len(spent) == len(remembered) <= max_count


def test_canonical_form():
    assert canonical_key_id(UUID.upper()) == UUID
    assert canonical_key_id("x") == "x"
