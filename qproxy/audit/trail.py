"""From the events of one tunnel to the facts of the audit trail. Pure.

Theory of operation. Each direction of a tunnel changes keys at its own moment (docs/protocol.md,
"Commit and switch"), so an epoch's bytes are the difference of two marks for each direction. At the
server both directions change where it commits: the client's next record is its switch. At the
client its own direction changes where it commits, and the server's where that is confirmed; only
then is it known what the old epoch carried. A mark is the tunnel's counters at that very point of
the stream of records, not when somebody got round to handling the event.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from qproxy.audit.facts import (
    MAX_TEXT_CHARS,
    EndedBy,
    EpochCommittedFacts,
    EpochConfirmedFacts,
    EpochEndedFacts,
    EpochFailedFacts,
    Facts,
    ModeChangedFacts,
    TunnelClosedFacts,
)
from qproxy.log import escape
from qproxy.modes import Mode, Policy
from qproxy.quantum.spent import canonical_key_id
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochConfirmed,
    EpochFailed,
    Traffic,
    TunnelClosed,
)
from qproxy.tunnel.settings import Role

#: Size of a key ID's digest, in bytes.
KEY_DIGEST_BYTES: Final = 16


def key_id_digest(key_id: str) -> str:
    """SHA-256 of the canonical key ID, cut to 16 bytes, as hexadecimal digits.

    Says on both gateways that it was the same key, without naming it. Whoever knows or guesses an
    ID can compute it: it hides a random UUID and not a serial number.
    """
    canonical = canonical_key_id(key_id).encode("utf-8", "surrogatepass")
    return hashlib.sha256(canonical).hexdigest()[: 2 * KEY_DIGEST_BYTES]


@dataclass(slots=True)
class _OpenEpoch:
    """An epoch in use in one direction at least, and the marks it began at."""

    number: int
    epoch_id: str
    mode: Mode
    began: Traffic


class TunnelTrail:
    """The audit trail of one tunnel: give it events in their order, write what it returns."""

    def __init__(self, *, peer: str, role: Role) -> None:
        """Begin with a tunnel whose peer is authenticated."""
        self._peer = audit_text(peer)
        self._role = role
        self._connection_id: str | None = None
        self._current: _OpenEpoch | None = None
        self._previous: _OpenEpoch | None = None

    def on_committed(
        self,
        event: EpochCommitted,
        *,
        connection_id: bytes,
        tls_group: str,
        policy_local: Policy,
        policy_peer: Policy,
        policy_effective: Policy,
    ) -> list[Facts]:
        """New keys are in use.

        Args:
            event: from the core.
            connection_id: 16 bytes.
            tls_group: as negotiated.
            policy_local: this end's policy.
            policy_peer: the peer's.
            policy_effective: the stricter one.
        """
        self._connection_id = connection_id.hex()
        traffic = event.traffic
        before = self._current
        facts: list[Facts] = []
        # By the protocol's rules nothing is left of the epoch before: it was confirmed.
        facts.extend(self._settle_previous(traffic, EndedBy.CLOSE))
        self._current = _OpenEpoch(event.epoch, event.epoch_id.hex(), event.mode, traffic)
        committed = EpochCommittedFacts(
            peer=self._peer,
            connection_id=self._connection_id,
            role=self._role,
            epoch=event.epoch,
            attempt=event.attempt,
            epoch_id=self._current.epoch_id,
            mode=event.mode,
            previous_mode=None if before is None else before.mode,
            reason=event.reason,
            source_key_ever=event.qkd_ever,
            reauthenticated=event.reauthenticated,
            key_digests=tuple(key_id_digest(key_id) for key_id in event.key_ids),
            key_count=len(event.key_ids),
            key_sources=tuple(audit_text(origin.source) for origin in event.origins),
            key_kinds=tuple(audit_text(origin.kind) for origin in event.origins),
            key_paths=tuple(audit_text(origin.path) for origin in event.origins),
            keys_are=tuple(origin.nature for origin in event.origins),
            kem=event.kem,
            aead=event.aead,
            tls_group=audit_text(tls_group),
            policy_local=policy_local,
            policy_peer=policy_peer,
            policy_effective=policy_effective,
            confirmed=event.confirmed,
        )
        facts.append(committed)
        if before is None or before.mode is not event.mode:
            facts.append(self._mode_changed(event, None if before is None else before.mode))
        if before is not None:
            if event.confirmed:
                facts.append(self._ended(before, traffic, EndedBy.SWITCH))
            else:
                self._previous = before
        return facts

    def on_confirmed(self, event: EpochConfirmed) -> list[Facts]:
        """Client: the server's direction changed keys."""
        current = self._current
        if current is None or current.number != event.epoch or self._connection_id is None:
            return []
        facts: list[Facts] = [
            EpochConfirmedFacts(
                peer=self._peer,
                connection_id=self._connection_id,
                epoch=current.number,
                epoch_id=current.epoch_id,
            )
        ]
        facts.extend(self._settle_previous(event.traffic, EndedBy.SWITCH))
        return facts

    def on_failed(self, event: EpochFailed, connection_id: bytes | None) -> list[Facts]:
        """An attempt came to nothing."""
        return [
            EpochFailedFacts(
                peer=self._peer,
                connection_id=None if connection_id is None else connection_id.hex(),
                role=self._role,
                epoch=event.epoch,
                attempt=event.attempt,
                mode=event.mode,
                reason=event.reason,
                remote=event.remote,
            )
        ]

    def on_closed(self, event: TunnelClosed) -> list[Facts]:
        """The tunnel is over. Also right for a tunnel that never had an epoch."""
        traffic = event.traffic
        facts: list[Facts] = [*self._settle_previous(traffic, EndedBy.CLOSE)]
        current = self._current
        if current is not None:
            facts.append(self._ended(current, traffic, EndedBy.CLOSE))
        self._current = None
        facts.append(
            TunnelClosedFacts(
                peer=self._peer,
                connection_id=self._connection_id,
                role=self._role,
                epoch=0 if current is None else current.number,
                reason=event.reason,
                clean=event.clean,
                bytes_sent=traffic.bytes_sent,
                bytes_received=traffic.bytes_received,
                bytes_discarded=traffic.bytes_discarded,
                streams_opened=traffic.streams_opened,
            )
        )
        return facts

    def _settle_previous(self, traffic: Traffic, ended_by: EndedBy) -> list[EpochEndedFacts]:
        """End the epoch that was still in use in one direction, if there is one.

        What was received up to here came under it; what was sent since the commit did not.
        """
        current, previous = self._current, self._previous
        if current is None or previous is None:
            return []
        self._previous = None
        current.began = Traffic(
            bytes_sent=current.began.bytes_sent,
            streams_opened=current.began.streams_opened,
            bytes_received=traffic.bytes_received,
            bytes_discarded=traffic.bytes_discarded,
        )
        return [self._ended(previous, current.began, ended_by)]

    def _mode_changed(self, event: EpochCommitted, was: Mode | None) -> ModeChangedFacts:
        return ModeChangedFacts(
            peer=self._peer,
            connection_id=self._connection_id or "",
            role=self._role,
            epoch=event.epoch,
            epoch_id=event.epoch_id.hex(),
            was=was,
            mode=event.mode,
            reason=event.reason,
        )

    def _ended(self, epoch: _OpenEpoch, end: Traffic, ended_by: EndedBy) -> EpochEndedFacts:
        began = epoch.began
        return EpochEndedFacts(
            peer=self._peer,
            connection_id=self._connection_id or "",
            epoch=epoch.number,
            epoch_id=epoch.epoch_id,
            mode=epoch.mode,
            bytes_sent=max(0, end.bytes_sent - began.bytes_sent),
            bytes_received=max(0, end.bytes_received - began.bytes_received),
            bytes_discarded=max(0, end.bytes_discarded - began.bytes_discarded),
            streams_opened=max(0, end.streams_opened - began.streams_opened),
            ended_by=ended_by,
        )


def audit_text(text: str) -> str:
    """Any text as one that a record may hold: printable ASCII of at most 256 characters."""
    return escape(text)[:MAX_TEXT_CHARS]
