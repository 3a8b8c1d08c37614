"""Metrics of peers: tunnels, epochs, links, key sources, stocks, streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.metrics_core import Metric

from qproxy.admin.assess import peer_obstacle
from qproxy.admin.metric_families import Sample, by_reason, counter, gauge, of_each
from qproxy.admin.status import LinkStatus, PeerStatus, StockStatus
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState

_PEER: Final = ("peer",)


def peer_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    """Every family of peers."""
    yield from _tunnel_families(peers)
    yield from _epoch_families(peers)
    yield from _link_families(peers)
    yield from _source_families(peers)
    yield from _stock_families(peers)
    yield from _stream_families(peers)


def _of_peers(
    peers: Iterable[PeerStatus], value: Callable[[PeerStatus], float | None]
) -> Iterator[Sample]:
    return of_each(((peer.name, peer) for peer in peers), value)


def _of_links(
    peers: Iterable[PeerStatus], value: Callable[[LinkStatus], float | None]
) -> Iterator[Sample]:
    return _of_peers(peers, lambda peer: None if peer.link is None else value(peer.link))


def _of_stocks(
    peers: Iterable[PeerStatus], value: Callable[[StockStatus], float | None]
) -> Iterator[Sample]:
    """Of peers this gateway keeps a stock for; elsewhere a gauge of 0 would look like trouble."""
    return _of_peers(
        peers,
        lambda peer: value(peer.stock) if peer.stock is not None and peer.stock.kept else None,
    )


def _tunnel_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield gauge(
        "peer_ready",
        "1 where the peer's policy is met.",
        _PEER,
        _of_peers(peers, lambda peer: peer_obstacle(peer) is None),
    )
    yield gauge(
        "tunnels",
        "Established tunnels by the mode of their running epoch.",
        ("peer", "mode"),
        (
            ((peer.name, mode.value), sum(tunnel.mode is mode for tunnel in peer.tunnels))
            for peer in peers
            for mode in Mode
        ),
    )
    yield gauge(
        "tunnels_usable",
        "Tunnels that take new streams.",
        _PEER,
        _of_peers(peers, lambda peer: sum(tunnel.usable for tunnel in peer.tunnels)),
    )
    yield gauge(
        "tunnels_wanted",
        "Tunnels this gateway keeps up; none where the peer dials.",
        _PEER,
        _of_peers(peers, lambda peer: peer.tunnels_wanted),
    )
    yield counter(
        "tunnels_opened",
        "Tunnels established.",
        _PEER,
        _of_peers(peers, lambda peer: peer.tunnels_opened),
    )
    yield counter(
        "tunnels_closed",
        "Tunnels that are over, established or not, by local cause.",
        ("peer", "reason"),
        by_reason((peer.name, peer.tunnels_closed) for peer in peers),
    )
    yield counter(
        "dial_failures",
        "Attempts to dial without a TCP connection.",
        ("peer", "reason"),
        by_reason((peer.name, peer.not_connected) for peer in peers),
    )
    yield gauge(
        "tunnels_classical_group",
        "Tunnels whose TLS handshake had no ML-KEM in it.",
        _PEER,
        _of_peers(peers, lambda peer: sum(not tunnel.tls_group_hybrid for tunnel in peer.tunnels)),
    )
    yield gauge(
        "round_trip_seconds",
        "Longest smoothed round trip of a tunnel.",
        _PEER,
        _of_peers(peers, _round_trip_s),
    )
    yield gauge(
        "peer_policy",
        "1 for the policy that holds, the stricter of both ends'.",
        ("peer", "policy"),
        (
            ((peer.name, policy.value), peer.policy.effective is policy)
            for peer in peers
            for policy in Policy
        ),
    )


def _round_trip_s(peer: PeerStatus) -> float | None:
    measured = [t.round_trip_s for t in peer.tunnels if t.round_trip_s is not None]
    return max(measured, default=None)


def _epoch_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield counter(
        "epochs",
        "Epochs committed.",
        ("peer", "mode"),
        (((peer.name, mode.value), count) for peer in peers for mode, count in peer.epochs.items()),
    )
    yield counter(
        "epoch_failures",
        "Attempts at an epoch that came to nothing, by the mode attempted.",
        ("peer", "mode", "reason"),
        (
            ((peer.name, entry.mode.value, entry.reason.value), entry.count)
            for peer in peers
            for entry in peer.epoch_failures
        ),
    )
    yield counter(
        "mode_changes",
        "First epochs of tunnels and changes of mode, by the mode from then on.",
        ("peer", "mode", "reason"),
        (
            ((peer.name, entry.mode.value, entry.reason.value), entry.count)
            for peer in peers
            for entry in peer.mode_changes
        ),
    )
    yield counter(
        "keys_used",
        "Keys that went into committed epochs, by source and by what they may be called.",
        ("peer", "source", "keys_are"),
        (
            ((peer.name, used.source, used.keys_are.value), used.count)
            for peer in peers
            for used in peer.keys_used
        ),
    )
    yield gauge(
        "source_key_age_seconds",
        "Since a key of a source was last mixed in, the oldest over the tunnels; "
        "none where a tunnel never had one.",
        _PEER,
        _of_peers(peers, lambda peer: peer.source_key_age_s),
    )
    yield gauge(
        "keys_simulated",
        "1 where keys in a tunnel are simulated and protect nothing.",
        _PEER,
        _of_peers(peers, lambda peer: any(tunnel.simulated for tunnel in peer.tunnels)),
    )
    yield gauge(
        "rekey_interval_seconds",
        "How long an epoch may last now, the longest over the tunnels dialled here.",
        _PEER,
        _of_peers(peers, _rekey_interval_s),
    )
    yield gauge(
        "rekey_economy",
        "1 while epochs are stretched because keys are short.",
        _PEER,
        _of_peers(peers, lambda peer: any(tunnel.economy for tunnel in peer.tunnels)),
    )


def _rekey_interval_s(peer: PeerStatus) -> float | None:
    known = [t.rekey_interval_s for t in peer.tunnels if t.rekey_interval_s is not None]
    return max(known, default=None)


def _link_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    linked = [(peer.name, peer.link) for peer in peers if peer.link is not None]
    yield gauge(
        "link_state",
        "1 for the state the quantum link is in.",
        ("peer", "state"),
        (
            ((name, state.value), link.state is state)
            for name, link in linked
            for state in LinkState
        ),
    )
    yield gauge(
        "link_state_reason",
        "1 for why it is in that state.",
        ("peer", "reason"),
        (((name, link.reason.value), 1) for name, link in linked),
    )
    yield gauge(
        "link_state_age_seconds",
        "How long it has been in that state.",
        _PEER,
        _of_links(peers, lambda link: link.age_s),
    )
    yield counter(
        "link_changes",
        "Changes of the quantum link's state, by the state from then on.",
        ("peer", "state", "reason"),
        (
            ((name, entry.state.value, entry.reason.value), entry.count)
            for name, link in linked
            for entry in link.changes
        ),
    )
    yield counter(
        "key_source_failures",
        "Calls to the key source that failed.",
        ("peer", "reason"),
        by_reason((name, link.failures) for name, link in linked),
    )
    yield gauge(
        "kme_stored_keys",
        "Keys in the KME's store, as it says.",
        _PEER,
        _of_links(peers, lambda link: link.stored_keys),
    )
    yield gauge(
        "kme_exhaustion_seconds",
        "Until the KME's store is empty by its trend; +Inf where it does not shrink.",
        _PEER,
        _of_links(peers, _kme_exhaustion_s),
    )
    yield gauge(
        "kme_key_rate_bits_per_second",
        "Secret key rate, as the KME says.",
        _PEER,
        _of_links(peers, lambda link: link.key_rate_bps),
    )
    yield gauge(
        "kme_qber_ratio",
        "Quantum bit error rate from 0 to 1, as the KME says.",
        _PEER,
        _of_links(peers, lambda link: link.qber),
    )


def _kme_exhaustion_s(link: LinkStatus) -> float | None:
    if link.stored_keys is None:
        return None
    return math.inf if link.stored_keys_exhaustion_s is None else link.stored_keys_exhaustion_s


def _source_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    named = [(peer.name, source) for peer in peers for source in peer.sources]
    labels = ("peer", "source")
    yield gauge(
        "source_state",
        "1 for the state the link of one key source is in.",
        (*labels, "state"),
        (
            ((name, source.name, state.value), source.link.state is state)
            for name, source in named
            for state in LinkState
        ),
    )
    yield gauge(
        "source_info",
        "1 for what one key source is, and what its keys may be called.",
        (*labels, "kind", "keys_are"),
        (((name, source.name, source.kind, source.keys_are.value), 1) for name, source in named),
    )
    yield gauge(
        "source_stored_keys",
        "Keys that one key source has ready, as it says.",
        labels,
        (
            ((name, source.name), float(source.link.stored_keys))
            for name, source in named
            if source.link.stored_keys is not None
        ),
    )
    yield gauge(
        "source_stock_keys",
        "Keys of one source held ahead of need; none where the peer dials.",
        labels,
        (
            ((name, source.name), source.stock.available)
            for name, source in named
            if source.stock.kept
        ),
    )
    yield gauge(
        "source_kme_in_use",
        "1 for the KME of a source that answers now.",
        (*labels, "kme"),
        (((name, source.name, source.kme), 1) for name, source in named if source.kme is not None),
    )
    yield gauge(
        "source_kme_failing",
        "1 for each KME of a source that is left out now, because it failed.",
        (*labels, "kme"),
        (((name, source.name, kme), 1) for name, source in named for kme in source.failing_kmes),
    )
    yield counter(
        "source_kme_failures",
        "Calls that failed at each of several KMEs of a source.",
        (*labels, "kme"),
        (
            ((name, source.name, kme), count)
            for name, source in named
            for kme, count in source.kme_failures.items()
        ),
    )
    yield counter(
        "source_kme_switches",
        "Times that another KME of a source than before came to give the keys.",
        labels,
        (((name, source.name), source.kme_switches) for name, source in named),
    )
    yield counter(
        "source_failures",
        "Calls to one key source that failed.",
        (*labels, "reason"),
        (
            ((name, source.name, reason.value), count)
            for name, source in named
            for reason, count in source.link.failures.by_reason.items()
        ),
    )


def _stock_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield gauge(
        "stock_keys",
        "Keys held ahead of need; none where the peer dials.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.available),
    )
    yield gauge(
        "stock_low",
        "1 where the stock is below low water.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.low),
    )
    yield gauge(
        "stock_exhaustion_seconds",
        "Until the stock is empty at today's use and supply; +Inf where it does not shrink.",
        _PEER,
        _of_stocks(peers, lambda s: math.inf if s.exhaustion_s is None else s.exhaustion_s),
    )
    yield gauge(
        "stock_use_keys_per_second",
        "Keys used, averaged over a minute.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.use_keys_per_s),
    )
    yield counter(
        "stock_drawn_keys",
        "Keys taken from the key source ahead of need.",
        _PEER,
        _of_stocks(peers, lambda stock: stock.drawn),
    )
    yield counter(
        "stock_ended_keys",
        "What became of drawn keys.",
        ("peer", "outcome"),
        (
            ((peer.name, outcome), getattr(peer.stock, outcome))
            for peer in peers
            if peer.stock is not None and peer.stock.kept
            for outcome in ("confirmed", "orphaned", "aged_out", "discarded", "refused")
        ),
    )
    yield counter(
        "redeemed_keys",
        "Keys fetched by ID for tunnels that the peer dialled.",
        _PEER,
        _of_peers(peers, lambda peer: None if peer.stock is None else peer.stock.redeemed),
    )


def _stream_families(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    yield gauge(
        "streams", "Streams in progress.", _PEER, _of_peers(peers, lambda p: p.streams_open)
    )
    yield counter(
        "streams_opened",
        "Streams opened by either end.",
        _PEER,
        _of_peers(peers, lambda peer: peer.streams_opened),
    )
    yield counter(
        "sent_bytes",
        "Application bytes sent through tunnels.",
        _PEER,
        _of_peers(peers, lambda peer: peer.bytes_sent),
    )
    yield counter(
        "received_bytes",
        "Application bytes received through tunnels.",
        _PEER,
        _of_peers(peers, lambda peer: peer.bytes_received),
    )
