"""`python -m bench`: runs all benchmarks or one, or renders reports of stored records."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench.catalogue import BENCHMARKS
from bench.children import sigterm_as_exit
from bench.command import Benchmark, positive
from bench.pages import Report, readme_tables
from bench.progress import bar, say
from bench.record import Record
from bench.rounds import utc_now
from bench.stats import BenchError
from bench.store import load_record
from bench.study import Study

RESULTS = Path(__file__).resolve().parent / "results"
_ALL = "all"
_REPORT = "report"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmarks of qproxy, beside other proxies and against its own goals. "
        "Without a name all of them run, with their defaults.",
    )
    subparsers = parser.add_subparsers(metavar="NAME", dest="benchmark")
    everything = subparsers.add_parser(_ALL, help="all benchmarks, one after the other")
    _add_run_options(everything, "each benchmark's own")
    everything.add_argument("--output", type=Path, help="directory (default: bench/results/DATE)")
    for benchmark in BENCHMARKS:
        each = subparsers.add_parser(benchmark.name, help=benchmark.summary)
        each.set_defaults(run=benchmark.run, default_rounds=benchmark.rounds)
        _add_run_options(each, str(benchmark.rounds))
        each.add_argument(
            "--output",
            type=Path,
            help=f"JSON file (default: bench/results/{benchmark.name}-DATE.json); "
            "the reports stand beside it",
        )
        benchmark.add_options(each)
    report = subparsers.add_parser(_REPORT, help="pages of records that were stored")
    report.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON of a run")
    report.add_argument(
        "--output", type=Path, help="pages' path without suffix (default: report, beside FILE)"
    )
    report.add_argument(
        "--readme", action="store_true", help="only print the tables for the README"
    )
    return parser


def _add_run_options(parser: argparse.ArgumentParser, rounds: str) -> None:
    parser.add_argument("--rounds", type=positive, help=f"(default: {rounds})")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little of everything and one round: shows that it works, measures nothing",
    )


def main(arguments: list[str] | None = None) -> int:
    """Do it. Returns 0, or 1 where something failed or broke, whatever the figures."""
    given = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(given if _names_one(given) else [_ALL, *given])
    try:
        with sigterm_as_exit():
            if options.benchmark == _REPORT:
                return _report(options)
            return _run_all(options) if options.benchmark == _ALL else _run_one(options)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _names_one(arguments: Sequence[str]) -> bool:
    """Whether a benchmark is named, or help asked for; else all of them are meant."""
    return any(not each.startswith("-") or each in ("-h", "--help") for each in arguments[:1])


def _run_one(options: argparse.Namespace) -> int:
    record, page = _measure(options)
    output = options.output or RESULTS / f"{record.benchmark}-{_stamp(record.started)}.json"
    record.write(output)
    print(page)
    _write_pages(Report([record]), output.with_suffix(""))
    say(f"recorded in {output}")
    return _code([record])


def _run_all(options: argparse.Namespace) -> int:
    directory: Path = options.output or RESULTS / _stamp(utc_now())
    records: list[Record | Study] = []
    missing: list[str] = []
    flags = ["--quick"] if options.quick else []
    flags += ["--rounds", str(options.rounds)] if options.rounds else []
    say(f"{len(BENCHMARKS)} benchmarks, {_how_long(options, BENCHMARKS)}")
    with bar("all benchmarks", len(BENCHMARKS)) as advance:
        for benchmark in BENCHMARKS:
            how_long = _how_long(options, [benchmark])
            say(f"== {benchmark.name}: {benchmark.summary}; {how_long}")
            try:
                record, _ = _measure(build_parser().parse_args([benchmark.name, *flags]))
            except (BenchError, OSError) as error:
                missing.append(f"{benchmark.name}: {error}")
                say(missing[-1])
            except Exception as error:  # a fault of ours must not cost the others their report
                missing.append(f"{benchmark.name}: a fault of its own, {type(error).__name__}")
                say(traceback.format_exc())
            else:
                record.write(directory / f"{benchmark.name}.json")
                records.append(record)
            advance()
    _write_pages(Report(records, missing), directory / _REPORT)
    return 1 if missing else _code(records)


def _how_long(options: argparse.Namespace, benchmarks: Sequence[Benchmark]) -> str:
    """What to reckon with before they begin. Peers that are not installed take no time."""
    if options.quick:
        return "little of each"
    minutes = sum(
        each.minutes * (options.rounds or each.rounds) / each.rounds for each in benchmarks
    )
    return f"about {max(1, round(minutes))} minutes with every peer"


def _measure(options: argparse.Namespace) -> tuple[Record | Study, str]:
    if options.rounds is None:
        options.rounds = 1 if options.quick else options.default_rounds
    measured: tuple[Record | Study, str] = options.run(options)
    return measured


def _report(options: argparse.Namespace) -> int:
    records = [load_record(path) for path in options.files]
    if options.readme:
        print(readme_tables(records), end="")
    else:
        _write_pages(Report(records), options.output or options.files[0].with_name(_REPORT))
    return 0


def _write_pages(report: Report, stem: Path) -> None:
    for path in report.write(stem):
        say(f"written: {path}")


def _code(records: Sequence[Record | Study]) -> int:
    """1 where anything failed. A peer that is not installed has not."""
    for record in records:
        if isinstance(record, Study) and record.failed:
            return 1
        if isinstance(record, Record) and any(row.failed for row in record.rows):
            return 1
    return 0


def _stamp(started: str) -> str:
    return started.replace(":", "").replace("-", "")


if __name__ == "__main__":
    sys.exit(main())
