"""`qproxy pki init`: a trial authority and identities."""

from __future__ import annotations

import argparse

from qproxy.cli.output import ExitCode, print_warning
from qproxy.pki import DEFAULT_NAMES, KeyAlgorithm, init_pki


def pki_init_command(options: argparse.Namespace) -> ExitCode:
    """Make the files and say which."""
    written = init_pki(
        options.directory,
        names=options.names or DEFAULT_NAMES,
        dns=options.dns,
        algorithm=KeyAlgorithm(options.algorithm),
        days=options.days,
    )
    for path in written:
        print(path)
    print_warning(
        "this authority is for TRIALS: whoever reads its key can become any gateway",
        f"nothing that runs needs {options.directory / 'ca-private'}; move it away or delete it",
    )
    return ExitCode.DONE
