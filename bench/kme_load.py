"""The load generator for KMEs, a program of its own: SAEs that ask for keys without a pause.

    python -m bench.kme_load client         reads one JSON request a line, answers with one

A thread for each connection, blocking sockets, TLS by Python's own module with the SAE's
certificate, connections kept. Requests are bytes made once; of an answer its status, its length and
the first key ID are read, and nothing else. Nothing but the standard library is imported.

An action is an object with ``do``:

=============  ===================================================================================
``open``       ``directory`` of the PKI, ``kmes`` (name to address), ``saes`` (pairs ``[master,
               slave]``, one connection to each KME for every pair)
``run``        ``case`` and ``seconds``; the answer has ``requests``, ``keys``, ``seconds`` and the
               latencies' ``p50_us`` and ``p99_us``
``close``      every connection
=============  ===================================================================================

Cases: ``status``; ``enc_keys`` and ``enc_keys by POST``, one key each; ``enc and dec``, in which
every key is fetched by its ID at the other KME at once: two requests; ``enc and dec of 32``, the
same with 32 keys at a time, fetched by POST.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.lines import answer_lines

#: How long one system call on a socket may block, in seconds.
STALL_S = 30.0
#: Most of an answer that is read, in bytes.
MAX_ANSWER_BYTES = 1 << 20

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *([0-9]+)")
_KEY_ID = re.compile(rb'"key_ID": *"([0-9A-Fa-f-]{36})"')
_PATH = "/api/v1/keys/"


class LoadError(Exception):
    """A KME did not answer, or not with 200."""


class Connection:
    """One kept connection of an SAE to its KME."""

    def __init__(self, directory: Path, sae: str, kme: str, address: str) -> None:
        context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
        context.load_cert_chain(directory / f"{sae}.pem", directory / f"{sae}.key")
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host, int(port)), STALL_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname=kme)
        self._host = address

    def get(self, path: str) -> bytes:
        """A GET as bytes."""
        return f"GET {_PATH}{path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode()

    def post(self, path: str, document: object) -> bytes:
        """A POST as bytes."""
        body = json.dumps(document).encode()
        head = (
            f"POST {_PATH}{path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def exchange(self, request: bytes) -> bytes:
        """Send a request and receive the whole answer. Raises LoadError unless it is 200."""
        self._socket.sendall(request)
        answer = self._socket.recv(65536)
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more(len(answer))
        length = _LENGTH.search(answer, 0, end + 2)
        missing = end + 4 + int(length[1] if length else b"0") - len(answer)
        while missing > 0:
            more = self._more(len(answer))
            answer += more
            missing -= len(more)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise LoadError(f"answered {answer[9:12].decode('ascii', 'replace')}")
        return answer

    def _more(self, so_far: int) -> bytes:
        more = self._socket.recv(65536)
        if not more or so_far > MAX_ANSWER_BYTES:
            raise LoadError("an answer broke off, or does not end")
        return more

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Pair:
    """A master SAE at its KME and the slave SAE at the other one.

    Attributes:
        took_s: how long each request took, in seconds.
        keys: how many keys came.
        error: what went wrong, or None.
    """

    def __init__(self, master: Connection, slave: Connection, saes: tuple[str, str]) -> None:
        self._master, self._slave = master, slave
        master_sae, slave_sae = saes
        self._requests = {
            "status": (master.get(f"{slave_sae}/status"), 0),
            "enc_keys": (master.get(f"{slave_sae}/enc_keys"), 1),
            "enc_keys by POST": (master.post(f"{slave_sae}/enc_keys", {"number": 1}), 1),
        }
        self._many = master.get(f"{slave_sae}/enc_keys?number=32")
        self._slave_path = f"{master_sae}/dec_keys"
        self._dec_head, self._dec_tail = slave.get(f"{master_sae}/dec_keys?key_ID=@").split(b"@")
        self.took_s: list[float] = []
        self.keys = 0
        self.error: str | None = None

    def run(self, case: str, until: float) -> None:
        """Ask again and again until a moment of the monotonic clock."""
        self.took_s, self.keys, self.error = [], 0, None
        both = {"enc and dec": self._enc_and_dec, "enc and dec of 32": self._enc_and_dec_many}
        step = both[case] if case in both else self._repeat(*self._requests[case])
        try:
            while time.monotonic() < until:
                step()
        except (LoadError, OSError) as error:
            self.error = f"{case}: {error}"

    def _repeat(self, request: bytes, keys: int) -> Callable[[], None]:
        def step() -> None:
            self._timed(self._master, request)
            self.keys += keys

        return step

    def _enc_and_dec(self) -> None:
        answer = self._timed(self._master, self._requests["enc_keys"][0])
        key_id = _KEY_ID.search(answer)
        if key_id is None:
            raise LoadError("no key ID came")
        self._timed(self._slave, self._dec_head + key_id[1] + self._dec_tail)
        self.keys += 2

    def _enc_and_dec_many(self) -> None:
        key_ids = _KEY_ID.findall(self._timed(self._master, self._many))
        document = {"key_IDs": [{"key_ID": key_id.decode()} for key_id in key_ids]}
        self._timed(self._slave, self._slave.post(self._slave_path, document))
        self.keys += 2 * len(key_ids)

    def _timed(self, connection: Connection, request: bytes) -> bytes:
        began = time.perf_counter()
        answer = connection.exchange(request)
        self.took_s.append(time.perf_counter() - began)
        return answer

    def close(self) -> None:
        """Close both connections."""
        self._master.close()
        self._slave.close()


class Load:
    """Every pair there is, and what they are told to do."""

    def __init__(self) -> None:
        self._pairs: list[Pair] = []

    def do(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One action."""
        if asked["do"] == "open":
            directory, kmes = Path(asked["directory"]), asked["kmes"]
            for master, slave in asked["saes"]:
                ends = [
                    Connection(directory, sae, kme, kmes[kme])
                    for sae, kme in ((master, "kme-a"), (slave, "kme-b"))
                ]
                self._pairs.append(Pair(ends[0], ends[1], (master, slave)))
            return {"connections": 2 * len(self._pairs)}
        if asked["do"] == "run":
            return self._run(asked["case"], asked["seconds"])
        for pair in self._pairs:
            pair.close()
        self._pairs = []
        return {}

    def _run(self, case: str, seconds: float) -> dict[str, Any]:
        began = time.monotonic()
        threads = [
            threading.Thread(target=pair.run, args=(case, began + seconds)) for pair in self._pairs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed_s = time.monotonic() - began
        errors = [pair.error for pair in self._pairs if pair.error]
        if errors:
            raise LoadError(errors[0])
        took = sorted(each for pair in self._pairs for each in pair.took_s)
        return {
            "requests": len(took),
            "keys": sum(pair.keys for pair in self._pairs),
            "seconds": elapsed_s,
            "p50_us": 1e6 * took[len(took) // 2],
            "p99_us": 1e6 * took[len(took) * 99 // 100],
        }


if __name__ == "__main__":
    answer_lines(Load().do, OSError, LoadError)
