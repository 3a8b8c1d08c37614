"""Takes new certificates, keys, authorities and revocation lists into use while traffic flows.

Asked for by SIGHUP, and by itself when one of the files has changed. Everything is loaded and
checked before anything is replaced, so a broken file changes nothing: it is a loud line in the log,
and what was loaded before stays in use. The files are looked at by name, size and time rather than
watched by inotify, which knows nothing of network file systems and of symbolic links that move.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio
from OpenSSL import SSL

from qproxy.config.model import GatewayConfig, TlsSourceConfig
from qproxy.config.reader import load_gateway_config
from qproxy.errors import ConfigError, QproxyError
from qproxy.log import Logger
from qproxy.runtime.build import (
    SourceContexts,
    TunnelContexts,
    build_listener_context,
    build_service_context,
    build_source_contexts,
    build_tunnel_contexts,
)
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_names

#: How often the files are looked at, in seconds. A change takes hold once it was seen twice
#: unchanged, for a certificate and its key are rarely replaced in one instant.
FILES_CHECK_S: Final = 2.0

#: What a file looked like: inode, size in bytes and time of change in ns; None for no file.
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """TLS contexts made of the files of one moment; everything by its name in the configuration.

    Attributes:
        tunnels: for tunnels.
        listeners: for listeners with TLS.
        services: for services with TLS.
        sources: for key sources with TLS, one for each KME.
    """

    tunnels: TunnelContexts
    listeners: Mapping[str, SSL.Context]
    services: Mapping[str, SSL.Context]
    sources: Mapping[str, SourceContexts]


class Reloadable(Protocol):
    """What is reloaded: the gateway."""

    config: GatewayConfig
    loaded_files: Mapping[Path, Stamp]

    async def use_tls(
        self, material: TlsMaterial, *, tunnels: bool, sources: frozenset[str]
    ) -> None:
        """Take new contexts into use."""


def load_tls(config: GatewayConfig, now: dt.datetime) -> TlsMaterial:
    """Load everything anew.

    Args:
        config: names the files.
        now: what our certificate and the revocation lists are held against, in UTC.

    Raises:
        ConfigError: a file cannot be used, or would only get every tunnel refused.
    """
    _check_identity(config, now)
    return TlsMaterial(
        build_tunnel_contexts(config),
        {
            name: build_listener_context(listener.tls)
            for name, listener in config.listeners.items()
            if listener.tls is not None
        },
        {
            name: build_service_context(service.tls)
            for name, service in config.services.items()
            if service.tls is not None
        },
        {
            name: build_source_contexts(source)
            for name, source in config.key_sources.items()
            if isinstance(source, TlsSourceConfig)
        },
    )


def tunnel_files(config: GatewayConfig) -> frozenset[Path]:
    """The files that tunnels authenticate with."""
    identity = config.identity
    return _present(identity.certificate, identity.private_key, identity.ca, identity.crl)


def source_files(config: GatewayConfig) -> Mapping[str, frozenset[Path]]:
    """The files that each key source authenticates with."""
    return {
        name: frozenset().union(*(endpoint.files for endpoint in source.endpoints))
        for name, source in config.key_sources.items()
        if isinstance(source, TlsSourceConfig)
    }


def stamps(config: GatewayConfig) -> dict[Path, Stamp]:
    """What every certificate, key, authority and revocation list looks like now."""
    files = set(tunnel_files(config)).union(*source_files(config).values())
    for listener in config.listeners.values():
        if (end := listener.tls) is not None:
            files |= _present(end.certificate, end.private_key, end.client_ca)
    for service in config.services.values():
        if (to := service.tls) is not None:
            files |= _present(to.certificate, to.private_key, to.ca)
    return {path: _stamp(path) for path in files}


class Reloader:
    """Watches one gateway's files, and answers its operator."""

    def __init__(
        self,
        gateway: Reloadable,
        log: Logger,
        *,
        period_s: float = FILES_CHECK_S,
        utc_now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        """Nothing runs yet.

        Args:
            gateway: what to reload.
            log: where to say so.
            period_s: how often to look at the files.
            utc_now: the time of day.
        """
        self._gateway = gateway
        self._config = gateway.config
        self._log = log
        self._period_s = period_s
        self._utc_now = utc_now
        self._asked = trio.Event()
        self._in_use = dict(gateway.loaded_files)
        self._tried = self._seen = self._in_use
        self._prepared: tuple[dict[Path, Stamp], TlsMaterial] | None = None

    def ask(self) -> None:
        """The operator wants everything loaded again."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the files, and do what is asked, until cancelled."""
        while True:
            with trio.move_on_after(self._period_s):
                await self._asked.wait()
            if self._asked.is_set():
                self._asked = trio.Event()
                await self._reload_all()
            else:
                await self._look()

    # For a gateway that is one of several workers: all of them replace what they use, or none.

    async def prepare(self) -> None:
        """Load and check everything, and change nothing yet. Raises ConfigError."""
        now = stamps(self._config)
        material = await trio.to_thread.run_sync(
            partial(load_tls, self._config, self._utc_now()), abandon_on_cancel=True
        )
        self._prepared = now, material

    async def commit(self) -> None:
        """Take into use what was prepared last."""
        if self._prepared is None:
            return
        (now, material), self._prepared = self._prepared, None
        sources = frozenset(source_files(self._config))
        await self._gateway.use_tls(material, tunnels=True, sources=sources)
        self._in_use = self._tried = self._seen = now

    # Inside.

    async def _look(self) -> None:
        now, before = stamps(self._config), self._seen
        self._seen = now
        if now == before and now != self._tried:
            changed = frozenset(path for path in now if now[path] != self._in_use.get(path))
            sources = source_files(self._config)
            await self._reload(
                now,
                cause="files",
                tunnels=bool(changed & tunnel_files(self._config)),
                sources=frozenset(name for name, files in sources.items() if files & changed),
                files=sorted(str(path) for path in changed),
            )

    async def _reload_all(self) -> None:
        await compare_with_file(self._config, self._log)
        now = self._seen = stamps(self._config)
        sources = frozenset(source_files(self._config))
        await self._reload(now, cause="signal", tunnels=True, sources=sources, files=None)

    async def _reload(
        self,
        now: dict[Path, Stamp],
        *,
        cause: str,
        tunnels: bool,
        sources: frozenset[str],
        files: list[str] | None,
    ) -> None:
        # Told once: a file that stays broken is tried again when it has changed.
        self._tried = now
        try:
            material = await trio.to_thread.run_sync(
                partial(load_tls, self._config, self._utc_now()), abandon_on_cancel=True
            )
            await self._gateway.use_tls(material, tunnels=tunnels, sources=sources)
        except ConfigError as error:
            self._log.error(
                "reload_failed",
                cause=cause,
                detail=str(error),
                hint=error.hint,
                in_use="what was loaded before",
            )
        except Exception as error:  # a fault of ours must not end the gateway
            self._log.unexpected("reload_failed", error, cause=cause)
        else:
            self._in_use = now
            self._log.info("reloaded", cause=cause, files=files, tunnels_prove_again=tunnels)


async def compare_with_file(config: GatewayConfig, log: Logger) -> None:
    """Only files that the configuration names are loaded again: say so where that matters."""
    try:
        wanted = await trio.to_thread.run_sync(
            load_gateway_config, config.path, abandon_on_cancel=True
        )
    except ConfigError as error:
        log.warning("configuration_not_read", detail=str(error), hint=error.hint)
        return
    if wanted != config:
        log.warning("configuration_changed", file=str(config.path), hint="restart to apply it")


def _check_identity(config: GatewayConfig, now: dt.datetime) -> None:
    """What loads well may still be refused by every peer."""
    files, name = config.identity, config.node.name
    leaf = TlsIdentity.load(files.certificate, files.private_key).certificate
    try:
        names = certificate_names(leaf)
    except (QproxyError, ValueError):
        raise ConfigError("has names that cannot be read", file=files.certificate) from None
    if name not in names:
        raise ConfigError(
            f"expected '{name}' among its subject alternative names", file=files.certificate
        )
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise ConfigError(
            f"is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} "
            f"to {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC only",
            file=files.certificate,
        )
    for revocations in TrustStore.load(files.ca, files.crl).crls:
        due = revocations.next_update_utc
        if due is not None and due <= now:
            raise ConfigError(
                f"is out of date since {due:%Y-%m-%d %H:%M} UTC, so every peer would be refused",
                file=files.crl,
                hint="fetch the authority's current list",
            )


def _present(*paths: Path | None) -> frozenset[Path]:
    return frozenset(path for path in paths if path is not None)


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
