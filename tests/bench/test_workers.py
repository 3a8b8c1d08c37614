import contextlib
import os
import signal
import socket
import ssl
import sys
import threading

import pytest

from bench import tls_load
from bench.children import Child, children, cpu_seconds_each, wait_until
from bench.pairs import Kind, Site
from bench.traffic.wire import BAD, HEADER, TrafficError
from bench.workers import WorkersPair, busiest_values
from qproxy.config.reader import load_gateway_config
from qproxy.pki import init_pki


def test_work_is_held_against_the_busiest_process() -> None:
    values = busiest_values([0.1, 2.0, 1.9], work=1000, seconds=5.0)
    assert values["work_per_s"] == pytest.approx(500)
    assert values["wall_work_per_s"] == pytest.approx(200)
    assert values["busiest_share"] == pytest.approx(0.5)
    assert values["cpu_ms_per_work"] == pytest.approx(4.0)
    assert values["processes"] == 3


def test_work_below_the_clock_s_tick_has_no_figure() -> None:
    assert "work_per_s" not in busiest_values([0.0, 0.0], work=1, seconds=0.1)


def test_cpu_time_is_told_for_each_process_of_a_tree(tmp_path) -> None:
    burn = "sum(range(30_000_000)); print('awake', flush=True); import time; time.sleep(300)"
    with children() as started:
        command = ["sh", "-c", f'{sys.executable} -c "{burn}" & wait']
        started.append(Child("burner", command, tmp_path / "log"))
        wait_until(lambda: "awake" in started[0].log.read_text(), "burner", started)
        (parent, parent_s), (child, child_s) = cpu_seconds_each(started[0].pid).items()
        os.kill(child, signal.SIGTERM)
    assert parent == started[0].pid
    assert child_s > parent_s


@pytest.mark.parametrize("workers", [1, 2])
def test_both_gateways_have_as_many_workers_and_the_near_one_ends_tls(tmp_path, workers) -> None:
    init_pki(tmp_path / "pki")
    site = Site.make(tmp_path / "site", tmp_path / "pki", service_port=9)
    pair = WorkersPair(workers, Kind.SUBJECT)
    near = load_gateway_config(site.directory / pair.near_command(site)[-1])
    far = load_gateway_config(site.directory / pair.far_command(site)[-1])
    assert (near.node.workers, far.node.workers) == (workers, workers)
    assert [listener.tls is not None for listener in near.listeners.values()] == [True]


class TlsService:
    """Echoes messages and takes uploads, over TLS, in threads."""

    def __init__(self, pki, answer: bytes) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pki / "server.pem", pki / "server.key")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._context.wrap_socket(sock, server_side=True) as tls:
            while header := tls.recv(HEADER.size):
                what, _, count = HEADER.unpack(header)
                left = count - len(header) if what == b"E" else count
                body = b""
                while left:
                    part = tls.recv(min(left, 65536))
                    left -= len(part)
                    body += part if what == b"E" else b""
                tls.sendall(header + body if what == b"E" else self._answer)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def tls_service(request, tmp_path):
    init_pki(tmp_path / "pki")
    serving = TlsService(tmp_path / "pki", getattr(request, "param", b"!"))
    yield serving
    serving.close()


def test_the_tls_generator_makes_connections_and_moves_bytes(tls_service) -> None:
    assert tls_load.handshakes(tls_service.port, count=7, threads=3) > 0
    with contextlib.closing(tls_load.Client()) as client:
        client.open(tls_service.port, connections=2)
        assert client.upload(3_000_001) > 0
        assert client.upload(1) > 0


@pytest.mark.parametrize("tls_service", [BAD], indirect=True)
def test_an_upload_that_did_not_arrive_is_found(tls_service) -> None:
    with contextlib.closing(tls_load.Client()) as client:
        client.open(tls_service.port, connections=2)
        with pytest.raises(TrafficError, match="did not get what was sent"):
            client.upload(100_000)
