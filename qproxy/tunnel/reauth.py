"""Re-authentication: a fresh TLS handshake inside the records of a live tunnel.

It proves again who the peer is, with the certificates, authorities and revocation lists of now, and
its exporter enters the next epoch. So a thief who holds every symmetric key of the tunnel but no
private key is expelled, and rotated or revoked certificates take hold without a reconnect
(docs/protocol.md, "Re-authentication" and rule R2).
"""

from __future__ import annotations

from OpenSSL import SSL

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.tunnel.frames import MAX_PAYLOAD_BYTES
from qproxy.tunnel.messages import REAUTH_ID_BYTES
from qproxy.tunnel.records_in import RecordSplitter
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.tls_phase import AuthenticatedPeer, TlsPhase

#: TLS bytes in one TLS frame at most, behind the handshake's ID.
MAX_TLS_CHUNK_BYTES = MAX_PAYLOAD_BYTES - REAUTH_ID_BYTES


class InnerHandshake:
    """One re-authentication, from its first byte until an epoch has mixed it in.

    Attributes:
        reauth_id: 16 bytes the client chose; OFFER and ACCEPT name it.
        deadline: when the handshake must be complete.
    """

    def __init__(
        self,
        reauth_id: bytes,
        context: SSL.Context,
        role: Role,
        settings: TunnelSettings,
        now: float,
    ) -> None:
        """Begin one side. The peer must be the one that the tunnel is with."""
        self.reauth_id = reauth_id
        self.deadline = now + settings.handshake_timeout_s
        self._tls = TlsPhase(context, role, settings)
        self._splitter = RecordSplitter()

    @property
    def peer(self) -> AuthenticatedPeer | None:
        """Who the peer has proved to be, once the handshake is complete at this end."""
        return self._tls.peer

    def start(self) -> list[bytes]:
        """Client: the payloads of the first TLS frames."""
        return self._frames(self._tls.start())

    def receive(self, chunk: bytes) -> list[bytes]:
        """TLS bytes from the peer. Returns the payloads of the TLS frames to answer with.

        Raises:
            RemoteProtocolError: the handshake failed, the peer is somebody else, or data came.
        """
        output = bytearray()
        view = memoryview(chunk)
        while view:
            space = self._splitter.free_space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self._splitter.advance(count)
            view = view[count:]
            while (record := self._splitter.next_record()) is not None:
                answer, messages = self._tls.receive_record(record)
                if messages:
                    raise RemoteProtocolError(
                        Reason.UNEXPECTED_MESSAGE, "data inside a re-authentication"
                    )
                output += answer
        if self.peer is not None and self._splitter.buffered:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, "TLS bytes behind the end of a re-authentication"
            )
        return self._frames(bytes(output))

    def exporter(self, transcript_hash: bytes) -> bytearray:
        """The exporter with T_{n-1} as its context, 48 bytes; the caller wipes it."""
        return self._tls.exporter(transcript_hash)

    def _frames(self, output: bytes) -> list[bytes]:
        return [
            self.reauth_id + output[start : start + MAX_TLS_CHUNK_BYTES]
            for start in range(0, len(output), MAX_TLS_CHUNK_BYTES)
        ]
