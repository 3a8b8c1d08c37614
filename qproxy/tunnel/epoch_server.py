"""The server's side of an epoch: check the OFFER, accept, verify CONFIRM. Steps S1 to S6."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qproxy.crypto.kem import SIZES as KEM_SIZES
from qproxy.crypto.kem import KemProvider
from qproxy.crypto.schedule import PendingEpoch, wipe
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.keys import QkdKey, wipe_keys
from qproxy.modes import Mode, Policy, stricter
from qproxy.tunnel.constants import MAX_ATTEMPTS_PER_EPOCH, MAX_EPOCH
from qproxy.tunnel.epochs import Attempt, Committed, EpochExchange
from qproxy.tunnel.events import EpochFailed, KeysNeeded
from qproxy.tunnel.messages import (
    NONCE_BYTES,
    Abort,
    Accept,
    Binding,
    Confirm,
    Offer,
    Reject,
)
from qproxy.tunnel.settings import TunnelSettings
from qproxy.tunnel.states import SERVER_EPOCH, EpochEvent, ServerEpochState


class ServerEpochs(EpochExchange):
    """Answers the client's offers, one at a time."""

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
        self.state = ServerEpochState.IDLE
        self.connection_id: bytes | None = None
        self.deadline: float | None = None
        self._offer: Offer | None = None
        self._pending: PendingEpoch | None = None

    def on_offer(self, offer: Offer, encoded: bytes, now: float) -> bytes | None:
        """S1, S2: check everything an OFFER claims, then accept, reject or ask for the keys.

        Returns:
            The ACCEPT or REJECT to send; None after a ``KeysNeeded`` event.

        Raises:
            RemoteProtocolError: the OFFER does not belong here (rules R6, R9, R10).
        """
        self._move(EpochEvent.OFFER)
        self._check_place(offer)
        self._check_binding(offer)
        self._attempts = offer.attempt
        self._take_exporter()
        self._attempt = Attempt(
            number=offer.attempt,
            mode=offer.mode,
            reason=offer.reason,
            kem=offer.kem,
            aead=offer.aead,
            key_ids=tuple(key.key_id for key in offer.keys),
            reauth_id=offer.reauth_id,
            offer=encoded,
        )
        self._offer = offer
        self._learn_policy(offer.policy, offer.max_without_qkd_s)
        refusal = self._refusal(offer)
        if refusal is not None:
            return self._reject(refusal)
        if offer.mode is Mode.HYBRID:
            self.events.append(KeysNeeded(offer.epoch, offer.attempt, offer.keys))
            return None
        return self._accept([], now)

    def provide_keys(
        self, epoch: int, attempt: int, keys: Sequence[QkdKey], now: float
    ) -> bytes | None:
        """S3: the redeemed keys, in the order asked. They are this object's from here on.

        Returns:
            The ACCEPT to send, a REJECT where the keys are not what was announced, or None
            where the client has given the attempt up meanwhile.
        """
        if not self._waits_for(epoch, attempt) or self._offer is None:
            wipe_keys(keys)
            return None
        wanted = [(key.source, key.key_id, key.size_bytes) for key in self._offer.keys]
        # A key that does not say where it is from is taken for what was asked.
        given = [
            (key.origin.label or offered.source, key.key_id, len(key.key))
            for key, offered in zip(keys, self._offer.keys, strict=False)
        ]
        if len(keys) != len(wanted) or given != wanted:
            wipe_keys(keys)
            return self._reject(Reason.KEY_INVALID)
        if self._attempt is not None:
            self._attempt.origins = tuple(key.origin for key in keys)
        try:
            return self._accept(keys, now)
        finally:
            wipe_keys(keys)

    def refuse_keys(self, epoch: int, attempt: int, reason: Reason) -> bytes | None:
        """S3: the keys cannot be had. Returns the REJECT to send, or None where it is stale."""
        if not self._waits_for(epoch, attempt):
            return None
        return self._reject(reason)

    def on_confirm(self, confirm: Confirm, now: float) -> Committed:
        """S4: verify the client's MAC and commit.

        Raises:
            RemoteProtocolError: the MAC is wrong, or no CONFIRM was due: the tunnel ends
                (rule R3).
        """
        attempt, pending = self._attempt, self._pending
        if (
            self.state is not ServerEpochState.ACCEPTED
            or attempt is None
            or pending is None
            or (confirm.epoch, confirm.attempt) != (self.chain.epoch, attempt.number)
        ):
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "CONFIRM without its ACCEPT")
        if not pending.client_mac_is(confirm.mac):
            raise RemoteProtocolError(Reason.CONFIRM_MAC, "CONFIRM's MAC does not verify")
        self._move(EpochEvent.CONFIRM)
        self._pending = None
        self._offer = None
        # From here the client must switch within a bounded time (rule R4).
        self.deadline = now + self.settings.epoch_timeout_s
        return self._finish_epoch(pending, attempt, now, confirmed=True)

    def on_abort(self, abort: Abort) -> None:
        """S5: the client gave the attempt up."""
        if self._is_stale(abort.epoch, abort.attempt, "ABORT"):
            return
        attempt = self._attempt
        if attempt is None:
            # Our REJECT and the client's ABORT crossed; the client's word is what both hash.
            if not self._last_outcome:
                raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "ABORT without its OFFER")
            self._last_outcome = abort.encode()
            return
        self._move(EpochEvent.ABORT)
        self.events.append(
            EpochFailed(
                epoch=self.chain.epoch,
                attempt=attempt.number,
                mode=attempt.mode,
                reason=abort.reason,
                remote=True,
            )
        )
        self._close_attempt(abort.encode())
        self._erase_attempt_secrets()

    def on_switch(self) -> None:
        """S6: the client sends under the new epoch; its next OFFER may come."""
        self._move(EpochEvent.SWITCH)
        self.deadline = None

    def drop(self) -> None:
        """This end ended the tunnel in the middle of an exchange: no alarm (rule R12).

        After an ACCEPT the client may have committed, and its END then comes under the new key:
        what reads it is kept until the tunnel is closed.
        """
        self.deadline = None
        if self.state is not ServerEpochState.ACCEPTED:
            self._erase_attempt_secrets()
            self._attempt = None

    def wipe(self) -> None:
        """Erase everything."""
        self._erase_attempt_secrets()
        self._attempt = None
        super().wipe()

    def _check_place(self, offer: Offer) -> None:
        if offer.epoch != self.chain.epoch or offer.attempt != self._attempts + 1:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE,
                f"OFFER {offer.epoch}/{offer.attempt}, "
                f"expected {self.chain.epoch}/{self._attempts + 1}",
            )
        if self.chain.epoch >= MAX_EPOCH or offer.attempt > MAX_ATTEMPTS_PER_EPOCH:
            raise RemoteProtocolError(Reason.EPOCH_LIMIT, "attempts or epoch numbers are used up")
        if offer.history != self._next_attempt_history():
            raise RemoteProtocolError(
                Reason.HISTORY_MISMATCH, "the ends disagree on this epoch's earlier attempts"
            )

    def _check_binding(self, offer: Offer) -> None:
        if offer.reauth_id != self._current_reauth_id():
            raise RemoteProtocolError(
                Reason.BINDING_MISMATCH, "the OFFER does not mix in the last re-authentication"
            )
        if offer.binding != self._current_binding():
            raise RemoteProtocolError(
                Reason.BINDING_MISMATCH,
                "names, certificates or SAE IDs of the OFFER are not those of this tunnel",
            )
        if self.connection_id is None:
            self.connection_id = offer.connection_id
        elif self.connection_id != offer.connection_id:
            raise RemoteProtocolError(Reason.BINDING_MISMATCH, "the connection ID changed")

    def _refusal(self, offer: Offer) -> Reason | None:
        """Why this OFFER may not become an epoch, or None."""
        if KEM_SIZES[offer.kem].ciphertext < KEM_SIZES[self.settings.kem].ciphertext:
            return Reason.UNSUPPORTED_SUITE
        if offer.mode is Mode.HYBRID:
            sources = {key.source for key in offer.keys}
            known = sources <= set(self.settings.key_sources)
            return None if known else Reason.NO_KEY_SOURCE
        if stricter(self.local_policy, offer.policy) is Policy.REQUIRE:
            return Reason.POLICY_REQUIRE
        return None

    def _accept(self, keys: Sequence[QkdKey], now: float) -> bytes:
        if self._attempt is None or self._offer is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no OFFER to accept")
        offer = self._offer
        kem_secret, ciphertext = self._kem.encapsulate(offer.kem, offer.encapsulation_key)
        accept = Accept(
            epoch=offer.epoch,
            attempt=offer.attempt,
            mode=offer.mode,
            policy=self.local_policy,
            max_without_qkd_s=self.settings.max_without_qkd_s,
            nonce=self._random_bytes(NONCE_BYTES),
            reauth_id=offer.reauth_id,
            ciphertext=ciphertext,
        )
        try:
            self._pending = self.chain.derive(
                offer.mode,
                offer=self._attempt.offer,
                accept=accept.encode_without_mac(),
                kem_secret=kem_secret,
                exporter=self._attempt_exporter,
                qkd_keys=[key.key for key in keys],
            )
        finally:
            wipe(kem_secret)
        self._move(EpochEvent.ACCEPT)
        self.deadline = now + self.settings.epoch_timeout_s
        return accept.encode_without_mac() + self._pending.server_mac()

    def _reject(self, reason: Reason) -> bytes:
        if self._attempt is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no OFFER to reject")
        reject = Reject(
            epoch=self.chain.epoch,
            attempt=self._attempt.number,
            reason=reason,
            policy=self.local_policy,
            max_without_qkd_s=self.settings.max_without_qkd_s,
        ).encode()
        self._move(EpochEvent.REJECT)
        self.events.append(
            EpochFailed(
                epoch=self.chain.epoch,
                attempt=self._attempt.number,
                mode=self._attempt.mode,
                reason=reason,
                remote=False,
            )
        )
        self._close_attempt(reject)
        self._erase_attempt_secrets()
        return reject

    def _waits_for(self, epoch: int, attempt: int) -> bool:
        return (
            self.state is ServerEpochState.REDEEMING
            and self._attempt is not None
            and (epoch, attempt) == (self.chain.epoch, self._attempt.number)
        )

    def _erase_attempt_secrets(self) -> None:
        if self._pending is not None:
            self._pending.wipe()
        self._pending = None
        self._offer = None
        self.deadline = None

    def _move(self, event: EpochEvent) -> None:
        target = SERVER_EPOCH.get((self.state, event))
        if target is None:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"{event.value} while {self.state.value}"
            )
        self.state = target
