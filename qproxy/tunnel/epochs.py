"""What both ends of an epoch exchange have in common.

The chain key, the attempt counter and its history, the bindings, and the policy the two ends have
agreed on. The two sides of the exchange are :mod:`qproxy.tunnel.epoch_client` and
:mod:`qproxy.tunnel.epoch_server`; both produce and consume messages and never touch a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qproxy.crypto.kem import KemProvider
from qproxy.crypto.schedule import ChainKey, PendingEpoch, history_hash, wipe
from qproxy.errors import Reason, RemoteProtocolError
from qproxy.keys import KeyOrigin
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy, stricter
from qproxy.tunnel.events import EpochCommitted, Event, PolicyAgreed
from qproxy.tunnel.messages import NO_REAUTH, Binding
from qproxy.tunnel.reauth import InnerHandshake
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.tls_phase import AuthenticatedPeer


def make_binding(role: Role, settings: TunnelSettings, peer: AuthenticatedPeer) -> Binding:
    """What this end holds true about both (rule R10): its own TLS view and configuration."""
    if role is Role.CLIENT:
        return Binding(
            client_certificate_hash=peer.local_certificate_hash,
            server_certificate_hash=peer.certificate_hash,
            client_name=settings.local_name,
            server_name=settings.peer_name,
            client_sae_id=settings.local_sae_id,
            server_sae_id=settings.peer_sae_id,
        )
    return Binding(
        client_certificate_hash=peer.certificate_hash,
        server_certificate_hash=peer.local_certificate_hash,
        client_name=settings.peer_name,
        server_name=settings.local_name,
        client_sae_id=settings.peer_sae_id,
        server_sae_id=settings.local_sae_id,
    )


@dataclass(slots=True)
class Committed:
    """The outcome of a successful exchange, for the connection to install.

    Attributes:
        pending: the traffic secrets; wiped by ``ChainKey.commit`` after they are installed.
        aead: record protection of the epoch.
        event: what the driver is told.
        message: CONFIRM to be sent first, at the client.
    """

    pending: PendingEpoch
    aead: Aead
    event: EpochCommitted
    message: bytes = b""


@dataclass(slots=True)
class Attempt:
    """One OFFER and what became of it."""

    number: int
    mode: Mode
    reason: Reason
    kem: KemAlgorithm
    aead: Aead
    key_ids: tuple[str, ...]
    reauth_id: bytes
    offer: bytes = field(repr=False)
    origins: tuple[KeyOrigin, ...] = ()


class EpochExchange:
    """State common to both roles.

    Attributes:
        chain: CK_n and T_{n-1}.
        local_policy: this end's policy; may change on reload.
        peer_policy: the peer's, as last authenticated, or None before that.
        fresh_qkd_at: when a QKD key last entered the keys, or when the tunnel began.
        qkd_ever: a QKD key is somewhere in the chain.
        events: what happened, for the connection to pass on.
    """

    def __init__(
        self,
        settings: TunnelSettings,
        kem: KemProvider,
        random_bytes: Callable[[int], bytes],
        binding: Binding,
        first_exporter: bytearray,
        now: float,
    ) -> None:
        self.settings = settings
        self.chain = ChainKey(settings.psk)
        self.binding = binding
        self.local_policy = settings.policy
        self.peer_policy: Policy | None = None
        self.fresh_qkd_at = now
        self.qkd_ever = False
        self.events: list[Event] = []
        self._peer_max_without_qkd_s = 0
        self._kem = kem
        self._random_bytes = random_bytes
        self._exporter = first_exporter
        self._attempt_exporter = bytearray()
        self._inner: InnerHandshake | None = None
        self._inner_binding = binding
        self._attempts = 0
        self._attempt: Attempt | None = None
        self._history = b""
        self._last_offer = b""
        self._last_outcome = b""

    @property
    def effective_policy(self) -> Policy:
        """The stricter of the two ends' policies; this end's while the peer's is unknown."""
        if self.peer_policy is None:
            return self.local_policy
        return stricter(self.local_policy, self.peer_policy)

    @property
    def qkd_deadline(self) -> float | None:
        """When ``require`` ends the tunnel for want of a fresh QKD key, or None."""
        limits = []
        if self.local_policy is Policy.REQUIRE:
            limits.append(self.settings.max_without_qkd_s)
        if self.peer_policy is Policy.REQUIRE:
            limits.append(self._peer_max_without_qkd_s)
        return self.fresh_qkd_at + min(limits) if limits else None

    @property
    def reauth_pending(self) -> bool:
        """A re-authentication is complete at this end and in no committed epoch yet."""
        return self._inner is not None

    def mix_in(self, inner: InnerHandshake, binding: Binding) -> None:
        """From now on every OFFER carries this re-authentication, until an epoch commits."""
        self._inner = inner
        self._inner_binding = binding

    def wipe(self) -> None:
        """The tunnel is over: erase what is left."""
        self.chain.wipe()
        self._wipe_exporters()
        # OpenSSL holds the exporter's secret for as long as the handshake lives.
        self._inner = None

    def _current_binding(self) -> Binding:
        """What an OFFER made now must say, with the certificates of the last handshake."""
        return self.binding if self._inner is None else self._inner_binding

    def _current_reauth_id(self) -> bytes:
        return NO_REAUTH if self._inner is None else self._inner.reauth_id

    def _take_exporter(self) -> None:
        """Fix the exporter of the attempt that begins: a later handshake must not change it."""
        wipe(self._attempt_exporter)
        if self._inner is not None:
            self._attempt_exporter = self._inner.exporter(self.chain.transcript_hash)
        elif self.chain.epoch == 1:
            self._attempt_exporter = bytearray(self._exporter)
        else:
            self._attempt_exporter = bytearray()

    def _wipe_exporters(self) -> None:
        for exporter in (self._exporter, self._attempt_exporter):
            wipe(exporter)
            del exporter[:]

    def _learn_policy(self, policy: Policy, max_without_qkd_s: int) -> None:
        known = self.peer_policy
        self._peer_max_without_qkd_s = max_without_qkd_s
        self.peer_policy = policy
        if policy is not known:
            self.events.append(PolicyAgreed(self.local_policy, policy, self.effective_policy))

    def _next_attempt_history(self) -> bytes:
        """Fold the last failed attempt in, when the next OFFER makes its outcome final."""
        if self._last_outcome:
            self._history = history_hash(self._history, self._last_offer, self._last_outcome)
            self._last_outcome = b""
        return self._history

    def _close_attempt(self, outcome: bytes) -> None:
        """The current attempt ended in a REJECT or an ABORT."""
        if self._attempt is not None:
            self._last_offer = self._attempt.offer
        self._last_outcome = outcome
        self._attempt = None

    def _finish_epoch(
        self, pending: PendingEpoch, attempt: Attempt, now: float, *, confirmed: bool
    ) -> Committed:
        """Both ends hold the same keys: describe the epoch, start counting attempts anew.

        The chain moves when the connection has installed the traffic secrets, not here.
        """
        if pending.mode is Mode.HYBRID:
            self.fresh_qkd_at = now
            self.qkd_ever = True
        elif pending.epoch == 1:
            self.fresh_qkd_at = now
        event = EpochCommitted(
            epoch=pending.epoch,
            attempt=attempt.number,
            mode=pending.mode,
            reason=attempt.reason,
            epoch_id=pending.epoch_id,
            kem=attempt.kem,
            aead=attempt.aead,
            key_ids=attempt.key_ids,
            origins=attempt.origins,
            confirmed=confirmed,
            qkd_ever=self.qkd_ever,
            reauthenticated=attempt.reauth_id != NO_REAUTH,
        )
        if attempt.reauth_id != NO_REAUTH:
            self.binding = self._inner_binding
            self._inner = None
        self._attempts = 0
        self._attempt = None
        self._history = self._last_offer = self._last_outcome = b""
        self._wipe_exporters()
        return Committed(pending, attempt.aead, event)

    def _is_stale(self, epoch: int, attempt: int, what: str) -> bool:
        """Whether an echo belongs to an attempt that is over.

        Raises:
            RemoteProtocolError: it belongs to one that never was.
        """
        current = (self.chain.epoch, self._attempts)
        if (epoch, attempt) > current:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE,
                f"{what} for epoch {epoch}, attempt {attempt}, which was not offered",
            )
        return (epoch, attempt) < current
