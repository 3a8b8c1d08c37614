"""What the core tells its driver. Frozen values; none holds a secret.

Counters are left out of comparisons: they say how far a tunnel had come, not what happened to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qproxy.errors import Reason
from qproxy.keys import KeyOrigin
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.tunnel.messages import OfferedKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A tunnel's counters since it began, at one point of its stream of records.

    Attributes:
        bytes_sent: application bytes sealed.
        bytes_received: application bytes opened and handed on.
        bytes_discarded: application bytes opened for streams that were gone already.
        streams_opened: number of streams opened by either end.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_discarded: int = 0
    streams_opened: int = 0


#: Of a tunnel that has just begun.
NO_TRAFFIC: Final = Traffic()


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """TLS is up and the peer is who it should be."""

    peer_name: str
    group: str
    cipher: str
    peer_certificate_hash: bytes


@dataclass(frozen=True, slots=True)
class EpochDue:
    """Client: call ``start_epoch`` when mode and keys have been chosen.

    The driver answers as soon as it can; until it does the tunnel runs on within the epoch's
    limits.
    """

    reason: Reason


@dataclass(frozen=True, slots=True)
class KeysNeeded:
    """Server: redeem these IDs, then call ``provide_keys`` or ``refuse_keys``."""

    epoch: int
    attempt: int
    keys: tuple[OfferedKey, ...]


@dataclass(frozen=True, slots=True)
class EpochCommitted:
    """New keys are in use by this end.

    Attributes:
        epoch: its number, from 1.
        epoch_id: 16 bytes, the same on both ends, public.
        confirmed: False at the client until the server's switch arrives (rule R3).
        key_ids: the QKD keys in the mix, none in classical-only mode.
        qkd_ever: a QKD key is in this epoch or in one it is chained to.
        reauthenticated: a fresh TLS handshake is in the mix (rule R2).
        origins: where each of these keys came from, as this end's own sources say.
        traffic: the counters, in bytes and streams, where this end's sending changed keys; at
            the server its receiving as well.
    """

    epoch: int
    attempt: int
    mode: Mode
    reason: Reason
    epoch_id: bytes
    kem: KemAlgorithm
    aead: Aead
    key_ids: tuple[str, ...]
    confirmed: bool
    qkd_ever: bool
    reauthenticated: bool = False
    origins: tuple[KeyOrigin, ...] = field(default=(), compare=False)
    traffic: Traffic = field(default=NO_TRAFFIC, compare=False)


@dataclass(frozen=True, slots=True)
class EpochConfirmed:
    """Client: the server runs under this epoch too.

    Attributes:
        traffic: the counters, in bytes and streams, where the server's sending changed keys.
    """

    epoch: int
    traffic: Traffic = field(default=NO_TRAFFIC, compare=False)


@dataclass(frozen=True, slots=True)
class EpochFailed:
    """An attempt came to nothing; its keys are burnt. The tunnel goes on if it may.

    Attributes:
        remote: True for an authenticated REJECT or ABORT, False for this end's own finding.
    """

    epoch: int
    attempt: int
    mode: Mode
    reason: Reason
    remote: bool


@dataclass(frozen=True, slots=True)
class ReauthenticationDue:
    """Client: call ``reauthenticate`` with a context that holds the certificates of now."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Reauthenticated:
    """The peer has proved again who it is; the next epoch will mix the proof in."""

    group: str
    peer_certificate_hash: bytes


@dataclass(frozen=True, slots=True)
class EpochRequested:
    """Client: the server would like a new epoch. It is a wish: nothing but its own link health,
    its policy and authenticated REJECTs decide about the mode of what this end offers (rule R9).
    """

    reason: Reason


@dataclass(frozen=True, slots=True)
class KeysAnnounced:
    """Server: the client may offer these keys soon. Redeem them if there is room, and report."""

    keys: tuple[OfferedKey, ...]


@dataclass(frozen=True, slots=True)
class KeysReported:
    """Client: what became of announced keys at the server.

    Attributes:
        instance_id: the server's process; another one holds nothing of what was announced before.
        held: IDs of keys that the server holds.
        refused: IDs that it does not, each with the reason.
    """

    instance_id: bytes
    held: tuple[str, ...]
    refused: tuple[tuple[str, Reason], ...]


@dataclass(frozen=True, slots=True)
class PolicyAgreed:
    """The peer's policy is known or has changed; the stricter of both holds."""

    local: Policy
    peer: Policy
    effective: Policy


@dataclass(frozen=True, slots=True)
class TunnelEstablished:
    """Both ends run under the first epoch: streams may be opened."""


@dataclass(frozen=True, slots=True)
class StreamRequested:
    """The peer opens a stream: call ``accept_stream`` or ``refuse_stream``."""

    stream_id: int
    service: str
    client_address: str
    listener_address: str


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The service behind the far gateway answered."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """The far gateway did not open the stream. It is gone."""

    stream_id: int
    reason: Reason


@dataclass(slots=True)
class DataReceived:
    """Bytes of a stream. Not frozen, unlike the others: that would cost as much as the rest of it.

    Attributes:
        views: into the core's buffer, in order, valid only until the core is given more input.
        size: bytes in all of them together.
    """

    stream_id: int
    views: list[memoryview]
    size: int

    @property
    def data(self) -> bytes:
        """A copy of the bytes, for whoever is in no hurry."""
        return b"".join(self.views)


@dataclass(frozen=True, slots=True)
class StreamHalfClosed:
    """The peer will send no more on this stream (FIN)."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone (RST); what was under way is lost."""

    stream_id: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class CreditAvailable:
    """Streams that had run out of credit may send again.

    Attributes:
        stream_id: the stream, or None where the session's credit was renewed.
    """

    stream_id: int | None


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A PING was answered."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no new streams."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class TunnelClosed:
    """The tunnel is over. Its streams were reset by events before this one.

    Attributes:
        reason: the local cause, not the one the peer was told.
        clean: both ends sent an authenticated END.
        traffic: the counters at the end, in bytes and streams.
    """

    reason: Reason
    clean: bool
    traffic: Traffic = field(default=NO_TRAFFIC, compare=False)


Event: TypeAlias = (
    HandshakeCompleted
    | EpochDue
    | KeysNeeded
    | EpochCommitted
    | EpochConfirmed
    | EpochFailed
    | ReauthenticationDue
    | Reauthenticated
    | EpochRequested
    | KeysAnnounced
    | KeysReported
    | PolicyAgreed
    | TunnelEstablished
    | StreamRequested
    | StreamAccepted
    | StreamRefused
    | DataReceived
    | StreamHalfClosed
    | StreamReset
    | CreditAvailable
    | RoundTrip
    | GoAwayReceived
    | TunnelClosed
)
