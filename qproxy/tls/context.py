"""TLS contexts: what every handshake of this program may and may not do.

TLS 1.2 at least, AEAD suites with forward secrecy only, no compression, no renegotiation, no
tickets and no session cache, so that every connection is authenticated by certificate anew.
The groups are OpenSSL's own order, which puts X25519MLKEM768 first.

A verification that fails ends the handshake with an ordinary alert. Which check failed stays
on this side: :func:`verify_failure` gives it for the log and the metric.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509 import Certificate
from OpenSSL import SSL, crypto

from qproxy.errors import ConfigError, Reason, RemoteProtocolError
from qproxy.modes import ClientAuth
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import check_server_name, is_ip_address

#: TLS 1.2 suites: ephemeral key exchange and AEAD, nothing else.
_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

_ERRORS = SSL.X509VerificationCodes
_REASONS: dict[int, Reason] = {
    _ERRORS.ERR_CERT_HAS_EXPIRED: Reason.CERTIFICATE_EXPIRED,
    _ERRORS.ERR_CERT_REVOKED: Reason.CERTIFICATE_REVOKED,
}
_ERROR_NAMES: dict[int, str] = {
    number: name.removeprefix("ERR_").lower()
    for name, number in vars(_ERRORS).items()
    if name.startswith("ERR_")
}


@dataclass(slots=True)
class _Verification:
    """What the verify callback knows and finds out about one connection."""

    server_name: str | None = None
    reason: Reason | None = None
    detail: str | None = None


def server_context(
    identity: TlsIdentity,
    *,
    trust: TrustStore | None = None,
    client_auth: ClientAuth = ClientAuth.NONE,
    alpn: Sequence[bytes] = (),
    tls13_only: bool = False,
    ciphersuites: str | None = None,
) -> SSL.Context:
    """A context for the accepting side.

    Args:
        identity: the server's own chain and key.
        trust: whom client certificates must chain to; needed unless ``client_auth`` is NONE.
        client_auth: whether a client certificate is asked for.
        alpn: protocols in order of preference. A client that offers others only is refused;
            a client that offers none is not.
        tls13_only: refuse TLS 1.2.
        ciphersuites: OpenSSL list of TLS 1.3 suites, or None for OpenSSL's default.

    Raises:
        ConfigError: OpenSSL refuses the certificate, the key or the suites, or ``trust`` is
            missing where clients are to be verified.
    """
    context = _context(SSL.TLS_SERVER_METHOD, tls13_only, ciphersuites)
    _use_identity(context, identity)
    if alpn:
        context.set_alpn_select_callback(_alpn_selector(tuple(alpn)))
    if client_auth is ClientAuth.NONE:
        context.set_verify(SSL.VERIFY_NONE)
        return context
    if trust is None:
        raise ConfigError(f"client authentication {client_auth.value!r} needs a client CA")
    _use_trust(context, trust)
    for anchor in trust.certificates:
        context.add_client_ca(anchor)
    mode = SSL.VERIFY_PEER | SSL.VERIFY_CLIENT_ONCE
    if client_auth is ClientAuth.REQUIRED:
        mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    context.set_verify(mode, _verify)
    return context


def client_context(
    *,
    trust: TrustStore,
    identity: TlsIdentity | None = None,
    alpn: Sequence[bytes] = (),
    tls13_only: bool = False,
    ciphersuites: str | None = None,
) -> SSL.Context:
    """A context for the dialling side. The chain is always verified.

    The name is not, until :func:`expect_server_name` says which one it must be, or the caller
    compares it after the handshake.

    Args:
        trust: whom the server's certificate must chain to.
        identity: the client's own chain and key, where it has one.
        alpn: protocols to offer, in order of preference.
        tls13_only: refuse TLS 1.2.
        ciphersuites: OpenSSL list of TLS 1.3 suites, or None for OpenSSL's default.

    Raises:
        ConfigError: OpenSSL refuses a certificate, the key or the suites.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, tls13_only, ciphersuites)
    if identity is not None:
        _use_identity(context, identity)
    if alpn:
        context.set_alpn_protos(list(alpn))
    _use_trust(context, trust)
    context.set_verify(SSL.VERIFY_PEER, _verify)
    return context


def expect_server_name(connection: SSL.Connection, name: str) -> None:
    """Refuse, inside the handshake, a server whose certificate is not for ``name``.

    Sends ``name`` as SNI where it is a DNS name. To be called before the handshake.

    Args:
        connection: a client connection made from :func:`client_context`.
        name: DNS name or IP address.
    """
    _verification(connection).server_name = name
    if not is_ip_address(name):
        connection.set_tlsext_host_name(name.encode("ascii", "replace"))


def verify_failure(connection: SSL.Connection) -> Reason | None:
    """Why this side refused the peer's certificate, for the local log and metric.

    Returns:
        CERTIFICATE_EXPIRED, CERTIFICATE_REVOKED, CERTIFICATE_INVALID or PEER_NAME_MISMATCH;
        None where no certificate was refused (none came, or the handshake failed otherwise).
    """
    return _verification(connection).reason


def verify_failure_detail(connection: SSL.Connection) -> str | None:
    """OpenSSL's word for the failed check and the certificate's place in the chain, for a log."""
    return _verification(connection).detail


def _context(method: int, tls13_only: bool, ciphersuites: str | None) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION if tls13_only else SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection keeps no record buffers (17 kB each way).
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_TLS12_CIPHERS)
    if ciphersuites is not None:
        try:
            context.set_tls13_ciphersuites(ciphersuites.encode("ascii", "replace"))
        except SSL.Error:
            raise ConfigError(
                f"OpenSSL knows no TLS 1.3 cipher suites {ciphersuites!r}",
                hint="expected a list such as 'TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256'",
            ) from None
    return context


def _use_identity(context: SSL.Context, identity: TlsIdentity) -> None:
    try:
        context.use_certificate(identity.certificate)
        for intermediate in identity.chain[1:]:
            context.add_extra_chain_cert(intermediate)
        _use_private_key(context, identity.private_key)
        context.check_privatekey()
    except (SSL.Error, crypto.Error):
        raise ConfigError(
            "OpenSSL refuses the certificate or its private key",
            hint="RSA needs 2048 bits or more, and signatures SHA-256 or better",
        ) from None


def _use_private_key(context: SSL.Context, private_key: PrivateKeyTypes) -> None:
    # By way of PEM, because pyOpenSSL takes no ML-DSA key object. It calls its own PKey type
    # deprecated in favour of key objects, of which that is the one it does not know.
    pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, pem))


def _use_trust(context: SSL.Context, trust: TrustStore) -> None:
    store = context.get_cert_store()
    if store is None:  # pragma: no cover - OpenSSL gives every context a store
        raise ConfigError("OpenSSL gives no certificate store")
    try:
        for anchor in trust.certificates:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        for crl in trust.crls:
            store.add_crl(crl)
    except crypto.Error:
        raise ConfigError("OpenSSL refuses a trust anchor or a revocation list") from None
    if trust.crls:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)


def _alpn_selector(
    protocols: tuple[bytes, ...],
) -> Callable[[SSL.Connection, list[bytes]], bytes]:
    def select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in protocols:
            if protocol in offered:
                return protocol
        # pyOpenSSL turns any exception into the fatal alert that RFC 7301 §3.2 asks for, and
        # raises it again from the handshake.
        raise RemoteProtocolError(
            Reason.TLS_FAILURE, "the client offers no application protocol that is served here"
        )

    return select


def _verification(connection: SSL.Connection) -> _Verification:
    found = connection.get_app_data()
    if isinstance(found, _Verification):
        return found
    fresh = _Verification()
    connection.set_app_data(fresh)
    return fresh


def _verify(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    """OpenSSL's callback for each certificate, root first. Never turns a failure into success."""
    verification = _verification(connection)
    if not ok:
        verification.reason = _REASONS.get(error, Reason.CERTIFICATE_INVALID)
        name = _ERROR_NAMES.get(error, f"x509 error {error}")
        verification.detail = f"{name} at depth {depth}"
        return False
    if depth == 0 and verification.server_name is not None:
        return _verify_name(verification, certificate, verification.server_name)
    return True


def _verify_name(verification: _Verification, certificate: crypto.X509, name: str) -> bool:
    try:
        check_server_name(_to_cryptography(certificate), name)
    except RemoteProtocolError as error:
        verification.reason = error.reason
        verification.detail = str(error)
        return False
    return True


def _to_cryptography(certificate: crypto.X509) -> Certificate:
    try:
        return certificate.to_cryptography()
    except ValueError:
        raise RemoteProtocolError(
            Reason.CERTIFICATE_INVALID, "the certificate cannot be parsed"
        ) from None
