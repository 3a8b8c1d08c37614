"""A span: a quantum link between two nodes, and the key that both ends have stored of it.

What it makes unless something disturbs it is for :mod:`qproxy.sim.production` to say. What can
disturb it is told apart because gateways must tell it apart:

========== ============================ ============================ ======================
event      secret key rate              QBER                         in the world
========== ============================ ============================ ======================
cut        none                         none is measured             the fibre is dug up
jam        none                         as before, or the one given  the channel is flooded
intercept  less, then none              a quarter of the fraction up somebody listens
misalign   less, then none              about the one given          the optics drift
degrade    ``rate_factor`` of the rate  the one given                whatever a test needs
restore    as configured                as configured
========== ============================ ============================ ======================

From its abort threshold on (11 % unless configured: 1 - 2 h(e) = 0) a span makes no key, whatever
its rate was, and says ``aborted``. What is stored already was made before and can still be used.

Time is an argument, in seconds of any monotonic clock; randomness is a function passed in.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from qproxy.config.network import AnySpanConfig
from qproxy.sim.events import MAX_QBER
from qproxy.sim.production import Attack, Made, Production


class LinkState(enum.StrEnum):
    """How a span or a route is, as ``status_extension`` says it, from best to worst."""

    UP = "up"
    DEGRADED = "degraded"
    OUT_OF_SIGHT = "out_of_sight"
    ABORTED = "aborted"
    JAMMED = "jammed"
    CUT = "cut"


class NotEnoughKeys(Exception):  # noqa: N818 - an ordinary answer, and part of the interface
    """Less key is stored than was asked for. Nothing was taken."""


@dataclass(frozen=True, slots=True)
class SpanReport:
    """A span at one moment.

    Attributes:
        state: what disturbs it.
        qber: quantum bit error rate, or None where no photons arrive.
        key_rate_bps: secret key made now, in bits per second.
        stored_bits: secret key stored at both ends.
        used_bits: secret key taken since the start.
    """

    state: LinkState
    qber: float | None
    key_rate_bps: float
    stored_bits: int
    used_bits: int


@dataclass(frozen=True, slots=True)
class _Set:
    """A rate and a QBER in place of what the optics make."""

    rate_factor: float
    qber: float


class SimulatedSpan:
    """One span.

    The store is a count of bits: the bits themselves are drawn when they are used, so that no
    secret lies about that nobody has asked for.

    Args:
        config: what stands in the file.
        production: what it makes unless disturbed.
        now: the time it starts.
        random_bytes: gives that many random bytes.
    """

    def __init__(
        self,
        config: AnySpanConfig,
        production: Production,
        *,
        now: float,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.config = config
        self._production = production
        self._random_bytes = random_bytes
        self._started_at = self._updated_at = now
        self._stored_bits = float(min(config.initial_buffer_bits, config.max_buffer_bits))
        self._used_bits = 0
        self._medium: LinkState | None = None
        self._jam_qber: float | None = None
        self._set: _Set | None = None
        self._attack = Attack()

    def report(self, now: float) -> SpanReport:
        """The span at ``now``."""
        self._advance(now)
        made = self._made()
        return SpanReport(
            self._state(made), made.qber, made.key_rate_bps, int(self._stored_bits), self._used_bits
        )

    def stored_bits(self, now: float) -> int:
        """Secret key that can be taken at ``now``, in bits."""
        self._advance(now)
        return int(self._stored_bits)

    def makes_key(self, now: float) -> bool:
        """Whether it makes any secret key at ``now``."""
        self._advance(now)
        return self._made().key_rate_bps > 0

    def take(self, size_bits: int, now: float) -> bytearray:
        """Use up stored key. It is the same at both ends, and never used again.

        Args:
            size_bits: how much, a multiple of 8.
            now: the time.

        Returns:
            The key, owned by the caller.

        Raises:
            NotEnoughKeys: less is stored. It is left as it is.
        """
        self._advance(now)
        if self._stored_bits < size_bits:
            raise NotEnoughKeys
        self._stored_bits -= size_bits
        self._used_bits += size_bits
        return bytearray(self._random_bytes(size_bits // 8))

    def cut(self, now: float) -> None:
        """Nothing gets through any more."""
        self._advance(now)
        self._medium, self._set = LinkState.CUT, None

    def jam(self, now: float, qber: float | None = None) -> None:
        """No secret key any more; the QBER stays as it is, unless one is given."""
        self._advance(now)
        self._medium, self._jam_qber = LinkState.JAMMED, qber

    def intercept(self, now: float, fraction: float) -> None:
        """Let somebody measure a fraction of the pulses, 0 to 1, and send them anew."""
        self._attacked(now, Attack(self._attack.misalignment, fraction))

    def misalign(self, now: float, error: float) -> None:
        """Let photons hit the wrong detector with that probability, 0 to MAX_QBER."""
        self._attacked(now, Attack(error, self._attack.fraction))

    def degrade(self, now: float, *, rate_factor: float, qber: float) -> None:
        """Less secret key, more errors, whatever the optics say and is done to the photons.

        Args:
            now: the time.
            rate_factor: what is left of the undisturbed rate, 0 to 1.
            qber: the quantum bit error rate from now on, 0 to MAX_QBER.

        Raises:
            ValueError: a figure is out of its range.
        """
        if not 0 <= rate_factor <= 1:
            raise ValueError("expected a rate_factor from 0 to 1")
        if not 0 <= qber <= MAX_QBER:
            raise ValueError(f"expected a qber from 0 to {MAX_QBER}")
        self._attacked(now, Attack())
        self._medium, self._set = None, _Set(rate_factor, qber)

    def restore(self, now: float) -> None:
        """As configured. What is stored stays."""
        self._attacked(now, Attack())
        self._medium, self._jam_qber = None, None

    def drain(self, now: float) -> None:
        """Throw away what is stored."""
        self._advance(now)
        self._stored_bits = 0.0

    def _attacked(self, now: float, attack: Attack) -> None:
        self._advance(now)  # what was made until now was made without it
        self._set = None  # figures that were set would hide what is done to the photons
        if attack != self._attack:
            self._attack = attack
            self._production.attack(attack)

    def _advance(self, now: float) -> None:
        before, self._updated_at = self._updated_at, max(self._updated_at, now)
        if self._updated_at > before and self._medium is None:
            made = self._production.bits(before - self._started_at, now - self._started_at)
            made *= self._factor()
            self._stored_bits = min(self._stored_bits + made, float(self.config.max_buffer_bits))

    def _factor(self) -> float:
        if self._set is None:
            return 1.0
        return 0.0 if self._set.qber >= self.config.abort_qber else self._set.rate_factor

    def _made(self) -> Made:
        """What it makes now, disturbances and all."""
        made = self._production.at(self._updated_at - self._started_at)
        if self._medium is LinkState.CUT:
            return Made(None, 0.0)
        if self._set is not None and made.qber is not None:
            hopeless = self._set.qber >= self.config.abort_qber
            made = Made(self._set.qber, made.key_rate_bps * self._factor(), hopeless=hopeless)
        if self._medium is LinkState.JAMMED:
            return Made(made.qber if self._jam_qber is None else self._jam_qber, 0.0)
        return made

    def _state(self, made: Made) -> LinkState:
        if self._medium is not None:
            return self._medium
        if made.hopeless:
            return LinkState.ABORTED
        if made.qber is None:
            return LinkState.OUT_OF_SIGHT
        quiet = self._set is None and self._attack == Attack()
        return LinkState.UP if quiet else LinkState.DEGRADED
