"""`qproxy status`: ask a running gateway's admin listener, and show what it says."""

from __future__ import annotations

import argparse
import http
import json
from typing import Any, Final

from qproxy.address import Address, parse_address
from qproxy.admin.text import StatusFormatError, status_lines
from qproxy.cli.local_http import LocalHttpError, fetch
from qproxy.cli.output import ExitCode, print_error
from qproxy.config.reader import load_gateway_config
from qproxy.log import escape

#: Largest answer read; some thousand peers fit.
MAX_ANSWER_BYTES: Final = 64 << 20
_MAX_LINE_CHARS: Final = 500


class _AskError(Exception):
    """No answer that can be used. Carries a message and a hint."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def status_command(options: argparse.Namespace) -> ExitCode:
    """Print the status; 1 where the gateway cannot be asked. A gateway in trouble is still 0."""
    if (options.address is None) == (options.config is None):
        print_error("expected either ADDRESS or --config CONFIG", "see 'qproxy status --help'")
        return ExitCode.USAGE
    try:
        address = _address(options)
        body = _ask(address)
        if options.json:
            print(json.dumps(body, indent=2))
        else:
            for line in status_lines(body):
                print(escape(line, _MAX_LINE_CHARS, backslashes=False))
    except StatusFormatError as error:
        print_error(str(error), "another version of qproxy may run there; --json shows it as it is")
        return ExitCode.FAILED
    except _AskError as error:
        print_error(str(error), error.hint)
        return ExitCode.FAILED
    return ExitCode.DONE


def _address(options: argparse.Namespace) -> Address:
    if options.address is not None:
        try:
            return parse_address(options.address)
        except ValueError as error:
            raise _AskError(str(error), "for example 127.0.0.1:9464") from None
    listen = load_gateway_config(options.config).admin.listen
    if listen is None:
        raise _AskError(
            f"{options.config} has no admin.listen", "add 'admin: {listen: 127.0.0.1:9464}'"
        )
    return listen


def _ask(address: Address) -> dict[str, Any]:
    try:
        status, found = fetch(address, "GET", "/status", max_answer_bytes=MAX_ANSWER_BYTES)
    except LocalHttpError as error:
        raise _AskError(
            str(error), "is the gateway running, with admin.listen at this address?"
        ) from None
    if status != http.HTTPStatus.OK:
        raise _AskError(
            f"{address} answered with status {status}", "is this the admin listener of a gateway?"
        )
    if found is None:
        raise _AskError(f"{address} did not answer with a status document")
    return found
