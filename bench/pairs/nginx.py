"""nginx's stream module: an event loop, OpenSSL."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bench.pairs.base import (
    BUFFER_BYTES,
    CIPHER_SUITE,
    FAR_NAME,
    NEAR_NAME,
    ProxyPair,
    Site,
    output_of,
)

#: Environment variable with a directory to look for the stream module in, first.
MODULES_VARIABLE = "QPROXY_BENCH_NGINX_MODULES"
#: Two for each stream, one of them to the other proxy; nginx sets them aside when it starts.
MAX_CONNECTIONS = 32768
_MODULE = "ngx_stream_module.so"
_MODULE_DIRECTORIES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules")


class NginxStream(ProxyPair):
    """Two single-process nginx.

    Args:
        buffer_bytes: ``proxy_buffer_size``; None leaves nginx's default of 16 KiB.
    """

    name = "nginx stream"
    program = "nginx"

    def __init__(self, buffer_bytes: int | None = BUFFER_BYTES) -> None:
        self._buffer_bytes = buffer_bytes

    def missing(self) -> str | None:
        """Debian has the stream module in a package of its own."""
        reason = super().missing()
        if reason is None and not self._is_built_in() and _module_path() is None:
            return "nginx is installed without its stream module (libnginx-mod-stream)"
        return reason

    def version(self) -> str:
        """Such as ``nginx 1.22.1, OpenSSL 3.0.22``."""
        text = output_of(self.require_executable(), "-V")
        program = re.search(r"nginx/(\S+)", text)
        library = re.search(r"running with (OpenSSL \S+)|built with (OpenSSL \S+)", text)
        return (
            f"nginx {program.group(1) if program else 'unknown'}, "
            f"{(library.group(1) or library.group(2)) if library else 'unknown TLS library'}"
        )

    def parameters(self) -> dict[str, str | int]:
        """The buffer can be set."""
        return {**super().parameters(), "proxy_buffer_size": self._buffer_bytes or "default"}

    def far_command(self, site: Site) -> Sequence[str]:
        """TLS in, plain out. The client's certificate must be the authority's."""
        pki = site.pki
        return self._command(
            site,
            "far",
            f"listen {site.far_address} ssl;\n"
            f"proxy_pass 127.0.0.1:{site.service_port};\n"
            f"ssl_certificate {pki / FAR_NAME}.pem; ssl_certificate_key {pki / FAR_NAME}.key;\n"
            f"ssl_client_certificate {pki / 'ca.pem'}; ssl_verify_client on;\n"
            "ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;\n"
            f"ssl_conf_command Ciphersuites {CIPHER_SUITE};\n",
        )

    def near_command(self, site: Site) -> Sequence[str]:
        """Plain in, TLS out."""
        pki, name = site.pki, NEAR_NAME
        return self._command(
            site,
            "near",
            f"listen 127.0.0.1:{site.entry_port};\n"
            f"proxy_pass {site.path_address}; proxy_ssl on;\n"
            f"proxy_ssl_certificate {pki / name}.pem; proxy_ssl_certificate_key {pki / name}.key;\n"
            f"proxy_ssl_trusted_certificate {pki / 'ca.pem'}; proxy_ssl_verify on;\n"
            f"proxy_ssl_name {FAR_NAME}; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;\n"
            "proxy_ssl_session_reuse off;\n"
            f"proxy_ssl_conf_command Ciphersuites {CIPHER_SUITE};\n",
        )

    def _command(self, site: Site, role: str, server: str) -> Sequence[str]:
        module = "" if self._is_built_in() else f"load_module {_module_path()};\n"
        buffer = f"proxy_buffer_size {self._buffer_bytes};\n" if self._buffer_bytes else ""
        path = site.write(
            f"{role}.conf",
            f"{module}daemon off; master_process off;\n"
            f"pid {site.directory / role}.pid; error_log stderr warn;\n"
            f"events {{ worker_connections {MAX_CONNECTIONS}; }}\n"
            f"stream {{\nproxy_timeout 1h; tcp_nodelay on;\n{buffer}server {{\n{server}}}\n}}\n",
        )
        return [self.require_executable(), "-p", str(site.directory), "-c", str(path)]

    def _is_built_in(self) -> bool:
        return (
            re.search(r"--with-stream(\s|$)", output_of(self.require_executable(), "-V"))
            is not None
        )


def _module_path() -> Path | None:
    directories = [os.environ.get(MODULES_VARIABLE, ""), *_MODULE_DIRECTORIES]
    for directory in directories:
        if directory and (path := Path(directory) / _MODULE).is_file():
            return path
    return None
