"""Certificates, private keys, trust anchors and revocation lists, read from PEM or PKCS #12."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from qproxy.errors import ConfigError

#: Largest certificate, chain, CA or key file read, in bytes. An ML-DSA-87 chain has some 40 kB.
MAX_PEM_FILE_BYTES = 1 << 20
#: Largest revocation list file read, in bytes.
MAX_CRL_FILE_BYTES = 16 << 20
#: Longest password of a PKCS #12 file, in bytes.
MAX_PASSWORD_BYTES = 1024
#: Most certificates in a chain that is taken from a PKCS #12 file.
MAX_CHAIN = 10

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

    @classmethod
    def load_pkcs12(cls, bundle: Path, password_file: Path | None = None) -> TlsIdentity:
        """Read a certificate chain and its private key from one PKCS #12 file (RFC 7292).

        Args:
            bundle: the ``.p12`` or ``.pfx`` file.
            password_file: a file whose first and only line is the password; None for a file
                without one.

        Raises:
            ConfigError: a file is missing, unreadable, too large or not what it should be, or
                the password is another.
        """
        data = _read(bundle, MAX_PEM_FILE_BYTES)
        password = None if password_file is None else load_password(password_file)
        try:
            loaded = _open_pkcs12(data, password, bundle)
        finally:
            if password is not None:
                password[:] = bytes(len(password))
        key, leaf = loaded.key, loaded.cert
        if key is None or leaf is None:
            raise ConfigError(
                "holds no private key with its certificate",
                file=bundle,
                hint="export both: openssl pkcs12 -export -inkey KEY -in CERTIFICATE -out FILE",
            )
        others = [entry.certificate for entry in loaded.additional_certs]
        return cls(_chain_above(leaf.certificate, others), key)


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


def load_password(path: Path) -> bytearray:
    """The password that is the only line of a file, without its end of line.

    The caller owns it and overwrites it after use; what a library copied is out of reach.

    Raises:
        ConfigError: the file cannot be read, is empty, too long, or has more than one line.
    """
    data = bytearray(_read(path, MAX_PASSWORD_BYTES))
    for end in (b"\n", b"\r"):
        if data.endswith(end):
            del data[-1:]
    if not data or b"\n" in data or b"\0" in data:
        data[:] = bytes(len(data))
        raise ConfigError(
            "expected a password on its only line, got something else",
            file=path,
            hint=f"write the password alone into the file, at most {MAX_PASSWORD_BYTES} bytes",
        )
    return data


def _open_pkcs12(
    data: bytes, password: bytearray | None, path: Path
) -> pkcs12.PKCS12KeyAndCertificates:
    problem, hint = "cannot be opened with the password given", "check the password file"
    if password is None:
        problem, hint = "is no PKCS #12 file, or has a password", "give pkcs12_password_file"
    # The library's own exceptions are dropped, as above.
    try:
        return pkcs12.load_pkcs12(data, None if password is None else bytes(password))
    except (ValueError, TypeError):
        raise ConfigError(problem, file=path, hint=hint) from None
    except UnsupportedAlgorithm:
        raise ConfigError(
            "is encrypted with something that is not supported",
            file=path,
            hint="export it again: openssl pkcs12 -export uses AES-256",
        ) from None


def _chain_above(
    leaf: x509.Certificate, others: list[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """The leaf and its intermediates in order: a PKCS #12 file keeps none. Roots are left out."""
    chain = [leaf]
    while len(chain) < MAX_CHAIN:
        issuer = chain[-1].issuer
        above = [
            found
            for found in others
            if found.subject == issuer and found.subject != found.issuer and found not in chain
        ]
        if not above:
            break
        chain.append(above[0])
    return tuple(chain)


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
