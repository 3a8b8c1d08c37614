"""The audit section: no log unless asked for, and then a careful one."""

from __future__ import annotations

import pytest

from qproxy.cli.main import main
from qproxy.config.model import AuditConfig, Fsync, OnAuditFailure
from qproxy.config.reader import load_gateway_config
from qproxy.errors import ConfigError
from qproxy.pki import init_pki
from tests.admin.test_command import CONFIG


@pytest.fixture
def write(tmp_path):
    init_pki(tmp_path / "pki")
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text("5a" * 32)

    def write(text):
        (tmp_path / "gateway.yaml").write_text(CONFIG + text)
        return tmp_path / "gateway.yaml"

    return write


@pytest.fixture
def load(write):
    return lambda text: load_gateway_config(write(text)).audit


def test_there_is_none_by_default(load):
    assert load("") == AuditConfig(
        file=None,
        failure=OnAuditFailure.STOP,
        fsync=Fsync.INTERVAL,
        max_file_bytes=64 * 1024 * 1024,
        hmac_key_file=None,
    )


def test_a_log_that_is_not_there_yet_in_a_directory_that_is_not_either(load, tmp_path):
    found = load("audit: {file: logs/audit.jsonl, failure: continue, fsync: each}\n")
    assert found.file == tmp_path / "logs" / "audit.jsonl"
    assert (found.failure, found.fsync) == (OnAuditFailure.CONTINUE, Fsync.EACH)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("{file: logs/}", "audit.file", "not of its directory"),
        ("{file: ..}", "audit.file", "not of its directory"),
        ('{file: "a\\nb"}', "audit.file", "control character"),
        ("{hmac_key_file: key}", "audit.file", "with hmac_key_file"),
        ("{file: a, hmac_key_file: none}", "audit.hmac_key_file", "64 hexadecimal digits"),
        ("{file: a, failure: ignore}", "audit.failure", "stop, continue"),
        ("{file: a, fsync: yes}", "audit.fsync", "each, interval, never"),
        ("{file: a, max_file_bytes: 1KiB}", "audit.max_file_bytes", "from 64KiB to 16GiB"),
        ("{path: a}", "audit.path", "given as file"),
    ],
)
def test_what_is_refused(load, text, key, words):
    with pytest.raises(ConfigError) as caught:
        load(f"audit: {text}\n")
    assert caught.value.key == key
    assert words in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "  no audit trail"),
        ("audit: {file: a}\n", "  audit trail in {room}/a; without it no traffic"),
        (
            "audit: {file: a, failure: continue, hmac_key_file: key}\n",
            "  audit trail in {room}/a, keyed chain; traffic goes on without it",
        ),
    ],
)
def test_check_says_what_becomes_of_the_log(write, tmp_path, capsys, text, line):
    assert main(["check", str(write(text))]) == 0
    assert line.format(room=tmp_path) in capsys.readouterr().out.splitlines()
    assert not (tmp_path / "a").exists()


def test_check_warns_of_a_directory_that_is_missing_or_open_to_others(write, tmp_path, capsys):
    path = write("audit: {file: logs/a, hmac_key_file: key}\n")
    (tmp_path / "key").chmod(0o644)
    assert main(["check", str(path)]) == 0
    warned = capsys.readouterr().err
    assert "logs: No such file or directory" in warned
    assert "chmod 600" in warned
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(0o777)
    assert main(["check", str(path)]) == 0
    assert "other users may put files" in capsys.readouterr().err
