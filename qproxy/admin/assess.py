"""Whether a gateway is ready, and what somebody who was woken up should know first.

Ready means that every peer's policy is met: at least one tunnel takes streams, and where
``require`` holds between the two ends, a QKD key in it is younger than the limit. Everything else
that is not as it should be is a warning: also a listener or service whose own, stricter policy is
not met, for the others go on. Both are functions of a snapshot, so ``/readyz``,
``/status``, ``/metrics`` and ``qproxy status`` never disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qproxy.admin.status import (
    AuditStatus,
    GatewayStatus,
    KeySourceStatus,
    KeyUse,
    LinkStatus,
    ListenerStatus,
    PeerStatus,
    ReasonCounts,
    ServiceStatus,
    StockStatus,
    TunnelStatus,
    WorkerState,
    WorkerStatus,
)
from qproxy.config.model import OnAuditFailure
from qproxy.errors import Reason
from qproxy.keys import KeyNature, SourceKind
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState
from qproxy.sources.file import LOW_PAD_KEYS

#: Refusals and failures this recent are worth a warning, in seconds.
RECENT_S: Final = 60.0
#: How long the first word from a key source may take before its absence is worth one, in seconds.
SETTLING_S: Final = 10.0
#: Part of ``max_without_qkd_s`` that is left when an old QKD key is worth one.
OLD_KEY_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        about: ``gateway``, ``peer``, ``listener``, ``service`` or ``worker``.
        name: which one; the node's name for the gateway, a worker's number.
        reason: from the closed set, or None where nothing failed.
        detail: the same in words, for people; may change from version to version.
    """

    about: str
    name: str
    reason: Reason | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What follows from a snapshot.

    Attributes:
        not_ready: why the gateway is not ready; empty where it is.
        warnings: what else is wrong.
    """

    not_ready: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Every peer's policy is met, and nothing is being shut down."""
        return not self.not_ready


def assess(status: GatewayStatus) -> Assessment:
    """Judge a snapshot."""
    not_ready = list(_not_ready(status))
    return Assessment(not_ready=tuple(not_ready), warnings=tuple(_warnings(status)))


def peer_obstacle(peer: PeerStatus) -> Finding | None:
    """Why a peer's policy is not met, or None where it is."""
    usable = [tunnel for tunnel in peer.tunnels if tunnel.usable]
    if not usable:
        return _finding(peer, Reason.NO_TUNNEL, f"no usable tunnel{_last_trouble(peer)}")
    if peer.policy.effective is not Policy.REQUIRE:
        return None
    if any(_is_fresh(tunnel, peer.policy.max_without_qkd_s) for tunnel in usable):
        return None
    if all(tunnel.source_key is KeyUse.NEVER for tunnel in usable):
        return _finding(peer, Reason.POLICY_REQUIRE, "a key is required and no tunnel has one")
    age_s = min(tunnel.source_key_age_s for tunnel in usable if tunnel.source_key_age_s is not None)
    return _finding(
        peer,
        Reason.QKD_TOO_OLD,
        f"a key is required and the last one is {format_duration(age_s)} old",
    )


def format_duration(seconds: float) -> str:
    """A duration for people, in its two largest units: ``4 min 10 s``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest_s} s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes} min {rest_s} s"
    days, hours = divmod(hours, 24)
    return f"{hours} h {minutes} min" if days == 0 else f"{days} d {hours} h"


# --- not ready ---------------------------------------------------------------------------


def _not_ready(status: GatewayStatus) -> Iterator[Finding]:
    for audit in status.audits:
        if audit.failing is not None and audit.failure is OnAuditFailure.STOP:
            yield _audit_finding(status, f"the audit log cannot be written ({audit.failing})")
            break
    if status.draining:
        yield Finding(
            about="gateway",
            name=status.node,
            reason=Reason.SHUTDOWN,
            detail="draining: nothing new is taken",
        )
    for peer in status.peers:
        obstacle = peer_obstacle(peer)
        if obstacle is not None:
            yield obstacle
    yield from _idle_workers(status)


def _idle_workers(status: GatewayStatus) -> Iterator[Finding]:
    """Workers that get connections and cannot carry them; those that just began are waited for."""
    for worker in status.workers:
        settled = worker.uptime_s is not None and worker.uptime_s >= SETTLING_S
        if worker.state is WorkerState.RUNNING and worker.obstacle is not None and settled:
            yield _worker_finding(worker, Reason.NO_TUNNEL, worker.obstacle)


def _worker_finding(worker: WorkerStatus, reason: Reason | None, detail: str) -> Finding:
    return Finding(about="worker", name=str(worker.number), reason=reason, detail=detail)


def _is_fresh(tunnel: TunnelStatus, max_without_qkd_s: float) -> bool:
    if tunnel.source_key_age_s is None or tunnel.source_key_age_s > max_without_qkd_s:
        return False
    # The peer's limit may be the shorter one.
    return tunnel.source_key_deadline_s is None or tunnel.source_key_deadline_s > 0


def _last_trouble(peer: PeerStatus) -> str:
    """The later of the last failed dial and the last closed tunnel."""
    closed, dialled = peer.tunnels_closed, peer.not_connected
    found = [
        (counts.last_age_s, counts.last_reason, what)
        for counts, what in ((closed, "the last one ended"), (dialled, "dialling failed"))
        if counts.last_age_s is not None
    ]
    if not found:
        return ", none yet" if peer.tunnels_wanted is None else ""
    age_s, reason, what = min(found)
    return f", {what} {format_duration(age_s)} ago: {reason}"


# --- warnings ----------------------------------------------------------------------------


def _warnings(status: GatewayStatus) -> Iterator[Finding]:
    for audit in status.audits:
        yield from _audit_warnings(status, audit)
    for worker in status.workers:
        yield from _worker_warnings(worker)
    for peer in status.peers:
        yield from _tunnel_warnings(peer)
        yield from _key_warnings(peer)
    for listener in status.listeners:
        yield from _listener_warnings(listener)
    for service in status.services:
        yield from _service_policy_warnings(service)
        yield from _recent("service", service.name, service.refused, "streams are refused")
    yield from _recent(
        "gateway", status.node, status.unknown_services, "a peer asks for unknown services"
    )
    yield from _recent(
        "gateway", status.node, status.unauthenticated, "incoming tunnels fail to authenticate"
    )


def _worker_warnings(worker: WorkerStatus) -> Iterator[Finding]:
    ended = "" if worker.last_end is None else f", {worker.last_end}"
    ended_age_s = worker.last_end_age_s
    if ended_age_s is not None:
        ended += f" {format_duration(ended_age_s)} ago"
    if worker.state in {WorkerState.WAITING, WorkerState.STARTING}:
        reason = None if worker.last_end is None else Reason.INTERNAL_ERROR
        yield _worker_finding(worker, reason, f"{worker.state}{ended}")
    elif ended_age_s is not None and ended_age_s < RECENT_S:
        yield _worker_finding(worker, Reason.INTERNAL_ERROR, f"was started again{ended}")
    if worker.state is WorkerState.RUNNING and not worker.answers:
        yield _worker_finding(worker, None, "does not answer: its numbers are old")


def _audit_warnings(status: GatewayStatus, audit: AuditStatus) -> Iterator[Finding]:
    if audit.failing is not None and audit.failure is OnAuditFailure.CONTINUE:
        yield _audit_finding(
            status, f"the audit log cannot be written ({audit.failing}); traffic goes on without"
        )
    if audit.records_lost:
        yield _audit_finding(status, f"{audit.records_lost} records of the audit trail are lost")


def _audit_finding(status: GatewayStatus, detail: str) -> Finding:
    return Finding(about="gateway", name=status.node, reason=Reason.AUDIT_FAILURE, detail=detail)


def _tunnel_warnings(peer: PeerStatus) -> Iterator[Finding]:
    wanted, up = peer.tunnels_wanted, len(peer.tunnels)
    if wanted is not None and 0 < up < wanted:
        trouble = _last_trouble(peer)
        yield _finding(peer, Reason.NO_TUNNEL, f"{up} of {wanted} tunnels are up{trouble}")
    weak = [tunnel for tunnel in peer.tunnels if tunnel.mode is Mode.CLASSICAL_ONLY]
    if weak and peer.policy.effective is not Policy.OFF:
        oldest = max(weak, key=lambda tunnel: tunnel.mode_age_s)
        yield _finding(
            peer,
            oldest.mode_reason or Reason.INITIAL,
            f"classical-only for {format_duration(oldest.mode_age_s)}: {oldest.mode_reason}"
            f" (keys of sources {_USE_WORDS[oldest.source_key]})",
        )
    groups = sorted({tunnel.tls_group for tunnel in peer.tunnels if not tunnel.tls_group_hybrid})
    if groups:
        yield _finding(
            peer, Reason.TLS_GROUP, f"the TLS handshake used {', '.join(groups)}, without ML-KEM"
        )
    for tunnel in peer.tunnels:
        left_s = tunnel.source_key_deadline_s
        if left_s is not None and left_s < OLD_KEY_SHARE * peer.policy.max_without_qkd_s:
            yield _finding(
                peer,
                Reason.QKD_TOO_OLD,
                f"a tunnel ends in {format_duration(left_s)} unless a fresh key comes",
            )
            break


_USE_WORDS: Final = {
    KeyUse.FRESH: "in the running epoch",
    KeyUse.CHAINED: "in earlier epochs it is chained to",
    KeyUse.NEVER: "were never mixed in",
}


def _key_warnings(peer: PeerStatus) -> Iterator[Finding]:
    if peer.link is not None and peer.policy.effective is not Policy.OFF:
        yield from _link_warnings(peer, peer.link)
        if len(peer.sources) > 1:
            for source in peer.sources:
                yield from _source_warnings(peer, source)
        if peer.stock is not None:
            yield from _stock_warnings(peer, peer.stock)
    for source in peer.sources:
        if source.failing_kmes:
            left_out = ", ".join(source.failing_kmes)
            yield _finding(peer, None, f"key source {source.name} does without KME {left_out}")
    for source in peer.sources:
        yield from _pad_warnings(peer, source)
    yield from _nature_warnings(peer)


def _source_warnings(peer: PeerStatus, source: KeySourceStatus) -> Iterator[Finding]:
    """One of several sources: the others may hide what is wrong with it."""
    link = source.link
    settling = link.reason is Reason.INITIAL and link.age_s < SETTLING_S
    if link.state is not LinkState.HEALTHY and not settling:
        yield _finding(
            peer,
            link.reason,
            f"key source {source.name} ({source.path}) {link.state}"
            f" for {format_duration(link.age_s)}: {link.reason}",
        )


def _pad_warnings(peer: PeerStatus, source: KeySourceStatus) -> Iterator[Finding]:
    """A pad is not made anew by itself: say in time that another must be carried over."""
    left = source.link.stored_keys
    if source.kind != SourceKind.FILE or left is None or left >= LOW_PAD_KEYS:
        return
    use = source.stock.use_keys_per_s
    lasts = f", for {format_duration(left / use)} at this use" if use > 0 else ""
    yield _finding(
        peer, Reason.KEYS_EXHAUSTED, f"the pad of {source.name} has {left} keys left{lasts}"
    )


def _nature_warnings(peer: PeerStatus) -> Iterator[Finding]:
    """Keys that nobody may take for QKD's."""
    said = [(source.name, source.keys_are) for source in peer.sources]
    said += [(used.source, used.keys_are) for used in peer.keys_used]
    simulated = dict.fromkeys(name for name, nature in said if nature is KeyNature.SIMULATED)
    in_use = any(tunnel.simulated for tunnel in peer.tunnels)
    if simulated or in_use or (peer.link is not None and peer.link.simulated):
        whose = f" of {', '.join(simulated)}" if simulated else ""
        yield _finding(peer, None, f"keys{whose} are SIMULATED: they protect nothing")
    pads = dict.fromkeys(name for name, nature in said if nature is KeyNature.PAD)
    if pads:
        yield _finding(peer, None, f"keys of {', '.join(pads)} are a pre-shared pad, not QKD")


def _link_warnings(peer: PeerStatus, link: LinkStatus) -> Iterator[Finding]:
    unheard = link.reason is Reason.INITIAL
    if link.state is not LinkState.HEALTHY and not (unheard and link.age_s < SETTLING_S):
        why = "no word from the key source" if unheard else f"{link.reason}"
        yield _finding(
            peer,
            link.reason,
            f"quantum link {link.state} for {format_duration(link.age_s)}: {why}"
            f" (key source {link.source})",
        )
    elif link.state is LinkState.HEALTHY:
        yield from _recent("peer", peer.name, link.failures, f"calls to {link.source} fail")


def _stock_warnings(peer: PeerStatus, stock: StockStatus) -> Iterator[Finding]:
    stretched = [tunnel for tunnel in peer.tunnels if tunnel.economy]
    if stretched:
        interval_s = max(tunnel.rekey_interval_s or 0.0 for tunnel in stretched)
        yield _finding(
            peer,
            Reason.KEYS_EXHAUSTED,
            f"keys are short: epochs are stretched up to {format_duration(interval_s)}",
        )
    elif stock.low:
        left = "" if stock.exhaustion_s is None else f", for {format_duration(stock.exhaustion_s)}"
        yield _finding(peer, Reason.KEYS_EXHAUSTED, f"{stock.available} keys in stock{left}")


def _listener_warnings(listener: ListenerStatus) -> Iterator[Finding]:
    if not listener.policy_met:
        yield Finding(
            about="listener",
            name=listener.name,
            reason=Reason.POLICY_REQUIRE,
            detail=f"a key is required here and no tunnel to {listener.peer} has a fresh one: "
            "connections are refused",
        )
    if listener.connections_open >= listener.max_connections:
        yield Finding(
            about="listener",
            name=listener.name,
            reason=Reason.LIMIT_REACHED,
            detail=f"full: {listener.connections_open} connections; new ones wait",
        )
    yield from _recent("listener", listener.name, listener.refused, "connections are refused")
    if listener.failed.last_reason not in _EVERYDAY:
        yield from _recent("listener", listener.name, listener.failed, "connections are reset")


def _service_policy_warnings(service: ServiceStatus) -> Iterator[Finding]:
    for peer, met in service.policy_met.items():
        if not met:
            yield Finding(
                about="service",
                name=service.name,
                reason=Reason.POLICY_REQUIRE,
                detail=f"a key is required here and no tunnel of {peer} has a fresh one: "
                "streams are refused",
            )


#: How connections end without anybody having to look.
_EVERYDAY: Final = frozenset({Reason.CONNECTION_RESET, Reason.IDLE_TIMEOUT, Reason.SHUTDOWN})


def _recent(about: str, name: str, counts: ReasonCounts, what: str) -> Iterator[Finding]:
    reason, age_s = counts.last_reason, counts.last_age_s
    if reason is not None and age_s is not None and age_s < RECENT_S:
        yield Finding(
            about=about,
            name=name,
            reason=reason,
            detail=f"{what}, {format_duration(age_s)} ago: {reason} ({counts.total} so far)",
        )


def _finding(peer: PeerStatus, reason: Reason | None, detail: str) -> Finding:
    return Finding(about="peer", name=peer.name, reason=reason, detail=detail)
