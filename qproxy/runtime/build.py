"""From configuration to the objects a gateway runs: contexts, sources, settings. Reads files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from cryptography import x509
from OpenSSL import SSL

from qproxy.config.model import (
    Etsi014SourceConfig,
    FileSourceConfig,
    GatewayConfig,
    KeySourceConfig,
    ListenerTlsConfig,
    PathConfig,
    PeerConfig,
    PemFiles,
    Pkcs12Files,
    ServiceTlsConfig,
    SkipSourceConfig,
    SourceEndpoint,
    TlsSourceConfig,
)
from qproxy.config.scalars import load_psk
from qproxy.crypto import labels
from qproxy.errors import ConfigError
from qproxy.keys import SourceKind, source_label
from qproxy.log import get_logger
from qproxy.modes import ClientAuth
from qproxy.net.http_client import HttpClient
from qproxy.runtime.qkd import SourceInUse
from qproxy.sources.base import KeySource
from qproxy.sources.etsi014 import Etsi014Source, KeyCalls, LinkFigures
from qproxy.sources.failover import FailoverSource
from qproxy.sources.file import FileSource
from qproxy.sources.skip import SkipSource
from qproxy.tls.context import client_context, server_context
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_hash
from qproxy.tunnel.constants import MAX_NAME_BYTES
from qproxy.tunnel.settings import TunnelSettings

#: TLS contexts of one key source, by the name of the KME each is for.
SourceContexts = Mapping[str, SSL.Context]

#: How long a connection to a KME is kept for the next call, in seconds. Shorter than the 5 s after
#: which common servers close theirs: a key call that meets such a close is lost.
KME_IDLE_TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True)
class TunnelContexts:
    """TLS 1.3 contexts for tunnels: our certificate, the peers' CA, ALPN."""

    client: SSL.Context
    server: SSL.Context


def build_tunnel_contexts(config: GatewayConfig) -> TunnelContexts:
    """Load our identity and whom we believe. Raises ConfigError."""
    identity = TlsIdentity.load(config.identity.certificate, config.identity.private_key)
    trust = TrustStore.load(config.identity.ca, config.identity.crl)
    return TunnelContexts(
        client=client_context(trust=trust, identity=identity, alpn=[labels.ALPN], tls13_only=True),
        server=server_context(
            identity,
            trust=trust,
            client_auth=ClientAuth.REQUIRED,
            alpn=[labels.ALPN],
            tls13_only=True,
        ),
    )


def build_listener_context(config: ListenerTlsConfig) -> SSL.Context:
    """For the TLS that a listener ends in front of applications. Raises ConfigError."""
    return server_context(
        TlsIdentity.load(config.certificate, config.private_key),
        trust=TrustStore.load(config.client_ca) if config.client_ca else None,
        client_auth=config.client_auth,
    )


def build_service_context(config: ServiceTlsConfig) -> SSL.Context:
    """For TLS to a service. Raises ConfigError."""
    identity = None
    if config.certificate is not None and config.private_key is not None:
        identity = TlsIdentity.load(config.certificate, config.private_key)
    return client_context(trust=TrustStore.load(config.ca), identity=identity)


def load_client_identity(endpoint: SourceEndpoint) -> TlsIdentity:
    """What we show a KME or key provider. Raises ConfigError."""
    match endpoint.client:
        case PemFiles(certificate, private_key):
            return TlsIdentity.load(certificate, private_key)
        case Pkcs12Files(bundle, password_file):
            return TlsIdentity.load_pkcs12(bundle, password_file)


def build_source_contexts(config: TlsSourceConfig) -> SourceContexts:
    """For TLS to each KME or key provider of a source. Raises ConfigError."""
    return {
        endpoint.name: client_context(
            trust=TrustStore.load(endpoint.ca), identity=load_client_identity(endpoint)
        )
        for endpoint in config.endpoints
    }


def _http_client(
    config: TlsSourceConfig, endpoint: SourceEndpoint, contexts: SourceContexts
) -> HttpClient:
    return HttpClient(
        tls=contexts[endpoint.name],
        server_name=endpoint.server_name,
        connect_timeout_s=config.connect_timeout_s,
        request_timeout_s=config.request_timeout_s,
        idle_timeout_s=KME_IDLE_TIMEOUT_S,
    )


def build_source(
    config: KeySourceConfig, peer: PeerConfig, path: PathConfig, tls: SourceContexts | None = None
) -> SourceInUse:
    """A key source for one peer. Raises ConfigError.

    Args:
        config: what the source is.
        peer: whom keys are shared with.
        path: which of the peer's sources it is, with both SAE IDs.
        tls: what a KME is reached with; None loads the files that the configuration names.
    """
    source = _build_source(config, peer, path, tls)
    return SourceInUse(source, kind_of_source(config), path.name)


def _build_source(
    config: KeySourceConfig, peer: PeerConfig, path: PathConfig, tls: SourceContexts | None
) -> KeySource:
    local_id, peer_id = path.local_sae_id or "", path.peer_sae_id or ""
    if isinstance(config, SkipSourceConfig):
        contexts = tls or build_source_contexts(config)
        (endpoint,) = config.endpoints
        http = _http_client(config, endpoint, contexts)
        return SkipSource(config.name, http, config.url, local_id, peer_id)
    if isinstance(config, Etsi014SourceConfig):
        contexts = tls or build_source_contexts(config)
        kmes = [_build_kme(config, endpoint, path, contexts) for endpoint in config.endpoints]
        if len(kmes) == 1:
            return kmes[0]
        return FailoverSource(
            config.name,
            [(kme.kme, kme) for kme in kmes],
            get_logger("qproxy.sources.failover", peer=peer.name),
            retry_s=config.kme_retry_s,
            max_retry_s=config.max_kme_retry_s,
        )
    return FileSource(config.name, config.directory, dials=peer.address is not None)


def _build_kme(
    config: Etsi014SourceConfig,
    endpoint: SourceEndpoint,
    path: PathConfig,
    contexts: SourceContexts,
) -> Etsi014Source:
    return Etsi014Source(
        config.name,
        _http_client(config, endpoint, contexts),
        endpoint.url,
        path.local_sae_id or "",
        path.peer_sae_id or "",
        LinkFigures(
            config.qber_field, config.qber_scale, config.key_rate_field, config.key_rate_scale
        ),
        KeyCalls(
            config.method,
            config.additional_slave_sae_ids or (),
            config.extension_mandatory or (),
            config.extension_optional or (),
        ),
        kme=endpoint.name,
    )


def build_sources(config: GatewayConfig, peer: PeerConfig) -> list[SourceInUse]:
    """Every key source of a peer. Raises ConfigError."""
    return [build_source(config.key_sources[path.source], peer, path) for path in peer.paths]


def source_labels(config: GatewayConfig, peer: PeerConfig) -> tuple[str, ...]:
    """How offers name the peer's key sources, the same at both ends."""
    return tuple(
        source_label(kind_of_source(config.key_sources[path.source]), path.name)
        for path in peer.paths
    )


def kind_of_source(source: KeySourceConfig) -> SourceKind:
    """What a source is."""
    match source:
        case Etsi014SourceConfig():
            return SourceKind.ETSI_014
        case SkipSourceConfig():
            return SourceKind.SKIP
        case FileSourceConfig():
            return SourceKind.FILE


def bound_sae_ids(peer: PeerConfig) -> tuple[str, str]:
    """Our SAE ID and the peer's, as both ends compare them (docs/protocol.md, rule R10).

    Where paths have IDs of their own, all of them stand in one text each, ordered by path.

    Raises:
        ConfigError: they are too long together.
    """
    own = [path for path in peer.key_sources.values() if path.local_sae_id or path.peer_sae_id]
    if not own:
        return peer.local_sae_id, peer.peer_sae_id
    paths = sorted(peer.paths, key=lambda path: path.name)
    local = ";".join(f"{path.name}={quote(path.local_sae_id or '', safe='')}" for path in paths)
    remote = ";".join(f"{path.name}={quote(path.peer_sae_id or '', safe='')}" for path in paths)
    if max(len(local), len(remote)) > MAX_NAME_BYTES:
        raise ConfigError(
            f"the SAE IDs of all paths are longer than {MAX_NAME_BYTES} characters together",
            key=f"peers.{peer.name}.key_sources",
            hint="shorter names of paths or shorter SAE IDs",
        )
    return local, remote


def build_settings(config: GatewayConfig, peer: PeerConfig) -> TunnelSettings:
    """What the core needs for tunnels with one peer; reads the PSK. Raises ConfigError."""
    tunnel, rekey = config.tunnel, peer.rekey
    local_sae_id, peer_sae_id = bound_sae_ids(peer)
    return TunnelSettings(
        local_name=config.node.name,
        peer_name=peer.name,
        pinned_certificate_hash=_pinned_hash(peer),
        local_sae_id=local_sae_id,
        peer_sae_id=peer_sae_id,
        policy=peer.policy,
        # Whole seconds on the wire; rounding up would promise the peer more than is configured.
        max_without_qkd_s=max(1, math.floor(peer.max_without_qkd_s)),
        key_sources=source_labels(config, peer),
        aead=peer.aead,
        kem=peer.kem,
        psk=None if peer.psk_file is None else bytes(load_psk(peer.psk_file)),
        allow_classical_group=tunnel.unsafe_allow_classical_group,
        handshake_timeout_s=tunnel.handshake_timeout_s,
        epoch_timeout_s=peer.epoch_timeout_s,
        rekey_interval_s=rekey.interval_s,
        rekey_bytes=rekey.bytes,
        rekey_records=rekey.records,
        max_epoch_age_s=rekey.max_age_s,
        max_epoch_bytes=2 * rekey.bytes,
        reauth_interval_s=rekey.reauth_interval_s,
        ping_interval_s=tunnel.ping_interval_s,
        peer_timeout_s=tunnel.peer_timeout_s,
        max_streams=tunnel.max_streams_per_tunnel,
        max_stream_window_bytes=tunnel.max_stream_window_bytes,
        max_session_window_bytes=tunnel.max_session_window_bytes,
    )


def build_unknown_peer_settings(config: GatewayConfig) -> TunnelSettings:
    """Settings for an incoming tunnel until its certificate says whose it is."""
    tunnel = config.tunnel
    return TunnelSettings(
        local_name=config.node.name,
        peer_name="",
        allow_classical_group=tunnel.unsafe_allow_classical_group,
        handshake_timeout_s=tunnel.handshake_timeout_s,
        ping_interval_s=tunnel.ping_interval_s,
        peer_timeout_s=tunnel.peer_timeout_s,
        max_streams=tunnel.max_streams_per_tunnel,
        max_stream_window_bytes=tunnel.max_stream_window_bytes,
        max_session_window_bytes=tunnel.max_session_window_bytes,
    )


def _pinned_hash(peer: PeerConfig) -> bytes | None:
    if peer.pinned_certificate is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(peer.pinned_certificate.read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            "the pinned certificate cannot be read",
            file=peer.pinned_certificate,
            key=f"peers.{peer.name}.pinned_certificate",
            hint="expected a PEM file that begins with BEGIN CERTIFICATE",
        ) from None
    return certificate_hash(certificate)
