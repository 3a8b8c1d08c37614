"""`python -m bench`: lists the benchmarks, or runs one."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bench.pairs import ProxyPair, all_pairs
from bench.throughput import ThroughputParameters, run_throughput, throughput_markdown

RESULTS = Path(__file__).resolve().parent / "results"
_DEFAULTS = ThroughputParameters()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks of qproxy beside other proxies."
    )
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", dest="benchmark")
    throughput = benchmarks.add_parser(
        "throughput", help="bulk throughput of one connection, down and up"
    )
    throughput.add_argument(
        "--rounds", type=_positive, default=_DEFAULTS.rounds, help="(default: %(default)s)"
    )
    throughput.add_argument(
        "--megabytes",
        type=_positive,
        default=_DEFAULTS.sample_bytes // 10**6,
        help="10^6 bytes in one timed transfer (default: %(default)s)",
    )
    throughput.add_argument(
        "--pair",
        action="append",
        dest="pairs",
        choices=[pair.name for pair in all_pairs()],
        help="measure only this pair; may be given again",
    )
    throughput.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: bench/results/throughput-DATE.json)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark. Returns 0, or 1 where a pair that is installed failed."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.benchmark is None:
        parser.print_help()
        return 0
    # Children are ended on the way out of an exception, so SIGTERM has to be one.
    signal.signal(signal.SIGTERM, _terminated)
    parameters = ThroughputParameters(rounds=options.rounds, sample_bytes=options.megabytes * 10**6)
    record = run_throughput(_chosen(options.pairs), parameters)
    output = options.output or RESULTS / f"{record.benchmark}-{_stamp(record.started)}.json"
    record.write(output)
    print(throughput_markdown(record))
    print(f"recorded in {output}", file=sys.stderr)
    return 1 if any(row.failed for row in record.rows) else 0


def _chosen(names: list[str] | None) -> list[ProxyPair]:
    return [pair for pair in all_pairs() if names is None or pair.name in names]


def _stamp(started: str) -> str:
    return started.replace(":", "").replace("-", "")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a whole number above 0")
    return value


def _terminated(number: int, frame: object) -> NoReturn:
    del number, frame
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
