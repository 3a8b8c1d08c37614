"""Who a certificate speaks for. The common name is never looked at (RFC 9525 §2)."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from service_identity.exceptions import CertificateError, VerificationError

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
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise RemoteProtocolError(
            Reason.CERTIFICATE_INVALID, "the certificate's extensions cannot be parsed"
        ) from None
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
            subject alternative name or ``name`` cannot be a DNS name.

    Source: RFC 9525 §6.
    """
    verify = verify_certificate_ip_address if is_ip_address(name) else verify_certificate_hostname
    try:
        verify(certificate, name)
    except (
        VerificationError,
        CertificateError,
        ValueError,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise RemoteProtocolError(
            Reason.PEER_NAME_MISMATCH, f"the server's certificate is not for {name!r}"
        ) from None
