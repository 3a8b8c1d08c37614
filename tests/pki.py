"""Throw-away certificate authorities and certificates, made in memory.

Pure functions, cached where the same arguments are asked for again, so that a whole test run
makes each key once. Times are fixed offsets from the moment of the call.
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qproxy.tls.identity import TlsIdentity, TrustStore

P256 = "p256"
ML_DSA_65 = "ml-dsa-65"
ED25519 = "ed25519"
RSA_2048 = "rsa-2048"

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, eq=False)
class Authority:
    """A CA: its certificate, and the key it signs with."""

    certificate: x509.Certificate
    private_key: Any
    issuer_chain: tuple[x509.Certificate, ...] = ()  # this CA first, root left out

    @property
    def trust(self) -> TrustStore:
        return TrustStore((self.certificate,))


def make_key(algorithm: str) -> Any:
    if algorithm == P256:
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == ML_DSA_65:
        return mldsa.MLDSA65PrivateKey.generate()
    if algorithm == ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == RSA_2048:
        return rsa.generate_private_key(65537, 2048)
    raise ValueError(f"unknown algorithm {algorithm!r}")


@functools.cache
def authority(name: str = "qproxy test CA", algorithm: str = P256) -> Authority:
    """A self-signed CA. The same arguments give the same CA."""
    key = make_key(algorithm)
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), -_DAY, 3650 * _DAY)
    certificate = _as_ca(builder, key.public_key()).sign(key, _digest(key))
    return Authority(certificate, key)


@functools.cache
def intermediate(
    parent: Authority, name: str = "qproxy test intermediate", algorithm: str = P256
) -> Authority:
    """A CA below ``parent``."""
    key = make_key(algorithm)
    builder = _builder(
        _subject(name), parent.certificate.subject, key.public_key(), -_DAY, 3650 * _DAY
    )
    certificate = _as_ca(builder, key.public_key(), parent).sign(
        parent.private_key, _digest(parent.private_key)
    )
    return Authority(certificate, key, (certificate, *parent.issuer_chain))


@functools.cache
def identity(
    ca: Authority,
    *names: str,
    algorithm: str = P256,
    expired: bool = False,
    not_yet_valid: bool = False,
    server: bool = True,
    client: bool = True,
    common_name: str | None = None,
) -> TlsIdentity:
    """A leaf certificate with its key.

    Args:
        ca: who signs it.
        names: subject alternative names: DNS, IP address, or URI (with "://" or "urn:").
            None at all leaves the extension out.
        algorithm: of the leaf's own key.
        expired: its time ended yesterday.
        not_yet_valid: its time starts tomorrow.
        server: may authenticate a TLS server.
        client: may authenticate a TLS client.
        common_name: the subject; by default the first name.
    """
    key = make_key(algorithm)
    start, end = -2 * _DAY, 365 * _DAY
    if expired:
        end = -_DAY
    if not_yet_valid:
        start = _DAY
    subject = _subject(common_name or (names[0] if names else "leaf"))
    builder = _builder(subject, ca.certificate.subject, key.public_key(), start, end)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key_id(ca), critical=False)
        .sign(ca.private_key, _digest(ca.private_key))
    )
    return TlsIdentity((certificate, *ca.issuer_chain), key)


def crl(
    ca: Authority, *revoked: x509.Certificate, expired: bool = False
) -> x509.CertificateRevocationList:
    """A revocation list of ``ca`` naming ``revoked``; ``expired`` gives one that is too old."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now - 2 * _DAY)
        .next_update(now - _DAY if expired else now + 30 * _DAY)
        .add_extension(_authority_key_id(ca), critical=False)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(now - _DAY).build())
    return builder.sign(ca.private_key, _digest(ca.private_key))


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def crl_pem(*crls: x509.CertificateRevocationList) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in crls)


def key_pem(private_key: Any, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def pkcs12_bytes(
    who: TlsIdentity | None, *others: x509.Certificate, password: bytes | None
) -> bytes:
    """A PKCS #12 bundle of an identity and ``others``, in that order; None for no identity.

    Of an identity's chain only the leaf is in it: intermediates are given as ``others``.
    """
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    key: Any = None if who is None else who.private_key
    leaf = None if who is None else who.certificate
    return pkcs12.serialize_key_and_certificates(b"sae", key, leaf, others or None, encryption)


@dataclass(frozen=True)
class PkiFiles:
    """Where :func:`write_identity` put things."""

    certificate: Path
    private_key: Path
    ca: Path


def write_identity(directory: Path, name: str, who: TlsIdentity, ca: Authority) -> PkiFiles:
    """Write ``name``.pem (chain), ``name``.key and ca.pem into an existing directory."""
    files = PkiFiles(directory / f"{name}.pem", directory / f"{name}.key", directory / "ca.pem")
    files.certificate.write_bytes(certificate_pem(*who.chain))
    files.private_key.touch(mode=0o600)
    files.private_key.write_bytes(key_pem(who.private_key))
    files.ca.write_bytes(certificate_pem(ca.certificate))
    return files


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Any, start: dt.timedelta, end: dt.timedelta
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
    )


def _as_ca(
    builder: x509.CertificateBuilder, public_key: Any, parent: Authority | None = None
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if parent is not None:
        builder = builder.add_extension(_authority_key_id(parent), critical=False)
    return builder


def _authority_key_id(ca: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.certificate.public_key())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if "://" in name or name.startswith("urn:"):
        return x509.UniformResourceIdentifier(name)
    return x509.DNSName(name)


def _digest(private_key: Any) -> hashes.HashAlgorithm | None:
    """What goes with the key's signatures: ML-DSA and Ed25519 hash for themselves."""
    if isinstance(private_key, (mldsa.MLDSA65PrivateKey, ed25519.Ed25519PrivateKey)):
        return None
    return hashes.SHA256()
