"""`qproxy reload`: what is checked first, whom it signals, and when it refuses to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qproxy.cli.main import main
from qproxy.runtime.pid_file import held_pid_file
from tests import pki

CONFIG = """\
node: {name: gw-a, pid_file: gw.pid}
identity: {certificate: gw-a.pem, private_key: gw-a.key, ca: ca.pem}
peers: {gw-b: {address: '127.0.0.1:1', policy: 'off'}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    ca = pki.authority()
    pki.write_identity(tmp_path, "gw-a", pki.identity(ca, "gw-a"), ca)
    path = tmp_path / "a.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What would have been sent."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


def test_the_running_gateway_is_signalled(config, signals, capsys):
    with held_pid_file(config.parent / "gw.pid"):
        assert main(["reload", str(config)]) == 0
    assert signals == [(os.getpid(), signal.SIGHUP)]
    assert f"asked process {os.getpid()}" in capsys.readouterr().out


def test_without_a_running_gateway_it_refuses(config, signals, capsys):
    (config.parent / "gw.pid").write_text(f"{os.getpid()}\n")  # left behind
    assert main(["reload", str(config)]) == 1
    assert signals == []
    assert "no running gateway" in capsys.readouterr().err


def test_without_a_pid_file_it_says_what_to_do(config, signals, capsys):
    config.write_text(CONFIG.replace(", pid_file: gw.pid", ""))
    assert main(["reload", str(config)]) == 1
    assert signals == []
    assert "node.pid_file" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["a.yaml", "gw-a.pem", "gw-a.key"])
def test_what_is_broken_is_78_and_the_gateway_is_left_alone(config, signals, capsys, broken):
    (config.parent / broken).write_text("rubbish")
    with held_pid_file(config.parent / "gw.pid"):
        assert main(["reload", str(config)]) == 78
    assert signals == []
    assert "error" in capsys.readouterr().err
