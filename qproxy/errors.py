"""Every reason qproxy can give, and the few exception types that carry one.

One closed set, :class:`Reason`, is used for exceptions, log fields, metric labels, the audit
trail and (through :data:`WIRE_CODES`) the bytes a peer sees. Nothing tells errors apart by
matching strings.
"""

from __future__ import annotations

import enum
from pathlib import Path


class Reason(enum.StrEnum):
    """Why something happened. The value is the log field, metric label and audit word."""

    # Why an epoch is started (OFFER.reason).
    INITIAL = "initial"
    REKEY_INTERVAL = "rekey_interval"
    REKEY_BYTES = "rekey_bytes"
    REKEY_RECORDS = "rekey_records"
    LINK_CHANGE = "link_change"
    REAUTHENTICATION = "reauthentication"
    OPERATOR = "operator"
    RETRY = "retry"

    # What a peer, or the path, did wrong to the tunnel.
    MALFORMED_MESSAGE = "malformed_message"
    UNEXPECTED_MESSAGE = "unexpected_message"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNSUPPORTED_SUITE = "unsupported_suite"
    RECORD_OVERFLOW = "record_overflow"
    BAD_RECORD_MAC = "bad_record_mac"
    SEQUENCE_LIMIT = "sequence_limit"
    TLS_FAILURE = "tls_failure"
    TLS_GROUP = "tls_group"
    CERTIFICATE_INVALID = "certificate_invalid"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    PEER_NAME_MISMATCH = "peer_name_mismatch"
    BINDING_MISMATCH = "binding_mismatch"
    HISTORY_MISMATCH = "history_mismatch"
    CONFIRM_MAC = "confirm_mac"
    EPOCH_LIMIT = "epoch_limit"
    TRUNCATED = "truncated"
    FLOW_CONTROL = "flow_control"
    PEER_NOT_READING = "peer_not_reading"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    EPOCH_TIMEOUT = "epoch_timeout"
    PEER_SILENT = "peer_silent"
    AUTHENTICATION_FAILED = "authentication_failed"

    # What the quantum side said.
    NO_KEY_SOURCE = "no_key_source"
    KME_UNREACHABLE = "kme_unreachable"
    KME_TLS = "kme_tls"
    KME_TIMEOUT = "kme_timeout"
    KME_UNAUTHORIZED = "kme_unauthorized"
    KME_BAD_REQUEST = "kme_bad_request"
    KME_UNAVAILABLE = "kme_unavailable"
    KME_INVALID_RESPONSE = "kme_invalid_response"
    KEYS_EXHAUSTED = "keys_exhausted"
    KEY_NOT_FOUND = "key_not_found"
    KEY_SPENT = "key_spent"
    KEY_MISMATCH = "key_mismatch"
    KEY_INVALID = "key_invalid"
    LINK_DEGRADED = "link_degraded"
    LINK_DOWN = "link_down"
    LINK_HEALTHY = "link_healthy"
    QBER_HIGH = "qber_high"

    # What policy said.
    POLICY_REQUIRE = "policy_require"
    POLICY_OFF = "policy_off"
    QKD_TOO_OLD = "qkd_too_old"

    # What happened to a stream or a local connection.
    SERVICE_UNKNOWN = "service_unknown"
    SERVICE_FORBIDDEN = "service_forbidden"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_FAILED = "connect_failed"
    SERVICE_TLS = "service_tls"
    CLIENT_TLS = "client_tls"
    CONNECTION_RESET = "connection_reset"
    IDLE_TIMEOUT = "idle_timeout"
    LIMIT_REACHED = "limit_reached"
    NO_TUNNEL = "no_tunnel"
    TUNNEL_LOST = "tunnel_lost"

    # How things end without anybody's fault.
    GOING_AWAY = "going_away"
    SHUTDOWN = "shutdown"
    CLOSED = "closed"
    INTERNAL_ERROR = "internal_error"

    @property
    def code(self) -> int:
        """The reason's byte on the wire (docs/protocol.md, "Reasons")."""
        return WIRE_CODES[self]

    @classmethod
    def from_code(cls, code: int) -> Reason | None:
        """The reason a wire byte stands for, or None where this version knows none."""
        return _FROM_WIRE.get(code)


#: The one map from reason to wire code. A code, once published, is never given a new meaning.
WIRE_CODES: dict[Reason, int] = {reason: number for number, reason in enumerate(Reason, start=1)}
_FROM_WIRE: dict[int, Reason] = {code: reason for reason, code in WIRE_CODES.items()}

#: Causes that must look the same to a peer, so that a prober learns nothing from them.
#: The local log and metric keep the cause.
AUTHENTICATION_REASONS: frozenset[Reason] = frozenset(
    {
        Reason.TLS_FAILURE,
        Reason.TLS_GROUP,
        Reason.CERTIFICATE_INVALID,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_REVOKED,
        Reason.PEER_NAME_MISMATCH,
        Reason.BINDING_MISMATCH,
        Reason.HISTORY_MISMATCH,
        Reason.CONFIRM_MAC,
        Reason.BAD_RECORD_MAC,
        Reason.AUTHENTICATION_FAILED,
    }
)


def public_reason(reason: Reason) -> Reason:
    """What a peer may be told: every failed authentication becomes one reason."""
    return Reason.AUTHENTICATION_FAILED if reason in AUTHENTICATION_REASONS else reason


class QproxyError(Exception):
    """Base of every error qproxy raises on purpose. Messages never hold a secret."""


class ProtocolError(QproxyError):
    """Something happened that the tunnel protocol forbids.

    Attributes:
        reason: the closed-set cause, for the local log and metric.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LocalProtocolError(ProtocolError):
    """This program asked the core for something it may not do now: a bug in the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer, or somebody on the path, broke the protocol. The tunnel is over."""


class KeySourceError(QproxyError):
    """A key source did not give what was asked.

    Attributes:
        reason: one of the "quantum side" reasons.
        status: HTTP status where there was one.
        retryable: whether the same call may succeed later without anybody changing anything.
    """

    def __init__(
        self, reason: Reason, message: str, *, status: int | None = None, retryable: bool = True
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.retryable = retryable


class ConfigError(QproxyError):
    """The configuration cannot be used. Exit code 78 (EX_CONFIG of sysexits.h).

    Attributes:
        message: what is wrong and what was expected.
        file: the file it stands in, where known.
        line: 1-based line in that file, where known.
        key: dotted path of the key, such as ``peers.gw-b.policy``.
        hint: what to do next, where there is something to say.
    """

    def __init__(
        self,
        message: str,
        *,
        file: Path | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.key = key
        self.hint = hint

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            where = f"{self.file}:{self.line}: " if self.line is not None else f"{self.file}: "
        what = f"{self.key}: " if self.key else ""
        return f"{where}{what}{self.message}"
