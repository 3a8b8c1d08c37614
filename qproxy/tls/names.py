"""Who a certificate speaks for. The common name is never looked at (RFC 9525 §2)."""

from __future__ import annotations

import contextlib
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from service_identity.exceptions import CertificateError, VerificationError
from service_identity.hazmat import (
    DNS_ID,
    CertificatePattern,
    DNSPattern,
    IPAddress_ID,
    IPAddressPattern,
    verify_service_identity,
)

from qproxy.errors import Reason, RemoteProtocolError

#: Bytes of :func:`certificate_hash`: SHA-384.
CERTIFICATE_HASH_BYTES = 48


def certificate_names(certificate: x509.Certificate) -> frozenset[str]:
    """Every subject alternative name of a certificate that can name a peer.

    Args:
        certificate: a certificate whose chain was verified by the caller.

    Returns:
        DNS names and URIs as they stand in the certificate (case kept, wildcards not
        expanded) and IP addresses as text. Empty where there is no such extension.

    Raises:
        RemoteProtocolError: CERTIFICATE_INVALID where the extensions cannot be parsed.
    """
    names = _alternative_names(certificate)
    if names is None:
        return frozenset()
    return frozenset(
        {
            *names.get_values_for_type(x509.DNSName),
            *names.get_values_for_type(x509.UniformResourceIdentifier),
            *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
        }
    )


def certificate_hash(certificate: x509.Certificate) -> bytes:
    """SHA-384 of the certificate's DER form, 48 bytes. Not a secret."""
    digest = hashes.Hash(hashes.SHA384())
    digest.update(certificate.public_bytes(serialization.Encoding.DER))
    return digest.finalize()


def is_ip_address(name: str) -> bool:
    """Whether a server name is an IPv4 or IPv6 address rather than a DNS name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_server_name(certificate: x509.Certificate, name: str) -> None:
    """Check that a server's certificate is for the name that was dialled.

    Args:
        certificate: the server's certificate, its chain verified by the caller.
        name: DNS name or IP address; a left-most wildcard label in the certificate counts.

    Raises:
        RemoteProtocolError: PEER_NAME_MISMATCH, also where the certificate carries no
            subject alternative name or ``name`` cannot be a DNS name; CERTIFICATE_INVALID
            where the extensions cannot be parsed.

    Source: RFC 9525 §6.
    """
    expected = IPAddress_ID(name) if is_ip_address(name) else _dns_id(name)
    try:
        if expected is None:
            raise VerificationError(errors=[])
        verify_service_identity(_patterns(certificate), [expected], [])
    except (VerificationError, CertificateError):
        raise RemoteProtocolError(
            Reason.PEER_NAME_MISMATCH, f"the server's certificate is not for {name!r}"
        ) from None


def _dns_id(name: str) -> DNS_ID | None:
    try:
        return DNS_ID(name)
    except ValueError:
        return None


def _patterns(certificate: x509.Certificate) -> list[CertificatePattern]:
    """What a server name is compared with: DNS names and IP addresses.

    Not by the library's own extraction, which refuses the whole certificate over a URI with
    two colons, such as the URNs that gateways may go by.
    """
    patterns: list[CertificatePattern] = []
    names = _alternative_names(certificate)
    if names is None:
        return patterns
    for address in names.get_values_for_type(x509.IPAddress):
        if isinstance(address, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            patterns.append(IPAddressPattern(address))
    for dns_name in names.get_values_for_type(x509.DNSName):
        # A wildcard that RFC 9525 does not allow matches nothing, and spoils nothing.
        with contextlib.suppress(CertificateError):
            patterns.append(DNSPattern.from_bytes(dns_name.encode()))
    return patterns


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise RemoteProtocolError(
            Reason.CERTIFICATE_INVALID, "the certificate's extensions cannot be parsed"
        ) from None
