"""The real demonstration, small, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qproxy.demo.report import FIELDS
from tests.demo.test_report import leaves

#: Longer than any bound inside the demonstration, for machines that are very busy.
TIMEOUT_S = 120


class Demo:
    """A demonstration under way."""

    def __init__(self, directory, *arguments):
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qproxy", "demo", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(directory)},
            start_new_session=True,
        )

    def wait_until_it_says(self, word):
        for line in self.process.stderr:
            if word in line:
                return
        pytest.fail(f"the demonstration ended and never said {word!r}")

    def children(self):
        """Process ID and command line of each child."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_text()
        return found

    def finish(self):
        """Exit code, document, and standard error from here on."""
        output, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, json.loads(output), errors


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*arguments):
        started.append(Demo(tmp_path, *arguments))
        return started[-1]

    yield start
    for demo in started:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.communicate(timeout=TIMEOUT_S)


def gone(children):
    return [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_a_small_run_passes_and_says_so_in_json(start, tmp_path):
    kept = tmp_path / "kept"
    demo = start("--megabytes", "16", "--connections", "100", "--keep-dir", str(kept))
    code, document, errors = demo.finish()
    assert (code, document["result"], document["problems"]) == (0, "PASS", []), errors
    assert set(leaves(document)) == set(FIELDS) - {"problems[]"}
    modes = [change["mode"] for change in document["mode_history"]]
    assert modes == ["hybrid", "classical-only", "hybrid"]
    assert document["tls_group"] == "X25519MLKEM768"
    assert document["simulated_keys_used"] == document["epochs"]["hybrid"] > 0
    assert document["epochs"]["classical_only"] > 0
    assert (document["up_mb"], document["down_mb"]) == (8.0, 8.0)
    assert document["short_connections"] == 100
    assert document["connections_opened"] == 100 + 3 * 8 + 1
    assert (document["bytes_lost"], document["connections_failed"]) == (0, 0)
    assert document["long_stream"]["frames_verified"] == document["long_stream"]["frames_sent"] > 0
    assert [gateway["exit_code"] for gateway in document["gateways"]] == [0, 0]
    logs = {path.name: path.read_text() for path in kept.glob("*.log")}
    assert sorted(logs) == ["gw-a.log", "gw-b.log", "kme-sim.log", "service.log"]
    for text in [*logs.values(), errors]:
        assert "PRIVATE KEY" not in text
        assert '"key"' not in text


def test_a_child_that_dies_is_told_with_its_last_lines_and_ends_the_others(start, tmp_path):
    demo = start()
    demo.wait_until_it_says("X25519MLKEM768")
    children = demo.children()
    (victim,) = [pid for pid, command in children.items() if "gw-b.yaml" in command]
    os.kill(victim, signal.SIGKILL)
    code, document, errors = demo.finish()
    assert (code, document["result"]) == (1, "FAIL")
    assert document["problems"][0] == "gw-b ended with exit code -9 while it was needed"
    assert "error: gw-b ended with exit code -9" in errors
    assert "gateway_started" in errors
    assert len(children) == 4
    assert gone(children)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_its_children(start, tmp_path, number):
    demo = start()
    demo.wait_until_it_says("X25519MLKEM768")
    children = demo.children()
    demo.process.send_signal(number)
    code, document, errors = demo.finish()
    assert (code, document["result"]) == (1, "FAIL")
    assert f"error: interrupted by {number.name}" in errors
    assert len(children) == 4
    assert gone(children)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_an_error_with_a_hint(start, tmp_path):
    (tmp_path / "file").write_text("x")
    code, document, errors = start("--keep-dir", str(tmp_path)).finish()
    assert (code, document["result"]) == (1, "FAIL")
    assert "is not empty" in errors
    assert "hint: " in errors
