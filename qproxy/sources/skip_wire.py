"""The JSON and the URLs of SKIP (draft-cisco-skip-02): bytes to values, and nothing else.

What is decoded comes from a key provider that may be anybody's, so a decoder returns a whole value
or raises :class:`~qproxy.errors.KeySourceError`; an error names the field and what was expected and
never quotes what came; and every string, list and number has a limit. Members that the draft does
not name are passed over, as a later version of it may add some.

Sizes on this wire are in bits. Sizes of :class:`SkipKey` are in bytes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import quote, urlencode

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES
from qproxy.sources.etsi014_wire import decode_json

#: Size of a key where none is asked for, in bits. Source: draft-cisco-skip-02 §4.2.2.
DEFAULT_KEY_SIZE_BITS = 256
#: Longest system ID or algorithm read, in characters. The draft asks for 32 and 16 at least.
MAX_SYSTEM_ID_CHARS = 255
#: Most remote systems of one key provider; one entry may stand for many.
MAX_REMOTE_SYSTEMS = 1024
#: Most patterns among them that are heeded: each takes a while, and may be a new one each time.
MAX_PATTERNS = 64

_GLOB = re.compile(r"[*?\[]")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Answer to ``GET /capabilities`` (§4.1). All of it is the provider's own claim.

    Attributes:
        gives_keys: it answers ``GET /key``.
        gives_entropy: it answers ``GET /entropy``.
        algorithm: how it says that keys are made and synchronised; free text.
        local_system_id: what the provider calls itself.
        remote_system_ids: providers it shares keys with; an entry may be a glob pattern.
    """

    gives_keys: bool
    gives_entropy: bool
    algorithm: str
    local_system_id: str
    remote_system_ids: tuple[str, ...]

    def serves(self, remote_system_id: str) -> bool:
        """Whether it says that it shares keys with that provider. Source: §4.1.2, table 5."""
        if remote_system_id in self.remote_system_ids:
            return True
        patterns = [entry for entry in self.remote_system_ids if _GLOB.search(entry)]
        return any(_matches(entry, remote_system_id) for entry in patterns[:MAX_PATTERNS])


@dataclass(slots=True, eq=False)
class SkipKey:
    """Answer to ``GET /key`` (§4.2). Whoever holds it owns ``key`` and wipes it.

    Attributes:
        key_id: hexadecimal digits, an even number of them, at most MAX_KEY_ID_BYTES.
        key: the secret, 1 to MAX_QKD_KEY_BYTES bytes.
    """

    key_id: str
    key: bytearray = field(repr=False)

    def wipe(self) -> None:
        """Overwrite the secret."""
        self.key[:] = bytes(len(self.key))
        del self.key[:]


def capabilities_url(base_url: str) -> str:
    """Source: §4, table 2, number 1."""
    return f"{base_url}/capabilities"


def new_key_url(base_url: str, remote_system_id: str, size_bits: int) -> str:
    """Source: §4, table 2, number 3: the size is always said, for a default may differ."""
    query = urlencode({"remoteSystemID": remote_system_id, "size": size_bits}, quote_via=quote)
    return f"{base_url}/key?{query}"


def key_url(base_url: str, key_id: str, remote_system_id: str) -> str:
    """Source: §4, table 2, number 4. The ID must have been judged by :func:`is_key_id`."""
    query = urlencode({"remoteSystemID": remote_system_id}, quote_via=quote)
    return f"{base_url}/key/{quote(key_id, safe='')}?{query}"


def is_key_id(text: str) -> bool:
    """Whether a text can be a keyId: whole bytes in hexadecimal digits (§4.2.1)."""
    return len(text) <= MAX_KEY_ID_BYTES and _HEX.fullmatch(text) is not None


def decode_capabilities(body: bytes) -> Capabilities:
    """Read the answer to ``GET /capabilities``.

    Raises:
        KeySourceError: ``kme_invalid_response``.
    """
    where = "capabilities"
    members = decode_json(body, where, Reason.KME_INVALID_RESPONSE)
    remote = members.get("remoteSystemID")
    if not isinstance(remote, list) or not 1 <= len(remote) <= MAX_REMOTE_SYSTEMS:
        _fail(where, f"remoteSystemID is no array of 1 to {MAX_REMOTE_SYSTEMS} strings")
    return Capabilities(
        gives_keys=_boolean(members, "key", where),
        gives_entropy=_boolean(members, "entropy", where),
        algorithm=_text(members.get("algorithm"), "algorithm", where, minimum=0),
        local_system_id=_text(members.get("localSystemID"), "localSystemID", where),
        remote_system_ids=tuple(_text(entry, "remoteSystemID", where) for entry in remote),
    )


def decode_key(body: bytes) -> SkipKey:
    """Read the answer to ``GET /key``. Whether it is the key asked for is the caller's to judge.

    Raises:
        KeySourceError: ``kme_invalid_response``.
    """
    where = "key"
    members = decode_json(body, where, Reason.KME_INVALID_RESPONSE)
    key_id, key = members.get("keyId"), members.get("key")
    if not isinstance(key_id, str) or not is_key_id(key_id):
        _fail(where, f"keyId is not 2 to {MAX_KEY_ID_BYTES} hexadecimal digits, in pairs")
    # The pattern first: bytearray.fromhex would pass over blanks.
    if not isinstance(key, str) or len(key) > 2 * MAX_QKD_KEY_BYTES or not _HEX.fullmatch(key):
        _fail(where, f"key is not 1 to {MAX_QKD_KEY_BYTES} bytes in hexadecimal digits")
    return SkipKey(key_id, bytearray.fromhex(key))


def _boolean(members: Mapping[str, object], name: str, where: str) -> bool:
    value = members.get(name)
    if not isinstance(value, bool):
        _fail(where, f"{name} is neither true nor false")
    return value


def _text(value: object, name: str, where: str, *, minimum: int = 1) -> str:
    # Printable excludes half surrogate pairs, which cannot be encoded, and what drives terminals.
    if (
        not isinstance(value, str)
        or not minimum <= len(value) <= MAX_SYSTEM_ID_CHARS
        or not value.isprintable()
    ):
        _fail(where, f"{name} is not {minimum} to {MAX_SYSTEM_ID_CHARS} printable characters")
    return value


def _matches(entry: str, system_id: str) -> bool:
    return re.fullmatch(fnmatch.translate(entry), system_id) is not None


def _fail(where: str, problem: str) -> NoReturn:
    raise KeySourceError(Reason.KME_INVALID_RESPONSE, f"{where}: {problem}")
