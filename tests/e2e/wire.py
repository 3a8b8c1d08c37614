"""A TCP relay between the gateways that keeps every byte and can spoil what it carries."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.e2e.sockets import Address, host_and_port

RECORD_HEADER = struct.Struct("!BHH")
#: RFC 9846 §5.2: at most 2^14 bytes of content, its type and the tag; 256 bytes of expansion.
MAX_RECORD_BYTES = (1 << 14) + 256
RECORD_TYPES = {20: "change_cipher_spec", 21: "alert", 22: "handshake", 23: "application_data"}

Tamper = Callable[[bytes], bytes]


@dataclass
class Recording:
    """Everything one TCP connection carried, per direction."""

    client: socket.socket
    server: socket.socket
    to_server: bytearray = field(default_factory=bytearray)
    to_client: bytearray = field(default_factory=bytearray)

    def cut(self) -> None:
        """End the connection towards both gateways with FIN."""
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class RecordingRelay:
    """Listens at ``address`` and passes everything on to ``upstream``.

    Attributes:
        recordings: one for each connection so far.
        tamper: changes bytes on their way to the server, if set.
    """

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        self.tamper: Tamper | None = None
        self.upstream: Address | None = None
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._flowing = threading.Event()
        self._flowing.set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def freeze(self) -> None:
        """Carry nothing any more and close nothing, like a path that went dark."""
        self._flowing.clear()

    def cut(self) -> None:
        """End every connection that is open in order, as if the gateways had sent FIN."""
        for recording in list(self.recordings):
            recording.cut()

    def close(self) -> None:
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for recording in self.recordings:
            recording.client.close()
            recording.server.close()

    def __enter__(self) -> RecordingRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, task: Callable[[], None]) -> None:
        thread = threading.Thread(target=task, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(host_and_port(self.upstream or ""), timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            recording = Recording(client, server)
            self.recordings.append(recording)
            self._start(partial(self._carry, client, server, recording.to_server, to_server=True))
            self._start(partial(self._carry, server, client, recording.to_client, to_server=False))

    def _carry(
        self, source: socket.socket, sink: socket.socket, record: bytearray, *, to_server: bool
    ) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flowing.wait()
                record += data
                spoil = self.tamper if to_server else None
                sink.sendall(data if spoil is None else spoil(data))
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for sock in (source, sink):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def split_records(data: bytes | bytearray) -> list[tuple[str, int]]:
    """Cut a direction into TLS records: type and length of each, from first byte to last.

    Raises:
        AssertionError: some byte belongs to no record.
    """
    records, position = [], 0
    while position < len(data):
        assert len(data) - position >= RECORD_HEADER.size, "the last record header is cut off"
        kind, version, length = RECORD_HEADER.unpack_from(data, position)
        assert kind in RECORD_TYPES, f"byte {position}: {kind} is no record type"
        # RFC 9846 §5.1: 0x0301 is allowed in the first ClientHello, 0x0303 everywhere.
        assert version in ((0x0301, 0x0303) if position == 0 else (0x0303,)), f"byte {position}"
        assert 0 < length <= MAX_RECORD_BYTES, f"byte {position}: a record of {length} bytes"
        position += RECORD_HEADER.size + length
        assert position <= len(data), "the last record is cut off"
        records.append((RECORD_TYPES[kind], length))
    return records
