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
    REAUTH_OVERDUE = "reauth_overdue"
    AUDIT_FAILURE = "audit_failure"
    TOO_FEW_SOURCES = "too_few_sources"

    @property
    def code(self) -> int:
        """The reason's byte on the wire (docs/protocol.md, "Reasons")."""
        return WIRE_CODES[self]

    @classmethod
    def from_code(cls, code: int) -> Reason | None:
        """The reason a wire byte stands for, or None where this version knows none."""
        return _FROM_WIRE.get(code)


#: The one map from reason to wire code. A code, once published, is never given a new meaning.
WIRE_CODES: dict[Reason, int] = {
    Reason.INITIAL: 1,
    Reason.REKEY_INTERVAL: 2,
    Reason.REKEY_BYTES: 3,
    Reason.REKEY_RECORDS: 4,
    Reason.LINK_CHANGE: 5,
    Reason.REAUTHENTICATION: 6,
    Reason.OPERATOR: 7,
    Reason.RETRY: 8,
    Reason.MALFORMED_MESSAGE: 9,
    Reason.UNEXPECTED_MESSAGE: 10,
    Reason.UNSUPPORTED_VERSION: 11,
    Reason.UNSUPPORTED_SUITE: 12,
    Reason.RECORD_OVERFLOW: 13,
    Reason.BAD_RECORD_MAC: 14,
    Reason.SEQUENCE_LIMIT: 15,
    Reason.TLS_FAILURE: 16,
    Reason.TLS_GROUP: 17,
    Reason.CERTIFICATE_INVALID: 18,
    Reason.CERTIFICATE_EXPIRED: 19,
    Reason.CERTIFICATE_REVOKED: 20,
    Reason.PEER_NAME_MISMATCH: 21,
    Reason.BINDING_MISMATCH: 22,
    Reason.HISTORY_MISMATCH: 23,
    Reason.CONFIRM_MAC: 24,
    Reason.EPOCH_LIMIT: 25,
    Reason.TRUNCATED: 26,
    Reason.FLOW_CONTROL: 27,
    Reason.PEER_NOT_READING: 28,
    Reason.HANDSHAKE_TIMEOUT: 29,
    Reason.EPOCH_TIMEOUT: 30,
    Reason.PEER_SILENT: 31,
    Reason.AUTHENTICATION_FAILED: 32,
    Reason.NO_KEY_SOURCE: 33,
    Reason.KME_UNREACHABLE: 34,
    Reason.KME_TLS: 35,
    Reason.KME_TIMEOUT: 36,
    Reason.KME_UNAUTHORIZED: 37,
    Reason.KME_BAD_REQUEST: 38,
    Reason.KME_UNAVAILABLE: 39,
    Reason.KME_INVALID_RESPONSE: 40,
    Reason.KEYS_EXHAUSTED: 41,
    Reason.KEY_NOT_FOUND: 42,
    Reason.KEY_SPENT: 43,
    Reason.KEY_MISMATCH: 44,
    Reason.KEY_INVALID: 45,
    Reason.LINK_DEGRADED: 46,
    Reason.LINK_DOWN: 47,
    Reason.LINK_HEALTHY: 48,
    Reason.QBER_HIGH: 49,
    Reason.POLICY_REQUIRE: 50,
    Reason.POLICY_OFF: 51,
    Reason.QKD_TOO_OLD: 52,
    Reason.SERVICE_UNKNOWN: 53,
    Reason.SERVICE_FORBIDDEN: 54,
    Reason.CONNECT_REFUSED: 55,
    Reason.CONNECT_TIMEOUT: 56,
    Reason.CONNECT_FAILED: 57,
    Reason.SERVICE_TLS: 58,
    Reason.CLIENT_TLS: 59,
    Reason.CONNECTION_RESET: 60,
    Reason.IDLE_TIMEOUT: 61,
    Reason.LIMIT_REACHED: 62,
    Reason.NO_TUNNEL: 63,
    Reason.TUNNEL_LOST: 64,
    Reason.GOING_AWAY: 65,
    Reason.SHUTDOWN: 66,
    Reason.CLOSED: 67,
    Reason.INTERNAL_ERROR: 68,
    Reason.REAUTH_OVERDUE: 69,
    Reason.AUDIT_FAILURE: 70,
    Reason.TOO_FEW_SOURCES: 71,
}
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
