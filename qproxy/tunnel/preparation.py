"""What goes on beside an epoch and prepares the next: announced keys, requests, re-authentication.

None of it changes a key or a mode by itself. Announcing burns no ID; a request is a wish; a
re-authentication takes hold only when an epoch that mixes it in commits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from OpenSSL import SSL

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tunnel.announce import (
    KeyReport,
    check_announced,
    check_report,
    decode_announce,
    decode_report,
    encode_announce,
)
from qproxy.tunnel.codec import malformed
from qproxy.tunnel.epoch_client import ClientEpochs
from qproxy.tunnel.epoch_server import ServerEpochs
from qproxy.tunnel.epochs import make_binding
from qproxy.tunnel.events import (
    EpochRequested,
    Event,
    KeysAnnounced,
    KeysReported,
    Reauthenticated,
)
from qproxy.tunnel.frames import FrameType, decode_reason
from qproxy.tunnel.messages import NO_REAUTH, REAUTH_ID_BYTES, OfferedKey
from qproxy.tunnel.reauth import InnerHandshake
from qproxy.tunnel.records_out import RecordWriter
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.timers import Timers


class Preparation:
    """One end's side of REQUEST, ANNOUNCE, REPORT and TLS frames.

    Attributes:
        settings: final once the peer is known.
        tls_context: what the next re-authentication is made with.
    """

    def __init__(
        self,
        role: Role,
        settings: TunnelSettings,
        tls_context: SSL.Context,
        writer: RecordWriter,
        timers: Timers,
        events: list[Event],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.settings = settings
        self.tls_context = tls_context
        self._role = role
        self._writer = writer
        self._timers = timers
        self._events = events
        self._random_bytes = random_bytes
        self._inner: InnerHandshake | None = None
        self._last_reauth_id = NO_REAUTH

    @property
    def deadline(self) -> float | None:
        """When the re-authentication under way must be complete, or None."""
        return self._inner.deadline if self._inner is not None else None

    def overdue(self, now: float) -> bool:
        """Whether a re-authentication has taken too long."""
        return self._inner is not None and now >= self._inner.deadline

    def drop(self) -> None:
        """The tunnel is over."""
        self._inner = None

    def announce(self, keys: Sequence[OfferedKey]) -> None:
        """Client: ANNOUNCE. Raises LocalProtocolError for keys that the server would not take."""
        if self._role is not Role.CLIENT:
            raise LocalProtocolError(Reason.UNEXPECTED_MESSAGE, "only the client announces keys")
        check_announced(keys)
        self._writer.add_frame(FrameType.ANNOUNCE, 0, encode_announce(keys))

    def report(self, report: KeyReport) -> None:
        """Server: REPORT. Raises LocalProtocolError for a report of too many keys, or of none."""
        check_report(report)
        self._writer.add_frame(FrameType.REPORT, 0, report.encode())

    def request(self, reason: Reason, epochs: ClientEpochs | ServerEpochs, now: float) -> None:
        """Server: REQUEST."""
        self._timers.request(reason)
        if reason is not Reason.REAUTHENTICATION:
            return
        if self._under_way(epochs):
            self._timers.reauthentication_wanted_again(now)
        else:
            self._timers.reauthentication_wanted(now)

    def reauthenticate(self, epochs: ClientEpochs | ServerEpochs, now: float) -> None:
        """Client: begin a re-authentication. Raises LocalProtocolError while one is under way."""
        if self._role is not Role.CLIENT or self._under_way(epochs):
            raise LocalProtocolError(
                Reason.UNEXPECTED_MESSAGE, "no re-authentication can be started now"
            )
        self._send(self._begin(self._random_bytes(REAUTH_ID_BYTES), now).start())

    def on_frame(
        self, frame: FrameType, payload: bytes, epochs: ClientEpochs | ServerEpochs, now: float
    ) -> None:
        """One of the four frames. Each belongs to one role, but TLS to both.

        Raises:
            RemoteProtocolError: it is malformed, not for this role, or the handshake failed.
        """
        match frame, self._role:
            case FrameType.REQUEST, Role.CLIENT:
                self._on_request(decode_reason(payload, "REQUEST"), epochs, now)
            case FrameType.ANNOUNCE, Role.SERVER:
                self._events.append(KeysAnnounced(decode_announce(payload)))
            case FrameType.REPORT, Role.CLIENT:
                self._on_report(decode_report(payload))
            case FrameType.TLS, _:
                self._on_tls(payload[:REAUTH_ID_BYTES], payload[REAUTH_ID_BYTES:], epochs, now)
            case _:
                raise RemoteProtocolError(
                    Reason.UNEXPECTED_MESSAGE, f"{frame.name} is not for the {self._role.value}"
                )

    def _on_request(self, reason: Reason, epochs: ClientEpochs | ServerEpochs, now: float) -> None:
        if reason is not Reason.REAUTHENTICATION:
            self._events.append(EpochRequested(reason))
        elif self._under_way(epochs):
            self._timers.reauthentication_wanted_again(now)
        else:
            self._timers.reauthentication_due(reason)

    def _under_way(self, epochs: ClientEpochs | ServerEpochs) -> bool:
        """A re-authentication has begun and is in no committed epoch yet."""
        return self._inner is not None or epochs.reauth_pending

    def _on_report(self, report: KeyReport) -> None:
        held = tuple(key_id for key_id, reason in report.results if reason is None)
        refused = tuple((key_id, reason) for key_id, reason in report.results if reason is not None)
        self._events.append(KeysReported(report.instance_id, held, refused))

    def _on_tls(
        self, reauth_id: bytes, chunk: bytes, epochs: ClientEpochs | ServerEpochs, now: float
    ) -> None:
        if not chunk or reauth_id == NO_REAUTH:
            raise malformed("a TLS frame without an ID or without TLS")
        if self._inner is None and self._role is Role.SERVER:
            if epochs.reauth_pending or reauth_id == self._last_reauth_id:
                raise RemoteProtocolError(
                    Reason.UNEXPECTED_MESSAGE, "a re-authentication before the last is mixed in"
                )
            self._begin(reauth_id, now)
        inner = self._inner
        if inner is None and reauth_id == self._last_reauth_id:
            return  # The server's session tickets follow its end of the handshake.
        if inner is None or inner.reauth_id != reauth_id:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, "TLS of a re-authentication that nobody started"
            )
        self._send(inner.receive(chunk))
        if inner.peer is not None:
            # Rule R2: from here on every OFFER mixes this in, until an epoch commits.
            self._inner = None
            self._last_reauth_id = reauth_id
            epochs.mix_in(inner, make_binding(self._role, self.settings, inner.peer))
            self._events.append(Reauthenticated(inner.peer.group, inner.peer.certificate_hash))
            if self._role is Role.CLIENT:
                self._timers.epoch_due(Reason.REAUTHENTICATION)

    def _begin(self, reauth_id: bytes, now: float) -> InnerHandshake:
        inner = InnerHandshake(reauth_id, self.tls_context, self._role, self.settings, now)
        self._inner = inner
        self._timers.reauthentication_started(now)
        return inner

    def _send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._writer.add_frame(FrameType.TLS, 0, payload)
