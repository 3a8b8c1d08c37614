"""Everything `qproxy check` can see beyond the file itself: certificates, keys, permissions.

Errors keep a gateway from starting or from ever getting a tunnel. Warnings are what is unwise,
and what somebody switched off on purpose.
"""

from __future__ import annotations

import datetime as dt
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from qproxy.address import TcpAddress
from qproxy.config.model import (
    AuditConfig,
    ControlConfig,
    FileSourceConfig,
    GatewayConfig,
    KeySourceConfig,
    KmeSimConfig,
    PeerConfig,
    PemFiles,
    Pkcs12Files,
    SkipSourceConfig,
    TlsSourceConfig,
)
from qproxy.crypto.kem import load_kem_provider
from qproxy.errors import ConfigError, KeySourceError, QproxyError
from qproxy.modes import Policy
from qproxy.runtime.build import bound_sae_ids
from qproxy.sources.file import LOW_PAD_KEYS, inspect_pad
from qproxy.supervisor.cpus import worker_count
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_names

#: A certificate that ends within this time is worth a warning.
EXPIRY_WARNING: Final = dt.timedelta(days=30)


@dataclass(slots=True)
class Findings:
    """What a look at a configuration's surroundings gave.

    Attributes:
        errors: What keeps it from working.
        warnings: Message and hint of what is unwise.
        facts: Words about certificates, by the key that names them, for the summary.
    """

    now: dt.datetime
    errors: list[ConfigError] = field(default_factory=list)
    warnings: list[tuple[str, str | None]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def warn(self, message: str, hint: str | None = None) -> None:
        """Note something unwise."""
        self.warnings.append((message, hint))

    def identity(
        self, key: str, certificate: Path, private_key: Path, *, name: str | None = None
    ) -> None:
        """Load a certificate and its key, and look at their names, times and permissions."""
        try:
            identity = TlsIdentity.load(certificate, private_key)
        except ConfigError as error:
            self.keep(f"{key}.certificate", error)
            return
        self.secret_file(private_key)
        self._certificate(key, certificate, identity.certificate, name)

    def client(self, key: str, files: PemFiles | Pkcs12Files) -> None:
        """Load what we show a server, and look at its times and permissions."""
        if isinstance(files, PemFiles):
            self.identity(key, files.certificate, files.private_key)
            return
        try:
            identity = TlsIdentity.load_pkcs12(files.bundle, files.password_file)
        except ConfigError as error:
            self.keep(f"{key}.pkcs12", error)
            return
        for path in (files.bundle, files.password_file):
            if path is not None:
                self.secret_file(path)
        self._certificate(key, files.bundle, identity.certificate, None)

    def trust(self, key: str, ca: Path, crl: Path | None = None) -> None:
        """Load authorities and revocation lists."""
        try:
            trust = TrustStore.load(ca, crl)
        except ConfigError as error:
            self.keep(f"{key}.ca", error)
            return
        for authority in trust.certificates:
            self._times(f"{key}.ca", ca, authority)
        for revocations in trust.crls:
            due = revocations.next_update_utc
            if crl is not None and due is not None and due <= self.now:
                self._error(
                    f"{key}.crl",
                    crl,
                    f"is out of date since {due:%Y-%m-%d %H:%M} UTC, so every peer is refused",
                    "fetch the authority's current list",
                )

    def keep(self, key: str, error: ConfigError) -> None:
        """Note an error that a library call gave, with the key that led to it."""
        self.errors.append(
            ConfigError(error.message, file=error.file, key=error.key or key, hint=error.hint)
        )

    def secret_file(self, path: Path) -> None:
        """Look at who may read a file that only this user should."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            return  # reading it gives the better message
        if mode & 0o077:
            self.warn(
                f"{path} can be read or changed by other users (mode {mode:04o})",
                f"chmod 600 {path}",
            )

    def _error(self, key: str, file: Path, message: str, hint: str) -> None:
        self.errors.append(ConfigError(message, file=file, key=key, hint=hint))

    def _certificate(
        self, key: str, path: Path, certificate: x509.Certificate, name: str | None
    ) -> None:
        key = f"{key}.certificate"
        try:
            names = certificate_names(certificate)
            usages = _extended_usages(certificate)
        except (QproxyError, ValueError):
            self._error(key, path, "has extensions that cannot be read", "issue it again")
            return
        if name is not None and name not in names:
            listed = ", ".join(sorted(names)[:10]) or "none"
            self._error(
                key,
                path,
                f"expected '{name}' among its subject alternative names, got {listed}",
                "node.name must be a name in the certificate",
            )
        needed = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
        if name is not None and usages is not None and not needed <= usages:
            self._error(
                key,
                path,
                "expected the extended key usages clientAuth and serverAuth, got fewer",
                "a gateway is client and server; issue the certificate for both",
            )
        self._times(key, path, certificate)
        self.facts[key] = (
            f"{', '.join(sorted(names)) or 'no names'}, "
            f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
        )

    def _times(self, key: str, path: Path, certificate: x509.Certificate) -> None:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if self.now < start:
            self._error(
                key, path, f"is not valid before {start:%Y-%m-%d %H:%M} UTC", "check the clock"
            )
        elif end <= self.now:
            self._error(
                key, path, f"expired on {end:%Y-%m-%d %H:%M} UTC", "issue a new certificate"
            )
        elif end - self.now < EXPIRY_WARNING:
            self.warn(f"{path} expires on {end:%Y-%m-%d}", "issue a new certificate soon")


def inspect_gateway(config: GatewayConfig, now: dt.datetime) -> Findings:
    """Load what a gateway would load, and weigh what it would do.

    Args:
        config: A configuration that the reader accepted.
        now: The time that certificates are held against, in UTC.
    """
    findings = Findings(now)
    identity = config.identity
    findings.identity("identity", identity.certificate, identity.private_key, name=config.node.name)
    findings.trust("identity", identity.ca, identity.crl)
    try:
        findings.facts["kem"] = load_kem_provider(config.node.kem_provider).name
    except ConfigError as error:
        findings.keep("node.kem_provider", error)
    for name, peer in config.peers.items():
        _inspect_peer(f"peers.{name}", peer, findings)
    for name, source in config.key_sources.items():
        if isinstance(source, TlsSourceConfig):
            for endpoint in source.endpoints:
                several = len(source.endpoints) > 1
                key = f"key_sources.{name}" + (f".kmes.{endpoint.name}" if several else "")
                findings.client(key, endpoint.client)
                findings.trust(key, endpoint.ca)
        if isinstance(source, FileSourceConfig):
            _inspect_pad(config, source, findings)
    for name, listener in config.listeners.items():
        if listener.tls is not None:
            key = f"listeners.{name}.tls"
            findings.identity(key, listener.tls.certificate, listener.tls.private_key)
            if listener.tls.client_ca is not None:
                findings.trust(key, listener.tls.client_ca)
    for name, service in config.services.items():
        if service.tls is not None:
            key = f"services.{name}.tls"
            findings.trust(key, service.tls.ca)
            if service.tls.certificate is not None and service.tls.private_key is not None:
                findings.identity(key, service.tls.certificate, service.tls.private_key)
    if config.audit.hmac_key_file is not None:
        findings.secret_file(config.audit.hmac_key_file)
    for message, hint in _advice(config):
        findings.warn(message, hint)
    return findings


def inspect_kme_sim(config: KmeSimConfig, now: dt.datetime) -> Findings:
    """Load what the simulated KMEs would load."""
    findings = Findings(now)
    for name, kme in config.kmes.items():
        findings.identity(f"kme_sim.kmes.{name}", kme.certificate, kme.private_key)
        findings.trust(f"kme_sim.kmes.{name}", kme.ca)
    findings.warn("keys of a simulated link protect nothing", "use it for trials only")
    control: ControlConfig | None = config.control
    if control is not None and isinstance(control.listen, TcpAddress):
        findings.warn(
            f"every user of this machine can cut the link at {control.listen}",
            "a unix socket under control.listen is open to its owner only",
        )
    return findings


def _inspect_pad(config: GatewayConfig, source: FileSourceConfig, findings: Findings) -> None:
    """Whether the pad can be used, has keys of the right size, and how many are left."""
    key = f"key_sources.{source.name}.directory"
    try:
        pad = inspect_pad(source.directory)
    except KeySourceError as error:
        hint = "qproxy pad make makes both sides' directories; chmod -R go= where they are open"
        findings.keep(key, ConfigError(str(error), hint=hint))
        return
    findings.facts[key] = f"{pad.master_keys} left to dial with, {pad.slave_keys} to be dialled"
    for peer in config.peers.values():
        if all(path.source != source.name for path in peer.paths):
            continue
        left = pad.slave_keys if peer.address is None else pad.master_keys
        if left < LOW_PAD_KEYS:
            findings.warn(
                f"the pad of {source.name} has {left} keys left for peer {peer.name}",
                "make another with qproxy pad make, and carry it to the other site",
            )
        if pad.key_size_bits not in {0, peer.qkd_key_size_bits}:
            size = f"{pad.key_size_bits} bits, expected {peer.qkd_key_size_bits}"
            findings.keep(
                key,
                ConfigError(
                    f"the pad's keys have {size}",
                    hint=f"set peers.{peer.name}.qkd_key_size_bits, or make another pad",
                ),
            )


def _inspect_peer(key: str, peer: PeerConfig, findings: Findings) -> None:
    if peer.psk_file is not None:
        findings.secret_file(peer.psk_file)
    try:
        bound_sae_ids(peer)
    except ConfigError as error:
        findings.keep(f"{key}.key_sources", error)
    if peer.pinned_certificate is not None:
        try:
            TrustStore.load(peer.pinned_certificate)
        except ConfigError as error:
            findings.keep(f"{key}.pinned_certificate", error)


def _advice(config: GatewayConfig) -> Iterator[tuple[str, str | None]]:
    yield from _unsafe_advice(config)
    for name, service in config.services.items():
        if service.tls is None and not service.connect.is_loopback:
            yield (
                f"services.{name}: the gateway talks to {service.connect} in plaintext",
                "add tls, or run the gateway on the machine of the service",
            )
    for name, peer in config.peers.items():
        if peer.policy is Policy.OFF:
            yield (
                f"peers.{name}: policy off, so tunnels run classical-only (ML-KEM, no QKD key)",
                "policy prefer or require, with a key_source, uses QKD",
            )
        for path in peer.paths:
            source = config.key_sources.get(path.source)
            if source is not None:
                yield from _source_advice(name, peer, source)
        yield from _combine_advice(name, peer, config)
    yield from _worker_advice(config)
    yield from _audit_advice(config.audit)
    if not config.listeners and not config.services:
        yield "no listeners and no services: nothing can use the tunnels", None
    used = {path.source for peer in config.peers.values() for path in peer.paths}
    for name in config.key_sources:
        if name not in used:
            yield f"key_sources.{name}: no peer uses it", None


def _worker_advice(config: GatewayConfig) -> Iterator[tuple[str, str | None]]:
    """Where limits are too small to be divided, and where a worker may lack a tunnel."""
    workers = worker_count(config.node.workers)
    if workers == 1:
        return
    limits = {"tunnel.max_tunnels": config.tunnel.max_tunnels}
    for kind, entries in (("listeners", config.listeners), ("services", config.services)):
        for name, entry in entries.items():
            limits[f"{kind}.{name}.max_connections"] = entry.max_connections
    for key, limit in limits.items():
        if limit < workers:
            yield (
                f"{key}: {limit} cannot be divided among {workers} workers; each allows 1",
                "raise it, or run fewer workers",
            )
    for name, listener in config.listeners.items():
        peer = config.peers.get(listener.peer)
        if peer is not None and peer.address is None:
            yield (
                f"listeners.{name}: {listener.peer} dials us, and its tunnels may not reach each "
                f"of the {workers} workers, which then refuse connections",
                f"dial it from here, or have it keep at least {workers} tunnels",
            )


def _source_advice(
    name: str, peer: PeerConfig, source: KeySourceConfig
) -> Iterator[tuple[str, str | None]]:
    if isinstance(source, FileSourceConfig):
        yield (
            f"peers.{name}: keys of {source.name} are a pre-shared pad, not QKD keys",
            "a source of type etsi-qkd-014 gives those",
        )
    if isinstance(source, SkipSourceConfig):
        yield (
            f"peers.{name}: {source.name} does not say how it comes by its keys (SKIP)",
            "ask whoever runs the key provider whether they are QKD keys",
        )
    if isinstance(source, TlsSourceConfig) and source.request_timeout_s > peer.kme_timeout_s:
        yield (
            f"peers.{name}: kme_timeout_s ({peer.kme_timeout_s:g}) ends requests before "
            f"request_timeout_s ({source.request_timeout_s:g}) of {source.name} does",
            "make kme_timeout_s the longer one",
        )


def _combine_advice(
    name: str, peer: PeerConfig, config: GatewayConfig
) -> Iterator[tuple[str, str | None]]:
    """Several sources are worth what they do not share."""
    if peer.combine_at_least > 1 and peer.policy is Policy.PREFER:
        yield (
            f"peers.{name}: with policy prefer and combine_at_least {peer.combine_at_least}, "
            "losing a source means classical-only although another has keys",
            "combine_at_least: 1 stays hybrid, and what was mixed in stays in every later key",
        )
    sites: dict[str, str] = {}
    for path in peer.key_sources.values():
        source = config.key_sources.get(path.source)
        if not isinstance(source, TlsSourceConfig):
            continue
        for url in sorted({endpoint.url for endpoint in source.endpoints}):
            other = sites.setdefault(url, path.name)
            if other != path.name:
                yield (
                    f"peers.{name}: paths {other} and {path.name} both end at {url}",
                    "whoever takes over that KME has the keys of both",
                )


def _audit_advice(audit: AuditConfig) -> Iterator[tuple[str, str | None]]:
    """Not errors: the gateway may run as another user, and find its directories made for it."""
    if audit.file is None:
        return
    directory = audit.file.parent
    try:
        mode = stat.S_IMODE(directory.stat().st_mode)
    except OSError as error:
        yield (
            f"audit.file: {directory}: {error.strerror or type(error).__name__}",
            "make the directory before the gateway starts, with mode 0700",
        )
        return
    if mode & 0o022:
        yield (
            f"audit.file: other users may put files into {directory} (mode {mode:04o})",
            f"chmod go-w {directory}",
        )


def _unsafe_advice(config: GatewayConfig) -> Iterator[tuple[str, str | None]]:
    if config.tunnel.unsafe_allow_classical_group:
        yield (
            "tunnel.unsafe_allow_classical_group: TLS handshakes may do without X25519MLKEM768",
            "remove the key once every peer has it",
        )
    if config.tunnel.unsafe_core_dumps:
        yield "tunnel.unsafe_core_dumps: a core dump would hold keys", "remove the key"
    if config.admin.unsafe_allow_remote:
        yield (
            "admin.unsafe_allow_remote: whoever reaches the admin listener can read it",
            "listen on 127.0.0.1 or unix:/PATH and remove the key",
        )
    for name, listener in config.listeners.items():
        if listener.unsafe_allow_remote_plaintext:
            yield (
                f"listeners.{name}.unsafe_allow_remote_plaintext: "
                f"applications may talk to {listener.listen} in plaintext over a network",
                "add tls to the listener",
            )


def _extended_usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier] | None:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None
