"""New client certificates at KMEs: which files count, and what is shown to a KME from then on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.config.reader import load_gateway_config
from qproxy.errors import ConfigError
from qproxy.modes import ClientAuth
from qproxy.net.http_client import HttpClient
from qproxy.net.http_server import Request, Response, serve_http
from qproxy.net.listen import open_listeners
from qproxy.runtime.reload import load_tls, source_files, stamps
from qproxy.tls.context import server_context
from tests import pki
from tests.runtime.test_reload import NOW

CA = pki.authority()
CONFIG = """\
node: {name: gw-a}
identity: {certificate: gw-a.pem, private_key: gw-a.key, ca: ca.pem}
peers: {gw-b: {address: '127.0.0.1:7444', key_source: site}}
key_sources:
  site:
    type: etsi-qkd-014
    ca: ca.pem
    pkcs12: sae.p12
    pkcs12_password_file: password
    kmes:
      north: {url: 'https://127.0.0.1:1'}
      south: {url: 'https://127.0.0.1:2', certificate: gw-a.pem, private_key: gw-a.key}
  spare: {type: skip, url: 'https://127.0.0.1:3', ca: ca.pem, pkcs12: plain.p12}
"""


def write_bundle(room: Path, common_name: str, password: bytes = b"horse") -> None:
    who = pki.identity(CA, "gw-a", common_name=common_name)
    (room / "sae.p12").write_bytes(pki.pkcs12_bytes(who, password=password))
    (room / "password").write_bytes(password + b"\n")


@pytest.fixture
def room(tmp_path: Path) -> Path:
    pki.write_identity(tmp_path, "gw-a", pki.identity(CA, "gw-a"), CA)
    write_bundle(tmp_path, "the first")
    plain = pki.pkcs12_bytes(pki.identity(CA, "gw-a"), password=None)
    (tmp_path / "plain.p12").write_bytes(plain)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_every_file_that_a_kme_is_reached_with_is_watched(room: Path) -> None:
    config = load_gateway_config(room / "config.yaml")
    named = {"ca.pem", "sae.p12", "password", "gw-a.pem", "gw-a.key"}
    assert source_files(config)["site"] == {room / name for name in named}
    assert source_files(config)["spare"] == {room / "ca.pem", room / "plain.p12"}
    before = stamps(config)
    assert {path.name for path in before} == named | {"plain.p12"}
    os.utime(room / "password", ns=(1, 1))
    changed = {path.name for path, stamp in stamps(config).items() if stamp != before[path]}
    assert changed == {"password"}


@asynccontextmanager
async def kme_that_asks_who() -> AsyncIterator[str]:
    """A server that answers with the name in the client's certificate."""

    async def who(request: Request) -> Response:
        assert request.peer_certificate is not None
        return Response(200, request.peer_certificate.subject.rfc4514_string().encode())

    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    tls = server_context(
        pki.identity(CA, "127.0.0.1"), trust=CA.trust, client_auth=ClientAuth.REQUIRED
    )
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await serve_http(who, [listener], tls=tls, task_status=task_status)

        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        await nursery.start(serve)
        yield url
        nursery.cancel_scope.cancel()


async def test_a_new_bundle_and_its_new_password_are_what_the_kme_sees(room: Path) -> None:
    config = load_gateway_config(room / "config.yaml")

    async def shown(name: str) -> bytes:
        http = HttpClient(tls=load_tls(config, NOW).sources["site"][name])
        try:
            return (await http.request("GET", url)).body
        finally:
            await http.aclose()

    async with kme_that_asks_who() as url:
        assert await shown("north") == b"CN=the first"
        write_bundle(room, "the second", b"another horse")
        assert await shown("north") == b"CN=the second"
        assert await shown("south") == b"CN=gw-a"


@pytest.mark.parametrize("broken", ["sae.p12", "password", "plain.p12"])
def test_a_broken_bundle_is_refused_before_anything_is_replaced(room: Path, broken: str) -> None:
    config = load_gateway_config(room / "config.yaml")
    (room / broken).write_bytes(b"nothing of use\n")
    with pytest.raises(ConfigError) as caught:
        load_tls(config, NOW)
    assert "horse" not in f"{caught.value} {caught.value.hint}"
