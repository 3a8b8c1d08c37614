"""What a gateway decides for one tunnel, as the core needs it. Units are in the names."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from qproxy.crypto.records import MAX_RECORDS_PER_KEY
from qproxy.modes import Aead, KemAlgorithm, Policy


class Role(enum.StrEnum):
    """Who dialled the tunnel. Streams may be opened from both ends."""

    CLIENT = "client"
    SERVER = "server"


#: TLS groups that count as hybrid: an ML-KEM secret is in each of them.
HYBRID_GROUPS = frozenset({"X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024"})


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """Settings of one end of one tunnel.

    Attributes:
        local_name: this gateway's name, a SAN of its certificate.
        peer_name: the name the peer's certificate must carry as a SAN.
        pinned_certificate_hash: SHA-384 of the one certificate the peer may use, 48 bytes, or
            None. The chain and the name are checked as well.
        local_sae_id: this gateway's SAE ID at its KME.
        peer_sae_id: the peer's SAE ID.
        policy: what this end demands of the quantum link.
        max_without_qkd_s: under ``require``, longest time without a fresh QKD key.
        key_sources: the key sources this end shares with the peer, as offers name them
            ("etsi-qkd-014", "skip/north"); empty where it has none.
        aead: record protection this end offers as client.
        kem: ML-KEM parameter set this end offers as client, and the weakest it takes as server.
        psk: optional pre-shared key, 32 bytes.
        allow_classical_group: go on with a TLS group that holds no ML-KEM. Unsafe.
        handshake_timeout_s: from the first byte to the first committed epoch.
        epoch_timeout_s: client: OFFER to ACCEPT; server: ACCEPT to CONFIRM; both: to the switch.
        rekey_interval_s: client: age at which a new epoch is due; 0 for never.
        rekey_bytes: client: application bytes, both ways, after which a new epoch is due.
        rekey_records: client: records in one direction after which a new epoch is due.
        max_epoch_age_s: both: age at which the tunnel ends for want of a new epoch; 0 for never.
        max_epoch_bytes: both: the same in bytes.
        max_epoch_records: both: the same in records in one direction. The key's own limit, less
            what an orderly end needs, holds whatever stands here.
        reauth_interval_s: both: age of the last authentication at which the client is to make a
            new one; a minute later the tunnel ends. 0 for never.
        ping_interval_s: how often a PING is sent.
        peer_timeout_s: silence after which the peer is taken for dead.
        max_streams: streams one end may have open at once that the other opened.
        max_stream_window_bytes: largest window a stream's receiver grows to.
        max_session_window_bytes: largest window of the whole tunnel; the most received data
            this end ever holds for it.
    """

    local_name: str
    peer_name: str
    pinned_certificate_hash: bytes | None = None
    local_sae_id: str = ""
    peer_sae_id: str = ""
    policy: Policy = Policy.PREFER
    max_without_qkd_s: int = 300
    key_sources: tuple[str, ...] = ()
    aead: Aead = Aead.AES_256_GCM
    kem: KemAlgorithm = KemAlgorithm.ML_KEM_1024
    psk: bytes | None = field(default=None, repr=False)
    allow_classical_group: bool = False
    handshake_timeout_s: float = 10.0
    epoch_timeout_s: float = 10.0
    rekey_interval_s: float = 60.0
    rekey_bytes: int = 64 << 30
    rekey_records: int = 1 << 22
    max_epoch_age_s: float = 600.0
    max_epoch_bytes: int = 128 << 30
    max_epoch_records: int = MAX_RECORDS_PER_KEY
    reauth_interval_s: float = 3600.0
    ping_interval_s: float = 15.0
    peer_timeout_s: float = 45.0
    max_streams: int = 16_384
    max_stream_window_bytes: int = 24 << 20
    max_session_window_bytes: int = 64 << 20
