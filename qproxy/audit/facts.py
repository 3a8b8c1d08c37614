"""What the audit trail records: one dataclass for each kind of record.

A field's type is its check: the same one when a record is written and when a log is read, so that
nothing is ever written that would not verify. Text is printable ASCII of a bounded length, numbers
are whole and not negative, and times and floats do not occur. So canonical JSON is one sequence of
bytes whatever writes it (RFC 8785 gives the same), and a log shown on a terminal cannot speak to
the terminal.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, TypeAlias, get_args, get_origin, get_type_hints

from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.quantum.health import LinkState
from qproxy.tunnel.settings import Role

#: Name and version of the format, in every header.
FORMAT: Final = "qproxy-audit"
FORMAT_VERSION: Final = 2
#: Longest text in a field, in characters. Names have at most 253.
MAX_TEXT_CHARS: Final = 256
#: Most items of a list in a field. An OFFER names at most 8 keys.
MAX_ITEMS: Final = 8
#: Largest number in a field.
MAX_NUMBER: Final = (1 << 63) - 1

_TEXT: Final = re.compile(rf"[\x20-\x7e]{{0,{MAX_TEXT_CHARS}}}")

#: JSON as it occurs here.
Plain: TypeAlias = bool | int | str | list["Plain"] | dict[str, "Plain"] | None


class Algorithm(enum.StrEnum):
    """What chains the records of a log."""

    SHA_384 = "sha-384"
    HMAC_SHA_384 = "hmac-sha-384"


class EndedBy(enum.StrEnum):
    """How an epoch ended at this gateway."""

    SWITCH = "switch"
    """Both directions went on under the next epoch: the counts are complete."""
    CLOSE = "close"
    """The tunnel ended while it was in use, in one direction at least."""


class FactsError(ValueError):
    """A field that is missing, unknown or not of its type. Names the field, not its value."""


@dataclass(frozen=True, slots=True)
class Hex:
    """Annotation of a str: that many bytes as lower-case hexadecimal digits."""

    size_bytes: int


Hash: TypeAlias = Annotated[str, Hex(48)]
Id: TypeAlias = Annotated[str, Hex(16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHeader:
    """First record of each file.

    Attributes:
        node: name of the gateway.
        version: of qproxy.
        algorithm: what chains this file's records.
        chain_id: random, the same in all files of a chain.
        file_number: from 1.
        previous_hash: what the chain runs on from; zeros at its start.
    """

    kind: ClassVar[str] = "log_header"
    node: str
    version: str
    algorithm: Algorithm
    chain_id: Id
    file_number: int
    previous_hash: Hash
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class LogResumed:
    """A new run of the gateway goes on with an existing log. ``offset_us`` begins again.

    Attributes:
        version: of qproxy.
        torn_bytes: length of the torn last line that was cut off, 0 if there was none.
        torn_sha384: hash of those bytes, or None.
    """

    kind: ClassVar[str] = "log_resumed"
    version: str
    torn_bytes: int = 0
    torn_sha384: Hash | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBroken:
    """What lay at the log's place could not be gone on with. First record after such a header.

    Attributes:
        problem: what was wrong with it.
        moved_to: file name it was moved to, None where nothing was there.
    """

    kind: ClassVar[str] = "chain_broken"
    problem: str
    moved_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsLost:
    """So many records could not be kept; they would stand here.

    Attributes:
        count: how many.
        since_offset_us: ``offset_us`` of the first of them.
    """

    kind: ClassVar[str] = "records_lost"
    count: int
    since_offset_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStarted:
    """The gateway begins to carry traffic."""

    kind: ClassVar[str] = "gateway_started"
    version: str
    kem_provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStopped:
    """The gateway ends in order."""

    kind: ClassVar[str] = "gateway_stopped"
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochCommittedFacts:
    """New keys are in use by this gateway.

    Attributes:
        peer: name of the other gateway.
        connection_id: names the tunnel, the same on both gateways.
        role: this gateway's in the tunnel.
        epoch: from 1 in each tunnel.
        attempt: of that epoch.
        epoch_id: public, derived from the keys, the same on both gateways.
        mode: of this epoch.
        previous_mode: of the epoch before, None for the first.
        reason: why the epoch was started.
        source_key_ever: a key of a key source is in this epoch or in one it is chained to.
        reauthenticated: a fresh TLS handshake is in this epoch's keys.
        key_digests: of the keys' IDs, in order (``trail.key_id_digest``).
        key_sources: for each key, the name of its source in this gateway's configuration.
        key_kinds: for each key, what that source is, such as ``etsi-qkd-014``.
        key_paths: for each key, the name that both ends have for the pair of sources; empty where
            there is but one.
        keys_are: for each key, what it may be called.
        kem: ML-KEM parameter set.
        aead: record protection.
        tls_group: of the tunnel's TLS handshake.
        policy_local: this gateway's.
        policy_peer: the other's.
        policy_effective: the stricter one.
        confirmed: the peer is known to run under this epoch too. False at the client until
            ``epoch_confirmed``.
    """

    kind: ClassVar[str] = "epoch_committed"
    peer: str
    connection_id: Id
    role: Role
    epoch: int
    attempt: int
    epoch_id: Id
    mode: Mode
    previous_mode: Mode | None
    reason: Reason
    source_key_ever: bool
    reauthenticated: bool
    key_digests: tuple[Id, ...]
    key_count: int
    key_sources: tuple[str, ...]
    key_kinds: tuple[str, ...]
    key_paths: tuple[str, ...]
    keys_are: tuple[KeyNature, ...]
    kem: KemAlgorithm
    aead: Aead
    tls_group: str
    policy_local: Policy
    policy_peer: Policy
    policy_effective: Policy
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochConfirmedFacts:
    """Client: the server was seen to run under this epoch too."""

    kind: ClassVar[str] = "epoch_confirmed"
    peer: str
    connection_id: Id
    epoch: int
    epoch_id: Id


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEndedFacts:
    """What was carried under one epoch.

    Attributes:
        bytes_sent: application bytes sealed under the epoch's keys.
        bytes_received: application bytes opened under them and handed on.
        bytes_discarded: the same for streams that were gone already.
        streams_opened: by either end, while this gateway sent under the epoch.
        ended_by: whether the counts are complete.
    """

    kind: ClassVar[str] = "epoch_ended"
    peer: str
    connection_id: Id
    epoch: int
    epoch_id: Id
    mode: Mode
    bytes_sent: int
    bytes_received: int
    bytes_discarded: int
    streams_opened: int
    ended_by: EndedBy


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochFailedFacts:
    """An attempt at an epoch came to nothing.

    Attributes:
        remote: the peer said so in an authenticated message; else it is this gateway's finding.
    """

    kind: ClassVar[str] = "epoch_failed"
    peer: str
    connection_id: Id | None
    role: Role
    epoch: int
    attempt: int
    mode: Mode
    reason: Reason
    remote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChangedFacts:
    """The tunnel runs in another mode than before, or in its first.

    Attributes:
        was: the mode before, None for a tunnel's first epoch.
        reason: why the epoch that brought the change was started.
    """

    kind: ClassVar[str] = "mode_changed"
    peer: str
    connection_id: Id
    role: Role
    epoch: int
    epoch_id: Id
    was: Mode | None
    mode: Mode
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChangedFacts:
    """The link of one key source towards a peer is in another state than before.

    Attributes:
        key_source: name of the source in this gateway's configuration.
        key_kind: what it is, such as ``etsi-qkd-014``.
        key_path: name that both ends have for the pair of sources; empty where there is but one.
        keys_are: what its keys may be called.
        was: the state before.
        state: the state from now on.
        reason: why.
    """

    kind: ClassVar[str] = "link_changed"
    peer: str
    key_source: str
    key_kind: str
    key_path: str
    keys_are: KeyNature
    was: LinkState
    state: LinkState
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelClosedFacts:
    """A tunnel is over.

    Attributes:
        epoch: the last that was committed here, 0 if none was.
        clean: both ends sent an authenticated END, so nothing was cut off.
    """

    kind: ClassVar[str] = "tunnel_closed"
    peer: str
    connection_id: Id | None
    role: Role
    epoch: int
    reason: Reason
    clean: bool
    bytes_sent: int
    bytes_received: int
    bytes_discarded: int
    streams_opened: int


Facts: TypeAlias = (
    LogHeader
    | LogResumed
    | ChainBroken
    | RecordsLost
    | GatewayStarted
    | GatewayStopped
    | EpochCommittedFacts
    | EpochConfirmedFacts
    | EpochEndedFacts
    | EpochFailedFacts
    | ModeChangedFacts
    | LinkChangedFacts
    | TunnelClosedFacts
)

KINDS: Final[Mapping[str, type[Facts]]] = {kind.kind: kind for kind in get_args(Facts)}


def encode_facts(facts: Facts) -> dict[str, Plain]:
    """The fields as JSON types, without the kind.

    Raises:
        FactsError: a field is not of its type.
    """
    fields: dict[str, Plain] = {}
    for name, check in _checks(facts.kind).items():
        value = getattr(facts, name)
        plain: Plain = list(value) if isinstance(value, tuple) else value
        check(name, plain)
        fields[name] = plain
    return fields


def decode_facts(kind: str, fields: Mapping[str, Plain]) -> Facts:
    """The facts of one record, whole, or an error.

    Raises:
        FactsError: the kind is unknown, or fields are missing, unknown or not of their types.
    """
    factory = KINDS.get(kind)
    if factory is None:
        raise FactsError("unknown kind of record")
    checks = _checks(kind)
    if missing := checks.keys() - fields.keys():
        raise FactsError(f"{kind}: {min(missing)} is missing")
    if len(fields) > len(checks):
        raise FactsError(f"{kind}: {len(fields) - len(checks)} unknown fields")
    values: dict[str, Any] = {name: check(name, fields[name]) for name, check in checks.items()}
    return factory(**values)


_Check: TypeAlias = Callable[[str, Plain], object]


@functools.cache
def _checks(kind: str) -> Mapping[str, _Check]:
    facts = KINDS[kind]
    hints = get_type_hints(facts, include_extras=True)
    return {field.name: _check_of(hints[field.name]) for field in dataclasses.fields(facts)}


def _check_of(hint: Any) -> _Check:
    """The check that a field's type stands for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return functools.partial(_hex, arguments[1].size_bytes)
    if origin is tuple:
        return functools.partial(_items, _check_of(arguments[0]))
    if origin in {types.UnionType, _TYPING_UNION}:
        inner = next(part for part in arguments if part is not types.NoneType)
        return functools.partial(_optional, _check_of(inner))
    if hint is bool:
        return _bool
    if hint is int:
        return _number
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return functools.partial(_word, hint)
    if hint is str:
        return _text
    raise TypeError(f"no check for {hint}")


#: ``X | None`` over an annotated X is typing's union, not the built-in one.
_TYPING_UNION: Final = get_origin(Annotated[str, 0] | None)


def _optional(inner: _Check, name: str, value: Plain) -> object:
    return None if value is None else inner(name, value)


def _bool(name: str, value: Plain) -> bool:
    if not isinstance(value, bool):
        raise FactsError(f"{name}: expected true or false")
    return value


def _number(name: str, value: Plain) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise FactsError(f"{name}: expected a whole number from 0 to {MAX_NUMBER}")
    return value


def _text(name: str, value: Plain) -> str:
    if not isinstance(value, str) or not _TEXT.fullmatch(value):
        raise FactsError(f"{name}: expected at most {MAX_TEXT_CHARS} printable ASCII characters")
    return value


def _hex(size_bytes: int, name: str, value: Plain) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size_bytes}}}", value):
        raise FactsError(f"{name}: expected {2 * size_bytes} lower-case hexadecimal digits")
    return value


def _word(words: type[enum.StrEnum], name: str, value: Plain) -> enum.StrEnum:
    if isinstance(value, str):
        try:
            return words(value)
        except ValueError:
            pass
    raise FactsError(f"{name}: expected a {words.__name__}")


def _items(inner: _Check, name: str, value: Plain) -> tuple[object, ...]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise FactsError(f"{name}: expected a list of at most {MAX_ITEMS}")
    return tuple(inner(name, item) for item in value)
