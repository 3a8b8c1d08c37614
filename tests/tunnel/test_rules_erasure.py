"""Rule R4 of docs/protocol.md: erasure, switches, and records in flight."""

from __future__ import annotations

from typing import Any

import pytest

from qproxy.crypto.records import RecordOpener
from qproxy.crypto.schedule import PendingEpoch
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import KemAlgorithm, Mode
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.constants import MAX_RECORDS_BEFORE_SERVER_SWITCH
from qproxy.tunnel.events import TunnelClosed
from qproxy.tunnel.frames import FrameType
from qproxy.tunnel.messages import decode_epoch_message
from qproxy.tunnel.settings import Role
from qproxy.tunnel.states import ServerEpochState
from tests.tunnel.adversary import frame, listen_in, other, seal, split_records
from tests.tunnel.helpers import KEM, established, qkd_keys, replace
from tests.tunnel.rules import BOTH, FIRST_OR_LATER, MODES, fails, keys_for, ready, server_epochs
from tests.tunnel.test_connection import open_stream

# --- R4: erasure, and records in flight ------------------------------------------------------


class RecordingKem:
    """A KEM provider that keeps the shared secrets it gave out, to see them overwritten."""

    name = "recording"

    def __init__(self) -> None:
        self.secrets: list[bytearray] = []
        self.pairs: list[Any] = []

    def generate(self, algorithm: KemAlgorithm) -> Any:
        real = KEM.generate(algorithm)
        recorder = self

        class Recorded:
            encapsulation_key = real.encapsulation_key
            wiped = False

            def decapsulate(self, ciphertext: bytes) -> bytearray:
                secret = real.decapsulate(ciphertext)
                recorder.secrets.append(secret)
                return secret

            def wipe(self) -> None:
                self.wiped = True
                real.wipe()

        self.pairs.append(Recorded())
        return self.pairs[-1]

    def encapsulate(self, algorithm: KemAlgorithm, key: bytes) -> tuple[bytearray, bytes]:
        secret, ciphertext = KEM.encapsulate(algorithm, key)
        self.secrets.append(secret)
        return secret, ciphertext


def record_pending(connection: Connection) -> list[PendingEpoch]:
    """Every PendingEpoch one end derives."""
    chain: Any = connection._epochs.chain  # type: ignore[union-attr]
    derived: list[PendingEpoch] = []
    derive = chain.derive

    def recording(*args: Any, **named: Any) -> PendingEpoch:
        derived.append(derive(*args, **named))
        return derived[-1]

    chain.derive = recording
    return derived


def secrets_of(pending: PendingEpoch) -> list[bytearray]:
    found = [getattr(pending, name) for name in vars(pending)]
    secrets = [value for value in found if isinstance(value, bytearray)]
    assert len(secrets) == 5
    return secrets


@MODES
@FIRST_OR_LATER
def test_r04_a_commit_erases_what_the_epoch_was_made_from(mode: Mode, first: bool) -> None:
    pair = ready(first)
    kems = {role: RecordingKem() for role in BOTH}
    for role in BOTH:
        pair.end(role)._epochs._kem = kems[role]  # type: ignore[union-attr]
    derived = {role: record_pending(pair.end(role)) for role in BOTH}
    old_chain_keys = [pair.end(role)._epochs.chain._chain_key for role in BOTH]  # type: ignore[union-attr]
    exporters = [pair.end(role)._epochs._exporter for role in BOTH]  # type: ignore[union-attr]
    assert all(map(any, old_chain_keys))
    mine, theirs = keys_for(mode), keys_for(mode)
    pair.server_keys = lambda _needed: theirs
    pair.start_epoch(mode, mine)
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == (1 if first else 2)
    for role in BOTH:
        assert len(kems[role].secrets) == len(derived[role]) == 1
        assert kems[role].secrets[0] == bytes(32)
        assert not any(map(any, secrets_of(derived[role][0])))
    assert kems[Role.CLIENT].pairs[0].wiped
    assert not any(map(any, old_chain_keys))
    assert all(exporter == b"" for exporter in exporters)
    assert all(key.key == b"" for key in [*mine, *theirs])


@pytest.mark.parametrize("how", ["reject", "abort", "timeout"])
def test_r04_a_failed_attempt_erases_its_secrets_too(how: str) -> None:
    pair = established()
    kems = {role: RecordingKem() for role in BOTH}
    for role in BOTH:
        pair.end(role)._epochs._kem = kems[role]  # type: ignore[union-attr]
    derived = {role: record_pending(pair.end(role)) for role in BOTH}
    theirs = qkd_keys("a-key", salt="other" if how == "abort" else "")
    if how == "reject":
        pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    else:
        pair.server_keys = lambda _needed: theirs
    mine = qkd_keys("a-key")
    pair.start_epoch(Mode.HYBRID, mine)
    if how == "timeout":
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
        pair.client.handle_timeout(pair.now + 10)
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == 1
    assert mine[0].key == b""
    assert how == "reject" or theirs[0].key == b""
    assert kems[Role.CLIENT].pairs[0].wiped
    for role in BOTH:
        assert not any(map(any, kems[role].secrets))
        assert not any(any(map(any, secrets_of(pending))) for pending in derived[role])


@MODES
def test_r04_the_end_of_the_tunnel_erases_everything(mode: Mode) -> None:
    pair = established()
    pair.server_keys = None
    keys = keys_for(mode)
    pair.start_epoch(mode, keys)
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    chain_keys = [pair.end(role)._epochs.chain._chain_key for role in BOTH]  # type: ignore[union-attr]
    pending = server_epochs(pair)._pending
    for role in BOTH:
        with pytest.raises(RemoteProtocolError):
            pair.end(role).receive_eof(pair.now)
        assert pair.end(role)._opener is None
        assert pair.end(role)._next_opener is None
        assert pair.end(role)._writer._sealer is None
    assert not any(map(any, chain_keys))
    assert all(key.key == b"" for key in keys)
    if mode is Mode.CLASSICAL_ONLY:
        assert not any(map(any, secrets_of(pending)))


def test_r04_the_old_traffic_keys_go_at_each_directions_switch() -> None:
    pair = established()
    old = {role: pair.end(role)._opener for role in BOTH}
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert pair.client._opener is old[Role.CLIENT]
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    assert pair.server._opener is not old[Role.SERVER]
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert pair.client._opener is not old[Role.CLIENT]
    for role in BOTH:
        opener = pair.end(role)._opener
        assert isinstance(opener, RecordOpener)
        assert opener.records == 0
        assert pair.end(role)._next_opener is None


@pytest.mark.parametrize("sender", BOTH)
def test_r04_a_record_under_the_old_key_after_the_switch_does_not_open(sender: Role) -> None:
    pair = established()
    old = pair.end(sender)._writer._sealer
    pair.start_epoch()
    pair.pump()
    pair.end(sender)._writer._sealer = old
    late = seal(pair, sender, frame(FrameType.PING, 0, bytes(8)))
    receiver = other(sender)
    fails(pair, Reason.BAD_RECORD_MAC, lambda: pair.deliver(receiver, late), receiver)


def test_r04_the_clients_switch_is_its_very_next_record() -> None:
    for content in (
        frame(FrameType.PING, 0, bytes(8)),
        frame(FrameType.DATA, 1, b"late"),
        frame(FrameType.SWITCH, 0, bytes([0, 0, 0, 3])),
        frame(FrameType.SWITCH, 0, bytes([0, 0, 0, 1])),
    ):
        pair = established()
        open_stream(pair)
        old = pair.client._writer._sealer
        pair.start_epoch()
        pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
        pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
        confirm, _switch, *_ = split_records(pair.take_output(Role.CLIENT))
        pair.deliver(Role.SERVER, confirm)
        pair.client._writer._sealer = old
        assert old is not None
        old.records -= 1
        record = seal(pair, Role.CLIENT, content)
        fails(
            pair,
            Reason.UNEXPECTED_MESSAGE,
            lambda pair=pair, record=record: pair.deliver(Role.SERVER, record),  # type: ignore[misc]
            Role.SERVER,
        )
        assert not pair.received(Role.SERVER, 1)


def test_r04_the_servers_switch_is_bounded_by_records() -> None:
    pair = established()
    old = pair.server._writer._sealer
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert pair.client._records_to_switch == MAX_RECORDS_BEFORE_SERVER_SWITCH
    pair.client._records_to_switch = 3
    pong = frame(FrameType.STREAM_CREDIT, 2, bytes(8))
    assert pair.server._writer._sealer is old
    open_id = pair.server.open_stream("web", now=pair.now)
    assert open_id == 2
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    record = seal(pair, Role.SERVER, pong)
    fails(pair, Reason.UNEXPECTED_MESSAGE, lambda: pair.deliver(Role.CLIENT, record), Role.CLIENT)


@pytest.mark.parametrize("waiting", BOTH)
def test_r04_the_switch_is_bounded_by_time(waiting: Role) -> None:
    pair = established()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    if waiting is Role.SERVER:
        confirm, *_ = split_records(pair.take_output(Role.CLIENT))
        pair.deliver(Role.SERVER, confirm)
        assert server_epochs(pair).state is ServerEpochState.COMMITTED
    connection = pair.end(waiting)
    due = connection.next_timeout()
    assert due is not None
    assert due <= pair.now + 10.0
    connection.handle_timeout(pair.now + 10.0)
    pair.collect(waiting)
    assert pair.last(waiting, TunnelClosed).reason is Reason.EPOCH_TIMEOUT


def test_r04_no_offer_before_both_switches() -> None:
    pair = established()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert not pair.client.epoch_exchange_idle
    keys = qkd_keys("too-early")
    with pytest.raises(LocalProtocolError):
        pair.start_epoch(Mode.HYBRID, keys)
    assert keys[0].key == b""
    pair.pump()
    assert pair.client.epoch_exchange_idle


def test_r04_an_offer_before_the_clients_switch_is_fatal() -> None:
    pair = established()
    old = pair.client._writer._sealer
    offers = listen_in(pair.client)
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    confirm, *_ = split_records(pair.take_output(Role.CLIENT))
    pair.deliver(Role.SERVER, confirm)
    assert old is not None
    pair.client._writer._sealer = old
    old.records -= 1
    next_offer = replace(decode_epoch_message(offers[0]), epoch=3).encode()
    record = seal(pair, Role.CLIENT, frame(FrameType.EPOCH, 0, next_offer))
    fails(pair, Reason.UNEXPECTED_MESSAGE, lambda: pair.deliver(Role.SERVER, record), Role.SERVER)
