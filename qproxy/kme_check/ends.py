"""Which KME, as which SAE: the ends of quantum links, out of configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.config.model import (
    Etsi014SourceConfig,
    GatewayConfig,
    PathConfig,
    PeerConfig,
    SourceEndpoint,
)
from qproxy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class End:
    """One gateway at its KME.

    Attributes:
        name: of the key source in the configuration; with the SAE ID where two are called alike.
        kme: where the KME is, and what it takes to reach it.
        local_sae_id: who the gateway is to the KME.
        peer_sae_id: who the far gateway is.
        qkd_key_size_bits: size of the keys that the gateway asks for.
        qkd_keys_per_epoch: how many keys go into one epoch.
        connect_timeout_s: for TCP and TLS.
        request_timeout_s: for one exchange.
        qber_field: where in a status' extension the QBER is looked for.
        key_rate_field: where the key rate is.
    """

    name: str
    kme: SourceEndpoint
    local_sae_id: str
    peer_sae_id: str
    qkd_key_size_bits: int = 256
    qkd_keys_per_epoch: int = 1
    connect_timeout_s: float = 1.0
    request_timeout_s: float = 2.0
    qber_field: str = "qber"
    key_rate_field: str = "key_rate_bps"

    def faces(self, other: End) -> bool:
        """Whether the other end is the far one of the same link."""
        return (self.local_sae_id, self.peer_sae_id) == (other.peer_sae_id, other.local_sae_id)

    def __str__(self) -> str:
        return f"{self.name} (SAE {self.local_sae_id} with {self.peer_sae_id})"


def ends_of(config: GatewayConfig, sources: Sequence[str] = ()) -> list[End]:
    """Every end that a gateway's configuration names.

    Args:
        config: of a gateway.
        sources: names of key sources to look at; every one of type ``etsi-qkd-014`` where empty.
            ``NAME/KME`` is one of the ``kmes`` of a source; without it the first is taken.

    Raises:
        ConfigError: a name is none of an ETSI GS QKD 014 source.
    """
    named = dict(name.partition("/")[::2] for name in sources)
    found = []
    for peer in config.peers.values():
        for path in peer.paths:
            source = config.key_sources.get(path.source)
            if isinstance(source, Etsi014SourceConfig) and (not named or source.name in named):
                found.append(_end(config, source, named.get(source.name, ""), peer, path))
    for name in named:
        source = config.key_sources.get(name)
        if source is not None and not isinstance(source, Etsi014SourceConfig):
            raise ConfigError(
                "is not of type etsi-qkd-014", file=config.path, key=f"key_sources.{name}"
            )
    return found


def _end(
    config: GatewayConfig, source: Etsi014SourceConfig, kme: str, peer: PeerConfig, path: PathConfig
) -> End:
    chosen = [each for each in source.endpoints if not kme or each.name == kme]
    if not chosen:
        known = ", ".join(each.name for each in source.endpoints)
        raise ConfigError(
            f"no KME {kme!r}",
            file=config.path,
            key=f"key_sources.{source.name}",
            hint=f"expected one of {known}",
        )
    return End(
        f"{source.name}/{kme}" if kme else source.name,
        chosen[0],
        path.local_sae_id or peer.local_sae_id,
        path.peer_sae_id or peer.peer_sae_id,
        peer.qkd_key_size_bits,
        peer.qkd_keys_per_epoch,
        source.connect_timeout_s,
        source.request_timeout_s,
        source.qber_field,
        source.key_rate_field,
    )


def choose_ends(configs: Sequence[GatewayConfig], sources: Sequence[str] = ()) -> list[End]:
    """The one link to check: both its ends, or the one that these configurations reach.

    Args:
        configs: one or two gateways'.
        sources: names of key sources that narrow the choice.

    Returns:
        Two ends that face each other, or one.

    Raises:
        ConfigError: there is none, or more than one to choose from.
    """
    unknown = [
        name
        for name in (each.partition("/")[0] for each in sources)
        if not any(name in config.key_sources for config in configs)
    ]
    if unknown:
        raise ConfigError(
            f"no key source {unknown[0]!r}", file=configs[0].path, hint="--source takes its name"
        )
    found: list[End] = []
    for config in configs:
        found += [end for end in ends_of(config, sources) if end not in found]
    pairs = [
        [one, other]
        for index, one in enumerate(found)
        for other in found[index + 1 :]
        if one.faces(other)
    ]
    if len(pairs) == 1:
        return _told_apart(pairs[0])
    if not pairs and len(found) == 1:
        return found
    raise _no_choice(configs, found, pairs)


def _told_apart(ends: list[End]) -> list[End]:
    if len({end.name for end in ends}) == len(ends):
        return ends
    return [dataclasses.replace(end, name=f"{end.name}@{end.local_sae_id}") for end in ends]


def _no_choice(
    configs: Sequence[GatewayConfig], found: Sequence[End], pairs: Sequence[object]
) -> ConfigError:
    path = configs[0].path
    if not found:
        return ConfigError(
            "no peer uses a key source of type etsi-qkd-014",
            file=path,
            hint="name a gateway's configuration with such a key source, used by a peer",
        )
    listed = ", ".join(str(end) for end in found)
    if len(configs) > 1 and not pairs:
        return ConfigError(
            f"these are not the two ends of one link: {listed}",
            file=path,
            hint="local_sae_id of the one must be peer_sae_id of the other, both ways",
        )
    return ConfigError(
        f"expected one link, got {listed}", file=path, hint="name its key sources by --source"
    )
