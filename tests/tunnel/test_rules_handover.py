"""Rule R11 of docs/protocol.md: the hand-over from TLS, against a peer that forges TLS records."""

from __future__ import annotations

import pytest

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tunnel.events import EpochCommitted, StreamRequested, TunnelEstablished
from qproxy.tunnel.messages import Abort
from qproxy.tunnel.settings import Role
from qproxy.tunnel.states import Phase, ServerEpochState
from tests.tunnel.adversary import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_REQUESTED,
    TlsForger,
    intercept,
    logged_context,
    other,
    split_records,
)
from tests.tunnel.helpers import Pair, make_pair
from tests.tunnel.rules import BOTH, fails, server_epochs

# --- R11: hand-over from TLS -----------------------------------------------------------------


def forged_pair() -> tuple[Pair, TlsForger, TlsForger]:
    """A pair after its TLS handshake, and forgers that hold the client's and the server's keys."""
    log: dict[str, bytes] = {}
    pair = make_pair(
        client_tls=logged_context(Role.CLIENT, "gw-a", log),
        server_tls=logged_context(Role.SERVER, "gw-b", {}),
    )
    for role in (Role.SERVER, Role.CLIENT, Role.SERVER):
        pair.deliver(role, pair.take_output(other(role)))
    last_flight = pair.take_output(Role.SERVER)
    pair.deliver(Role.CLIENT, last_flight)
    pair.pump()
    client = TlsForger(log["CLIENT_TRAFFIC_SECRET_0"])
    server = TlsForger(log["SERVER_TRAFFIC_SECRET_0"])
    for record in split_records(last_flight):
        content, content_type = server.open(record)
        assert (content_type, content[0]) == (HANDSHAKE, 4)  # a ticket, and nothing else
    return pair, client, server


def forger_of(role: Role) -> tuple[Pair, TlsForger]:
    pair, client, server = forged_pair()
    return pair, client if role is Role.CLIENT else server


def ticket(nonce: int = 0) -> bytes:
    """A NewSessionTicket (RFC 8446 §4.6.1)."""
    body = (
        (3600).to_bytes(4, "big") + bytes(4) + bytes([1, nonce]) + b"\0\x20" + bytes(32) + b"\0\0"
    )
    return b"\x04" + len(body).to_bytes(3, "big") + body


def test_r11_the_forger_speaks_tls() -> None:
    """Without this, the tests below could pass for want of a right key."""
    pair, client, _server = forged_pair()
    sent = intercept(pair.client, lambda _message: [])
    pair.start_epoch()
    pair.deliver(Role.SERVER, client.seal(sent[0], APPLICATION_DATA))
    assert server_epochs(pair).state is ServerEpochState.ACCEPTED


@pytest.mark.parametrize("sender", BOTH)
@pytest.mark.parametrize("message", [KEY_UPDATE, KEY_UPDATE_REQUESTED], ids=["one way", "asked"])
def test_r11_key_update_is_fatal_and_not_answered(sender: Role, message: bytes) -> None:
    pair, forger = forger_of(sender)
    receiver = other(sender)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: pair.deliver(receiver, forger.seal(message, HANDSHAKE)),
        receiver,
    )
    assert pair.take_output(receiver) == b""


@pytest.mark.parametrize("message", [KEY_UPDATE, KEY_UPDATE_REQUESTED], ids=["one way", "asked"])
def test_r11_key_update_with_an_offer_outstanding_is_fatal(message: bytes) -> None:
    pair, _client, server = forged_pair()
    pair.start_epoch()
    pair.take_output(Role.CLIENT)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: pair.deliver(Role.CLIENT, server.seal(message, HANDSHAKE)),
        Role.CLIENT,
    )


def test_r11_a_server_may_send_two_tickets_and_no_more() -> None:
    pair, _client, server = forged_pair()
    for number in range(2 - server.sequence):
        pair.deliver(Role.CLIENT, server.seal(ticket(number), HANDSHAKE))
    assert not pair.client.closed
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: pair.deliver(Role.CLIENT, server.seal(ticket(9), HANDSHAKE)),
        Role.CLIENT,
    )


@pytest.mark.parametrize("count", [2, 3, 50])
def test_r11_tickets_gathered_in_one_record_are_no_way_round(count: int) -> None:
    pair, _client, server = forged_pair()
    tickets = b"".join(map(ticket, range(count)))
    record = server.seal(tickets, HANDSHAKE)
    if count + 1 <= 2:
        pair.deliver(Role.CLIENT, record)
    else:
        fails(
            pair,
            Reason.UNEXPECTED_MESSAGE,
            lambda: pair.deliver(Role.CLIENT, record),
            Role.CLIENT,
        )


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (Role.CLIENT, ticket()),
        (Role.CLIENT, b"\x01\0\0\0"),
        (Role.SERVER, b"\x0d\0\0\x03\0\0\0"),
        (Role.SERVER, b"\x00\0\0\0"),
        (Role.SERVER, b"\x14\0\0\x30" + bytes(48)),
        (Role.CLIENT, b"\x14\0\0\x30" + bytes(48)),
    ],
    ids=["ticket", "hello", "certificate request", "hello request", "finished", "finished again"],
)
def test_r11_other_post_handshake_messages_are_fatal(sender: Role, message: bytes) -> None:
    pair, forger = forger_of(sender)
    receiver = other(sender)
    with pytest.raises(RemoteProtocolError) as caught:
        pair.deliver(receiver, forger.seal(message, HANDSHAKE))
    assert caught.value.reason in {Reason.UNEXPECTED_MESSAGE, Reason.TLS_FAILURE}
    assert pair.take_output(receiver) == b""


@pytest.mark.parametrize("part", [1, 3, 4, 5, 20])
def test_r11_a_piece_of_a_handshake_message_before_an_epoch_message_is_fatal(part: int) -> None:
    pair, client, server = forged_pair()
    sent = intercept(pair.client, lambda _message: [])
    answers = intercept(pair.server, lambda _message: [])
    pair.start_epoch()
    pair.deliver(Role.SERVER, client.seal(sent[0], APPLICATION_DATA))
    records = server.seal(ticket()[:part], HANDSHAKE) + server.seal(answers[0], APPLICATION_DATA)
    with pytest.raises(RemoteProtocolError):
        pair.deliver(Role.CLIENT, records)
    assert not pair.of(Role.CLIENT, EpochCommitted)


@pytest.mark.parametrize("alert", [b"\x01\x00", b"\x02\x00", b"\x02\x28", b"\x02\x32", b"\x01\x32"])
@pytest.mark.parametrize("sender", BOTH)
def test_r11_tls_alerts_end_the_tunnel(sender: Role, alert: bytes) -> None:
    pair, forger = forger_of(sender)
    receiver = other(sender)
    with pytest.raises(RemoteProtocolError) as caught:
        pair.deliver(receiver, forger.seal(alert, ALERT))
    assert caught.value.reason in {Reason.TRUNCATED, Reason.TLS_FAILURE}
    assert pair.take_output(receiver) == b""


def test_r11_two_epoch_messages_do_not_share_a_record() -> None:
    pair, client, _server = forged_pair()
    sent = intercept(pair.client, lambda _message: [])
    pair.start_epoch()
    record = client.seal(sent[0] + Abort(1, 1, Reason.OPERATOR).encode(), APPLICATION_DATA)
    fails(pair, Reason.MALFORMED_MESSAGE, lambda: pair.deliver(Role.SERVER, record), Role.SERVER)


def test_r11_an_epoch_message_does_not_span_records() -> None:
    pair, client, _server = forged_pair()
    sent = intercept(pair.client, lambda _message: [])
    pair.start_epoch()
    records = client.seal(sent[0][:500], APPLICATION_DATA)
    records += client.seal(sent[0][500:], APPLICATION_DATA)
    fails(pair, Reason.MALFORMED_MESSAGE, lambda: pair.deliver(Role.SERVER, records), Role.SERVER)


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"plaintext", APPLICATION_DATA), (KEY_UPDATE, HANDSHAKE), (b"\x01\x00", ALERT)],
    ids=["data", "key update", "close_notify"],
)
def test_r11_nothing_of_tls_follows_confirm(content: bytes, content_type: int) -> None:
    pair, client, _server = forged_pair()
    sent = intercept(pair.client, lambda _message: [])
    pair.start_epoch()
    pair.deliver(Role.SERVER, client.seal(sent[0], APPLICATION_DATA))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    records = client.seal(sent[1], APPLICATION_DATA) + client.seal(content, content_type)
    fails(pair, Reason.BAD_RECORD_MAC, lambda: pair.deliver(Role.SERVER, records), Role.SERVER)
    assert not pair.of(Role.SERVER, StreamRequested)


def test_r11_nothing_of_tls_follows_accept() -> None:
    pair, client, server = forged_pair()
    sent = intercept(pair.client, lambda _message: [])
    answers = intercept(pair.server, lambda _message: [])
    pair.start_epoch()
    pair.deliver(Role.SERVER, client.seal(sent[0], APPLICATION_DATA))
    records = server.seal(answers[0], APPLICATION_DATA) + server.seal(b"more", APPLICATION_DATA)
    fails(pair, Reason.BAD_RECORD_MAC, lambda: pair.deliver(Role.CLIENT, records), Role.CLIENT)
    assert not pair.of(Role.CLIENT, TunnelEstablished)


def test_r11_eof_before_committed_is_a_failed_tunnel() -> None:
    pair = make_pair()
    pair.pump()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    assert pair.client.phase is Phase.AWAIT_COMMITTED
    with pytest.raises(LocalProtocolError):
        pair.client.open_stream("web", now=pair.now)
    fails(pair, Reason.TRUNCATED, lambda: pair.client.receive_eof(pair.now), Role.CLIENT)
    assert not pair.of(Role.CLIENT, TunnelEstablished)
    assert not pair.last(Role.CLIENT, EpochCommitted).confirmed


def test_r11_the_splitter_cuts_exactly_at_the_hand_over() -> None:
    """CONFIRM and the first records of the epoch in one piece, for both ends."""
    pair = make_pair()
    pair.pump()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    pair.deliver(Role.CLIENT, pair.take_output(Role.SERVER))
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    stream_id = pair.server.open_stream("db", now=pair.now)
    pair.server.send_data(stream_id, memoryview(b"at once"))
    pair.pump()
    assert pair.received(Role.CLIENT, stream_id) == b"at once"


def test_r11_what_was_not_sent_before_a_fault_is_never_sent() -> None:
    """CONFIRM waits to go out when garbage after ACCEPT ends the tunnel: it stays here."""
    pair = make_pair()
    pair.pump()
    pair.start_epoch()
    pair.deliver(Role.SERVER, pair.take_output(Role.CLIENT))
    garbage = b"\x17\x03\x03\x00\x20" + bytes(32)
    both = pair.take_output(Role.SERVER) + garbage
    fails(pair, Reason.BAD_RECORD_MAC, lambda: pair.deliver(Role.CLIENT, both), Role.CLIENT)
    assert pair.take_output(Role.CLIENT) == b""
