"""A quantum link that makes secret key at a set rate, until somebody disturbs it.

What is modelled is what an SAE can see: a store of key that fills at ``key_rate_bps`` up to
``max_key_count`` keys, and the QBER. The optics behind the two figures are not. Four ways to be
disturbed, told apart because gateways must tell them apart:

========== ============================ ============================ ======================
action     secret key rate              QBER                         in the world
========== ============================ ============================ ======================
cut        none                         none is measured             the fibre is dug up
jam        none                         as before                    the channel is flooded
degrade    ``rate_factor`` of the rate  the one given                worse loss, or a tap
restore    as configured                as configured
========== ============================ ============================ ======================

At a QBER of 11 % or more there is no secret key to be had, whatever the rate was (BB84 with
one-way post-processing: 1 - 2 h(e) = 0), and the link says ``aborted``. What is stored already
was made before and can still be taken.

Time is an argument, in seconds of any monotonic clock; randomness is a function passed in.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from qproxy.config.model import LinkConfig

#: QBER from which on BB84 yields no secret key. Source: Shor and Preskill, PRL 85, 441 (2000).
ABORT_QBER = 0.11
#: A QBER beyond this is more errors than guessing makes.
MAX_QBER = 0.5


class LinkState(enum.StrEnum):
    """What the link says of itself in ``status_extension``."""

    UP = "up"
    DEGRADED = "degraded"
    JAMMED = "jammed"
    CUT = "cut"
    ABORTED = "aborted"


class NotEnoughKeys(Exception):  # noqa: N818 - an ordinary answer, and part of the interface
    """The link has made less key than was asked for. Nothing was taken."""


@dataclass(frozen=True, slots=True)
class LinkReport:
    """The link at one moment.

    Attributes:
        state: what disturbs it.
        qber: quantum bit error rate, or None where no photons arrive.
        key_rate_bps: secret key made now, in bits per second.
        stored_bits: secret key ready to be taken.
    """

    state: LinkState
    qber: float | None
    key_rate_bps: float
    stored_bits: int


class SimulatedLink:
    """The link, and how much key is stored at its two ends.

    The store is a count of bits: the bits themselves are drawn when they are taken, so that no
    secret lies about that nobody has asked for.

    Args:
        config: rates and sizes.
        now: the time it starts.
        random_bytes: gives that many random bytes.
    """

    def __init__(
        self, config: LinkConfig, *, now: float, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._config = config
        self._random_bytes = random_bytes
        self._capacity_bits = config.max_key_count * config.key_size_bits
        initial_bits = config.initial_key_count * config.key_size_bits
        self._stored_bits = float(min(initial_bits, self._capacity_bits))
        self._updated_at = now
        self._state = LinkState.UP
        self._rate_factor = 1.0
        self._qber = config.qber

    def report(self, now: float) -> LinkReport:
        """The link at ``now``."""
        self._advance(now)
        qber = None if self._state is LinkState.CUT else self._qber
        return LinkReport(self._shown_state(), qber, self._rate_bps(), int(self._stored_bits))

    def stored_key_count(self, now: float) -> int:
        """Keys of the default size that can be taken at ``now``."""
        self._advance(now)
        return int(self._stored_bits) // self._config.key_size_bits

    def take(self, number: int, size_bits: int, now: float) -> list[bytearray]:
        """Take secret key out of the store.

        Args:
            number: how many keys.
            size_bits: size of each, a multiple of 8.
            now: the time.

        Returns:
            The keys, owned by the caller.

        Raises:
            NotEnoughKeys: the store holds less. It is left as it is.
        """
        self._advance(now)
        needed_bits = number * size_bits
        if self._stored_bits < needed_bits:
            raise NotEnoughKeys
        self._stored_bits -= needed_bits
        return [bytearray(self._random_bytes(size_bits // 8)) for _ in range(number)]

    def cut(self, now: float) -> None:
        """Nothing gets through any more."""
        self._disturb(now, LinkState.CUT, rate_factor=0.0, qber=self._config.qber)

    def jam(self, now: float) -> None:
        """No secret key any more; the QBER stays as it is."""
        self._disturb(now, LinkState.JAMMED, rate_factor=0.0, qber=self._qber)

    def degrade(self, now: float, *, rate_factor: float, qber: float) -> None:
        """Less secret key, more errors.

        Args:
            now: the time.
            rate_factor: what is left of the configured rate, 0 to 1.
            qber: the quantum bit error rate from now on, 0 to MAX_QBER.

        Raises:
            ValueError: a figure is out of its range.
        """
        if not 0 <= rate_factor <= 1:
            raise ValueError("expected a rate_factor from 0 to 1")
        if not 0 <= qber <= MAX_QBER:
            raise ValueError(f"expected a qber from 0 to {MAX_QBER}")
        self._disturb(now, LinkState.DEGRADED, rate_factor=rate_factor, qber=qber)

    def restore(self, now: float) -> None:
        """As configured. What is stored stays."""
        self._disturb(now, LinkState.UP, rate_factor=1.0, qber=self._config.qber)

    def drain(self, now: float) -> None:
        """Throw away what is stored."""
        self._advance(now)
        self._stored_bits = 0.0

    def _disturb(self, now: float, state: LinkState, *, rate_factor: float, qber: float) -> None:
        self._advance(now)  # what was made until now was made at the old rate
        self._state, self._rate_factor, self._qber = state, rate_factor, qber

    def _advance(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._updated_at)
        self._updated_at = max(self._updated_at, now)
        made_bits = elapsed_s * self._rate_bps()
        self._stored_bits = min(self._stored_bits + made_bits, float(self._capacity_bits))

    def _rate_bps(self) -> float:
        if self._qber >= ABORT_QBER:
            return 0.0
        return self._config.key_rate_bps * self._rate_factor

    def _shown_state(self) -> LinkState:
        quiet = self._state in {LinkState.CUT, LinkState.JAMMED}
        return LinkState.ABORTED if self._qber >= ABORT_QBER and not quiet else self._state
