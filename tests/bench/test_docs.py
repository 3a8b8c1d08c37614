"""docs/benchmarks.md and what there is."""

from pathlib import Path

from bench.catalogue import BENCHMARKS
from bench.goals import Verdict
from bench.pairs import all_pairs

TEXT = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()


def test_every_benchmark_is_described() -> None:
    for benchmark in BENCHMARKS:
        assert f"`{benchmark.name}`" in TEXT, benchmark.name


def test_every_pair_is_described() -> None:
    for pair in all_pairs():
        assert (pair.program.removesuffix("4") or pair.name.partition(",")[0]) in TEXT.replace(
            "HAProxy", "haproxy"
        )


def test_every_verdict_is_explained() -> None:
    for verdict in Verdict:
        assert f"| {verdict} |" in TEXT
