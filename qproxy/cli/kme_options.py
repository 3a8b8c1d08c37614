"""The command line of `qproxy kme` and `qproxy kme-sim ctl`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

#: As in :data:`qproxy.kme_check.plan.DEFAULT_MAX_KEYS`, which is not imported for a help text.
DEFAULT_MAX_KEYS: Final = 320
#: Most keys that a run may be allowed to use.
MAX_KEYS: Final = 100_000


def add_kme(commands: argparse._SubParsersAction[Any], exit_codes: str) -> None:
    """Add `kme`."""
    kme = commands.add_parser("kme", help="look at the KMEs of a key source", epilog=exit_codes)
    check = kme.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "check",
        help="say how two KMEs stand to ETSI GS QKD 014, and what qproxy makes of it",
        description="Runs the client's view of ETSI GS QKD 014 v1.1.1 against live KMEs, as the "
        "SAE that the configuration names: draws a few keys at one KME, fetches them at the "
        "other, and tries the documented errors. Name both gateways' configurations to reach "
        "both ends; with one, the checks that need the other are skipped and listed. The keys "
        "are lost. No key is shown or kept.",
        epilog="exit codes: 0 a gateway can live with these KMEs, 1 it cannot, or a KME does not "
        "answer (with --strict: anything deviates), 2 wrong usage, 78 wrong configuration",
    )
    check.add_argument(
        "configs", type=Path, nargs="+", metavar="CONFIG", help="YAML file of a gateway; one or two"
    )
    check.add_argument(
        "--source",
        action="append",
        dest="sources",
        default=[],
        metavar="NAME",
        help="key source to look at, where there are several; NAME/KME for one of its KMEs; "
        "may be given again, for the other end",
    )
    check.add_argument(
        "--keys",
        type=_keys,
        default=DEFAULT_MAX_KEYS,
        metavar="N",
        help="use this many keys at most, even where a KME gives what it should refuse; what "
        "does not fit is left out; 0 asks for none (default: %(default)s)",
    )
    hand = check.add_mutually_exclusive_group()
    hand.add_argument(
        "--hand-over",
        type=Path,
        metavar="FILE",
        help="with one end: write the IDs and hashes of the keys drawn here into a new file, for "
        "the other site to fetch and compare; no key is in it",
    )
    hand.add_argument(
        "--take-over",
        type=Path,
        metavar="FILE",
        help="with one end: fetch the keys that the other site handed over, and compare them",
    )
    check.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 where anything deviates, tolerated or not",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(command="qproxy.cli.kme:kme_check_command")


#: Where the simulator listens for events in the examples.
DEFAULT_CONTROL: Final = "127.0.0.1:8440"
#: The words that :func:`joined` makes one of, so that argparse takes them for a command.
CTL: Final = "kme-sim ctl"


def joined(arguments: Sequence[str]) -> list[str]:
    """`kme-sim ctl` as one word: after `kme-sim` argparse would take `ctl` for a file."""
    if list(arguments[:2]) == CTL.split():
        return [CTL, *arguments[2:]]
    return list(arguments)


def add_kme_ctl(commands: argparse._SubParsersAction[Any], exit_codes: str) -> None:
    """Add `kme-sim ctl`, for :func:`joined` arguments."""
    ctl = commands.add_parser(
        CTL,
        help="let something happen to a running simulator, or see how it stands",
        description="'status' shows spans, routes, relays and KMEs; 'events' lists every event "
        "and what it takes; any other word is an event: 'cut north', 'intercept north 0.3', "
        "'crash kme-a store=lost', 'restore'. A simulated link is disturbed, no real one.",
        epilog=exit_codes,
    )
    ctl.add_argument("words", nargs="+", metavar="EVENT", help="the event, then what it is about")
    ctl.add_argument(
        "--control",
        default=DEFAULT_CONTROL,
        metavar="ADDRESS",
        help="HOST:PORT, unix:/PATH or URL of kme_sim.control.listen, or the YAML file that has "
        "it (default: %(default)s)",
    )
    ctl.add_argument("--json", action="store_true", help="print the network as JSON")
    ctl.set_defaults(command="qproxy.cli.kme_ctl:kme_ctl_command")


def _keys(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else -1
    if not 0 <= value <= MAX_KEYS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {MAX_KEYS}")
    return value
