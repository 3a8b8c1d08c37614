"""The network as its SAEs see it: rates, paths, and everything that can happen to it."""

import dataclasses

import pytest

from qproxy.config.network import KeyFormatConfig, RouteConfig, RoutePolicy
from qproxy.sim import events
from qproxy.sim.events import EVENTS, EventError, Store, parse_event
from qproxy.sim.network import KmeMode
from qproxy.sim.routing import disjoint_paths, nodes_along, shortest_path
from qproxy.sim.span import LinkState
from tests.sim.helpers import Trial, fixed, network_of
from tests.sim.test_events import example

AB = ("kme-a", "kme-b")


def two_paths(policy=RoutePolicy.FAILOVER, **spans):
    """A short way over r1, a long one over r2 and r3, with no key stored at the start."""
    empty = {"initial_buffer_bits": 0}
    return network_of(
        [
            fixed("north-1", "kme-a", "r1", **empty),
            fixed("north-2", "r1", "kme-b", **{**empty, **spans}),
            fixed("south-1", "kme-a", "r2", **empty),
            fixed("south-2", "r2", "r3", key_rate_bps=512.0, **empty),
            fixed("south-3", "r3", "kme-b", **empty),
        ],
        [RouteConfig(name="main", between=AB, policy=policy)],
        relays=("r1", "r2", "r3"),
    )


NORTH, SOUTH = ("north-1", "north-2"), ("south-1", "south-2", "south-3")


# --- Paths ------------------------------------------------------------------------------------


def test_the_shortest_path_goes_over_relays_only():
    ends = {"x": ("a", "c"), "y": ("c", "b"), "p": ("a", "r"), "q": ("r", "s"), "t": ("s", "b")}
    assert shortest_path(ends, "a", "b", {"r", "s"}) == ("p", "q", "t")
    assert shortest_path(ends, "a", "b", {"r", "s", "c"}) == ("x", "y")
    assert shortest_path(ends, "a", "b", {"r"}) is None


def test_disjoint_paths_share_no_span_and_no_relay():
    ends = {
        "direct": ("a", "b"),
        "again": ("b", "a"),
        "p": ("a", "r"),
        "q": ("r", "b"),
        "q2": ("r", "b"),
        "s": ("a", "s"),
        "t": ("s", "r"),
    }
    paths = disjoint_paths(ends, "a", "b", {"r", "s"}, 8)
    assert paths == [("direct",), ("again",), ("p", "q")]
    assert disjoint_paths(ends, "a", "b", {"r", "s"}, 2) == paths[:2]


def test_spans_that_do_not_join_are_no_path():
    ends = {"p": ("a", "r"), "q": ("r", "b")}
    assert nodes_along(("p", "q"), ends, "a") == ["a", "r", "b"]
    assert nodes_along(("q", "p"), ends, "b") == ["b", "r", "a"]
    assert nodes_along(("q",), ends, "a") is None
    assert nodes_along(("x",), ends, "a") is None


def test_a_route_without_paths_finds_those_that_are_disjoint():
    assert Trial(two_paths()).network.routes["main"].paths == (NORTH, SOUTH)
    pinned = Trial(two_paths(RoutePolicy.PINNED))
    assert pinned.network.routes["main"].paths == (NORTH,)


# --- Rates and stores -------------------------------------------------------------------------


def test_end_to_end_the_rate_is_that_of_the_slowest_span():
    trial = Trial(two_paths(RoutePolicy.PINNED, key_rate_bps=256.0))
    assert trial.status()["status_extension"]["key_rate_bps"] == 256.0
    shared = 0
    for _ in range(100):
        trial.let_pass(1.0)
        shared += trial.share()
    assert shared == 100
    assert trial.draw() is None


def test_what_is_stored_is_bounded_by_the_smallest_store():
    trial = Trial(two_paths(max_buffer_bits=2560))
    trial.let_pass(1e6)
    status = trial.status()
    assert (status["stored_key_count"], status["max_key_count"]) == (10, 10)
    assert trial.share(number=10) == 10
    # The preferred path is used up; the other one has 16 Mbit.
    assert trial.status()["stored_key_count"] == 62_500


def test_a_request_that_no_path_can_meet_alone_takes_nothing():
    trial = Trial(two_paths())
    trial.let_pass(1.0)
    before = trial.network.describe(trial.now)
    assert trial.draw(number=11) is None
    assert trial.network.describe(trial.now) == before


def test_the_status_is_of_the_two_kmes_and_says_simulated():
    status = Trial(two_paths()).status("gw-b", "gw-a")
    assert (status["source_KME_ID"], status["target_KME_ID"]) == ("kme-b", "kme-a")
    assert status["status_extension"]["simulated"] is True


def test_sizes_are_those_of_the_network():
    config = dataclasses.replace(
        two_paths(), keys=KeyFormatConfig(key_size_bits=128, max_key_per_request=5)
    )
    trial = Trial(config)
    trial.let_pass(100.0)
    assert trial.status()["key_size"] == 128
    assert trial.ask("gw-a", "gw-b", "enc_keys", {"number": 6})[0] == 400


# --- Routing ----------------------------------------------------------------------------------


def test_a_cut_span_is_routed_around_and_taken_again_when_it_is_whole():
    trial = Trial(two_paths())
    trial.let_pass(10.0)
    route = trial.network.routes["main"]
    assert route.report(trial.now).path == NORTH
    trial.apply(events.Cut("north-2"))
    report = route.report(trial.now)
    assert (report.path, report.state, report.key_rate_bps) == (SOUTH, LinkState.UP, 512.0)
    assert trial.share() == 1
    assert {span for span, _ in trial.wire} == set(SOUTH)
    trial.apply(events.Restore(span="north-2"))
    assert route.report(trial.now).path == NORTH


def test_a_pinned_route_uses_up_what_is_stored_and_then_has_nothing():
    trial = Trial(two_paths(RoutePolicy.PINNED))
    trial.let_pass(1.0)
    trial.apply(events.Cut("north-2"))
    trial.let_pass(100.0)
    extension = trial.status()["status_extension"]
    assert (extension["link"], extension["key_rate_bps"], extension["qber"]) == ("cut", 0.0, 0.01)
    assert trial.share(number=10) == 10
    assert trial.draw() is None


def test_with_every_path_cut_what_is_stored_is_still_given():
    trial = Trial(two_paths())
    trial.let_pass(1.0)
    for span in ("north-1", "south-2"):
        trial.apply(events.Cut(span))
    assert trial.share(number=10) == 10
    assert trial.share(number=2) == 2
    assert trial.draw() is None
    assert trial.status()["status_extension"]["link"] == "cut"


def test_two_pairs_of_saes_use_paths_that_share_nothing():
    config = dataclasses.replace(
        two_paths(),
        routes={
            "main": RouteConfig(name="main", between=AB, paths=(NORTH,)),
            "other": RouteConfig(name="other", between=AB, paths=(SOUTH,), saes=("a-2", "b-2")),
        },
    )
    saes = {"gw-a": "kme-a", "gw-b": "kme-b", "a-2": "kme-a", "b-2": "kme-b"}
    trial = Trial(config, saes=saes)
    trial.let_pass(10.0)
    trial.apply(events.Compromise("r1"))
    assert trial.share("gw-a", "gw-b") == 1
    assert {span for span, _ in trial.wire} == set(NORTH)
    trial.wire.clear()
    assert trial.share("a-2", "b-2") == 1
    assert {span for span, _ in trial.wire} == set(SOUTH)
    assert len(trial.network.relays["r1"].copies) == 1  # it saw the first key only
    trial.wire.clear()
    assert trial.share("a-2", "gw-b") == 1  # only one of the two is named
    assert {span for span, _ in trial.wire} == set(NORTH)


def test_three_kmes_each_pair_with_a_route_of_its_own():
    saes = {"gw-a": "kme-a", "gw-b": "kme-b", "gw-c": "kme-c"}
    config = network_of(
        [fixed("ab", "kme-a", "kme-b"), fixed("bc", "kme-b", "kme-c")],
        [
            RouteConfig(name="ab", between=AB),
            RouteConfig(name="bc", between=("kme-b", "kme-c")),
        ],
    )
    trial = Trial(config, saes=saes)
    assert trial.share("gw-a", "gw-b") == trial.share("gw-c", "gw-b") == 1
    assert trial.status("gw-c", "gw-b")["target_KME_ID"] == "kme-b"
    assert trial.ask("gw-a", "gw-c", "status")[0] == 400


# --- Events -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", EVENTS)
def test_every_event_can_happen_to_a_network_and_is_refused_where_its_target_is_none(word):
    trial = Trial(two_paths())
    trial.let_pass(1.0)
    targets = {"span": "north-1", "relay": "r1", "kme": "kme-b", "route": "main"}
    document = {"event": word}
    for member in events.members_of(EVENTS[word]):
        if member.name in targets and (word != "restore" or member.name == "span"):
            document[member.name] = targets[member.name]
        elif member.name not in targets:
            document[member.name] = example(member)
    before = trial.network.describe(trial.now)
    trial.apply(parse_event(document))
    if word not in {"restore", "restart"}:
        assert trial.network.describe(trial.now) != before
    target = next(name for name in document if name in targets)
    trial.apply(events.Restore())
    before = trial.network.describe(trial.now)
    with pytest.raises(EventError) as caught:
        trial.apply(parse_event(document | {target: "nowhere"}))
    assert caught.value.key == target
    assert "expected one of this network" in caught.value.message
    assert trial.network.describe(trial.now) == before


def test_a_target_may_be_left_out_only_where_there_is_one():
    trial = Trial(two_paths())
    with pytest.raises(EventError, match="expected one of this network"):
        trial.apply(events.Cut())
    trial.apply(events.Desync())
    assert trial.network.routes["main"].in_step is False
    single = Trial(network_of([fixed("one", *AB)]))
    single.apply(events.Cut())
    assert single.status()["status_extension"]["link"] == "cut"


def test_an_eavesdropper_on_one_span_shows_in_the_qber_of_the_route_and_stops_it():
    trial = Trial(two_paths(RoutePolicy.PINNED))
    trial.apply(events.Intercept(0.2, "north-2"))
    extension = trial.status()["status_extension"]
    assert extension["qber"] == pytest.approx(0.06, abs=0.002)
    assert (extension["link"], extension["key_rate_bps"] > 0) == ("degraded", True)
    trial.apply(events.Intercept(1.0, "north-2"))
    extension = trial.status()["status_extension"]
    assert extension["qber"] == pytest.approx(0.25, abs=0.01)
    assert (extension["link"], extension["key_rate_bps"]) == ("aborted", 0.0)


def test_stores_out_of_step_give_two_keys_under_one_id_until_restored():
    trial = Trial(two_paths())
    trial.let_pass(10.0)
    trial.apply(events.Desync("main"))
    drawn = trial.draw()
    found = trial.redeem(list(drawn))
    assert found.keys() == drawn.keys()
    assert found != drawn
    trial.apply(events.Restore(route="main"))
    assert trial.share() == 1


def test_a_kme_that_crashes_and_keeps_its_store_goes_on_where_it_was():
    trial = Trial(two_paths())
    trial.let_pass(10.0)
    drawn = trial.draw()
    stored = trial.status()["stored_key_count"]
    trial.apply(events.Crash("kme-b", Store.KEPT))
    assert trial.network.modes == {"kme-a": KmeMode.UP, "kme-b": KmeMode.KILLED}
    trial.apply(events.Restart("kme-b"))
    assert trial.modes == [("kme-b", KmeMode.KILLED), ("kme-b", KmeMode.UP)]
    assert trial.redeem(list(drawn)) == drawn
    assert trial.status()["stored_key_count"] == stored


def test_a_kme_that_loses_its_store_has_neither_waiting_keys_nor_key_of_its_spans():
    trial = Trial(two_paths())
    trial.let_pass(10.0)
    to_b, to_a = trial.draw("gw-a", "gw-b"), trial.draw("gw-b", "gw-a")
    trial.apply(events.Crash("kme-b", Store.LOST))
    trial.apply(events.Restart("kme-b"))
    assert trial.redeem(list(to_b)) is None
    assert trial.redeem(list(to_a), "gw-a", "gw-b") == to_a  # those waited at kme-a
    assert trial.status()["stored_key_count"] == 0
    assert trial.network.spans["north-1"].stored_bits(trial.now) > 0  # not one of its spans
    trial.let_pass(1.0)
    assert trial.share() == 1


def test_a_clock_that_is_ahead_loses_keys_and_one_behind_waits_for_them():
    trial = Trial(two_paths())
    trial.let_pass(10.0)
    trial.apply(events.Skew("kme-b", 3600.0))
    drawn = trial.draw()
    assert trial.redeem(list(drawn)) is None
    trial.apply(events.Skew("kme-b", -10.0))
    assert trial.redeem(list(drawn)) is None
    trial.let_pass(10.0)
    assert trial.redeem(list(drawn)) == drawn
    # Both clocks wrong by as much is as if none were.
    trial.apply(events.Skew("kme-b", 3600.0))
    trial.apply(events.Skew("kme-a", 3600.0))
    assert trial.share() == 1
    trial.apply(events.Restore(kme="kme-a"))
    drawn = trial.draw()
    assert trial.redeem(list(drawn)) is None
    trial.apply(events.Restore(kme="kme-b"))
    assert trial.redeem(list(drawn)) == drawn


def test_draining_one_span_empties_the_routes_over_it_and_draining_all_all():
    trial = Trial(two_paths())
    trial.let_pass(10.0)
    trial.apply(events.Drain("north-1"))
    assert trial.network.routes["main"].report(trial.now).path == SOUTH
    trial.apply(events.Drain())
    assert trial.draw() is None


def test_restoring_everything_restores_everything():
    trial = Trial(two_paths())
    whole = trial.network.describe(trial.now)
    for event in (
        events.Cut("north-1"),
        events.Jam("south-1", 0.3),
        events.Intercept(1.0, "south-2"),
        events.Compromise("r1"),
        events.Hang("kme-a"),
        events.Skew("kme-b", 5.0),
        events.Desync(),
    ):
        trial.apply(event)
    assert trial.network.describe(trial.now) != whole
    trial.apply(events.Restore())
    assert trial.network.describe(trial.now) == whole


def test_nothing_that_can_be_seen_from_outside_holds_a_key():
    trial = Trial(two_paths())
    trial.let_pass(100.0)
    trial.apply(events.Compromise("r1"))
    drawn = trial.draw(number=3)
    seen = repr(trial.network.describe(trial.now)) + repr(trial.network.relays["r1"].copies)
    for key in drawn.values():
        assert key.hex() not in seen
        assert repr(key) not in seen
