"""Addresses as the configuration writes them: a TCP endpoint or a unix socket.

A leaf that opens nothing and resolves nothing, so that the configuration, the runtime and the
simulator can all name an endpoint in the same way.

    127.0.0.1:7443      IPv4 address and port
    [::1]:7443          IPv6 address, in brackets, and port
    db.example:5432     host name and port, resolved when it is used
    unix:/run/db.sock   unix stream socket
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

#: A port is 16 bits. 0 asks the system for a free port and only means something for a listener.
MAX_PORT = 65535

#: RFC 1035 §2.3.4: a host name is at most 253 characters as text, a label at most 63.
MAX_HOST_CHARS = 253

#: Linux `sun_path` holds 108 bytes, one of them the terminating NUL.
MAX_UNIX_PATH_BYTES = 107

_UNIX_PREFIX = "unix:"
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_FORMS = "expected 'HOST:PORT', '[IPV6]:PORT' or 'unix:/PATH'"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP endpoint.

    Attributes:
        host: IPv4 address, IPv6 address without brackets, or host name.
        port: 0 to 65535; 0 asks for any free port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """The text that `parse_address` reads back."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing outside this machine can take part: 127.0.0.0/8, ::1 or `localhost`."""
        if self.host.lower() == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_loopback


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix stream socket.

    Attributes:
        path: Path of the socket file, at most MAX_UNIX_PATH_BYTES bytes.
    """

    path: str

    def __str__(self) -> str:
        """The text that `parse_address` reads back."""
        return f"{_UNIX_PREFIX}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Always true: a unix socket never leaves the machine."""
        return True


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Read an address in one of the forms at the top of this module.

    Args:
        text: The address as it stands in a configuration or on a command line.

    Raises:
        ValueError: The text is none of the forms; the message says what was expected.
    """
    if text.startswith(_UNIX_PREFIX):
        return _parse_unix(text.removeprefix(_UNIX_PREFIX))
    host, separator, port_text = text.rpartition(":")
    if not separator:
        raise ValueError(f"{_FORMS}: the port is missing")
    port = _parse_port(port_text)
    if host.startswith("[") or host.endswith("]"):
        return TcpAddress(_parse_ipv6(host), port)
    if ":" in host:
        raise ValueError(f"{_FORMS}: an IPv6 address stands in brackets, like '[::1]:7443'")
    return TcpAddress(_parse_host(host), port)


def _parse_unix(path: str) -> UnixAddress:
    if not path:
        raise ValueError("expected 'unix:/PATH': the path is missing")
    if "\0" in path:
        raise ValueError("expected 'unix:/PATH': the path holds a NUL")
    length = len(path.encode("utf-8", "surrogateescape"))
    if length > MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"expected a unix socket path of at most {MAX_UNIX_PATH_BYTES} bytes, got {length}"
        )
    return UnixAddress(path)


def _parse_port(text: str) -> int:
    if not _PORT.match(text) or int(text) > MAX_PORT:
        raise ValueError(f"{_FORMS}: the port must be a number from 0 to {MAX_PORT}")
    return int(text)


def _parse_ipv6(text: str) -> str:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(f"{_FORMS}: the brackets around the IPv6 address do not match")
    try:
        return str(ipaddress.IPv6Address(text[1:-1]))
    except ValueError:
        raise ValueError(f"{_FORMS}: there is no IPv6 address in the brackets") from None


def _parse_host(host: str) -> str:
    if not host:
        raise ValueError(f"{_FORMS}: the host is missing")
    if len(host) > MAX_HOST_CHARS:
        raise ValueError(f"expected a host of at most {MAX_HOST_CHARS} characters, got {len(host)}")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{_FORMS}: the host is not an IPv4 address") from None
    labels = host.removesuffix(".").split(".")
    if not all(_HOST_LABEL.match(label) for label in labels):
        raise ValueError(f"{_FORMS}: the host is neither an address nor a host name")
    return host
