"""The network that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable

from qproxy.config.model import KmeSimConfig
from qproxy.config.network import FixedSpanConfig, KeyFormatConfig, NetworkConfig, RouteConfig
from qproxy.config.network_checks import LINK_NAME
from qproxy.errors import ConfigError
from qproxy.sim.network import KmeMode, SimulatedNetwork
from qproxy.sim.relay import Tap


def network_config(config: KmeSimConfig) -> NetworkConfig:
    """The network as configured, or one of a single span where there is only a link.

    Raises:
        ConfigError: a link joins two KMEs, and there are not two.
    """
    if config.network is not None:
        return config.network
    if len(config.kmes) != 2:
        raise ConfigError(f"expected two KMEs, got {len(config.kmes)}", key="kme_sim.kmes")
    link, between = config.link, tuple(config.kmes)
    span = FixedSpanConfig(
        name=LINK_NAME,
        between=between,
        key_rate_bps=link.key_rate_bps,
        qber=link.qber,
        max_buffer_bits=link.max_key_count * link.key_size_bits,
        initial_buffer_bits=link.initial_key_count * link.key_size_bits,
    )
    keys = KeyFormatConfig(
        key_size_bits=link.key_size_bits,
        min_key_size_bits=link.min_key_size_bits,
        max_key_size_bits=link.max_key_size_bits,
        max_key_per_request=link.max_key_per_request,
    )
    return NetworkConfig(
        spans={LINK_NAME: span},
        routes={LINK_NAME: RouteConfig(name=LINK_NAME, between=between)},
        keys=keys,
    )


def build_network(
    config: KmeSimConfig,
    *,
    now: float,
    random_bytes: Callable[[int], bytes],
    on_mode: Callable[[str, KmeMode], None] = lambda name, mode: None,
    tap: Tap = lambda span, sealed: None,
) -> SimulatedNetwork:
    """Make the network of a configuration.

    Args:
        config: what ``qproxy kme-sim`` read.
        now: the time it starts, in seconds of any monotonic clock.
        random_bytes: gives that many random bytes.
        on_mode: told of every KME whose mode is set.
        tap: told of everything that travels between nodes.

    Raises:
        ConfigError: a link joins two KMEs, and there are not two.
    """
    return SimulatedNetwork(
        network_config(config),
        config.saes,
        tuple(config.kmes),
        now=now,
        random_bytes=random_bytes,
        on_mode=on_mode,
        tap=tap,
    )
