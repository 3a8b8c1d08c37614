"""What ``python -m bench`` has to know of a benchmark to offer and run it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.pairs import Kind, ProxyPair, all_pairs
from bench.record import Record
from bench.study import Study

#: Where an option would have a unit of its own, megabytes are of 10^6 bytes.
MEGABYTE = 10**6


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark on the command line.

    ``--rounds``, ``--quick`` and ``--output`` every benchmark has.

    Attributes:
        name: the word after ``python -m bench``.
        summary: one line.
        rounds: by default.
        run: measures; gives the record and the page that shows it. Reads ``rounds``, ``quick`` and
            its own options from the namespace.
        add_options: adds its own options, if it has any.
        minutes: about how long that takes with its defaults and every peer, on two cores.
    """

    name: str
    summary: str
    rounds: int
    run: Callable[[argparse.Namespace], tuple[Record | Study, str]]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    minutes: int = field(kw_only=True)


def add_pair_option(parser: argparse.ArgumentParser) -> None:
    """``--pair NAME``, again and again."""
    parser.add_argument(
        "--pair",
        action="append",
        dest="pairs",
        choices=[pair.name for pair in all_pairs()],
        help="measure only this pair; may be given again",
    )


def chosen_pairs(options: argparse.Namespace) -> list[ProxyPair]:
    """Those named by ``--pair``, or all of them."""
    return [pair for pair in all_pairs() if options.pairs is None or pair.name in options.pairs]


def one_subject(options: argparse.Namespace) -> list[ProxyPair]:
    """The pairs asked for, or all peers and qproxy once: its variants differ in other things."""
    pairs = chosen_pairs(options)
    if options.pairs is not None:
        return pairs
    subjects = [pair for pair in pairs if pair.kind is Kind.SUBJECT]
    return [pair for pair in pairs if pair not in subjects[1:]]


def add_megabytes_option(parser: argparse.ArgumentParser, default_bytes: int) -> None:
    """``--megabytes``: how much one timed transfer moves."""
    parser.add_argument(
        "--megabytes",
        type=positive,
        default=default_bytes // MEGABYTE,
        help="10^6 bytes in one timed transfer (default: %(default)s)",
    )


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a whole number above 0")
    return value
