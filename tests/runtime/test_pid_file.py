"""The file that names the running process: whole, locked while it runs, never believed after."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from qproxy.runtime import pid_file
from qproxy.runtime.pid_file import PidFileError, held_pid_file, running_pid, signal_gateway


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gw.pid"


def test_it_names_us_while_it_is_held_and_is_gone_afterwards(path: Path) -> None:
    before = os.umask(0o077)
    try:
        with held_pid_file(path):
            assert path.read_text() == f"{os.getpid()}\n"
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            assert running_pid(path) == os.getpid()
            assert list(path.parent.iterdir()) == [path]
    finally:
        os.umask(before)
    assert not path.exists()
    assert running_pid(path) is None


def test_without_a_path_there_is_no_file() -> None:
    with held_pid_file(None):
        pass


@pytest.mark.parametrize("content", ["1\n", "", "rubbish", f"{os.getpid()}\n"])
def test_what_a_dead_process_left_is_replaced_and_not_believed(path: Path, content: str) -> None:
    path.write_text(content)
    assert running_pid(path) is None
    with pytest.raises(PidFileError, match="no running gateway"):
        signal_gateway(path, signal.SIGHUP)
    with held_pid_file(path):
        assert running_pid(path) == os.getpid()


def test_a_second_gateway_is_refused_and_the_first_keeps_its_file(path: Path) -> None:
    with held_pid_file(path):
        with pytest.raises(PidFileError, match=f"process {os.getpid()} holds"), held_pid_file(path):
            pass
        assert running_pid(path) == os.getpid()


def test_a_file_that_is_another_ones_by_now_is_left_alone(path: Path) -> None:
    with held_pid_file(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize("content", ["0\n", "-1\n", "+5", "12x", "9" * 30, ""])
def test_a_locked_file_without_a_process_id_signals_nobody(
    path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(pid_file.os, "kill", lambda *arguments: killed.append(arguments))
    with held_pid_file(path):
        path.write_text(content)
        with pytest.raises(PidFileError, match="no process ID"):
            signal_gateway(path, signal.SIGHUP)
    assert killed == []


def test_the_signal_goes_to_whoever_holds_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(pid_file.os, "kill", lambda *arguments: killed.append(arguments))
    with held_pid_file(path):
        assert signal_gateway(path, signal.SIGHUP) == os.getpid()
    assert killed == [(os.getpid(), signal.SIGHUP)]


@pytest.mark.parametrize(
    ("error", "told"), [(ProcessLookupError, "cannot be seen"), (PermissionError, "another user")]
)
def test_a_process_that_cannot_be_signalled_is_said(
    path: Path, error: type[OSError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_pid: int, _number: int) -> None:
        raise error

    monkeypatch.setattr(pid_file.os, "kill", kill)
    with held_pid_file(path), pytest.raises(PidFileError, match=told):
        signal_gateway(path, signal.SIGHUP)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(PidFileError, match="cannot be written"),
        held_pid_file(tmp_path / "nowhere" / "gw.pid"),
    ):
        pass
    with pytest.raises(PidFileError, match="is not a file"), held_pid_file(tmp_path):
        pass
