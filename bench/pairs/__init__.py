"""Every pair of proxies a benchmark can measure, in the order of the tables."""

from __future__ import annotations

from bench.pairs.base import Kind, ProxyPair, Running, Site
from bench.pairs.direct import Direct
from bench.pairs.ghostunnel import Ghostunnel
from bench.pairs.haproxy import HAProxy
from bench.pairs.nginx import NginxStream
from bench.pairs.qproxy import QProxy
from bench.pairs.spiped import Spiped
from bench.pairs.stunnel import Stunnel

__all__ = ["Kind", "ProxyPair", "Running", "Site", "all_pairs"]


def all_pairs() -> list[ProxyPair]:
    """A fresh list of them."""
    return [
        QProxy(),
        QProxy("qproxy, rekey 1 s", rekey_interval_s=1.0),
        Stunnel(),
        HAProxy(),
        NginxStream(),
        Ghostunnel(),
        Spiped(),
        Direct(),
    ]
