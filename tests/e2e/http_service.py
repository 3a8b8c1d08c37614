"""A small HTTP/1.1 server for whole bodies: makes them up by size, and answers uploads with a hash.

python http_service.py        says on standard error, as JSON, where it listens

GET /blob/SIZE                SIZE bytes; every 64 KiB begins with its number
PUT /anything                 the SHA-256 of the body, in hex
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK_BYTES = 1 << 16
_FILL = hashlib.shake_256(b"blob").digest(BLOCK_BYTES - 8)


def blob(size: int) -> Iterator[bytes]:
    """The body of /blob/SIZE in blocks."""
    for start in range(0, size, BLOCK_BYTES):
        block = start.to_bytes(8, "big") + _FILL
        yield block[: size - start]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def do_GET(self) -> None:
        size = int(self.path.removeprefix("/blob/"))
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for block in blob(size):
            self.wfile.write(block)

    def do_PUT(self) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        while left:
            data = self.rfile.read(min(left, 1 << 18))
            if not data:
                return
            digest.update(data)
            left -= len(data)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing: what matters comes back in answers."""


def main() -> None:
    """Serve until killed."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        host, port = server.server_address[:2]
        ready = {"event": "http_ready", "address": f"{host!s}:{port}"}
        print(json.dumps(ready), file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
