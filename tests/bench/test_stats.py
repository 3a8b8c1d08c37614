import pytest

from bench.stats import MAX_RATIO_SPREAD, Spread, doubt, percentile, round_ratios


def test_a_spread_is_the_middle_the_smallest_and_the_largest() -> None:
    assert Spread.of([5.0, 1.0, 3.0]) == Spread(median=3.0, low=1.0, high=5.0, count=3)
    assert Spread.of([4.0, 2.0]).median == 3.0
    assert Spread.of([5.0, 1.0, 3.0]).relative == pytest.approx(4 / 3)


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])


def test_a_median_of_zero_has_a_spread_without_bounds() -> None:
    assert Spread.of([0.0, 0.0]).relative == float("inf")


def test_ratios_are_taken_within_rounds_that_both_have() -> None:
    ours = {0: 100.0, 1: 300.0, 3: 50.0}
    theirs = {0: 50.0, 1: 100.0, 2: 10.0}
    assert round_ratios(ours, theirs) == [2.0, 3.0]


def test_the_order_of_a_dict_is_not_the_order_of_the_rounds() -> None:
    assert round_ratios({1: 8.0, 0: 4.0}, {0: 4.0, 1: 4.0}) == [1.0, 2.0]


def test_a_round_where_nothing_moved_has_no_ratio() -> None:
    assert round_ratios({0: 1.0, 1: 1.0}, {0: 0.0, 1: 2.0}) == [0.5]


def test_close_ratios_on_one_side_of_one_are_trusted() -> None:
    assert doubt(Spread.of([1.2, 1.25, 1.3])) is None
    assert doubt(Spread.of([0.7, 0.75, 0.8])) is None


def test_ratios_on_both_sides_of_one_decide_nothing() -> None:
    assert "undecided" in (doubt(Spread.of([0.98, 1.1, 1.12])) or "")


def test_ratios_far_apart_leave_the_size_unsure() -> None:
    wide = Spread.of([2.0, 2.4, 2.4 + MAX_RATIO_SPREAD * 2.4])
    assert "unsure" in (doubt(wide) or "")


def test_too_few_rounds_are_doubted_however_close() -> None:
    assert "only 2 round(s)" in (doubt(Spread.of([1.2, 1.2])) or "")


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [([5.0], 0.99, 5.0), ([3.0, 1.0, 2.0], 0.5, 2.0), (list(range(1000)), 0.99, 990)],
)
def test_percentiles(samples, share, expected):
    assert percentile(samples, share) == expected


def test_no_sample_has_no_percentile():
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 0.99)
