"""Fabricated snapshots: a gateway where all is well, and ways to spoil it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qproxy.admin.status import (
    AuditStatus,
    GatewayStatus,
    KeySourceStatus,
    KeysUsed,
    KeyUse,
    LinkStatus,
    ListenerStatus,
    ModeReasonCount,
    PeerStatus,
    PolicyStatus,
    ReasonCounts,
    ServiceStatus,
    StateReasonCount,
    StockStatus,
    TunnelStatus,
    WorkerState,
    WorkerStatus,
)
from qproxy.audit.writer import AuditFault
from qproxy.config.model import OnAuditFailure
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.quantum.health import LinkState
from qproxy.tunnel.settings import Role

NOTHING = ReasonCounts(by_reason={})


def counts(reason: Reason, count: int = 1, age_s: float = 3.0) -> ReasonCounts:
    return ReasonCounts(
        total=count, by_reason={reason: count}, last_reason=reason, last_age_s=age_s
    )


POLICY = PolicyStatus(
    local=Policy.PREFER, peer=Policy.PREFER, effective=Policy.PREFER, max_without_qkd_s=300.0
)
REQUIRE = PolicyStatus(
    local=Policy.PREFER, peer=Policy.REQUIRE, effective=Policy.REQUIRE, max_without_qkd_s=300.0
)
TUNNEL = TunnelStatus(
    role=Role.CLIENT,
    usable=True,
    age_s=5000.0,
    mode=Mode.HYBRID,
    mode_reason=Reason.INITIAL,
    mode_age_s=5000.0,
    epoch=84,
    epoch_age_s=12.5,
    source_key=KeyUse.FRESH,
    source_key_age_s=12.5,
    source_key_deadline_s=None,
    sources=("kme-a",),
    keys_are=(KeyNature.QKD,),
    simulated=False,
    policy=POLICY,
    tls_group="X25519MLKEM768",
    tls_group_hybrid=True,
    tls_cipher="TLS_AES_256_GCM_SHA384",
    rekey_interval_s=60.0,
    economy=False,
    waits_for=None,
    round_trip_s=0.0021,
    streams_open=3,
    streams_opened=700,
    bytes_sent=10_000,
    bytes_received=20_000,
)
LINK = LinkStatus(
    source="kme-a",
    kind="etsi-qkd-014",
    simulated=False,
    state=LinkState.HEALTHY,
    reason=Reason.LINK_HEALTHY,
    age_s=4000.0,
    changes=(StateReasonCount(state=LinkState.HEALTHY, reason=Reason.LINK_HEALTHY, count=1),),
    failures=NOTHING,
    stored_keys=900,
    stored_keys_exhaustion_s=None,
    key_rate_bps=100_000.0,
    qber=0.012,
)
STOCK = StockStatus(
    kept=True,
    available=30,
    lent=1,
    low=False,
    use_keys_per_s=0.0167,
    supply_keys_per_s=390.625,
    exhaustion_s=None,
    drawn=120,
    confirmed=84,
    orphaned=2,
    aged_out=3,
    discarded=0,
    refused=0,
    redeemed=0,
)
SOURCE = KeySourceStatus(
    name="kme-a",
    path="",
    kind="etsi-qkd-014",
    keys_are=KeyNature.QKD,
    says=None,
    kme="kme-a",
    failing_kmes=(),
    kme_switches=0,
    kme_failures={},
    link=LINK,
    stock=STOCK,
)
PEER = PeerStatus(
    name="gw-b",
    address="192.0.2.2:7443",
    tunnels_wanted=1,
    mode=Mode.HYBRID,
    source_key=KeyUse.FRESH,
    source_key_age_s=12.5,
    policy=POLICY,
    kem=KemAlgorithm.ML_KEM_1024,
    aead=Aead.AES_256_GCM,
    psk=False,
    tunnels=(TUNNEL,),
    sources=(SOURCE,),
    at_least=1,
    link=LINK,
    stock=STOCK,
    epochs={Mode.HYBRID: 84, Mode.CLASSICAL_ONLY: 1},
    keys=84,
    keys_used=(KeysUsed(source="kme-a", kind="etsi-qkd-014", keys_are=KeyNature.QKD, count=84),),
    epoch_failures=(ModeReasonCount(mode=Mode.HYBRID, reason=Reason.KEY_NOT_FOUND, count=2),),
    mode_changes=(ModeReasonCount(mode=Mode.HYBRID, reason=Reason.INITIAL, count=1),),
    tunnels_opened=1,
    tunnels_closed=NOTHING,
    not_connected=NOTHING,
    streams_open=3,
    streams_opened=700,
    bytes_sent=10_000,
    bytes_received=20_000,
)
LISTENER = ListenerStatus(
    name="web",
    addresses=("127.0.0.1:8080",),
    peer="gw-b",
    service="web",
    tls=False,
    policy=None,
    max_without_qkd_s=300.0,
    policy_met=True,
    connections_open=3,
    connections_accepted=702,
    max_connections=10_000,
    full=0,
    refused=NOTHING,
    failed=NOTHING,
)
SERVICE = ServiceStatus(
    name="db",
    policy=None,
    max_without_qkd_s=None,
    policy_met={},
    connections_open=1,
    connections_opened=9,
    max_connections=200,
    refused=NOTHING,
    failed=NOTHING,
)
AUDIT = AuditStatus(
    file="/var/lib/qproxy/audit.jsonl",
    failure=OnAuditFailure.STOP,
    failing=None,
    failures=0,
    records=512,
    records_lost=0,
    sequence=900,
    head="0123456789abcdef" * 6,
)
WORKER = WorkerStatus(
    number=0,
    state=WorkerState.RUNNING,
    pid=4711,
    uptime_s=5000.5,
    answers=True,
    ready=True,
    obstacle=None,
    starts=1,
    last_end=None,
    last_end_age_s=None,
    tunnels=1,
    streams_open=3,
    connections_open=3,
    cpu_s=12.5,
    resident_bytes=60_000_000,
    open_fds=40,
    max_fds=1_048_576,
)
GATEWAY = GatewayStatus(
    node="gw-a",
    version="1.2.3",
    kem_provider="liboqs",
    uptime_s=5001.0,
    draining=False,
    peers=(PEER,),
    listeners=(LISTENER,),
    services=(SERVICE,),
    unauthenticated=NOTHING,
    unknown_services=NOTHING,
)


def tunnel(**changes: Any) -> TunnelStatus:
    return replace(TUNNEL, **changes)


def peer(**changes: Any) -> PeerStatus:
    """A peer with one source, whose link and stock are the peer's."""
    made = replace(PEER, **changes)
    if "sources" in changes:
        return made
    if made.link is None or made.stock is None:
        return replace(made, sources=(), keys=0, keys_used=())
    return replace(made, sources=(replace(SOURCE, link=made.link, stock=made.stock),))


def with_peer(**changes: Any) -> GatewayStatus:
    return replace(GATEWAY, peers=(peer(**changes),))


def gateway(**changes: Any) -> GatewayStatus:
    return replace(GATEWAY, **changes)


CLASSICAL = tunnel(
    mode=Mode.CLASSICAL_ONLY,
    mode_reason=Reason.KME_UNREACHABLE,
    mode_age_s=250.0,
    source_key=KeyUse.CHAINED,
    source_key_age_s=310.0,
)
FALLEN_BACK = with_peer(
    mode=Mode.CLASSICAL_ONLY,
    source_key=KeyUse.CHAINED,
    source_key_age_s=310.0,
    tunnels=(CLASSICAL,),
    link=replace(
        LINK,
        state=LinkState.DOWN,
        reason=Reason.KME_UNREACHABLE,
        age_s=250.0,
        failures=counts(Reason.KME_UNREACHABLE, 40),
    ),
)
NO_TUNNEL = with_peer(
    mode=None,
    source_key=None,
    source_key_age_s=None,
    tunnels=(),
    tunnels_closed=counts(Reason.PEER_SILENT, age_s=40.0),
    not_connected=counts(Reason.CONNECT_REFUSED, 5, age_s=2.0),
)
ON_THE_SPARE_KME = with_peer(
    sources=(
        replace(
            SOURCE,
            kme="south",
            failing_kmes=("north",),
            kme_switches=3,
            kme_failures={"north": 7, "south": 0},
        ),
    )
)
EMPTY = gateway(peers=(), listeners=(), services=())
WITHOUT_QKD = with_peer(
    link=None,
    stock=None,
    address=None,
    tunnels_wanted=None,
    policy=replace(POLICY, local=Policy.OFF, peer=None, effective=Policy.OFF),
    mode=Mode.CLASSICAL_ONLY,
    source_key=KeyUse.NEVER,
    source_key_age_s=None,
    tunnels=(
        replace(
            CLASSICAL,
            role=Role.SERVER,
            mode_reason=Reason.POLICY_OFF,
            source_key=KeyUse.NEVER,
            source_key_age_s=None,
            rekey_interval_s=None,
            round_trip_s=None,
        ),
    ),
)
DRAINING = gateway(
    draining=True,
    unauthenticated=counts(Reason.CERTIFICATE_EXPIRED),
    unknown_services=counts(Reason.SERVICE_UNKNOWN),
    listeners=(
        replace(
            LISTENER,
            addresses=(),
            refused=counts(Reason.NO_TUNNEL),
            failed=counts(Reason.CONNECT_REFUSED),
        ),
    ),
)
PAYMENTS_REFUSED = replace(
    FALLEN_BACK,
    listeners=(
        replace(
            LISTENER,
            policy=Policy.REQUIRE,
            max_without_qkd_s=30.0,
            policy_met=False,
            refused=counts(Reason.POLICY_REQUIRE, age_s=90.0),
        ),
    ),
    services=(
        replace(
            SERVICE,
            policy=Policy.REQUIRE,
            max_without_qkd_s=20.0,
            policy_met={"gw-b": False},
            failed=counts(Reason.QKD_TOO_OLD, 4),
        ),
    ),
)
AUDITED = gateway(audit=AUDIT)
AUDIT_STOPS = gateway(audit=replace(AUDIT, failing=AuditFault.DISK_FULL, failures=1))
AUDIT_GOES_ON = gateway(
    audit=replace(
        AUDIT,
        failure=OnAuditFailure.CONTINUE,
        failing=AuditFault.UNWRITABLE,
        failures=2,
        records_lost=7,
    )
)
WORKERS = gateway(
    peers=(peer(tunnels=(tunnel(worker=0),)),),
    workers=(
        replace(WORKER, audit=replace(AUDIT, file="/var/lib/qproxy/audit-w0.jsonl")),
        replace(
            WORKER,
            number=1,
            state=WorkerState.WAITING,
            pid=None,
            uptime_s=None,
            answers=False,
            ready=False,
            starts=4,
            last_end="killed by SIGSEGV",
            last_end_age_s=0.5,
            tunnels=0,
            streams_open=0,
            connections_open=0,
            cpu_s=None,
            resident_bytes=None,
            open_fds=None,
            max_fds=None,
        ),
        replace(WORKER, number=2, ready=False, obstacle="gw-b: no usable tunnel", tunnels=0),
    ),
)
ALL = {
    "workers": WORKERS,
    "payments refused": PAYMENTS_REFUSED,
    "all well": GATEWAY,
    "fallen back": FALLEN_BACK,
    "no tunnel": NO_TUNNEL,
    "on the spare KME": ON_THE_SPARE_KME,
    "empty": EMPTY,
    "without QKD": WITHOUT_QKD,
    "draining": DRAINING,
    "audited": AUDITED,
    "audit stops": AUDIT_STOPS,
    "audit goes on": AUDIT_GOES_ON,
}
