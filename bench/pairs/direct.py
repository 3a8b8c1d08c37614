"""No proxies: the client connects to the service. What the load generator itself can do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from bench.pairs.base import Kind, ProxyPair, Running, Site


class Direct(ProxyPair):
    """Plain TCP, over loopback or whatever path lies in between."""

    name = "direct TCP"
    kind = Kind.LIMIT

    def version(self) -> str:
        """There is no program."""
        return "no proxies"

    def parameters(self) -> dict[str, str | int]:
        """There is nothing to set."""
        return {}

    def far_command(self, site: Site) -> Sequence[str]:
        """There is no far proxy."""
        raise NotImplementedError

    def near_command(self, site: Site) -> Sequence[str]:
        """There is no near proxy."""
        raise NotImplementedError

    @contextlib.contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        """Clients connect to the service itself."""
        yield Running(site.service_port, host=site.path_host)
