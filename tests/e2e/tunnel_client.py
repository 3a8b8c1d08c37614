"""A tunnel client made of the program's own core, over a blocking socket, in a test's hands."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from OpenSSL import SSL

from qproxy.crypto import labels
from qproxy.crypto.kem import load_kem_provider
from qproxy.errors import Reason
from qproxy.keys import QkdKey
from qproxy.modes import KemProviderChoice, Mode
from qproxy.tls.context import client_context
from qproxy.tls.identity import TlsIdentity
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import Event
from qproxy.tunnel.settings import Role, TunnelSettings
from tests import pki
from tests.e2e.processes import DEADLINE_S
from tests.e2e.sockets import Address, connect

EventT = TypeVar("EventT")


def tunnel_tls(identity: TlsIdentity | None) -> SSL.Context:
    """TLS 1.3 with the tunnel's ALPN, as gateways dial."""
    trust = pki.authority().trust
    return client_context(trust=trust, identity=identity, alpn=[labels.ALPN], tls13_only=True)


class TunnelClient:
    """Dials a gateway as ``gw-a``.

    Attributes:
        connection: the core.
        events: everything it has told so far.
    """

    def __init__(self, address: Address) -> None:
        self.events: list[Event] = []
        self._sock: socket.socket = connect(address)
        self.connection = Connection(
            Role.CLIENT,
            TunnelSettings(
                local_name="gw-a",
                peer_name="gw-b",
                local_sae_id="gw-a",
                peer_sae_id="gw-b",
                key_sources=("etsi-qkd-014",),
            ),
            tls_context=tunnel_tls(pki.identity(pki.authority(), "gw-a")),
            kem=load_kem_provider(KemProviderChoice.AUTO),
            random_bytes=os.urandom,
            now=time.monotonic(),
        )

    def wait_for(self, kind: type[EventT], *, after: int = 0) -> EventT:
        """The first event of a kind since ``after``. Carries bytes until it comes."""
        until = time.monotonic() + DEADLINE_S
        while True:
            self._flush()
            for event in self.events[after:]:
                if isinstance(event, kind):
                    return event
            assert time.monotonic() < until, f"no {kind.__name__} among {self.events}"
            buffer = self.connection.receive_buffer()
            count = self._sock.recv_into(buffer)
            assert count, f"the gateway ended the connection after {self.events}"
            self.connection.received(count, time.monotonic())
            self.events += self.connection.events()

    def do(self, action: Callable[[Connection, float], object]) -> None:
        """Call the core and send what it has to say."""
        action(self.connection, time.monotonic())
        self.events += self.connection.events()
        self._flush()

    def offer(self, *keys: QkdKey, reason: Reason = Reason.OPERATOR) -> None:
        """Make an OFFER: hybrid with keys, classical-only without."""
        mode = Mode.HYBRID if keys else Mode.CLASSICAL_ONLY
        self.do(lambda core, now: core.start_epoch(mode, reason, list(keys), now))

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> TunnelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        while data := self.connection.data_to_send():
            self.connection.data_sent(self._sock.send(data))
