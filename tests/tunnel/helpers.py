"""Two tunnel cores wired together in memory, with a clock and randomness that tests control."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from qproxy.crypto import labels
from qproxy.crypto.kem import load_kem_provider
from qproxy.errors import Reason
from qproxy.keys import QkdKey
from qproxy.modes import ClientAuth, KemProviderChoice, Mode, Policy
from qproxy.tls.context import client_context, server_context
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import DataReceived, Event, KeysNeeded
from qproxy.tunnel.settings import Role, TunnelSettings
from tests import pki

EventT = TypeVar("EventT")

KEM = load_kem_provider(KemProviderChoice.OPENSSL)
CLIENT = TunnelSettings(
    local_name="gw-a",
    peer_name="gw-b",
    local_sae_id="sae-a",
    peer_sae_id="sae-b",
    key_sources=("etsi-qkd-014",),
)
SERVER = TunnelSettings(
    local_name="gw-b",
    peer_name="gw-a",
    local_sae_id="sae-b",
    peer_sae_id="sae-a",
    key_sources=("etsi-qkd-014",),
)


class DeterministicBytes:
    """Random bytes from a seed: SHA-256 of a counter."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, length: int) -> bytes:
        self._count += 1
        block = hashlib.sha256(f"{self._seed}/{self._count}".encode()).digest()
        return (block * (length // 32 + 1))[:length]


@functools.cache
def tunnel_context(role: Role, name: str, **variant: Any) -> Any:
    """A TLS context of one gateway, as the runtime makes it."""
    ca = pki.authority()
    who = pki.identity(ca, name, **variant)
    if role is Role.CLIENT:
        return client_context(trust=ca.trust, identity=who, alpn=[labels.ALPN], tls13_only=True)
    return server_context(
        who,
        trust=ca.trust,
        client_auth=ClientAuth.REQUIRED,
        alpn=[labels.ALPN],
        tls13_only=True,
    )


def qkd_keys(*ids: str, size: int = 32, salt: str = "") -> list[QkdKey]:
    """Fresh key objects; the same ID and salt give the same secret."""
    return [
        QkdKey(key_id, bytearray(hashlib.shake_256(f"{salt}{key_id}".encode()).digest(size)))
        for key_id in ids
    ]


@dataclass
class Pair:
    """A client and a server core and the wire between them.

    Attributes:
        now: the time both cores are told.
        events: all events so far, by role.
        wire: everything each end has sent, in pieces as it was fetched.
    """

    client: Connection
    server: Connection
    now: float = 1000.0
    events: dict[Role, list[Event]] = field(
        default_factory=lambda: {Role.CLIENT: [], Role.SERVER: []}
    )
    wire: dict[Role, bytearray] = field(
        default_factory=lambda: {Role.CLIENT: bytearray(), Role.SERVER: bytearray()}
    )
    step: int = 0  # bytes per delivery; 0 for all at once
    server_keys: Callable[[KeysNeeded], Sequence[QkdKey] | Reason] | None = None

    def end(self, role: Role) -> Connection:
        return self.client if role is Role.CLIENT else self.server

    def take_output(self, role: Role) -> bytes:
        """What one end wants to send, taken off it."""
        connection = self.end(role)
        data = bytes(connection.data_to_send())
        connection.data_sent(len(data))
        self.wire[role] += data
        return data

    def deliver(self, role: Role, data: bytes) -> None:
        """Give bytes to one end, whole or in steps, and answer its requests for keys."""
        connection = self.end(role)
        start = 0
        while start < len(data):
            step = min(self.step or len(data), len(connection.receive_buffer()))
            try:
                connection.receive_data(data[start : start + step], self.now)
            finally:
                self.collect(role)
            start += step

    def collect(self, role: Role) -> None:
        """Fetch events, with data copied out of the core's buffer, and answer KeysNeeded."""
        for event in self.end(role).events():
            self.events[role].append(
                replace(event, views=[memoryview(event.data)])
                if isinstance(event, DataReceived)
                else event
            )
            if isinstance(event, KeysNeeded) and self.server_keys is not None:
                answer = self.server_keys(event)
                if isinstance(answer, Reason):
                    self.server.refuse_keys(event.epoch, event.attempt, answer)
                else:
                    self.server.provide_keys(event.epoch, event.attempt, answer, self.now)

    def pump(self) -> None:
        """Carry bytes both ways until nothing moves."""
        moved = True
        while moved:
            moved = False
            for sender, receiver in ((Role.CLIENT, Role.SERVER), (Role.SERVER, Role.CLIENT)):
                self.collect(sender)
                data = self.take_output(sender)
                if data:
                    moved = True
                    self.deliver(receiver, data)

    def of(self, role: Role, kind: type[EventT]) -> list[EventT]:
        """Events of one kind seen by one end."""
        return [event for event in self.events[role] if isinstance(event, kind)]

    def last(self, role: Role, kind: type[EventT]) -> EventT:
        found = self.of(role, kind)
        if not found:
            raise AssertionError(f"no {kind.__name__} among {self.events[role]}")
        return found[-1]

    def received(self, role: Role, stream_id: int) -> bytes:
        """All data one end received on a stream."""
        return b"".join(
            bytes(event.data)
            for event in self.of(role, DataReceived)
            if event.stream_id == stream_id
        )

    def start_epoch(
        self,
        mode: Mode = Mode.CLASSICAL_ONLY,
        keys: Sequence[QkdKey] = (),
        reason: Reason = Reason.OPERATOR,
    ) -> None:
        self.client.start_epoch(mode, reason, keys, self.now)


def make_pair(
    client: TunnelSettings = CLIENT,
    server: TunnelSettings = SERVER,
    *,
    client_tls: Any = None,
    server_tls: Any = None,
    step: int = 0,
) -> Pair:
    """Two cores that have not exchanged a byte."""
    now = 1000.0
    pair = Pair(
        client=Connection(
            Role.CLIENT,
            client,
            tls_context=client_tls or tunnel_context(Role.CLIENT, client.local_name),
            kem=KEM,
            random_bytes=DeterministicBytes("client"),
            now=now,
        ),
        server=Connection(
            Role.SERVER,
            server,
            tls_context=server_tls or tunnel_context(Role.SERVER, server.local_name),
            kem=KEM,
            random_bytes=DeterministicBytes("server"),
            now=now,
        ),
        now=now,
        step=step,
    )
    pair.server_keys = lambda needed: qkd_keys(*(key.key_id for key in needed.keys))
    return pair


def established(
    client: TunnelSettings = CLIENT,
    server: TunnelSettings = SERVER,
    *,
    mode: Mode = Mode.HYBRID,
    **options: Any,
) -> Pair:
    """Two cores under their first epoch, pings answered."""
    pair = make_pair(client, server, **options)
    pair.pump()
    keys = qkd_keys("first-key") if mode is Mode.HYBRID else []
    pair.client.start_epoch(mode, Reason.INITIAL, keys, pair.now)
    pair.pump()
    return pair


def with_policy(settings: TunnelSettings, policy: Policy, **changes: Any) -> TunnelSettings:
    """The same settings under another policy."""
    return replace(settings, policy=policy, **changes)
