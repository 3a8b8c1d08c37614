"""The options of `qproxy audit`. Apart from what it does, so that the parser loads little."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Final

#: A hash of the chain, SHA-384, as hexadecimal digits.
_HASH: Final = re.compile(r"[0-9a-fA-F]{96}")
#: A time as in records, or its beginning.
_TIME: Final = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d(\.\d{6}Z)?)?)?)?)?)?", re.ASCII)


def add_audit(commands: argparse._SubParsersAction[Any], epilog: str) -> None:
    """Add `audit` with its two commands to the parser."""
    audit = commands.add_parser("audit", help="check audit logs")
    subcommands = audit.add_subparsers(metavar="COMMAND", required=True)
    one = subcommands.add_parser(
        "verify",
        help="whether a log is whole and unchanged",
        description="Checks FILE and the files rotated out of it (FILE.000001 and so on), and "
        "those of workers beside it (FILE-w0 and so on). Prints the head of each chain: noted "
        "elsewhere, it proves all before it the next time.",
        epilog=epilog,
    )
    one.add_argument("file", type=Path, metavar="FILE", help="the log in use, or one rotated file")
    one.add_argument(
        "--expect-head", type=_hash, metavar="HASH", help="the last record must have this hash"
    )
    one.add_argument(
        "--contains",
        type=_hash,
        metavar="HASH",
        help="some record must have this hash: a head that was noted earlier",
    )
    one.add_argument(
        "--partial", action="store_true", help="older files of the chain may be missing"
    )
    one.add_argument("--hmac-key-file", type=Path, metavar="FILE", help="the key of a keyed chain")
    one.set_defaults(command="qproxy.cli.audit:verify_command")

    two = subcommands.add_parser(
        "compare",
        help="whether the logs of two gateways tell the same story",
        description="Verifies both logs, then compares every epoch of the tunnels between them.",
        epilog=epilog,
    )
    two.add_argument("a", type=Path, metavar="A", help="one gateway's log")
    two.add_argument("b", type=Path, metavar="B", help="the other's")
    two.add_argument("--since", type=_time, metavar="TIME", help="leave out epochs before (UTC)")
    two.add_argument("--until", type=_time, metavar="TIME", help="leave out epochs after (UTC)")
    two.add_argument("--hmac-key-file-a", type=Path, metavar="FILE", help="key of A's chain")
    two.add_argument("--hmac-key-file-b", type=Path, metavar="FILE", help="key of B's chain")
    two.set_defaults(command="qproxy.cli.audit:compare_command")


def _hash(text: str) -> bytes:
    if not _HASH.fullmatch(text):
        raise argparse.ArgumentTypeError("expected 96 hexadecimal digits")
    return bytes.fromhex(text)


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise argparse.ArgumentTypeError("expected YYYY-MM-DDThh:mm:ss, or the beginning of it")
    return text
