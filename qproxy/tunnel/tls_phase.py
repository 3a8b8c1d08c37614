"""The TLS 1.3 handshake, run by OpenSSL over memory BIOs, record by record.

Theory of operation: the splitter hands over one record at a time and OpenSSL's answer is collected
at once, so that this module always knows which record caused what. After the handshake each
record must yield exactly one epoch message; the only other thing a server may send is its session
ticket (OpenSSL cannot be told not to through any public Python API). Everything else that is not
application data, KeyUpdate above all, is fatal: the hand-over to our own records must not leave
OpenSSL waiting for something (rule R11).

Failures send nothing. A peer that may not come in sees the connection end, whatever the cause;
the cause stands in the raised error, for the local log (docs/protocol.md, "Failures").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from OpenSSL import SSL

from qproxy.crypto import labels
from qproxy.crypto.schedule import EXPORTER_BYTES
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tls.context import verify_failure, verify_failure_detail
from qproxy.tls.names import certificate_hash, certificate_names
from qproxy.tunnel.constants import MAX_SESSION_TICKETS, MAX_TLS_PHASE_BYTES
from qproxy.tunnel.settings import HYBRID_GROUPS, Role, TunnelSettings

#: Finds the settings for a peer by the names of its verified certificate. A gateway that is dialled
#: learns only then who dials.
FindPeer: TypeAlias = Callable[[frozenset[str]], TunnelSettings | None]

_TICKET_STATE = b"SSLv3/TLS read server session ticket"
_READY_STATE = b"SSL negotiation finished successfully"


@dataclass(frozen=True, slots=True)
class AuthenticatedPeer:
    """Proof that the TLS peer is the configured one. Only :class:`TlsPhase` makes these.

    Attributes:
        certificate_hash: SHA-384 of the peer's certificate, 48 bytes.
        local_certificate_hash: the same of our own.
        group: negotiated group, as OpenSSL names it.
        cipher: negotiated TLS cipher suite.
    """

    certificate_hash: bytes
    local_certificate_hash: bytes
    group: str
    cipher: str


class TlsPhase:
    """One side of the handshake, and the epoch messages that travel inside it."""

    def __init__(
        self,
        context: SSL.Context,
        role: Role,
        settings: TunnelSettings,
        find_peer: FindPeer | None = None,
    ) -> None:
        self._role = role
        self._settings = settings
        self._find_peer = find_peer
        self._connection = SSL.Connection(context, None)
        self._post_handshake_states: list[bytes] = []
        self._tickets = 0
        self._received_bytes = 0
        self.peer: AuthenticatedPeer | None = None
        if role is Role.CLIENT:
            self._connection.set_connect_state()
        else:
            self._connection.set_accept_state()

    @property
    def settings(self) -> TunnelSettings:
        """The settings for this peer; final once :attr:`peer` is there."""
        return self._settings

    def start(self) -> bytes:
        """Client: the ClientHello. Server: nothing yet."""
        self._step_handshake()
        return self._take_output()

    def receive_record(self, record: memoryview) -> tuple[bytes, list[bytes]]:
        """Give OpenSSL one record.

        Returns:
            Bytes to send, and the epoch messages the record held (none or one).

        Raises:
            RemoteProtocolError: the handshake failed, the peer may not come in, or the record
                holds something this protocol has no room for.
        """
        self._received_bytes += len(record)
        if self._received_bytes > MAX_TLS_PHASE_BYTES:
            raise RemoteProtocolError(
                Reason.RECORD_OVERFLOW, f"TLS phase of more than {MAX_TLS_PHASE_BYTES} bytes"
            )
        self._connection.bio_write(record)
        if self.peer is None:
            if self._step_handshake():
                self.peer = self._authenticate()
                self._connection.set_info_callback(self._note_state)
                self._refuse_early_data()
            return self._take_output(), []
        message = self._read_message()
        return self._take_output(), [] if message is None else [message]

    def send_message(self, message: bytes) -> bytes:
        """One epoch message, alone in its TLS record. Returns the bytes to send."""
        try:
            self._connection.send(message)
        except SSL.Error:
            raise RemoteProtocolError(Reason.TLS_FAILURE, "TLS could not send") from None
        return self._take_output()

    def exporter(self, transcript_hash: bytes) -> bytearray:
        """The exporter of this handshake (RFC 9846 §7.5), 48 bytes; the caller wipes it.

        Args:
            transcript_hash: T_{n-1}, the exporter's context: empty before the first epoch.
        """
        if self.peer is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no exporter before the handshake")
        return bytearray(
            self._connection.export_keying_material(
                labels.EXPORTER, EXPORTER_BYTES, transcript_hash
            )
        )

    def finish(self) -> None:
        """Check that OpenSSL holds nothing back, and forget it: the hand-over is done."""
        if self._read_message() is not None or self._connection.pending():
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "TLS data after the hand-over")

    def _step_handshake(self) -> bool:
        """Advance the handshake. True when it is complete."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except RemoteProtocolError as error:
            # From the ALPN callback.
            raise RemoteProtocolError(Reason.TLS_FAILURE, str(error)) from None
        except SSL.Error as error:
            raise self._handshake_error(error) from None
        return True

    def _handshake_error(self, error: SSL.Error) -> RemoteProtocolError:
        refused = verify_failure(self._connection)
        if refused is not None:
            detail = verify_failure_detail(self._connection)
            return RemoteProtocolError(refused, f"the peer's certificate: {detail}")
        return RemoteProtocolError(Reason.TLS_FAILURE, f"TLS handshake: {_openssl_words(error)}")

    def _authenticate(self) -> AuthenticatedPeer:
        connection = self._connection
        if connection.get_protocol_version() != SSL.TLS1_3_VERSION:
            raise RemoteProtocolError(Reason.TLS_FAILURE, "the peer did not negotiate TLS 1.3")
        if connection.get_alpn_proto_negotiated() != labels.ALPN:
            raise RemoteProtocolError(
                Reason.TLS_FAILURE, f"the peer does not speak {labels.ALPN.decode()} (ALPN)"
            )
        group = connection.get_group_name() or "unknown"
        if group not in HYBRID_GROUPS and not self._settings.allow_classical_group:
            raise RemoteProtocolError(
                Reason.TLS_GROUP, f"TLS group {group!r} holds no ML-KEM; refused"
            )
        try:
            certificate = connection.get_peer_certificate(as_cryptography=True)
            own = connection.get_certificate(as_cryptography=True)
        except (ValueError, x509.InvalidVersion):
            # OpenSSL verifies certificates that the stricter parser refuses.
            raise RemoteProtocolError(
                Reason.CERTIFICATE_INVALID, "the peer's certificate cannot be parsed"
            ) from None
        if certificate is None or own is None:
            raise RemoteProtocolError(Reason.CERTIFICATE_INVALID, "a certificate is missing")
        return self._identify(certificate, own, group)

    def _identify(
        self, certificate: x509.Certificate, own: x509.Certificate, group: str
    ) -> AuthenticatedPeer:
        names = certificate_names(certificate)
        if self._find_peer is not None:
            self._settings = self._find_peer(names) or self._settings
        wanted = self._settings.peer_name
        # Settings that are no peer's have no name; an alternative name may be empty, too.
        if not wanted or wanted not in names:
            raise RemoteProtocolError(
                Reason.PEER_NAME_MISMATCH,
                f"the peer's certificate is for {sorted(names)[:4]}, expected {wanted!r}",
            )
        digest = certificate_hash(certificate)
        pinned = self._settings.pinned_certificate_hash
        if pinned is not None and pinned != digest:
            raise RemoteProtocolError(
                Reason.PEER_NAME_MISMATCH, "the peer's certificate is not the pinned one"
            )
        return AuthenticatedPeer(
            certificate_hash=digest,
            local_certificate_hash=certificate_hash(own),
            group=group,
            cipher=self._connection.get_cipher_name() or "unknown",
        )

    def _refuse_early_data(self) -> None:
        """Nothing may have come in the same record as the end of the handshake."""
        if self._connection.pending():
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "data before the handshake ended")

    def _read_message(self) -> bytes | None:
        """The epoch message of the record just written, or None for a permitted ticket."""
        self._post_handshake_states.clear()
        try:
            message = self._connection.recv(1 << 14)
        except SSL.WantReadError:
            self._check_post_handshake()
            return None
        except SSL.ZeroReturnError:
            raise RemoteProtocolError(Reason.TRUNCATED, "TLS closed before the tunnel") from None
        except SSL.Error as error:
            raise self._handshake_error(error) from None
        if self._post_handshake_states or self._connection.pending():
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, "an epoch message is not alone in its record"
            )
        return message

    def _check_post_handshake(self) -> None:
        """A record without data: a server's session ticket, or fatal."""
        states = set(self._post_handshake_states) - {_READY_STATE}
        if not states:
            return
        self._tickets += 1
        is_ticket = states == {_TICKET_STATE} and self._role is Role.CLIENT
        if not is_ticket or self._tickets > MAX_SESSION_TICKETS:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, "a TLS post-handshake message that is no ticket"
            )

    def _note_state(self, connection: SSL.Connection, _where: int, _value: int) -> None:
        self._post_handshake_states.append(connection.get_state_string())

    def _take_output(self) -> bytes:
        chunks = []
        while True:
            try:
                chunks.append(self._connection.bio_read(1 << 14))
            except SSL.WantReadError:
                return b"".join(chunks)


def _openssl_words(error: SSL.Error) -> str:
    """OpenSSL's reason strings; they name protocol states, never data."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    words = [str(entry[2]) for entry in entries if len(entry) > 2 and entry[2]]
    return ", ".join(words) or type(error).__name__
