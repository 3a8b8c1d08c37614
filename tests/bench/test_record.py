import json
from dataclasses import replace

import pytest

from bench.pairs import Kind
from bench.record import FORMAT, Row
from bench.record_report import record_markdown
from tests.bench.helpers import make_record

KINDS = {"qproxy": Kind.SUBJECT, "slow": Kind.PEER, "fast": Kind.PEER, "direct": Kind.LIMIT}
SPEEDS = {
    "qproxy": [120.0, 240.0, 130.0],
    "slow": [100.0, 200.0, 100.0],
    "fast": [110.0, 230.0, 115.0],
    "direct": [1000.0, 1000.0, 1000.0],
}


def test_a_record_is_json_with_host_parameters_and_every_sample() -> None:
    document = json.loads(make_record(SPEEDS, KINDS).to_json())
    assert document["format"] == FORMAT == 1
    assert document["benchmark"] == "throughput"
    assert document["host"]["cpu"] == "Imaginary CPU"
    assert document["parameters"] == {"rounds": 3}
    assert len(document["samples"]) == 12
    assert document["samples"][1] == {
        "row": "qproxy",
        "round": 1,
        "case": "down",
        "values": {"mb_per_s": 240.0, "cpu_s_per_gb": 1.5},
    }
    assert [row["kind"] for row in document["rows"]] == ["subject", "peer", "peer", "limit"]
    assert document["summary"]["best_peer"] == {"down": "fast"}


def test_the_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians() -> None:
    record = make_record({"qproxy": [10.0, 40.0, 90.0], "slow": [10.0, 20.0, 60.0]}, KINDS)
    ratio = record.ratio("down", "qproxy", "slow")
    assert ratio is not None
    assert ratio.spread.median == pytest.approx(1.5)
    assert (ratio.spread.low, ratio.spread.high) == (1.0, 2.0)


def test_rows_that_share_no_round_have_no_ratio() -> None:
    assert make_record({"qproxy": [1.0]}, KINDS).ratio("down", "qproxy", "slow") is None


def test_the_limit_is_never_the_best_peer_and_without_peers_there_is_none() -> None:
    assert make_record(SPEEDS, KINDS).best_peer("down") == "fast"
    assert make_record({"qproxy": [1.0], "direct": [9.0]}, KINDS).best_peer("down") is None


def test_each_pair_of_subjects_is_compared_once() -> None:
    kinds = {"qproxy": Kind.SUBJECT, "qproxy rekey": Kind.SUBJECT, "slow": Kind.PEER}
    speeds = {name: [1.0, 1.0, 1.0] for name in kinds}
    compared = [(ratio.subject, ratio.other) for ratio in make_record(speeds, kinds).ratios()]
    assert compared == [("qproxy", "slow"), ("qproxy rekey", "qproxy"), ("qproxy rekey", "slow")]


def test_a_ratio_that_says_nothing_is_warned_of_by_name() -> None:
    speeds = SPEEDS | {"slow": [200.0, 200.0, 100.0]}
    warnings = make_record(speeds, KINDS).warnings()
    assert any("qproxy ÷ slow" in text and "undecided" in text for text in warnings)
    assert not any("qproxy ÷ fast" in text for text in warnings)


def test_too_few_rounds_give_one_warning_not_one_for_each_ratio() -> None:
    speeds = {name: values[:2] for name, values in SPEEDS.items()}
    assert make_record(speeds, KINDS).warnings() == ["2 round(s): no ratio means anything under 3"]


def test_a_shared_machine_is_warned_of() -> None:
    record = make_record(SPEEDS, KINDS)
    for share, warned in ((0.01, False), (0.4, True)):
        record.samples = [
            replace(sample, values={**sample.values, "others": share}) for sample in record.samples
        ]
        assert any("shared" in text for text in record.warnings()) is warned


def test_a_machine_that_others_left_alone_most_of_the_time_is_not_called_shared() -> None:
    record = make_record(SPEEDS, KINDS)
    record.samples = [
        replace(sample, values={**sample.values, "others": 0.4 if index % 3 == 0 else 0.0})
        for index, sample in enumerate(record.samples)
    ]
    assert not any("shared" in text for text in record.warnings())


def test_the_page_names_what_was_skipped_and_what_failed() -> None:
    record = make_record(SPEEDS, KINDS)
    record.rows.append(Row("gone", Kind.PEER, skipped="gone is not installed"))
    record.rows[1].failed = "round 3: did not get ready"
    page = record_markdown(record)
    assert "- gone: skipped, gone is not installed" in page
    assert "slow failed: round 3: did not get ready" in page
    assert "| fast | 115 (110 to 230) | best peer |" in page
    assert "| qproxy | 130 (120 to 240) | 1.09 (1.04 to 1.13) |" in page


def test_writing_makes_the_directory(tmp_path) -> None:
    path = tmp_path / "new" / "record.json"
    make_record(SPEEDS, KINDS).write(path)
    assert json.loads(path.read_text())["finished"] == ""
