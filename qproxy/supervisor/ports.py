"""The addresses of a gateway with several workers, reserved before any worker runs.

TCP ports of listeners are bound here and listened on by the workers (SO_REUSEPORT), so that a
worker that dies takes no waiting connection but its own with it, and a dead gateway refuses
connections rather than let them hang. A unix socket cannot be shared so: the supervisor listens,
and every worker inherits the socket and accepts from it. Tunnels the supervisor accepts itself.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import trio

from qproxy.address import Address, TcpAddress, UnixAddress
from qproxy.config.model import GatewayConfig
from qproxy.net.listen import open_listeners, reserve_port
from qproxy.runtime.gateway import GatewayError
from qproxy.runtime.listeners import text_address


class Ports:
    """Every address of one gateway but the admin listener's.

    Attributes:
        addresses: where each listener is, by its name; ports 0 have become real ones.
        shared: listening unix sockets by the listener's name, for workers to inherit.
        tunnel: where tunnels from peers arrive.
    """

    def __init__(self, config: GatewayConfig) -> None:
        """Reserve them. Raises GatewayError naming the one that cannot be had."""
        self.addresses: dict[str, Address] = {}
        self.shared: dict[str, socket.socket] = {}
        self.tunnel: list[socket.socket] = []
        self._reserved: dict[str, list[socket.socket]] = {}
        try:
            for name, listener in config.listeners.items():
                where = f"listeners.{name}.listen: {listener.listen}"
                self._reserve(name, listener.listen)
            if config.tunnel.listen is not None:
                where = f"tunnel.listen: {config.tunnel.listen}"
                self.tunnel = open_listeners(config.tunnel.listen)
                self._tunnel_address = config.tunnel.listen
        except OSError as error:
            self.close()
            raise GatewayError(f"{where}: {error.strerror or error}") from None

    def texts(self) -> dict[str, list[str]]:
        """The listeners' addresses, for the log."""
        return {
            name: [text_address(sock.getsockname()) for sock in sockets]
            for name, sockets in self._reserved.items()
        }

    def close(self) -> None:
        """Give all of them up. Idempotent."""
        for sock in self.tunnel:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        if self.tunnel and isinstance(self._tunnel_address, UnixAddress):
            _remove(self._tunnel_address)
        for sockets in self._reserved.values():
            for sock in sockets:
                sock.close()
        for name in self.shared:
            address = self.addresses[name]
            if isinstance(address, UnixAddress):
                _remove(address)
        self.tunnel, self._reserved, self.shared = [], {}, {}

    def _reserve(self, name: str, address: Address) -> None:
        if isinstance(address, UnixAddress):
            sockets = open_listeners(address)
            self.shared[name] = sockets[0]
            self.addresses[name] = address
        else:
            sockets = reserve_port(address)
            self.addresses[name] = TcpAddress(address.host, sockets[0].getsockname()[1])
        self._reserved[name] = sockets


def _remove(address: UnixAddress) -> None:
    with contextlib.suppress(OSError):
        Path(address.path).unlink()
