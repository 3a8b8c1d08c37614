"""A span: what each kind makes, what each way to disturb it does, and what is stored."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.config.network import (
    FibreSpanConfig,
    FixedSpanConfig,
    OpticsConfig,
    SatelliteSpanConfig,
)
from qproxy.sim.physics.bb84 import ABORT_QBER, Decoys, Optics, key_rate
from qproxy.sim.production import production_of
from qproxy.sim.span import LinkState, NotEnoughKeys, SimulatedSpan

ENDS = ("kme-a", "kme-b")
#: A key of 256 bits every second, up to a hundred of them.
CONFIG = FixedSpanConfig(
    name="link",
    between=ENDS,
    key_rate_bps=256.0,
    max_buffer_bits=25_600,
    initial_buffer_bits=2560,
)
FIBRE = FibreSpanConfig(name="fibre", between=ENDS, length_km=50.0)
SATELLITE = SatelliteSpanConfig(
    name="sky", between=ENDS, zenith_loss_db=30.0, first_pass_s=60.0, max_buffer_bits=10**9
)


def make(config=CONFIG, now=0.0, optics=None):
    counter = iter(range(1, 1 << 30))
    return SimulatedSpan(
        config,
        production_of(config, optics or {}),
        now=now,
        random_bytes=lambda size: next(counter).to_bytes(size, "big"),
    )


def stored_keys(span, now):
    return span.stored_bits(now) // 256


def test_it_starts_with_what_was_configured():
    report = make().report(0.0)
    assert report.state is LinkState.UP
    assert report.qber == 0.01
    assert report.key_rate_bps == 256.0
    assert report.stored_bits == 2560


def test_it_makes_key_at_the_configured_rate_up_to_its_capacity():
    link = make()
    assert stored_keys(link, 1.0) == 11
    assert stored_keys(link, 1.5) == 11
    assert stored_keys(link, 2.0) == 12
    assert stored_keys(link, 1e9) == 100


def test_more_keys_at_the_start_than_fit_are_not_there():
    assert stored_keys(make(dataclasses.replace(CONFIG, initial_buffer_bits=99_999)), 0.0) == 100


def test_taking_takes_bits_whatever_the_size():
    link = make()
    assert [len(link.take(512, 0.0)) for _ in range(2)] == [64, 64]
    assert stored_keys(link, 0.0) == 6
    assert len(link.take(6 * 256, 0.0)) == 192
    report = link.report(0.0)
    assert (report.stored_bits, report.used_bits) == (0, 2560)


def test_what_cannot_be_met_takes_nothing():
    link = make()
    with pytest.raises(NotEnoughKeys):
        link.take(11 * 256, 0.0)
    assert stored_keys(link, 0.0) == 10


def test_every_key_is_another():
    link = make()
    keys = [link.take(256, 0.0) for _ in range(10)]
    assert len({bytes(key) for key in keys}) == 10


def test_a_cut_link_makes_nothing_reports_no_qber_and_gives_what_it_has():
    link = make()
    link.cut(1.0)
    report = link.report(100.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.CUT, None, 0.0)
    assert len(link.take(11 * 256, 100.0)) == 11 * 32
    with pytest.raises(NotEnoughKeys):
        link.take(256, 1e6)


def test_a_jammed_link_makes_nothing_and_its_qber_is_as_before():
    link = make()
    link.degrade(0.0, rate_factor=0.5, qber=0.04)
    link.jam(0.0)
    report = link.report(100.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.JAMMED, 0.04, 0.0)
    assert stored_keys(link, 100.0) == 10


def test_a_degraded_link_makes_less():
    link = make()
    link.degrade(2.0, rate_factor=0.5, qber=0.05)
    report = link.report(6.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.DEGRADED, 0.05, 128.0)
    assert stored_keys(link, 6.0) == 14


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
    link = make(dataclasses.replace(CONFIG, qber=0.12, initial_buffer_bits=0))
    assert stored_keys(link, 1e6) == 0
    assert link.report(0.0).state is LinkState.ABORTED


@pytest.mark.parametrize("disturb", ["cut", "jam"])
def test_restore_undoes_everything_but_makes_up_for_nothing(disturb):
    link = make()
    link.degrade(0.0, rate_factor=0.1, qber=0.3)
    getattr(link, disturb)(0.0)
    link.restore(50.0)
    report = link.report(50.0)
    assert (report.state, report.qber, report.key_rate_bps) == (LinkState.UP, 0.01, 256.0)
    assert stored_keys(link, 51.0) == 11


def test_drain_leaves_nothing_and_the_link_goes_on():
    link = make()
    link.drain(5.0)
    assert link.report(5.0).stored_bits == 0
    assert stored_keys(link, 6.0) == 1


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
                link.take(number * 256, now)
            except NotEnoughKeys:
                assert before < number * 256
            else:
                assert link.report(now).stored_bits == before - number * 256
        elif action == "degrade":
            link.degrade(now, rate_factor=number / 128, qber=number / 256)
        else:
            getattr(link, action)(now)
        assert 0 <= link.report(now).stored_bits <= 100 * 256


def test_jamming_may_raise_the_qber_too():
    link = make()
    link.jam(0.0, 0.3)
    assert (link.report(0.0).state, link.report(0.0).qber) == (LinkState.JAMMED, 0.3)
    link.jam(0.0)
    assert link.report(0.0).qber == 0.01


# --- Optics -----------------------------------------------------------------------------------


def test_a_fibre_makes_what_its_length_says():
    link = make(FIBRE)
    report = link.report(0.0)
    rate = key_rate(Optics(), 10.0)
    assert (report.state, report.qber, report.key_rate_bps) == (
        LinkState.UP,
        rate.qber,
        rate.secret_bps,
    )
    assert link.stored_bits(2.0) == int(2 * rate.secret_bps)


def test_a_fibre_uses_the_optics_it_names_and_loses_what_is_extra():
    optics = {"slow": OpticsConfig(name="slow", source_rate_hz=1e6, decoys=Decoys.INFINITE)}
    config = dataclasses.replace(FIBRE, optics="slow", extra_loss_db=3.0)
    rate = key_rate(optics["slow"], 13.0)
    assert make(config, optics=optics).report(0.0).key_rate_bps == rate.secret_bps


def test_a_fibre_that_is_too_long_makes_nothing_and_says_aborted():
    link = make(dataclasses.replace(FIBRE, length_km=250.0))
    report = link.report(100.0)
    assert (report.state, report.key_rate_bps, report.stored_bits) == (LinkState.ABORTED, 0.0, 0)
    assert report.qber > 0.05


@pytest.mark.parametrize("config", [CONFIG, FIBRE], ids=["fixed", "fibre"])
def test_an_eavesdropper_raises_the_qber_by_a_quarter_of_what_she_takes(config):
    link = make(config)
    before = link.report(0.0)
    link.intercept(0.0, 0.1)
    tapped = link.report(0.0)
    assert tapped.state is LinkState.DEGRADED
    assert tapped.qber - before.qber == pytest.approx(0.025, abs=0.001)
    assert 0 < tapped.key_rate_bps < before.key_rate_bps
    link.intercept(0.0, 1.0)
    whole = link.report(0.0)
    assert (whole.state, whole.key_rate_bps) == (LinkState.ABORTED, 0.0)
    assert whole.qber == pytest.approx(0.25, abs=0.01)
    link.restore(0.0)
    assert link.report(0.0) == before


@pytest.mark.parametrize("config", [CONFIG, FIBRE], ids=["fixed", "fibre"])
def test_the_span_aborts_above_its_threshold(config):
    """Half of the pulses: about 13 %."""
    link = make(dataclasses.replace(config, abort_qber=0.02))
    assert link.report(0.0).key_rate_bps > 0
    link.intercept(0.0, 0.08)
    assert (link.report(0.0).state, link.report(0.0).key_rate_bps) == (LinkState.ABORTED, 0.0)
    before = link.stored_bits(0.0)
    assert link.stored_bits(100.0) == before
    link = make(config)
    link.intercept(0.0, 0.5)
    assert link.report(0.0).state is LinkState.ABORTED


@pytest.mark.parametrize("config", [CONFIG, FIBRE], ids=["fixed", "fibre"])
def test_misalignment_is_the_new_error_and_adds_to_what_an_eavesdropper_makes(config):
    link = make(config)
    link.misalign(0.0, 0.05)
    assert link.report(0.0).qber == pytest.approx(0.05, abs=0.001)
    assert link.report(0.0).state is LinkState.DEGRADED
    link.intercept(0.0, 0.1)
    assert link.report(0.0).qber == pytest.approx(0.0725, abs=0.001)


@pytest.mark.parametrize("config", [CONFIG, FIBRE], ids=["fixed", "fibre"])
def test_degraded_figures_hold_whatever_was_done_to_the_photons(config):
    link, quiet = make(config), make(config)
    link.intercept(0.0, 1.0)
    link.misalign(0.0, 0.3)
    link.degrade(0.0, rate_factor=0.5, qber=0.02)
    report = link.report(0.0)
    assert (report.state, report.qber) == (LinkState.DEGRADED, 0.02)
    assert report.key_rate_bps == quiet.report(0.0).key_rate_bps / 2
    gained = link.stored_bits(1.0) - link.config.initial_buffer_bits
    assert gained == pytest.approx(report.key_rate_bps, abs=1)


@pytest.mark.parametrize("config", [CONFIG, FIBRE], ids=["fixed", "fibre"])
def test_an_eavesdropper_shows_on_a_degraded_link_too(config):
    link, tapped = make(config), make(config)
    link.degrade(0.0, rate_factor=1.0, qber=0.02)
    for each in (link, tapped):
        each.intercept(0.0, 1.0)
    assert link.report(0.0) == tapped.report(0.0)
    assert link.report(0.0).state is LinkState.ABORTED
    assert link.report(0.0).qber == pytest.approx(0.25, abs=0.01)


def test_a_span_with_no_secret_fraction_gains_none_by_an_attack():
    link = make(dataclasses.replace(CONFIG, qber=0.2))
    link.misalign(0.0, 0.01)
    assert link.report(0.0).key_rate_bps == 0.0


# --- A satellite ------------------------------------------------------------------------------


def test_a_satellite_fills_the_store_during_its_passes_only():
    link = make(SATELLITE)
    before = link.report(59.0)
    assert (before.state, before.qber, before.stored_bits) == (LinkState.OUT_OF_SIGHT, None, 0)
    assert link.report(210.0).state is LinkState.UP  # overhead
    best = link.report(210.0).key_rate_bps
    late = link.report(350.0)
    assert 0 < late.key_rate_bps < best
    after = link.stored_bits(360.0)
    assert 0 < after < 300 * best
    assert link.stored_bits(5459.0) == after
    assert link.stored_bits(5760.0) == pytest.approx(2 * after, abs=1)


@given(st.lists(st.floats(0, 20_000), min_size=1, max_size=20))
def test_however_often_it_is_looked_at_a_satellite_makes_the_same(times):
    once, often = make(SATELLITE), make(SATELLITE)
    for at_s in sorted(times):
        often.report(at_s)
    assert often.stored_bits(max(times)) == pytest.approx(once.stored_bits(max(times)), abs=1)


def test_a_jammed_pass_is_lost():
    link = make(SATELLITE)
    link.jam(100.0)
    some = link.stored_bits(100.0)
    link.restore(5000.0)
    assert link.stored_bits(5400.0) == some > 0


def test_degraded_between_passes_it_is_still_out_of_sight():
    link = make(SATELLITE)
    link.degrade(0.0, rate_factor=0.5, qber=0.05)
    assert link.report(0.0).state is LinkState.OUT_OF_SIGHT
    whole = make(SATELLITE)
    assert link.report(210.0).qber == 0.05
    assert link.stored_bits(360.0) == pytest.approx(whole.stored_bits(360.0) / 2, abs=1)
