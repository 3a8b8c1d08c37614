"""Plain TLS 1.3 handshakes with certificates both ways, run as two programs over loopback.

    python -m bench.tls_handshake service PKI      prints its port, then serves until ended
    python -m bench.tls_handshake client PKI       reads one JSON request a line, answers with one

Blocking sockets and pyOpenSSL, with the very contexts that tunnels use: the same certificates, the
same OpenSSL, the same groups. The service sends one byte when its side is over, since a client that
has sent its last message does not know yet whether its certificate was taken.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from bench.lines import answer_lines
from bench.pairs.base import FAR_NAME, NEAR_NAME
from qproxy.modes import ClientAuth
from qproxy.tls.context import client_context, expect_server_name, server_context
from qproxy.tls.identity import TlsIdentity, TrustStore

#: How long one system call may block, in seconds.
STALL_S = 20.0


def near_context(pki: Path) -> SSL.Context:
    """The near end's: dials."""
    return client_context(
        trust=TrustStore.load(pki / "ca.pem"), identity=_identity(pki, NEAR_NAME), tls13_only=True
    )


def far_context(pki: Path) -> SSL.Context:
    """The far end's: listens, and wants a certificate."""
    return server_context(
        _identity(pki, FAR_NAME),
        trust=TrustStore.load(pki / "ca.pem"),
        client_auth=ClientAuth.REQUIRED,
        tls13_only=True,
    )


def _identity(pki: Path, name: str) -> TlsIdentity:
    return TlsIdentity.load(pki / f"{name}.pem", pki / f"{name}.key")


def run_service(pki: Path) -> None:
    """Print the port, then serve one connection after the other until the process is ended."""
    context = far_context(pki)
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        sock, _ = listening.accept()
        with sock:
            _prepare(sock)
            try:
                connection = SSL.Connection(context, sock)
                connection.set_accept_state()
                connection.do_handshake()
                connection.send(b"!")
                sock.recv(1)
            except (OSError, SSL.Error):
                continue  # The client tells.


def handshakes(context: SSL.Context, port: int, count: int, pause_s: float) -> dict[str, Any]:
    """Make so many connections, one after the other.

    Returns:
        For each, in nanoseconds from the TCP connection on: when the client's side was over and
        when the service's word was there. And the group they agreed on.

    Raises:
        OSError, SSL.Error: one did not come about.
    """
    client_ns, both_ns, group = [], [], ""
    for _ in range(count):
        time.sleep(pause_s)
        with socket.create_connection(("127.0.0.1", port), STALL_S) as sock:
            _prepare(sock)
            began = time.monotonic_ns()
            connection = SSL.Connection(context, sock)
            connection.set_connect_state()
            expect_server_name(connection, FAR_NAME)
            connection.do_handshake()
            client_ns.append(time.monotonic_ns() - began)
            connection.recv(1)
            both_ns.append(time.monotonic_ns() - began)
            group = connection.get_group_name() or "none"
    return {"client_ns": client_ns, "both_ns": both_ns, "group": group}


def _prepare(sock: socket.socket) -> None:
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def run_client(pki: Path) -> None:
    """Do what is asked, line by line."""
    context = near_context(pki)

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        return handshakes(context, request["port"], request["count"], request["pause_s"])

    answer_lines(handle, OSError, SSL.Error)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in {"service", "client"}:
        sys.exit("usage: python -m bench.tls_handshake service|client PKI")
    _run = run_service if sys.argv[1] == "service" else run_client
    _run(Path(sys.argv[2]))
