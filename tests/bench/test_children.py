import os
import signal
import sys

import pytest

from bench import children as module
from bench.children import Child, children, free_ports, process_tree, wait_until
from bench.generator import LoadClient, Service
from bench.stats import BenchError

SLEEP = [sys.executable, "-c", "print('awake', flush=True); import time; time.sleep(300)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('awake', flush=True); time.sleep(300)",
]


def awake(child: Child) -> None:
    wait_until(lambda: "awake" in child.log.read_text(), child.name, [child])


def test_children_are_ended_whatever_happens(tmp_path) -> None:
    def start_and_fail() -> None:
        with children() as started:
            seen.append(Child("one", SLEEP, tmp_path / "one.log"))
            seen.append(Child("two", SLEEP, tmp_path / "two.log"))
            started.extend(seen)
            raise RuntimeError

    seen: list[Child] = []
    with pytest.raises(RuntimeError):
        start_and_fail()
    assert len(seen) == 2
    assert not any(child.running for child in seen)


def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "END_S", 0.05)
    child = Child("stubborn", STUBBORN, tmp_path / "log")
    awake(child)
    child.end()
    with pytest.raises(BenchError, match=f"stubborn ended with -{signal.SIGKILL.value}"):
        child.check()


def test_ending_twice_is_harmless(tmp_path) -> None:
    child = Child("quick", ["true"], tmp_path / "log")
    child.end()
    child.end()
    assert not child.running


def test_a_program_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(BenchError, match="cannot start /nonexistent/proxy"):
        Child("proxy", ["/nonexistent/proxy"], tmp_path / "log")


def test_waiting_ends_with_the_child_and_shows_its_last_words(tmp_path) -> None:
    child = Child("proxy", ["sh", "-c", "echo bad certificate; exit 3"], tmp_path / "log")
    with pytest.raises(BenchError, match="proxy ended with 3: bad certificate"):
        wait_until(lambda: False, "the proxy", [child])


def test_waiting_is_bounded(tmp_path) -> None:
    with children() as started:
        started.append(Child("proxy", SLEEP, tmp_path / "log"))
        awake(started[0])
        with pytest.raises(BenchError, match="a tunnel not ready within 0 s; proxy: awake"):
            wait_until(lambda: False, "a tunnel", started, timeout_s=0)


def test_cpu_time_counts_what_a_child_burned(tmp_path) -> None:
    burn = "s = 0\nfor i in range(3_000_000): s += i\nprint('awake', flush=True)\ninput()"
    with children() as started:
        started.append(Child("burner", ["sh", "-c", f"{sys.executable} -c '{burn}'; sleep 300"],
                             tmp_path / "log"))  # fmt: skip
        awake(started[0])
        assert started[0].cpu_seconds() > 0


def test_a_tree_holds_the_children_of_children(tmp_path) -> None:
    with children() as started:
        started.append(Child("parent", ["sh", "-c", "sleep 300 & echo awake $!; wait"],
                             tmp_path / "log"))  # fmt: skip
        awake(started[0])
        grandchild = int(started[0].log.read_text().split()[1])
        assert process_tree(started[0].pid) == [started[0].pid, grandchild]
        os.kill(grandchild, signal.SIGTERM)


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_failing_request_is_an_error_and_the_client_lives_on() -> None:
    with Service() as service, LoadClient() as client:
        with pytest.raises(BenchError, match="down: LoadError: not connected"):
            client.do("down", 10, bytes=1)
        client.do("connect", 10, port=service.port)
        assert client.do("down", 10, bytes=100) > 0


def test_a_client_without_an_answer_is_not_waited_for_long() -> None:
    with LoadClient() as client, pytest.raises(BenchError, match=r"within 0[.]05 s"):
        client.read_line(0.05)


def test_sigterm_ends_children_on_the_way_out(tmp_path) -> None:
    seen: list[Child] = []

    def start_and_be_terminated() -> None:
        with module.sigterm_as_exit(), children() as started:
            started.append(Child("one", SLEEP, tmp_path / "one.log"))
            seen.extend(started)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        start_and_be_terminated()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not seen[0].running
    assert signal.getsignal(signal.SIGTERM) is before
