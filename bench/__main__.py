"""`python -m bench`: lists the benchmarks, or runs one."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bench.catalogue import BENCHMARKS
from bench.command import positive
from bench.study import Study

RESULTS = Path(__file__).resolve().parent / "results"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmarks of qproxy, beside other proxies and against its own goals.",
    )
    subparsers = parser.add_subparsers(metavar="BENCHMARK", dest="benchmark")
    for benchmark in BENCHMARKS:
        each = subparsers.add_parser(benchmark.name, help=benchmark.summary)
        each.set_defaults(run=benchmark.run, default_rounds=benchmark.rounds)
        each.add_argument("--rounds", type=positive, help=f"(default: {benchmark.rounds})")
        each.add_argument(
            "--quick",
            action="store_true",
            help="little of everything and one round: shows that it works, measures nothing",
        )
        each.add_argument(
            "--output",
            type=Path,
            help=f"JSON file (default: bench/results/{benchmark.name}-DATE.json)",
        )
        benchmark.add_options(each)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark. Returns 0, or 1 where something failed or broke, whatever the figures."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.benchmark is None:
        parser.print_help()
        return 0
    if options.rounds is None:
        options.rounds = 1 if options.quick else options.default_rounds
    # Children are ended on the way out of an exception, so SIGTERM has to be one.
    signal.signal(signal.SIGTERM, _terminated)
    record, page = options.run(options)
    output = options.output or RESULTS / f"{record.benchmark}-{_stamp(record.started)}.json"
    record.write(output)
    print(page)
    print(f"recorded in {output}", file=sys.stderr)
    if isinstance(record, Study):
        return 1 if record.failed else 0
    return 1 if any(row.failed for row in record.rows) else 0


def _stamp(started: str) -> str:
    return started.replace(":", "").replace("-", "")


def _terminated(number: int, frame: object) -> NoReturn:
    del number, frame
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
