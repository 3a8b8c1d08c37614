"""Two cores in memory run the whole protocol: first epoch, streams, rekey, endings."""

from __future__ import annotations

import os

import pytest

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Aead, KemAlgorithm, Mode
from qproxy.tunnel.events import (
    CreditAvailable,
    EpochCommitted,
    EpochConfirmed,
    EpochDue,
    HandshakeCompleted,
    RoundTrip,
    StreamAccepted,
    StreamHalfClosed,
    StreamRefused,
    StreamRequested,
    StreamReset,
    TunnelClosed,
    TunnelEstablished,
)
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.slots import DataSlots
from tests.tunnel.helpers import (
    CLIENT,
    SERVER,
    Pair,
    established,
    make_pair,
    qkd_keys,
    replace,
    tunnel_context,
)

BOTH = (Role.CLIENT, Role.SERVER)


def open_stream(pair: Pair, service: str = "web") -> int:
    stream_id = pair.client.open_stream(service, client_address="127.0.0.1:5000", now=pair.now)
    pair.pump()
    pair.server.accept_stream(stream_id)
    pair.pump()
    return stream_id


def send_all(pair: Pair, sender: Role, stream_id: int, data: bytes) -> None:
    receiver = Role.SERVER if sender is Role.CLIENT else Role.CLIENT
    view = memoryview(data)
    consumed = 0
    while view:
        view = view[pair.end(sender).send_data(stream_id, view) :]
        pair.pump()
        arrived = len(pair.received(receiver, stream_id))
        pair.end(receiver).data_consumed(stream_id, arrived - consumed, pair.now)
        consumed = arrived
        pair.pump()


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("step", [0, 1, 777])
def test_first_epoch(mode: Mode, step: int) -> None:
    pair = established(mode=mode, step=step)
    for role in BOTH:
        assert pair.end(role).established
        assert pair.last(role, HandshakeCompleted).group == "X25519MLKEM768"
        committed = pair.last(role, EpochCommitted)
        assert (committed.epoch, committed.mode) == (1, mode)
        assert pair.of(role, TunnelEstablished)
        assert pair.of(role, RoundTrip)
    assert pair.of(Role.CLIENT, EpochDue)[0].reason is Reason.INITIAL
    assert pair.of(Role.CLIENT, EpochConfirmed)[0].epoch == 1
    ids = {pair.last(role, EpochCommitted).epoch_id for role in BOTH}
    assert len(ids) == 1


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("kem", list(KemAlgorithm))
def test_data_both_ways_under_every_suite(aead: Aead, kem: KemAlgorithm) -> None:
    pair = established(
        replace(CLIENT, aead=aead, kem=kem), replace(SERVER, kem=KemAlgorithm.ML_KEM_768)
    )
    assert pair.last(Role.SERVER, EpochCommitted).aead is aead
    assert pair.last(Role.SERVER, EpochCommitted).kem is kem
    stream_id = open_stream(pair)
    upload, download = os.urandom(700_000), os.urandom(300_000)
    send_all(pair, Role.CLIENT, stream_id, upload)
    send_all(pair, Role.SERVER, stream_id, download)
    assert pair.received(Role.SERVER, stream_id) == upload
    assert pair.received(Role.CLIENT, stream_id) == download


def test_streams_open_from_both_ends() -> None:
    pair = established()
    from_client = open_stream(pair)
    from_server = pair.server.open_stream("db", now=pair.now)
    pair.pump()
    pair.client.accept_stream(from_server)
    pair.pump()
    assert (from_client % 2, from_server % 2) == (1, 0)
    assert pair.last(Role.CLIENT, StreamRequested).service == "db"
    assert pair.last(Role.SERVER, StreamAccepted).stream_id == from_server


@pytest.mark.parametrize("mode", list(Mode))
def test_rekey_keeps_data_flowing(mode: Mode) -> None:
    pair = established()
    stream_id = open_stream(pair)
    sent = bytearray()
    for number in range(2, 8):
        pair.start_epoch(mode, qkd_keys(f"key-{number}") if mode is Mode.HYBRID else [])
        for role in BOTH:
            chunk = os.urandom(5000)
            pair.end(role).send_data(stream_id, memoryview(chunk))
            if role is Role.CLIENT:
                sent += chunk
        pair.pump()
        for role in BOTH:
            assert pair.last(role, EpochCommitted).epoch == number
            assert pair.end(role).epoch == number
    assert pair.received(Role.SERVER, stream_id) == sent
    assert pair.last(Role.SERVER, EpochCommitted).qkd_ever


def test_half_close_each_way() -> None:
    pair = established()
    stream_id = open_stream(pair)
    pair.client.send_data(stream_id, memoryview(b"request"))
    pair.client.half_close(stream_id, pair.now)
    pair.pump()
    assert pair.of(Role.SERVER, StreamHalfClosed)
    pair.server.data_consumed(stream_id, 7, pair.now)
    pair.server.send_data(stream_id, memoryview(b"answer"))
    pair.server.half_close(stream_id, pair.now)
    pair.pump()
    assert pair.received(Role.CLIENT, stream_id) == b"answer"
    pair.client.data_consumed(stream_id, 6, pair.now)
    assert len(pair.client.session.streams) == len(pair.server.session.streams) == 0


def test_refused_and_reset() -> None:
    pair = established()
    refused = pair.client.open_stream("nope", now=pair.now)
    pair.pump()
    pair.server.refuse_stream(refused, Reason.SERVICE_UNKNOWN, pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, StreamRefused).reason is Reason.SERVICE_UNKNOWN
    stream_id = open_stream(pair)
    pair.server.send_data(stream_id, memoryview(b"crossing"))
    pair.client.reset_stream(stream_id, Reason.CONNECTION_RESET, pair.now)
    pair.pump()
    assert pair.last(Role.SERVER, StreamReset).reason is Reason.CONNECTION_RESET
    assert pair.client.session.unread == 0


def test_credit_stops_a_stream_and_not_its_neighbour() -> None:
    pair = established()
    slow, quick = open_stream(pair), open_stream(pair)
    data = memoryview(bytes(1 << 20))
    taken = 0
    while count := pair.client.send_data(slow, data):
        taken += count
        pair.pump()
    assert taken == 128 * 1024
    assert pair.client.send_data(quick, memoryview(b"still moves")) == 11
    pair.pump()
    assert pair.received(Role.SERVER, quick) == b"still moves"
    assert not pair.of(Role.CLIENT, CreditAvailable)
    pair.server.data_consumed(slow, taken, pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, CreditAvailable).stream_id == slow
    assert pair.client.sendable(slow) > 0


def test_orderly_end_is_clean_on_both_sides() -> None:
    pair = established()
    stream_id = open_stream(pair)
    pair.client.end(Reason.SHUTDOWN, pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, TunnelClosed) == TunnelClosed(Reason.SHUTDOWN, clean=True)
    assert pair.last(Role.SERVER, TunnelClosed) == TunnelClosed(Reason.SHUTDOWN, clean=True)
    assert pair.last(Role.SERVER, StreamReset).stream_id == stream_id


def test_eof_without_end_is_a_truncation() -> None:
    pair = established()
    stream_id = open_stream(pair)
    with pytest.raises(RemoteProtocolError) as caught:
        pair.server.receive_eof(pair.now)
    assert caught.value.reason is Reason.TRUNCATED
    pair.collect(Role.SERVER)
    assert pair.last(Role.SERVER, StreamReset).stream_id == stream_id
    assert not pair.last(Role.SERVER, TunnelClosed).clean


def test_streams_need_an_established_tunnel() -> None:
    pair = make_pair()
    with pytest.raises(LocalProtocolError):
        pair.client.open_stream("web", now=pair.now)


def test_a_stream_that_was_not_answered_cannot_be_half_closed() -> None:
    pair = established()
    stream_id = pair.client.open_stream("web", now=pair.now)
    pair.pump()
    with pytest.raises(LocalProtocolError):
        pair.server.half_close(stream_id, pair.now)
    pair.server.accept_stream(stream_id)
    pair.server.half_close(stream_id, pair.now)
    pair.pump()
    assert pair.last(Role.CLIENT, StreamHalfClosed).stream_id == stream_id


def test_bytes_that_drip_in_are_no_sign_of_life() -> None:
    pair = established()
    pair.client.session.going_away = True  # neither rekeys nor streams disturb the clock
    drip = b"\x17\x03\x03\x40\x00" + bytes(2000)
    for byte in drip:
        pair.now += 1.0
        pair.server.receive_data(bytes([byte]), pair.now)
        pair.server.handle_timeout(pair.now)
        if pair.server.closed:
            break
    pair.collect(Role.SERVER)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.PEER_SILENT


@pytest.mark.parametrize("size", [1, 2048, 2049, 16377, 16378, 3 * 16377, 100_000])
@pytest.mark.parametrize("aead", list(Aead))
def test_data_received_into_slots_arrives_as_it_was(size: int, aead: Aead) -> None:
    pair = established(replace(CLIENT, aead=aead))
    stream_id = open_stream(pair)
    slots = DataSlots()
    data = os.urandom(size)
    for round_number in range(2):  # the second time over what the first left in the slots
        rest = memoryview(data)
        for view in slots.views(size):
            count = min(len(view), len(rest))
            view[:count] = rest[:count]
            rest = rest[count:]
        assert not rest
        pair.client.send_slots(stream_id, slots, size)
        pair.pump()
        assert pair.received(Role.SERVER, stream_id) == data * (round_number + 1)
        pair.server.data_consumed(stream_id, size, pair.now)
        pair.pump()
    other = open_stream(pair)
    pair.client.send_data(other, memoryview(b"another stream between"))
    pair.client.send_slots(stream_id, slots, size)
    pair.pump()
    assert pair.received(Role.SERVER, other) == b"another stream between"
    assert pair.received(Role.SERVER, stream_id) == data * 3


def test_slots_hold_no_more_than_credit_allows() -> None:
    pair = established()
    stream_id = open_stream(pair)
    with pytest.raises(LocalProtocolError):
        pair.client.send_slots(stream_id, DataSlots(), 128 * 1024 + 1)
    assert 0 < pair.client.sendable(stream_id) <= 128 * 1024


def test_a_limit_cuts_the_views_of_slots() -> None:
    slots = DataSlots()
    assert sum(len(view) for view in slots.views(1)) == 1
    assert sum(len(view) for view in slots.views(16377)) == 16377
    assert [len(view) for view in slots.views(40_000)] == [16377, 16377, 7246]
    assert sum(len(view) for view in slots.views(1 << 30)) == slots.capacity


def test_an_empty_alternative_name_is_nobodys() -> None:
    """What a gateway holds for an unknown peer has no name, and must match none."""
    unknown = TunnelSettings(local_name="gw-b", peer_name="")
    pair = make_pair(
        server=unknown, client_tls=tunnel_context(Role.CLIENT, "", common_name="nobody")
    )
    with pytest.raises(RemoteProtocolError) as refused:
        pair.pump()
    assert refused.value.reason is Reason.PEER_NAME_MISMATCH
