"""Certificates, private keys, trust anchors and revocation lists, read from PEM files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from qproxy.errors import ConfigError

#: Largest certificate, chain, CA or key file read, in bytes. An ML-DSA-87 chain has some 40 kB.
MAX_PEM_FILE_BYTES = 1 << 20
#: Largest revocation list file read, in bytes.
MAX_CRL_FILE_BYTES = 16 << 20

_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What one end proves itself with.

    Attributes:
        chain: the end's own certificate first, then its intermediates.
        private_key: the secret that goes with ``chain[0]``; owned by this object for as long
            as the process serves with it, and never shown.
    """

    chain: tuple[x509.Certificate, ...]
    private_key: PrivateKeyTypes = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The end's own certificate."""
        return self.chain[0]

    @classmethod
    def load(cls, certificate: Path, private_key: Path) -> TlsIdentity:
        """Read a certificate chain and its private key.

        Args:
            certificate: PEM, leaf first, then intermediates. The root may be left out.
            private_key: PEM, not encrypted: PKCS #8, or the traditional EC or RSA form.

        Raises:
            ConfigError: a file is missing, unreadable, too large or not what it should be, or
                the key does not belong to the first certificate.
        """
        chain = _load_certificates(certificate)
        key = _load_private_key(private_key)
        if _public_bytes(key) != _public_bytes(chain[0]):
            raise ConfigError(
                f"does not belong to the first certificate of {certificate}",
                file=private_key,
                hint="the certificate file must hold the gateway's own certificate first, "
                "and its intermediates after it",
            )
        return cls(chain, key)


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Whom one end believes.

    Attributes:
        certificates: trust anchors.
        crls: revocation lists. Where there is any, every certificate of a chain must be covered
            by a valid one, the anchor's own included.
    """

    certificates: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] = ()

    @classmethod
    def load(cls, ca: Path, crl: Path | None = None) -> TrustStore:
        """Read trust anchors, and revocation lists where there are any.

        Args:
            ca: PEM with one or more CA certificates.
            crl: PEM with one or more revocation lists, or None for no revocation check.

        Raises:
            ConfigError: a file is missing, unreadable, too large or not what it should be.
        """
        return cls(_load_certificates(ca), _load_crls(crl) if crl is not None else ())


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror or type(error).__name__}",
            file=path,
            hint="check the path (it is taken relative to the configuration file) and who may "
            "read it",
        ) from None
    if len(data) > max_bytes:
        raise ConfigError(f"is larger than {max_bytes} bytes", file=path)
    return data


def _load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        certificates = tuple(x509.load_pem_x509_certificates(_read(path, MAX_PEM_FILE_BYTES)))
    except ValueError:
        certificates = ()
    if not certificates:
        raise ConfigError(
            "holds no readable certificate",
            file=path,
            hint="expected PEM, with '-----BEGIN CERTIFICATE-----'",
        )
    return certificates


def _load_private_key(path: Path) -> PrivateKeyTypes:
    data = _read(path, MAX_PEM_FILE_BYTES)
    # The library's own exceptions are dropped: they may quote what they could not parse.
    try:
        return serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise ConfigError(
            "is encrypted",
            file=path,
            hint="a gateway starts unattended: store the key unencrypted, readable by it alone",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            "holds no readable private key",
            file=path,
            hint="expected PEM, with '-----BEGIN PRIVATE KEY-----'",
        ) from None


def _load_crls(path: Path) -> tuple[x509.CertificateRevocationList, ...]:
    try:
        crls = tuple(
            x509.load_pem_x509_crl(block)
            for block in _CRL_BLOCK.findall(_read(path, MAX_CRL_FILE_BYTES))
        )
    except ValueError:
        crls = ()
    if not crls:
        raise ConfigError(
            "holds no readable revocation list",
            file=path,
            hint="expected PEM, with '-----BEGIN X509 CRL-----'",
        )
    return crls


def _public_bytes(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    return holder.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
