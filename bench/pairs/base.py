"""What every pair of proxies has in common.

To add one: a module with a subclass of :class:`ProxyPair` that writes two configurations and gives
two command lines, and its place in ``bench/pairs/__init__.py``. Near is the proxy that clients
connect to in plain TCP; far is the one that connects to the service; between them TLS 1.3 with
AES-256-GCM, where each checks the other's certificate, and near checks far's name.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.children import Child, children, free_ports, wait_until
from bench.pairs.tap import Tap

#: Where everything listens unless a delayed path lies between the proxies.
LOOPBACK = "127.0.0.1"
#: Names of the near and the far proxy, and of their files under the PKI directory.
NEAR_NAME = "gw-a"
FAR_NAME = "gw-b"
#: The only cipher suite peers are allowed.
CIPHER_SUITE = "TLS_AES_256_GCM_SHA384"
#: Buffer per direction, in bytes, where a peer lets it be set: what qproxy reads at once.
BUFFER_BYTES = 256 * 1024
#: Where Debian puts servers; not on everybody's PATH.
_SERVER_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/sbin")
_VERSION_TIMEOUT_S = 10.0
_TICKET_S = 0.2
#: From this OpenSSL on there is ML-KEM in TLS.
_OPENSSL_WITH_ML_KEM = (3, 5)
#: Groups offered where there is, the wanted one first.
HYBRID_GROUPS = "X25519MLKEM768:X25519"


class Kind(enum.StrEnum):
    """What a row of a table is for."""

    SUBJECT = "subject"  # what the benchmark is about: qproxy
    PEER = "peer"  # what would be used in its place
    OTHER = "other"  # does the same another way; shown, but never the best peer
    LIMIT = "limit"  # what no proxy can beat


@dataclass(frozen=True, slots=True)
class Site:
    """Where one pair runs, once.

    Attributes:
        directory: for its files; empty, its own.
        pki: certificates, as ``qproxy pki init`` makes them.
        service_port: where the service listens on 127.0.0.1.
        entry_port: where clients shall connect.
        tunnel_port: of the far proxy, for the near one.
        helper_ports: for what else a pair needs.
        far_host: address the far proxy, or the service without proxies, shall listen at.
        path_host: address where the near one shall look for it; another one where a delayed path
            lies in between (see :mod:`bench.path`).
    """

    directory: Path
    pki: Path
    service_port: int
    entry_port: int
    tunnel_port: int
    helper_ports: tuple[int, ...]
    far_host: str = LOOPBACK
    path_host: str = LOOPBACK

    @classmethod
    def make(
        cls,
        directory: Path,
        pki: Path,
        service_port: int,
        far_host: str = LOOPBACK,
        path_host: str = LOOPBACK,
    ) -> Site:
        """A site with free ports."""
        directory.mkdir(parents=True)
        entry, tunnel, *helpers = free_ports(6)
        return cls(directory, pki, service_port, entry, tunnel, tuple(helpers), far_host, path_host)

    @property
    def far_address(self) -> str:
        """Where the far proxy shall listen for the near one, HOST:PORT."""
        return f"{self.far_host}:{self.tunnel_port}"

    @property
    def path_address(self) -> str:
        """Where the near proxy reaches the far one, HOST:PORT."""
        return f"{self.path_host}:{self.tunnel_port}"

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file."""
        path = self.directory / name
        path.write_text(text)
        return path


@dataclass(slots=True)
class Running:
    """A pair at work.

    Attributes:
        port: where clients connect.
        proxies: near and far, by those words; their CPU time counts.
        helpers: other processes of the pair, which do not.
        facts: what the pair turned out to do: mode, cipher, epochs.
        host: the address clients connect to.
    """

    port: int
    proxies: dict[str, Child] = field(default_factory=dict)
    helpers: list[Child] = field(default_factory=list)
    facts: dict[str, str | int] = field(default_factory=dict)
    host: str = LOOPBACK

    @property
    def processes(self) -> list[Child]:
        """All of them."""
        return [*self.helpers, *self.proxies.values()]

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time of each proxy so far, in seconds."""
        return {role: child.cpu_seconds() for role, child in self.proxies.items()}


class ProxyPair(abc.ABC):
    """One kind of proxy, one way to configure it. Holds nothing of a run.

    Attributes:
        name: the row's name.
        kind: what the row is for.
        program: executable, looked for on PATH and where servers lie.
    """

    name: str
    kind: Kind = Kind.PEER
    program: str = ""
    _observed: dict[str, str | int] | None = None

    def missing(self) -> str | None:
        """Why this pair cannot run here, or None."""
        if self.program and self.executable() is None:
            return f"{self.program} is not installed"
        return None

    @abc.abstractmethod
    def version(self) -> str:
        """The program's version and its TLS library's, in one line."""

    def parameters(self) -> dict[str, str | int]:
        """What was set that has an influence on the result."""
        return {"cipher_suite": CIPHER_SUITE, "resumption": "off"}

    @abc.abstractmethod
    def far_command(self, site: Site) -> Sequence[str]:
        """Write the far proxy's configuration; how to start it in the foreground."""

    @abc.abstractmethod
    def near_command(self, site: Site) -> Sequence[str]:
        """Write the near proxy's configuration; how to start it in the foreground."""

    def helper_commands(self, site: Site) -> Sequence[Sequence[str]]:
        """What has to run before the proxies."""
        del site
        return ()

    def await_far(self, site: Site, running: Running) -> None:
        """Wait, where it matters, until the far proxy is ready; the near one starts after it.

        Raises:
            BenchError: it does not get ready.
        """
        del site, running

    def await_tunnel(self, site: Site, running: Running) -> None:
        """Wait until the proxies are ready for each other; a connection is tried afterwards.

        Raises:
            BenchError: they do not get ready.
        """
        wait_until(
            lambda: listens(site.tunnel_port, site.far_host),
            f"{self.name} (far)",
            running.processes,
        )
        wait_until(lambda: listens(site.entry_port), f"{self.name} (near)", running.processes)
        running.facts |= self.observed(site)

    def observed(self, site: Site) -> dict[str, str | int]:
        """What near and far agree on, read off the wire once (see :mod:`bench.pairs.tap`).

        Raises:
            BenchError: no connection between them came about.
        """
        if self._observed is None:
            self._observed = self._observe(site)
        return self._observed

    def _observe(self, site: Site) -> dict[str, str | int]:
        behind = Site.make(site.directory / "observed", site.pki, site.service_port)
        tap = Tap((LOOPBACK, behind.tunnel_port))
        in_front = replace(behind, tunnel_port=tap.port)
        commands = {"far": self.far_command(behind), "near": self.near_command(in_front)}
        with contextlib.closing(tap), children() as started:
            for role, command in commands.items():
                log = behind.directory / f"{role}.log"
                started.append(Child(f"{self.name} ({role})", command, log))
            for port in (behind.tunnel_port, behind.entry_port):
                wait_until(partial(listens, port), self.name, started)
            # The second connection shows whether sessions are resumed.
            for wanted in (1, 2):
                with socket.create_connection((LOOPBACK, behind.entry_port), 5.0) as sock:
                    wait_until(partial(tap.has, wanted), self.name, started)
                    # A ticket comes after the handshake: leave near some time to take it.
                    sock.settimeout(_TICKET_S)
                    with contextlib.suppress(TimeoutError):
                        sock.recv(1)
            seen = tap.hellos()
        resumed = any(hello.resumed for hello in seen)
        return {**seen[0].facts(), "resumed": "yes" if resumed else "no"}

    def facts_at_end(self, running: Running) -> dict[str, str | int]:
        """What is only known once the processes have ended."""
        del running
        return {}

    @contextlib.contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        """Start the pair, wait until it is ready, end it. Raises BenchError."""
        running = Running(site.entry_port)
        with children() as started:

            def start(role: str, command: Sequence[str]) -> Child:
                log = site.directory / f"{role}.log"
                child = Child(f"{self.name} ({role})", command, log)
                started.append(child)
                return child

            for index, command in enumerate(self.helper_commands(site)):
                running.helpers.append(start(f"helper{index}", command))
            running.proxies["far"] = start("far", self.far_command(site))
            self.await_far(site, running)
            running.proxies["near"] = start("near", self.near_command(site))
            self.await_tunnel(site, running)
            yield running
            for child in running.processes:
                child.check()
        running.facts |= self.facts_at_end(running)

    def executable(self) -> str | None:
        """The program's path, or None."""
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SERVER_DIRECTORIES])
        return shutil.which(self.program, path=path)

    def require_executable(self) -> str:
        """The program's path; :meth:`missing` was asked before."""
        return self.executable() or self.program


def listens(port: int, host: str = LOOPBACK) -> bool:
    """Whether somebody takes connections at a port."""
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def hybrid_groups(version: str) -> str | None:
    """The groups to set in a program whose OpenSSL has X25519MLKEM768, or None.

    Args:
        version: of the program and its library, as :meth:`ProxyPair.version` has it.
    """
    found = re.search(r"OpenSSL (\d+)\.(\d+)", version)
    known = found is not None and (int(found[1]), int(found[2])) >= _OPENSSL_WITH_ML_KEM
    return HYBRID_GROUPS if known else None


def output_of(*command: str) -> str:
    """What a command that only tells something prints, on both streams; "" where it fails."""
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout + result.stderr


def combined_pem(site: Site, name: str) -> Path:
    """A file with the certificate and its key, as some programs want it."""
    path = site.directory / f"{name}-both.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        (site.pki / f"{name}.pem").read_bytes() + (site.pki / f"{name}.key").read_bytes()
    )
    return path
