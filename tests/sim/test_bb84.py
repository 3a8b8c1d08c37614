"""The physics against published values and against another implementation."""

import dataclasses
import importlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.sim.physics.bb84 import (
    ABORT_QBER,
    Decoys,
    Optics,
    binary_entropy,
    error_gain,
    fibre_loss_db,
    gain,
    key_rate,
    reach_km,
    secret_fraction,
    single_photons_bounded,
    single_photons_exactly,
    transmittance,
)
from qproxy.sim.physics.disturb import intercepted
from qproxy.sim.physics.satellite import Orbit

#: Gobby, Yuan and Shields 2004, the setting that Ma et al. compute with.
GYS = Optics(
    source_rate_hz=1.0,
    detector_efficiency=0.045,
    background_yield=1.7e-6,
    misalignment=0.033,
    signal_intensity=0.48,
    decoy_intensity=0.05,
    error_correction_efficiency=1.22,
    decoys=Decoys.INFINITE,
)
GYS_LOSS = 0.21
#: A fast source: what `Optics` has by default.
FAST = Optics()
FAST_LOSS = 0.2


def test_the_golden_value_at_no_distance():
    rate = key_rate(GYS, 0.0)
    assert rate.gain == pytest.approx(0.021370, abs=5e-7)
    assert rate.qber == pytest.approx(0.033037, abs=5e-7)
    assert rate.single_photon_gain == pytest.approx(0.013366, abs=5e-7)
    assert rate.per_pulse == pytest.approx(2.5546e-3, abs=5e-8)
    assert rate.secret_bps == rate.per_pulse  # one pulse per second


@pytest.mark.parametrize(
    ("optics", "loss", "end_km"),
    [
        (GYS, GYS_LOSS, 142.0),
        (dataclasses.replace(GYS, decoys=Decoys.VACUUM_AND_WEAK), GYS_LOSS, 140.6),
    ],
    ids=["infinite decoys", "vacuum and weak"],
)
def test_the_distances_at_which_the_key_ends(optics, loss, end_km):
    assert reach_km(optics, loss) == pytest.approx(end_km, abs=0.05)


def test_the_fast_source_ends_at_206_km():
    assert round(reach_km(FAST, FAST_LOSS)) == 206


@pytest.mark.parametrize(
    ("length_km", "kbps", "qber_percent"),
    [
        (10, 14096, 1.00),
        (50, 2209, 1.00),
        (100, 218, 1.05),
        (120, 86, 1.12),
        (150, 19.9, 1.49),
        (180, 3.5, 2.88),
    ],
)
def test_the_table_of_rates_and_qber(length_km, kbps, qber_percent):
    rate = key_rate(FAST, fibre_loss_db(length_km, FAST_LOSS))
    assert rate.secret_bps / 1e3 == pytest.approx(kbps, abs=0.05 if kbps < 20 else 0.5)
    assert round(100 * rate.qber, 2) == qber_percent


def test_at_eleven_percent_nothing_is_left():
    assert 1 - 2 * binary_entropy(0.11) == pytest.approx(0.0, abs=2e-4)
    assert secret_fraction(math.nextafter(ABORT_QBER, 0)) > 0
    assert secret_fraction(ABORT_QBER) == 0.0
    assert secret_fraction(0.0) == 1.0


def test_error_correction_above_the_shannon_limit_ends_it_at_9_81_percent():
    """Single photons only: 1 - h(e) - f h(e) = 0."""
    low, high = 0.0, 0.5
    while high - low > 1e-9:
        middle = (low + high) / 2
        left = 1 - (1 + FAST.error_correction_efficiency) * binary_entropy(middle)
        low, high = (middle, high) if left > 0 else (low, middle)
    assert 100 * low == pytest.approx(9.81, abs=0.005)


@pytest.mark.parametrize("length_km", [0, 10, 50, 100])
def test_with_multi_photon_pulses_the_rate_ends_at_about_six_percent(length_km):
    low, high = 0.0, 0.5
    while high - low > 1e-6:
        middle = (low + high) / 2
        optics = dataclasses.replace(FAST, misalignment=middle)
        rate = key_rate(optics, fibre_loss_db(length_km, FAST_LOSS))
        low, high = (middle, high) if rate.per_pulse > 0 else (low, middle)
    assert 0.059 < rate.qber < 0.064


@pytest.mark.parametrize(("error", "expected"), [(0.0, 0.25), (0.01, 0.255), (0.5, 0.5)])
def test_intercepting_everything_makes_a_quarter(error, expected):
    assert intercepted(error, 1.0) == pytest.approx(expected)


@given(st.floats(0, 0.05), st.floats(0, 1))
def test_intercepting_a_fraction_adds_about_a_quarter_of_it(error, fraction):
    added = intercepted(error, fraction) - error
    assert added == pytest.approx(fraction / 4, abs=fraction * error / 2 + 1e-12)
    assert intercepted(error, 0.0) == error


@given(st.floats(0, 60))
def test_the_bounds_err_on_the_safe_side(loss_db):
    eta = transmittance(loss_db, FAST.detector_efficiency)
    true = single_photons_exactly(eta, FAST.background_yield, FAST.misalignment)
    bound = single_photons_bounded(eta, FAST)
    assert bound.yield_ <= true.yield_ * (1 + 1e-9)
    assert bound.error >= true.error * (1 - 1e-9)


@given(st.floats(0, 50), st.floats(0.01, 5))
def test_more_loss_never_makes_more_key_nor_fewer_errors(loss_db, more_db):
    near, far = key_rate(FAST, loss_db), key_rate(FAST, loss_db + more_db)
    assert far.secret_bps <= near.secret_bps
    assert far.qber >= near.qber


@pytest.mark.parametrize("loss_db", [5.0, 20.0, 30.0])
def test_a_finite_block_costs_key_and_the_longer_it_is_the_less(loss_db):
    blocks = [1e9, 1e11, 1e13, 0]
    rates = [
        key_rate(dataclasses.replace(FAST, block_pulses=block), loss_db).secret_bps
        for block in blocks
    ]
    assert rates == sorted(rates)
    assert rates[-2] < rates[-1] < rates[-2] * 1.1
    # Whatever is measured in so short a block says nothing about single photons.
    tiny = key_rate(dataclasses.replace(FAST, block_pulses=100.0), loss_db)
    assert tiny.secret_bps == 0.0


def test_dead_time_bounds_the_clicks():
    bright = dataclasses.replace(FAST, dead_time_s=1e-6)
    clicks_per_s = key_rate(FAST, 0.0).gain * FAST.source_rate_hz
    share = key_rate(bright, 0.0).secret_bps / key_rate(FAST, 0.0).secret_bps
    assert share == pytest.approx(1 / (1 + clicks_per_s * 1e-6))
    assert clicks_per_s * share < 1e6


def test_a_link_without_light_and_background_makes_nothing_and_is_no_error():
    dark = dataclasses.replace(FAST, background_yield=0.0, detector_efficiency=0.0)
    assert key_rate(dark, 10.0).secret_bps == 0.0
    assert single_photons_exactly(0.0, 0.0, 0.01).error == 0.5
    assert reach_km(dark, 0.2) == 0.0


@pytest.mark.parametrize("decoy", [0.0, 0.5, 0.7])
def test_a_decoy_is_weaker_than_the_signal(decoy):
    with pytest.raises(ValueError, match="decoy_intensity"):
        Optics(decoy_intensity=decoy)


@given(
    st.builds(
        Optics,
        source_rate_hz=st.floats(1, 1e11),
        detector_efficiency=st.floats(0, 1),
        background_yield=st.floats(0, 1),
        dead_time_s=st.floats(0, 1),
        misalignment=st.floats(0, 0.5),
        signal_intensity=st.floats(0.01, 2),
        decoy_intensity=st.just(0.001),
        error_correction_efficiency=st.floats(1, 3),
        sifting=st.floats(0, 1),
        decoys=st.sampled_from(Decoys),
        block_pulses=st.floats(0, 1e12),
    ),
    st.floats(0, 20_100) | st.floats(3000, 3300),
)
def test_whatever_is_configured_the_figures_are_figures(optics, loss_db):
    """Up to 2000 km of 10 dB each: less than the smallest number there is arrives."""
    rate = key_rate(optics, loss_db)
    assert 0 <= rate.qber <= 0.5 + 1e-9
    assert 0 <= rate.secret_bps < math.inf


# --- An independent implementation ------------------------------------------------------------


@pytest.fixture(scope="module")
def tno():
    """TNO's key-rate package; `pip install '.[dev]'` brings it, for it needs SciPy and pandas."""
    reason = "tno.quantum.communication.qkd-key-rate is not installed; it is in the extra 'dev'"
    base = "tno.quantum.communication.qkd_key_rate.quantum"
    pytest.importorskip(base, reason=reason)
    return importlib.import_module(base), importlib.import_module(f"{base}.bb84")


def tno_detector(tno, optics):
    """Their detector: two of them, each with half the background; misalignment as an angle."""
    return tno[0].standard_detector.customise(
        dark_count_rate=optics.background_yield / 2,
        polarization_drift=math.asin(math.sqrt(optics.misalignment)),
        error_detector=0,
        efficiency_party=optics.detector_efficiency,
    )


@pytest.mark.parametrize("optics", [FAST, GYS], ids=["fast", "gys"])
@pytest.mark.parametrize("loss_db", [0.0, 5.0, 10.0, 20.0, 25.0])
def test_gain_and_errors_are_those_of_another_implementation(tno, optics, loss_db):
    eta = transmittance(loss_db, optics.detector_efficiency)
    for intensity in (optics.signal_intensity, optics.decoy_intensity):
        gains, errors = tno[1].compute_gain_and_error_rate(
            tno_detector(tno, optics), intensity, loss_db
        )
        ours = gain(eta, intensity, optics.background_yield)
        ours_wrong = error_gain(eta, intensity, optics.background_yield, optics.misalignment)
        assert ours == pytest.approx(gains[0], rel=1e-4)
        # They also count pulses that reach both detectors, which is a matter of bright light.
        assert ours_wrong == pytest.approx(gains[0] * errors[0], rel=1e-3 + eta * intensity / 2)


@pytest.mark.parametrize("optics", [FAST, GYS], ids=["fast", "gys"])
@pytest.mark.parametrize("loss_db", [5.0, 10.0, 20.0, 25.0])
def test_rates_with_infinite_decoys_are_those_of_another_implementation(tno, optics, loss_db):
    """They do not sift, correct errors at the Shannon limit, and keep what the vacuum gave."""
    ideal = dataclasses.replace(
        optics, decoys=Decoys.INFINITE, error_correction_efficiency=1.0, sifting=1.0
    )
    estimate = tno[1].BB84FullyAsymptoticKeyRateEstimate(detector=tno_detector(tno, optics))
    theirs = estimate.compute_rate(optics.signal_intensity, loss_db)
    from_vacuum = math.exp(-optics.signal_intensity) * optics.background_yield
    ours = key_rate(ideal, loss_db).per_pulse + from_vacuum
    eta = transmittance(loss_db, optics.detector_efficiency)
    assert ours == pytest.approx(theirs, rel=1e-3 + eta * optics.signal_intensity)


@pytest.mark.parametrize("loss_db", [5.0, 10.0, 20.0, 25.0])
def test_our_two_decoys_are_no_better_than_their_optimal_bound(tno, loss_db):
    """Theirs comes from a linear program over the same intensities, so it is at least as tight."""
    ideal = dataclasses.replace(FAST, error_correction_efficiency=1.0, sifting=1.0)
    estimate = tno[1].BB84AsymptoticKeyRateEstimate(
        detector=tno_detector(tno, FAST), number_of_decoy=2
    )
    theirs = estimate.compute_rate([0.5, 0.1, 0.0], loss_db)
    ours = key_rate(ideal, loss_db).per_pulse
    assert ours <= theirs
    assert ours == pytest.approx(theirs, rel=0.05)


# --- A satellite ------------------------------------------------------------------------------

ORBIT = Orbit(
    altitude_km=500.0,
    zenith_loss_db=25.0,
    first_pass_s=60.0,
    pass_duration_s=300.0,
    pass_interval_s=5400.0,
)


@pytest.mark.parametrize(
    ("at_s", "seen"),
    [(0, False), (59, False), (60, True), (359, True), (360, False), (5459, False), (5460, True)],
)
def test_a_satellite_is_in_sight_during_its_passes(at_s, seen):
    assert ORBIT.in_sight(at_s) is seen


def test_the_loss_is_least_overhead_and_the_same_before_and_after():
    assert ORBIT.loss_db(150.0) == 25.0
    assert ORBIT.loss_db(0.0) == pytest.approx(ORBIT.loss_db(300.0))
    # 1050 km away along the ground, 500 km up: 2.33 times as far, so 7.3 dB more.
    assert ORBIT.loss_db(0.0) == pytest.approx(25 + 20 * math.log10(math.hypot(500, 1050) / 500))


@pytest.mark.parametrize("duration_s", [0.0, 5400.0, 6000.0])
def test_a_pass_ends_before_the_next_one(duration_s):
    with pytest.raises(ValueError, match="pass_duration_s"):
        dataclasses.replace(ORBIT, pass_duration_s=duration_s)
