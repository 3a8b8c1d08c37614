"""The simulated quantum network as configured: nodes, spans between them, routes over them.

Apart from `model`, for only `qproxy kme-sim` knows any of it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from qproxy.sim.physics.bb84 import ABORT_QBER, Optics

#: Most KMEs of one simulator.
MAX_SIMULATED_KMES: Final = 16
#: Most trusted relays.
MAX_RELAYS: Final = 256
#: Most spans.
MAX_SPANS: Final = 512
#: Most routes.
MAX_ROUTES: Final = 64
#: Most paths that one route may choose from.
MAX_PATHS: Final = 8
#: Most spans in one path.
MAX_HOPS: Final = 64
#: Most keys in one request to a network: each of them is passed on at every hop.
MAX_KEYS_PER_REQUEST: Final = 1000
#: Most key that the two ends of a span store, in bits.
MAX_BUFFER_BITS: Final = 10_000_000_000


class RoutePolicy(enum.StrEnum):
    """What a route does when its first path makes no key."""

    FAILOVER = "failover"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpticsConfig(Optics):
    """Source and receiver by a name that spans refer to.

    Attributes:
        name: Its key in `optics`.
    """

    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanConfig:
    """What every span has.

    Attributes:
        name: Its key in `spans`.
        between: The two nodes it joins.
        abort_qber: QBER from which on it makes no key.
        max_buffer_bits: Key stored at its two ends at most; the rest is thrown away.
        initial_buffer_bits: Key stored at the start.
    """

    name: str
    between: tuple[str, ...]
    abort_qber: float = ABORT_QBER
    max_buffer_bits: int = 16_000_000
    initial_buffer_bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSpanConfig(SpanConfig):
    """A span whose rate and QBER are given.

    Attributes:
        key_rate_bps: Secret key made, in bits per second.
        qber: Quantum bit error rate, 0 to 0.5.
    """

    key_rate_bps: float
    qber: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class FibreSpanConfig(SpanConfig):
    """A fibre, whose rate and QBER follow from its length.

    Attributes:
        length_km: Its length.
        loss_db_per_km: What it loses on the way.
        extra_loss_db: What connectors, splices and switches lose beside that.
        optics: Name of the source and receiver; None means the defaults.
    """

    length_km: float
    loss_db_per_km: float = 0.2
    extra_loss_db: float = 0.0
    optics: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SatelliteSpanConfig(SpanConfig):
    """A link to a satellite, which is there during its passes only.

    Attributes:
        zenith_loss_db: Loss when it is right overhead.
        altitude_km: How high it flies.
        first_pass_s: When it first rises, from the start of the simulator.
        pass_duration_s: From rise to set.
        pass_interval_s: From one rise to the next.
        optics: Name of the source and receiver; None means the defaults.
    """

    zenith_loss_db: float
    altitude_km: float = 500.0
    first_pass_s: float = 0.0
    pass_duration_s: float = 300.0
    pass_interval_s: float = 5400.0
    optics: str | None = None


AnySpanConfig = FixedSpanConfig | FibreSpanConfig | SatelliteSpanConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    """How two KMEs get keys in common.

    Attributes:
        name: Its key in `routes`.
        between: The two KMEs.
        paths: Lists of spans, the preferred one first; none means that they are looked for.
        policy: What happens when the preferred path makes no key.
        saes: SAEs whose keys take this route; none means every pair of the two KMEs that no
            other route names.
        disjoint_from: Another route with which it must share no span and no relay, or None.
    """

    name: str
    between: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...] = ()
    policy: RoutePolicy = RoutePolicy.FAILOVER
    saes: tuple[str, ...] = ()
    disjoint_from: str | None = None

    @property
    def max_paths(self) -> int:
        """How many of its paths may ever be used."""
        return 1 if self.policy is RoutePolicy.PINNED else MAX_PATHS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFormatConfig:
    """What keys SAEs may ask for.

    Attributes:
        key_size_bits: Where a request names no size.
        min_key_size_bits: Smallest size.
        max_key_size_bits: Largest size.
        max_key_per_request: Most keys in one request.
        max_sae_id_count: Most additional slave SAEs that get the same keys; 0 means none.
    """

    key_size_bits: int = 256
    min_key_size_bits: int = 64
    max_key_size_bits: int = 1024
    max_key_per_request: int = 128
    max_sae_id_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A simulated quantum network.

    Attributes:
        spans: What joins two nodes.
        routes: Which KMEs get keys in common.
        relays: Trusted nodes that pass keys on.
        optics: Sources and receivers that spans refer to.
        keys: What keys SAEs may ask for.
    """

    spans: Mapping[str, AnySpanConfig]
    routes: Mapping[str, RouteConfig]
    relays: tuple[str, ...] = ()
    optics: Mapping[str, OpticsConfig] = field(default_factory=dict)
    keys: KeyFormatConfig = field(default_factory=KeyFormatConfig)
