"""Keys drawn at one site, for the other site to fetch: a file that holds no key.

Two sites that nobody may enter together check their KMEs in two runs: the first draws keys and
writes their IDs, the second fetches them and compares. What is compared are keyed hashes, under a
secret that is in the file as well. A key in it is good for nothing: no gateway ever uses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES
from qproxy.kme_check.evidence import Evidence
from qproxy.kme_check.facts import KeyFact
from qproxy.kme_check.judge_keys import GIVING
from qproxy.kme_check.plan import Limits
from qproxy.sources.etsi014_wire import MAX_INTEGER, MAX_SAE_ID_BYTES, decode_json

#: Version of the file's form.
FORMAT: Final = 1
#: Largest file read, in bytes.
MAX_FILE_BYTES: Final = 256 * 1024
#: Most keys in it.
MAX_KEYS: Final = 256
_SECRET_BYTES: Final = 32


class HandOverError(ValueError):
    """The file is none of ours, or not for this end. The message is fit to be shown."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Keys that one end drew.

    Attributes:
        master_sae_id: who drew them.
        slave_sae_id: who is to fetch them.
        secret: what their hashes are keyed with.
        limits: of the KME that gave them.
        keys: by the request that gave them, see :mod:`qproxy.kme_check.plan`.
    """

    master_sae_id: str
    slave_sae_id: str
    secret: bytes = field(repr=False)
    limits: Limits
    keys: Mapping[str, tuple[KeyFact, ...]]

    @classmethod
    def of(cls, seen: Evidence, secret: bytes) -> HandOver:
        """What a run with one end drew."""
        keys = {
            name: tuple(key for key in seen.given(name) if key.key_id and key.digest)
            for name in GIVING
        }
        end = seen.master
        return cls(end.local_sae_id, end.peer_sae_id, secret, seen.limits, keys)


def encode_hand_over(hand_over: HandOver) -> bytes:
    """The file."""
    document = {
        "qproxy_kme_check": FORMAT,
        "master_SAE_ID": hand_over.master_sae_id,
        "slave_SAE_ID": hand_over.slave_sae_id,
        "secret": hand_over.secret.hex(),
        "key_size": hand_over.limits.key_size_bits,
        "max_key_per_request": hand_over.limits.max_key_per_request,
        "keys": {
            name: [
                {"key_ID": key.key_id, "size": key.size_bits, "hash": key.digest.hex()}
                for key in keys
            ]
            for name, keys in hand_over.keys.items()
        },
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def decode_hand_over(data: bytes) -> HandOver:
    """Read a file.

    Raises:
        HandOverError: it is none, or another version's.
    """
    document: Mapping[str, Any] = {}
    try:
        if len(data) <= MAX_FILE_BYTES:
            document = decode_json(data, "file", Reason.KME_INVALID_RESPONSE)
    except KeySourceError:
        pass
    if document.get("qproxy_kme_check") != FORMAT:
        raise HandOverError("expected a file that 'qproxy kme check --hand-over' wrote")
    try:
        keys = {name: tuple(map(_key, document["keys"].get(name, []))) for name in GIVING}
        size = _number(document["key_size"], MAX_INTEGER)
        found = HandOver(
            _text(document["master_SAE_ID"], MAX_SAE_ID_BYTES),
            _text(document["slave_SAE_ID"], MAX_SAE_ID_BYTES),
            _bytes(document["secret"]),
            Limits(
                key_size_bits=size,
                min_key_size_bits=size,
                max_key_size_bits=size,
                max_key_per_request=_number(document["max_key_per_request"], MAX_INTEGER),
            ),
            keys,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HandOverError("something in the file is not as it was written") from None
    if sum(map(len, keys.values())) > MAX_KEYS:
        raise HandOverError(f"expected at most {MAX_KEYS} keys in the file")
    return found


def _key(item: Any) -> KeyFact:
    return KeyFact(
        _text(item["key_ID"], MAX_KEY_ID_BYTES),
        _number(item["size"], 8 * MAX_QKD_KEY_BYTES),
        _bytes(item["hash"]),
        canonical=True,
        all_zero=False,
    )


def _text(value: object, max_bytes: int) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("expected printable text")
    if not 1 <= len(value.encode()) <= max_bytes:
        raise ValueError("expected a shorter text")
    return value


def _number(value: object, maximum: int) -> int:
    if type(value) is not int or not 1 <= value <= maximum:
        raise ValueError("expected a number in range")
    return value


def _bytes(value: object) -> bytes:
    found = bytes.fromhex(value) if isinstance(value, str) else b""
    if len(found) != _SECRET_BYTES:
        raise ValueError("expected 32 bytes in hexadecimal")
    return found
