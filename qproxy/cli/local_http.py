"""One exchange with an HTTP interface of this machine: a loopback address or a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, Final

from qproxy.address import Address, UnixAddress

#: For connecting, and for each piece of the answer.
TIMEOUT_S: Final = 5.0
#: Largest answer read.
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
    connection: http.client.HTTPConnection
    if isinstance(address, UnixAddress):
        connection = _UnixConnection(address.path)
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    headers = {"Accept": "application/json"}
    body = None
    if document is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(dict(document))
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER_BYTES + 1)
    except OSError as error:
        raise LocalHttpError(f"no answer from {address}: {error.strerror or error}") from None
    except http.client.HTTPException as error:
        raise LocalHttpError(f"{address} does not speak HTTP ({type(error).__name__})") from None
    finally:
        connection.close()
    try:
        found = json.loads(answer) if len(answer) <= MAX_ANSWER_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LocalHttpError(f"{address} answered {response.status} and no JSON object")
    return response.status, found
