"""One exchange with an HTTP interface of this machine: a loopback address or a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, Final

from qproxy.address import Address, TcpAddress, UnixAddress

#: For connecting, and for each piece of the answer.
TIMEOUT_S: Final = 5.0
#: Largest answer read where nothing else is said.
MAX_ANSWER_BYTES: Final = 16 << 20


class LocalHttpError(Exception):
    """No answer that can be used. The message is fit to be shown."""


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


def exchange(
    address: Address, method: str, path: str, document: Mapping[str, object] | None = None
) -> tuple[int, dict[str, Any]]:
    """Send a request and read the answer, which must be a JSON object.

    Args:
        address: where to.
        method: such as ``GET``.
        path: such as ``/network``.
        document: the body, or None for none.

    Returns:
        The status and the object.

    Raises:
        LocalHttpError: nobody answers, or not with a JSON object.
    """
    status, found = fetch(address, method, path, document)
    if found is None:
        raise LocalHttpError(f"{address} answered {status} and no JSON object")
    return status, found


def fetch(
    address: Address,
    method: str,
    path: str,
    document: Mapping[str, object] | None = None,
    *,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
) -> tuple[int, dict[str, Any] | None]:
    """The same where any answer will do; None for one that is no JSON object, or too large.

    Raises:
        LocalHttpError: nobody answers, or not in HTTP.
    """
    connection = _connection(address)
    headers = {"Accept": "application/json"}
    body = None
    if document is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(dict(document))
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        answer = response.read(max_answer_bytes + 1)
    except OSError as error:
        raise LocalHttpError(f"no answer from {address}: {error.strerror or error}") from None
    except http.client.HTTPException as error:
        raise LocalHttpError(f"{address} does not speak HTTP ({type(error).__name__})") from None
    finally:
        connection.close()
    try:
        found = json.loads(answer) if len(answer) <= max_answer_bytes else None
    except (ValueError, RecursionError):
        found = None
    return response.status, found if isinstance(found, dict) else None


def _connection(address: Address) -> http.client.HTTPConnection:
    if isinstance(address, UnixAddress):
        return _UnixConnection(address.path)
    return http.client.HTTPConnection(_reachable(address), address.port, timeout=TIMEOUT_S)


def _reachable(address: TcpAddress) -> str:
    """Where to connect to reach a listener on every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
