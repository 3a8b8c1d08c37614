"""`qproxy status`: ask a running gateway's admin listener, and show what it says."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
from typing import Any, Final

from qproxy.address import Address, TcpAddress, UnixAddress, parse_address
from qproxy.admin.text import StatusFormatError, status_lines
from qproxy.cli.output import ExitCode, print_error
from qproxy.config.reader import load_gateway_config
from qproxy.log import escape

#: For connecting, and for each piece of the answer.
TIMEOUT_S: Final = 5.0
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


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix stream socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def _ask(address: Address) -> dict[str, Any]:
    connection = _connection(address)
    try:
        connection.request("GET", "/status", headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES + 1)
    except OSError as error:
        raise _AskError(
            f"no answer from {address}: {error.strerror or error}",
            "is the gateway running, with admin.listen at this address?",
        ) from None
    except http.client.HTTPException as error:
        raise _AskError(f"{address} does not speak HTTP ({type(error).__name__})") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _AskError(
            f"{address} answered with status {response.status}",
            "is this the admin listener of a gateway?",
        )
    try:
        found = json.loads(body) if len(body) <= MAX_ANSWER_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _AskError(f"{address} did not answer with a status document")
    return found


def _connection(address: Address) -> http.client.HTTPConnection:
    if isinstance(address, UnixAddress):
        return _UnixConnection(address.path)
    return http.client.HTTPConnection(_reachable(address), address.port, timeout=TIMEOUT_S)


def _reachable(address: TcpAddress) -> str:
    """Where to connect to reach a listener on every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
