"""The combiner and the key schedule: from shared secrets to traffic keys.

One class per stage, each built only from the stage before it::

    ChainKey(CK_n, T_{n-1})  --derive-->  PendingEpoch(outputs of ES_n, T_n)
    PendingEpoch             --commit-->  ChainKey(CK_{n+1}, T_n)

A :class:`PendingEpoch` that is never committed is wiped and leaves the chain key untouched, so a
failed attempt cannot weaken or move the chain (docs/protocol.md, rule R6).

The construction is a two-step KDF in the sense of NIST SP 800-56C r2. H is SHA-384 throughout.
Source: docs/protocol.md, "Key schedule".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from qproxy.crypto import labels
from qproxy.modes import Mode

#: Output size of SHA-384, and of every secret of the schedule, in bytes.
HASH_BYTES = 48
#: Size of ML-KEM shared secrets (FIPS 203 §8), in bytes.
KEM_SECRET_BYTES = 32
#: Size of the TLS exporter output mixed into an epoch, in bytes.
EXPORTER_BYTES = 48
#: Size of the optional pre-shared key, in bytes.
PSK_BYTES = 32
#: Size of the epoch's public name in logs and the audit trail, in bytes.
EPOCH_ID_BYTES = 16
#: T_0: no transcript yet.
EMPTY_TRANSCRIPT = b""

#: What the mode contributes to every derivation, as on the wire.
MODE_CODES = {Mode.CLASSICAL_ONLY: 1, Mode.HYBRID: 2}


def lp(value: bytes | bytearray) -> bytes:
    """Length-prefix: a 4-byte big-endian length, then the value. Makes concatenation injective."""
    return len(value).to_bytes(4, "big") + value


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place. Copies inside libraries are out of reach (SECURITY.md)."""
    secret[:] = bytes(len(secret))


def expand(secret: bytes | bytearray, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand(secret, u16(length) ‖ lp("qproxy1 " ‖ label) ‖ lp(context), length)."""
    info = length.to_bytes(2, "big") + lp(labels.PREFIX + label) + lp(context)
    return HKDFExpand(SHA384(), length, info).derive(bytes(secret))


def extract(salt: bytes | bytearray, ikm: bytes | bytearray) -> bytes:
    """HKDF-Extract(salt, ikm) with SHA-384 (RFC 5869 §2.2)."""
    return hmac.digest(bytes(salt), ikm, "sha384")


def transcript_hash(previous: bytes, offer: bytes, accept: bytes) -> bytes:
    """T_n = H(lp(label) ‖ lp(T_{n-1}) ‖ lp(OFFER) ‖ lp(ACCEPT without its MAC)), 48 bytes."""
    return hashlib.sha384(lp(labels.TRANSCRIPT) + lp(previous) + lp(offer) + lp(accept)).digest()


def history_hash(previous: bytes, offer: bytes, outcome: bytes) -> bytes:
    """Fold one failed attempt into the epoch's history, 48 bytes.

    Args:
        previous: the history before this attempt, empty for the first.
        offer: the attempt's OFFER as sent.
        outcome: the REJECT or ABORT that ended it, as sent.
    """
    return hashlib.sha384(lp(labels.HISTORY) + lp(previous) + lp(offer) + lp(outcome)).digest()


def encode_qkd_keys(keys: Sequence[bytes | bytearray]) -> bytearray:
    """qkd_key = lp(k_1) ‖ lp(k_2) ‖ …; empty for no keys. The caller wipes the result."""
    joined = bytearray()
    for key in keys:
        joined += len(key).to_bytes(4, "big")
        joined += key
    return joined


class PendingEpoch:
    """The outputs of ES_n before both ends have proved that they hold them.

    Attributes:
        mode: what ES_n was made from.
        epoch: n, from 1.
        transcript_hash: T_n, 48 bytes, public.
        epoch_id: 16 bytes, public: the epoch's name in logs and the audit trail.
    """

    def __init__(self, epoch_secret: bytes, mode: Mode, epoch: int, transcript: bytes) -> None:
        context = bytes([MODE_CODES[mode]]) + epoch.to_bytes(4, "big") + transcript

        def output(label: bytes, length: int = HASH_BYTES) -> bytearray:
            return bytearray(expand(epoch_secret, label, context, length))

        self.mode = mode
        self.epoch = epoch
        self.transcript_hash = transcript
        self.epoch_id = bytes(output(labels.EPOCH_ID, EPOCH_ID_BYTES))
        self._next_chain_key = output(labels.CHAIN)
        self._client_confirm_key = output(labels.CLIENT_CONFIRM)
        self._server_confirm_key = output(labels.SERVER_CONFIRM)
        self.client_traffic_secret = output(labels.CLIENT_TRAFFIC)
        self.server_traffic_secret = output(labels.SERVER_TRAFFIC)

    def __repr__(self) -> str:
        return f"PendingEpoch(epoch={self.epoch}, mode={self.mode})"

    def client_mac(self) -> bytes:
        """CONFIRM's MAC: HMAC-SHA384(client confirm key, T_n), 48 bytes."""
        return hmac.digest(bytes(self._client_confirm_key), self.transcript_hash, "sha384")

    def server_mac(self) -> bytes:
        """ACCEPT's MAC: HMAC-SHA384(server confirm key, T_n), 48 bytes."""
        return hmac.digest(bytes(self._server_confirm_key), self.transcript_hash, "sha384")

    def client_mac_is(self, mac: bytes) -> bool:
        """Compare CONFIRM's MAC in constant time."""
        return hmac.compare_digest(self.client_mac(), mac)

    def server_mac_is(self, mac: bytes) -> bool:
        """Compare ACCEPT's MAC in constant time."""
        return hmac.compare_digest(self.server_mac(), mac)

    def wipe(self) -> None:
        """Overwrite everything secret: the attempt failed, or its keys have been installed."""
        for secret in (
            self._next_chain_key,
            self._client_confirm_key,
            self._server_confirm_key,
            self.client_traffic_secret,
            self.server_traffic_secret,
        ):
            wipe(secret)


class ChainKey:
    """CK_n and T_{n-1}: what every later epoch depends on.

    Attributes:
        epoch: n, the number of the next epoch to be derived, from 1.
        transcript_hash: T_{n-1}, empty before the first epoch.
    """

    def __init__(self, psk: bytes | bytearray | None = None) -> None:
        """CK_1 = HKDF-Extract("qproxy1 init", psk or 32 zero bytes).

        Args:
            psk: the pre-shared key of exactly 32 bytes, or None.

        Raises:
            ValueError: the pre-shared key has another length.
        """
        if psk is not None and len(psk) != PSK_BYTES:
            raise ValueError(f"pre-shared key: expected {PSK_BYTES} bytes, got {len(psk)}")
        self.epoch = 1
        self.transcript_hash = EMPTY_TRANSCRIPT
        self._chain_key = bytearray(extract(labels.INIT, psk or bytes(PSK_BYTES)))

    def __repr__(self) -> str:
        return f"ChainKey(epoch={self.epoch})"

    def derive(
        self,
        mode: Mode,
        *,
        offer: bytes,
        accept: bytes,
        kem_secret: bytes | bytearray,
        exporter: bytes | bytearray,
        qkd_keys: Sequence[bytes | bytearray],
    ) -> PendingEpoch:
        """ES_n = HKDF-Extract(CK_n, lp(ss_mlkem) ‖ lp(exp) ‖ lp(qkd_key)) and its outputs.

        Args:
            mode: the mode both messages carry.
            offer: OFFER as sent.
            accept: ACCEPT as sent, its MAC left out.
            kem_secret: ML-KEM shared secret, 32 bytes; stays the caller's to wipe.
            exporter: TLS exporter, 48 bytes, or empty; stays the caller's to wipe.
            qkd_keys: the QKD keys in the order announced; stay the caller's to wipe.

        Raises:
            ValueError: a size is wrong, or mode and keys disagree (an empty key is never hybrid).
        """
        if len(kem_secret) != KEM_SECRET_BYTES:
            raise ValueError(f"ML-KEM secret: expected {KEM_SECRET_BYTES} bytes")
        if len(exporter) not in {0, EXPORTER_BYTES}:
            raise ValueError(f"TLS exporter: expected 0 or {EXPORTER_BYTES} bytes")
        if (mode is Mode.HYBRID) != bool(qkd_keys) or not all(qkd_keys):
            raise ValueError("QKD keys are mixed in exactly in hybrid mode, and none is empty")
        transcript = transcript_hash(self.transcript_hash, offer, accept)
        qkd_key = encode_qkd_keys(qkd_keys)
        ikm = bytearray()
        for part in (kem_secret, exporter, qkd_key):
            ikm += len(part).to_bytes(4, "big")
            ikm += part
        epoch_secret = extract(self._chain_key, ikm)
        wipe(qkd_key)
        wipe(ikm)
        return PendingEpoch(epoch_secret, mode, self.epoch, transcript)

    def commit(self, pending: PendingEpoch) -> None:
        """Move to CK_{n+1}, T_n, and forget CK_n.

        The traffic secrets of ``pending`` must have been installed before: it is wiped here.

        Raises:
            ValueError: the epoch is not the one that follows.
        """
        if pending.epoch != self.epoch:
            raise ValueError(f"expected epoch {self.epoch}, got {pending.epoch}")
        wipe(self._chain_key)
        self._chain_key = bytearray(pending._next_chain_key)
        self.transcript_hash = pending.transcript_hash
        self.epoch += 1
        pending.wipe()

    def wipe(self) -> None:
        """Overwrite CK_n: the tunnel is over."""
        wipe(self._chain_key)
