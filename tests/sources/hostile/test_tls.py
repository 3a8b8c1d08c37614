"""What a KME may do wrong before the first byte of HTTP, and who it must be, over real TLS."""

from __future__ import annotations

import contextlib

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.errors import KeySourceError, Reason
from qproxy.modes import ClientAuth
from qproxy.net.endpoint import ConnectionLost
from qproxy.net.http_client import HttpClient
from qproxy.net.listen import accept, open_listeners
from qproxy.net.stream import EndpointStream
from qproxy.net.tls_endpoint import TlsEndpoint
from qproxy.sources.etsi014 import Etsi014Source
from qproxy.tls.context import client_context, server_context
from qproxy.tls.identity import TlsIdentity
from tests import pki
from tests.sources.hostile.kme import CLOSE, Kme
from tests.sources.hostile.secrecy import all_of, found_in

CA = pki.authority("authority of KMEs")
SAE_CA = pki.authority("authority of SAEs")
GOOD = pki.identity(CA, "kme-a.example", "127.0.0.1")
SAE = pki.identity(SAE_CA, "gw-a")


class TlsKme(Kme):
    """A KME behind TLS that asks for a certificate of the SAEs' authority.

    Attributes:
        identity: what it shows; may change from one connection to the next.
        seen: common names of the SAEs that got through.
        greet: in place of a handshake: speaks on the bare socket.
    """

    def __init__(self, identity=GOOD):
        super().__init__()
        self.identity = identity
        self.seen = []
        self.greet = None
        self.drop = False

    async def run(self, listener, nursery):
        while True:
            nursery.start_soon(self._carry, await accept(listener))

    async def _carry(self, sock):
        with sock:
            if self.greet is not None:
                await self.greet(sock)
                return
            context = server_context(
                self.identity, trust=SAE_CA.trust, client_auth=ClientAuth.REQUIRED
            )
            endpoint = TlsEndpoint.server(sock, context)
            try:
                await endpoint.handshake()
            except ConnectionLost:
                endpoint.close()
                return
            self.seen.append(endpoint.peer_certificate.subject.rfc4514_string())
            await self.serve(_Abrupt(endpoint) if self.drop else EndpointStream(endpoint))


class _Abrupt(EndpointStream):
    """Ends without a close_notify, as whoever cuts a wire would."""

    async def aclose(self):
        self.endpoint.sock.close()
        await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def source_at(kme, *, identity=SAE, server_name=None, trust=CA.trust):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kme.run, listener, nursery)
            http = HttpClient(
                tls=client_context(trust=trust, identity=identity),
                server_name=server_name,
                connect_timeout_s=1,
                request_timeout_s=2,
            )
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            source = Etsi014Source("kme", http, url, "gw-a", "gw-b")
            yield source
            await source.aclose()
            nursery.cancel_scope.cancel()


async def refused(awaitable):
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value


async def reconnect(source):
    """Let go of kept connections, as they are after a few seconds of silence."""
    for connection in source._http._idle:
        connection.close()


async def test_both_ends_are_authenticated():
    kme = TlsKme()
    async with source_at(kme) as source:
        (key,) = await source.get_keys(1, 256)
        assert [bytes(key.key)] == kme.secrets
        await source.status()
    assert kme.seen == ["CN=gw-a"]  # one connection for both calls


async def test_the_name_that_is_configured_is_the_one_that_counts():
    kme = TlsKme()
    async with source_at(kme, server_name="kme-a.example") as source:
        await source.status()
    async with source_at(kme, server_name="kme-b.example") as source:
        assert (await refused(source.status())).reason is Reason.KME_TLS


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(pki.identity(CA, "127.0.0.2"), id="another address"),
        pytest.param(pki.identity(CA, "kme-a.example"), id="another name"),
        pytest.param(pki.identity(CA, common_name="127.0.0.1"), id="a name in the subject only"),
        pytest.param(pki.identity(CA, "127.0.0.1", expired=True), id="expired"),
        pytest.param(pki.identity(CA, "127.0.0.1", not_yet_valid=True), id="not yet valid"),
        pytest.param(pki.identity(CA, "127.0.0.1", server=False), id="for clients only"),
        pytest.param(pki.identity(SAE_CA, "127.0.0.1"), id="of the SAEs' authority"),
        pytest.param(
            pki.identity(pki.authority("anybody"), "127.0.0.1"), id="of an authority of its own"
        ),
    ],
)
async def test_a_kme_that_is_not_the_one_gets_no_request(identity):
    kme = TlsKme(identity)
    async with source_at(kme) as source:
        for call in (source.status(), source.get_keys(1, 256), source.get_keys_by_id(["a"], 256)):
            caught = await refused(call)
            assert (caught.reason, caught.retryable) == (Reason.KME_TLS, False)
        assert kme.asked == []
        kme.identity = GOOD
        assert len(await source.get_keys(1, 256)) == 1


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(None, id="none"),
        pytest.param(pki.identity(CA, "gw-a"), id="of another authority"),
        pytest.param(pki.identity(SAE_CA, "gw-a", expired=True), id="expired"),
    ],
)
async def test_a_kme_that_refuses_our_certificate(identity):
    kme = TlsKme()
    async with source_at(kme, identity=identity) as source:
        assert (await refused(source.get_keys(1, 256))).reason is Reason.KME_TLS
    assert kme.asked == []


async def test_a_certificate_that_changes_under_way():
    """Every new connection is checked as the first was."""
    kme = TlsKme()
    async with source_at(kme) as source:
        await source.status()
        kme.identity = pki.identity(pki.authority("anybody"), "127.0.0.1")
        await source.status()  # the connection of before
        await reconnect(source)
        assert (await refused(source.get_keys(1, 256))).reason is Reason.KME_TLS
        kme.identity = pki.identity(CA, "127.0.0.1", common_name="renewed")
        assert len(await source.get_keys(1, 256)) == 1


async def _nothing(sock):
    await trio.sleep_forever()


async def _plain_http(sock):
    sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


async def _half_a_record(sock):
    sock.send(b"\x16\x03\x03\x10\x00\x02")


async def _close(sock):
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("greet", "reason"),
    [
        (_nothing, Reason.KME_TIMEOUT),
        (_plain_http, Reason.KME_TLS),
        (_half_a_record, Reason.KME_TLS),
        (_close, Reason.KME_TLS),
    ],
)
async def test_a_server_that_is_no_tls_server(greet, reason, autojump_clock):
    kme = TlsKme()
    kme.greet = greet
    async with source_at(kme) as source:
        assert (await refused(source.get_keys(1, 256))).reason is reason
        kme.greet = None
        assert len(await source.get_keys(1, 256)) == 1


@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_that_ends_without_the_end_of_tls_is_cut_off(whole):
    """In HTTP/1.0 the end of the connection is that of the answer: a cut would look like it."""
    kme = TlsKme()
    kme.drop = True

    def answer(_kme, asked):
        (right,) = kme.behave(asked)
        body = right.partition(b"\r\n\r\n")[2]
        return [b"HTTP/1.0 200 OK\r\n\r\n" + (body if whole else body[:-9]), CLOSE]

    kme.misbehave = answer
    async with source_at(kme) as source:
        caught = await refused(source.get_keys(1, 256))
        assert caught.reason is Reason.KME_INVALID_RESPONSE
        assert found_in(all_of(caught), kme.secrets) == []
        kme.drop = False
        kme.misbehave = None
        assert len(await source.get_keys(1, 256)) == 1


@pytest.mark.parametrize("algorithm", [pki.P256, pki.RSA_2048, pki.ED25519])
async def test_a_certificate_from_a_pkcs12_file(tmp_path, algorithm):
    middle = pki.intermediate(SAE_CA)
    who = pki.identity(middle, "gw-a", algorithm=algorithm)
    (tmp_path / "a.p12").write_bytes(
        pki.pkcs12_bytes(who, *who.chain[1:], SAE_CA.certificate, password=b"horse")
    )
    (tmp_path / "password").write_bytes(b"horse\n")
    identity = TlsIdentity.load_pkcs12(tmp_path / "a.p12", tmp_path / "password")
    kme = TlsKme()
    async with source_at(kme, identity=identity) as source:
        assert len(await source.get_keys(1, 256)) == 1
    assert kme.seen == ["CN=gw-a"]
