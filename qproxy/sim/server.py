"""The sockets of the simulator: its KMEs behind mutual TLS, and the control interface.

Requests are answered by the pure parts in one step, without giving way in between. That, and
nothing else, is what keeps the KMEs consistent under any number of connections.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Mapping
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
from qproxy.sim.build import build_network
from qproxy.sim.control import Control, is_this_machine
from qproxy.sim.events import EventError, encode_event
from qproxy.sim.network import KmeMode, SimulatedNetwork
from qproxy.sim.timetable import Timetable
from qproxy.tls.context import server_context
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_names

#: A request names at most 1024 keys of some 60 bytes each. An SAE keeps a few connections, and
#: there may be hundreds of SAEs.
_LIMITS = HttpLimits(max_body_bytes=128 * 1024, max_connections=1024)
#: Certificates whose names a KME remembers: one for each connection, and some that are over.
_MAX_KNOWN = 2 * _LIMITS.max_connections
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
    """Run the KMEs until cancelled.

    Args:
        config: what ``qproxy kme-sim`` read.
        clock: seconds, monotonic; the simulated network lives by it.
        random_bytes: keys and key IDs are made of these.
        task_status: started with the addresses once everything listens.

    Raises:
        ConfigError: a certificate or address cannot be used, or there are not two KMEs.
    """
    started_at = clock()
    network = build_network(config, now=started_at, random_bytes=random_bytes)
    kmes = {
        name: _Kme(kme, config.saes, KmeApi(Site(name, config.saes), network), clock)
        for name, kme in config.kmes.items()
    }
    network.on_mode = lambda name, mode: kmes[name].set_mode(mode)
    control = Control(network)
    timetable = Timetable(config.timetable, start=started_at)
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
                nursery.start_soon(_run_control, control, control_listener, clock)
            nursery.start_soon(_keep_timetable, timetable, network, clock)
            _log.info(
                "kme_sim_ready", simulated=True, kmes=addresses.kmes, control=addresses.control
            )
            task_status.started(addresses)


async def _keep_timetable(
    timetable: Timetable, network: SimulatedNetwork, clock: Callable[[], float]
) -> None:
    """Let everything in the timetable happen when it is due."""
    while (next_at := timetable.next_at) is not None:
        await trio.sleep(max(0.0, next_at - clock()))
        for timed in timetable.due(clock()):
            what = _renamed(encode_event(timed.event))
            try:
                network.apply(timed.event, clock())
            except EventError as error:  # the configuration's checks let none of these through
                _log.warning("timetable_failed", at_s=timed.at_s, error=str(error), **what)
            else:
                _log.info("timetable", simulated=True, at_s=timed.at_s, **what)


def _renamed(event: dict[str, object]) -> dict[str, object]:
    """An event as log fields, where ``event`` is the name of the line."""
    return {"what" if name == "event" else name: value for name, value in event.items()}


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
        #: Whom certificates name, for those of live connections. See :meth:`_requester`.
        self._known: dict[int, tuple[x509.Certificate, str | None]] = {}

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
        # Thousands of keys a second would be thousands of lines; what is refused is told anyway.
        tell = self._log.debug if response.status == 200 else self._log.info
        # The path holds SAE IDs. Key IDs may stand in the query, keys in the body.
        tell(
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
        # A connection brings the same object with each request; reading it takes its time.
        known = self._known.get(id(certificate))
        if known is not None and known[0] is certificate:
            return known[1]
        names = certificate_names(certificate)
        here = [sae for sae in names if self._saes.get(sae) == self._config.name]
        requester = here[0] if len(here) == 1 else None
        while len(self._known) >= _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[id(certificate)] = certificate, requester
        return requester


async def _run_control(control: Control, listener: _Listener, clock: Callable[[], float]) -> None:
    by_tcp = isinstance(listener.address, TcpAddress)

    async def handle(request: Request) -> Response:
        if by_tcp and not is_this_machine(request.headers.get("host", "")):
            return Refusal(421, "expected this machine's own address as Host").response
        response = control.handle(request, clock())
        if request.method == "POST":
            _log.info("control", status=response.status, **control.report(clock()))
        return response

    await serve_http(handle, listener.sockets, limits=_CONTROL_LIMITS)


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
