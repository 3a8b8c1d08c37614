"""What the command line says: results on standard output, `error:`, `warning:` and `hint:`
lines on standard error, and one closed set of exit codes.
"""

from __future__ import annotations

import enum
import sys
from typing import Final

from qproxy.errors import ConfigError
from qproxy.log import escape

#: Longest message shown, in characters before escaping.
MAX_MESSAGE_CHARS: Final = 2000


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 78
    """EX_CONFIG of sysexits.h."""


def print_error(message: str, hint: str | None = None) -> None:
    """One `error:` line, and a `hint:` line where there is something to do."""
    _print("error", message)
    if hint:
        _print("hint", hint)


def print_warning(message: str, hint: str | None = None) -> None:
    """One `warning:` line, and a `hint:` line where there is something to do."""
    _print("warning", message)
    if hint:
        _print("hint", hint)


def print_config_error(error: ConfigError) -> None:
    """Every fault of a configuration, one after the other."""
    for fault in getattr(error, "errors", (error,)):
        print_error(str(fault), fault.hint)


def _print(kind: str, text: str) -> None:
    # Names and paths in it come from files; none of them may speak to the terminal.
    print(f"{kind}: {escape(text, MAX_MESSAGE_CHARS, backslashes=False)}", file=sys.stderr)
