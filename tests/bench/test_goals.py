import re
from dataclasses import replace

import pytest

from bench.catalogue import BENCHMARKS
from bench.goals import GOALS, RatioGoal, Verdict, judge, outcomes, overall
from bench.pairs import Kind
from bench.record import Figure, Record
from tests.bench.helpers import make_record

KINDS = {
    "qproxy": Kind.SUBJECT,
    "slow": Kind.PEER,
    "fast": Kind.PEER,
    "spiped": Kind.OTHER,
    "direct": Kind.LIMIT,
}
FASTER = RatioGoal("bulk", "1.5 times", "throughput", "down", "mb_per_s", 1.5, at_least=True)
CHEAPER = RatioGoal("CPU", "0.8 of it", "throughput", "down", "mb_per_s", 0.8)


def record(*, ours: list[float], fast: list[float] | None = None) -> Record:
    speeds = {
        "qproxy": ours,
        "slow": [10.0] * 3,
        "fast": fast or [100.0] * 3,
        "spiped": [500.0] * 3,
        "direct": [9000.0] * 3,
    }
    return make_record(speeds, KINDS)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([150.0, 160.0, 170.0], Verdict.MET),
        ([149.0, 149.0, 149.9], Verdict.MISSED),
        ([149.0, 160.0, 170.0], Verdict.UNDECIDED),
        ([100.0, 100.0, 999.0], Verdict.UNDECIDED),
    ],
)
def test_a_goal_is_met_or_missed_only_where_every_round_says_so(ours, verdict) -> None:
    (outcome,) = outcomes([record(ours=ours)], [FASTER])
    assert outcome.verdict is verdict
    assert outcome.other == "fast"


def test_the_best_peer_is_neither_another_kind_of_proxy_nor_the_limit() -> None:
    (outcome,) = outcomes([record(ours=[150.0, 150.0, 150.0])], [FASTER])
    assert outcome.measured == "1.50 (1.50 to 1.50) of fast"


def test_the_ratio_is_taken_within_each_round() -> None:
    (outcome,) = outcomes([record(ours=[10.0, 40.0, 90.0], fast=[5.0, 20.0, 45.0])], [FASTER])
    assert outcome.spread is not None
    assert (outcome.spread.low, outcome.spread.high) == (2.0, 2.0)
    assert outcome.verdict is Verdict.MET


def test_fewer_than_three_rounds_decide_nothing() -> None:
    (outcome,) = outcomes([record(ours=[999.0, 999.0])], [FASTER])
    assert outcome.word == "undecided (2 round(s))"
    (outcome,) = outcomes([record(ours=[1.0, 999.0, 999.0])], [FASTER])
    assert outcome.word == "undecided (spread)"


def test_less_is_better_turns_the_best_peer_round() -> None:
    cheap = record(ours=[8.0, 8.0, 8.0])
    cheap.figures = (Figure("mb_per_s", "CPU", "s", less_is_better=True),)
    (outcome,) = outcomes([cheap], [CHEAPER])
    assert outcome.other == "slow"
    assert outcome.verdict is Verdict.MET


@pytest.mark.parametrize(
    ("goal", "values", "verdict"),
    [
        (replace(CHEAPER, limit=1.0), [1.0, 1.0, 1.0], Verdict.MET),
        (replace(CHEAPER, limit=1.0, strictly=True), [1.0, 1.0, 1.0], Verdict.MISSED),
        (replace(FASTER, limit=1.0), [1.0, 1.0, 1.0], Verdict.MET),
        (replace(FASTER, limit=1.0, strictly=True), [1.0, 1.0, 1.1], Verdict.UNDECIDED),
    ],
)
def test_as_much_as_the_limit_is_enough_unless_it_is_strict(goal, values, verdict) -> None:
    assert judge(goal, values) is verdict


def test_a_figure_by_itself_and_one_row_beside_another() -> None:
    alone = replace(FASTER, other=None, limit=140.0)
    (outcome,) = outcomes([record(ours=[150.0, 150.0, 150.0])], [alone])
    assert outcome.measured == "150.00 (150.00 to 150.00)"
    assert outcome.verdict is Verdict.MET
    beside = replace(FASTER, other="direct", limit=0.01)
    (outcome,) = outcomes([record(ours=[180.0, 180.0, 180.0])], [beside])
    assert outcome.measured == "0.02 (0.02 to 0.02) of direct"


def test_what_was_not_measured_is_said_to_be_so() -> None:
    for records in ([], [make_record({"qproxy": [1.0] * 3}, KINDS)]):
        (outcome,) = outcomes(records, [FASTER])
        assert outcome.verdict is Verdict.NOT_MEASURED
        assert outcome.measured == ""
    other = replace(FASTER, benchmark="latency")
    assert outcomes([record(ours=[1.0] * 3)], [other])[0].verdict is Verdict.NOT_MEASURED


def test_a_goal_is_as_good_as_its_worst_case() -> None:
    both = replace(FASTER, cases="down|up")
    run = record(ours=[150.0, 150.0, 150.0])
    run.samples += [replace(sample, case="up") for sample in run.samples]
    run.samples = [
        replace(sample, values={"mb_per_s": 1.0})
        if (sample.row, sample.case) == ("qproxy", "up")
        else sample
        for sample in run.samples
    ]
    found = outcomes([run], [both])
    assert [outcome.verdict for outcome in found] == [Verdict.MET, Verdict.MISSED]
    assert overall(found) is Verdict.MISSED


def test_of_two_records_of_one_benchmark_the_later_one_counts() -> None:
    old, new = record(ours=[1.0] * 3), record(ours=[150.0] * 3)
    new.started = "2026-02-01T00:00:00Z"
    for order in ([old, new], [new, old]):
        assert outcomes(order, [FASTER])[0].verdict is Verdict.MET


def test_every_goal_is_one_that_can_be_measured() -> None:
    names = {benchmark.name for benchmark in BENCHMARKS}
    for goal in GOALS:
        re.compile(goal.cases)
        assert goal.limit > 0
        assert goal.benchmark in names


def test_round_trips_are_judged_one_at_a_time_and_at_whatever_rate_there_is() -> None:
    (goal,) = [goal for goal in GOALS if goal.benchmark == "latency"]
    judged = ["256 B, one at a time", "256 B, 200/s", "256 B, 1000/s", "256 B, 4000/s"]
    for case in [*judged, "64 B, one at a time", "1024 B, 1000/s"]:
        assert (re.fullmatch(goal.cases, case) is not None) is (case in judged)
