"""What a span makes, by its kind: a given rate, a fibre, or a satellite during its passes.

Each kind says at any time how many bits per second it makes and at which QBER, and how many bits
it made between two times. Times are seconds since the start of the simulator.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from qproxy.config.network import (
    AnySpanConfig,
    FibreSpanConfig,
    FixedSpanConfig,
    OpticsConfig,
    SatelliteSpanConfig,
)
from qproxy.config.network_checks import orbit_of
from qproxy.sim.physics.bb84 import Optics, fibre_loss_db, key_rate, secret_fraction
from qproxy.sim.physics.disturb import intercepted
from qproxy.sim.physics.satellite import Orbit


@dataclass(frozen=True, slots=True)
class Attack:
    """What is done to the photons of a span.

    Attributes:
        misalignment: probability that a photon hits the wrong detector, in place of the
            configured one; or None.
        fraction: part of the pulses that somebody measures and sends anew.
    """

    misalignment: float | None = None
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Made:
    """What a span makes at one moment.

    Attributes:
        qber: quantum bit error rate, or None where no photons arrive.
        key_rate_bps: secret key, in bits per second.
        hopeless: whether photons arrive and no secret key can be had from them.
    """

    qber: float | None
    key_rate_bps: float
    hopeless: bool = False


#: What a satellite below the horizon makes.
OUT_OF_SIGHT = Made(None, 0.0)


class Production(Protocol):
    """One span's way to make key."""

    def attack(self, attack: Attack) -> None:
        """Let something be done to the photons from now on."""

    def at(self, elapsed_s: float) -> Made:
        """What is made at a time."""

    def bits(self, from_s: float, to_s: float) -> float:
        """Secret bits made between two times, if the attack was the same all along."""


class FixedProduction:
    """A rate and a QBER as configured.

    An attack raises the QBER as it would that of photons, and the rate falls with the secret
    fraction 1 - 2 h(QBER).
    """

    def __init__(self, config: FixedSpanConfig) -> None:
        self._config = config
        self.attack(Attack())

    def attack(self, attack: Attack) -> None:
        """Take the QBER and rate of now on."""
        config = self._config
        error = config.qber if attack.misalignment is None else attack.misalignment
        qber = intercepted(error, attack.fraction)
        rate = config.key_rate_bps
        if qber != config.qber:
            usual = secret_fraction(config.qber)
            rate *= min(1.0, secret_fraction(qber) / usual) if usual > 0 else 0.0
        self._made = _judged(qber, rate, config.abort_qber, hopeless=False)

    def at(self, elapsed_s: float) -> Made:
        """The same at all times."""
        return self._made

    def bits(self, from_s: float, to_s: float) -> float:
        """Rate times time."""
        return (to_s - from_s) * self._made.key_rate_bps


class FibreProduction:
    """Decoy-state BB84 over a fibre of some length."""

    def __init__(self, config: FibreSpanConfig, optics: Optics) -> None:
        self._config = config
        self._optics = optics
        self._loss_db = fibre_loss_db(config.length_km, config.loss_db_per_km, config.extra_loss_db)
        self.attack(Attack())

    def attack(self, attack: Attack) -> None:
        """Work out the QBER and rate of now on."""
        self._made = _by_optics(
            _attacked(self._optics, attack), self._loss_db, self._config.abort_qber
        )

    def at(self, elapsed_s: float) -> Made:
        """The same at all times."""
        return self._made

    def bits(self, from_s: float, to_s: float) -> float:
        """Rate times time."""
        return (to_s - from_s) * self._made.key_rate_bps


class SatelliteProduction:
    """The same to a satellite, second by second of its pass."""

    def __init__(self, config: SatelliteSpanConfig, optics: Optics) -> None:
        self._config = config
        self._optics = optics
        self._orbit = orbit_of(config)
        self.attack(Attack())

    def attack(self, attack: Attack) -> None:
        """Work out every second of a pass anew."""
        optics = _attacked(self._optics, attack)
        self._seconds = _seconds_of_pass(optics, self._orbit, self._config.abort_qber)
        rates = (made.key_rate_bps for made in self._seconds)
        self._made_by = list(itertools.accumulate(rates, initial=0.0))

    def at(self, elapsed_s: float) -> Made:
        """What this second of the pass makes; nothing, and no QBER, between passes."""
        if not self._orbit.in_sight(elapsed_s):
            return OUT_OF_SIGHT
        return self._seconds[int(self._orbit.place(elapsed_s)[1])]

    def bits(self, from_s: float, to_s: float) -> float:
        """What the passes between two times made."""
        return self._since_start(to_s) - self._since_start(from_s)

    def _since_start(self, elapsed_s: float) -> float:
        passes, into_s = self._orbit.place(elapsed_s)
        duration_s = self._orbit.pass_duration_s
        return passes * self._within(duration_s) + self._within(min(into_s, duration_s))

    def _within(self, into_s: float) -> float:
        """Bits of one pass until that many seconds after its beginning."""
        whole = int(into_s)
        part = into_s - whole
        return self._made_by[whole] + (part * self._seconds[whole].key_rate_bps if part else 0.0)


def production_of(config: AnySpanConfig, optics: Mapping[str, OpticsConfig]) -> Production:
    """How a configured span makes key.

    Args:
        config: the span.
        optics: sources and receivers by name.
    """
    if isinstance(config, FixedSpanConfig):
        return FixedProduction(config)
    chosen = Optics() if config.optics is None else optics[config.optics]
    if isinstance(config, FibreSpanConfig):
        return FibreProduction(config, chosen)
    return SatelliteProduction(config, chosen)


@functools.lru_cache(maxsize=64)
def _seconds_of_pass(optics: Optics, orbit: Orbit, abort_qber: float) -> tuple[Made, ...]:
    """Every second of a pass, from rise to set."""
    return tuple(
        _by_optics(optics, orbit.loss_db(second + 0.5), abort_qber)
        for second in range(math.ceil(orbit.pass_duration_s))
    )


def _attacked(optics: Optics, attack: Attack) -> Optics:
    error = optics.misalignment if attack.misalignment is None else attack.misalignment
    return dataclasses.replace(optics, misalignment=intercepted(error, attack.fraction))


def _by_optics(optics: Optics, loss_db: float, abort_qber: float) -> Made:
    rate = key_rate(optics, loss_db)
    return _judged(rate.qber, rate.secret_bps, abort_qber, hopeless=rate.per_pulse <= 0)


def _judged(qber: float, key_rate_bps: float, abort_qber: float, *, hopeless: bool) -> Made:
    """At the abort threshold nothing is made, whatever the rate would be."""
    if qber >= abort_qber:
        return Made(qber, 0.0, hopeless=True)
    return Made(qber, key_rate_bps, hopeless=hopeless)
