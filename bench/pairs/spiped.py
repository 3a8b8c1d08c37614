"""spiped: a process with an event loop, a pre-shared key, and cryptography of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial

from bench.children import wait_until
from bench.pairs.base import LOOPBACK, Kind, ProxyPair, Running, Site, listens, output_of

_KEY_BYTES = 32


class Spiped(ProxyPair):
    """Two spiped with one key file.

    Not a peer but another way to do it: AES-256-CTR with HMAC-SHA-256 in packets of 1 KiB instead
    of TLS and AES-256-GCM, and no certificates. It is shown, and never the best peer.
    """

    name = "spiped"
    kind = Kind.OTHER
    program = "spiped"

    def version(self) -> str:
        """Such as ``spiped 1.6.2``."""
        text = re.search(r"spiped (\S+)", output_of(self.require_executable(), "-v"))
        return f"spiped {text.group(1) if text else 'unknown'}"

    def parameters(self) -> dict[str, str | int]:
        """Nothing but the number of connections can be set."""
        return {
            "cipher": "its own: AES-256-CTR with HMAC-SHA-256",
            "group": "Diffie-Hellman, 2048 bits (group 14)",
            "authentication": "pre-shared key",
            "resumption": "none",
        }

    def far_command(self, site: Site) -> Sequence[str]:
        """Encrypted in, plain out."""
        source = f"[{site.far_host}]:{site.tunnel_port}"
        return self._command(site, "-d", source, f"[{LOOPBACK}]:{site.service_port}")

    def near_command(self, site: Site) -> Sequence[str]:
        """Plain in, encrypted out."""
        target = f"[{site.path_host}]:{site.tunnel_port}"
        return self._command(site, "-e", f"[{LOOPBACK}]:{site.entry_port}", target)

    def await_tunnel(self, site: Site, running: Running) -> None:
        """There is no TLS to look at."""
        for port, host in ((site.tunnel_port, site.far_host), (site.entry_port, LOOPBACK)):
            wait_until(partial(listens, port, host), self.name, running.processes)

    def _command(self, site: Site, mode: str, source: str, target: str) -> Sequence[str]:
        key = site.directory / "key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(_KEY_BYTES))
        program = self.require_executable()
        return [program, "-F", mode, "-s", source, "-t", target, "-k", str(key), "-n", "0"]
