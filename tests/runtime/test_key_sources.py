"""Two whole gateways with sources of every kind: hybrid, and every key called what it is.

What log, status, metrics and audit trail say of the keys is held against the sources: a simulated
KME says so everywhere, a pad is a pre-shared pad, a SKIP provider's keys are what it says they are,
which is nothing, and none of them is ever called QKD.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from qproxy.admin.assess import assess
from qproxy.admin.document import status_document
from qproxy.admin.metrics import render_metrics
from qproxy.admin.snapshot import snapshot
from qproxy.admin.text import status_lines
from qproxy.config.reader import load_gateway_config, load_kme_sim_config
from qproxy.errors import Reason
from qproxy.log import get_logger
from qproxy.modes import ClientAuth, Mode
from qproxy.quantum.health import LinkState
from qproxy.runtime.gateway import Gateway
from qproxy.sim.server import run_kme_sim
from qproxy.sources.file import make_key_directories
from qproxy.tls.context import server_context
from qproxy.tls.identity import TlsIdentity, TrustStore
from tests.admin.test_gateways import SIM
from tests.e2e.pair import write_pki
from tests.sources.skip_provider import FakeProvider, provider_pair, serving

NAMES = ("gw-a", "gw-b")
SYSTEM_IDS = {"gw-a": "Alice", "gw-b": "Bob"}
#: What each kind's keys are called, everywhere.
KEYS_ARE = {"etsi-qkd-014": "simulated", "skip": "unstated", "file": "pre-shared-pad"}


@dataclass
class Site:
    """One gateway, and what it has written."""

    name: str
    room: Path
    gateway: Gateway
    log: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def said(self, event: str) -> list[Mapping[str, Any]]:
        return [fields for name, fields in self.log if name == event]

    @property
    def document(self) -> dict[str, Any]:
        status = snapshot(self.gateway, trio.current_time())
        found = status_document(status, assess(status), dt.datetime.now(dt.UTC))
        return json.loads(json.dumps(found))

    @property
    def metrics(self) -> str:
        status = snapshot(self.gateway, trio.current_time())
        return render_metrics(status, assess(status), "", process=False)[0].decode()

    def audit(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.room / f"{self.name}.audit").read_text().splitlines()
        records = [json.loads(line)["record"] for line in lines]
        return [record for record in records if record["kind"] == kind]


@dataclass
class World:
    """Both sites and the providers between them."""

    a: Site
    b: Site
    providers: tuple[FakeProvider, FakeProvider]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(30):
            while not condition():
                await trio.sleep(0.02)

    async def until_epochs(self, count: int) -> None:
        await self.until(
            lambda: all(len(site.said("epoch_committed")) >= count for site in (self.a, self.b))
        )

    async def until_audited(self, count: int) -> None:
        await self.until(
            lambda: all(len(s.audit("epoch_committed")) >= count for s in (self.a, self.b))
        )


def source_config(kind: str, name: str, urls: Mapping[str, str]) -> dict[str, Any]:
    if kind == "file":
        return {"type": "file", "directory": f"pad-{name}"}
    files = {
        "ca": "pki/ca.pem",
        "certificate": f"pki/{name}.pem",
        "private_key": f"pki/{name}.key",
    }
    return {"type": kind, "url": urls[f"{kind}/{name}"], **files}


def gateway_config(name: str, kinds: tuple[str, ...], urls: Mapping[str, str]) -> dict[str, Any]:
    other = NAMES[1 - NAMES.index(name)]
    peer: dict[str, Any] = {"rekey": {"interval_s": 0.3}}
    ids = {"local_sae_id": SYSTEM_IDS[name], "peer_sae_id": SYSTEM_IDS[other]}
    if len(kinds) == 1:
        peer |= {"key_source": f"{kinds[0]}-{name}"} | (ids if kinds == ("skip",) else {})
    else:
        peer["combine"] = "all"
        peer["key_sources"] = {
            f"path-{kind[:4]}": {"source": f"{kind}-{name}"} | (ids if kind == "skip" else {})
            for kind in kinds
        }
    return {
        "node": {"name": name},
        "identity": {
            "certificate": f"pki/{name}.pem",
            "private_key": f"pki/{name}.key",
            "ca": "pki/ca.pem",
        },
        "key_sources": {f"{kind}-{name}": source_config(kind, name, urls) for kind in kinds},
        "peers": {other: peer},
        "audit": {"file": f"{name}.audit"},
    }


@asynccontextmanager
async def world(
    room: Path, kinds: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> AsyncIterator[World]:
    """Two gateways whose tunnels take keys from sources of these kinds."""
    write_pki(room / "pki")
    make_key_directories(room / "pad-gw-a", room / "pad-gw-b", number=500)
    (room / "sim.yaml").write_text(SIM)
    alice, bob = provider_pair()
    caplog.set_level(logging.DEBUG)
    contexts = [
        server_context(
            TlsIdentity.load(room / "pki" / f"{kme}.pem", room / "pki" / f"{kme}.key"),
            trust=TrustStore.load(room / "pki" / "ca.pem"),
            client_auth=ClientAuth.REQUIRED,
        )
        for kme in ("kme-a", "kme-b")
    ]
    async with (
        serving(alice, contexts[0]) as url_a,
        serving(bob, contexts[1]) as url_b,
        trio.open_nursery() as nursery,
    ):
        kmes = (await nursery.start(run_kme_sim, load_kme_sim_config(room / "sim.yaml"))).kmes
        urls = {f"etsi-qkd-014/gw-{side}": f"https://{kmes[f'kme-{side}']}" for side in "ab"}
        urls |= {"skip/gw-a": url_a, "skip/gw-b": url_b}

        async def start(name: str, **more: Any) -> Site:
            config = gateway_config(name, kinds, urls)
            for key, value in more.items():
                config[key] = value
            if name == "gw-a":
                config["peers"]["gw-b"]["address"] = config.pop("dial")
            (room / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            log = get_logger(f"qproxy.test.{name}")
            gateway = Gateway(load_gateway_config(room / f"{name}.yaml"), log)
            site = Site(name, room, gateway)
            logging.getLogger(f"qproxy.test.{name}").addHandler(_Collect(site.log))
            await gateway.audit.open(gateway.kem_provider)
            gateway.open()
            await gateway.run(nursery)
            return site

        b = await start("gw-b", tunnel={"listen": "127.0.0.1:0"})
        port = b.gateway.tunnel_sockets[0].getsockname()[1]
        a = await start("gw-a", dial=f"127.0.0.1:{port}")
        try:
            yield World(a, b, (alice, bob))
        finally:
            for site in (a, b):
                site.gateway.close_listeners()
                await site.gateway.audit.close(Reason.SHUTDOWN)
                logging.getLogger(f"qproxy.test.{site.name}").handlers.clear()
            nursery.cancel_scope.cancel()


class _Collect(logging.Handler):
    def __init__(self, into: list[tuple[str, Mapping[str, Any]]]) -> None:
        super().__init__()
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.append((record.getMessage(), getattr(record, "fields", {})))


def claims(text: str) -> list[str]:
    """Words that say or mean that a key is QKD's: not the name of the interface, nor "not QKD"."""
    text = text.replace("etsi-qkd-014", "").replace("not QKD", "").replace("no QKD", "")
    return re.findall(r"[^\s\"]*qkd[^\s\"]*", text, re.IGNORECASE)


async def test_two_gateways_with_skip_on_both_sides_are_hybrid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, ("skip",), caplog) as found:
        await found.until_epochs(4)
        for site in (found.a, found.b):
            epochs = site.said("epoch_committed")
            assert {epoch["mode"] for epoch in epochs} == {Mode.HYBRID}
            assert epochs[0]["sources"] == [f"skip-{site.name}"]
            (peer,) = site.document["peers"]
            (source,) = peer["sources"]
            assert (source["kind"], source["keys_are"]) == ("skip", "unstated")
            assert source["says"] == "test vectors"
        # Each key was given out once on either side, and the same ones.
        alice, bob = found.providers
        assert len(set(alice.given)) == len(alice.given)
        assert set(bob.given) <= set(alice.given)
        assert {method for method, _ in alice.asked + bob.asked} == {"GET"}


@pytest.mark.slow
async def test_a_lost_skip_provider_means_classical_only_and_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, ("skip",), caplog) as found:
        await found.until_epochs(2)
        alice, _ = found.providers
        alice.failing = 500
        last = lambda: found.a.said("epoch_committed")[-1]["mode"]  # noqa: E731
        await found.until(lambda: last() is Mode.CLASSICAL_ONLY)
        link = found.a.said("link_state")[-1]
        assert (link["new"], link["reason"]) == (LinkState.DOWN, Reason.KME_UNAVAILABLE)
        alice.failing = None
        await found.until(lambda: last() is Mode.HYBRID)


@pytest.mark.parametrize(
    "kinds",
    [("etsi-qkd-014",), ("skip",), ("file",), ("etsi-qkd-014", "skip", "file")],
    ids="+".join,
)
async def test_every_key_is_called_what_it_is_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kinds: tuple[str, ...]
) -> None:
    async with world(tmp_path, kinds, caplog) as found:
        await found.until_epochs(3)
        await found.until_audited(3)
        natures = [KEYS_ARE[kind] for kind in kinds]
        for site in (found.a, found.b):
            names = [f"{kind}-{site.name}" for kind in kinds]
            # The log.
            for event in (*site.said("epoch_committed")[:3], site.said("mode_changed")[0]):
                assert event["mode"] is Mode.HYBRID
                assert (event["keys"], event["sources"]) == (len(kinds), names)
                assert (event["kinds"], event["keys_are"]) == (list(kinds), natures)
                assert event["simulated"] is ("etsi-qkd-014" in kinds)
            warned = [event["source"] for event in site.said("simulated_keys")]
            assert warned == [name for name in names if name.startswith("etsi")]
            for event in site.said("link_state"):
                assert event["keys_are"] == KEYS_ARE[event["kind"]]
            # The audit trail.
            for record in site.audit("epoch_committed")[:3]:
                assert record["key_sources"] == names
                assert (record["key_kinds"], record["keys_are"]) == (list(kinds), natures)
                assert len(record["key_digests"]) == len(kinds)
            # Status, for machines and people, and metrics.
            document = site.document
            (peer,) = document["peers"]
            assert [s["name"] for s in peer["sources"]] == names
            assert [s["keys_are"] for s in peer["sources"]] == natures
            assert {u["source"]: u["keys_are"] for u in peer["keys_used"]} == dict(
                zip(names, natures, strict=True)
            )
            (tunnel,) = peer["tunnels"]
            assert (tunnel["sources"], tunnel["keys_are"]) == (names, natures)
            assert tunnel["simulated"] is ("etsi-qkd-014" in kinds)
            text = "\n".join(status_lines(document))
            assert all(name in text for name in names)
            assert ("SIMULATED" in text) is ("etsi-qkd-014" in kinds)
            assert ("pre-shared" in text) is ("file" in kinds)
            for name, nature in zip(names, natures, strict=True):
                used = f'qproxy_keys_used_total{{keys_are="{nature}",peer="'
                assert any(
                    line.startswith(used) and f'source="{name}"' in line
                    for line in site.metrics.splitlines()
                )
            # And nobody calls any of them QKD's.
            policy = {"max_without_qkd_s"}
            assert set(claims(json.dumps(document["peers"]))) <= policy
            assert claims(text) == []
            assert claims(site.metrics) == []
            records = (site.room / f"{site.name}.audit").read_text()
            assert claims(records) == []
            said = [f"{event} {dict(fields)}" for event, fields in site.log]
            assert claims(" ".join(said)) == []


@pytest.mark.slow
async def test_combined_sources_survive_the_loss_of_all_but_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ("etsi-qkd-014", "skip", "file")
    async with world(tmp_path, kinds, caplog) as found:
        await found.until_epochs(2)
        found.providers[0].failing = 503
        await found.until(
            lambda: found.a.said("epoch_committed")[-1]["kinds"] == ["etsi-qkd-014", "file"]
        )
        await found.until(lambda: found.a.said("combined_link_state") != [])
        state = found.a.said("combined_link_state")[-1]
        assert (state["new"], state["down"]) == (LinkState.DEGRADED, ["path-skip"])

        def fallen_links() -> list[dict[str, Any]]:
            return [r for r in found.a.audit("link_changed") if r["state"] == "down"]

        await found.until(lambda: fallen_links() != [])
        fallen = fallen_links()
        assert [(r["key_source"], r["key_path"]) for r in fallen] == [("skip-gw-a", "path-skip")]
        assert (fallen[0]["keys_are"], fallen[0]["reason"]) == ("unstated", "kme_unavailable")
        found.providers[0].failing = None
        await found.until(lambda: found.a.said("epoch_committed")[-1]["kinds"] == list(kinds))
        modes = {event["mode"] for event in found.a.said("epoch_committed")}
        assert modes == {Mode.HYBRID}
