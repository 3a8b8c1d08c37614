"""A pair of gateways, its KMEs and a service, at work while something happens to them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bench.gateway_log import GatewayLog, changed_at
from bench.stats import BenchError
from qproxy.demo.children import Child
from qproxy.demo.settings import DemoError
from qproxy.demo.workdir import make_pki, write_far_gateway, write_kme_sim, write_near_gateway
from qproxy.modes import Mode
from qproxy.net.http_client import HttpClient, HttpClientError

#: A program that has just been started says that it is ready, in seconds.
START_S = 20.0
#: The gateways' tunnel is up and their link healthy, in seconds.
TUNNEL_S = 20.0


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What differs from the defaults.

    Attributes:
        link: of the simulated link, as ``kme_sim.link`` has it.
        peer: in the peer's section of both gateways.
        near: more sections of the near gateway.
    """

    link: Mapping[str, object] = field(default_factory=dict)
    peer: Mapping[str, object] = field(default_factory=dict)
    near: Mapping[str, object] = field(default_factory=dict)


class LivePair:
    """What runs. Made by :func:`live_pair`.

    Attributes:
        near: log of gw-a, which clients connect to and which dials.
        far: log of gw-b, beside the service.
        port: where clients connect on 127.0.0.1.
        admin_port: of the near gateway's admin listener, or None.
    """

    def __init__(self, directory: Path, settings: LiveSettings, nursery: trio.Nursery) -> None:
        self.near = GatewayLog("gw-a")
        self.far = GatewayLog("gw-b")
        self.port = 0
        self.admin_port: int | None = None
        self._directory = directory
        self._settings = settings
        self._nursery = nursery
        self._ready: dict[str, Mapping[str, Any]] = {}
        self._near = Child("gw-a", self.near.take, self.near.stray.append)
        self._far = Child("gw-b", self.far.take, self.far.stray.append)
        self._kmes = Child("kme-sim", partial(self._on_ready, "kme_sim_ready"), _ignore)
        self._service = Child("service", partial(self._on_ready, "service_ready"), _ignore)

    @property
    def logs(self) -> tuple[GatewayLog, GatewayLog]:
        """Both gateways' logs."""
        return self.near, self.far

    @property
    def gateway_pids(self) -> dict[str, int]:
        """Process IDs of the gateways that run, by "near" and "far"."""
        pids = {"near": self._near.pid, "far": self._far.pid}
        return {name: pid for name, pid in pids.items() if pid is not None}

    async def start(self) -> None:
        """Start everything and wait until the tunnel is hybrid and the link healthy."""
        directory, settings = self._directory, self._settings
        await self._spawn(self._service, ["qproxy.demo.service"])
        config = write_kme_sim(directory, link=settings.link)
        await self._spawn(self._kmes, ["qproxy", "kme-sim", str(config)])
        service = await self._when_ready(self._service, "service_ready")
        kmes = await self._when_ready(self._kmes, "kme_sim_ready")
        config = write_far_gateway(
            directory,
            kme=kmes["kmes"]["kme-b"],
            service=f"127.0.0.1:{service['port']}",
            peer_settings=settings.peer,
        )
        started = await self._start_gateway(self._far, self.far, config)
        config = write_near_gateway(
            directory,
            kme=kmes["kmes"]["kme-a"],
            peer=started["tunnel_listen"][0],
            peer_settings=settings.peer,
            sections=settings.near,
        )
        started = await self._start_gateway(self._near, self.near, config)
        self.port = _port(started["listeners"]["demo"][0])
        for event in self.near.find("admin_listening"):
            self.admin_port = _port(event.fields["addresses"][0])
        await self.wait_for_mode(Mode.HYBRID, 0.0, TUNNEL_S)
        await self.wait_for(
            lambda log: any(log.find("link_state", new="healthy")), TUNNEL_S, "a healthy link"
        )

    async def wait_for(
        self, told: Callable[[GatewayLog], bool], timeout_s: float, what: str
    ) -> None:
        """Wait until both gateways' logs have told something. Raises DemoError."""
        deadline = trio.current_time() + timeout_s
        for child, log in ((self._near, self.near), (self._far, self.far)):
            left_s = max(0.0, deadline - trio.current_time())
            await child.wait_for(partial(told, log), left_s, what)

    async def wait_for_mode(self, mode: Mode, since_s: float, timeout_s: float) -> float:
        """Wait for an epoch of a mode on both gateways, and say when the second one had it.

        Raises:
            DemoError: not in time.
        """
        await self.wait_for(
            lambda log: any(log.find("mode_changed", since_s=since_s, mode=mode)),
            timeout_s,
            f"{mode} on both gateways",
        )
        at_s = changed_at(self.logs, mode, since_s)
        if at_s is None:
            raise BenchError(f"no change to {mode}")
        return at_s

    async def control(self, **action: object) -> None:
        """Disturb the link or a KME. Raises BenchError."""
        address = self._ready["kme_sim_ready"]["control"]
        await _exchange("POST", f"http://{address}/link", action)

    async def link(self) -> Mapping[str, Any]:
        """How the simulated link stands."""
        return await _exchange("GET", f"http://{self._ready['kme_sim_ready']['control']}/link")

    async def status(self) -> Mapping[str, Any]:
        """The near gateway's status; its admin listener must be configured."""
        return await _exchange("GET", f"http://127.0.0.1:{self.admin_port}/status")

    async def stop(self) -> None:
        """End everything in order."""
        for child in (self._near, self._far, self._kmes, self._service):
            await child.stop()

    async def _start_gateway(
        self, child: Child, log: GatewayLog, config: Path
    ) -> Mapping[str, Any]:
        await self._spawn(child, ["qproxy", "run", str(config)])
        await child.wait_for(
            lambda: any(log.find("gateway_started")), START_S, f"{child.name} is up"
        )
        return next(log.find("gateway_started")).fields

    async def _spawn(self, child: Child, module: list[str]) -> None:
        log_file = self._directory / f"{child.name}.log"
        await self._nursery.start(child.run, ["-m", *module], log_file)

    async def _when_ready(self, child: Child, name: str) -> Mapping[str, Any]:
        await child.wait_for(lambda: name in self._ready, START_S, f"{child.name} is up")
        return self._ready[name]

    def _on_ready(self, name: str, event: Mapping[str, object]) -> None:
        if event.get("event") == name:
            self._ready[name] = event


@contextlib.asynccontextmanager
async def live_pair(directory: Path, settings: LiveSettings) -> AsyncIterator[LivePair]:
    """Start a pair, and end it.

    Args:
        directory: for its files; empty, its own.
        settings: what differs from the defaults.

    Raises:
        BenchError: a program did not do what it is there for.
    """
    make_pki(directory)
    failures: list[str] = []
    try:
        async with trio.open_nursery() as nursery:
            pair = LivePair(directory, settings, nursery)
            await pair.start()
            yield pair
            await pair.stop()
            nursery.cancel_scope.cancel()
    except* (DemoError, BenchError) as group:
        failures = [text for error in _leaves(group) for text in (str(error), *_lines(error))]
    if failures:
        raise BenchError("; ".join(failures))


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _lines(error: BaseException) -> tuple[str, ...]:
    return error.log_lines[-5:] if isinstance(error, DemoError) else ()


async def _exchange(
    method: str, url: str, document: Mapping[str, object] | None = None
) -> Mapping[str, Any]:
    client = HttpClient(tls=None)
    try:
        response = await client.request(
            method, url, json=None if document is None else dict(document)
        )
    except HttpClientError as error:
        raise BenchError(f"{method} {url}: {error}") from None
    finally:
        await client.aclose()
    if response.status != 200:
        raise BenchError(f"{method} {url}: status {response.status}")
    answer = json.loads(response.body)
    if not isinstance(answer, dict):
        raise BenchError(f"{method} {url}: expected a JSON object")
    return answer


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _ignore(line: str) -> None:
    del line
