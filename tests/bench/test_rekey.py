"""What the page about rekeying claims, and what it does not."""

import pytest

from bench.pairs import Kind
from bench.record import Record, Row, Sample
from bench.rekey import EVERY_SECOND, OFF, rekey_markdown
from tests.bench.helpers import HOST, UNITS


def page(ours, theirs):
    parameters = {"rounds": len(ours), "idle_s": 10.0}
    record = Record("rekey", "2026-01-31T12:00:00Z", HOST, parameters, *UNITS)
    record.rows = [Row(name, Kind.SUBJECT, version="1.0") for name in (EVERY_SECOND, OFF)]
    for name, speeds, idle in ((EVERY_SECOND, ours, 9.0), (OFF, theirs, 6.5)):
        for number, speed in enumerate(speeds):
            values = {"mb_per_s": speed, "cpu_s_per_gb": 1.5}
            record.samples.append(Sample(name, number, "down", values))
            record.samples.append(Sample(name, number, "idle", {"cpu_ms_per_s": idle}))
    return rekey_markdown(record)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([99.0, 100.0, 101.0], "met"),
        ([90.0, 95.0, 97.0], "**missed**"),
        ([70.0, 100.0, 130.0], "undecided: noise"),
        ([101.0, 101.0], "undecided: 2 round(s)"),
    ],
)
def test_a_goal_is_only_met_or_missed_where_every_round_says_so(ours, verdict):
    (row,) = [
        line for line in page(ours, [100.0] * len(ours)).split("\n") if "throughput down" in line
    ]
    assert row.endswith(f"| ≥ 0.98 | {verdict} |")


def test_the_price_of_one_rekey_comes_from_idle_pairs():
    text = page([100.0] * 3, [100.0] * 3)
    assert "for one rekey, from the idle pairs: 2.5 ms; every second, that is 0.25%" in text
