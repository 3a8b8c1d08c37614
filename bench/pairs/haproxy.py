"""HAProxy in TCP mode: an event loop per thread, OpenSSL."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.pairs.base import (
    BUFFER_BYTES,
    CIPHER_SUITE,
    FAR_NAME,
    NEAR_NAME,
    ProxyPair,
    Site,
    combined_pem,
    output_of,
)


class HAProxy(ProxyPair):
    """TCP frontends; threads as it chooses (one per core).

    Args:
        buffer_bytes: ``tune.bufsize``; None leaves HAProxy's default of 16 KiB.
    """

    name = "haproxy"
    program = "haproxy"

    def __init__(self, buffer_bytes: int | None = BUFFER_BYTES) -> None:
        self._buffer_bytes = buffer_bytes

    def version(self) -> str:
        """Such as ``HAProxy 2.6.12-1+deb12u4, OpenSSL 3.0.22``."""
        text = output_of(self.require_executable(), "-vv")
        program = re.search(r"HAProxy version (\S+)", text)
        library = re.search(r"Running on OpenSSL version : (OpenSSL \S+)", text)
        return (
            f"HAProxy {program.group(1) if program else 'unknown'}, "
            f"{library.group(1) if library else 'unknown TLS library'}"
        )

    def parameters(self) -> dict[str, str | int]:
        """The buffer can be set."""
        default = "default"
        return {**super().parameters(), "tune.bufsize": self._buffer_bytes or default}

    def far_command(self, site: Site) -> Sequence[str]:
        """TLS in, plain out. The client's certificate must be the authority's and near's."""
        return self._command(
            site,
            "far",
            f"frontend tunnel\n"
            f"    bind {site.far_address} ssl crt {combined_pem(site, FAR_NAME)}"
            f" ca-file {site.pki / 'ca.pem'} verify required no-tls-tickets\n"
            f"    tcp-request session reject unless {{ ssl_c_s_dn(cn) -m str {NEAR_NAME} }}\n"
            f"    default_backend service\n"
            f"backend service\n"
            f"    server service 127.0.0.1:{site.service_port}\n",
        )

    def near_command(self, site: Site) -> Sequence[str]:
        """Plain in, TLS out."""
        return self._command(
            site,
            "near",
            f"frontend entry\n"
            f"    bind 127.0.0.1:{site.entry_port}\n"
            f"    default_backend far\n"
            f"backend far\n"
            f"    server far {site.path_address} ssl crt {combined_pem(site, NEAR_NAME)}"
            f" ca-file {site.pki / 'ca.pem'} verify required verifyhost {FAR_NAME}"
            f" sni str({FAR_NAME}) no-ssl-reuse\n",
        )

    def _command(self, site: Site, role: str, sections: str) -> Sequence[str]:
        bufsize = f"    tune.bufsize {self._buffer_bytes}\n" if self._buffer_bytes else ""
        path = site.write(
            f"{role}.cfg",
            "global\n"
            f"    ssl-default-bind-ciphersuites {CIPHER_SUITE}\n"
            f"    ssl-default-server-ciphersuites {CIPHER_SUITE}\n"
            "    ssl-default-bind-options ssl-min-ver TLSv1.3\n"
            "    ssl-default-server-options ssl-min-ver TLSv1.3\n"
            "    tune.ssl.cachesize 0\n"
            f"{bufsize}"
            "defaults\n"
            "    mode tcp\n"
            "    timeout connect 5s\n"
            "    timeout client 1h\n"
            "    timeout server 1h\n"
            f"{sections}",
        )
        return [self.require_executable(), "-db", "-f", str(path)]
