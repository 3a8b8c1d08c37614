"""Reads a running gateway into :mod:`qproxy.admin.status` values.

The one place of the admin side that touches the runtime's objects. It runs between two steps of
the event loop, so what it reads fits together, and it changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qproxy import __version__
from qproxy.admin.merge import merge_links, merge_stocks
from qproxy.admin.parts import (
    keys_used,
    mode_counts,
    oldest_key_age_s,
    state_counts,
    strictest,
    weakest_key_use,
    weakest_mode,
)
from qproxy.admin.status import (
    AuditStatus,
    GatewayStatus,
    KeySourceStatus,
    KeysUsed,
    KeyUse,
    LinkStatus,
    ListenerStatus,
    PeerStatus,
    PolicyStatus,
    ReasonCounts,
    ServiceStatus,
    StockStatus,
    TunnelStatus,
)
from qproxy.errors import Reason
from qproxy.keys import KeyNature, KeyOrigin
from qproxy.modes import Mode, Policy, stricter
from qproxy.runtime.counters import Tally
from qproxy.tunnel.settings import HYBRID_GROUPS

if TYPE_CHECKING:
    from qproxy.runtime.audit import GatewayAudit
    from qproxy.runtime.gateway import Gateway
    from qproxy.runtime.key_path import KeyPath
    from qproxy.runtime.listeners import Listener
    from qproxy.runtime.peer import Peer
    from qproxy.runtime.qkd import QuantumSide
    from qproxy.runtime.services import Service
    from qproxy.runtime.tunnel import Tunnel


def snapshot(gateway: Gateway, now: float) -> GatewayStatus:
    """Everything the admin side knows about a gateway.

    Args:
        gateway: read, not changed.
        now: seconds of the runtime's monotonic clock.
    """
    return GatewayStatus(
        node=gateway.config.node.name,
        version=__version__,
        kem_provider=gateway.kem_provider,
        uptime_s=now - gateway.started_at,
        draining=gateway.draining,
        peers=tuple(snapshot_peer(peer, now) for peer in gateway.peers.values()),
        listeners=tuple(
            _snapshot_listener(listener, now) for listener in gateway.listeners.values()
        ),
        services=tuple(
            _snapshot_service(service, gateway.peers.values(), now)
            for service in gateway.services.configured.values()
        ),
        unauthenticated=_counts(gateway.refused, now),
        unknown_services=_counts(gateway.services.refused_unknown, now),
        audit=_snapshot_audit(gateway.audit),
    )


def snapshot_peer(peer: Peer, now: float) -> PeerStatus:
    """Everything about one peer. Arguments as for :func:`snapshot`."""
    config, totals, quantum = peer.config, peer.totals, peer.quantum
    tunnels = tuple(_snapshot_tunnel(peer, tunnel, now) for tunnel in peer.tunnels)
    dials = config.address is not None
    sources = tuple(_snapshot_source(path, now) for path in quantum.paths)
    return PeerStatus(
        name=config.name,
        address=str(config.address) if dials else None,
        tunnels_wanted=config.tunnels if dials else None,
        mode=weakest_mode(tunnels),
        source_key=weakest_key_use(tunnels),
        source_key_age_s=oldest_key_age_s(tunnels),
        policy=_policy(peer, (tunnel.policy.peer for tunnel in tunnels)),
        kem=config.kem,
        aead=config.aead,
        psk=config.psk_file is not None,
        tunnels=tunnels,
        sources=sources,
        at_least=quantum.at_least,
        link=_combined_link(quantum, sources, now),
        stock=_combined_stock(sources),
        epochs={Mode.HYBRID: totals.hybrid_epochs, Mode.CLASSICAL_ONLY: totals.classical_epochs},
        keys=totals.keys,
        keys_used=_keys_used(totals.keys_used),
        epoch_failures=mode_counts(totals.epoch_failures.counts),
        mode_changes=mode_counts(totals.mode_changes.counts),
        tunnels_opened=totals.tunnels,
        tunnels_closed=_counts(totals.tunnels_closed, now),
        not_connected=_counts(totals.not_connected, now),
        streams_open=sum(tunnel.streams_open for tunnel in tunnels),
        streams_opened=totals.streams + sum(tunnel.streams_opened for tunnel in tunnels),
        bytes_sent=totals.bytes_sent + sum(tunnel.bytes_sent for tunnel in tunnels),
        bytes_received=totals.bytes_received + sum(tunnel.bytes_received for tunnel in tunnels),
    )


def _snapshot_tunnel(peer: Peer, tunnel: Tunnel, now: float) -> TunnelStatus:
    connection, facts, session = tunnel.connection, tunnel.facts, tunnel.connection.session
    driver = peer.epoch_driver(tunnel)
    mixed_at, deadline = connection.qkd_age_from, connection.qkd_deadline
    return TunnelStatus(
        role=connection.role,
        usable=tunnel.usable,
        age_s=now - facts.established_at,
        mode=facts.mode,
        mode_reason=facts.mode_reason,
        mode_age_s=now - facts.mode_at,
        epoch=connection.epoch,
        epoch_age_s=now - facts.committed_at,
        source_key=_qkd_use(facts.mode, mixed_at),
        source_key_age_s=None if mixed_at is None else now - mixed_at,
        source_key_deadline_s=None if deadline is None else deadline - now,
        sources=tuple(dict.fromkeys(origin.source for origin in facts.origins)),
        keys_are=tuple(dict.fromkeys(origin.nature for origin in facts.origins)),
        simulated=any(origin.nature is KeyNature.SIMULATED for origin in facts.origins),
        policy=_policy(peer, (connection.peer_policy,)),
        tls_group=facts.tls_group,
        tls_group_hybrid=facts.tls_group in HYBRID_GROUPS,
        tls_cipher=facts.tls_cipher,
        rekey_interval_s=None if driver is None else driver.rekey_interval_s,
        economy=driver is not None and driver.economy,
        waits_for=None if driver is None else driver.waits_for,
        round_trip_s=facts.round_trip_s,
        streams_open=len(tunnel.relays),
        streams_opened=session.streams_opened,
        bytes_sent=session.bytes_sent,
        bytes_received=session.bytes_received,
    )


def _qkd_use(mode: Mode | None, mixed_at: float | None) -> KeyUse:
    if mixed_at is None:
        return KeyUse.NEVER
    return KeyUse.FRESH if mode is Mode.HYBRID else KeyUse.CHAINED


def _policy(peer: Peer, told: Iterable[Policy | None]) -> PolicyStatus:
    """The policies between the two ends, the strictest the peer has told in its tunnels."""
    local, remote = peer.config.policy, strictest(told)
    return PolicyStatus(
        local=local,
        peer=remote,
        effective=local if remote is None else stricter(local, remote),
        max_without_qkd_s=peer.config.max_without_qkd_s,
    )


def _snapshot_source(path: KeyPath, now: float) -> KeySourceStatus:
    said = path.last_status
    return KeySourceStatus(
        name=path.source_name,
        path=path.name,
        kind=path.kind,
        keys_are=path.nature,
        says=None if said is None else said.algorithm,
        kme=None if said is None else said.kme or None,
        failing_kmes=() if said is None else said.failing_kmes,
        kme_switches=0 if said is None else said.kme_switches,
        kme_failures={} if said is None else dict(said.kme_failures),
        link=_snapshot_link(path, now),
        stock=_snapshot_stock(path, now),
    )


def _snapshot_link(path: KeyPath, now: float) -> LinkStatus:
    health, said = path.health, path.last_status
    return LinkStatus(
        source=path.source_name,
        kind=path.kind,
        simulated=path.simulated,
        state=health.state,
        reason=health.reason,
        age_s=now - health.since,
        changes=state_counts(path.link_changes.counts),
        failures=_counts(path.failures, now),
        stored_keys=None if said is None else said.stored_key_count,
        stored_keys_exhaustion_s=_finite(health.time_to_exhaustion_s()),
        key_rate_bps=None if said is None else _finite(said.key_rate_bps),
        qber=None if said is None else _finite(said.qber),
    )


def _snapshot_stock(path: KeyPath, now: float) -> StockStatus:
    stock, supply = path.stock, path.rate_keys_per_s
    counters = stock.counters
    return StockStatus(
        kept=path.draws,
        available=stock.available,
        lent=stock.lent,
        low=path.draws and stock.low,
        use_keys_per_s=stock.use_keys_per_s(now),
        supply_keys_per_s=_finite(supply),
        exhaustion_s=_finite(stock.time_to_exhaustion_s(now, supply or 0.0)),
        drawn=counters.drawn,
        confirmed=counters.confirmed,
        orphaned=counters.orphaned,
        aged_out=counters.aged_out,
        discarded=counters.discarded,
        refused=counters.refused,
        redeemed=path.redeemed,
    )


def _combined_link(
    quantum: QuantumSide, sources: tuple[KeySourceStatus, ...], now: float
) -> LinkStatus | None:
    """All links together: the state that decides, and the worst of the figures."""
    links = [source.link for source in sources]
    if not links:
        return None
    if len(links) == 1:
        return links[0]
    worst = merge_links(links)
    return dataclasses.replace(
        worst,
        source="+".join(link.source for link in links),
        kind="+".join(dict.fromkeys(link.kind or "" for link in links)),
        state=quantum.state,
        reason=quantum.reason,
        age_s=now - quantum.since,
        changes=state_counts(quantum.link_changes.counts),
    )


def _combined_stock(sources: tuple[KeySourceStatus, ...]) -> StockStatus | None:
    return merge_stocks([source.stock for source in sources]) if sources else None


def _keys_used(used: Mapping[KeyOrigin, int]) -> tuple[KeysUsed, ...]:
    counts: Counter[tuple[str, str, KeyNature]] = Counter()
    for origin, count in used.items():
        counts[origin.source, origin.kind, origin.nature] += count
    return keys_used(counts)


def _snapshot_audit(audit: GatewayAudit) -> AuditStatus | None:
    writer = audit.writer
    if writer is None:
        return None
    head = writer.head
    return AuditStatus(
        file=str(audit.config.file),
        failure=audit.config.failure,
        failing=writer.failing,
        failures=writer.failures,
        records=writer.records_written,
        records_lost=writer.records_lost,
        sequence=head.sequence,
        head=head.hash.hex(),
    )


def _snapshot_listener(listener: Listener, now: float) -> ListenerStatus:
    config, counters = listener.config, listener.counters
    return ListenerStatus(
        name=config.name,
        addresses=listener.addresses,
        peer=config.peer,
        service=config.service,
        tls=config.tls is not None,
        policy=config.policy,
        max_without_qkd_s=listener.policy.max_without_qkd_s,
        policy_met=listener.policy_met,
        connections_open=counters.open,
        connections_accepted=counters.accepted,
        max_connections=config.max_connections,
        full=counters.full,
        refused=_counts(counters.refused, now),
        failed=_counts(counters.failed, now),
    )


def _snapshot_service(service: Service, peers: Iterable[Peer], now: float) -> ServiceStatus:
    config = service.config
    strict = {
        peer.config.name: peer.meets(service.policy(peer.config))
        for peer in peers
        if config.policy is Policy.REQUIRE
        and service.allows(peer.config.name)
        and any(tunnel.usable for tunnel in peer.tunnels)
    }
    return ServiceStatus(
        name=config.name,
        policy=config.policy,
        max_without_qkd_s=config.max_without_qkd_s,
        policy_met=strict,
        connections_open=service.connections,
        connections_opened=service.opened,
        max_connections=service.config.max_connections,
        refused=_counts(service.refused, now),
        failed=_counts(service.failed, now),
    )


def _counts(tally: Tally[Reason], now: float) -> ReasonCounts:
    return ReasonCounts(
        total=tally.counts.total(),
        by_reason=dict(sorted(tally.counts.items())),
        last_reason=tally.last,
        last_age_s=None if tally.last is None else now - tally.last_at,
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, and no schema should need one."""
    return value if value is not None and math.isfinite(value) else None
