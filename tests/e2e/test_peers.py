"""Who may not come in, and what the two sides see of it."""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from OpenSSL import SSL

from qproxy.crypto import labels
from qproxy.errors import Reason
from qproxy.keys import QkdKey
from qproxy.tls.context import client_context
from qproxy.tls.identity import TlsIdentity
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochConfirmed,
    EpochFailed,
    HandshakeCompleted,
    TunnelEstablished,
)
from tests import pki
from tests.e2e.conftest import MakePair
from tests.e2e.pair import GatewayPair
from tests.e2e.processes import DEADLINE_S
from tests.e2e.sockets import Address, Backend, connect, proxied, round_trip
from tests.e2e.tunnel_client import TunnelClient, tunnel_tls
from tests.e2e.wire import RECORD_HEADER

CA = pki.authority()
OTHER_CA = pki.authority("another CA")

#: Who knocks: what it shows, and what the gateway's log says of it.
INTRUDERS: dict[str, tuple[TlsIdentity | None, str, str]] = {
    "wrong name": (pki.identity(CA, "gw-x"), "peer_name_mismatch", "gw-x"),
    "expired": (pki.identity(CA, "gw-a", expired=True), "certificate_expired", "expired"),
    "not yet valid": (
        pki.identity(CA, "gw-a", not_yet_valid=True),
        "certificate_invalid",
        "not_yet_valid",
    ),
    "no certificate": (None, "tls_failure", "did not return a certificate"),
    "another CA": (pki.identity(OTHER_CA, "gw-a"), "certificate_invalid", "unable_to_get"),
    "name in the subject only": (
        pki.identity(CA, "gw-x", common_name="gw-a"),
        "peer_name_mismatch",
        "gw-x",
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayPair]:
    """One pair for every intruder; its own tunnel must not suffer."""
    with (
        Backend() as backend,
        GatewayPair(
            tmp_path_factory.mktemp("peers"),
            listeners={"app": {}},
            services={"app": backend.address},
            level="debug",
        ) as made,
        proxied(made.address("app"), backend) as (near, far),
    ):
        round_trip(near, far)
        yield made
        round_trip(near, far)


class Intruder:
    """A TLS client that writes down what it sees after its own Finished, to the last byte."""

    def __init__(self, address: Address, identity: TlsIdentity | None) -> None:
        self._sock = connect(address)
        self._tls = SSL.Connection(tunnel_tls(identity), None)
        self._tls.set_connect_state()

    def observe(self) -> dict[str, Any]:
        """Go through the handshake, then wait for the end."""
        with self._sock:
            before = self._shake_hands()
            after, ending = bytearray(), "FIN"
            try:
                while data := self._sock.recv(1 << 16):
                    after += data
            except ConnectionResetError:
                ending = "RST"
        return {"record types before": before, "bytes after": bytes(after), "ending": ending}

    def _shake_hands(self) -> list[int]:
        """Record types that came until our handshake was over; nothing may follow by itself."""
        received = bytearray()
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except SSL.WantReadError:
                done = False
            # One write: the gateway reads our last flight as a whole or not at all.
            self._sock.sendall(self._output())
            if done:
                return _record_types(received)
            data = self._sock.recv(1 << 16)
            assert data, "the connection ended within the handshake"
            received += data
            self._tls.bio_write(data)

    def _output(self) -> bytes:
        output = b""
        while True:
            try:
                output += self._tls.bio_read(1 << 16)
            except SSL.WantReadError:
                return output


def _record_types(data: bytes | bytearray) -> list[int]:
    types, position = [], 0
    while position < len(data):
        kind, _, length = RECORD_HEADER.unpack_from(data, position)
        types.append(kind)
        position += RECORD_HEADER.size + length
    return types


@pytest.mark.parametrize("who", INTRUDERS)
def test_a_peer_that_is_not_the_configured_one_is_refused(pair: GatewayPair, who: str) -> None:
    identity, reason, detail = INTRUDERS[who]
    mark = pair.b.mark()
    Intruder(pair.tunnel_address, identity).observe()
    refused = pair.b.wait_for_event("tunnel_refused", after=mark)
    assert (refused["level"], refused["reason"]) == ("warning", reason)
    assert detail in refused["detail"]
    assert refused["address"].startswith("127.0.0.1:")


def test_a_refused_peer_cannot_tell_why(pair: GatewayPair) -> None:
    seen = {
        who: Intruder(pair.tunnel_address, identity).observe()
        for who, (identity, _, _) in INTRUDERS.items()
    }
    first = seen["wrong name"]
    assert first["bytes after"] == b""
    assert seen == dict.fromkeys(INTRUDERS, first)


def test_a_revoked_peer_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(start=False, kme=False, config_b={"identity": {"crl": "pki/crl.pem"}})
    revoked = pki.identity(CA, "gw-a", algorithm=pki.ED25519)
    crl = pki.crl(CA, revoked.chain[0])
    (pair.directory / "pki" / "crl.pem").write_bytes(pki.crl_pem(crl))
    pair.start()
    Intruder(pair.tunnel_address, revoked).observe()
    refused = pair.b.wait_for_event("tunnel_refused")
    assert refused["reason"] == "certificate_revoked"


def test_a_peer_without_ml_kem_in_its_tls_group_is_refused(pair: GatewayPair) -> None:
    context = ssl.create_default_context(cafile=str(pair.directory / "pki" / "ca.pem"))
    context.load_cert_chain(pair.directory / "pki" / "gw-a.pem", pair.directory / "pki/gw-a.key")
    context.set_alpn_protocols([labels.ALPN.decode()])
    context.set_ecdh_curve("X25519")
    mark = pair.b.mark()
    with (
        connect(pair.tunnel_address) as plain,
        context.wrap_socket(plain, server_hostname="gw-b") as tls,
        contextlib.suppress(ssl.SSLError, ConnectionError),
    ):
        assert tls.version() == "TLSv1.3"
        assert tls.recv(1) == b""
    refused = pair.b.wait_for_event("tunnel_refused", after=mark)
    assert refused["reason"] == "tls_group"


def test_a_peer_that_speaks_another_protocol_is_refused(pair: GatewayPair) -> None:
    identity = pki.identity(CA, "gw-a")
    context = client_context(trust=CA.trust, identity=identity, alpn=[b"h2"], tls13_only=True)
    mark = pair.b.mark()
    with connect(pair.tunnel_address) as sock:
        tls = SSL.Connection(context, sock)
        sock.setblocking(False)
        tls.set_connect_state()
        with pytest.raises(SSL.Error):
            _patiently(sock, tls.do_handshake)
    refused = pair.b.wait_for_event("tunnel_refused", after=mark)
    assert refused["reason"] == "tls_failure"


def _patiently(sock: socket.socket, function: Any) -> Any:
    while True:
        try:
            return function()
        except SSL.WantReadError:
            assert select.select([sock], [], [], DEADLINE_S)[0]


@pytest.mark.parametrize("role", ["dialled", "dialling"])
@pytest.mark.parametrize(
    "who",
    [
        "wrong name",
        pytest.param("expired", marks=pytest.mark.slow),
        pytest.param("another CA", marks=pytest.mark.slow),
    ],
)
def test_a_whole_gateway_that_is_not_the_configured_one_gets_no_tunnel(
    make_pair: MakePair, who: str, role: str
) -> None:
    identity, reason, _ = INTRUDERS[who]
    assert identity is not None
    name = "gw-a" if role == "dialling" else "gw-b"
    shown = "gw-x" if who == "wrong name" else name
    issuer = OTHER_CA if who == "another CA" else CA
    identity = pki.identity(issuer, shown, expired=who == "expired")
    pair = make_pair(start=False, kme=False)
    path = pair.directory / "pki"
    (path / f"{name}.pem").write_bytes(pki.certificate_pem(*identity.chain))
    (path / f"{name}.key").write_bytes(pki.key_pem(identity.private_key))
    pair.start(tunnel=False)

    judge, refused = (pair.b, pair.a) if role == "dialling" else (pair.a, pair.b)
    event = "tunnel_refused" if role == "dialling" else "tunnel_closed"
    assert judge.wait_for_event(event)["reason"] == reason
    # The refused gateway hears nothing but the end of the connection.
    told = "tunnel_closed" if role == "dialling" else "tunnel_refused"
    assert refused.wait_for_event(told)["reason"] == "truncated"
    assert not pair.a.find("tunnel_up")
    assert not pair.b.find("tunnel_up")


# Keys that were spent.


def draw_key(pair: GatewayPair) -> tuple[str, bytes]:
    """One key from KME A, as gateway A's SAE."""
    assert pair.kme is not None
    context = ssl.create_default_context(cafile=str(pair.directory / "pki" / "ca.pem"))
    context.load_cert_chain(pair.directory / "pki" / "gw-a.pem", pair.directory / "pki/gw-a.key")
    url = f"{pair.kme.urls['kme-a']}/api/v1/keys/gw-b/enc_keys?number=1&size=256"
    with urllib.request.urlopen(url, context=context, timeout=10) as response:
        (key,) = json.load(response)["keys"]
    return key["key_ID"], base64.b64decode(key["key"])


def test_an_offer_with_a_key_id_already_spent_is_rejected(pair: GatewayPair) -> None:
    key_id, key = draw_key(pair)
    with TunnelClient(pair.tunnel_address) as first:
        first.wait_for(HandshakeCompleted)
        first.offer(QkdKey(key_id, bytearray(key)), reason=Reason.INITIAL)
        committed = first.wait_for(EpochCommitted)
        assert committed.key_ids == (key_id,)
        first.wait_for(TunnelEstablished)

        # In another tunnel, where only the gateway knows that it was spent.
        with TunnelClient(pair.tunnel_address) as second:
            second.wait_for(HandshakeCompleted)
            mark = pair.b.mark()
            second.offer(QkdKey(key_id, bytearray(key)), reason=Reason.INITIAL)
            failed = second.wait_for(EpochFailed)
            assert (failed.reason, failed.remote) == (Reason.KEY_SPENT, True)
            told = pair.b.wait_for_event("epoch_failed", after=mark)
            assert (told["reason"], told["role"]) == ("key_spent", "server")

            # With a key of its own the same tunnel comes up.
            other_id, other = draw_key(pair)
            second.offer(QkdKey(other_id, bytearray(other)), reason=Reason.RETRY)
            second.wait_for(TunnelEstablished)

        # And in the tunnel that spent it.
        mark = len(first.events)
        first.offer(QkdKey(key_id, bytearray(key)))
        failed = first.wait_for(EpochFailed, after=mark)
        assert (failed.reason, failed.remote) == (Reason.KEY_SPENT, True)
        # The tunnel lives on: a rekey with a fresh key succeeds.
        next_id, following = draw_key(pair)
        first.offer(QkdKey(next_id, bytearray(following)))
        first.wait_for(EpochConfirmed, after=mark)


def test_an_offer_with_a_key_id_that_never_was_is_rejected(pair: GatewayPair) -> None:
    with TunnelClient(pair.tunnel_address) as client:
        client.wait_for(HandshakeCompleted)
        made_up = QkdKey("6ba7b810-9dad-41d1-80b4-00c04fd430c8", bytearray(32))
        client.offer(made_up, reason=Reason.INITIAL)
        failed = client.wait_for(EpochFailed)
        assert (failed.reason, failed.remote) == (Reason.KEY_NOT_FOUND, True)


def test_a_right_id_with_wrong_key_bytes_gives_no_tunnel(pair: GatewayPair) -> None:
    key_id, key = draw_key(pair)
    wrong = bytearray(key)
    wrong[0] ^= 1
    mark = pair.b.mark()
    with TunnelClient(pair.tunnel_address) as client:
        client.wait_for(HandshakeCompleted)
        client.offer(QkdKey(key_id, wrong), reason=Reason.INITIAL)
        failed = client.wait_for(EpochFailed)
        assert failed.reason is Reason.KEY_MISMATCH
        told = pair.b.wait_for_event("epoch_failed", after=mark)
        assert told["reason"] == "key_mismatch"
