"""Goals: the worst repetition counts, and what has no goal gets no verdict."""

import json

import pytest

from bench.document import Table, markdown_table
from bench.study import Goal, Observation, Study
from tests.bench.helpers import HOST


@pytest.fixture
def study():
    study = Study("switchover", "2026-01-31T12:00:00Z", HOST, {"rounds": 3})
    study.cases = {"killed": {}, "cut": {}}
    study.goals = [
        Goal("killed", "fall_s", 1.0, below=True),
        Goal("killed", "lost_bytes", 0),
        Goal("cut", "fall_s", 9.0),
    ]
    return study


def observe(study, *falls, lost=0.0):
    for number, fall in enumerate(falls):
        values = {"fall_s": fall, "lost_bytes": lost}
        study.observations.append(Observation("killed", number, values))


def test_a_goal_is_met_only_by_the_worst_repetition(study):
    observe(study, 0.2, 0.9, 0.3)
    assert study.verdict("killed", "fall_s") is True
    observe(study, 1.0)
    assert study.verdict("killed", "fall_s") is False
    assert study.missed == ["killed: fall_s"]


def test_as_much_as_the_limit_is_within_it_unless_it_must_be_less(study):
    observe(study, 0.2)
    assert study.verdict("killed", "lost_bytes") is True
    observe(study, 0.2, lost=1.0)
    assert study.verdict("killed", "lost_bytes") is False


def test_what_was_not_measured_or_has_no_goal_has_no_verdict(study):
    assert study.verdict("cut", "fall_s") is None
    observe(study, 0.2)
    assert study.verdict("killed", "other") is None
    assert study.missed == []
    assert study.cell("cut", "fall_s") == ""


def test_a_cell_shows_median_range_and_verdict(study):
    observe(study, 0.2, 0.4, 0.3)
    assert study.cell("killed", "fall_s", ".1f") == "0.3 (0.2 to 0.4) met"
    observe(study, 2.0, 2.0)
    assert study.cell("killed", "fall_s", ".1f") == "0.4 (0.2 to 2.0) **missed**"


def test_the_record_holds_every_sample_and_every_verdict(study, tmp_path):
    observe(study, 0.2, 1.5)
    study.write(tmp_path / "made" / "record.json")
    document = json.loads((tmp_path / "made" / "record.json").read_text())
    assert document["format"] == 1
    assert document["host"]["cpu"] == HOST.cpu
    assert [each["values"]["fall_s"] for each in document["observations"]] == [0.2, 1.5]
    verdicts = [(goal["case"], goal["value"], goal["met"]) for goal in document["summary"]["goals"]]
    assert verdicts == [
        ("killed", "fall_s", False),
        ("killed", "lost_bytes", True),
        ("cut", "fall_s", None),
    ]


def test_a_table_is_markdown():
    assert markdown_table(Table(["a", "b"], [["x", "1"]])).split("\n") == [
        "| a | b |",
        "| --- | ---: |",
        "| x | 1 |",
    ]
