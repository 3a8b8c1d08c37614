"""The gateway's audit log: opened before anything runs, fed by peers, closed after everything.

Theory of operation. :class:`GatewayAudit` owns the writer, whose thread does all that waits for a
disk; recording from the event loop costs a queue's append. When writing fails the writer calls back
from whatever thread it noticed in, and the event loop takes it from there: with ``stop`` the
gateway waits in :meth:`GatewayAudit.stopped` and ends, with ``continue`` it goes on.
:class:`PeerAudit` turns the events of one peer's tunnels into records.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from qproxy import __version__
from qproxy.audit.facts import Facts, GatewayStarted, GatewayStopped, LinkChangedFacts
from qproxy.audit.storage import DiskFile, LogIdentity, OpenFile
from qproxy.audit.tail import AuditError
from qproxy.audit.trail import TunnelTrail, audit_text
from qproxy.audit.writer import AuditFault, AuditWriter
from qproxy.config.model import AuditConfig, OnAuditFailure
from qproxy.config.scalars import load_psk
from qproxy.errors import QproxyError, Reason
from qproxy.log import Logger
from qproxy.quantum.health import LinkChange
from qproxy.runtime.key_path import KeyPath
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochConfirmed,
    EpochFailed,
    Event,
    HandshakeCompleted,
    PolicyAgreed,
    Reauthenticated,
    TunnelClosed,
)


class AuditFailureError(QproxyError):
    """The audit log cannot be written, and the gateway may not go on without.

    Attributes:
        hint: what to do next.
    """

    def __init__(self, file: Path, fault: AuditFault) -> None:
        super().__init__(f"{file}: the audit log cannot be written: {fault}")
        self.hint = (
            "make room or put right what the audit_failed event names, then start again; "
            "audit.failure: continue would carry traffic without a record"
        )


class GatewayAudit:
    """The audit log of one gateway; without a configured file it does nothing.

    Attributes:
        config: what it was made from.
        writer: None before :meth:`open`, and where no log is configured.
        fault: why the gateway must stop, or None.
    """

    def __init__(
        self, config: AuditConfig, node: str, log: Logger, *, open_file: OpenFile = DiskFile
    ) -> None:
        """Nothing is opened yet.

        Args:
            config: the configuration's section.
            node: name of this gateway.
            log: where outages are told.
            open_file: how files are opened.
        """
        self.config = config
        self.writer: AuditWriter | None = None
        self.fault: AuditFault | None = None
        self._node = node
        self._log = log
        self._open_file = open_file
        self._stopped = trio.Event()

    async def open(self, kem_provider: str) -> None:
        """Open the log, and record that the gateway starts.

        Raises:
            AuditError: with ``stop``, the log cannot be opened.
            ConfigError: the key of the chain cannot be read.
        """
        if self.config.file is None:
            return
        token = trio.lowlevel.current_trio_token()
        make = partial(self._make_writer, self.config.file, token)
        try:
            self.writer = await trio.to_thread.run_sync(make)
        except AuditError as error:
            error.hint = error.hint or (
                "with audit.failure: stop nothing runs without its audit log; "
                "look at audit.file, its directory and who may write there"
            )
            raise
        self.record(GatewayStarted(version=__version__, kem_provider=kem_provider))

    async def close(self, reason: Reason) -> None:
        """Record why the gateway stops, and wait a bounded time for what is still queued."""
        writer = self.writer
        if writer is None:
            return
        writer.write(GatewayStopped(reason=reason))
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(writer.close)

    async def stopped(self) -> None:
        """Return when the gateway may not go on for want of its log."""
        await self._stopped.wait()

    def record(self, *facts: Facts) -> None:
        """Record what has just happened; nothing waits."""
        if self.writer is not None:
            for fact in facts:
                self.writer.write(fact)

    def failure(self) -> AuditFailureError | None:
        """The error that the gateway ends with, if it must."""
        if self.fault is None or self.config.file is None:
            return None
        return AuditFailureError(self.config.file, self.fault)

    # Inside.

    def _make_writer(self, file: Path, token: trio.lowlevel.TrioToken) -> AuditWriter:
        """In a thread: all of this may wait for a disk."""
        key_file = self.config.hmac_key_file
        return AuditWriter(
            file,
            LogIdentity(node=self._node, version=__version__),
            on_failure=partial(self._tell, token),
            failure=self.config.failure,
            fsync=self.config.fsync,
            hmac_key=None if key_file is None else bytes(load_psk(key_file)),
            max_file_bytes=self.config.max_file_bytes,
            open_file=self._open_file,
        )

    def _tell(self, token: trio.lowlevel.TrioToken, fault: AuditFault) -> None:
        """From any thread."""
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._failed, fault)

    def _failed(self, fault: AuditFault) -> None:
        stop = self.config.failure is OnAuditFailure.STOP
        self._log.error(
            "audit_failure",
            reason=Reason.AUDIT_FAILURE,
            fault=fault,
            file=self.config.file,
            failure=self.config.failure,
            consequence="every tunnel ends" if stop else "traffic goes on without a record",
        )
        if stop and self.fault is None:
            self.fault = fault
            self._stopped.set()


@dataclass(slots=True)
class _Trail:
    """One tunnel's trail, and what its next epoch will be recorded with."""

    trail: TunnelTrail
    tls_group: str
    next_tls_group: str
    policy: PolicyAgreed | None = field(default=None)


class PeerAudit:
    """Records what becomes of one peer's tunnels, from the end of their handshake on.

    A tunnel that never proved whose it is leaves no record: anybody could fill a disk with them.
    """

    def __init__(self, audit: GatewayAudit, peer: str) -> None:
        """Record for one peer, by its name."""
        self._audit = audit
        self._peer = peer
        self._trails: dict[Tunnel, _Trail] = {}

    def on_event(self, tunnel: Tunnel, event: Event) -> None:
        """Record what an event means, if anything."""
        if self._audit.writer is None:
            return
        if isinstance(event, HandshakeCompleted):
            trail = TunnelTrail(peer=self._peer, role=tunnel.connection.role)
            self._trails[tunnel] = _Trail(trail, event.group, event.group)
            return
        state = self._trails.get(tunnel)
        if state is None:
            return
        match event:
            case PolicyAgreed():
                state.policy = event
            case Reauthenticated():
                # It is in the keys, and on both gateways, from the epoch that mixes it in.
                state.next_tls_group = event.group
            case EpochCommitted():
                self._audit.record(*self._committed(tunnel, state, event))
            case EpochConfirmed():
                self._audit.record(*state.trail.on_confirmed(event))
            case EpochFailed():
                connection_id = tunnel.connection.connection_id
                self._audit.record(*state.trail.on_failed(event, connection_id))
            case TunnelClosed():
                del self._trails[tunnel]
                self._audit.record(*state.trail.on_closed(event))

    def on_link_change(self, path: KeyPath, change: LinkChange) -> None:
        """Record that the link of one key source is in another state."""
        self._audit.record(
            LinkChangedFacts(
                peer=audit_text(self._peer),
                key_source=audit_text(path.source_name),
                key_kind=audit_text(path.kind),
                key_path=audit_text(path.name),
                keys_are=path.nature,
                was=change.old,
                state=change.new,
                reason=change.reason,
            )
        )

    def forget(self, tunnel: Tunnel) -> None:
        """A tunnel is over. Where a fault of ours kept its end from us, it is recorded now."""
        if tunnel in self._trails:
            traffic = tunnel.connection.session.traffic
            self.on_event(tunnel, TunnelClosed(Reason.INTERNAL_ERROR, clean=False, traffic=traffic))

    def _committed(self, tunnel: Tunnel, state: _Trail, event: EpochCommitted) -> list[Facts]:
        connection_id, policy = tunnel.connection.connection_id, state.policy
        if connection_id is None or policy is None:
            return []  # by the protocol's rules, both came with the exchange
        if event.reauthenticated:
            state.tls_group = state.next_tls_group
        return state.trail.on_committed(
            event,
            connection_id=connection_id,
            tls_group=state.tls_group,
            policy_local=policy.local,
            policy_peer=policy.peer,
            policy_effective=policy.effective,
        )
