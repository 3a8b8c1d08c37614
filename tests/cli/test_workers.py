"""Several workers on the command line: who is started, and what check says."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import trio

from qproxy.cli.main import build_parser, main
from qproxy.pki import init_pki
from tests.cli.test_main import fake_module

GATEWAY = """\
node: {{name: gw-a, workers: {workers}}}
identity: {{certificate: pki/gw-a.pem, private_key: pki/gw-a.key, ca: pki/ca.pem}}
tunnel: {{listen: '127.0.0.1:0', max_tunnels: 3}}
peers: {{gw-b: {{policy: 'off'}}}}
listeners: {{web: {{listen: '127.0.0.1:0', peer: gw-b, service: web}}}}
services: {{db: {{connect: '127.0.0.1:1', max_connections: 2}}}}
audit: {{file: audit.jsonl}}
"""


@pytest.fixture
def config(tmp_path):
    init_pki(tmp_path / "pki")

    def write(workers):
        path = tmp_path / "gateway.yaml"
        path.write_text(GATEWAY.format(workers=workers))
        return str(path)

    return write


@pytest.fixture
def ran(monkeypatch):
    """What was run: ``one``, or how many workers."""
    seen = []

    async def run_gateway(config, *, task_status=trio.TASK_STATUS_IGNORED):
        await trio.lowlevel.checkpoint()
        seen.append("one")

    async def run_supervisor(config, workers, *, task_status=trio.TASK_STATUS_IGNORED):
        await trio.lowlevel.checkpoint()
        seen.append(workers)

    fake_module(monkeypatch, "qproxy.runtime.gateway", run_gateway=run_gateway)
    fake_module(monkeypatch, "qproxy.supervisor.supervisor", run_supervisor=run_supervisor)
    return seen


@pytest.mark.parametrize(
    ("written", "cpus", "expected"),
    [("1", 8, "one"), ("3", 1, 3), ("auto", 8, 8), ("auto", 1, "one"), ("auto", 1000, 128)],
)
def test_a_supervisor_runs_where_there_are_several(
    config, ran, monkeypatch, written, cpus, expected
):
    monkeypatch.setattr("qproxy.supervisor.cpus.available_cpus", lambda: cpus)
    assert main(["run", config(written)]) == 0
    assert ran == [expected]


def test_check_says_what_is_divided_and_what_cannot_be(config, capsys):
    assert main(["check", config(1)]) == 0
    alone = capsys.readouterr()
    assert "workers" not in alone.out + alone.err
    assert main(["check", config(3)]) == 0
    several = capsys.readouterr()
    assert "  3 workers, each with tunnels and keys of its own" in several.out
    assert "audit-w0.jsonl and so on, one for each worker" in several.out
    assert "services.db.max_connections: 2 cannot be divided among 3 workers" in several.err
    assert "tunnel.max_tunnels" not in several.err
    assert "listeners.web: gw-b dials us" in several.err


def test_nobody_is_shown_how_workers_are_started():
    assert "worker" not in build_parser().format_help()


@pytest.mark.parametrize("other", ["gone", "no socket"])
def test_a_worker_without_its_supervisor_says_so(other, tmp_path):
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, (tmp_path / "file").open("w") as file:
        descriptor = ours.fileno() if other == "gone" else file.fileno()
        done = subprocess.run(
            [sys.executable, "-m", "qproxy", "worker", "--number=0", f"--channel={descriptor}"],
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "internal" not in done.stderr
