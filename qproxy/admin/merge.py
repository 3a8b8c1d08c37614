"""The snapshots of several workers as one. Pure.

Two rules. What is counted since the start never goes down: counts of workers that are gone are kept
(:func:`retired`) and added to those of the ones that live, or each death would look like a restart
of every counter. What describes a moment comes from the living alone, and where they differ the
worst of them is shown: a gateway is as well off as its worst worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from qproxy.admin.assess import peer_obstacle
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
    GatewayStatus,
    KeySourceStatus,
    KeysUsed,
    LinkStatus,
    ListenerStatus,
    ModeReasonCount,
    PeerStatus,
    PolicyStatus,
    ReasonCounts,
    ServiceStatus,
    StockStatus,
)
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Mode, Policy, stricter
from qproxy.quantum.health import LinkState

_STATES: Final = (LinkState.DOWN, LinkState.DEGRADED, LinkState.HEALTHY)

ItemT = TypeVar("ItemT")
PartT = TypeVar("PartT")


def merge(
    live: Mapping[int, GatewayStatus],
    past: Sequence[GatewayStatus],
    *,
    uptime_s: float,
    draining: bool,
) -> GatewayStatus:
    """One snapshot of a gateway with several workers, ``workers`` not yet in it.

    Args:
        live: snapshots of the workers that live, by their number.
        past: what :func:`retired` kept of others; with ``live``, at least one.
        uptime_s: of the gateway.
        draining: it takes nothing new.
    """
    numbered = [_numbered(status, number) for number, status in live.items()]
    everything = [*numbered, *past]
    first = everything[0]
    return GatewayStatus(
        node=first.node,
        version=first.version,
        kem_provider=first.kem_provider,
        uptime_s=uptime_s,
        draining=draining,
        peers=_by_name(numbered, past, lambda status: status.peers, _merge_peers),
        listeners=_by_name(numbered, past, lambda status: status.listeners, _merge_listeners),
        services=_by_name(numbered, past, lambda status: status.services, _merge_services),
        unauthenticated=_add_counts(status.unauthenticated for status in everything),
        unknown_services=_add_counts(status.unknown_services for status in everything),
    )


def retired(status: GatewayStatus) -> GatewayStatus:
    """What stays of a worker that is gone: its counts."""
    return replace(
        status,
        peers=tuple(_retired_peer(peer) for peer in status.peers),
        listeners=tuple(
            replace(
                listener,
                addresses=(),
                policy_met=listener.policy is not Policy.REQUIRE,
                connections_open=0,
                max_connections=0,
                refused=_retired_counts(listener.refused),
                failed=_retired_counts(listener.failed),
            )
            for listener in status.listeners
        ),
        services=tuple(
            replace(
                service,
                policy_met={},
                connections_open=0,
                max_connections=0,
                refused=_retired_counts(service.refused),
                failed=_retired_counts(service.failed),
            )
            for service in status.services
        ),
        unauthenticated=_retired_counts(status.unauthenticated),
        unknown_services=_retired_counts(status.unknown_services),
        audit=None,
    )


def worker_obstacle(status: GatewayStatus) -> str | None:
    """Why a worker cannot carry what it may get, or None where it can.

    A peer that dials us and that no listener leads to need not have a tunnel in every worker.
    """
    needed = {listener.peer for listener in status.listeners}
    for peer in status.peers:
        obstacle = peer_obstacle(peer)
        if obstacle is not None and (peer.name in needed or peer.address is not None):
            return f"{peer.name}: {obstacle.detail}"
    return None


# --- parts -------------------------------------------------------------------------------


def _by_name(
    live: Sequence[GatewayStatus],
    past: Sequence[GatewayStatus],
    parts: Callable[[GatewayStatus], tuple[ItemT, ...]],
    merge_parts: Callable[[list[ItemT], list[ItemT]], ItemT],
) -> tuple[ItemT, ...]:
    """Every worker runs one configuration, so their parts stand in one order."""
    count = len(parts([*live, *past][0]))
    return tuple(
        merge_parts(
            [parts(status)[index] for status in live], [parts(status)[index] for status in past]
        )
        for index in range(count)
    )


def _numbered(status: GatewayStatus, number: int) -> GatewayStatus:
    return replace(
        status,
        peers=tuple(
            replace(peer, tunnels=tuple(replace(tunnel, worker=number) for tunnel in peer.tunnels))
            for peer in status.peers
        ),
    )


def _merge_peers(live: list[PeerStatus], past: list[PeerStatus]) -> PeerStatus:
    every = [*live, *past]
    tunnels = tuple(tunnel for peer in live for tunnel in peer.tunnels)
    wanted = [peer.tunnels_wanted for peer in live if peer.tunnels_wanted is not None]
    return replace(
        every[0],
        tunnels_wanted=sum(wanted) if wanted else every[0].tunnels_wanted,
        mode=weakest_mode(tunnels),
        source_key=weakest_key_use(tunnels),
        source_key_age_s=oldest_key_age_s(tunnels),
        policy=_merge_policies([peer.policy for peer in every]),
        tunnels=tunnels,
        sources=_merge_sources([peer.sources for peer in live], [peer.sources for peer in past]),
        at_least=max(peer.at_least for peer in live or past),
        link=_merge_all(
            merge_links,
            [peer.link for peer in live if peer.link is not None],
            [peer.link for peer in past if peer.link is not None],
        ),
        stock=_merge_all(
            merge_stocks,
            [peer.stock for peer in live if peer.stock is not None],
            [peer.stock for peer in past if peer.stock is not None],
        ),
        epochs=dict(_sum(peer.epochs for peer in every)),
        keys=sum(peer.keys for peer in every),
        keys_used=_add_keys(peer.keys_used for peer in every),
        epoch_failures=_add_modes(peer.epoch_failures for peer in every),
        mode_changes=_add_modes(peer.mode_changes for peer in every),
        tunnels_opened=sum(peer.tunnels_opened for peer in every),
        tunnels_closed=_add_counts(peer.tunnels_closed for peer in every),
        not_connected=_add_counts(peer.not_connected for peer in every),
        streams_open=sum(peer.streams_open for peer in live),
        streams_opened=sum(peer.streams_opened for peer in every),
        bytes_sent=sum(peer.bytes_sent for peer in every),
        bytes_received=sum(peer.bytes_received for peer in every),
    )


def _merge_policies(policies: list[PolicyStatus]) -> PolicyStatus:
    local, peer = policies[0].local, strictest(policy.peer for policy in policies)
    return replace(
        policies[0], peer=peer, effective=local if peer is None else stricter(local, peer)
    )


def _merge_all(
    merge: Callable[[list[PartT], list[PartT]], PartT], live: list[PartT], past: list[PartT]
) -> PartT | None:
    return merge(live, past) if live or past else None


def _merge_sources(
    live: list[tuple[KeySourceStatus, ...]], past: list[tuple[KeySourceStatus, ...]]
) -> tuple[KeySourceStatus, ...]:
    """Every worker has the same sources, in the same order."""
    return tuple(
        replace(
            (now or before)[0],
            failing_kmes=tuple(dict.fromkeys(kme for s in now for kme in s.failing_kmes)),
            kme_switches=sum(s.kme_switches for s in [*now, *before]),
            kme_failures=dict(_sum(s.kme_failures for s in [*now, *before])),
            link=merge_links([s.link for s in now], [s.link for s in before]),
            stock=merge_stocks([s.stock for s in now], [s.stock for s in before]),
        )
        for now, before in (
            ([sources[index] for sources in live], [sources[index] for sources in past])
            for index in range(len((live or past)[0]))
        )
    )


def _add_keys(parts: Iterable[tuple[KeysUsed, ...]]) -> tuple[KeysUsed, ...]:
    counts: Counter[tuple[str, str, KeyNature]] = Counter()
    for used in parts:
        for entry in used:
            counts[entry.source, entry.kind, entry.keys_are] += entry.count
    return keys_used(counts)


def merge_links(live: list[LinkStatus], past: Iterable[LinkStatus] = ()) -> LinkStatus:
    """One link of several: the worst state and figures, all counts. At least one is needed."""
    every = [*live, *past]
    worst = min(live or every, key=lambda link: (_STATES.index(link.state), -link.age_s))
    changes: Counter[tuple[LinkState, Reason]] = Counter()
    for link in every:
        changes.update({(entry.state, entry.reason): entry.count for entry in link.changes})
    return replace(
        worst,
        simulated=any(link.simulated for link in every),
        changes=state_counts(changes),
        failures=_add_counts(link.failures for link in every),
        # All of them ask the same KME: no sums here.
        stored_keys=_least(link.stored_keys for link in live),
        stored_keys_exhaustion_s=_least(link.stored_keys_exhaustion_s for link in live),
        key_rate_bps=_least(link.key_rate_bps for link in live),
        qber=max((link.qber for link in live if link.qber is not None), default=None),
    )


def merge_stocks(live: list[StockStatus], past: Iterable[StockStatus] = ()) -> StockStatus:
    """One stock of several: everything together. At least one is needed."""
    every = [*live, *past]
    supplies = [s.supply_keys_per_s for s in live if s.supply_keys_per_s is not None]
    counted = ("drawn", "confirmed", "orphaned", "aged_out", "discarded", "refused", "redeemed")
    changes: dict[str, Any] = {
        name: sum(getattr(stock, name) for stock in every) for name in counted
    }
    return replace(
        every[0],
        available=sum(stock.available for stock in live),
        lent=sum(stock.lent for stock in live),
        low=any(stock.low for stock in live),
        use_keys_per_s=sum(stock.use_keys_per_s for stock in live),
        supply_keys_per_s=sum(supplies) if supplies else None,
        exhaustion_s=_least(stock.exhaustion_s for stock in live),
        **changes,
    )


def _merge_listeners(live: list[ListenerStatus], past: list[ListenerStatus]) -> ListenerStatus:
    every = [*live, *past]
    addresses = dict.fromkeys(address for entry in live for address in entry.addresses)
    return replace(
        every[0],
        addresses=tuple(addresses),
        policy_met=all(entry.policy_met for entry in live or past),
        connections_open=sum(entry.connections_open for entry in live),
        connections_accepted=sum(entry.connections_accepted for entry in every),
        max_connections=sum(entry.max_connections for entry in live),
        full=sum(entry.full for entry in every),
        refused=_add_counts(entry.refused for entry in every),
        failed=_add_counts(entry.failed for entry in every),
    )


def _merge_services(live: list[ServiceStatus], past: list[ServiceStatus]) -> ServiceStatus:
    every = [*live, *past]
    met: dict[str, bool] = {}
    for entry in live:
        for peer, here in entry.policy_met.items():
            met[peer] = met.get(peer, True) and here
    return replace(
        every[0],
        policy_met=met,
        connections_open=sum(entry.connections_open for entry in live),
        connections_opened=sum(entry.connections_opened for entry in every),
        max_connections=sum(entry.max_connections for entry in live),
        refused=_add_counts(entry.refused for entry in every),
        failed=_add_counts(entry.failed for entry in every),
    )


# --- counts ------------------------------------------------------------------------------


def _retired_peer(peer: PeerStatus) -> PeerStatus:
    link, stock = peer.link, peer.stock
    return replace(
        peer,
        mode=None,
        source_key=None,
        source_key_age_s=None,
        tunnels=(),
        streams_open=0,
        policy=replace(peer.policy, peer=None, effective=peer.policy.local),
        sources=tuple(
            replace(
                source,
                kme=None,
                failing_kmes=(),
                link=_retired_link(source.link),
                stock=_retired_stock(source.stock),
            )
            for source in peer.sources
        ),
        link=None if link is None else _retired_link(link),
        stock=None if stock is None else _retired_stock(stock),
        tunnels_closed=_retired_counts(peer.tunnels_closed),
        not_connected=_retired_counts(peer.not_connected),
    )


def _retired_link(link: LinkStatus) -> LinkStatus:
    return replace(link, failures=_retired_counts(link.failures))


def _retired_stock(stock: StockStatus) -> StockStatus:
    return replace(stock, available=0, lent=0, low=False)


def _retired_counts(counts: ReasonCounts) -> ReasonCounts:
    """Without its last event, whose age would stand still."""
    return replace(counts, last_reason=None, last_age_s=None)


def _add_counts(parts: Iterable[ReasonCounts]) -> ReasonCounts:
    found = list(parts)
    recent = [counts for counts in found if counts.last_age_s is not None]
    last = min(recent, key=lambda counts: counts.last_age_s or 0.0, default=None)
    return ReasonCounts(
        total=sum(counts.total for counts in found),
        by_reason=dict(sorted(_sum(counts.by_reason for counts in found).items())),
        last_reason=None if last is None else last.last_reason,
        last_age_s=None if last is None else last.last_age_s,
    )


def _add_modes(parts: Iterable[tuple[ModeReasonCount, ...]]) -> tuple[ModeReasonCount, ...]:
    counts: Counter[tuple[Mode, Reason]] = Counter()
    for entries in parts:
        counts.update({(entry.mode, entry.reason): entry.count for entry in entries})
    return mode_counts(counts)


def _sum(parts: Iterable[Mapping[ItemT, int]]) -> Counter[ItemT]:
    total: Counter[ItemT] = Counter()
    for counts in parts:
        total.update(counts)
    return total


def _least(values: Iterable[Any]) -> Any:
    return min((value for value in values if value is not None), default=None)
