"""ghostunnel: a goroutine per direction of a connection, Go's own TLS."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.pairs.base import FAR_NAME, LOOPBACK, NEAR_NAME, ProxyPair, Site, output_of

#: Where ``go install`` puts programs, where it was told.
GOBIN_VARIABLE = "GOBIN"


class Ghostunnel(ProxyPair):
    """A client and a server. Go chooses cipher suite and group itself; both are recorded.

    Go's TLS 1.3 prefers AES-128-GCM and cannot be told otherwise. That is less work than
    AES-256-GCM; ghostunnel stays a peer all the same, to its own advantage.
    """

    name = "ghostunnel"
    program = "ghostunnel"

    def executable(self) -> str | None:
        """On PATH, or where Go installs programs."""
        directories = [os.environ.get(GOBIN_VARIABLE, ""), str(Path.home() / "go" / "bin")]
        path = os.pathsep.join(directory for directory in directories if directory)
        return super().executable() or shutil.which(self.program, path=path)

    def version(self) -> str:
        """Such as ``ghostunnel 1.8.4 (go1.26)``."""
        text = output_of(self.require_executable(), "--version")
        told = re.search(r"rev (\S+) built with (\S+)", text)
        return f"ghostunnel {told.group(1)}, {told.group(2)}" if told else "ghostunnel unknown"

    def parameters(self) -> dict[str, str | int]:
        """Buffers (32 KiB, or splice) cannot be set, nor the cipher suite."""
        return {"cipher_suite": "Go's choice", "resumption": "off"}

    def far_command(self, site: Site) -> Sequence[str]:
        """TLS in, plain out. Near's name must be in the client's certificate."""
        where = ["--listen", site.far_address, "--target", f"{LOOPBACK}:{site.service_port}"]
        return [*self._common(site, FAR_NAME, "server"), *where, "--allow-dns", NEAR_NAME]

    def near_command(self, site: Site) -> Sequence[str]:
        """Plain in, TLS out."""
        where = ["--listen", f"{LOOPBACK}:{site.entry_port}", "--target", site.path_address]
        command = [*self._common(site, NEAR_NAME, "client"), *where]
        return [*command, "--override-server-name", FAR_NAME]

    def _common(self, site: Site, name: str, mode: str) -> list[str]:
        return [
            self.require_executable(),
            mode,
            *("--cert", str(site.pki / f"{name}.pem")),
            *("--key", str(site.pki / f"{name}.key")),
            *("--cacert", str(site.pki / "ca.pem")),
            *("--quiet", "all"),
        ]
