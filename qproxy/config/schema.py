"""Every key of both kinds of file: what it may be and its range. Defaults are in the model.

`docs/configuration.md` lists the same keys with their reasons, and a test holds the three
(schema, docs, configs/reference.yaml) together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qproxy.config import checks, source_checks
from qproxy.config.json_objects import JsonObjects
from qproxy.config.model import (
    GIB,
    KIB,
    AdminConfig,
    AuditConfig,
    Combine,
    ControlConfig,
    Etsi014KmeConfig,
    Etsi014SourceConfig,
    FileSourceConfig,
    Fsync,
    GatewayConfig,
    IdentityConfig,
    KeyRequestMethod,
    KeyStockConfig,
    KmeConfig,
    KmeSimConfig,
    LinkConfig,
    ListenerConfig,
    ListenerTlsConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    NodeConfig,
    OnAuditFailure,
    PathConfig,
    PeerConfig,
    RekeyConfig,
    ServiceConfig,
    ServiceTlsConfig,
    ShutdownConfig,
    SkipSourceConfig,
    TunnelConfig,
)
from qproxy.config.network import MAX_KEYS_PER_REQUEST, MAX_SIMULATED_KMES
from qproxy.config.network_schema import NETWORK, TIMETABLE
from qproxy.config.scalars import (
    ByteSize,
    Directory,
    Endpoint,
    FilePath,
    Flag,
    HttpsUrl,
    Integer,
    NewFile,
    Number,
    PskFile,
    ReadableFile,
    Reference,
    Text,
    Word,
    WorkerCount,
)
from qproxy.config.sections import ListOf, Named, Section, Tagged, defaults_of
from qproxy.config.walk import Kind
from qproxy.keys import MAX_QKD_KEY_BYTES, MIN_QKD_KEY_BYTES
from qproxy.modes import Aead, ClientAuth, KemAlgorithm, KemProviderChoice, Policy
from qproxy.quantum.health_settings import MAX_RATIO_WINDOW, HealthSettings

#: Most peers, key sources, listeners and services, each.
MAX_ENTRIES: Final = 1000
#: Most KMEs of one key source.
MAX_KMES: Final = 8
#: Most worker processes of one gateway.
MAX_WORKERS: Final = 128
#: Longest time that may be configured: a week.
MAX_TIME_S: Final = 604_800.0
#: AES-GCM allows 2^24.5 full records under one key (RFC 9846 §5.5); we stay below.
MAX_REKEY_RECORDS: Final = 2**24
#: Most QKD keys in stock for one peer.
MAX_STOCK_KEYS: Final = 4096
#: Most sources that one peer may have at once.
MAX_PATHS: Final = 4

_NODE_NAME = Text(
    "a name of 1 to 253 letters, digits and '._:/@-', as in the certificate",
    r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,252}",
)
_NAME = Text("a name of 1 to 64 letters, digits and '._-'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATH_NAME = Text("a name of 1 to 16 letters, digits and '._-'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}")
_EXTENSION_FIELD = Text(
    "up to 8 member names of a JSON object, joined by dots",
    r"[^\s.]+(\.[^\s.]+){0,7}",
)
_PEER_NAME = Reference(("peers",), _NODE_NAME)
_HOST = Text(
    "a host name of 1 to 253 letters, digits, '.' and '-'",
    r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?",
)
_SAE_ID = Text("an SAE ID of 1 to 128 printable ASCII characters without blanks", r"[!-~]{1,128}")
_CERTIFICATE = ReadableFile("a PEM file with a certificate")
_PRIVATE_KEY = ReadableFile("a PEM file with a private key", secret=True)
_PKCS12 = ReadableFile("a PKCS #12 file with certificate and private key", secret=True)
_PASSWORD_FILE = ReadableFile("a file whose only line is a password", secret=True)
_CA = ReadableFile("a PEM file with certificates of authorities")
_LISTEN = Endpoint(listen=True)
_CONNECT = Endpoint(listen=False)
_SERVICE_POLICY = Word(
    Policy,
    refused={
        Policy.OFF: "no service can ask for less than its peer's policy; "
        "leave this key out, or set policy: off at the peer"
    },
)


def _seconds(minimum: float, maximum: float, *, never: bool = False) -> Number:
    return Number(minimum, maximum, "seconds", never=never)


_LOG = Section(LogConfig, {"format": Word(LogFormat), "level": Word(LogLevel)})

_NODE = Section(
    NodeConfig,
    {
        "name": _NODE_NAME,
        "kem_provider": Word(KemProviderChoice),
        "pid_file": NewFile("a file to write the process ID into"),
        "workers": WorkerCount(MAX_WORKERS),
        "worker_timeout_s": _seconds(1, 3600),
        "busy_poll_us": Integer(0, 1000),
    },
)

_IDENTITY = Section(
    IdentityConfig,
    {
        "certificate": _CERTIFICATE,
        "private_key": _PRIVATE_KEY,
        "ca": _CA,
        "crl": ReadableFile("a PEM file with revocation lists"),
    },
)

_TUNNEL = Section(
    TunnelConfig,
    {
        "listen": _LISTEN,
        "handshake_timeout_s": _seconds(0.1, 300),
        "ping_interval_s": _seconds(0.1, 3600),
        "peer_timeout_s": _seconds(0.2, 7200),
        "max_tunnels": Integer(1, 65_536),
        "max_streams_per_tunnel": Integer(1, 1_048_576),
        "max_stream_window_bytes": ByteSize(64 * KIB, GIB),
        "max_session_window_bytes": ByteSize(128 * KIB, 4 * GIB),
        "unsafe_allow_classical_group": Flag(),
        "unsafe_core_dumps": Flag(),
    },
    check=checks.check_tunnel,
)

_REKEY = Section(
    RekeyConfig,
    {
        "interval_s": _seconds(0.1, 86_400),
        "bytes": ByteSize(64 * KIB, 256 * GIB),
        "records": Integer(16, MAX_REKEY_RECORDS),
        "max_age_s": _seconds(1, MAX_TIME_S),
        "reauth_interval_s": _seconds(10, MAX_TIME_S, never=True),
    },
    check=checks.check_rekey,
)

_SIGNS = Integer(1, MAX_RATIO_WINDOW)
_QBER = Number(0, 1, "")
_SHORT_TIME = _seconds(0.01, 3600)

_LINK_HEALTH = Section(
    HealthSettings,
    {
        "failures_to_down": _SIGNS,
        "key_failures_to_down": _SIGNS,
        "weak_to_degraded": _SIGNS,
        "ratio_window": _SIGNS,
        "ratio_to_degraded": _SIGNS,
        "latency_degraded_s": _SHORT_TIME,
        "qber_degraded": _QBER,
        "qber_clear": _QBER,
        "qber_down": _QBER,
        "key_rate_degraded_bps": Number(0, 1e12, "bits per second"),
        "exhaustion_degraded_s": _seconds(0, MAX_TIME_S),
        "trend_window_s": _SHORT_TIME,
        "min_dwell_s": _seconds(0, 3600),
        "good_signs_to_climb": _SIGNS,
        "good_s": _SHORT_TIME,
        "max_good_s": _SHORT_TIME,
        "flap_window_s": _seconds(0, 86_400),
        "probe_interval_s": _SHORT_TIME,
        "probe_timeout_s": _SHORT_TIME,
        "reprobe_s": _SHORT_TIME,
        "climb_probe_interval_s": _SHORT_TIME,
        "probe_backoff_s": _SHORT_TIME,
        "max_probe_backoff_s": _SHORT_TIME,
        "trial_backoff_s": _SHORT_TIME,
        "max_trial_backoff_s": _SHORT_TIME,
        "jitter": Number(0, 0.9, ""),
    },
)

_KEY_STOCK = Section(
    KeyStockConfig,
    {
        "low_water": Integer(1, MAX_STOCK_KEYS),
        "high_water": Integer(1, MAX_STOCK_KEYS),
        "max_age_s": _seconds(1, MAX_TIME_S),
    },
    check=checks.check_key_stock,
)

_PATH = Section(
    PathConfig,
    {
        "source": Reference(("key_sources",), _NAME),
        "local_sae_id": _SAE_ID,
        "peer_sae_id": _SAE_ID,
    },
)

_PEER = Section(
    PeerConfig,
    {
        "address": _CONNECT,
        "tunnels": Integer(1, 64),
        "policy": Word(Policy),
        "max_without_qkd_s": _seconds(1, MAX_TIME_S),
        "key_source": Reference(("key_sources",), _NAME),
        "key_sources": Named(_PATH_NAME, _PATH, "<path>", 2, MAX_PATHS),
        "combine": Word(Combine),
        "combine_at_least": Integer(1, MAX_PATHS),
        "local_sae_id": _SAE_ID,
        "peer_sae_id": _SAE_ID,
        "qkd_key_size_bits": Integer(8 * MIN_QKD_KEY_BYTES, 8 * MAX_QKD_KEY_BYTES, multiple_of=8),
        "qkd_keys_per_epoch": Integer(1, checks.MAX_KEYS_PER_EPOCH),
        "kem": Word(KemAlgorithm),
        "aead": Word(Aead),
        "psk_file": PskFile(),
        "pinned_certificate": _CERTIFICATE,
        "rekey": _REKEY,
        "link_health": _LINK_HEALTH,
        "key_stock": _KEY_STOCK,
        "epoch_timeout_s": _seconds(0.1, 300),
        "kme_timeout_s": _seconds(0.05, 120),
    },
    check=checks.check_peer,
    complete=checks.complete_peer,
    hints={"psk": "put the key into a file and give its path as psk_file"},
)

_PASSWORD_HINTS = dict.fromkeys(
    ("password", "pkcs12_password", "private_key_password"),
    "put the password into a file and give its path as pkcs12_password_file",
)

_KME_ENDPOINT: dict[str, Kind] = {
    "url": HttpsUrl(),
    "ca": _CA,
    "certificate": _CERTIFICATE,
    "private_key": _PRIVATE_KEY,
    "pkcs12": _PKCS12,
    "pkcs12_password_file": _PASSWORD_FILE,
    "server_name": _NODE_NAME,
}

_ETSI_014 = Section(
    Etsi014SourceConfig,
    {
        **_KME_ENDPOINT,
        "kmes": Named(
            _NAME,
            Section(Etsi014KmeConfig, _KME_ENDPOINT, hints=_PASSWORD_HINTS),
            "<kme>",
            1,
            MAX_KMES,
        ),
        "kme_retry_s": _seconds(0.1, 3600),
        "max_kme_retry_s": _seconds(0.1, 3600),
        "method": Word(KeyRequestMethod),
        "additional_slave_sae_ids": ListOf(_SAE_ID, "a list of SAE IDs, each once", 64),
        "extension_mandatory": JsonObjects(),
        "extension_optional": JsonObjects(),
        "connect_timeout_s": _seconds(0.05, 60),
        "request_timeout_s": _seconds(0.05, 120),
        "qber_field": _EXTENSION_FIELD,
        "qber_scale": Number(1e-9, 1, ""),
        "key_rate_field": _EXTENSION_FIELD,
        "key_rate_scale": Number(1e-9, 1e12, ""),
    },
    check=source_checks.check_etsi_014,
    hints=_PASSWORD_HINTS,
)

_SKIP = Section(
    SkipSourceConfig,
    {
        **_KME_ENDPOINT,
        "connect_timeout_s": _seconds(0.05, 60),
        "request_timeout_s": _seconds(0.05, 120),
    },
    check=source_checks.check_skip,
    hints=_PASSWORD_HINTS,
)

_FILE_SOURCE = Section(FileSourceConfig, {"directory": Directory("a directory of keys")})

_LISTENER_TLS = Section(
    ListenerTlsConfig,
    {
        "certificate": _CERTIFICATE,
        "private_key": _PRIVATE_KEY,
        "client_ca": _CA,
        "client_auth": Word(ClientAuth),
    },
    check=checks.check_listener_tls,
)

_LISTENER = Section(
    ListenerConfig,
    {
        "listen": _LISTEN,
        "peer": _PEER_NAME,
        "service": _NAME,
        "tls": _LISTENER_TLS,
        "wait_for_service": Flag(),
        "idle_timeout_s": _seconds(1, MAX_TIME_S, never=True),
        "max_connections": Integer(1, 1_000_000),
        "policy": _SERVICE_POLICY,
        "max_without_qkd_s": _seconds(1, MAX_TIME_S),
        "handshake_timeout_s": _seconds(0.1, 300),
        "unsafe_allow_remote_plaintext": Flag(),
    },
    check=checks.check_listener,
    hints={"connect": "a listener has 'listen' and 'service'; 'connect' belongs to a service"},
)

_SERVICE_TLS = Section(
    ServiceTlsConfig,
    {
        "ca": _CA,
        "server_name": _NODE_NAME,
        "certificate": _CERTIFICATE,
        "private_key": _PRIVATE_KEY,
    },
    check=checks.check_service_tls,
)

_SERVICE = Section(
    ServiceConfig,
    {
        "connect": _CONNECT,
        "tls": _SERVICE_TLS,
        "peers": ListOf(_PEER_NAME, "a list of peers' names, each once", MAX_ENTRIES),
        "connect_timeout_s": _seconds(0.05, 300),
        "idle_timeout_s": _seconds(1, MAX_TIME_S, never=True),
        "max_connections": Integer(1, 1_000_000),
        "policy": _SERVICE_POLICY,
        "max_without_qkd_s": _seconds(1, MAX_TIME_S),
    },
    check=checks.check_service,
    hints={"listen": "a service has 'connect'; 'listen' belongs to a listener"},
)

_ADMIN = Section(
    AdminConfig,
    {
        "listen": _LISTEN,
        "hosts": ListOf(_HOST, "a list of host names, each once", 16),
        "unsafe_allow_remote": Flag(),
    },
    check=checks.check_admin,
)

_AUDIT = Section(
    AuditConfig,
    {
        "file": FilePath("the path of a file, which may not be there yet"),
        "failure": Word(OnAuditFailure),
        "fsync": Word(Fsync),
        "max_file_bytes": ByteSize(64 * KIB, 16 * GIB),
        "hmac_key_file": PskFile(),
    },
    check=checks.check_audit,
    hints={"path": "the log's path is given as file"},
)

GATEWAY: Final = Section(
    GatewayConfig,
    {
        "node": _NODE,
        "log": _LOG,
        "identity": _IDENTITY,
        "tunnel": _TUNNEL,
        "peers": Named(_NODE_NAME, _PEER, "<peer>", 1, MAX_ENTRIES),
        "key_sources": Named(
            _NAME,
            Tagged({"etsi-qkd-014": _ETSI_014, "skip": _SKIP, "file": _FILE_SOURCE}),
            "<key source>",
            0,
            MAX_ENTRIES,
        ),
        "listeners": Named(_NAME, _LISTENER, "<listener>", 0, MAX_ENTRIES),
        "services": Named(_NAME, _SERVICE, "<service>", 0, MAX_ENTRIES),
        "shutdown": Section(ShutdownConfig, {"drain_s": _seconds(0, 3600)}),
        "admin": _ADMIN,
        "audit": _AUDIT,
    },
    complete=checks.complete_gateway,
    hints={"kme_sim": "this is a file for 'qproxy kme-sim', not for a gateway"},
)

_KEY_SIZE = Integer(8, 8 * MAX_QKD_KEY_BYTES, multiple_of=8)

_KME_SIM: Final[dict[str, Kind]] = {
    "kmes": Named(
        _NAME,
        Section(
            KmeConfig,
            {
                "listen": _LISTEN,
                "certificate": _CERTIFICATE,
                "private_key": _PRIVATE_KEY,
                "ca": _CA,
            },
        ),
        "<kme>",
        2,
        MAX_SIMULATED_KMES,
    ),
    "saes": Named(_SAE_ID, Reference(("kme_sim", "kmes"), _NAME), "<sae>", 2, MAX_ENTRIES),
    "link": Section(
        LinkConfig,
        {
            "key_rate_bps": Number(0, 1e9, "bits per second"),
            "qber": Number(0, 0.5, ""),
            "key_size_bits": _KEY_SIZE,
            "max_key_count": Integer(1, 1_000_000),
            "initial_key_count": Integer(0, 1_000_000),
            "min_key_size_bits": _KEY_SIZE,
            "max_key_size_bits": _KEY_SIZE,
            "max_key_per_request": Integer(1, MAX_KEYS_PER_REQUEST),
        },
        check=checks.check_link,
    ),
    "network": NETWORK,
    "timetable": TIMETABLE,
    "control": Section(ControlConfig, {"listen": Endpoint(listen=True, loopback_only=True)}),
}


@dataclass(frozen=True, slots=True)
class KmeSimFile:
    """The file of `qproxy kme-sim` as written: the simulator's keys stand one level down."""

    kme_sim: KmeSimConfig
    log: LogConfig = LogConfig()  # noqa: RUF009 - frozen


KME_SIM: Final = Section(
    KmeSimFile,
    {
        "kme_sim": Section(KmeSimConfig, _KME_SIM, complete=checks.complete_kme_sim),
        "log": _LOG,
    },
    hints=dict.fromkeys(
        ("node", "peers", "listeners", "services", "identity", "tunnel", "key_sources"),
        "this is a key of a gateway's file ('qproxy run'), not of 'qproxy kme-sim'",
    ),
)

#: Stands for "no default: the key must be given" in `KeyInfo.default`.
REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of the schema, for documentation.

    Attributes:
        path: Dotted, with placeholders for chosen names, such as `peers.<peer>.policy`.
        expected: What it may be, as error messages say it.
        default: Its default, or REQUIRED.
    """

    path: str
    expected: str
    default: Any


def list_keys(section: Section, prefix: str = "") -> Iterator[KeyInfo]:
    """Every key that a file may have and that holds a value, in the schema's order."""
    defaults = defaults_of(section.into)
    for name, kind in section.keys.items():
        yield from _list_kind(kind, f"{prefix}{name}", defaults.get(name, REQUIRED))


def _list_kind(kind: Kind, path: str, default: Any) -> Iterator[KeyInfo]:
    match kind:
        case Section():
            yield from list_keys(kind, f"{path}.")
        case Named(item=item, placeholder=placeholder):
            yield from _list_kind(item, f"{path}.{placeholder}", REQUIRED)
        case Tagged(types=types):
            yield from _list_tagged(types, path)
        case _:
            yield KeyInfo(path, kind.expected, default)


def _list_tagged(types: Mapping[str, Section], path: str) -> Iterator[KeyInfo]:
    yield KeyInfo(f"{path}.type", "one of " + ", ".join(types), REQUIRED)
    for section in types.values():
        yield from list_keys(section, f"{path}.")
