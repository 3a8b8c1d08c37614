"""Tunnels to and from one peer: dialled, adopted, counted, and driven through their epochs."""

from __future__ import annotations

import math
import os
import random
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from qproxy.config.model import GatewayConfig, PeerConfig
from qproxy.crypto.kem import KemProvider
from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import KeyNature, KeyOrigin, QkdKey
from qproxy.log import Logger
from qproxy.modes import Mode
from qproxy.net.endpoint import ConnectionLost
from qproxy.net.listen import open_connection
from qproxy.quantum.health import LinkChange, LinkState
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.audit import PeerAudit
from qproxy.runtime.build import TunnelContexts
from qproxy.runtime.counters import Tally
from qproxy.runtime.epoch_driver import EpochDriver
from qproxy.runtime.qkd import QuantumSide
from qproxy.runtime.reauth_driver import ReauthDriver
from qproxy.runtime.services import Services
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochDue,
    EpochFailed,
    EpochRequested,
    Event,
    GoAwayReceived,
    HandshakeCompleted,
    KeysAnnounced,
    KeysNeeded,
    KeysReported,
    PolicyAgreed,
    Reauthenticated,
    ReauthenticationDue,
    RoundTrip,
    StreamRequested,
    TunnelClosed,
    TunnelEstablished,
)
from qproxy.tunnel.messages import OfferedKey
from qproxy.tunnel.settings import Role, TunnelSettings

#: Pauses between attempts to dial a peer: first, and longest, in seconds.
REDIAL_S = 0.1
MAX_REDIAL_S = 10.0
#: A tunnel that lived so long was no failed attempt, in seconds.
SETTLED_S = 5.0
#: From dialling one tunnel of a pool to dialling the next, at the start, in seconds; and from the
#: first to the last of a large pool at most.
DIAL_STAGGER_S = 0.1
MAX_DIAL_STAGGER_S = 2.0
#: How long an application's new connection waits for a tunnel to come up, in seconds.
TUNNEL_WAIT_S = 5.0


@dataclass(slots=True)
class PeerTotals:
    """What happened with one peer since the gateway started.

    Attributes:
        tunnels: tunnels that were established.
        hybrid_epochs: epochs committed in hybrid mode.
        classical_epochs: epochs committed in classical-only mode.
        keys: keys of key sources that went into epochs.
        keys_used: the same by where they came from.
        streams: streams of tunnels that have ended.
        bytes_sent: application bytes of tunnels that have ended.
        bytes_received: the same, received.
        not_connected: attempts to dial that got no TCP connection.
        tunnels_closed: tunnels that are over, established or not, by local cause.
        epoch_failures: attempts at an epoch that came to nothing, by the mode attempted.
        mode_changes: first epochs and changes of a tunnel's mode, by the mode from then on.
    """

    tunnels: int = 0
    hybrid_epochs: int = 0
    classical_epochs: int = 0
    keys: int = 0
    keys_used: Counter[KeyOrigin] = field(default_factory=Counter)
    streams: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    not_connected: Tally[Reason] = field(default_factory=Tally)
    tunnels_closed: Tally[Reason] = field(default_factory=Tally)
    epoch_failures: Tally[tuple[Mode, Reason]] = field(default_factory=Tally)
    mode_changes: Tally[tuple[Mode, Reason]] = field(default_factory=Tally)


class Peer:
    """One configured peer.

    Attributes:
        config: its configuration.
        settings: what the core needs for its tunnels.
        tunnels: established tunnels, whoever dialled.
        totals: counters for the log and the admin side.
    """

    def __init__(
        self,
        config: PeerConfig,
        gateway: GatewayConfig,
        settings: TunnelSettings,
        quantum: QuantumSide,
        *,
        tls: TunnelContexts,
        kem: KemProvider,
        services: Services,
        log: Logger,
        audit: PeerAudit | None = None,
    ) -> None:
        """Bring the parts of a peer together; nothing runs yet."""
        self.config = config
        self.settings = settings
        self.quantum = quantum
        self.tunnels: list[Tunnel] = []
        self.totals = PeerTotals()
        self._gateway = gateway
        self._tls = tls
        self._kem = kem
        self._services = services
        self._log = log.bind(peer=config.name)
        self._tls_changed_at = -math.inf
        self._drivers: dict[Tunnel, EpochDriver] = {}
        self._reauth_drivers: dict[Tunnel, ReauthDriver] = {}
        self._available = trio.Event()
        self._draining = False
        self._audit = audit
        self._end_reason: Reason | None = None
        self._nursery: trio.Nursery | None = None
        self._warned_of: set[str] = set()
        quantum.on_link_change(self._on_link_change)
        quantum.on_keys_drawn(self._announce)

    async def run(self) -> None:
        """Watch the quantum side and keep the configured tunnels up, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.quantum.run)
                if self.config.address is not None:
                    stagger_s = min(DIAL_STAGGER_S, MAX_DIAL_STAGGER_S / self.config.tunnels)
                    for number in range(self.config.tunnels):
                        nursery.start_soon(self._keep_tunnel, number * stagger_s)
                else:
                    await trio.sleep_forever()
        finally:
            self._nursery = None

    # For listeners.

    async def usable_tunnel(self, policy: ServicePolicy | None = None) -> Tunnel | None:
        """The usable tunnel with the fewest streams; waits a while for one to come up.

        One that meets the policy of the stream to be opened goes before one that does not. Nothing
        waits for one to meet it: whether the tunnel does is for the caller to see.
        """
        tunnel = self.tunnel_now(policy)
        if tunnel is not None or self._draining:
            return tunnel
        with trio.move_on_after(TUNNEL_WAIT_S):
            while tunnel is None:
                await self._available.wait()
                tunnel = self.tunnel_now(policy)
        return tunnel

    def tunnel_now(self, policy: ServicePolicy | None = None) -> Tunnel | None:
        """The same without waiting."""
        if len(self.tunnels) == 1:
            only = self.tunnels[0]
            return only if only.usable else None
        usable = [tunnel for tunnel in self.tunnels if tunnel.usable]
        usable = [tunnel for tunnel in usable if tunnel.meets(policy)] or usable
        return min(usable, key=lambda tunnel: len(tunnel.relays)) if usable else None

    def meets(self, policy: ServicePolicy) -> bool:
        """Whether a usable tunnel has what streams with this policy demand."""
        return any(tunnel.usable and tunnel.meets(policy) for tunnel in self.tunnels)

    def drain(self) -> None:
        """Take and open no new streams; dial no more."""
        self._draining = True
        for tunnel in list(self.tunnels):
            tunnel.draining = True
            tunnel.tell_core(lambda core, _now: core.go_away(Reason.SHUTDOWN))

    def end(self, reason: Reason = Reason.SHUTDOWN) -> None:
        """End every tunnel with an authenticated END; one that comes up later ends at once."""
        self._draining = True
        self._end_reason = reason
        for tunnel in dict.fromkeys([*self.tunnels, *self._drivers]):
            tunnel.end(reason)

    def epoch_driver(self, tunnel: Tunnel) -> EpochDriver | None:
        """What starts a tunnel's epochs; None for one that the peer dialled."""
        return self._drivers.get(tunnel)

    @property
    def dialled(self) -> int:
        """Established tunnels that this end dialled."""
        return sum(tunnel in self._drivers for tunnel in self.tunnels)

    @property
    def streams(self) -> int:
        """Streams in progress."""
        return sum(len(tunnel.relays) for tunnel in self.tunnels)

    # Called by tunnels.

    def on_stream_requested(self, tunnel: Tunnel, event: StreamRequested) -> None:
        """The peer opens a stream."""
        self._services.answer(self.config, tunnel, event)

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        """Everything about a tunnel that is not a stream in progress."""
        if self._audit is not None:
            self._audit.on_event(tunnel, event)
        driver = self._drivers.get(tunnel)
        match event:
            case EpochDue(reason):
                if driver is not None:
                    driver.epoch_due(reason)
            case KeysNeeded():
                self._redeem(tunnel, event)
            case EpochCommitted():
                self._on_committed(tunnel, event)
                if driver is not None:
                    driver.on_committed(event)
                if reauth := self._reauth_drivers.get(tunnel):
                    reauth.on_committed(event)
            case EpochFailed():
                self._on_failed(tunnel, event)
                if driver is not None:
                    driver.on_failed(event)
            case EpochRequested(reason):
                if driver is not None:
                    driver.on_requested(reason)
            case KeysAnnounced(keys):
                self._redeem_ahead(tunnel, keys)
            case KeysReported():
                self.quantum.on_report(event)
            case ReauthenticationDue(reason):
                if reauth := self._reauth_drivers.get(tunnel):
                    reauth.due(reason)
            case Reauthenticated():
                tunnel.facts.tls_group = event.group
                self._log.info("reauthenticated", role=tunnel.connection.role, group=event.group)
            case HandshakeCompleted():
                tunnel.facts.tls_group, tunnel.facts.tls_cipher = event.group, event.cipher
                tunnel.facts.authenticated_at = trio.current_time()
                self._log.debug("peer_authenticated", group=event.group, cipher=event.cipher)
            case PolicyAgreed(local, peer, effective):
                self._log_policy(local, peer, effective)
            case RoundTrip():
                tunnel.facts.round_trip_s = tunnel.connection.session.round_trip_s
            case TunnelEstablished():
                self._on_established(tunnel)
            case GoAwayReceived(reason):
                self._log.info("peer_going_away", reason=reason)
                self._on_unusable(tunnel)
            case TunnelClosed():
                self._on_closed(tunnel, event)

    # Dialling.

    async def _keep_tunnel(self, delay_s: float) -> None:
        await self.quantum.first_word()
        # Tunnels that begin apart have their epochs apart.
        await trio.sleep(delay_s)
        pause_s = REDIAL_S
        while not self._draining:
            began = trio.current_time()
            await self._dial()
            if trio.current_time() - began >= SETTLED_S:
                pause_s = REDIAL_S
            await trio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, MAX_REDIAL_S)

    async def _dial(self) -> None:
        address = self.config.address
        if address is None:
            return
        timeout_s = self._gateway.tunnel.handshake_timeout_s
        try:
            sock = await open_connection(address, timeout_s)
        except ConnectionLost as error:
            self.totals.not_connected.add(error.reason, trio.current_time())
            self._log.warning(
                "tunnel_not_connected", address=str(address), reason=error.reason, detail=str(error)
            )
            return
        with sock:
            try:
                await self._run_dialled(sock)
            except Exception as error:  # a fault of ours costs this tunnel, never the gateway
                self._log.unexpected("tunnel_failed", error)

    async def _run_dialled(self, sock: socket.socket) -> None:
        connection = Connection(
            Role.CLIENT,
            self.settings,
            tls_context=self._tls.client,
            kem=self._kem,
            random_bytes=os.urandom,
            now=trio.current_time(),
        )
        self.quantum.begin_tunnel()
        tunnel = Tunnel(sock, connection, self)
        driver = EpochDriver(
            tunnel, self.quantum, self._log, tunnels=lambda: max(1, len(self._drivers))
        )
        reauth = ReauthDriver(tunnel, lambda: self._tls.client, self._log)
        self._drivers[tunnel], self._reauth_drivers[tunnel] = driver, reauth
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver.run)
                nursery.start_soon(reauth.run)
                await tunnel.run()
                nursery.cancel_scope.cancel()
        finally:
            self._drivers.pop(tunnel, None)
            self._reauth_drivers.pop(tunnel, None)
            self.forget(tunnel)

    # Inside.

    def _redeem(self, tunnel: Tunnel, event: KeysNeeded) -> None:
        def answer(redeemed: list[QkdKey] | Reason) -> None:
            def tell(core: Connection, now: float) -> None:
                if isinstance(redeemed, Reason):
                    core.refuse_keys(event.epoch, event.attempt, redeemed)
                else:
                    core.provide_keys(event.epoch, event.attempt, redeemed, now)

            tunnel.tell_core(tell)

        peer_policy = tunnel.connection.peer_policy or self.config.policy
        held = self.quantum.redeem_held(event.keys, peer_policy)
        if held is not None:
            answer(held)
            return

        async def redeem() -> None:
            answer(await self.quantum.redeem(event.keys, peer_policy))

        tunnel.start_task(redeem)

    def _redeem_ahead(self, tunnel: Tunnel, keys: tuple[OfferedKey, ...]) -> None:
        async def redeem() -> None:
            try:
                report = await self.quantum.redeem_ahead(keys)
                if not tunnel.closed.is_set():
                    tunnel.tell_core(lambda core, _now: core.report_keys(report))
            except LocalProtocolError as error:
                # The peer goes without a hint; what is held here ages out.
                self._log.debug("keys_not_reported", reason=error.reason, detail=str(error))
            except Exception as error:  # a fault of ours costs the peer a hint
                self._log.unexpected("keys_not_reported", error)

        # Keys are held for the peer: cut off with the tunnel, they would be lost on their way.
        if self._nursery is not None:
            self._nursery.start_soon(redeem)

    def _announce(self) -> None:
        """Tell the peer of new keys, over any tunnel that this end dialled."""
        tunnel = next((t for t in self.tunnels if t.usable and t in self._drivers), None)
        if tunnel is None:
            return
        keys = self.quantum.keys_to_announce()
        if not keys:
            return
        try:
            tunnel.tell_core(lambda core, _now: core.announce_keys(keys))
        except LocalProtocolError as error:
            self._log.debug("keys_unusable", reason=error.reason, detail=str(error))
            self.quantum.not_announced(keys)

    def use_tls(self, tls: TunnelContexts) -> None:
        """Certificates, authorities or revocation lists have changed: prove everything again."""
        self._tls = tls
        self._tls_changed_at = trio.current_time()
        for tunnel in list(self.tunnels):
            self._prove_again(tunnel)

    def _prove_again(self, tunnel: Tunnel) -> None:
        if reauth := self._reauth_drivers.get(tunnel):
            reauth.begin()
        else:
            tunnel.tell_core(self._ask_for_reauthentication)

    def _ask_for_reauthentication(self, core: Connection, now: float) -> None:
        core.use_tls_context(self._tls.server)
        core.request_epoch(Reason.REAUTHENTICATION, now)

    def _on_link_change(self, change: LinkChange) -> None:
        for driver in list(self._drivers.values()):
            driver.on_link_change(change)
        # Tunnels that the peer dialled: only it can start an epoch, so it is asked to.
        down = change.new is LinkState.DOWN
        for tunnel in list(self.tunnels):
            concerned = tunnel not in self._drivers and (tunnel.facts.mode is Mode.HYBRID) == down
            if concerned and change.new is not LinkState.DEGRADED:
                tunnel.tell_core(lambda core, now: core.request_epoch(change.reason, now))

    def _on_established(self, tunnel: Tunnel) -> None:
        self.totals.tunnels += 1
        tunnel.facts.established_at = trio.current_time()
        self.tunnels.append(tunnel)
        self._available.set()
        self._available = trio.Event()
        if tunnel.facts.began_at <= self._tls_changed_at:
            # Its handshake was made with the certificates and lists of before.
            self._prove_again(tunnel)
        connection, facts = tunnel.connection, tunnel.facts
        self._log.info(
            "tunnel_up",
            role=connection.role,
            mode=tunnel.facts.mode,
            policy=connection.effective_policy,
            kem=self.settings.kem,
            kem_provider=self._kem.name,
            aead=self.settings.aead,
            tls_group=facts.tls_group,
            tls_cipher=facts.tls_cipher,
            tls_ms=_milliseconds(facts.authenticated_at - facts.began_at),
            handshake_ms=_milliseconds(facts.established_at - facts.began_at),
        )
        self._announce()
        if self._end_reason is not None:
            tunnel.end(self._end_reason)

    def _on_committed(self, tunnel: Tunnel, event: EpochCommitted) -> None:
        if event.mode is Mode.HYBRID:
            self.totals.hybrid_epochs += 1
        else:
            self.totals.classical_epochs += 1
        self.totals.keys += len(event.key_ids)
        for origin in event.origins:
            self.totals.keys_used[origin] += 1
        facts, now = tunnel.facts, trio.current_time()
        before, facts.mode, facts.committed_at = facts.mode, event.mode, now
        if event.key_ids:
            facts.origins = event.origins
        fields = {
            "epoch": event.epoch,
            "mode": event.mode,
            "reason": event.reason,
            **_key_fields(event.origins),
            "epoch_id": event.epoch_id.hex(),
        }
        self._log.debug("epoch_committed", **fields)
        self._warn_of_simulated(event.origins)
        if before is not event.mode:
            facts.mode_reason, facts.mode_at = event.reason, now
            self.totals.mode_changes.add((event.mode, event.reason), now)
            write = self._log.info if event.mode is Mode.HYBRID else self._log.warning
            write("mode_changed", was=before, chained_source_key=event.qkd_ever, **fields)

    def _warn_of_simulated(self, origins: Sequence[KeyOrigin]) -> None:
        """Once for each source: whoever takes this for protection must be told."""
        for origin in origins:
            if origin.simulated and origin.source not in self._warned_of:
                self._warned_of.add(origin.source)
                self._log.warning(
                    "simulated_keys",
                    source=origin.source,
                    kind=origin.kind,
                    hint="no photon was involved: these keys are for trials and protect nothing",
                )

    def _on_failed(self, tunnel: Tunnel, event: EpochFailed) -> None:
        self.totals.epoch_failures.add((event.mode, event.reason), trio.current_time())
        self._log.warning(
            "epoch_failed",
            epoch=event.epoch,
            attempt=event.attempt,
            mode=event.mode,
            reason=event.reason,
            by="peer" if event.remote else "self",
            role=tunnel.connection.role,
        )

    def _log_policy(self, local: object, peer: object, effective: object) -> None:
        write = self._log.info if local is peer else self._log.warning
        write("policy_agreed", local=local, peers=peer, effective=effective)

    def _on_unusable(self, tunnel: Tunnel) -> None:
        tunnel.draining = True

    def _on_closed(self, tunnel: Tunnel, event: TunnelClosed) -> None:
        session = tunnel.connection.session
        self.totals.tunnels_closed.add(event.reason, trio.current_time())
        write = self._log.info if event.clean else self._log.warning
        write(
            "tunnel_closed",
            role=tunnel.connection.role,
            reason=event.reason,
            clean=event.clean,
            detail=tunnel.close_detail,
            epoch=tunnel.connection.epoch,
            streams=session.streams_opened,
            bytes_sent=session.bytes_sent,
            bytes_received=session.bytes_received,
        )
        self.forget(tunnel)

    def forget(self, tunnel: Tunnel) -> None:
        """A tunnel is over, however it came to that: its counts go into the totals, once."""
        if self._audit is not None:
            self._audit.forget(tunnel)
        if tunnel in self.tunnels:
            self.tunnels.remove(tunnel)
            if not self.dialled:
                self.quantum.tunnels_lost()
            session = tunnel.connection.session
            self.totals.streams += session.streams_opened
            self.totals.bytes_sent += session.bytes_sent
            self.totals.bytes_received += session.bytes_received


def _milliseconds(duration_s: float) -> float:
    """For the log, to the microsecond."""
    return round(1000 * duration_s, 3)


def _key_fields(origins: Sequence[KeyOrigin]) -> dict[str, object]:
    """What a log line says of the keys in an epoch: how many, from where, and what they are."""
    fields: dict[str, object] = {"keys": len(origins)}
    if origins:
        fields["sources"] = list(dict.fromkeys(origin.source for origin in origins))
        fields["kinds"] = list(dict.fromkeys(origin.kind for origin in origins))
        fields["keys_are"] = list(dict.fromkeys(origin.nature for origin in origins))
        fields["simulated"] = any(origin.nature is KeyNature.SIMULATED for origin in origins)
    return fields
