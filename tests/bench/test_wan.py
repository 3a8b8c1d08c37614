"""Long paths and fairness: the load generator over loopback, and what is made of its answers."""

import json
import socket
from argparse import Namespace
from collections.abc import Iterator

import pytest

from bench import namespace
from bench import path as path_module
from bench.children import process_tree, wait_until
from bench.command import one_subject
from bench.delayed import Flow, run_delayed
from bench.fairness import FairnessParameters, run_fairness
from bench.fairness import measure as measure_fairness
from bench.fairness import new_record as new_fairness_record
from bench.generator import Program
from bench.wan import WanParameters, new_record, run_wan
from bench.wan import measure as measure_wan
from tests.bench.helpers import FakePair


@pytest.fixture
def service_port() -> Iterator[int]:
    with Program("service", "127.0.0.1", module="bench.flow") as service:
        yield int(service.read_line(20))


@pytest.mark.parametrize("direction", ["down", "up"])
def test_bulk_goes_for_a_time_and_every_byte_is_counted(service_port: int, direction: str) -> None:
    with Program("client", module="bench.flow") as client:
        request = {"do": "flow", "direction": direction, "milliseconds": 100}
        client.write_line(json.dumps({**request, "host": "127.0.0.1", "port": service_port}))
        answer = json.loads(client.read_line(20))
    assert sum(answer["intervals"]) > 0
    assert sum(answer["intervals"]) % (256 * 1024) == 0


def test_small_requests_leave_by_the_clock_and_the_lead_is_not_counted(service_port: int) -> None:
    with Program("client", module="bench.flow") as client:
        request = {"do": "small", "bytes": 256, "every_us": 1000, "milliseconds": 50}
        request |= {"lead_milliseconds": 20, "host": "127.0.0.1", "port": service_port}
        client.write_line(json.dumps(request))
        answer = json.loads(client.read_line(20))
    assert len(answer["latencies_us"]) == 50
    assert min(answer["latencies_us"]) > 0


def test_the_service_s_processes_end_with_it() -> None:
    with Program("service", "127.0.0.1", module="bench.flow") as service:
        port = int(service.read_line(20))
        # Connections that ask for nothing and stay open.
        socks = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        wait_until(lambda: len(process_tree(service.pid)) == 4, "a process for each", [])
    for sock in socks:
        with sock:
            sock.settimeout(10)
            assert sock.recv(1) == b""


def test_a_client_that_cannot_connect_says_so() -> None:
    with Program("client", module="bench.flow") as client:
        request = {"do": "flow", "direction": "up", "milliseconds": 1}
        client.write_line(json.dumps({**request, "host": "127.0.0.1", "port": 1}))
        assert "ConnectionRefusedError" in json.loads(client.read_line(20))["error"]


def test_speed_is_that_of_the_second_half_and_full_means_nine_tenths_for_a_while() -> None:
    # Intervals of 20 ms: 0.5 s of nothing, 0.5 s at 50 MB/s, 1 s at 100 MB/s, then draining.
    intervals = [0] * 25 + [1_000_000] * 25 + [2_000_000] * 50 + [2_000_000] * 5
    seen = Flow(0.02, intervals, 2.0)
    assert seen.steady_mb_per_s == pytest.approx(100)
    assert seen.filled_s(100) == pytest.approx(1.16)
    assert seen.filled_s(50) == pytest.approx(0.68)
    assert seen.filled_s(200) is None


def test_every_pair_is_measured_on_every_path_and_a_missing_one_is_named() -> None:
    parameters = WanParameters(rounds=2, bulk_s=0.05, small_s=0.05, lead_s=0.0)
    record = new_record(parameters)
    pairs = [FakePair("one"), FakePair("gone", missing="gone is not installed"), FakePair("two")]
    run_delayed(record, pairs, 2, [None], measure_wan(parameters))
    assert [row.skipped for row in record.rows] == [None, "gone is not installed", None]
    assert all(row.failed is None for row in record.rows)
    cases = ["down", "up", "small alone", "small beside down", "small beside up"]
    assert record.cases == [f"loopback {case}" for case in cases]
    for row in ("one", "two"):
        assert record.by_round(row, "loopback down", "mb_per_s").keys() == {0, 1}
        assert record.by_round(row, "loopback small alone", "p99_ms").keys() == {0, 1}


def test_what_bulk_adds_is_the_difference_to_small_requests_alone() -> None:
    parameters = FairnessParameters(rounds=1, small_s=0.05, lead_s=0.0)
    record = new_fairness_record(parameters)
    run_delayed(record, [FakePair("one")], 1, [None], measure_fairness(parameters))
    assert record.cases == ["loopback, bulk down", "loopback, bulk up"]
    for sample in record.samples:
        values = sample.values
        assert values["added_p99_ms"] == pytest.approx(values["p99_ms"] - values["alone_p99_ms"])


def test_a_pair_that_fails_is_named_with_its_path_and_the_others_go_on() -> None:
    parameters = FairnessParameters(rounds=1, small_s=0.05, lead_s=0.0)
    record = new_fairness_record(parameters)
    pairs = [FakePair("weak", fails_in_round=0), FakePair("well")]
    run_delayed(record, pairs, 1, [None], measure_fairness(parameters))
    assert record.rows[0].failed == "round 1, loopback: did not get ready"
    assert {sample.row for sample in record.samples} == {"well"}


def test_without_namespaces_long_paths_are_skipped_by_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr(path_module, "missing", lambda: None)
    monkeypatch.setattr(namespace, "missing", lambda: "unshare is not installed")
    record = run_wan([FakePair("one")], WanParameters())
    assert [row.skipped for row in record.rows] == ["unshare is not installed"]
    assert not record.samples
    assert record.finished
    record = run_fairness([FakePair("one")], FairnessParameters(rounds=1, small_s=0.05, lead_s=0.0))
    assert record.notes == ["delayed paths skipped: unshare is not installed"]
    assert record.cases == ["loopback, bulk down", "loopback, bulk up"]
    assert "unshare is not installed" in capsys.readouterr().err


def test_qproxy_goes_over_long_paths_once_unless_its_variants_are_named() -> None:
    names = [pair.name for pair in one_subject(Namespace(pairs=None))]
    assert "qproxy" in names
    assert "qproxy, rekey 1 s" not in names
    assert "stunnel4" in names
    chosen = one_subject(Namespace(pairs=["qproxy, rekey 1 s"]))
    assert [pair.name for pair in chosen] == ["qproxy, rekey 1 s"]


def test_a_program_that_is_not_there_is_the_reason(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert namespace.missing() == "unshare is not installed"


@pytest.mark.slow
def test_in_a_namespace_of_its_own_the_path_delays_and_carries() -> None:
    reason = path_module.missing() or namespace.missing()
    if reason is not None:
        pytest.skip(reason)
    from bench.pairs.direct import Direct

    parameters = WanParameters(rounds=1, round_trips_ms=(30.0,), bulk_s=1.0, small_s=0.2)
    record = run_wan([Direct()], parameters)
    assert record.rows[0].failed is None
    (facts,) = record.rows[0].facts
    assert str(facts["path"]).startswith("30 ms: packets ")
    (delay,) = record.by_round("direct TCP", "30 ms small alone", "p50_ms").values()
    assert delay >= 30
    (speed,) = record.by_round("direct TCP", "30 ms down", "mb_per_s").values()
    assert 1 < speed < 130
