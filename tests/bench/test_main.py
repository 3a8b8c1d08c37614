"""The command line, with benchmarks that measure nothing."""

import argparse
import json
from pathlib import Path

import pytest

import bench.__main__ as program
from bench import progress
from bench.command import Benchmark
from bench.pairs import Kind
from bench.record import Record, Row
from bench.stats import BenchError
from tests.bench.helpers import make_record

ASKED: list[argparse.Namespace] = []


def fine(options: argparse.Namespace) -> tuple[Record, str]:
    ASKED.append(options)
    return make_record({"qproxy": [1.0]}, {"qproxy": Kind.SUBJECT}), "a page"


def with_a_failed_row(options: argparse.Namespace) -> tuple[Record, str]:
    record, page = fine(options)
    record.benchmark = "weak"
    record.rows.append(Row("broken", Kind.PEER, failed="round 1: did not get ready"))
    return record, page


def with_a_missing_peer(options: argparse.Namespace) -> tuple[Record, str]:
    record, page = fine(options)
    record.benchmark = "lonely"
    record.rows.append(Row("gone", Kind.PEER, skipped="gone is not installed"))
    return record, page


def broken(_options: argparse.Namespace) -> tuple[Record, str]:
    raise BenchError("no room")


def benchmark(name: str, run) -> Benchmark:
    return Benchmark(name, f"measures {name}", 5, run, minutes=10)


@pytest.fixture
def catalogue(monkeypatch):
    ASKED.clear()

    def offer(*benchmarks: Benchmark) -> None:
        monkeypatch.setattr(program, "BENCHMARKS", benchmarks)

    return offer


def test_without_a_name_all_run_and_give_records_and_both_pages(
    catalogue, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    catalogue(benchmark("throughput", fine), benchmark("lonely", with_a_missing_peer))
    assert program.main([]) == 0
    (directory,) = tmp_path.iterdir()
    names = {path.name for path in directory.iterdir()}
    assert names == {"throughput.json", "lonely.json", "report.md", "report.html"}
    assert "Skipped: gone (gone is not installed)." in (directory / "report.md").read_text()
    assert [options.rounds for options in ASKED] == [5, 5]


def test_options_for_all_reach_each(catalogue, tmp_path: Path) -> None:
    catalogue(benchmark("throughput", fine))
    assert program.main(["--quick", "--output", str(tmp_path)]) == 0
    assert program.main(["all", "--rounds", "2", "--output", str(tmp_path)]) == 0
    assert [(each.quick, each.rounds) for each in ASKED] == [(True, 1), (False, 2)]


def test_how_long_all_take_is_said_before_the_first_begins(catalogue, tmp_path, capsys) -> None:
    catalogue(benchmark("throughput", fine), benchmark("wan", broken))
    program.main(["--output", str(tmp_path)])
    told = capsys.readouterr().err.split("\n")
    assert told[0] == "2 benchmarks, about 20 minutes with every peer"
    assert told[1].startswith("== throughput: measures throughput; about 10 minutes")
    program.main(["--rounds", "1", "--output", str(tmp_path)])
    assert capsys.readouterr().err.startswith("2 benchmarks, about 4 minutes with every peer\n")


def test_one_that_breaks_is_named_and_the_others_run(catalogue, tmp_path: Path, capsys) -> None:
    catalogue(benchmark("wan", broken), benchmark("throughput", fine))
    assert program.main(["all", "--output", str(tmp_path)]) == 1
    assert "- wan: no room" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "throughput.json").exists()
    assert "wan: no room" in capsys.readouterr().err


def test_a_fault_in_one_is_shown_and_the_others_run(catalogue, tmp_path: Path, capsys) -> None:
    def faulty(_options: argparse.Namespace) -> tuple[Record, str]:
        raise ZeroDivisionError("of nothing")

    catalogue(benchmark("wan", faulty), benchmark("throughput", fine))
    assert program.main(["all", "--output", str(tmp_path)]) == 1
    assert "- wan: a fault of its own, ZeroDivisionError" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "throughput.json").exists()
    assert "in faulty\n" in capsys.readouterr().err


def test_one_by_name_prints_its_page_and_writes_its_report_beside_the_record(
    catalogue, tmp_path: Path, capsys
) -> None:
    catalogue(benchmark("throughput", fine))
    output = tmp_path / "mine.json"
    assert program.main(["throughput", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["benchmark"] == "throughput"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine.md", "mine.html"}
    assert capsys.readouterr().out == "a page\n"


def test_a_row_that_failed_is_an_exit_code_and_a_missing_peer_is_none(
    catalogue, tmp_path: Path
) -> None:
    catalogue(benchmark("weak", with_a_failed_row), benchmark("lonely", with_a_missing_peer))
    assert program.main(["weak", "--output", str(tmp_path / "a.json")]) == 1
    assert program.main(["lonely", "--output", str(tmp_path / "b.json")]) == 0


def test_a_benchmark_that_breaks_is_an_error_without_a_traceback(catalogue, capsys) -> None:
    catalogue(benchmark("wan", broken))
    assert program.main(["wan"]) == 1
    assert capsys.readouterr().err == "error: no room\n"


def test_help_lists_the_benchmarks(catalogue, capsys) -> None:
    catalogue(benchmark("throughput", fine))
    with pytest.raises(SystemExit) as stopped:
        program.main(["--help"])
    assert stopped.value.code == 0
    assert "measures throughput" in capsys.readouterr().out


def test_lines_go_to_standard_error_where_there_are_no_bars(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "tqdm", None)
    with progress.bar("work", 2) as advance:
        advance()
        progress.say("half")
    assert capsys.readouterr().err == "half\n"


def test_bars_are_drawn_on_a_terminal(capsys, monkeypatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(progress, "has_bars", lambda: True)
    with progress.bar("work", 2) as advance:
        advance()
        progress.say("half")
    shown = capsys.readouterr().err
    assert "work:" in shown
    assert "half\n" in shown
