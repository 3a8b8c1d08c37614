"""What two TLS proxies really agree on: read off the wire between them, not asked of one of them.

A client of our own would find out what the far proxy agrees on with *us*. So a tap stands between
near and far once, and reads what TLS 1.3 leaves in plaintext (RFC 9846 §4.1.3): the ServerHello
with its cipher suite, its key-exchange group, and whether it took up an earlier session.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

#: Bytes of a server's answer that are kept.
MAX_KEPT_BYTES = 32 * 1024
_TIMEOUT_S = 10.0
_HANDSHAKE_RECORD, _SERVER_HELLO = 22, 2
_SUPPORTED_VERSIONS, _KEY_SHARE, _PRE_SHARED_KEY = 43, 51, 41
#: Random of a ServerHello that is a HelloRetryRequest.
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

CIPHER_SUITES = MappingProxyType(
    {
        0x1301: "TLS_AES_128_GCM_SHA256",
        0x1302: "TLS_AES_256_GCM_SHA384",
        0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    }
)
GROUPS = MappingProxyType(
    {
        0x0017: "secp256r1",
        0x0018: "secp384r1",
        0x0019: "secp521r1",
        0x001D: "x25519",
        0x001E: "x448",
        0x11EB: "SecP256r1MLKEM768",
        0x11EC: "X25519MLKEM768",
        0x11ED: "SecP384r1MLKEM1024",
    }
)


@dataclass(frozen=True, slots=True)
class ServerHello:
    """What a server chose.

    Attributes:
        version: of TLS, as on the wire.
        cipher_suite: its name, or its number.
        group: its name, or its number; "none" where there is none.
        resumed: an earlier session was taken up.
    """

    version: int
    cipher_suite: str
    group: str
    resumed: bool

    def facts(self) -> dict[str, str | int]:
        """For a row of a record."""
        return {
            "tls": {0x0304: "TLSv1.3", 0x0303: "TLSv1.2"}.get(self.version, f"{self.version:#06x}"),
            "cipher": self.cipher_suite,
            "group": self.group,
        }


def server_hello(stream: bytes) -> ServerHello | None:
    """The first ServerHello of what a server sent that asks for no retry, or None."""
    while len(stream) >= 5:
        size = int.from_bytes(stream[3:5], "big")
        record, kind, stream = stream[5 : 5 + size], stream[0], stream[5 + size :]
        if len(record) < size:
            return None
        if kind == _HANDSHAKE_RECORD and record[0] == _SERVER_HELLO:
            body = record[4 : 4 + int.from_bytes(record[1:4], "big")]
            if body[2:34] != _RETRY_RANDOM:
                return _parse(body)
    return None


def _parse(body: bytes) -> ServerHello:
    version = int.from_bytes(body[:2], "big")
    after_session = 35 + body[34]
    cipher_suite = int.from_bytes(body[after_session : after_session + 2], "big")
    extensions = dict(_extensions(body[after_session + 5 :]))
    if _SUPPORTED_VERSIONS in extensions:
        version = int.from_bytes(extensions[_SUPPORTED_VERSIONS], "big")
    group = "none"
    if _KEY_SHARE in extensions:
        number = int.from_bytes(extensions[_KEY_SHARE][:2], "big")
        group = GROUPS.get(number, f"{number:#06x}")
    return ServerHello(
        version,
        CIPHER_SUITES.get(cipher_suite, f"{cipher_suite:#06x}"),
        group,
        _PRE_SHARED_KEY in extensions,
    )


def _extensions(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size = int.from_bytes(data[2:4], "big")
        yield int.from_bytes(data[:2], "big"), data[4 : 4 + size]
        data = data[4 + size :]


class Tap:
    """Forwards connections on 127.0.0.1 and keeps the beginning of what the server says.

    Attributes:
        port: where it listens.
        answers: for each connection, in order.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.answers: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hellos(self) -> list[ServerHello]:
        """What servers chose so far, one for each connection that came so far."""
        found = [server_hello(bytes(answer)) for answer in list(self.answers)]
        return [hello for hello in found if hello is not None]

    def has(self, count: int) -> bool:
        """Whether so many servers have chosen."""
        return len(self.hellos()) >= count

    def close(self) -> None:
        """Take no more connections."""
        # Closing alone would not wake the thread that waits for one.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        answer = bytearray()
        self.answers.append(answer)
        with (
            contextlib.suppress(OSError),
            near,
            socket.create_connection(self._target, _TIMEOUT_S) as far,
        ):
            _carry(near, far, answer)


def _carry(near: socket.socket, far: socket.socket, answer: bytearray) -> None:
    """Both ways until both have ended, or nothing has come for a while."""
    sinks = {near: far, far: near}
    while sinks:
        readable = select.select(list(sinks), [], [], _TIMEOUT_S)[0]
        if not readable:
            return
        for source in readable:
            data = source.recv(65536)
            if not data:
                sinks.pop(source).shutdown(socket.SHUT_WR)
                continue
            if source is far and len(answer) < MAX_KEPT_BYTES:
                answer += data
            sinks[source].sendall(data)
