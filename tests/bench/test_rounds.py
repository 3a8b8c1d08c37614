import os
from dataclasses import replace
from functools import partial

from bench.children import cpu_seconds
from bench.generator import BLOCKING
from bench.host import OthersMeter
from bench.pairs import Kind
from bench.record import Record
from bench.record_report import record_markdown
from bench.rounds import Bench, run_rounds
from bench.throughput import ThroughputParameters, run_throughput
from tests.bench.helpers import HOST, UNITS, FakePair, SleepingPair

SMALL = ThroughputParameters(
    rounds=2,
    sample_bytes=3_000_001,
    warmup_bytes=70_000,
    check_bytes=1_500_001,
    connections=(1, 3),
)
BLOCKING_SMALL = replace(SMALL, generator=BLOCKING.name)
CASES = (
    "down", "up", "both ways",
    "down, 3 connections", "up, 3 connections", "both ways, 3 connections",
)  # fmt: skip


def test_rounds_are_interleaved_and_each_pair_is_measured_both_ways() -> None:
    record = run_throughput([FakePair("one"), FakePair("two")], SMALL)
    order = [(sample.round, sample.row, sample.case) for sample in record.samples]
    assert order == [
        (number, row, case) for number in (0, 1) for row in ("one", "two") for case in CASES
    ]
    for sample in record.samples:
        ways = 2 if sample.case.startswith("both") else 1
        assert sample.values["bytes"] == 3_000_001 * ways
        assert sample.values["mb_per_s"] > 0
    assert record.finished >= record.started


def test_the_blocking_generator_measures_one_connection_each_way() -> None:
    record = run_throughput([FakePair("one")], replace(BLOCKING_SMALL, rounds=1))
    assert record.cases == ["down", "up"]
    assert record.parameters["generator"] == "blocking"
    assert record.parameters["connections"] == "1"


def test_a_pair_is_started_afresh_in_each_round_and_its_facts_are_kept() -> None:
    record = run_throughput([FakePair("one")], SMALL)
    assert record.rows[0].facts == [{"starts": 1}, {"starts": 2}]


def test_a_missing_pair_is_skipped_by_name_and_the_others_are_measured(capsys) -> None:
    gone = FakePair("gone", missing="gone is not installed")
    record = run_throughput([gone, FakePair("there")], SMALL)
    assert gone.starts == 0
    assert {sample.row for sample in record.samples} == {"there"}
    assert record.rows[0].skipped == "gone is not installed"
    assert record.rows[0].failed is None
    assert "gone: skipped, gone is not installed" in capsys.readouterr().err
    assert "gone: skipped" in record_markdown(record)


def test_a_pair_that_fails_is_dropped_and_keeps_the_samples_it_has() -> None:
    weak = FakePair("weak", fails_in_round=1)
    three = replace(BLOCKING_SMALL, rounds=3, sample_bytes=1000, warmup_bytes=10, check_bytes=10)
    record = run_throughput([weak, FakePair("well")], three)
    assert record.rows[0].failed == "round 2: did not get ready"
    assert weak.starts == 2
    assert [sample.round for sample in record.samples if sample.row == "weak"] == [0, 0]
    assert [sample.round for sample in record.samples if sample.row == "well"] == [0, 0, 1, 1, 2, 2]


def test_bytes_are_checked_before_anything_is_timed(monkeypatch) -> None:
    asked: list[str] = []

    def do(_self: object, action: str, _timeout_s: float, **_arguments: int) -> float:
        asked.append(action)
        return 1.0

    monkeypatch.setattr("bench.generator.LoadClient.do", do)
    run_throughput([FakePair("one")], BLOCKING_SMALL)
    first = ["connect", "up", "check_down", "check_up", "down", "down", "up", "up", "close"]
    later = ["connect", "up", "down", "down", "up", "up", "close"]
    assert asked == first + later


def test_bytes_of_many_connections_are_compared_before_anything_is_timed(monkeypatch) -> None:
    asked: list[tuple[str, bool]] = []

    def bulk(_self: object, direction: str, _count: int, _limit_s: float, *, checked=False):
        asked.append((direction, checked))
        return 1.0

    monkeypatch.setattr("bench.generator.TrafficClient.bulk", bulk)
    run_throughput([FakePair("one")], replace(SMALL, connections=(3,)))
    directions = ("down", "up", "both")
    checked = [(direction, True) for direction in directions]
    timed = [(direction, False) for direction in directions for _ in ("warm-up", "timed")]
    assert asked == checked + timed + timed


def test_a_pair_s_processes_are_ended_when_it_fails_in_the_middle() -> None:
    record = Record("throughput", "2026-01-31T12:00:00Z", HOST, {}, *UNITS)
    pair = SleepingPair()
    seen = []

    def measure(bench: Bench):
        seen.append(bench)
        yield "down", {}

    # Nobody listens at its port: the connection never comes about, and "near" is ended for it.
    pair.near_command = lambda site: ["false"]  # type: ignore[method-assign]
    run_rounds(record, [pair], 1, measure, BLOCKING)
    assert not seen
    assert record.rows[0].kind is Kind.PEER
    assert "sleeping (near) ended with 1" in (record.rows[0].failed or "")


def test_what_this_process_does_is_not_other_people_s() -> None:
    meter = OthersMeter(partial(cpu_seconds, os.getpid()))
    sum(range(5_000_000))
    values = meter.values()
    assert 0 <= values["others"] <= 1
    assert 0 <= values["idle"] <= 1
    assert values["others"] + values["idle"] < 1
