import json
import os

import pytest

from bench.awake import cores_awake
from bench.children import wait_until
from bench.connections import ConnectionsParameters, run_connections
from bench.latency import LatencyParameters, Pace, add_differences, run_latency
from bench.pairs import Kind
from bench.pairs.direct import Direct
from bench.record import Figure, Record, Row, Sample
from bench.record_report import record_markdown
from tests.bench.helpers import HOST, FakePair

SMALL = LatencyParameters(
    rounds=1, sizes=(64,), ping_s=0.02, paces=(Pace(500, 256),), paced_s=0.04, paced_connections=2
)


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch) -> None:
    for module in ("latency", "connections"):
        monkeypatch.setattr(f"bench.{module}._WARM_UP_S", 0.0)


def test_latency_has_a_sample_for_every_size_and_pace_and_says_what_is_added() -> None:
    record = run_latency([FakePair("one"), Direct()], SMALL)
    assert [row.failed for row in record.rows] == [None, None]
    assert record.cases == ["64 B, one at a time", "256 B, 500/s"]
    by_row = {(sample.row, sample.case): sample.values for sample in record.samples}
    for case in record.cases:
        values, direct = by_row["one", case], by_row["direct TCP", case]
        assert values["p50_us"] <= values["p99_us"] <= values["p999_us"] <= values["max_us"]
        assert values["added_p99_us"] == pytest.approx(values["p99_us"] - direct["p99_us"])
        assert "added_p50_us" not in direct
    assert by_row["one", "256 B, 500/s"]["count"] == 20
    assert by_row["one", "256 B, 500/s"]["unanswered"] == 0
    json.loads(record.to_json())
    assert "added p99.9" in record_markdown(record)


def test_cores_are_kept_awake_by_programs_that_give_way_and_end() -> None:
    with cores_awake() as spinning:
        assert len(spinning) == len(os.sched_getaffinity(0))
        wait_until(
            lambda: all(os.sched_getscheduler(each.pid) == os.SCHED_IDLE for each in spinning),
            "spinning",
            spinning,
        )
        for each in spinning:
            assert len(os.sched_getaffinity(each.pid)) == 1
    assert not any(each.running for each in spinning)
    with cores_awake(wanted=False) as spinning:
        assert spinning == []


def test_without_the_direct_path_nothing_is_said_to_be_added() -> None:
    record = run_latency([FakePair("one")], SMALL)
    assert not any("added_p50_us" in sample.values for sample in record.samples)


def test_what_is_added_is_by_round() -> None:
    record = Record("latency", "2026-01-31T12:00:00Z", HOST, {}, "p50_us", "")
    record.rows = [Row("one", Kind.PEER), Row("direct", Kind.LIMIT)]
    for number, (one, direct) in enumerate([(100.0, 60.0), (300.0, 90.0)]):
        for row, value in (("one", one), ("direct", direct)):
            names = ("p50_us", "p99_us", "p999_us")
            record.samples.append(Sample(row, number, "64 B", dict.fromkeys(names, value)))
    add_differences(record)
    assert record.by_round("one", "64 B", "added_p50_us") == {0: 40.0, 1: 210.0}


def test_connections_are_counted_one_at_a_time_and_many_at_once() -> None:
    parameters = ConnectionsParameters(rounds=1, at_once=(1, 5), seconds=0.03)
    record = run_connections([FakePair("one")], parameters)
    assert record.rows[0].failed is None
    assert record.cases == ["one at a time", "5 at once"]
    for sample in record.samples:
        rate = sample.values["count"] / sample.values["seconds"]
        assert sample.values["connections_per_s"] == pytest.approx(rate)
    assert record.parameters["generator"] == "epoll"


def test_the_best_peer_is_the_one_with_less_where_less_is_better() -> None:
    figures = (Figure("p50_us", "p50", "µs", less_is_better=True), Figure("per_s", "rate", "1/s"))
    record = Record(
        "x", "2026-01-31T12:00:00Z", HOST, {}, "p50_us", "", figures=figures
    )  # fmt: skip
    record.rows = [Row("ours", Kind.SUBJECT), Row("a", Kind.PEER), Row("b", Kind.PEER)]
    for name, value in (("ours", 2.0), ("a", 1.0), ("b", 3.0)):
        record.samples.append(Sample(name, 0, "case", {"p50_us": value, "per_s": value}))
    assert record.best_peer("case") == "a"
    assert record.best_peer("case", "per_s") == "b"
    summary = json.loads(record.to_json())["summary"]
    assert summary["best_peers"] == {"case": {"p50_us": "a", "per_s": "b"}}
    assert {ratio["value"] for ratio in summary["ratios"]} == {"p50_us", "per_s"}
    (line,) = (line for line in record_markdown(record).splitlines() if line.startswith("| ours"))
    assert [cell.split()[0] for cell in line.strip("| ").split(" | ")[1:]] == [
        *("2", "2.00"),
        *("2", "0.67"),
    ]
