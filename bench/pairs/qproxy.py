"""Two qproxy gateways with a pair of simulated KMEs beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.children import Child, wait_until
from bench.pairs.base import FAR_NAME, NEAR_NAME, Kind, ProxyPair, Running, Site, output_of
from bench.stats import BenchError

_SERVICE = "bench"


class QProxy(ProxyPair):
    """Hybrid mode, demanded by policy: no run can quietly measure anything less.

    Args:
        name: the row's name.
        rekey_interval_s: how often the running tunnel changes keys, in seconds.
        peer_settings: more settings of the peer, in both gateways' configurations.
        workers: processes that carry traffic, of each gateway.
        node_settings: more settings of the nodes.
        listener_tls: clients speak TLS to the near gateway.
        hybrid: anything less than the hybrid mode is an error; else ``peer_settings`` must allow
            for it.

    Attributes:
        hybrid: as above.
    """

    kind = Kind.SUBJECT

    def __init__(
        self,
        name: str = "qproxy",
        rekey_interval_s: float = 60.0,
        peer_settings: Mapping[str, object] | None = None,
        workers: int = 1,
        node_settings: Mapping[str, object] | None = None,
        listener_tls: bool = False,
        *,
        hybrid: bool = True,
    ) -> None:
        self.name = name
        self._rekey_interval_s = rekey_interval_s
        self._peer_settings = dict(peer_settings or {})
        self._workers = workers
        self._node_settings = dict(node_settings or {})
        self._listener_tls = listener_tls
        self.hybrid = hybrid

    def version(self) -> str:
        """What ``qproxy --version`` prints, in one line."""
        return ", ".join(output_of(*_QPROXY, "--version").split("\n")).strip(", ")

    def parameters(self) -> dict[str, str | int]:
        """The record protection is AES-256-GCM as the peers', the handshake has ML-KEM and QKD."""
        return {
            "policy": str(self._peer_settings.get("policy", "require")),
            "aead": "aes-256-gcm",
            "kem": "ml-kem-1024",
            "rekey_interval_s": f"{self._rekey_interval_s:g}",
            "workers": self._workers,
            **{key: str(value) for key, value in self._node_settings.items()},
        }

    def helper_commands(self, site: Site) -> Sequence[Sequence[str]]:
        """The KMEs. Their CPU time is not the gateways': they stand in for other machines."""
        kmes = {
            name: _identity(site, name) | {"listen": f"127.0.0.1:{port}"}
            for name, port in zip(("kme-a", "kme-b"), site.helper_ports, strict=False)
        }
        path = _write(
            site,
            "kme",
            {"kme_sim": {"kmes": kmes, "saes": {NEAR_NAME: "kme-a", FAR_NAME: "kme-b"}}},
        )
        return [[*_QPROXY, "kme-sim", path]]

    def far_command(self, site: Site) -> Sequence[str]:
        """The gateway beside the service."""
        config = self._gateway(site, FAR_NAME, NEAR_NAME, "kme-b", site.helper_ports[1])
        config["tunnel"] = {"listen": site.far_address}
        config["services"] = {_SERVICE: {"connect": f"127.0.0.1:{site.service_port}"}}
        return [*_QPROXY, "run", _write(site, "far", config)]

    def near_command(self, site: Site) -> Sequence[str]:
        """The gateway beside the client, which dials."""
        config = self._gateway(site, NEAR_NAME, FAR_NAME, "kme-a", site.helper_ports[0])
        config["peers"][FAR_NAME]["address"] = site.path_address
        config["listeners"] = {
            _SERVICE: {
                "listen": f"127.0.0.1:{site.entry_port}",
                "peer": FAR_NAME,
                "service": _SERVICE,
                "tls": _server_files(site) if self._listener_tls else None,
            }
        }
        return [*_QPROXY, "run", _write(site, "near", config)]

    def await_tunnel(self, site: Site, running: Running) -> None:
        """The near gateway's log tells when the tunnel is up, and in which mode."""
        near = running.proxies["near"]
        wait_until(
            lambda: any(gateway_events(near, "tunnel_up")),
            f"{self.name}: tunnel",
            running.processes,
        )
        up = next(gateway_events(near, "tunnel_up"))
        mode = up.get("mode")
        if self.hybrid and mode != "hybrid":
            raise BenchError(f"{self.name}: expected a hybrid tunnel, got {mode}")
        running.facts |= {
            "mode": str(mode),
            "tls_cipher": str(up.get("tls_cipher")),
            "group": str(up.get("tls_group")),
        }

    def facts_at_end(self, running: Running) -> dict[str, str | int]:
        """Epochs, from the near gateway's last words. Raises BenchError where one was classical."""
        for totals in gateway_events(running.proxies["near"], "peer_totals"):
            if self.hybrid and totals["classical_epochs"]:
                raise BenchError(f"{self.name}: {totals['classical_epochs']} classical epochs")
            return {"epochs": totals["hybrid_epochs"], "keys": totals["keys"]}
        raise BenchError(f"{self.name}: no totals in {running.proxies['near'].log}")

    def _gateway(self, site: Site, name: str, peer: str, kme: str, kme_port: int) -> dict[str, Any]:
        identity = _identity(site, name)
        source = {"type": "etsi-qkd-014", "url": f"https://127.0.0.1:{kme_port}", **identity}
        return {
            "node": {"name": name, "workers": self._workers, **self._node_settings},
            "log": {"format": "json", "level": "info"},
            "identity": identity,
            "peers": {
                peer: {
                    "key_source": kme,
                    "policy": "require",
                    "aead": "aes-256-gcm",
                    "kem": "ml-kem-1024",
                    "rekey": {"interval_s": self._rekey_interval_s},
                    **self._peer_settings,
                }
            },
            "key_sources": {kme: source},
            "shutdown": {"drain_s": 2},
        }


_QPROXY = (sys.executable, "-m", "qproxy")


def _identity(site: Site, name: str) -> dict[str, str]:
    return {
        "certificate": str(site.pki / f"{name}.pem"),
        "private_key": str(site.pki / f"{name}.key"),
        "ca": str(site.pki / "ca.pem"),
    }


def _server_files(site: Site) -> dict[str, str]:
    """What a listener shows to applications."""
    return {
        "certificate": str(site.pki / "server.pem"),
        "private_key": str(site.pki / "server.key"),
    }


def _write(site: Site, role: str, config: dict[str, Any]) -> str:
    # YAML is a superset of JSON.
    return str(site.write(f"{role}.yaml", json.dumps(config, indent=2)))


def gateway_events(child: Child, name: str) -> Iterator[dict[str, Any]]:
    """Events of that name in a gateway's log; a line still being written is passed over."""
    for line in child.log.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == name:
            yield event
