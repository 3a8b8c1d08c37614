"""What benchmarks over delayed paths share: options, records, and a namespace to run in.

Such a benchmark's module runs as a program, too, inside a :mod:`bench.namespace`: :func:`inside`
starts it there, and there it calls :func:`run_part`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from bench import namespace
from bench.children import sigterm_as_exit
from bench.command import add_pair_option, chosen_pairs, positive
from bench.host import Host
from bench.pairs import ProxyPair
from bench.path import CONGESTION_CONTROL, PathSettings
from bench.record import Figure, Record
from bench.rounds import utc_now
from bench.store import load_record


@dataclass(frozen=True, slots=True)
class PathParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pair is measured.
        round_trips_ms: of the delayed paths.
        megabits_per_s: of the paths.
        congestion_control: TCP's on the paths.
        small_s: how long small requests are sent, each time.
        lead_s: how long bulk runs before small requests beside it, and 15 round trips more.
    """

    rounds: int
    round_trips_ms: tuple[float, ...]
    megabits_per_s: float = 1000.0
    congestion_control: str = CONGESTION_CONTROL
    small_s: float = 4.0
    lead_s: float = 1.0


ParametersT = TypeVar("ParametersT", bound=PathParameters)


def path_record(
    benchmark: str,
    parameters: PathParameters,
    figures: tuple[Figure, ...],
    *,
    value: str,
    cost: str = "",
) -> Record:
    """An empty record; arguments as its attributes."""
    return Record(
        benchmark=benchmark,
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "round_trips_ms": ", ".join(f"{each:g}" for each in parameters.round_trips_ms),
            "path_tools": namespace.tools(),
        },
        value=value,
        cost=cost,
        figures=figures,
    )


def inside(module: str, pairs: Sequence[ProxyPair], parameters: PathParameters) -> Record:
    """Let a benchmark's module run as a program in a network namespace, and read its record."""
    names = [pair.name for pair in pairs]
    given = json.dumps(asdict(parameters))
    with tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory:
        output = Path(directory) / "record.json"
        namespace.run_inside(module, [given, json.dumps(names), str(output)])
        record = load_record(output)
    if not isinstance(record, Record):
        raise TypeError(f"expected a record of pairs, got {type(record).__name__}")
    return record


def run_part(
    kind: type[ParametersT], run: Callable[[Sequence[ProxyPair], ParametersT], Record]
) -> None:
    """Be the program that :func:`inside` starts.

    Args:
        kind: of the parameters.
        run: measures, here.
    """
    parameters, names, output = sys.argv[1:]
    with sigterm_as_exit():
        pairs = chosen_pairs(argparse.Namespace(pairs=json.loads(names)))
        run(pairs, kind(**json.loads(parameters))).write(Path(output))


def lead_of(path: PathSettings | None, lead_s: float) -> float:
    """How long bulk runs before small requests beside it, in seconds: it has to fill the path."""
    return lead_s if path is None else lead_s + 15 * path.round_trip_ms / 1000


def add_path_options(parser: argparse.ArgumentParser) -> None:
    """``--pair``, ``--round-trip MS``, again and again, and ``--congestion-control``."""
    add_pair_option(parser)
    parser.add_argument(
        "--congestion-control",
        default=CONGESTION_CONTROL,
        metavar="NAME",
        help="TCP's on the paths, such as bbr (default: %(default)s)",
    )
    parser.add_argument(
        "--round-trip",
        action="append",
        dest="round_trips_ms",
        type=positive,
        metavar="MS",
        help="only paths of this round trip, in milliseconds; may be given again",
    )
