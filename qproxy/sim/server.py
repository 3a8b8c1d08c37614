"""The sockets of the simulator: two KMEs behind mutual TLS, and the control interface.

Requests are answered by the pure parts in one step, without giving way in between. That, and
nothing else, is what keeps the two KMEs consistent under any number of connections.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio
from cryptography import x509

from qproxy.address import Address, TcpAddress
from qproxy.config.model import KmeConfig, KmeSimConfig
from qproxy.errors import ConfigError
from qproxy.log import Logger, get_logger
from qproxy.modes import ClientAuth
from qproxy.net.http_server import HttpLimits, Request, Response, serve_http
from qproxy.net.listen import open_listeners
from qproxy.sim.api import KmeApi, Refusal, Site
from qproxy.sim.control import Control, KmeMode
from qproxy.sim.link import SimulatedLink
from qproxy.sim.store import KeyStore
from qproxy.tls.context import server_context
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_names

#: A request names at most 1024 keys of some 60 bytes each.
_LIMITS = HttpLimits(max_body_bytes=128 * 1024, max_connections=256)
#: What a KME answers that is set to talk nonsense: no UTF-8, no JSON, and a byte of zero.
_GARBAGE = b'{"keys": [\xff\x00'
_CONTROL_LIMITS = HttpLimits(max_body_bytes=4096, max_connections=16)

_log = get_logger("qproxy.sim")


@dataclass(frozen=True, slots=True)
class KmeSimAddresses:
    """Where the simulator listens, with the ports it was given where 0 was asked for.

    Attributes:
        kmes: KME name to its address.
        control: the control interface, where there is one.
    """

    kmes: Mapping[str, Address]
    control: Address | None


async def run_kme_sim(
    config: KmeSimConfig,
    *,
    clock: Callable[[], float] = trio.current_time,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    task_status: trio.TaskStatus[KmeSimAddresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run both KMEs until cancelled.

    Args:
        config: what ``qproxy kme-sim`` read.
        clock: seconds, monotonic; the simulated link lives by it.
        random_bytes: keys and key IDs are made of these.
        task_status: started with the addresses once everything listens.

    Raises:
        ConfigError: a certificate or address cannot be used, or there are not two KMEs.
    """
    link = SimulatedLink(config.link, now=clock(), random_bytes=random_bytes)
    store = KeyStore()
    kmes = _make_kmes(config, link, store, clock, random_bytes)
    control = Control(link, store, kmes, lambda name, mode: kmes[name].set_mode(mode))
    with contextlib.ExitStack() as opened:
        # Before the nursery, so that a port in use is one plain error.
        for kme in kmes.values():
            kme.listen(opened)
        control_listener = None
        if config.control is not None:
            control_listener = _listen_control(config.control.listen, opened)
        addresses = KmeSimAddresses(
            {name: kme.address for name, kme in kmes.items()},
            None if control_listener is None else control_listener.address,
        )
        async with trio.open_nursery() as nursery:
            for kme in kmes.values():
                nursery.start_soon(kme.run)
            if control_listener is not None:
                nursery.start_soon(_run_control, control, control_listener.sockets, clock)
            _log.info(
                "kme_sim_ready", simulated=True, kmes=addresses.kmes, control=addresses.control
            )
            task_status.started(addresses)


def _make_kmes(
    config: KmeSimConfig,
    link: SimulatedLink,
    store: KeyStore,
    clock: Callable[[], float],
    random_bytes: Callable[[int], bytes],
) -> dict[str, _Kme]:
    if len(config.kmes) != 2:
        raise ConfigError(f"expected two KMEs, got {len(config.kmes)}", key="kme_sim.kmes")
    first, second = config.kmes
    kmes: dict[str, _Kme] = {}
    for name, peer in ((first, second), (second, first)):
        site = Site(name, peer, config.saes)
        api = KmeApi(site, config.link, link, store, random_bytes)
        kmes[name] = _Kme(config.kmes[name], config.saes, api, clock)
    return kmes


@dataclass(frozen=True, slots=True)
class _Listener:
    """Listening sockets and the address they got."""

    sockets: list[socket.socket]
    address: Address


class _Kme:
    """One KME: its listener, who is on it, and whether it answers at all."""

    def __init__(
        self,
        config: KmeConfig,
        saes: Mapping[str, str],
        api: KmeApi,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._saes = saes
        self._api = api
        self._clock = clock
        self._log: Logger = get_logger("qproxy.sim", kme=config.name)
        self._tls = server_context(
            TlsIdentity.load(config.certificate, config.private_key),
            trust=TrustStore.load(config.ca),
            client_auth=ClientAuth.REQUIRED,
        )
        self._address = config.listen
        self._listeners: list[socket.socket] = []
        self._mode = KmeMode.UP
        self._mode_changed = trio.Event()
        self._serving = trio.CancelScope()

    def set_mode(self, mode: KmeMode) -> None:
        """Start or stop answering. KILLED drops every connection and the listener."""
        self._mode = mode
        self._mode_changed.set()
        self._mode_changed = trio.Event()
        if mode is KmeMode.KILLED:
            self._serving.cancel()
        self._log.info("kme_mode", mode=mode)

    @property
    def address(self) -> Address:
        """Where it listens; as configured until :meth:`listen` was called."""
        return self._address

    def listen(self, opened: contextlib.ExitStack | None = None) -> None:
        """Open the listening sockets, on the same port each time.

        Args:
            opened: closes them if they never come to be served.
        """
        listener = _listen(self._address, opened)
        self._listeners, self._address = listener.sockets, listener.address

    async def run(self) -> None:
        """Serve, and serve again after having been killed."""
        while True:
            if self._mode is KmeMode.KILLED:
                await self._mode_changed.wait()
                continue
            if not self._listeners:
                self.listen()
            with trio.CancelScope() as self._serving:
                await serve_http(self._handle, self._listeners, tls=self._tls, limits=_LIMITS)
            self._listeners = []

    async def _handle(self, request: Request) -> Response:
        while self._mode is KmeMode.HANGING:
            await self._mode_changed.wait()
        requester = self._requester(request.peer_certificate)
        if self._mode is KmeMode.UNAVAILABLE:
            response = Refusal(503, "the KME is set to be unavailable").response
        elif self._mode is KmeMode.GARBAGE:
            response = Response(200, _GARBAGE)
        else:
            response = self._api.handle(requester, request, self._clock())
        # The path holds SAE IDs. Key IDs may stand in the query, keys in the body.
        self._log.info(
            "request",
            sae=requester,
            method=request.method,
            path=request.path,
            status=response.status,
        )
        return response

    def _requester(self, certificate: x509.Certificate | None) -> str | None:
        """The one SAE of this KME that a verified client certificate names."""
        if certificate is None:
            return None
        names = certificate_names(certificate)
        here = [sae for sae in names if self._saes.get(sae) == self._config.name]
        return here[0] if len(here) == 1 else None


async def _run_control(
    control: Control, listeners: Sequence[socket.socket], clock: Callable[[], float]
) -> None:
    async def handle(request: Request) -> Response:
        response = control.handle(request, clock())
        if request.method == "POST":
            _log.info("control", status=response.status, **control.report(clock()))
        return response

    await serve_http(handle, listeners, limits=_CONTROL_LIMITS)


def _listen_control(listen: Address, opened: contextlib.ExitStack) -> _Listener:
    if not listen.is_loopback:
        raise ConfigError(
            f"the control interface asks nobody who they are; {listen} can be reached from outside",
            key="kme_sim.control.listen",
            hint="expected a loopback address or a unix socket",
        )
    return _listen(listen, opened)


def _listen(address: Address, opened: contextlib.ExitStack | None) -> _Listener:
    try:
        sockets = open_listeners(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None
    if opened is not None:
        for sock in sockets:
            opened.callback(sock.close)  # a second close does nothing
    if isinstance(address, TcpAddress):
        address = TcpAddress(address.host, sockets[0].getsockname()[1])
    return _Listener(sockets, address)
