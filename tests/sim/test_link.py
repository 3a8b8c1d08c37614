"""The simulated link: what it makes, and what each way to disturb it does."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.config.model import LinkConfig
from qproxy.sim.link import ABORT_QBER, LinkState, NotEnoughKeys, SimulatedLink

CONFIG = LinkConfig(key_rate_bps=256.0, max_key_count=100, initial_key_count=10)


def make(config=CONFIG, now=0.0):
    counter = iter(range(1, 1 << 30))
    return SimulatedLink(
        config, now=now, random_bytes=lambda size: next(counter).to_bytes(size, "big")
    )


def test_it_starts_with_what_was_configured():
    report = make().report(0.0)
    assert report.state is LinkState.UP
    assert report.qber == 0.01
    assert report.key_rate_bps == 256.0
    assert report.stored_bits == 2560


def test_it_makes_key_at_the_configured_rate_up_to_its_capacity():
    link = make()
    assert link.stored_key_count(1.0) == 11
    assert link.stored_key_count(1.5) == 11
    assert link.stored_key_count(2.0) == 12
    assert link.stored_key_count(1e9) == 100


def test_more_keys_at_the_start_than_fit_are_not_there():
    assert make(LinkConfig(max_key_count=5, initial_key_count=50)).stored_key_count(0.0) == 5


def test_taking_takes_bits_whatever_the_size():
    link = make()
    assert [len(key) for key in link.take(2, 512, 0.0)] == [64, 64]
    assert link.stored_key_count(0.0) == 6
    assert len(link.take(6, 256, 0.0)) == 6
    assert link.report(0.0).stored_bits == 0


def test_what_cannot_be_met_takes_nothing():
    link = make()
    with pytest.raises(NotEnoughKeys):
        link.take(11, 256, 0.0)
    assert link.stored_key_count(0.0) == 10


def test_every_key_is_another():
    keys = make().take(10, 256, 0.0)
    assert len({bytes(key) for key in keys}) == 10


def test_a_cut_link_makes_nothing_reports_no_qber_and_gives_what_it_has():
    link = make()
    link.cut(1.0)
    report = link.report(100.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.CUT, None, 0.0)
    assert len(link.take(11, 256, 100.0)) == 11
    with pytest.raises(NotEnoughKeys):
        link.take(1, 256, 1e6)


def test_a_jammed_link_makes_nothing_and_its_qber_is_as_before():
    link = make()
    link.degrade(0.0, rate_factor=0.5, qber=0.04)
    link.jam(0.0)
    report = link.report(100.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.JAMMED, 0.04, 0.0)
    assert link.stored_key_count(100.0) == 10


def test_a_degraded_link_makes_less():
    link = make()
    link.degrade(2.0, rate_factor=0.5, qber=0.05)
    report = link.report(6.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.DEGRADED, 0.05, 128.0)
    assert link.stored_key_count(6.0) == 14


@pytest.mark.parametrize(
    ("qber", "rate", "state"),
    [
        (math.nextafter(ABORT_QBER, 0), 256.0, LinkState.DEGRADED),
        (ABORT_QBER, 0.0, LinkState.ABORTED),
        (0.25, 0.0, LinkState.ABORTED),
    ],
)
def test_at_eleven_percent_there_is_no_secret_key(qber, rate, state):
    link = make()
    link.degrade(0.0, rate_factor=1.0, qber=qber)
    report = link.report(0.0)
    assert (report.state, report.qber, report.key_rate_bps) == (state, qber, rate)


def test_a_link_configured_beyond_eleven_percent_never_makes_a_key():
    link = make(LinkConfig(qber=0.12, initial_key_count=0))
    assert link.stored_key_count(1e6) == 0
    assert link.report(0.0).state is LinkState.ABORTED


@pytest.mark.parametrize("disturb", ["cut", "jam"])
def test_restore_undoes_everything_but_makes_up_for_nothing(disturb):
    link = make()
    link.degrade(0.0, rate_factor=0.1, qber=0.3)
    getattr(link, disturb)(0.0)
    link.restore(50.0)
    report = link.report(50.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.UP, 0.01, 256.0)
    assert link.stored_key_count(51.0) == 11


def test_drain_leaves_nothing_and_the_link_goes_on():
    link = make()
    link.drain(5.0)
    assert link.report(5.0).stored_bits == 0
    assert link.stored_key_count(6.0) == 1


@pytest.mark.parametrize(
    ("rate_factor", "qber"),
    [(-0.1, 0.0), (1.1, 0.0), (0.5, -0.1), (0.5, 0.51), (math.nan, 0.0), (0.5, math.nan)],
)
def test_impossible_figures_are_refused_and_change_nothing(rate_factor, qber):
    link = make()
    with pytest.raises(ValueError, match="expected"):
        link.degrade(0.0, rate_factor=rate_factor, qber=qber)
    assert link.report(0.0).state is LinkState.UP


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.sampled_from(["cut", "jam", "restore", "drain", "take", "degrade"]),
            st.integers(1, 128),
        ),
        max_size=30,
    )
)
def test_whatever_happens_the_store_stays_within_its_bounds(steps):
    """Times may even run backwards."""
    link = make()
    for now, action, number in steps:
        if action == "take":
            before = link.report(now).stored_bits
            try:
                link.take(number, 256, now)
            except NotEnoughKeys:
                assert before < number * 256
            else:
                assert link.report(now).stored_bits == before - number * 256
        elif action == "degrade":
            link.degrade(now, rate_factor=number / 128, qber=number / 256)
        else:
            getattr(link, action)(now)
        assert 0 <= link.report(now).stored_bits <= 100 * 256
