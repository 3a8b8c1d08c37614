"""What is kept of a KME's answer: enough to judge it, and no key.

Of each key there remain its length and a keyed hash under a key of this run alone, so that both
ends' keys can be compared and none can be printed. Key IDs are kept to ask for the keys with, and
shown in no ``repr``. Of errors there remains which of the prescribed texts was meant.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES
from qproxy.net.http_client import HttpErrorKind, HttpResponse
from qproxy.sources.base import MAX_KEYS_PER_CALL
from qproxy.sources.etsi014_errors import Call, lacks_method, read_error, refusal
from qproxy.sources.etsi014_wire import (
    MAX_INTEGER,
    MAX_MESSAGE_BYTES,
    MAX_SAE_ID_BYTES,
    ErrorMessage,
    decode_json,
    decode_key_container,
    decode_status,
)
from qproxy.sources.http import TRANSPORT_REASONS

#: Members of a status that Table 9 makes mandatory: identifiers, then numbers.
STATUS_IDS: Final = ("source_KME_ID", "target_KME_ID", "master_SAE_ID", "slave_SAE_ID")
STATUS_NUMBERS: Final = (
    "key_size",
    "stored_key_count",
    "max_key_count",
    "max_key_per_request",
    "max_key_size",
    "min_key_size",
    "max_SAE_ID_count",
)


@dataclass(frozen=True, slots=True)
class KeyFact:
    """What is kept of one element of a key container.

    Attributes:
        key_id: as it came; empty where there was none that can be asked for.
        size_bits: length of the key, or None where it could not be decoded.
        digest: the same for the same key, in this run; empty where it could not be decoded.
        canonical: the base64 is the only one for this key (RFC 4648 §4).
        all_zero: every byte of the key is zero.
    """

    key_id: str = field(repr=False)
    size_bits: int | None
    digest: bytes = field(repr=False)
    canonical: bool
    all_zero: bool

    @property
    def is_uuid(self) -> bool:
        """Whether the ID has the form of RFC 9562 §4, in either case."""
        try:
            return str(uuid.UUID(self.key_id)) == self.key_id.lower()
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class ErrorFact:
    """What is kept of a body in the Error data format (clause 6.5, Table 13).

    Attributes:
        prescribed: which of the standard's texts was meant, whatever its capitals; None for any
            other text.
        exact: it was the standard's text to the letter.
        details_well_formed: ``details`` is absent or an array of objects.
    """

    prescribed: ErrorMessage | None
    exact: bool
    details_well_formed: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back on one request.

    Attributes:
        call: which method of the interface was called.
        status: HTTP status, or None where no response came.
        failure: why none came.
        elapsed_s: how long it took, in seconds.
        is_json: the body is one JSON object in UTF-8 with distinct members.
        says_json: so does its Content-Type.
        says_no_store: its Cache-Control forbids keeping it.
        members: of a status, those that Table 9 names, where they have a value of its kind.
        integer_ids: identifiers of a status that came as numbers.
        extension: of a status, ``status_extension`` where it is an object.
        keys_member: ``keys`` or ``Keys``, whichever a container had; None for neither or both.
        keys: of a container.
        simulated: it says that no photon was involved.
        error: where the body is in the Error data format.
        readable: whether qproxy's own decoder takes the body of this 200.
        refused_as: what a gateway's log calls the refusal, its body considered; None for a 200.
        lacks_method: whether the method of HTTP is what was refused, and not the request.
    """

    call: Call
    status: int | None
    failure: HttpErrorKind | None = None
    elapsed_s: float = 0.0
    is_json: bool = False
    says_json: bool = False
    says_no_store: bool = False
    members: Mapping[str, str | int] = field(default_factory=dict, repr=False)
    integer_ids: tuple[str, ...] = ()
    extension: Mapping[str, object] = field(default_factory=dict, repr=False)
    keys_member: str | None = None
    keys: tuple[KeyFact, ...] = ()
    simulated: bool = False
    error: ErrorFact | None = None
    readable: bool = False
    refused_as: Reason | None = None
    lacks_method: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is a 200."""
        return self.status == 200

    @property
    def reason(self) -> Reason:
        """What a gateway's log calls it that this is no 200: said by the gateway's own client."""
        if self.status is None:
            return TRANSPORT_REASONS[self.failure or HttpErrorKind.PROTOCOL][0]
        return self.refused_as or refusal(self.call, self.status, None).reason

    def number(self, name: str) -> int | None:
        """A number out of a status."""
        value = self.members.get(name)
        return value if isinstance(value, int) else None


#: Gives a keyed hash of a key.
Fingerprint = Callable[[bytes | bytearray], bytes]


def fingerprint_with(secret: bytes) -> Fingerprint:
    """A keyed hash for one run: HMAC-SHA-256 under ``secret``, which is kept nowhere else."""
    return lambda key: hmac.digest(secret, key, "sha256")


def no_answer(call: Call, failure: HttpErrorKind, elapsed_s: float) -> Answer:
    """A request that got no response."""
    return Answer(call, None, failure, elapsed_s)


def read_answer(
    call: Call, response: HttpResponse, elapsed_s: float, fingerprint: Fingerprint
) -> Answer:
    """Take the facts out of a response. Whatever it holds, nothing is raised.

    Args:
        call: what was called.
        response: what came.
        elapsed_s: how long it took.
        fingerprint: for the keys in it.
    """
    document: Mapping[str, object] | None = None
    with contextlib.suppress(KeySourceError):
        document = decode_json(response.body, "answer", Reason.KME_INVALID_RESPONSE)
    content_type = response.headers.get("content-type", "")
    body = document or {}
    is_200 = response.status == 200
    statuses = body if is_200 and call is Call.STATUS else {}
    container = body if is_200 and call is not Call.STATUS else {}
    names = [name for name in ("keys", "Keys") if name in container]
    extension = statuses.get("status_extension", container.get("key_container_extension"))
    extension = extension if isinstance(extension, dict) else {}
    error = None if is_200 else read_error(response.body)
    return Answer(
        call=call,
        status=response.status,
        elapsed_s=elapsed_s,
        is_json=document is not None,
        says_json=content_type.partition(";")[0].strip().lower() == "application/json",
        says_no_store="no-store" in response.headers.get("cache-control", "").lower(),
        members=_status_members(statuses),
        integer_ids=tuple(name for name in STATUS_IDS if type(statuses.get(name)) is int),
        extension=extension if call is Call.STATUS else {},
        keys_member=names[0] if len(names) == 1 else None,
        keys=_key_facts(container.get(names[0]), fingerprint) if len(names) == 1 else (),
        simulated=extension.get("simulated") is True,
        error=None if is_200 else _error_fact(document),
        readable=is_200 and _readable(call, response.body),
        refused_as=None if is_200 else refusal(call, response.status, error).reason,
        lacks_method=not is_200 and lacks_method(response.status, error),
    )


def _status_members(document: Mapping[str, object]) -> dict[str, str | int]:
    members: dict[str, str | int] = {}
    for name in STATUS_IDS:
        value = document.get(name)
        if isinstance(value, str) and 1 <= len(value) <= MAX_SAE_ID_BYTES:
            members[name] = value
        elif type(value) is int and 0 <= value <= MAX_INTEGER:
            members[name] = str(value)
    for name in STATUS_NUMBERS:
        value = document.get(name)
        if type(value) is int and 0 <= value <= MAX_INTEGER:
            members[name] = value
    return members


def _key_facts(items: object, fingerprint: Fingerprint) -> tuple[KeyFact, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(_key_fact(item, fingerprint) for item in items[:MAX_KEYS_PER_CALL])


def _key_fact(item: object, fingerprint: Fingerprint) -> KeyFact:
    key_id = item.get("key_ID") if isinstance(item, dict) else None
    text = item.get("key") if isinstance(item, dict) else None
    if not isinstance(key_id, str) or not _can_be_asked_for(key_id):
        key_id = ""
    key = bytearray()
    canonical = False
    if isinstance(text, str) and len(text) <= 2 * MAX_QKD_KEY_BYTES:
        with contextlib.suppress(ValueError):
            key = bytearray(base64.b64decode(text, validate=True))
            canonical = hmac.compare_digest(base64.b64encode(key), text.encode())
    if not key:
        return KeyFact(key_id, None, b"", canonical=False, all_zero=False)
    fact = KeyFact(key_id, len(key) * 8, fingerprint(key), canonical, all_zero=not any(key))
    key[:] = bytes(len(key))
    return fact


def _can_be_asked_for(key_id: str) -> bool:
    return key_id.isprintable() and 1 <= len(key_id.encode()) <= MAX_KEY_ID_BYTES


def _error_fact(document: Mapping[str, object] | None) -> ErrorFact | None:
    message = None if document is None else document.get("message")
    if document is None or not isinstance(message, str) or len(message) > MAX_MESSAGE_BYTES:
        return None
    prescribed = ErrorMessage.meant_by(message)
    details = document.get("details")
    return ErrorFact(
        prescribed,
        exact=prescribed is not None and message == prescribed,
        details_well_formed=details is None
        or (isinstance(details, list) and all(isinstance(item, dict) for item in details)),
    )


def _readable(call: Call, body: bytes) -> bool:
    try:
        if call is Call.STATUS:
            decode_status(body)
        else:
            decode_key_container(body).wipe()
    except KeySourceError:
        return False
    return True
