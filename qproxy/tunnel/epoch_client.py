"""The client's side of an epoch: offer, verify ACCEPT, confirm. Steps C1 to C6 of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qproxy.crypto.kem import SIZES as KEM_SIZES
from qproxy.crypto.kem import KemKeyPair, KemProvider
from qproxy.crypto.schedule import PendingEpoch, wipe
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES, MIN_QKD_KEY_BYTES, QkdKey, wipe_keys
from qproxy.modes import Mode, Policy
from qproxy.tunnel.codec import is_usable_text
from qproxy.tunnel.constants import MAX_ATTEMPTS_PER_EPOCH, MAX_EPOCH, MAX_KEYS_PER_OFFER
from qproxy.tunnel.epochs import Attempt, Committed, EpochExchange
from qproxy.tunnel.events import EpochFailed
from qproxy.tunnel.messages import (
    CONNECTION_ID_BYTES,
    NO_REAUTH,
    NONCE_BYTES,
    Abort,
    Accept,
    Binding,
    Confirm,
    Offer,
    OfferedKey,
    Reject,
)
from qproxy.tunnel.settings import TunnelSettings
from qproxy.tunnel.states import CLIENT_EPOCH, ClientEpochState, EpochEvent


class ClientEpochs(EpochExchange):
    """One OFFER outstanding at most; only this side starts an epoch, so none can cross."""

    def __init__(
        self,
        settings: TunnelSettings,
        kem: KemProvider,
        random_bytes: Callable[[int], bytes],
        binding: Binding,
        first_exporter: bytearray,
        now: float,
    ) -> None:
        super().__init__(settings, kem, random_bytes, binding, first_exporter, now)
        self.state = ClientEpochState.IDLE
        self.connection_id = random_bytes(CONNECTION_ID_BYTES)
        self.deadline: float | None = None
        self._offer: Offer | None = None
        self._keys: list[QkdKey] = []
        self._key_pair: KemKeyPair | None = None

    def start(self, mode: Mode, reason: Reason, keys: Sequence[QkdKey], now: float) -> bytes:
        """C1: OFFER. The keys are this object's from here on, and burnt (rule R5).

        Raises:
            LocalProtocolError: not now, or not this: an exchange is under way, policy forbids
                the mode, or the keys do not fit it.
        """
        self._check_start(mode, keys)
        self._attempts += 1
        self._take_exporter()
        self._keys = list(keys)
        self._key_pair = self._kem.generate(self.settings.kem)
        self._offer = Offer(
            epoch=self.chain.epoch,
            attempt=self._attempts,
            mode=mode,
            reason=reason,
            aead=self.settings.aead,
            kem=self.settings.kem,
            policy=self.local_policy,
            max_without_qkd_s=self.settings.max_without_qkd_s,
            connection_id=self.connection_id,
            nonce=self._random_bytes(NONCE_BYTES),
            history=self._next_attempt_history(),
            reauth_id=self._current_reauth_id(),
            binding=self._current_binding(),
            encapsulation_key=self._key_pair.encapsulation_key,
            keys=tuple(OfferedKey(self._label(key), len(key.key), key.key_id) for key in keys),
        )
        encoded = self._offer.encode()
        self._attempt = Attempt(
            number=self._attempts,
            mode=mode,
            reason=reason,
            kem=self._offer.kem,
            aead=self._offer.aead,
            key_ids=tuple(key.key_id for key in keys),
            reauth_id=self._offer.reauth_id,
            offer=encoded,
            origins=tuple(key.origin for key in keys),
        )
        self._move(EpochEvent.OFFER)
        self.deadline = now + self.settings.epoch_timeout_s
        return encoded

    def on_accept(self, accept: Accept, now: float) -> Committed | bytes | None:
        """C2 to C4: derive, verify the server's MAC, commit and confirm.

        Returns:
            The committed epoch; or an ABORT to send, the MAC of a hybrid epoch being wrong
            (rule R7); or None, the message being stale (rule R6).

        Raises:
            RemoteProtocolError: the messages disagree, or the MAC of a classical-only epoch is
                wrong.
        """
        if self._is_stale(accept.epoch, accept.attempt, "ACCEPT") or self._attempt is None:
            return None
        pending = self._derive(accept)
        if not pending.server_mac_is(accept.mac):
            pending.wipe()
            return self._on_wrong_mac()
        self._learn_policy(accept.policy, accept.max_without_qkd_s)
        attempt = self._attempt
        if self.effective_policy is Policy.REQUIRE and attempt.mode is not Mode.HYBRID:
            pending.wipe()
            raise RemoteProtocolError(
                Reason.POLICY_REQUIRE, "the peer requires QKD and accepted an epoch without"
            )
        confirm = Confirm(accept.epoch, accept.attempt, pending.client_mac()).encode()
        self._move(EpochEvent.ACCEPT)
        self._erase_attempt_secrets()
        # From here the server must switch within a bounded time and number of records (rule R4).
        self.deadline = now + self.settings.epoch_timeout_s
        committed = self._finish_epoch(pending, attempt, now, confirmed=False)
        committed.message = confirm
        return committed

    def on_reject(self, reject: Reject) -> None:
        """C5: an authenticated no. Its reason, and nothing less, may change the next mode."""
        if self._is_stale(reject.epoch, reject.attempt, "REJECT") or self._attempt is None:
            return
        self._learn_policy(reject.policy, reject.max_without_qkd_s)
        self._fail(EpochEvent.REJECT, reject.encode(), reject.reason, remote=True)

    def on_switch(self) -> None:
        """C6: the server runs under the new epoch; the next OFFER may come."""
        self._move(EpochEvent.SWITCH)
        self.deadline = None

    def on_timeout(self) -> bytes:
        """No answer to the OFFER in time. Returns the ABORT to send."""
        return self._abort(Reason.EPOCH_TIMEOUT)

    def drop(self) -> None:
        """The tunnel ends with an OFFER outstanding: no alarm, the keys are burnt (rule R12)."""
        self._erase_attempt_secrets()
        self._attempt = None
        self.deadline = None

    def wipe(self) -> None:
        """Erase everything."""
        self.drop()
        super().wipe()

    def _check_start(self, mode: Mode, keys: Sequence[QkdKey]) -> None:
        if self.state is not ClientEpochState.IDLE:
            raise LocalProtocolError(Reason.UNEXPECTED_MESSAGE, f"an epoch is {self.state.value}")
        if self._attempts >= MAX_ATTEMPTS_PER_EPOCH or self.chain.epoch >= MAX_EPOCH:
            raise LocalProtocolError(Reason.EPOCH_LIMIT, "attempts or epoch numbers are used up")
        if mode is Mode.CLASSICAL_ONLY and self.effective_policy is Policy.REQUIRE:
            raise LocalProtocolError(Reason.POLICY_REQUIRE, "policy forbids classical-only")
        if (mode is Mode.HYBRID) != bool(keys) or len(keys) > MAX_KEYS_PER_OFFER:
            raise LocalProtocolError(Reason.KEY_INVALID, f"{mode} with {len(keys)} QKD keys")
        if keys and not self.settings.key_sources:
            raise LocalProtocolError(Reason.NO_KEY_SOURCE, "no key source is configured")
        named = [(self._label(key), key.key_id) for key in keys]
        if any(label not in self.settings.key_sources for label, _ in named):
            raise LocalProtocolError(Reason.KEY_INVALID, "a key of a source that is not configured")
        if not _are_usable_ids(named):
            raise LocalProtocolError(Reason.KEY_INVALID, "a QKD key has an ID that cannot be used")
        if any(not MIN_QKD_KEY_BYTES <= len(key.key) <= MAX_QKD_KEY_BYTES for key in keys):
            raise LocalProtocolError(Reason.KEY_INVALID, "a QKD key has a size that cannot be used")

    def _label(self, key: QkdKey) -> str:
        """How an OFFER names the key's source; where the key does not say, it is the first."""
        return key.origin.label or next(iter(self.settings.key_sources), "")

    def _derive(self, accept: Accept) -> PendingEpoch:
        if self._attempt is None or self._offer is None or self._key_pair is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no attempt to derive keys for")
        if accept.mode is not self._offer.mode or accept.reauth_id != self._offer.reauth_id:
            raise RemoteProtocolError(
                Reason.BINDING_MISMATCH, "ACCEPT answers another mode or re-authentication"
            )
        if len(accept.ciphertext) != KEM_SIZES[self._offer.kem].ciphertext:
            raise RemoteProtocolError(
                Reason.MALFORMED_MESSAGE, f"ciphertext of {len(accept.ciphertext)} bytes"
            )
        kem_secret = self._key_pair.decapsulate(accept.ciphertext)
        try:
            return self.chain.derive(
                self._offer.mode,
                offer=self._attempt.offer,
                accept=accept.encode_without_mac(),
                kem_secret=kem_secret,
                exporter=self._attempt_exporter,
                qkd_keys=[key.key for key in self._keys],
            )
        finally:
            wipe(kem_secret)

    def _on_wrong_mac(self) -> bytes:
        if self._attempt is None or self._attempt.mode is not Mode.HYBRID:
            raise RemoteProtocolError(Reason.CONFIRM_MAC, "ACCEPT's MAC does not verify")
        if self._attempt.reauth_id != NO_REAUTH:
            # Going on without the re-authentication would keep the thief it may have met (R2).
            raise RemoteProtocolError(
                Reason.CONFIRM_MAC, "ACCEPT's MAC does not verify after a re-authentication"
            )
        # The two KMEs may have given different keys for one ID: a QKD failure (rule R7).
        return self._abort(Reason.KEY_MISMATCH)

    def _abort(self, reason: Reason) -> bytes:
        abort = Abort(self.chain.epoch, self._attempts, reason).encode()
        self._fail(EpochEvent.ABORT, abort, reason, remote=False)
        return abort

    def _fail(self, event: EpochEvent, outcome: bytes, reason: Reason, *, remote: bool) -> None:
        if self._attempt is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no attempt to close")
        self._move(event)
        self.events.append(
            EpochFailed(
                epoch=self.chain.epoch,
                attempt=self._attempt.number,
                mode=self._attempt.mode,
                reason=reason,
                remote=remote,
            )
        )
        self._close_attempt(outcome)
        self._erase_attempt_secrets()
        self.deadline = None

    def _erase_attempt_secrets(self) -> None:
        wipe_keys(self._keys)
        self._keys = []
        if self._key_pair is not None:
            self._key_pair.wipe()
        self._key_pair = None
        self._offer = None

    def _move(self, event: EpochEvent) -> None:
        target = CLIENT_EPOCH.get((self.state, event))
        if target is None:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"{event.value} while {self.state.value}"
            )
        self.state = target


def _are_usable_ids(keys: Sequence[tuple[str, str]]) -> bool:
    """Whether the server would take these sources' IDs: no KME may end a tunnel (rule R7)."""
    return len(set(keys)) == len(keys) and all(
        is_usable_text(key_id, MAX_KEY_ID_BYTES) for _, key_id in keys
    )
