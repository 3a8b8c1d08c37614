"""Every measure of pairs with real gateways, as quick as it goes: that figures come, not which."""

import json

import pytest

from bench.__main__ import main
from bench.pairs import Kind

pytestmark = pytest.mark.slow

#: Options and rows of each benchmark that can leave the other pairs out.
OF_PAIRS = ["throughput", "latency", "connections", "requests", "memory", "growth"]
ALL = {name: ["--pair", "qproxy"] for name in OF_PAIRS} | {"handshake": [], "workers": []}


@pytest.mark.parametrize("name", ALL)
def test_each_benchmark_measures_real_gateways(name, tmp_path, capsys) -> None:
    output = tmp_path / "record.json"
    assert main([name, "--quick", *ALL[name], "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    subjects = {row["name"] for row in record["rows"] if row["kind"] == Kind.SUBJECT}
    measured = {sample["row"] for sample in record["samples"]}
    assert subjects
    assert subjects <= measured
    assert all(row["failed"] is None for row in record["rows"])
    for figure in record["figures"][:1]:
        assert all(
            sample["values"][figure["name"]] > 0
            for sample in record["samples"]
            # Work of less CPU time than the clock's tick has no figure; noise may exceed memory.
            if name not in {"memory", "workers"}
        )
    assert name in capsys.readouterr().out


def test_the_generator_of_older_records_still_measures(tmp_path, capsys) -> None:
    output = tmp_path / "record.json"
    options = ["--quick", "--generator", "blocking", "--pair", "qproxy"]
    assert main(["throughput", *options, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["parameters"]["generator"] == "blocking"
    assert [sample["case"] for sample in record["samples"]] == ["down", "up"]
    capsys.readouterr()
