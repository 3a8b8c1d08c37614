"""The stock of keys: bounded, each key used once, and wiped on every way out."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import QkdKey
from qproxy.quantum.spent import SpentIds
from qproxy.quantum.stock import (
    MAX_KEYS_PER_RESERVATION,
    MAX_RESERVATIONS,
    KeyStock,
    ReservationState,
    StockCounters,
    StockSettings,
)

SETTINGS = StockSettings(low_water=4, high_water=10, max_age_s=100, offer_timeout_s=20)


def key(key_id: str, size: int = 32) -> QkdKey:
    return QkdKey(key_id, bytearray(b"\xa5" * size))


def keys(*ids: str) -> list[QkdKey]:
    return [key(key_id) for key_id in ids]


def wiped(one: QkdKey) -> bool:
    return not any(one.key)


def make(settings: StockSettings = SETTINGS, spent: SpentIds | None = None) -> KeyStock:
    return KeyStock(settings, spent if spent is not None else SpentIds(), 0.0)


def filled(*ids: str) -> KeyStock:
    stock = make()
    stock.begin_draw(len(ids), 0)
    assert stock.end_draw(len(ids), keys(*ids), 0) == len(ids)
    return stock


# --- a key's life ----------------------------------------------------------------------------


def test_a_key_that_went_into_an_epoch_is_wiped_and_burnt():
    stock = filled("a", "b")
    reservation = stock.reserve(1, 1)
    (lent,) = reservation.keys
    assert reservation.key_ids == ("a",)
    assert (stock.available, stock.lent) == (1, 1)
    assert not stock.spent.spent("a", 1)
    reservation.offered(1)
    assert stock.spent.spent("a", 1)
    assert any(lent.key)
    reservation.confirmed(2)
    assert wiped(lent)
    assert reservation.keys == ()
    assert stock.counters == StockCounters(drawn=2, confirmed=1)
    assert stock.lent == 0


def test_a_key_whose_epoch_failed_is_orphaned_and_never_comes_back():
    stock = filled("a")
    reservation = stock.reserve(1, 1)
    (lent,) = reservation.keys
    reservation.offered(1)
    with pytest.raises(LocalProtocolError):
        reservation.released(2)
    reservation.orphaned(2)
    assert wiped(lent)
    assert stock.counters == StockCounters(drawn=1, orphaned=1)
    again = key("a")
    assert stock.end_draw(0, [again], 3) == 0
    assert wiped(again)
    assert stock.counters.refused == 1


def test_a_key_that_was_not_offered_goes_back_with_its_age():
    stock = filled("a", "b")
    stock.end_draw(0, keys("c"), 0.5)
    reservation = stock.reserve(2, 1)
    reservation.released(2)
    assert stock.available == 3
    assert stock.reserve(2, 3).key_ids == ("a", "b")
    assert not stock.spent.spent("a", 3)


def test_an_offer_that_names_a_spent_id_is_not_sent_and_its_keys_are_wiped():
    stock = filled("a", "b")
    reservation = stock.reserve(2, 1)
    lent = reservation.keys
    assert stock.spent.claim("b", 1)
    with pytest.raises(LocalProtocolError) as caught:
        reservation.offered(1)
    assert caught.value.reason is Reason.KEY_SPENT
    assert reservation.state is ReservationState.ORPHANED
    assert all(map(wiped, lent))
    assert stock.spent.spent("a", 1)
    assert stock.counters.orphaned == 2


@pytest.mark.parametrize("ending", ["confirmed", "orphaned", "offered", "released"])
def test_an_ended_reservation_cannot_end_again(ending):
    stock = filled("a")
    reservation = stock.reserve(1, 1)
    reservation.offered(1)
    reservation.confirmed(1)
    with pytest.raises(LocalProtocolError):
        getattr(reservation, ending)(2)
    assert stock.counters == StockCounters(drawn=1, confirmed=1)


def test_a_key_cannot_be_confirmed_before_it_was_offered():
    reservation = filled("a").reserve(1, 1)
    with pytest.raises(LocalProtocolError):
        reservation.confirmed(1)


def test_a_reservation_takes_all_or_nothing():
    stock = filled("a", "b")
    assert stock.reserve(3, 1) is None
    assert stock.available == 2


@pytest.mark.parametrize("number", [0, -1, MAX_KEYS_PER_RESERVATION + 1])
def test_a_reservation_of_no_sensible_size_is_a_bug(number):
    with pytest.raises(LocalProtocolError):
        make().reserve(number, 0)


def test_reservations_are_bounded():
    stock = make(StockSettings(low_water=1, high_water=MAX_RESERVATIONS + 1, max_draw=2000))
    stock.end_draw(0, [key(str(n)) for n in range(MAX_RESERVATIONS + 1)], 0)
    for _ in range(MAX_RESERVATIONS):
        assert stock.reserve(1, 0) is not None
    assert stock.reserve(1, 0) is None


# --- what is taken in ------------------------------------------------------------------------


def test_a_key_id_that_is_here_or_lent_or_spent_is_not_taken_in():
    spent = SpentIds()
    spent.claim("spent", 0)
    stock = make(spent=spent)
    stock.end_draw(0, keys("here", "lent"), 0)
    stock.announce(1)
    stock.discard(["here"])
    stock.end_draw(0, keys("here"), 0)
    assert stock.reserve(1, 0).key_ids == ("lent",)
    double = keys("here", "lent", "spent", "fresh", "fresh")
    assert stock.end_draw(0, double, 1) == 1
    assert [wiped(one) for one in double] == [True, True, True, False, True]
    assert stock.counters.refused == 4


def test_a_key_too_short_for_hybrid_is_not_taken_in():
    stock = make()
    short = key("a", 31)
    assert stock.end_draw(0, [short], 0) == 0
    assert wiped(short)


def test_keys_beyond_high_water_are_wiped():
    stock = make()
    many = [key(str(n)) for n in range(15)]
    assert stock.end_draw(0, many, 0) == 10
    assert [wiped(one) for one in many] == [False] * 10 + [True] * 5


# --- age -------------------------------------------------------------------------------------


def test_keys_age_out_and_are_wiped():
    stock = make()
    old, young = key("old"), key("young")
    stock.end_draw(0, [old], 0)
    stock.end_draw(0, [young], 50)
    assert stock.next_expiry() == 100
    stock.expire(99.9)
    assert stock.available == 2
    stock.expire(100)
    assert (wiped(old), wiped(young)) == (True, False)
    assert stock.counters.aged_out == 1
    assert stock.reserve(2, 100) is None


def test_an_offer_that_nobody_ends_is_orphaned():
    stock = filled("a")
    reservation = stock.reserve(1, 1)
    (lent,) = reservation.keys
    reservation.offered(5)
    assert stock.next_expiry() == 25
    stock.expire(25)
    assert wiped(lent)
    assert reservation.state is ReservationState.ORPHANED
    assert stock.counters.orphaned == 1
    with pytest.raises(LocalProtocolError):
        reservation.confirmed(26)


def test_a_reservation_that_nobody_offers_goes_back():
    stock = filled("a")
    reservation = stock.reserve(1, 1)
    stock.expire(21)
    assert reservation.state is ReservationState.RELEASED
    assert stock.available == 1


def test_a_key_too_old_when_it_comes_back_is_wiped():
    stock = filled("a")
    reservation = stock.reserve(1, 90)
    (lent,) = reservation.keys
    reservation.released(100)
    assert wiped(lent)
    assert stock.counters.aged_out == 1


def test_closing_wipes_everything_and_takes_nothing_in():
    stock = filled("a", "b", "c")
    offered, reserved = stock.reserve(1, 1), stock.reserve(1, 1)
    held = [*offered.keys, *reserved.keys]
    offered.offered(1)
    stock.close(2)
    stock.close(2)
    assert all(map(wiped, held))
    assert (stock.available, stock.lent, stock.want(3)) == (0, 0, 0)
    assert stock.counters == StockCounters(drawn=3, orphaned=1, discarded=2)
    late = key("late")
    assert stock.end_draw(1, [late], 3) == 0
    assert wiped(late)


# --- how many to draw ------------------------------------------------------------------------


def test_it_fills_to_high_water_and_starts_again_below_low_water():
    stock = make()
    assert stock.want(0) == 10
    stock.end_draw(0, [key(str(n)) for n in range(10)], 0)
    assert stock.want(0) == 0
    for left in range(9, 3, -1):
        stock.reserve(1, 1).offered(1)
        assert stock.available == left
        assert stock.want(1) == 0
    stock.reserve(1, 1)
    assert stock.want(1) == 7


def test_calls_under_way_count_as_if_they_were_here():
    stock = make()
    stock.begin_draw(6, 0)
    assert stock.want(0) == 4
    stock.begin_draw(4, 0)
    assert stock.want(0) == 0
    stock.end_draw(6, [], 1)
    stock.end_draw(4, [], 1)
    assert stock.want(1) == 10


def test_a_call_asks_for_no_more_than_its_limit_and_the_source_has():
    stock = make(StockSettings(low_water=4, high_water=10, max_draw=3))
    assert stock.want(0) == 3
    stock.link_report(0, stored_key_count=2, key_rate_keys_per_s=None)
    assert stock.want(0) == 2
    stock.link_report(0, stored_key_count=0, key_rate_keys_per_s=None)
    assert stock.want(0) == 1


def drain(stock: KeyStock, until: float, step: float = 0.1) -> int:
    """Draw whatever it wants and use it at once; return how many keys that took."""
    drawn = 0
    for n in range(round(until / step)):
        now = n * step
        if number := stock.want(now):
            stock.begin_draw(number, now)
            fresh = [key(f"{n}-{i}") for i in range(number)]
            stock.end_draw(number, fresh, now)
            drawn += number
        while reservation := stock.reserve(1, now):
            reservation.offered(now)
            reservation.confirmed(now)
    return drawn


@pytest.mark.parametrize("rate", [2.0, 5.0, 20.0])
def test_drawing_keeps_to_the_rate_of_the_link(rate):
    stock = make()
    stock.link_report(0, stored_key_count=None, key_rate_keys_per_s=rate)
    drawn = drain(stock, 100)
    assert rate * 0.9 * 100 * 0.95 <= drawn <= rate * 0.9 * 100 + 10


def test_a_rate_of_nothing_leaves_a_trickle():
    stock = make()
    stock.link_report(0, stored_key_count=None, key_rate_keys_per_s=0.0)
    assert 95 <= drain(stock, 100) <= 110


# --- announcing ------------------------------------------------------------------------------


def test_ids_are_announced_once_oldest_first_and_used_first():
    stock = filled("a", "b", "c")
    assert stock.announce(2) == ("a", "b")
    assert stock.announce(2) == ("c",)
    assert stock.announce(2) == ()
    assert stock.announced == 3
    assert not stock.spent.spent("a", 0)


def test_keys_the_peer_holds_are_used_first_and_discarded_when_it_restarts():
    stock = filled("a", "b", "c", "d")
    assert stock.announce(3) == ("a", "b", "c")
    stock.held_by_peer(["b", "nobody's"])
    first = stock.reserve(2, 0)
    assert first.key_ids == ("b", "a")
    first.released(0)
    fresh = stock.reserve(2, 0, fresh=True)
    assert fresh.key_ids == ("d", "c")
    fresh.released(0)
    stock.held_by_peer(["a"])
    assert stock.discard_held() == 2
    assert stock.available == 2


def test_what_the_peer_holds_is_kept_where_the_rest_is_in_doubt():
    stock = filled("a", "b", "c", "d")
    stock.announce(2)
    stock.held_by_peer(["b"])
    assert stock.discard_unless_held(["a", "b", "c", "nobody's"]) == 2
    assert stock.reserve(2, 0).key_ids == ("b", "d")


def test_a_key_the_peer_knows_of_is_used_before_an_older_one():
    stock = filled("a", "b")
    reservation = stock.reserve(1, 0)
    assert stock.announce(1) == ("b",)
    reservation.released(1)
    assert stock.reserve(2, 2).key_ids == ("b", "a")


def test_keys_the_peer_could_not_redeem_are_wiped():
    stock = make()
    here = key("a")
    stock.end_draw(0, [here], 0)
    assert stock.discard(["a", "unknown", "a"]) == 1
    assert wiped(here)
    assert stock.counters.discarded == 1


# --- use -------------------------------------------------------------------------------------


def test_the_rate_of_use_and_the_time_to_exhaustion():
    stock = make()
    assert stock.time_to_exhaustion_s(0) == math.inf
    for n in range(300):
        stock.end_draw(0, [key(str(n))], n)
        reservation = stock.reserve(1, n)
        reservation.offered(n)
        reservation.confirmed(n)
    assert stock.use_keys_per_s(300) == pytest.approx(1.0, rel=0.05)
    stock.end_draw(0, [key(f"x{n}") for n in range(10)], 300)
    assert stock.time_to_exhaustion_s(300) == pytest.approx(10, rel=0.05)
    assert stock.time_to_exhaustion_s(300, supply_keys_per_s=2) == math.inf
    assert stock.use_keys_per_s(1000) < 0.01


@pytest.mark.parametrize(
    "bad",
    [
        {"low_water": 0},
        {"low_water": 5, "high_water": 4},
        {"high_water": 5000},
        {"max_draw": 0},
        {"rate_share": 0.0},
        {"rate_share": 1.1},
        {"max_age_s": 0.0},
        {"offer_timeout_s": -1.0},
        {"min_rate_keys_per_s": 0.0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(bad):
    with pytest.raises(ValueError, match="stock: "):
        StockSettings(**bad)


# --- any sequence at all ---------------------------------------------------------------------


class StockMachine(RuleBasedStateMachine):
    """Whatever is called in whatever order: no key is lost, used twice or left unwiped."""

    reservations = Bundle("reservations")

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.stock = make()
        self.every: list[QkdKey] = []
        self.offered_ids: list[str] = []
        self.next_id = 0

    @rule(number=st.integers(0, 12), reuse=st.booleans())
    def draw(self, number, reuse):
        fresh = []
        for _ in range(number):
            if not reuse or not self.every:
                self.next_id += 1
            fresh.append(key(f"k{self.next_id}"))
        self.every += fresh
        self.stock.begin_draw(number, self.now)
        self.stock.end_draw(number, fresh, self.now)

    @rule(step=st.floats(0, 60))
    def wait(self, step):
        self.now += step
        self.stock.expire(self.now)

    @rule(target=reservations, number=st.integers(1, 4))
    def reserve(self, number):
        return self.stock.reserve(number, self.now)

    @rule(reservation=reservations)
    def offer(self, reservation):
        if reservation is not None and reservation.state is ReservationState.RESERVED:
            reservation.offered(self.now)
            self.offered_ids += reservation.key_ids

    @rule(reservation=consumes(reservations), good=st.booleans())
    def end(self, reservation, good):
        if reservation is None:
            return
        if reservation.state is ReservationState.OFFERED:
            (reservation.confirmed if good else reservation.orphaned)(self.now)
        elif reservation.state is ReservationState.RESERVED:
            reservation.released(self.now)

    @rule()
    def discard_one(self):
        self.stock.discard([f"k{self.next_id}"])

    @invariant()
    def every_key_is_accounted_for(self):
        counters = self.stock.counters
        ways_out = counters.confirmed + counters.orphaned + counters.aged_out + counters.discarded
        assert counters.drawn == self.stock.available + self.stock.lent + ways_out
        assert counters.drawn + counters.refused == len(self.every)

    @invariant()
    def what_is_gone_is_wiped(self):
        alive = sum(not wiped(one) for one in self.every)
        assert alive == self.stock.available + self.stock.lent

    @invariant()
    def no_id_is_offered_twice(self):
        assert len(self.offered_ids) == len(set(self.offered_ids))

    @invariant()
    def it_is_bounded(self):
        assert self.stock.available <= SETTINGS.high_water
        assert 0 <= self.stock.want(self.now) <= SETTINGS.high_water

    def teardown(self):
        self.stock.close(self.now)
        assert all(map(wiped, self.every))


TestAnySequence = StockMachine.TestCase
TestAnySequence.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


def test_everything_is_discarded_when_the_ends_are_out_of_step():
    stock = filled("a", "b", "c")
    assert stock.discard_all() == 3
    assert stock.available == 0
    assert stock.counters.discarded == 3
