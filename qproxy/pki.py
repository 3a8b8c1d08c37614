"""A trial PKI: one authority, and an identity for each program that `configs/` starts.

Good for a first evening and for tests. It has no revocation service, no hardware key and no
ceremony: in production, certificates come from the PKI you already have (docs/configuration.md
says what must be in them).

    DIR/ca.pem                  the authority's certificate, which everybody trusts
    DIR/gw-a.pem, gw-a.key      a gateway; its name is the only subject alternative name
    DIR/kme-a.pem, kme-a.key    a simulated KME, also under localhost, 127.0.0.1 and ::1
    DIR/server.pem, server.key  a TLS listener on localhost, 127.0.0.1 and ::1
    DIR/ca-private/ca.key       the authority's key; move it away, running needs it nowhere
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qproxy.errors import QproxyError

#: Longest validity, in days: trials end.
MAX_DAYS: Final = 3650
#: Most identities in one go.
MAX_NAMES: Final = 100
#: Certificates begin this long ago, for clocks that are a little behind.
BACKDATE: Final = dt.timedelta(minutes=5)

DEFAULT_NAMES: Final = ("gw-a", "gw-b")
KME_NAMES: Final = ("kme-a", "kme-b")
SERVER_NAME: Final = "server"
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")

CA_KEY_NOTE: Final = """\
This directory holds the private key of a TRIAL certificate authority.

Whoever has ca.key can make a certificate in the name of every gateway and KME that trusts
../ca.pem, and so become any of them. No running qproxy reads it: move this directory to
another machine, or delete it once the certificates are made. Never use it in production.
"""

_DNS_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.(?!-)[a-z0-9-]{1,63})*\Z")

PrivateKey = ec.EllipticCurvePrivateKey | mldsa.MLDSA65PrivateKey


class PkiError(QproxyError):
    """The PKI could not be made.

    Attributes:
        hint: What to do next, where there is something to say.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class KeyAlgorithm(enum.StrEnum):
    """Signature algorithm of the authority and of every identity."""

    ECDSA_P256 = "ecdsa-p256"
    ML_DSA_65 = "ml-dsa-65"


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate holds, both aware of their time zone."""

    not_before: dt.datetime
    not_after: dt.datetime

    @classmethod
    def of_days(cls, days: int, now: dt.datetime) -> Validity:
        """From a little before `now` until `days` days after it."""
        return cls(now - BACKDATE, now + dt.timedelta(days=days))


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, which the holder owns and which is never shown."""

    certificate: x509.Certificate
    private_key: PrivateKey = field(repr=False)

    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def private_key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM: a secret."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def make_authority(
    algorithm: KeyAlgorithm, validity: Validity, *, name: str = "qproxy TRIAL authority"
) -> Issued:
    """A self-signed authority that signs leaf certificates and revocation lists, nothing else.

    Raises:
        PkiError: The installed OpenSSL has no such algorithm.
    """
    key = _generate(algorithm)
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Issued(_sign(builder, key), key)


def issue(
    authority: Issued, names: Sequence[str], algorithm: KeyAlgorithm, validity: Validity
) -> Issued:
    """A certificate for mutual TLS, as client and as server.

    Args:
        authority: Who signs.
        names: Subject alternative names, DNS names or IP addresses; the first is also the
            common name, which nothing reads.
        algorithm: Of the new key.
        validity: Of the certificate.

    Raises:
        PkiError: A name is neither, or the installed OpenSSL has no such algorithm.
    """
    key = _generate(algorithm)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = authority.private_key.public_key()
    builder = (
        _builder(_subject(names[0]), authority.certificate.subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )
    return Issued(_sign(builder, authority.private_key), key)


def make_crl(
    authority: Issued, revoked: Iterable[x509.Certificate], validity: Validity, *, number: int = 1
) -> bytes:
    """A revocation list as PEM.

    Args:
        authority: Who signs; the authority of the revoked certificates.
        revoked: Certificates that no longer hold.
        validity: When the list was made and when the next one is due.
        number: Counts up with each list.
    """
    public_key = authority.private_key.public_key()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(validity.not_before)
        .next_update(validity.not_after)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False
        )
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder(certificate.serial_number, validity.not_before)
        builder = builder.add_revoked_certificate(entry.build())
    crl = builder.sign(authority.private_key, _digest(authority.private_key))
    return crl.public_bytes(serialization.Encoding.PEM)


def init_pki(
    directory: Path,
    *,
    names: Sequence[str] = DEFAULT_NAMES,
    dns: Sequence[str] = (),
    algorithm: KeyAlgorithm = KeyAlgorithm.ECDSA_P256,
    days: int = 365,
    now: dt.datetime | None = None,
) -> list[Path]:
    """Make a trial PKI. Either every file is written or none is.

    Args:
        directory: Made with mode 0700 where it does not exist.
        names: Gateways.
        dns: More names for the `server` identity.
        algorithm: Of every key.
        days: Validity, at most MAX_DAYS.
        now: The time certificates are made at, in UTC.

    Returns:
        The files, in the order they were written: certificates 0644, keys 0600.

    Raises:
        PkiError: A name is no DNS name or IP address, a file is there already, the directory
            is open to others or cannot be written, or the algorithm is not available.
    """
    identities = _identities(names, dns)
    if not 1 <= days <= MAX_DAYS:
        raise PkiError(f"expected a validity of 1 to {MAX_DAYS} days, got {days}")
    validity = Validity.of_days(days, now or dt.datetime.now(dt.UTC))
    authority = make_authority(algorithm, validity)
    contents: dict[str, tuple[bytes, int]] = {
        "ca-private/README": (CA_KEY_NOTE.encode(), 0o644),
        "ca-private/ca.key": (authority.private_key_pem(), 0o600),
        "ca.pem": (authority.certificate_pem(), 0o644),
    }
    for name, alternative_names in identities.items():
        issued = issue(authority, alternative_names, algorithm, validity)
        contents[f"{name}.pem"] = (issued.certificate_pem(), 0o644)
        contents[f"{name}.key"] = (issued.private_key_pem(), 0o600)
    try:
        return _write_all(directory, contents)
    except OSError as error:
        raise PkiError(
            f"cannot write {error.filename or directory}: {error.strerror}",
            hint="choose a directory that you may write to",
        ) from None


def _identities(names: Sequence[str], dns: Sequence[str]) -> dict[str, list[str]]:
    """File name without ending to subject alternative names."""
    if not 1 <= len(names) <= MAX_NAMES:
        raise PkiError(f"expected 1 to {MAX_NAMES} names, got {len(names)}")
    identities: dict[str, list[str]] = {}
    for name in (*names, *KME_NAMES, SERVER_NAME):
        if name in identities or name in ("ca", "ca-private"):
            raise PkiError(
                f"expected each name once, got {name!r} twice",
                hint=f"{', '.join(KME_NAMES)}, {SERVER_NAME} and ca are always made",
            )
        if not _DNS_NAME.match(name) or len(name) > 253:
            raise PkiError(
                f"expected a DNS name in lower case, got {name[:80]!r}",
                hint="a gateway is named like gw-a or gw-a.example.org",
            )
        identities[name] = [name] if name in names else [name, *LOCAL_NAMES]
    identities[SERVER_NAME] = list(dict.fromkeys([*LOCAL_NAMES, *dns]))
    _general_names(identities[SERVER_NAME])
    return identities


def _write_all(directory: Path, contents: dict[str, tuple[bytes, int]]) -> list[Path]:
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
        directory.chmod(0o700)  # whatever the umask left of it
    if directory.stat().st_mode & 0o077:
        raise PkiError(
            f"{directory} is open to other users", hint=f"chmod 700 {directory}, or choose another"
        )
    for name in contents:
        # lexists: a dangling link is something, too.
        if os.path.lexists(directory / name):
            raise PkiError(
                f"{directory / name} is there already, and nothing is ever overwritten",
                hint="choose another directory, or remove the old PKI yourself",
            )
    (directory / "ca-private").mkdir(mode=0o700, exist_ok=True)
    written: list[Path] = []
    try:
        for name, (content, mode) in contents.items():
            path = directory / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            written.append(path)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
                os.fchmod(descriptor, mode)
                file.write(content)
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def _generate(algorithm: KeyAlgorithm) -> PrivateKey:
    try:
        if algorithm is KeyAlgorithm.ML_DSA_65:
            return mldsa.MLDSA65PrivateKey.generate()
        return ec.generate_private_key(ec.SECP256R1())
    except UnsupportedAlgorithm:
        raise PkiError(
            f"the OpenSSL of this installation has no {algorithm}",
            hint="install cryptography from its wheels, or use --algorithm ecdsa-p256",
        ) from None


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    # ML-DSA hashes by itself (FIPS 204).
    return hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    return builder.sign(key, _digest(key))


def _subject(name: str) -> x509.Name:
    # A common name holds at most 64 characters (RFC 5280, ub-common-name).
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if not _DNS_NAME.match(name) or len(name) > 253:
                raise PkiError(
                    f"expected a DNS name in lower case or an IP address, got {name[:80]!r}"
                ) from None
            general.append(x509.DNSName(name))
    return general
