"""TLS at the edges: towards applications, and towards services behind the far gateway."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from qproxy.tls.context import client_context
from tests import pki
from tests.e2e.pair import GatewayPair
from tests.e2e.processes import DEADLINE_S
from tests.e2e.sockets import (
    Backend,
    assert_refused,
    assert_reset,
    connect,
    pattern,
    proxied,
    receive_all,
    receive_exactly,
    round_trip,
)

OTHER_CA = pki.authority("another CA")
HYBRID_GROUP = "X25519MLKEM768"


@dataclass
class World:
    pair: GatewayPair
    backend: Backend
    directory: Path

    def files(self, name: str) -> tuple[str, str]:
        """Certificate and key of an identity."""
        return str(self.directory / f"pki/{name}.pem"), str(self.directory / f"pki/{name}.key")

    @property
    def ca(self) -> str:
        return str(self.directory / "pki" / "ca.pem")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory: Path = tmp_path_factory.mktemp("tls")
    (directory / "pki").mkdir(mode=0o700)
    others = directory / "others"
    others.mkdir()
    stranger = pki.identity(OTHER_CA, "localhost", "127.0.0.1")
    pki.write_identity(others, "stranger", stranger, OTHER_CA)
    expired = pki.identity(pki.authority(), "localhost", expired=True)
    pki.write_identity(others, "expired", expired, pki.authority())
    (others / "ca.pem").write_bytes(pki.certificate_pem(OTHER_CA.certificate))

    server = {"certificate": "pki/server.pem", "private_key": "pki/server.key"}
    listener_tls = {
        "none": server,
        "optional": {**server, "client_ca": "pki/ca.pem", "client_auth": "optional"},
        "required": {**server, "client_ca": "pki/ca.pem", "client_auth": "required"},
    }
    with Backend() as backend:
        ours = {"certificate": "pki/gw-b.pem", "private_key": "pki/gw-b.key"}
        service_tls: dict[str, dict[str, Any]] = {
            "tls-service": {"ca": "pki/ca.pem", "server_name": "localhost"},
            "tls-by-address": {"ca": "pki/ca.pem"},
            "tls-mutual": {"ca": "pki/ca.pem", "server_name": "localhost", **ours},
            "tls-other-ca": {"ca": "others/ca.pem", "server_name": "localhost"},
            "tls-other-name": {"ca": "pki/ca.pem", "server_name": "db.example"},
        }
        listeners: dict[str, Any] = {
            name: {"service": "app", "tls": tls, "handshake_timeout_s": 30}
            for name, tls in listener_tls.items()
        }
        listeners["hasty"] = {"service": "app", "tls": server, "handshake_timeout_s": 0.1}
        listeners["both-ends"] = {"service": "tls-service", "tls": server}
        services: dict[str, Any] = {
            name: {"connect": backend.address, "tls": tls} for name, tls in service_tls.items()
        }
        services["app"] = backend.address
        with GatewayPair(
            directory,
            listeners=listeners | {name: {} for name in service_tls},
            services=services,
            kme=False,
            level="debug",
        ) as pair:
            yield World(pair, backend, directory)


# A TLS listener, seen by Python's ssl.


def python_client(world: World, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=world.ca)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


@contextlib.contextmanager
def tls_connect(world: World, listener: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        connect(world.pair.address(listener)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        yield secured


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_pythons_ssl_gets_through_a_tls_listener(world: World, version: ssl.TLSVersion) -> None:
    context = python_client(world)
    context.minimum_version = context.maximum_version = version
    with tls_connect(world, "none", context) as near, world.backend.accept() as far:
        assert near.version() == version.name.replace("_", ".")
        round_trip(near, far, pattern(b"tls", 200_000))


def test_a_listener_with_optional_client_authentication_takes_clients_without(
    world: World,
) -> None:
    with (
        tls_connect(world, "optional", python_client(world)) as near,
        world.backend.accept() as far,
    ):
        round_trip(near, far)


@pytest.mark.parametrize("listener", ["optional", "required"])
def test_a_client_with_a_certificate_is_let_in(world: World, listener: str) -> None:
    context = python_client(world, world.files("gw-a"))
    with tls_connect(world, listener, context) as near, world.backend.accept() as far:
        round_trip(near, far)


@pytest.mark.parametrize(
    ("listener", "certificate", "reason", "detail"),
    [
        ("required", None, "tls_failure", "did not return a certificate"),
        ("required", "stranger", "certificate_invalid", "unable_to_get"),
        ("optional", "stranger", "certificate_invalid", "unable_to_get"),
        ("required", "expired", "certificate_expired", "expired"),
    ],
)
def test_a_client_without_a_good_certificate_is_refused(
    world: World, listener: str, certificate: str | None, reason: str, detail: str
) -> None:
    mark = world.pair.a.mark()
    context = python_client(world)
    if certificate is not None:
        others = world.directory / "others"
        context.load_cert_chain(others / f"{certificate}.pem", others / f"{certificate}.key")
    # In TLS 1.3 a client learns of it with its first read.
    with pytest.raises(ssl.SSLError), tls_connect(world, listener, context) as near:
        near.recv(1)
    refused = world.pair.a.wait_for_event("client_refused", after=mark)
    assert (refused["listener"], refused["reason"]) == (listener, reason)
    assert detail in refused["detail"]
    assert world.backend.nobody_is_waiting()


def test_a_client_that_never_speaks_tls_is_dropped_in_time(world: World) -> None:
    mark = world.pair.a.mark()
    assert_refused(world.pair.address("hasty"))
    refused = world.pair.a.wait_for_event("client_refused", after=mark)
    assert (refused["listener"], refused["reason"]) == ("hasty", "handshake_timeout")


def test_a_plaintext_client_gets_nowhere_at_a_tls_listener(world: World) -> None:
    mark = world.pair.a.mark()
    with connect(world.pair.address("none")) as near:
        near.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"HTTP" not in receive_all(near)
    refused = world.pair.a.wait_for_event("client_refused", after=mark)
    assert refused["reason"] == "tls_failure"
    assert world.backend.nobody_is_waiting()


def test_a_tls_client_that_vanishes_without_close_notify_resets_the_service(world: World) -> None:
    with tls_connect(world, "none", python_client(world)) as near, world.backend.accept() as far:
        round_trip(near, far)
        socket.socket.shutdown(near, socket.SHUT_WR)
        assert_reset(far)


# A TLS listener, seen by openssl s_client.


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("listener", ["none", "optional", "required"])
def test_openssl_s_client_gets_through_a_tls_listener(world: World, listener: str) -> None:
    certificate, key = world.files("gw-a")
    authentication = [] if listener == "none" else ["-cert", certificate, "-key", key]
    command = ["openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", world.ca]
    command += ["-verify_hostname", "localhost", "-servername", "localhost", *authentication]
    client = subprocess.Popen(
        [*command, "-connect", world.pair.address(listener)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert client.stdin is not None
        client.stdin.write(b"hello from s_client\n")
        client.stdin.flush()
        with world.backend.accept() as far:
            assert receive_exactly(far, 20) == b"hello from s_client\n"
            far.sendall(b"hello from the service\n")
        output, complaints = client.communicate(timeout=DEADLINE_S)
    finally:
        client.kill()
        client.communicate()
    assert (client.returncode, output) == (0, b"hello from the service\n"), complaints
    assert b"Verification error" not in complaints


# A TLS listener, seen by a client that offers ML-KEM.


class PyOpenSsl:
    """Blocking TLS, every wait bounded, on the OpenSSL that knows X25519MLKEM768."""

    def __init__(self, sock: socket.socket, context: SSL.Context, *, server: bool = False) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.connection = SSL.Connection(context, sock)
        if server:
            self.connection.set_accept_state()
        else:
            self.connection.set_tlsext_host_name(b"localhost")
            self.connection.set_connect_state()
        self.call(self.connection.do_handshake)

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call again after each "would block", with a limit on every wait."""
        while True:
            try:
                return function(*arguments)
            except SSL.WantReadError:
                ready = select.select([self._sock], [], [], DEADLINE_S)[0]
            except SSL.WantWriteError:
                ready = select.select([], [self._sock], [], DEADLINE_S)[1]
            assert ready, "the TLS connection made no progress"


@pytest.mark.parametrize("listener", ["none", "required"])
def test_a_client_that_offers_ml_kem_gets_it(world: World, listener: str) -> None:
    mark = world.pair.a.mark()
    identity = pki.identity(pki.authority(), "gw-a") if listener == "required" else None
    with connect(world.pair.address(listener)) as plain:
        context = client_context(trust=pki.authority().trust, identity=identity)
        client = PyOpenSsl(plain, context)
        with world.backend.accept() as far:
            assert client.connection.get_group_name() == HYBRID_GROUP
            told = world.pair.a.wait_for_event("client_tls", after=mark)
            assert (told["group"], told["version"]) == (HYBRID_GROUP, "TLSv1.3")
            client.call(client.connection.send, b"question")
            assert receive_exactly(far, 8) == b"question"


def test_close_notify_is_a_half_close(world: World) -> None:
    with connect(world.pair.address("none")) as plain:
        client = PyOpenSsl(plain, client_context(trust=pki.authority().trust))
        with world.backend.accept() as far:
            client.call(client.connection.send, b"question")
            client.connection.shutdown()
            assert receive_all(far) == b"question"
            far.sendall(b"answer")
            far.shutdown(socket.SHUT_WR)
            assert client.call(client.connection.recv, 100) == b"answer"
            with pytest.raises(SSL.ZeroReturnError):
                client.call(client.connection.recv, 100)


# A TLS service behind the far gateway.


def python_server(world: World) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*world.files("server"))
    return context


@pytest.mark.parametrize("service", ["tls-service", "tls-by-address"])
def test_a_plaintext_client_reaches_a_tls_service_whose_name_is_verified(
    world: World, service: str
) -> None:
    with (
        proxied(world.pair.address(service), world.backend) as (near, plain_far),
        python_server(world).wrap_socket(plain_far, server_side=True) as far,
    ):
        assert far.version() == "TLSv1.3"
        round_trip(near, far, pattern(b"to a TLS service", 200_000))


def test_tls_ends_at_the_listener_and_begins_again_at_the_service(world: World) -> None:
    with (
        connect(world.pair.address("both-ends")) as plain_near,
        python_client(world).wrap_socket(plain_near, server_hostname="localhost") as near,
        world.backend.accept() as plain_far,
        python_server(world).wrap_socket(plain_far, server_side=True) as far,
    ):
        round_trip(near, far)


def test_a_service_that_wants_a_client_certificate_gets_the_gateways(world: World) -> None:
    context = python_server(world)
    context.load_verify_locations(world.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with (
        proxied(world.pair.address("tls-mutual"), world.backend) as (near, plain_far),
        context.wrap_socket(plain_far, server_side=True) as far,
    ):
        certificate = far.getpeercert()
        assert certificate is not None
        assert certificate["subjectAltName"] == (("DNS", "gw-b"),)
        round_trip(near, far)


@pytest.mark.parametrize(
    ("service", "detail"),
    [("tls-other-ca", "unable_to_get"), ("tls-other-name", "db.example")],
)
def test_a_tls_service_that_is_not_the_right_one_means_a_reset(
    world: World, service: str, detail: str
) -> None:
    mark = world.pair.b.mark()
    with proxied(world.pair.address(service), world.backend) as (near, plain_far):
        near.sendall(b"for the right service only")
        # The server may learn of it in its handshake or after it, but it never gets data.
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            python_server(world).wrap_socket(plain_far, server_side=True) as far,
        ):
            assert far.recv(100) == b""
        assert_reset(near)
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert (refused["service"], refused["reason"]) == (service, "service_tls")
    assert detail in refused["detail"]


def test_a_service_that_speaks_no_tls_means_a_reset(world: World) -> None:
    mark = world.pair.b.mark()
    with proxied(world.pair.address("tls-service"), world.backend) as (near, far):
        far.sendall(b"SSH-2.0-nonsense\r\n")
        assert_reset(near)
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert refused["reason"] == "service_tls"


def test_the_gateway_offers_ml_kem_to_services(world: World) -> None:
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    certificate, key = world.files("server")
    server.use_certificate_chain_file(certificate)
    server.use_privatekey_file(key)
    mark = world.pair.b.mark()
    with proxied(world.pair.address("tls-service"), world.backend) as (near, plain_far):
        far = PyOpenSsl(plain_far, server, server=True)
        assert far.connection.get_group_name() == HYBRID_GROUP
        near.sendall(b"hello")
        assert far.call(far.connection.recv, 5) == b"hello"
    opened = world.pair.b.wait_for_event("stream_opened", after=mark)
    assert (opened["service"], opened["group"]) == ("tls-service", HYBRID_GROUP)
