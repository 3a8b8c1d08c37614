"""The JSON of ETSI GS QKD 014 v1.1.1: bytes to values and back, and nothing else.

Both directions of every data format (clause 6) are here, because the client and the simulated
KME share them. What is decoded may come from anyone, so:

- a decoder returns a whole value or raises :class:`~qproxy.errors.KeySourceError`, and never
  anything else. An answer that cannot be read is ``kme_invalid_response``, a request that cannot
  be read is ``kme_bad_request``;
- an error names the field and what was expected and never quotes what came: a KME that mixes up
  its fields could put a key anywhere. For the same reason errors are raised outside the
  ``except`` blocks, since a ``json.JSONDecodeError`` carries the document it choked on;
- every list, string and number has a limit.

Sizes on this wire are in bits. Sizes of :class:`WireKey` are in bytes.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import hmac
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES
from qproxy.sources.base import MAX_KEYS_PER_CALL

#: Longest JSON document read, in bytes.
MAX_BODY_BYTES = 1 << 20
#: Longest SAE or KME ID read, in UTF-8 bytes.
MAX_SAE_ID_BYTES = 256
#: Longest ``message`` of an error, in UTF-8 bytes.
MAX_MESSAGE_BYTES = 4096
#: Most ``details``, extension parameters or additional SAEs read from one message.
MAX_LIST_ITEMS = 64
#: Largest count or size read. Keeps every number exact in any JSON implementation (RFC 8259 §6).
MAX_INTEGER = 2**53 - 1


class ErrorMessage(enum.StrEnum):
    """The ``message`` texts that the standard prescribes for HTTP 400.

    Source: ETSI GS QKD 014 v1.1.1, clauses 5.3, 5.4, 6.2 and 6.4.
    """

    SIZE_MULTIPLE_OF_8 = "size shall be a multiple of 8"
    MANDATORY_NOT_SUPPORTED = "not all extension_mandatory parameters are supported"
    MANDATORY_NOT_MET = "not all extension_mandatory request options could be met"
    OPTIONAL_NOT_HANDLED = "not all extension_optional request options handled"
    KEYS_NOT_FOUND = "one or more keys specified are not found on KME"

    @classmethod
    def meant_by(cls, text: str) -> ErrorMessage | None:
        """The prescribed message a server meant, whatever its capitals and full stop."""
        return _BY_FOLDED_TEXT.get(text.strip().rstrip(".").casefold())


_BY_FOLDED_TEXT = {message.casefold(): message for message in ErrorMessage}


@dataclass(frozen=True, slots=True)
class Status:
    """Status data format (clause 6.1). Sizes in bits; ``None`` where a KME left a count out."""

    source_kme_id: str
    target_kme_id: str
    master_sae_id: str
    slave_sae_id: str
    key_size_bits: int
    stored_key_count: int | None
    max_key_count: int | None
    max_key_per_request: int
    max_key_size_bits: int
    min_key_size_bits: int
    max_sae_id_count: int = 0
    extension: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """Key request data format (clause 6.2). ``None`` means that the KME's default holds."""

    number: int | None = None
    size_bits: int | None = None
    additional_slave_sae_ids: tuple[str, ...] = ()
    extension_mandatory: tuple[Mapping[str, object], ...] = ()
    extension_optional: tuple[Mapping[str, object], ...] = ()


@dataclass(slots=True, eq=False)
class WireKey:
    """One element of a key container. Whoever holds it owns ``key`` and wipes it.

    Attributes:
        key_id: at most MAX_KEY_ID_BYTES of UTF-8.
        key: the secret, 1 to MAX_QKD_KEY_BYTES bytes.
    """

    key_id: str
    key: bytearray = field(repr=False)

    def wipe(self) -> None:
        """Overwrite the secret."""
        self.key[:] = bytes(len(self.key))
        del self.key[:]


@dataclass(frozen=True, slots=True)
class KeyContainer:
    """Key container data format (clause 6.3)."""

    keys: tuple[WireKey, ...]
    extension: Mapping[str, object] = field(default_factory=dict, repr=False)

    def wipe(self) -> None:
        """Overwrite every secret in it."""
        for key in self.keys:
            key.wipe()


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """Error data format (clause 6.5). The text is a server's own: do not log it."""

    message: str = field(repr=False)
    details: tuple[Mapping[str, object], ...] = field(default=(), repr=False)


# --- encoding -----------------------------------------------------------------------------


def encode_status(status: Status) -> bytes:
    """A status as UTF-8 JSON. Source: clause 6.1, table 9."""
    document: dict[str, object] = {
        "source_KME_ID": status.source_kme_id,
        "target_KME_ID": status.target_kme_id,
        "master_SAE_ID": status.master_sae_id,
        "slave_SAE_ID": status.slave_sae_id,
        "key_size": status.key_size_bits,
        "max_key_per_request": status.max_key_per_request,
        "max_key_size": status.max_key_size_bits,
        "min_key_size": status.min_key_size_bits,
        "max_SAE_ID_count": status.max_sae_id_count,
    }
    if status.stored_key_count is not None:
        document["stored_key_count"] = status.stored_key_count
    if status.max_key_count is not None:
        document["max_key_count"] = status.max_key_count
    if status.extension:
        document["status_extension"] = dict(status.extension)
    return encode_json(document)


def key_request_document(request: KeyRequest) -> dict[str, object]:
    """A key request as a JSON object, without the members that stand at their default.

    Source: clause 6.2, table 10.
    """
    document: dict[str, object] = {}
    if request.number is not None:
        document["number"] = request.number
    if request.size_bits is not None:
        document["size"] = request.size_bits
    if request.additional_slave_sae_ids:
        document["additional_slave_SAE_IDs"] = list(request.additional_slave_sae_ids)
    if request.extension_mandatory:
        document["extension_mandatory"] = [dict(item) for item in request.extension_mandatory]
    if request.extension_optional:
        document["extension_optional"] = [dict(item) for item in request.extension_optional]
    return document


def encode_key_request(request: KeyRequest) -> bytes:
    """A key request as UTF-8 JSON. Source: clause 6.2."""
    return encode_json(key_request_document(request))


def encode_key_container(container: KeyContainer) -> bytes:
    """A key container as UTF-8 JSON. The bytes hold secrets and cannot be wiped.

    Source: clause 6.3, table 11; ``keys`` in lower case, as in the standard's examples.
    """
    document: dict[str, object] = {
        "keys": [
            {"key_ID": key.key_id, "key": base64.b64encode(key.key).decode("ascii")}
            for key in container.keys
        ]
    }
    if container.extension:
        document["key_container_extension"] = dict(container.extension)
    return encode_json(document)


def key_ids_document(key_ids: Iterable[str]) -> dict[str, object]:
    """Key IDs as a JSON object. Source: clause 6.4, table 12."""
    return {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}


def encode_key_ids(key_ids: Iterable[str]) -> bytes:
    """Key IDs as UTF-8 JSON. Source: clause 6.4."""
    return encode_json(key_ids_document(key_ids))


def encode_error(message: str, details: Sequence[Mapping[str, object]] = ()) -> bytes:
    """An error as UTF-8 JSON. Source: clause 6.5, table 13."""
    document: dict[str, object] = {"message": message}
    if details:
        document["details"] = [dict(item) for item in details]
    return encode_json(document)


def encode_json(document: Mapping[str, object]) -> bytes:
    """A JSON object in UTF-8 (RFC 8259), compact; everything beyond ASCII is escaped."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")


# --- decoding -----------------------------------------------------------------------------


def decode_status(body: bytes) -> Status:
    """Read a status. IDs may be integers, as some servers send them.

    Raises:
        KeySourceError: ``kme_invalid_response``.
    """
    fields = _Fields(decode_json(body, "status", Reason.KME_INVALID_RESPONSE), "status")
    return Status(
        source_kme_id=fields.identifier("source_KME_ID"),
        target_kme_id=fields.identifier("target_KME_ID"),
        master_sae_id=fields.identifier("master_SAE_ID"),
        slave_sae_id=fields.identifier("slave_SAE_ID"),
        key_size_bits=fields.integer("key_size", low=1),
        stored_key_count=fields.optional_integer("stored_key_count"),
        max_key_count=fields.optional_integer("max_key_count"),
        max_key_per_request=fields.integer("max_key_per_request", low=1),
        max_key_size_bits=fields.integer("max_key_size", low=1),
        min_key_size_bits=fields.integer("min_key_size"),
        max_sae_id_count=fields.optional_integer("max_SAE_ID_count") or 0,
        extension=fields.extension("status_extension"),
    )


def decode_key_request(body: bytes) -> KeyRequest:
    """Read a key request as a KME does. An empty body stands for an empty request.

    Numbers are read, not judged: whether ``number`` and ``size`` can be met is the KME's word.

    Raises:
        KeySourceError: ``kme_bad_request``; the message may go into the answer as it is.
    """
    where, reason = "key request", Reason.KME_BAD_REQUEST
    document = decode_json(body, where, reason) if body.strip() else {}
    fields = _Fields(document, where, reason)
    fields.only(
        "number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional"
    )
    return KeyRequest(
        number=fields.optional_integer("number"),
        size_bits=fields.optional_integer("size"),
        additional_slave_sae_ids=fields.texts("additional_slave_SAE_IDs", MAX_SAE_ID_BYTES),
        extension_mandatory=fields.objects("extension_mandatory"),
        extension_optional=fields.objects("extension_optional"),
    )


def decode_key_container(body: bytes) -> KeyContainer:
    """Read a key container. ``Keys`` is read like ``keys``; both together are refused.

    Key IDs are distinct in what is returned. Lengths and number are for the caller to judge,
    who knows what was asked. Nothing is left unwiped when this raises.

    Raises:
        KeySourceError: ``kme_invalid_response``.
    """
    where = "key container"
    document = decode_json(body, where, Reason.KME_INVALID_RESPONSE)
    fields = _Fields(document, where)
    if "keys" in document and "Keys" in document:
        fields.fail("both keys and Keys are there, expected one of them")
    extension = fields.extension("key_container_extension")
    items = fields.array("Keys" if "Keys" in document else "keys", MAX_KEYS_PER_CALL)
    keys: list[WireKey] = []
    try:
        for item in items:
            keys.append(_decode_key(item))
        if len({key.key_id for key in keys}) != len(keys):
            fields.fail("a key_ID is there twice, expected distinct ones")
    except KeySourceError:
        for key in keys:
            key.wipe()
        raise
    return KeyContainer(tuple(keys), extension)


def decode_key_ids(body: bytes) -> tuple[str, ...]:
    """Read key IDs as a KME does: at least one, each once.

    Raises:
        KeySourceError: ``kme_bad_request``; the message may go into the answer as it is.
    """
    where, reason = "key IDs", Reason.KME_BAD_REQUEST
    fields = _Fields(decode_json(body, where, reason), where, reason)
    fields.only("key_IDs", "key_IDs_extension")
    fields.extension("key_IDs_extension")
    key_ids = []
    for item in fields.array("key_IDs", MAX_KEYS_PER_CALL):
        entry = _Fields(item, "key_IDs element", reason)
        entry.only("key_ID", "key_ID_extension")
        key_ids.append(entry.text("key_ID", MAX_KEY_ID_BYTES))
    if not key_ids:
        fields.fail("key_IDs is empty, expected at least one")
    if len(set(key_ids)) != len(key_ids):
        fields.fail("a key_ID is there twice, expected distinct ones")
    return tuple(key_ids)


def decode_error(body: bytes) -> ErrorBody:
    """Read an error. Details that are no array of objects are left out: the message says enough.

    Raises:
        KeySourceError: ``kme_invalid_response``; servers do answer errors in HTML.
    """
    fields = _Fields(decode_json(body, "error", Reason.KME_INVALID_RESPONSE), "error")
    details: tuple[Mapping[str, object], ...] = ()
    with contextlib.suppress(KeySourceError):
        details = fields.objects("details")
    return ErrorBody(fields.text("message", MAX_MESSAGE_BYTES, allow_empty=True), details)


def decode_json(body: bytes, where: str, reason: Reason) -> dict[str, object]:
    """Read one JSON object: UTF-8, no member twice, no NaN or Infinity (RFC 8259, RFC 7493).

    Args:
        body: the document, at most MAX_BODY_BYTES.
        where: what it is, for the error.
        reason: what an unreadable document means here.

    Raises:
        KeySourceError: ``reason``.
    """
    if len(body) > MAX_BODY_BYTES:
        _fail(reason, where, f"{len(body)} bytes, expected at most {MAX_BODY_BYTES}")
    document: object = None
    # What is wrong is raised below, out of reach of this exception and the document it carries.
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(
            body.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant
        )
    if not isinstance(document, dict):
        _fail(reason, where, "no JSON object in UTF-8 with distinct members")
    return document


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON")


def _decode_key(item: object) -> WireKey:
    fields = _Fields(item, "keys element")
    key_id = fields.text("key_ID", MAX_KEY_ID_BYTES)
    text = fields.text("key", _base64_chars(MAX_QKD_KEY_BYTES))
    key: bytearray | None = None
    with contextlib.suppress(ValueError):  # for the same reason as in decode_json
        key = bytearray(base64.b64decode(text, validate=True))
    # One key has one encoding: padding bits that are not zero, or spare padding, mean that
    # two servers may read the text differently.
    if key is None or not hmac.compare_digest(base64.b64encode(key), text.encode()):
        fields.fail("key is no canonical base64 (RFC 4648 §4)")
    if not 1 <= len(key) <= MAX_QKD_KEY_BYTES:  # base64 comes in steps of three bytes
        fields.fail(f"key is empty or longer than {MAX_QKD_KEY_BYTES} bytes")
    return WireKey(key_id, key)


def _base64_chars(length_bytes: int) -> int:
    return 4 * math.ceil(length_bytes / 3)


def _fail(reason: Reason, where: str, what: str) -> NoReturn:
    raise KeySourceError(reason, f"{where}: {what}", retryable=reason is not Reason.KME_BAD_REQUEST)


class _Fields:
    """One JSON object, read member by member; every complaint names object and member."""

    def __init__(
        self, value: object, where: str, reason: Reason = Reason.KME_INVALID_RESPONSE
    ) -> None:
        self._where = where
        self._reason = reason
        if not isinstance(value, dict):
            self.fail("expected a JSON object")
        self._members: dict[str, object] = value

    def fail(self, what: str) -> NoReturn:
        _fail(self._reason, self._where, what)

    def only(self, *names: str) -> None:
        if not self._members.keys() <= set(names):
            self.fail(f"unknown member, expected {', '.join(names)}")

    def text(self, name: str, max_bytes: int, *, allow_empty: bool = False) -> str:
        return self._check_text(self._required(name), name, max_bytes, allow_empty=allow_empty)

    def identifier(self, name: str) -> str:
        value = self._required(name)
        if type(value) is int and 0 <= value <= MAX_INTEGER:
            return str(value)
        return self._check_text(value, name, MAX_SAE_ID_BYTES)

    def texts(self, name: str, max_bytes: int) -> tuple[str, ...]:
        if self._members.get(name) is None:
            return ()
        items = self.array(name, MAX_LIST_ITEMS)
        return tuple(self._check_text(item, name, max_bytes) for item in items)

    def integer(self, name: str, *, low: int = 0) -> int:
        value = self._required(name)
        # bool is a subclass of int in Python, and not in JSON.
        if type(value) is not int or not low <= value <= MAX_INTEGER:
            self.fail(f"{name} is no integer from {low} to {MAX_INTEGER}")
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self._members.get(name) is None else self.integer(name)

    def array(self, name: str, max_items: int) -> list[object]:
        value = self._required(name)
        if not isinstance(value, list):
            self.fail(f"{name} is no array")
        if len(value) > max_items:
            self.fail(f"{name} has {len(value)} elements, expected at most {max_items}")
        return value

    def objects(self, name: str) -> tuple[Mapping[str, object], ...]:
        if self._members.get(name) is None:
            return ()
        items = self.array(name, MAX_LIST_ITEMS)
        objects = [item for item in items if isinstance(item, dict)]
        if len(objects) != len(items):
            self.fail(f"{name} has an element that is no JSON object")
        return tuple(objects)

    def extension(self, name: str) -> Mapping[str, object]:
        value = self._members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fail(f"{name} is no JSON object")
        return value

    def _required(self, name: str) -> object:
        value = self._members.get(name)
        if value is None:
            self.fail(f"{name} is missing")
        return value

    def _check_text(
        self, value: object, name: str, max_bytes: int, *, allow_empty: bool = False
    ) -> str:
        if not isinstance(value, str):
            self.fail(f"{name} is no string")
        if not value and not allow_empty:
            self.fail(f"{name} is empty")
        # JSON can name half a surrogate pair, which no UTF-8 can hold; it would go off later.
        if any("\ud800" <= char <= "\udfff" for char in value):
            self.fail(f"{name} is no Unicode text")
        if len(value.encode()) > max_bytes:
            self.fail(f"{name} is longer than {max_bytes} bytes")
        return value
