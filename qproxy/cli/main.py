"""`qproxy COMMAND`: the parser, and what becomes of every way a command can end.

Commands are imported when they are called, so that `qproxy --version` starts no trio and loads
no TLS.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from qproxy.cli.audit_options import add_audit
from qproxy.cli.kme_options import add_kme, add_kme_ctl, joined
from qproxy.cli.output import ExitCode, print_config_error, print_error
from qproxy.errors import ConfigError, QproxyError

_EXIT_CODES: Final = (
    "exit codes: 0 done, 1 failed at run time, 2 wrong usage, 78 wrong configuration"
)


class _Parser(argparse.ArgumentParser):
    """argparse, saying `error:` and `hint:` like the rest of the program."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line and leave with code 2."""
        print_error(message, f"see '{self.prog} --help'")
        raise SystemExit(ExitCode.USAGE)


class _Version(argparse.Action):
    """Prints versions. A class, so that they are only looked up when asked for."""

    def __call__(self, *_arguments: object) -> NoReturn:
        from qproxy.cli.version import version_text  # noqa: PLC0415 - see the module's docstring

        print(version_text())
        raise SystemExit(ExitCode.DONE)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="qproxy",
        description="A pair of gateways that put a quantum-safe link under TCP services.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="versions of qproxy, OpenSSL and liboqs"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a gateway", epilog=_EXIT_CODES)
    run.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of a gateway")
    run.set_defaults(command="qproxy.cli.run:run_command", interrupted=ExitCode.DONE)

    # Started by 'qproxy run' for node.workers; without help, so that nobody is shown it.
    worker = commands.add_parser("worker")
    worker.add_argument("--number", type=int, required=True)
    worker.add_argument("--channel", type=int, required=True)
    worker.set_defaults(command="qproxy.cli.run:worker_command")

    check = commands.add_parser(
        "check",
        help="say what a configuration does, and what is wrong with it",
        description="Reads a configuration, certificates and keys included; changes nothing.",
        epilog=_EXIT_CODES,
    )
    check.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    check.set_defaults(command="qproxy.cli.check:check_command")

    reload = commands.add_parser(
        "reload",
        help="have a running gateway load its certificates and revocation lists again",
        description="Checks the configuration, then signals the gateway that runs with it, which "
        "it finds by node.pid_file. Connections go on. What stands in the configuration itself "
        "takes a restart.",
        epilog=_EXIT_CODES,
    )
    reload.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of a gateway")
    reload.set_defaults(command="qproxy.cli.reload:reload_command")

    _add_pki(commands)
    _add_pad(commands)

    sim = commands.add_parser(
        "kme-sim",
        help="run simulated KMEs (ETSI GS QKD 014) and the network between them",
        description="Runs until it is ended. 'qproxy kme-sim ctl' disturbs it meanwhile. Its keys "
        "come from a random number generator and protect nothing.",
        epilog=_EXIT_CODES,
    )
    sim.add_argument("config", type=Path, metavar="CONFIG", help="YAML file with a kme_sim section")
    sim.set_defaults(command="qproxy.cli.run:kme_sim_command", interrupted=ExitCode.DONE)

    add_kme_ctl(commands, _EXIT_CODES)
    add_kme(commands, _EXIT_CODES)
    _add_status(commands)
    add_audit(commands, _EXIT_CODES)
    _add_demo(commands)
    return parser


def _add_pki(commands: argparse._SubParsersAction[_Parser]) -> None:
    pki = commands.add_parser("pki", help="certificates for trials")
    init = pki.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "init",
        help="make a trial authority and identities",
        description="Makes DIR with a trial authority and identities for two gateways, two "
        "simulated KMEs and a server on localhost. Overwrites nothing.",
        epilog=_EXIT_CODES,
    )
    init.add_argument("directory", type=Path, metavar="DIR", help="made with mode 0700")
    init.add_argument(
        "--algorithm",
        choices=("ecdsa-p256", "ml-dsa-65"),
        default="ecdsa-p256",
        help="of every key (default: %(default)s)",
    )
    init.add_argument(
        "--name",
        action="append",
        dest="names",
        metavar="NAME",
        help="a gateway; may be given again (default: gw-a and gw-b)",
    )
    init.add_argument(
        "--days", type=int, default=365, metavar="N", help="validity (default: %(default)s)"
    )
    init.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="NAME",
        help="one more name or IP address for the 'server' identity; may be given again",
    )
    init.set_defaults(command="qproxy.cli.pki:pki_init_command")


def _add_pad(commands: argparse._SubParsersAction[_Parser]) -> None:
    pad = commands.add_parser("pad", help="pre-shared pads, for sites without a KME")
    make = pad.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "make",
        help="write the matching directories of two sites",
        description="Writes random keys into two directories, one for each site, for key sources "
        "of type 'file'. Each key is used once. Overwrites nothing.",
        epilog=_EXIT_CODES,
    )
    make.add_argument("site_a", type=Path, metavar="SITE_A", help="made with mode 0700")
    make.add_argument("site_b", type=Path, metavar="SITE_B", help="the same, for the other site")
    make.add_argument(
        "--number",
        type=int,
        default=10_000,
        metavar="N",
        help="keys for each direction (default: %(default)s)",
    )
    make.add_argument(
        "--size-bits",
        type=int,
        default=256,
        metavar="BITS",
        help="size of each key (default: %(default)s)",
    )
    make.set_defaults(command="qproxy.cli.pad:pad_make_command")


def _add_status(commands: argparse._SubParsersAction[_Parser]) -> None:
    status = commands.add_parser(
        "status",
        help="ask a running gateway how it is",
        description="Asks the admin listener of a running gateway: what is wrong first, then "
        "peers, keys, tunnels and listeners.",
        epilog=_EXIT_CODES,
    )
    status.add_argument(
        "address", nargs="?", metavar="ADDRESS", help="HOST:PORT or unix:/PATH of admin.listen"
    )
    status.add_argument(
        "--config", type=Path, metavar="CONFIG", help="take the address from a gateway's YAML file"
    )
    status.add_argument(
        "--json", action="store_true", help="print the document as it is (docs/operations.md)"
    )
    status.set_defaults(command="qproxy.cli.status:status_command")


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="watch two gateways, two KMEs and a service at work on this machine",
        epilog=_EXIT_CODES,
    )
    demo.add_argument("--json", action="store_true", help="print the result as JSON")
    demo.add_argument(
        "--megabytes",
        type=_positive,
        default=None,
        metavar="N",
        help="how much to move in bulk, in units of 10^6 bytes",
    )
    demo.add_argument(
        "--connections",
        type=_positive,
        default=None,
        metavar="N",
        help="how many short connections",
    )
    demo.add_argument(
        "--keep-dir",
        type=Path,
        default=None,
        metavar="PATH",
        help="work in this directory and leave certificates, configurations and logs there",
    )
    demo.set_defaults(command="qproxy.cli.run:demo_command")


def _positive(text: str) -> int:
    try:
        value = int(text) if len(text) <= 9 else 0
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 999999999")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Only argparse itself ever exits."""
    options = build_parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    module, _, function = str(options.command).partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(options))
    except BaseException as error:
        return _ended_by(error, getattr(options, "interrupted", ExitCode.FAILED))
    finally:
        _close_log()


def _ended_by(error: BaseException, interrupted: ExitCode) -> ExitCode:
    """Say why a command ended, and choose its exit code."""
    leaves = _leaves(error)
    if any(isinstance(leaf, SystemExit) for leaf in leaves):
        raise error
    faults = [leaf for leaf in leaves if isinstance(leaf, ConfigError)]
    if faults:
        for fault in faults:
            print_config_error(fault)
        return ExitCode.CONFIG
    expected = [leaf for leaf in leaves if isinstance(leaf, QproxyError | OSError)]
    if len(expected) == len(leaves):
        for leaf in expected:
            _print_expected(leaf)
        return ExitCode.FAILED
    if all(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        if interrupted is not ExitCode.DONE:
            print_error("interrupted")
        return interrupted
    _print_internal(error, leaves)
    return ExitCode.FAILED


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, however deep, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _print_expected(error: BaseException) -> None:
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has left. Python would complain about it once more at exit.
        sys.stdout = None
        return
    print_error(str(error) or type(error).__name__, getattr(error, "hint", None))


def _print_internal(error: BaseException, leaves: Sequence[BaseException]) -> None:
    # Types only: the text of an error nobody foresaw may quote anything.
    names = ", ".join(sorted({type(leaf).__name__ for leaf in leaves}))
    debug = logging.getLogger("qproxy").isEnabledFor(logging.DEBUG)
    hint = "this is a fault of qproxy; please report it"
    print_error(f"internal error {names}", hint if debug else f"{hint} (log level debug says more)")
    if debug:
        from qproxy.log import MAX_TRACEBACK_CHARS, escape, traceback_text  # noqa: PLC0415

        for line in traceback_text(error)[:MAX_TRACEBACK_CHARS].splitlines():
            print(escape(line), file=sys.stderr)


def _close_log() -> None:
    log = sys.modules.get("qproxy.log")
    if log is not None:
        log.close_logging()
