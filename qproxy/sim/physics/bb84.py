"""Secret key rate and QBER of decoy-state BB84 over one quantum channel.

Formulas and symbols are those of X. Ma, B. Qi, Y. Zhao and H.-K. Lo, "Practical decoy state for
quantum key distribution", Phys. Rev. A 72, 012326 (2005), here called Ma et al.; a number in
brackets is one of their equations.

========== ===========================================================
``eta``    transmittance of channel and receiver together
``mu``     mean photon number of a signal pulse
``nu``     the same of a decoy pulse
``Y0``     background yield: probability of a click without a photon
``Y1``     yield of a single photon
``e_d``    probability that a photon hits the wrong detector
``e1``     error rate of single photons
``Q``, ``E`` gain (clicks per pulse) and error rate (QBER) of an intensity
``f``      efficiency of error correction, 1 at the Shannon limit
``q``      what sifting leaves: one half where both bases are as likely
========== ===========================================================

Modelled: loss, background, misalignment, multi-photon pulses, the decoy bounds, error correction
by its efficiency, privacy amplification by its asymptotic cost. Approximated: blocks of finite
size, and dead time. Left out: what docs/simulation.md lists.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

#: Error rate of the background: a click without a photon is a coin toss. Ma et al.: e0.
BACKGROUND_ERROR: Final = 0.5
#: QBER at which one-way post-processing has nothing left: 1 - 2 h(e) = 0. Source: Shor and
#: Preskill, Phys. Rev. Lett. 85, 441 (2000).
ABORT_QBER: Final = 0.11
#: Standard deviations that a finite block is given. Source: Ma et al., section IV (u_alpha = 10).
DEVIATIONS: Final = 10.0
#: Part of a finite block that is spent on each of the weak and the vacuum decoys: an assumption
#: of this simulation.
DECOY_FRACTION: Final = 0.1


class Decoys(enum.StrEnum):
    """How the single photons are told apart."""

    INFINITE = "infinite"
    VACUUM_AND_WEAK = "vacuum-and-weak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optics:
    """Source, receiver and post-processing of one link.

    Attributes:
        source_rate_hz: pulses per second.
        detector_efficiency: of the whole receiver, 0 to 1. Ma et al.: eta_Bob.
        background_yield: clicks per pulse without any light. Ma et al.: Y0.
        dead_time_s: how long the receiver is blind after a click.
        misalignment: e_d, 0 to 0.5.
        signal_intensity: mu, mean photons per signal pulse.
        decoy_intensity: nu, below mu.
        error_correction_efficiency: f, 1 or more.
        sifting: q, 0 to 1.
        decoys: which bound on the single photons is used.
        block_pulses: pulses in a block of post-processing; 0 means without end (asymptotic).
    """

    source_rate_hz: float = 1e9
    detector_efficiency: float = 0.2
    background_yield: float = 1e-6
    dead_time_s: float = 0.0
    misalignment: float = 0.01
    signal_intensity: float = 0.5
    decoy_intensity: float = 0.1
    error_correction_efficiency: float = 1.16
    sifting: float = 0.5
    decoys: Decoys = Decoys.VACUUM_AND_WEAK
    block_pulses: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.decoy_intensity < self.signal_intensity:
            raise ValueError("expected a decoy_intensity above 0 and below signal_intensity")


@dataclass(frozen=True, slots=True)
class SinglePhotons:
    """What is known of the pulses that held one photon.

    Attributes:
        yield_: Y1, or a lower bound of it.
        error: e1, or an upper bound of it.
    """

    yield_: float
    error: float


@dataclass(frozen=True, slots=True)
class KeyRate:
    """What a link makes.

    Attributes:
        qber: E_mu, error rate of the sifted key.
        gain: Q_mu, clicks per signal pulse.
        single_photon_gain: Q1, clicks per signal pulse that came from single photons.
        per_pulse: R, secret bits per pulse; 0 or less where there is no secret key.
        secret_bps: secret bits per second; 0 where there is no secret key.
    """

    qber: float
    gain: float
    single_photon_gain: float
    per_pulse: float
    secret_bps: float


def binary_entropy(probability: float) -> float:
    """h(x) = -x log2 x - (1 - x) log2 (1 - x), in bits."""
    if not 0 < probability < 1:
        return 0.0
    rest = 1 - probability
    return -probability * math.log2(probability) - rest * math.log2(rest)


def fibre_loss_db(length_km: float, loss_db_per_km: float, extra_loss_db: float = 0.0) -> float:
    """Loss of a fibre and of the connectors and splices on it, in dB."""
    return length_km * loss_db_per_km + extra_loss_db


def transmittance(loss_db: float, detector_efficiency: float) -> float:
    """eta = t_AB eta_Bob with t_AB = 10^(-loss / 10). Ma et al. (3) to (5)."""
    return 10 ** (-loss_db / 10) * detector_efficiency


def gain(eta: float, intensity: float, background_yield: float) -> float:
    """Q = Y0 + 1 - exp(-eta mu). Ma et al. (10)."""
    return background_yield - math.expm1(-eta * intensity)


def error_gain(eta: float, intensity: float, background_yield: float, misalignment: float) -> float:
    """E Q = e0 Y0 + e_d (1 - exp(-eta mu)). Ma et al. (11)."""
    return BACKGROUND_ERROR * background_yield - misalignment * math.expm1(-eta * intensity)


def single_photons_exactly(
    eta: float, background_yield: float, misalignment: float
) -> SinglePhotons:
    """Y1 = Y0 + eta and e1 = (e0 Y0 + e_d eta) / Y1: infinitely many decoys. Ma et al. (7), (9)."""
    yield_ = background_yield + eta
    if yield_ <= 0:
        return SinglePhotons(0.0, BACKGROUND_ERROR)
    return SinglePhotons(
        yield_, (BACKGROUND_ERROR * background_yield + misalignment * eta) / yield_
    )


def single_photons_bounded(eta: float, optics: Optics) -> SinglePhotons:
    """Bounds from one weak decoy and the vacuum. Ma et al. (34) and (37).

    With ``block_pulses`` the counts of the decoys are taken DEVIATIONS standard deviations worse
    than they are, as in Ma et al., section IV. That is an approximation with a Gaussian, and no
    composable proof (for which see Lim et al., Phys. Rev. A 89, 022307 (2014)).
    """
    mu, nu, y0 = optics.signal_intensity, optics.decoy_intensity, optics.background_yield
    decoy_pulses = optics.block_pulses * DECOY_FRACTION
    gain_mu = gain(eta, mu, y0)
    gain_nu, _ = _fluctuating(gain(eta, nu, y0), decoy_pulses)
    y0_low, y0_high = _fluctuating(y0, decoy_pulses)
    _, errors_nu = _fluctuating(error_gain(eta, nu, y0, optics.misalignment), decoy_pulses)
    yield_ = (mu / (mu * nu - nu**2)) * (
        gain_nu * math.exp(nu)
        - gain_mu * math.exp(mu) * nu**2 / mu**2
        - (mu**2 - nu**2) / mu**2 * y0_high
    )
    if yield_ * nu <= 0:  # where next to nothing arrives, the product may vanish before it does
        return SinglePhotons(0.0, BACKGROUND_ERROR)
    error = (errors_nu * math.exp(nu) - BACKGROUND_ERROR * y0_low) / (yield_ * nu)
    return SinglePhotons(yield_, min(max(error, 0.0), BACKGROUND_ERROR))


def key_rate(optics: Optics, loss_db: float) -> KeyRate:
    """What a link of that loss makes: R = q {-f Q_mu h(E_mu) + Q1 [1 - h(e1)]}. Ma et al. (1).

    Args:
        optics: source and receiver.
        loss_db: of the channel between them; the receiver's own is in its efficiency.
    """
    eta = transmittance(loss_db, optics.detector_efficiency)
    mu, y0, e_d = optics.signal_intensity, optics.background_yield, optics.misalignment
    gain_mu = gain(eta, mu, y0)
    if gain_mu <= 0:
        return KeyRate(BACKGROUND_ERROR, 0.0, 0.0, 0.0, 0.0)
    qber = error_gain(eta, mu, y0, e_d) / gain_mu
    if optics.decoys is Decoys.INFINITE:
        single = single_photons_exactly(eta, y0, e_d)
    else:
        single = single_photons_bounded(eta, optics)
    gain_1 = single.yield_ * mu * math.exp(-mu)  # Ma et al. (8)
    correction = optics.error_correction_efficiency * gain_mu * binary_entropy(qber)
    per_pulse = optics.sifting * (gain_1 * (1 - binary_entropy(single.error)) - correction)
    counted = _counted(gain_mu * optics.source_rate_hz, optics.dead_time_s)
    secret_bps = max(0.0, per_pulse) * optics.source_rate_hz * counted
    return KeyRate(qber, gain_mu, gain_1, per_pulse, secret_bps)


def secret_fraction(qber: float) -> float:
    """1 - 2 h(e): what is left of a sifted key from single photons, 0 from ABORT_QBER on."""
    if qber >= ABORT_QBER:
        return 0.0
    return max(0.0, 1 - 2 * binary_entropy(qber))


def reach_km(optics: Optics, loss_db_per_km: float) -> float:
    """The length of fibre at which the secret key ends, in km, to a metre; 0 where none begins."""
    low, high = 0.0, 2000.0
    if key_rate(optics, 0.0).per_pulse <= 0:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if key_rate(optics, middle * loss_db_per_km).per_pulse > 0:
            low = middle
        else:
            high = middle
    return low


def _fluctuating(probability: float, pulses: float) -> tuple[float, float]:
    """Lowest and highest a probability may be that was measured over some pulses."""
    if pulses <= 0:
        return probability, probability
    deviation = DEVIATIONS * math.sqrt(probability / pulses)
    return max(0.0, probability - deviation), probability + deviation


def _counted(clicks_per_s: float, dead_time_s: float) -> float:
    """Part of the clicks that a detector with non-extending dead time counts."""
    return 1 / (1 + clicks_per_s * dead_time_s)
