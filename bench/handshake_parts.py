"""Handshakes between two ends in one process, in memory: what they cost without any waiting.

    python -m bench.handshake_parts PKI COUNT      prints how long they took, as JSON

A program of its own: what else a process has loaded has a share in what Python costs. Both ends'
work is done one after the other on one core. What a real handshake takes beyond this is for
sockets, for waking up processes, and for the KME where a key has to be fetched.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from OpenSSL import SSL

from bench.pairs.base import FAR_NAME, NEAR_NAME
from bench.stats import BenchError
from bench.tls_handshake import far_context, near_context
from qproxy.crypto import labels
from qproxy.crypto.kem import KemProvider, load_kem_provider
from qproxy.errors import Reason
from qproxy.keys import QkdKey
from qproxy.modes import KemProviderChoice, Mode, Policy
from qproxy.tls.context import expect_server_name
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import KeysNeeded
from qproxy.tunnel.settings import Role, TunnelSettings

#: Rounds of messages that no handshake needs.
_MAX_TURNS = 50
_WARM_UP = 3
_KEY_BYTES = 32
_SOURCE = "etsi-qkd-014"


@dataclass(frozen=True, slots=True)
class InMemory:
    """How long handshakes took, in seconds.

    Attributes:
        tls_s: plain TLS, both ends.
        tunnel_tls_s: a tunnel's TLS part, both ends.
        tunnel_s: a tunnel with its first epoch.
    """

    tls_s: float
    tunnel_tls_s: float
    tunnel_s: float


class InMemoryHandshakes:
    """Contexts of two ends.

    Args:
        pki: a directory with certificates.
    """

    def __init__(self, pki: Path) -> None:
        self._plain = near_context(pki), far_context(pki)
        self._near, self._far = near_context(pki), far_context(pki)
        self._near.set_alpn_protos([labels.ALPN])
        self._far.set_alpn_select_callback(lambda _connection, _offered: labels.ALPN)
        self._kem = load_kem_provider(KemProviderChoice.AUTO)

    def once(self) -> InMemory:
        """One of each. Raises BenchError where one does not come about."""
        tls_s = self._plain_tls()
        tunnel_tls_s, tunnel_s = self._tunnel()
        return InMemory(tls_s, tunnel_tls_s, tunnel_s)

    def _plain_tls(self) -> float:
        began = time.perf_counter()
        near, far = (SSL.Connection(context, None) for context in self._plain)
        near.set_connect_state()
        expect_server_name(near, FAR_NAME)
        far.set_accept_state()
        going_on = {near, far}
        for _ in range(_MAX_TURNS):
            for end, other in ((near, far), (far, near)):
                try:
                    if end in going_on:
                        end.do_handshake()
                        going_on.discard(end)
                except SSL.WantReadError:
                    pass
                _carry(end, other)
            if not going_on:
                return time.perf_counter() - began
        raise BenchError("a TLS handshake in memory does not end")

    def _tunnel(self) -> tuple[float, float]:
        began = time.perf_counter()
        near = _core(Role.CLIENT, self._near, self._kem)
        far = _core(Role.SERVER, self._far, self._kem)
        tls_s = 0.0
        for _ in range(_MAX_TURNS):
            for end, other in ((near, far), (far, near)):
                _answer(end)
                if end is near and not tls_s and near.epoch_exchange_idle:
                    tls_s = time.perf_counter() - began
                    near.start_epoch(Mode.HYBRID, Reason.INITIAL, [_key()], 0.0)
                data = bytes(end.data_to_send())
                end.data_sent(len(data))
                other.receive_data(data, 0.0)
            if near.established and far.established:
                return tls_s, time.perf_counter() - began
        raise BenchError("a tunnel handshake in memory does not end")


def _carry(sender: SSL.Connection, receiver: SSL.Connection) -> None:
    try:
        receiver.bio_write(sender.bio_read(65536))
    except SSL.WantReadError:
        return


def _core(role: Role, context: SSL.Context, kem: KemProvider) -> Connection:
    names = (NEAR_NAME, FAR_NAME) if role is Role.CLIENT else (FAR_NAME, NEAR_NAME)
    settings = TunnelSettings(
        local_name=names[0],
        peer_name=names[1],
        local_sae_id=names[0],
        peer_sae_id=names[1],
        policy=Policy.REQUIRE,
        key_sources=(_SOURCE,),
    )
    return Connection(
        role, settings, tls_context=context, kem=kem, random_bytes=os.urandom, now=0.0
    )


def _answer(end: Connection) -> None:
    """Give the server the key it asks for, as if its KME had been asked before."""
    for event in end.events():
        if isinstance(event, KeysNeeded):
            end.provide_keys(event.epoch, event.attempt, [_key()], 0.0)


def _key() -> QkdKey:
    return QkdKey("00000000-0000-4000-8000-000000000000", bytearray(b"k" * _KEY_BYTES))


def run(pki: Path, count: int) -> None:
    """Print a list with an object for each, after some that are not counted."""
    handshakes = InMemoryHandshakes(pki)
    for _ in range(_WARM_UP):
        handshakes.once()
    print(json.dumps([dataclasses.asdict(handshakes.once()) for _ in range(count)]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m bench.handshake_parts PKI COUNT")
    run(Path(sys.argv[1]), int(sys.argv[2]))
