"""stunnel: one thread per connection, OpenSSL."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.pairs.base import (
    CIPHER_SUITE,
    FAR_NAME,
    NEAR_NAME,
    ProxyPair,
    Site,
    hybrid_groups,
    output_of,
)


class Stunnel(ProxyPair):
    """A client-mode and a server-mode stunnel. Its buffers (18 KiB) cannot be set."""

    name = "stunnel4"
    program = "stunnel4"

    def version(self) -> str:
        """Such as ``stunnel 5.68, OpenSSL 3.0.22``."""
        text = output_of(self.require_executable(), "-version")
        program = re.search(r"stunnel (\S+) on", text)
        library = re.search(r"Running\s+with (OpenSSL \S+)", text) or re.search(
            r"(OpenSSL \d\S+)", text
        )
        return f"stunnel {_first(program)}, {_first(library)}"

    def far_command(self, site: Site) -> Sequence[str]:
        """TLS in, plain out."""
        return self._command(
            site,
            FAR_NAME,
            f"accept = {site.far_address}\nconnect = 127.0.0.1:{site.service_port}\n"
            f"checkHost = {NEAR_NAME}\n",
        )

    def near_command(self, site: Site) -> Sequence[str]:
        """Plain in, TLS out."""
        return self._command(
            site,
            NEAR_NAME,
            f"client = yes\naccept = 127.0.0.1:{site.entry_port}\n"
            f"connect = {site.path_address}\nsni = {FAR_NAME}\ncheckHost = {FAR_NAME}\n",
        )

    def _command(self, site: Site, name: str, service: str) -> Sequence[str]:
        pki = site.pki
        groups = hybrid_groups(self.version())
        curves = f"curves = {groups}\n" if groups else ""
        path = site.write(
            f"{name}.conf",
            "foreground = yes\npid =\ndebug = warning\nsyslog = no\n"
            "socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
            "sslVersionMin = TLSv1.3\n"
            f"ciphersuites = {CIPHER_SUITE}\n"
            "sessionResume = no\n"
            f"{curves}"
            f"cert = {pki / name}.pem\nkey = {pki / name}.key\nCAfile = {pki / 'ca.pem'}\n"
            f"verifyChain = yes\n\n[bench]\n{service}",
        )
        return [self.require_executable(), str(path)]


def _first(match: re.Match[str] | None) -> str:
    return match.group(1) if match else "unknown"
