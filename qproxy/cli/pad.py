"""`qproxy pad make`: the two halves of a pre-shared pad, for key sources of type `file`."""

from __future__ import annotations

import argparse

from qproxy.cli.output import ExitCode, print_warning
from qproxy.errors import ConfigError
from qproxy.sources.file import make_key_directories


def pad_make_command(options: argparse.Namespace) -> ExitCode:
    """Write both directories and say what to do with them."""
    try:
        make_key_directories(
            options.site_a, options.site_b, number=options.number, size_bits=options.size_bits
        )
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} exists already",
            hint="old and new keys are never mixed: name directories that do not exist",
        ) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(options.site_a)
    print(options.site_b)
    print_warning(
        "these keys are random numbers of this machine, a pre-shared pad: they are no QKD keys",
        f"carry {options.site_b} to the other site over a channel you trust, and delete it here",
    )
    return ExitCode.DONE
