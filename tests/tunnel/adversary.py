"""A peer with the right keys and the worst intentions, in both phases of a tunnel.

Nothing here breaks cryptography: everything is sealed under keys that the lying end really holds.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from qproxy.crypto import labels
from qproxy.crypto.records import OVERHEAD_BYTES
from qproxy.modes import ClientAuth
from qproxy.tls.context import client_context, server_context
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.frames import FRAME_HEADER, FrameType
from qproxy.tunnel.settings import Role
from tests import pki
from tests.tunnel.helpers import Pair

APPLICATION_DATA = 23
HANDSHAKE = 22
ALERT = 21
KEY_UPDATE = bytes([24, 0, 0, 1, 0])
KEY_UPDATE_REQUESTED = bytes([24, 0, 0, 1, 1])


def other(role: Role) -> Role:
    return Role.SERVER if role is Role.CLIENT else Role.CLIENT


def frame(code: int, stream_id: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame's bytes; ``length`` may lie."""
    return FRAME_HEADER.pack(code, stream_id, len(payload) if length is None else length) + payload


def seal(pair: Pair, sender: Role, content: bytes, *, inner_type: int = 23, pad: int = 0) -> bytes:
    """One record of anything, under the key that ``sender`` writes with just now."""
    sealer = pair.end(sender)._writer._sealer
    assert sealer is not None
    inner = content + bytes([inner_type]) + bytes(pad)
    out = memoryview(bytearray(len(inner) + OVERHEAD_BYTES))
    return bytes(out[: sealer.seal_into(memoryview(inner), out)])


def inject(pair: Pair, sender: Role, content: bytes, **options: int) -> None:
    """Send what waits at ``sender``, then one record of anything, to the other end."""
    pair.deliver(other(sender), pair.take_output(sender))
    pair.deliver(other(sender), seal(pair, sender, content, **options))


def inject_frame(
    pair: Pair, sender: Role, code: int, stream_id: int = 0, data: bytes = b""
) -> None:
    inject(pair, sender, frame(code, stream_id, data))


def inject_epoch(pair: Pair, sender: Role, message: bytes) -> None:
    inject_frame(pair, sender, FrameType.EPOCH, 0, message)


def intercept(connection: Connection, change: Callable[[bytes], Iterable[bytes]]) -> list[bytes]:
    """Let one end send other epoch messages than it means to.

    Args:
        connection: the lying end.
        change: from the message it would send to those it sends.

    Returns:
        A list that grows by every message it meant to send.
    """
    meant: list[bytes] = []
    send = connection._send_epoch_message

    def altered(message: bytes | None) -> None:
        if message is not None:
            meant.append(message)
            for instead in change(message):
                send(instead)

    connection._send_epoch_message = altered  # type: ignore[method-assign]
    return meant


def listen_in(connection: Connection) -> list[bytes]:
    """The epoch messages one end sends, as it sends them."""
    return intercept(connection, lambda message: [message])


def split_records(data: bytes) -> list[bytes]:
    """Whole records with their headers. Raises where the bytes are not all records."""
    records = []
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        assert len(data) >= end, "the bytes end inside a record"
        records.append(data[:end])
        data = data[end:]
    return records


# --- inside TLS ------------------------------------------------------------------------------


def logged_context(role: Role, name: str, log: dict[str, bytes], **variant: Any) -> SSL.Context:
    """A TLS context whose traffic secrets end up in ``log`` by their SSLKEYLOGFILE labels."""
    ca = pki.authority()
    who = pki.identity(ca, name, **variant)
    options: dict[str, Any] = {
        "alpn": [labels.ALPN],
        "tls13_only": True,
        "ciphersuites": "TLS_AES_256_GCM_SHA384",
    }
    if role is Role.CLIENT:
        context = client_context(trust=ca.trust, identity=who, **options)
    else:
        context = server_context(who, trust=ca.trust, client_auth=ClientAuth.REQUIRED, **options)

    def note(_connection: SSL.Connection, line: bytes) -> None:
        label, _random, secret = line.decode().split()
        log[label] = bytes.fromhex(secret)

    context.set_keylog_callback(note)
    return context


class TlsForger:
    """Seals records under TLS 1.3 application traffic secrets (RFC 8446 §7.3, AES-256-GCM)."""

    def __init__(self, traffic_secret: bytes) -> None:
        self.secret = traffic_secret
        self._cipher = AESGCM(expand_label(traffic_secret, b"key", 32))
        self._iv = int.from_bytes(expand_label(traffic_secret, b"iv", 12), "big")
        self.sequence = 0

    def seal(self, content: bytes, content_type: int) -> bytes:
        inner = content + bytes([content_type])
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self.sequence).to_bytes(12, "big")
        self.sequence += 1
        return header + self._cipher.encrypt(nonce, inner, header)

    def open(self, record: bytes) -> tuple[bytes, int]:
        """Content and type of the next record."""
        nonce = (self._iv ^ self.sequence).to_bytes(12, "big")
        self.sequence += 1
        inner = self._cipher.decrypt(nonce, record[5:], record[:5]).rstrip(b"\0")
        return inner[:-1], inner[-1]


def expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context, for at most one block of SHA-384."""
    name = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return hmac.digest(secret, info + b"\1", "sha384")[:length]
