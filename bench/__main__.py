"""`python -m bench`: lists the benchmarks, or runs one."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bench.faults import FAULTS, chosen_faults
from bench.keybudget import KeyBudgetParameters, keybudget_markdown, run_keybudget
from bench.pairs import ProxyPair, all_pairs
from bench.record import Record
from bench.rekey import RekeyParameters, rekey_markdown, run_rekey
from bench.study import Study
from bench.switchover import SwitchoverParameters, run_switchover, switchover_markdown
from bench.throughput import ThroughputParameters, run_throughput, throughput_markdown

RESULTS = Path(__file__).resolve().parent / "results"
_THROUGHPUT = ThroughputParameters()
_REKEY = RekeyParameters()
_SWITCHOVER = SwitchoverParameters()
_KEY_BUDGET = KeyBudgetParameters()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmarks of qproxy, beside other proxies and against its own goals.",
    )
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", dest="benchmark")
    throughput = benchmarks.add_parser(
        "throughput", help="bulk throughput of one connection, down and up"
    )
    _common(throughput, _THROUGHPUT.rounds)
    _megabytes(throughput, _THROUGHPUT.sample_bytes)
    throughput.add_argument(
        "--pair",
        action="append",
        dest="pairs",
        choices=[pair.name for pair in all_pairs()],
        help="measure only this pair; may be given again",
    )
    switchover = benchmarks.add_parser(
        "switchover", help="falling back and climbing back, for every fault of the quantum side"
    )
    _common(switchover, _SWITCHOVER.rounds)
    switchover.add_argument(
        "--fault",
        action="append",
        dest="faults",
        metavar="NAME",
        help="only faults whose name begins so; may be given again: "
        + "; ".join(fault.name.replace("%", "%%") for fault in FAULTS),
    )
    rekey = benchmarks.add_parser("rekey", help="what a rekey every second costs")
    _common(rekey, _REKEY.rounds)
    _megabytes(rekey, _REKEY.sample_bytes)
    keybudget = benchmarks.add_parser(
        "keybudget", help="100 kbit/s of keys against streams opened as fast as the pair can"
    )
    _common(keybudget, _KEY_BUDGET.rounds)
    return parser


def _common(parser: argparse.ArgumentParser, rounds: int) -> None:
    name = parser.prog.rpartition(" ")[2]
    parser.add_argument("--rounds", type=_positive, default=rounds, help="(default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, help=f"JSON file (default: bench/results/{name}-DATE.json)"
    )


def _megabytes(parser: argparse.ArgumentParser, default_bytes: int) -> None:
    parser.add_argument(
        "--megabytes",
        type=_positive,
        default=default_bytes // 10**6,
        help="10^6 bytes in one timed transfer (default: %(default)s)",
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark. Returns 0, or 1 where something failed or broke, whatever the figures."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.benchmark is None:
        parser.print_help()
        return 0
    # Children are ended on the way out of an exception, so SIGTERM has to be one.
    signal.signal(signal.SIGTERM, _terminated)
    record, page = _run(options)
    output = options.output or RESULTS / f"{record.benchmark}-{_stamp(record.started)}.json"
    record.write(output)
    print(page)
    print(f"recorded in {output}", file=sys.stderr)
    if isinstance(record, Study):
        return 1 if record.failed else 0
    return 1 if any(row.failed for row in record.rows) else 0


def _run(options: argparse.Namespace) -> tuple[Record | Study, str]:
    """One benchmark's record and its page."""
    if options.benchmark == "switchover":
        faults = chosen_faults(options.faults)
        study = run_switchover(faults, SwitchoverParameters(rounds=options.rounds))
        return study, switchover_markdown(study)
    if options.benchmark == "keybudget":
        study = run_keybudget(KeyBudgetParameters(rounds=options.rounds))
        return study, keybudget_markdown(study)
    sample_bytes = options.megabytes * 10**6
    if options.benchmark == "rekey":
        record = run_rekey(RekeyParameters(rounds=options.rounds, sample_bytes=sample_bytes))
        return record, rekey_markdown(record)
    parameters = ThroughputParameters(rounds=options.rounds, sample_bytes=sample_bytes)
    record = run_throughput(_chosen(options.pairs), parameters)
    return record, throughput_markdown(record)


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
