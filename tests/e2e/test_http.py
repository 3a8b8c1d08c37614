"""curl against real HTTP servers: whole bodies by hash, down and up, and many short requests."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.http_service import blob
from tests.e2e.pair import GatewayPair
from tests.e2e.processes import Program, poll, run
from tests.e2e.sockets import ReservedPort, connect

MIB = 1 << 20
GIB = 1 << 30
#: A body of 1 GiB takes a minute on a slow core with everything beside it.
LARGE_DEADLINE_S = 600.0

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

SIZES = [
    pytest.param(64 * MIB, id="64-mib"),
    pytest.param(GIB, id="1-gib", marks=pytest.mark.slow),
]

NGINX_CONFIG = """\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/t1;
    proxy_temp_path {directory}/t2;
    fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4;
    scgi_temp_path {directory}/t5;
    server {{
        listen {address};
        root {directory}/www;
    }}
}}
"""


@dataclass
class Site:
    url: str
    pair: GatewayPair


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Python's HTTP server behind a pair of gateways."""
    script = Path(__file__).with_name("http_service.py")
    with Program("http service", [sys.executable, script]) as server:
        address = server.wait_for_event("http_ready")["address"]
        with GatewayPair(
            tmp_path_factory.mktemp("http"), listeners={"web": {}}, services={"web": address}
        ) as pair:
            yield Site(f"http://{pair.address('web')}", pair)


def curl(*arguments: str) -> subprocess.Popen[bytes]:
    common = ["curl", "--silent", "--show-error", "--fail", "--max-time", str(LARGE_DEADLINE_S)]
    return subprocess.Popen(
        [*common, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def hash_of_download(url: str) -> tuple[str, int]:
    """What curl fetched, as SHA-256 and length."""
    with curl(url) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        digest, size = hashlib.sha256(), 0
        while data := child.stdout.read(1 << 18):
            digest.update(data)
            size += len(data)
        complaints = child.stderr.read()
    assert child.returncode == 0, complaints
    return digest.hexdigest(), size


def hash_of_blob(size: int) -> str:
    digest = hashlib.sha256()
    for block in blob(size):
        digest.update(block)
    return digest.hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_curl_downloads_a_body_unchanged(site: Site, size: int) -> None:
    assert hash_of_download(f"{site.url}/blob/{size}") == (hash_of_blob(size), size)


@pytest.mark.parametrize("size", SIZES)
def test_curl_uploads_a_body_unchanged(site: Site, size: int) -> None:
    # A stated length instead of chunks, so that the server need not know those.
    headers = ["-H", f"Content-Length: {size}", "-H", "Transfer-Encoding:"]
    with curl("--upload-file", "-", *headers, f"{site.url}/upload") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        for block in blob(size):
            child.stdin.write(block)
        child.stdin.close()
        answer, complaints = child.stdout.read(), child.stderr.read()
    assert child.returncode == 0, complaints
    assert answer.decode() == hash_of_blob(size)


def test_curl_makes_many_requests_over_one_connection(site: Site) -> None:
    urls = [f"{site.url}/blob/{size}" for size in range(1000, 1100)]
    with curl(*urls) as child:
        output, complaints = child.communicate(timeout=60)
    assert child.returncode == 0, complaints
    assert output == b"".join(b"".join(blob(size)) for size in range(1000, 1100))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_curl_downloads_from_nginx(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    tmp_path.chmod(0o755)
    content = b"".join(blob(8 * MIB))
    (tmp_path / "www" / "file").write_bytes(content)
    with ReservedPort() as port:
        config = tmp_path / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(directory=tmp_path, address=port.address))
        port.release()
        arguments = ["nginx", "-p", tmp_path, "-c", config, "-e", "stderr"]
        with Program("nginx", arguments) as nginx:
            poll("nginx listens", lambda: answers(port.address, nginx))
            with GatewayPair(
                tmp_path, listeners={"web": {}}, services={"web": port.address}
            ) as pair:
                url = f"http://{pair.address('web')}/file"
                assert hash_of_download(url) == (hashlib.sha256(content).hexdigest(), len(content))
                headers = run("curl", "--silent", "--head", url)
                assert b"Server: nginx" in headers.stdout


def answers(address: str, server: Program) -> bool:
    assert server.running, server.failure("cannot start")
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True
