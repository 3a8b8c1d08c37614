"""What a configuration says, as frozen dataclasses: the only form the program sees.

Every default stands here, once, beside its unit. `qproxy.config.schema` holds how each key is
written and what range it has, `qproxy.config.reader` turns a file into these objects and
`docs/configuration.md` gives the reasons. Paths are absolute, references between sections are
known to hold, and no object carries a secret: keys stay in their files.

Times are seconds, as floats, and a time of 0 is only allowed where it says "0 = never".
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qproxy.address import Address
from qproxy.config.network import NetworkConfig
from qproxy.modes import Aead, ClientAuth, KemAlgorithm, KemProviderChoice, Policy
from qproxy.quantum.health_settings import HealthSettings
from qproxy.sim.events import TimedEvent

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class LogFormat(enum.StrEnum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """The least severe event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class OnAuditFailure(enum.StrEnum):
    """What a gateway does that cannot write its audit log."""

    STOP = "stop"
    """No record, no traffic."""
    CONTINUE = "continue"
    """Traffic goes on; records that are lost are counted."""


class Fsync(enum.StrEnum):
    """When the disk is waited for after records were written."""

    EACH = "each"
    """After every batch, and a batch is what came while the one before was written."""
    INTERVAL = "interval"
    """Once a second while records come."""
    NEVER = "never"
    """Left to the kernel: a crash of the machine may lose records, one of qproxy does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Who this gateway is.

    Attributes:
        name: Its name, a subject alternative name of its own certificate.
        kem_provider: Which library computes ML-KEM.
        pid_file: File that holds the process ID while the gateway runs, for `qproxy reload`;
            None for no such file.
        workers: Processes that carry traffic; 0 (`auto`) for one per CPU that is there for us.
        worker_timeout_s: Silence after which a worker counts as hung and is replaced.
        busy_poll_us: How long to look for more traffic before sleeping, at most, in microseconds.
    """

    name: str
    kem_provider: KemProviderChoice = KemProviderChoice.AUTO
    pid_file: Path | None = None
    workers: int = 1
    worker_timeout_s: float = 30.0
    busy_poll_us: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How events are logged, always to standard error."""

    format: LogFormat = LogFormat.TEXT
    level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityConfig:
    """The certificate this gateway shows its peers, and whom it believes.

    Attributes:
        certificate: PEM file, leaf first, intermediates after it.
        private_key: PEM file of the leaf's key, not encrypted.
        ca: PEM file of the authorities that sign peers' certificates.
        crl: PEM file of revocation lists, or None.
    """

    certificate: Path
    private_key: Path
    ca: Path
    crl: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelConfig:
    """What holds for every tunnel of this gateway.

    Attributes:
        listen: Where tunnels from peers arrive; None where this gateway only dials.
        handshake_timeout_s: From a TCP connection to a verified TLS handshake.
        ping_interval_s: Silence after which a ping is sent.
        peer_timeout_s: Silence after which the tunnel is given up; longer than the interval.
        max_tunnels: Tunnels at once, over all peers.
        max_streams_per_tunnel: Streams open at once in one tunnel.
        max_stream_window_bytes: Most that one stream may have in flight towards this gateway.
        max_session_window_bytes: The same for all streams of a tunnel together; larger than
            a stream's, or one slow stream would stop the others.
        unsafe_allow_classical_group: Accept a TLS handshake without X25519MLKEM768.
        unsafe_core_dumps: Leave core dumps on; they hold keys.
    """

    listen: Address | None = None
    handshake_timeout_s: float = 10.0
    ping_interval_s: float = 15.0
    peer_timeout_s: float = 45.0
    max_tunnels: int = 64
    max_streams_per_tunnel: int = 16_384
    max_stream_window_bytes: int = 24 * MIB
    max_session_window_bytes: int = 64 * MIB
    unsafe_allow_classical_group: bool = False
    unsafe_core_dumps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RekeyConfig:
    """When a tunnel starts its next epoch, whichever comes first.

    Attributes:
        interval_s: Age of the epoch.
        bytes: Application bytes, both ways together, in one epoch.
        records: Records in one direction under one key. AES-GCM allows 2^24.5 (RFC 9846 §5.5).
        max_age_s: Age at which a tunnel that could not rekey is closed, by either end.
        reauth_interval_s: Age of the last authentication at which both ends prove again who they
            are; a minute later a tunnel that did not is closed. 0 = never.
    """

    interval_s: float = 60.0
    bytes: int = 64 * GIB
    records: int = 4_194_304
    max_age_s: float = 600.0
    reauth_interval_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStockConfig:
    """QKD keys drawn ahead of need, where this gateway dials.

    Attributes:
        low_water: Keys in stock below which more are drawn, and count as short.
        high_water: Keys in stock at which drawing stops.
        max_age_s: How long a key lies in stock before it is wiped unused.
    """

    low_water: int = 8
    high_water: int = 32
    max_age_s: float = 600.0


class Combine(enum.StrEnum):
    """What is done with the keys of several sources towards one peer."""

    ALL = "all"
    """Keys of every source that has some go into each epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathConfig:
    """One of several sources towards a peer, and its counterpart there.

    Attributes:
        name: What both ends call the pair of sources; its key in `key_sources`.
        source: Name in the gateway's `key_sources`.
        local_sae_id: Our SAE ID at this source; the peer section's unless configured.
        peer_sae_id: The peer's SAE ID at its counterpart; the peer section's unless configured.
    """

    name: str
    source: str
    local_sae_id: str | None = None
    peer_sae_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """One gateway that this one has tunnels with.

    Attributes:
        name: The peer's name, a subject alternative name of its certificate.
        address: Where to dial it; None where it dials us.
        tunnels: How many tunnels to keep, where we dial.
        policy: What is demanded of the quantum link.
        max_without_qkd_s: Under `require`, how long a tunnel lives without a fresh QKD key.
        key_source: Name in `key_sources`; None with policy `off`, or with several sources.
        key_sources: Several sources at once, by the name that both ends have for each path.
        combine: What is done with the keys of several sources.
        combine_at_least: How many of them an epoch needs to be hybrid.
        local_sae_id: Our SAE ID at the key source (the node's name unless configured).
        peer_sae_id: The peer's SAE ID (the peer's name unless configured).
        qkd_key_size_bits: Size of each QKD key, a multiple of 8 and at least 256.
        qkd_keys_per_epoch: QKD keys that go into one epoch.
        kem: ML-KEM parameter set of each epoch.
        aead: What protects the records.
        psk_file: File of a 32-byte pre-shared key as 64 hexadecimal digits, or None.
        pinned_certificate: PEM file; the peer's leaf must be this one, besides the checks of
            its chain and its name, or None.
        rekey: When the next epoch starts.
        link_health: Every threshold of the health of the quantum link to this peer.
        key_stock: How many QKD keys are kept ahead of need.
        epoch_timeout_s: How long the tunnel client waits for the answer to an offer; longer
            than the server's `kme_timeout_s`.
        kme_timeout_s: How long a key source may take over one request of this peer's.
    """

    name: str
    local_sae_id: str
    peer_sae_id: str
    address: Address | None = None
    tunnels: int = 1
    policy: Policy = Policy.PREFER
    max_without_qkd_s: float = 300.0
    key_source: str | None = None
    key_sources: Mapping[str, PathConfig] = field(default_factory=dict)
    combine: Combine = Combine.ALL
    combine_at_least: int = 1
    qkd_key_size_bits: int = 256
    qkd_keys_per_epoch: int = 1
    kem: KemAlgorithm = KemAlgorithm.ML_KEM_1024
    aead: Aead = Aead.AES_256_GCM
    psk_file: Path | None = None
    pinned_certificate: Path | None = None
    rekey: RekeyConfig = field(default_factory=RekeyConfig)
    link_health: HealthSettings = field(default_factory=HealthSettings)
    key_stock: KeyStockConfig = field(default_factory=KeyStockConfig)
    epoch_timeout_s: float = 10.0
    kme_timeout_s: float = 5.0

    @property
    def paths(self) -> tuple[PathConfig, ...]:
        """Its sources, one or several, with their SAE IDs; the name of a single one is empty."""
        alone = [] if self.key_source is None else [PathConfig(name="", source=self.key_source)]
        return tuple(
            dataclasses.replace(
                path,
                local_sae_id=path.local_sae_id or self.local_sae_id,
                peer_sae_id=path.peer_sae_id or self.peer_sae_id,
            )
            for path in (*alone, *self.key_sources.values())
        )


class KeyRequestMethod(enum.StrEnum):
    """How a KME is asked for keys."""

    AUTO = "auto"
    """GET while it will do and the KME heeds it, POST otherwise."""
    GET = "get"
    """GET wherever ETSI GS QKD 014 has one."""
    POST = "post"
    """POST always."""


@dataclass(frozen=True, slots=True)
class PemFiles:
    """A client certificate in two PEM files."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True, slots=True)
class Pkcs12Files:
    """A client certificate in a PKCS #12 file, with the file of its password or None."""

    bundle: Path
    password_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEndpoint:
    """One server that a key source calls, everything it takes to reach it.

    Attributes:
        name: Its key in `kmes`, or the source's own name where there is only one.
        url: `https://host[:port][/prefix]` without a trailing slash.
        ca: PEM file of the authorities that sign its certificate.
        client: What we show it.
        server_name: Name its certificate must carry; None means the host of `url`.
    """

    name: str
    url: str
    ca: Path
    client: PemFiles | Pkcs12Files
    server_name: str | None

    @property
    def files(self) -> frozenset[Path]:
        """The files that both ends are authenticated with."""
        match self.client:
            case PemFiles(certificate, private_key):
                return frozenset({self.ca, certificate, private_key})
            case Pkcs12Files(bundle, password_file):
                return frozenset({self.ca, bundle, password_file or bundle})


@dataclass(frozen=True, slots=True, kw_only=True)
class Etsi014KmeConfig:
    """One of several KMEs of a source. What is None here is as the source has it.

    Attributes:
        name: Its key in `kmes`.
        url: `https://host[:port][/prefix]` without a trailing slash; `/api/v1/keys/` follows.
        ca: PEM file of the authorities that sign the KME's certificate.
        certificate: PEM file of our certificate at the KME.
        private_key: PEM file of its key.
        pkcs12: PKCS #12 file of both, in their place.
        pkcs12_password_file: File of its password.
        server_name: Name the KME's certificate must carry; None means the host of `url`.
    """

    name: str
    url: str
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    pkcs12: Path | None = None
    pkcs12_password_file: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Etsi014SourceConfig:
    """KMEs that speak ETSI GS QKD 014 over mutual TLS: one at `url`, or several in `kmes`.

    Attributes:
        name: Its key in `key_sources`.
        url: `https://host[:port][/prefix]` without a trailing slash; `/api/v1/keys/` follows.
        ca: PEM file of the authorities that sign the KME's certificate.
        certificate: PEM file of our certificate at the KME.
        private_key: PEM file of its key.
        pkcs12: PKCS #12 file of both, in their place.
        pkcs12_password_file: File of its password.
        server_name: Name the KME's certificate must carry; None means the host of `url`.
        kmes: Several KMEs in place of `url`, in order of preference.
        kme_retry_s: How long a KME that failed is left out, where there is another; doubled with
            each further failure.
        max_kme_retry_s: What that grows to.
        method: Whether keys are asked for with GET or POST.
        additional_slave_sae_ids: Further SAEs that get the same keys, or None.
        extension_mandatory: What the KME must do for every key request, or None.
        extension_optional: What it may do, or None.
        connect_timeout_s: TCP connection and TLS handshake.
        request_timeout_s: One whole exchange, body included.
        qber_field: Where in `status_extension` the KME tells its QBER; members joined by dots.
        qber_scale: What that is multiplied by to become a fraction; 0.01 for per cent.
        key_rate_field: Where it tells its secret key rate.
        key_rate_scale: What that is multiplied by to become bits per second.
    """

    name: str
    url: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    pkcs12: Path | None = None
    pkcs12_password_file: Path | None = None
    server_name: str | None = None
    kmes: Mapping[str, Etsi014KmeConfig] = field(default_factory=dict)
    kme_retry_s: float = 1.0
    max_kme_retry_s: float = 60.0
    method: KeyRequestMethod = KeyRequestMethod.AUTO
    additional_slave_sae_ids: tuple[str, ...] | None = None
    extension_mandatory: tuple[Mapping[str, object], ...] | None = None
    extension_optional: tuple[Mapping[str, object], ...] | None = None
    connect_timeout_s: float = 1.0
    request_timeout_s: float = 2.0
    qber_field: str = "qber"
    qber_scale: float = 1.0
    key_rate_field: str = "key_rate_bps"
    key_rate_scale: float = 1.0

    @property
    def endpoints(self) -> tuple[SourceEndpoint, ...]:
        """The KMEs in order of preference, at least one; the reader has seen to that."""
        if self.kmes:
            return tuple(self._endpoint(kme) for kme in self.kmes.values())
        return (self._endpoint(None),)

    def _endpoint(self, kme: Etsi014KmeConfig | None) -> SourceEndpoint:
        """One KME with what the source gives all of them filled in."""
        ca = (kme and kme.ca) or self.ca
        # A KME with a client certificate of its own takes nothing of the source's.
        client = (kme and _client_files(kme)) or _client_files(self)
        url = kme.url if kme is not None else self.url
        if ca is None or client is None or url is None:
            raise ValueError("expected url, ca and a client certificate for every KME")
        return SourceEndpoint(
            name=kme.name if kme is not None else self.name,
            url=url,
            ca=ca,
            client=client,
            server_name=kme.server_name if kme is not None else self.server_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipSourceConfig:
    """A key provider that speaks SKIP (draft-cisco-skip) over TLS with certificates on both sides.

    Attributes:
        name: Its key in `key_sources`.
        url: `https://host[:port][/prefix]` without a trailing slash; `/key` and so on follow.
        ca: PEM file of the authorities that sign the provider's certificate.
        certificate: PEM file of our certificate at the provider.
        private_key: PEM file of its key.
        pkcs12: PKCS #12 file of both, in their place.
        pkcs12_password_file: File of its password.
        server_name: Name the provider's certificate must carry; None means the host of `url`.
        connect_timeout_s: TCP connection and TLS handshake.
        request_timeout_s: One whole exchange, body included.
    """

    name: str
    url: str
    ca: Path
    certificate: Path | None = None
    private_key: Path | None = None
    pkcs12: Path | None = None
    pkcs12_password_file: Path | None = None
    server_name: str | None = None
    connect_timeout_s: float = 1.0
    request_timeout_s: float = 2.0

    @property
    def endpoints(self) -> tuple[SourceEndpoint, ...]:
        """The provider."""
        client = _client_files(self)
        if client is None:
            raise ValueError("expected a client certificate")
        return (
            SourceEndpoint(
                name=self.name,
                url=self.url,
                ca=self.ca,
                client=client,
                server_name=self.server_name,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSourceConfig:
    """A pre-shared pad: a directory of keys written ahead on both sides.

    Attributes:
        name: Its key in `key_sources`.
        directory: Where the keys lie.
    """

    name: str
    directory: Path


def _client_files(
    config: Etsi014SourceConfig | Etsi014KmeConfig | SkipSourceConfig,
) -> PemFiles | Pkcs12Files | None:
    """The client certificate that one section gives by itself, or None."""
    if config.pkcs12 is not None:
        return Pkcs12Files(config.pkcs12, config.pkcs12_password_file)
    if config.certificate is not None and config.private_key is not None:
        return PemFiles(config.certificate, config.private_key)
    return None


#: Sources that are reached over TLS, with files of ours.
TlsSourceConfig = Etsi014SourceConfig | SkipSourceConfig
KeySourceConfig = Etsi014SourceConfig | SkipSourceConfig | FileSourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTlsConfig:
    """TLS that the gateway ends in front of an application.

    Attributes:
        certificate: PEM file, leaf first.
        private_key: PEM file of its key.
        client_ca: PEM file of the authorities that sign clients' certificates; needed unless
            `client_auth` is `none`.
        client_auth: Whether clients may or must show a certificate.
    """

    certificate: Path
    private_key: Path
    client_ca: Path | None = None
    client_auth: ClientAuth = ClientAuth.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """Where local applications connect, and which far service they get.

    Attributes:
        name: Its key in `listeners`.
        listen: Where applications connect.
        peer: Name of the peer behind which the service is.
        service: The service's name at that peer.
        tls: TLS towards the application, or None for plaintext.
        wait_for_service: Read nothing from the application before the service is connected;
            certainty for the price of a round trip.
        idle_timeout_s: Silence both ways after which a connection is reset; 0 = never.
        max_connections: Connections at once.
        policy: `require` or `prefer` for these connections alone; None for whatever the peer's
            policy allows, which is also the most that can be loosened.
        max_without_qkd_s: Under this listener's `require`, how long a connection lives without a
            fresh QKD key in its tunnel; None for the peer's.
        handshake_timeout_s: For the TLS handshake with the application.
        unsafe_allow_remote_plaintext: Listen in plaintext on an address that is not loopback.
    """

    name: str
    listen: Address
    peer: str
    service: str
    tls: ListenerTlsConfig | None = None
    wait_for_service: bool = False
    idle_timeout_s: float = 0.0
    max_connections: int = 10_000
    policy: Policy | None = None
    max_without_qkd_s: float | None = None
    handshake_timeout_s: float = 10.0
    unsafe_allow_remote_plaintext: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTlsConfig:
    """TLS from this gateway to a service.

    Attributes:
        ca: PEM file of the authorities that sign the service's certificate.
        server_name: Name its certificate must carry; None means the host of `connect`.
        certificate: PEM file of a client certificate, or None.
        private_key: PEM file of its key; given exactly when `certificate` is.
    """

    ca: Path
    server_name: str | None = None
    certificate: Path | None = None
    private_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """A service that peers may open streams to.

    Attributes:
        name: Its key in `services`; what peers ask for.
        connect: Where it is.
        tls: TLS towards the service, or None for plaintext.
        peers: Names of the peers that may use it; None means every configured peer.
        connect_timeout_s: TCP connection and TLS handshake together.
        idle_timeout_s: Silence both ways after which a connection is reset; 0 = never.
        max_connections: Connections at once, over all peers.
        policy: `require` or `prefer` for this service alone; None for whatever the peer's
            policy allows, which is also the most that can be loosened.
        max_without_qkd_s: Under this service's `require`, how long a stream lives without a
            fresh QKD key in its tunnel; None for that of the stream's peer.
    """

    name: str
    connect: Address
    tls: ServiceTlsConfig | None = None
    peers: tuple[str, ...] | None = None
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 0.0
    max_connections: int = 10_000
    policy: Policy | None = None
    max_without_qkd_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownConfig:
    """How the gateway ends.

    Attributes:
        drain_s: After the first SIGTERM, how long open connections may go on; 0 = not at all.
    """

    drain_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    """Where health, metrics and status are asked for, in plain HTTP.

    Attributes:
        listen: A loopback address or a unix socket; None for no admin listener.
        hosts: Names besides loopback ones that a request's Host header may carry, or None.
        unsafe_allow_remote: Listen on an address that is not loopback.
    """

    listen: Address | None = None
    hosts: tuple[str, ...] | None = None
    unsafe_allow_remote: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The audit trail: which bytes ran under which keys.

    Attributes:
        file: The log in use; None for no audit trail. Full files are kept beside it.
        failure: What to do where the log cannot be written.
        fsync: When the disk is waited for.
        max_file_bytes: Size at which a file is full.
        hmac_key_file: File of a 32-byte key as 64 hexadecimal digits, or None; with it the log
            is chained by HMACs.
    """

    file: Path | None = None
    failure: OnAuditFailure = OnAuditFailure.STOP
    fsync: Fsync = Fsync.INTERVAL
    max_file_bytes: int = 64 * MIB
    hmac_key_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything `qproxy run` needs.

    Attributes:
        path: The file it came from.
    """

    path: Path
    node: NodeConfig
    identity: IdentityConfig
    peers: Mapping[str, PeerConfig]
    log: LogConfig = field(default_factory=LogConfig)
    tunnel: TunnelConfig = field(default_factory=TunnelConfig)
    key_sources: Mapping[str, KeySourceConfig] = field(default_factory=dict)
    listeners: Mapping[str, ListenerConfig] = field(default_factory=dict)
    services: Mapping[str, ServiceConfig] = field(default_factory=dict)
    shutdown: ShutdownConfig = field(default_factory=ShutdownConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeConfig:
    """One simulated KME.

    Attributes:
        name: Its key in `kmes`, and its `source_KME_ID`.
        listen: Where its ETSI GS QKD 014 interface answers, over mutual TLS.
        certificate: PEM file, leaf first.
        private_key: PEM file of its key.
        ca: PEM file of the authorities that sign the SAEs' certificates.
    """

    name: str
    listen: Address
    certificate: Path
    private_key: Path
    ca: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """The simulated quantum link between the two KMEs.

    Attributes:
        key_rate_bps: Secret key produced, in bits per second, while the link is whole.
        qber: Quantum bit error rate that the status reports, 0 to 0.5.
        key_size_bits: Default size of a key.
        max_key_count: Keys of the default size stored for all SAEs together at most.
        initial_key_count: Keys stored at the start.
        min_key_size_bits: Smallest size that may be asked for.
        max_key_size_bits: Largest size that may be asked for.
        max_key_per_request: Most keys in one request.
    """

    key_rate_bps: float = 100_000.0
    qber: float = 0.01
    key_size_bits: int = 256
    max_key_count: int = 10_000
    initial_key_count: int = 100
    min_key_size_bits: int = 64
    max_key_size_bits: int = 1024
    max_key_per_request: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """Where the link is degraded, cut and restored, in plain HTTP on this machine only.

    Attributes:
        listen: A loopback address or a unix socket.
    """

    listen: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeSimConfig:
    """Everything `qproxy kme-sim` needs.

    Attributes:
        path: The file it came from.
        kmes: Two KMEs; more only with a network.
        saes: SAE ID (a name in its client certificate) to the name of its KME.
        link: What joins the two KMEs, where there is no network.
        network: The network that joins the KMEs, or None for a plain link.
        timetable: What happens by itself while the simulator runs.
        control: Where the link is controlled, or None.
    """

    path: Path
    kmes: Mapping[str, KmeConfig]
    saes: Mapping[str, str]
    link: LinkConfig = field(default_factory=LinkConfig)
    network: NetworkConfig | None = None
    timetable: tuple[TimedEvent, ...] = ()
    control: ControlConfig | None = None
    log: LogConfig = field(default_factory=LogConfig)
