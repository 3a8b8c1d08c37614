"""Makes tests/vectors/key-schedule.json from the implementation, with fixed inputs.

Run ``python -m tests.vectors.make_key_schedule`` from the top of the checkout after a deliberate
change of the protocol. The ML-KEM triples (key, ciphertext, shared secret) are those of the
ml-kem-*-kat.json files beside it, so that the vectors can be replayed from seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qproxy.crypto import labels, schedule
from qproxy.crypto.records import CONTENT_APPLICATION_DATA, RecordSealer
from qproxy.crypto.schedule import ChainKey, PendingEpoch, expand, extract, history_hash
from qproxy.errors import Reason
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.tunnel.announce import INSTANCE_ID_BYTES, KeyReport, encode_announce
from qproxy.tunnel.frames import FRAME_HEADER, FrameType, OpenRequest
from qproxy.tunnel.messages import (
    AEAD_CODES,
    KEM_CODES,
    NO_REAUTH,
    POLICY_CODES,
    REAUTH_ID_BYTES,
    Abort,
    Accept,
    Binding,
    Confirm,
    Offer,
    OfferedKey,
    Reject,
)

HERE = Path(__file__).parent
OUTPUT = HERE / "key-schedule.json"
ABOUT = (
    "Vectors of the qproxy/1 key schedule, messages and records; docs/protocol.md gives the "
    "formulas. Byte strings are hexadecimal. kem_vector N is test N of ml-kem-768-kat.json or "
    "ml-kem-1024-kat.json in this directory. Made by make_key_schedule.py."
)


def fixed(name: str, length: int) -> bytes:
    """Bytes that only their name decides."""
    return hashlib.shake_256(f"qproxy vector {name}".encode()).digest(length)


@dataclass(frozen=True)
class KemVector:
    """One triple from the ML-KEM known answers."""

    encapsulation_key: bytes
    ciphertext: bytes
    shared_secret: bytes


def kem_vector(algorithm: KemAlgorithm, number: int) -> KemVector:
    test = json.loads((HERE / f"{algorithm}-kat.json").read_text())["tests"][number]
    return KemVector(
        bytes.fromhex(test["encapsulation_key"]),
        bytes.fromhex(test["ciphertext"]),
        bytes.fromhex(test["shared_secret"]),
    )


@dataclass(frozen=True)
class EpochInput:
    """What one epoch is made from.

    Attributes:
        key_sizes: size in bytes of each QKD key; none for classical-only.
        failures: how the attempts before the successful one ended.
    """

    kem: KemAlgorithm
    kem_number: int
    key_sizes: tuple[int, ...] = ()
    exporter: bool = False
    reason: Reason = Reason.REKEY_INTERVAL
    failures: tuple[tuple[type[Reject] | type[Abort], Reason], ...] = ()


@dataclass(frozen=True)
class SequenceInput:
    """A tunnel: its pre-shared key or none, its record protection, its epochs in order."""

    name: str
    epochs: tuple[EpochInput, ...]
    psk: bool = False
    aead: Aead = Aead.AES_256_GCM
    policy: Policy = Policy.PREFER


ML_KEM_768, ML_KEM_1024 = KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024
FIRST = {"exporter": True, "reason": Reason.INITIAL}
SEQUENCES = (
    SequenceInput("classical-only first epoch", (EpochInput(ML_KEM_1024, 0, **FIRST),)),
    SequenceInput(
        "hybrid, then hybrid with three keys, then classical-only",
        (
            EpochInput(ML_KEM_1024, 0, (32,), **FIRST),
            EpochInput(ML_KEM_1024, 1, (32, 64, 33)),
            EpochInput(ML_KEM_768, 0, reason=Reason.LINK_CHANGE),
        ),
        policy=Policy.PREFER,
    ),
    SequenceInput(
        "pre-shared key, ML-KEM-768, ChaCha20-Poly1305",
        (
            EpochInput(ML_KEM_768, 1, (48,), **FIRST),
            EpochInput(ML_KEM_768, 2, (32, 32), reason=Reason.REKEY_BYTES),
        ),
        psk=True,
        aead=Aead.CHACHA20_POLY1305,
        policy=Policy.REQUIRE,
    ),
    SequenceInput(
        "pre-shared key, classical-only", (EpochInput(ML_KEM_768, 0, **FIRST),), psk=True
    ),
    SequenceInput(
        "first epoch without exporter (no tunnel does this; it isolates the empty field)",
        (EpochInput(ML_KEM_768, 0, (32,), reason=Reason.INITIAL),),
    ),
    SequenceInput(
        "third attempt after a REJECT and an ABORT",
        (
            EpochInput(
                ML_KEM_768,
                2,
                exporter=True,
                reason=Reason.RETRY,
                failures=((Reject, Reason.KEY_NOT_FOUND), (Abort, Reason.KEY_MISMATCH)),
            ),
        ),
    ),
)


def make_binding(name: str) -> Binding:
    return Binding(
        client_certificate_hash=fixed(f"{name} client certificate", 48),
        server_certificate_hash=fixed(f"{name} server certificate", 48),
        client_name="gw-a",
        server_name="gw-b",
        client_sae_id="sae-a",
        server_sae_id="süd-b",
    )


def offered_keys(name: str, sizes: Sequence[int]) -> tuple[OfferedKey, ...]:
    return tuple(
        OfferedKey("etsi-qkd-014", size, f"{name} key {number}")
        for number, size in enumerate(sizes, 1)
    )


def describe_offer(offer: Offer) -> dict[str, Any]:
    """An OFFER's fields as its byte table names them, code points as numbers."""
    return {
        "version": offer.version,
        "aead": AEAD_CODES[offer.aead],
        "kem": KEM_CODES[offer.kem],
        "epoch": offer.epoch,
        "attempt": offer.attempt,
        "mode": schedule.MODE_CODES[offer.mode],
        "reason": offer.reason.code,
        "policy": POLICY_CODES[offer.policy],
        "max_without_qkd_s": offer.max_without_qkd_s,
        "connection_id": offer.connection_id.hex(),
        "nonce": offer.nonce.hex(),
        "history": offer.history.hex(),
        "reauth_id": offer.reauth_id.hex(),
        "client_certificate_hash": offer.binding.client_certificate_hash.hex(),
        "server_certificate_hash": offer.binding.server_certificate_hash.hex(),
        "client_name": offer.binding.client_name,
        "server_name": offer.binding.server_name,
        "client_sae_id": offer.binding.client_sae_id,
        "server_sae_id": offer.binding.server_sae_id,
        "encapsulation_key": offer.encapsulation_key.hex(),
        "keys": [
            {"source": key.source, "size_bytes": key.size_bytes, "key_id": key.key_id}
            for key in offer.keys
        ],
        "encoded": offer.encode().hex(),
    }


def describe_accept(accept: Accept) -> dict[str, Any]:
    return {
        "epoch": accept.epoch,
        "attempt": accept.attempt,
        "mode": schedule.MODE_CODES[accept.mode],
        "policy": POLICY_CODES[accept.policy],
        "max_without_qkd_s": accept.max_without_qkd_s,
        "nonce": accept.nonce.hex(),
        "reauth_id": accept.reauth_id.hex(),
        "ciphertext": accept.ciphertext.hex(),
        "mac": accept.mac.hex(),
        "encoded_without_mac": accept.encode_without_mac().hex(),
        "encoded": accept.encode().hex(),
    }


def describe_outcome(outcome: Reject | Abort) -> dict[str, Any]:
    fields = {
        "message": type(outcome).__name__.upper(),
        "epoch": outcome.epoch,
        "attempt": outcome.attempt,
        "reason": outcome.reason.code,
    }
    if isinstance(outcome, Reject):
        fields["policy"] = POLICY_CODES[outcome.policy]
        fields["max_without_qkd_s"] = outcome.max_without_qkd_s
    return {**fields, "encoded": outcome.encode().hex()}


def describe_records(aead: Aead, secret: bytes | bytearray, frame: bytes) -> dict[str, Any]:
    """A direction's key and IV, and its first record, which carries one frame."""
    sealer = RecordSealer(aead, secret)
    return {
        "key": expand(secret, labels.KEY, b"", 32).hex(),
        "iv": expand(secret, labels.IV, b"", 12).hex(),
        "first_content": frame.hex(),
        "first_record": seal(sealer, frame).hex(),
    }


def seal(sealer: RecordSealer, content: bytes, padding: int = 0) -> bytes:
    inner = content + bytes([CONTENT_APPLICATION_DATA]) + bytes(padding)
    record = bytearray(len(inner) + 21)
    sealer.seal_into(memoryview(inner), memoryview(record))
    return bytes(record)


def frame(kind: FrameType, stream_id: int, payload: bytes) -> bytes:
    return FRAME_HEADER.pack(kind, stream_id, len(payload)) + payload


class TunnelScript:
    """Plays one tunnel's epochs through the implementation and writes down every value."""

    def __init__(self, given: SequenceInput) -> None:
        self._given = given
        self._psk = fixed(f"{given.name} psk", schedule.PSK_BYTES) if given.psk else None
        self._chain = ChainKey(self._psk)
        self._history = b""

    def describe(self) -> dict[str, Any]:
        return {
            "name": self._given.name,
            "psk": (self._psk or b"").hex(),
            "aead": AEAD_CODES[self._given.aead],
            "chain_key_1": self._chain._chain_key.hex(),
            "epochs": [self._epoch(given) for given in self._given.epochs],
        }

    def _offer(self, given: EpochInput, attempt: int, *, last: bool) -> Offer:
        name = f"{self._given.name} {self._chain.epoch}/{attempt}"
        sizes = given.key_sizes if last else (32,)
        return Offer(
            epoch=self._chain.epoch,
            attempt=attempt,
            mode=Mode.HYBRID if sizes else Mode.CLASSICAL_ONLY,
            reason=given.reason if last else Reason.INITIAL,
            aead=self._given.aead,
            kem=given.kem,
            policy=self._given.policy,
            max_without_qkd_s=300,
            connection_id=fixed(f"{self._given.name} connection", 16),
            nonce=fixed(f"{name} client nonce", 32),
            history=self._history,
            reauth_id=NO_REAUTH,
            binding=make_binding(self._given.name),
            encapsulation_key=kem_vector(
                given.kem, given.kem_number if last else 0
            ).encapsulation_key,
            keys=offered_keys(f"{self._chain.epoch}/{attempt}", sizes),
        )

    def _failed_attempts(self, given: EpochInput) -> list[dict[str, Any]]:
        failed = []
        for attempt, (kind, reason) in enumerate(given.failures, 1):
            offer = self._offer(given, attempt, last=False)
            outcome = (
                Reject(offer.epoch, attempt, reason, Policy.PREFER, 600)
                if kind is Reject
                else Abort(offer.epoch, attempt, reason)
            )
            self._history = history_hash(self._history, offer.encode(), outcome.encode())
            failed.append(
                {
                    "offer": describe_offer(offer),
                    "outcome": describe_outcome(outcome),
                    "history_after": self._history.hex(),
                }
            )
        return failed

    def _epoch(self, given: EpochInput) -> dict[str, Any]:
        failed = self._failed_attempts(given)
        offer = self._offer(given, len(failed) + 1, last=True)
        kem = kem_vector(given.kem, given.kem_number)
        name = f"{self._given.name} {offer.epoch}/{offer.attempt}"
        accept = Accept(
            epoch=offer.epoch,
            attempt=offer.attempt,
            mode=offer.mode,
            policy=Policy.PREFER,
            max_without_qkd_s=600,
            nonce=fixed(f"{name} server nonce", 32),
            reauth_id=NO_REAUTH,
            ciphertext=kem.ciphertext,
        )
        keys = [fixed(f"{name} {key.key_id}", key.size_bytes) for key in offer.keys]
        exporter = fixed(f"{name} exporter", schedule.EXPORTER_BYTES) if given.exporter else b""
        pending = self._chain.derive(
            offer.mode,
            offer=offer.encode(),
            accept=accept.encode_without_mac(),
            kem_secret=kem.shared_secret,
            exporter=exporter,
            qkd_keys=keys,
        )
        described = {
            "epoch": offer.epoch,
            "failed_attempts": failed,
            "offer": describe_offer(offer),
            "accept": describe_accept(replace(accept, mac=pending.server_mac())),
            "kem_vector": given.kem_number,
            "kem_secret": kem.shared_secret.hex(),
            "exporter": exporter.hex(),
            "qkd_keys": [key.hex() for key in keys],
            **self._schedule(pending, kem.shared_secret, exporter, keys),
            "confirm": self._confirm(offer, pending),
            **self._first_records(pending),
        }
        self._chain.commit(pending)
        self._history = b""
        return described

    def _schedule(
        self, pending: PendingEpoch, kem_secret: bytes, exporter: bytes, keys: list[bytes]
    ) -> dict[str, Any]:
        """Every intermediate; ES_n itself is never kept by the implementation, so it is remade."""
        qkd_key = bytes(schedule.encode_qkd_keys(keys))
        ikm = schedule.lp(kem_secret) + schedule.lp(exporter) + schedule.lp(qkd_key)
        epoch_secret = extract(self._chain._chain_key, ikm)
        context = (
            bytes([schedule.MODE_CODES[pending.mode]])
            + pending.epoch.to_bytes(4, "big")
            + pending.transcript_hash
        )
        if expand(epoch_secret, labels.CHAIN, context, 48) != pending._next_chain_key:
            raise ValueError("the epoch secret remade here is not the implementation's")
        return {
            "chain_key": self._chain._chain_key.hex(),
            "previous_transcript_hash": self._chain.transcript_hash.hex(),
            "transcript_hash": pending.transcript_hash.hex(),
            "qkd_key": qkd_key.hex(),
            "ikm": ikm.hex(),
            "epoch_secret": epoch_secret.hex(),
            "context": context.hex(),
            "next_chain_key": pending._next_chain_key.hex(),
            "client_traffic_secret": pending.client_traffic_secret.hex(),
            "server_traffic_secret": pending.server_traffic_secret.hex(),
            "client_confirm_key": pending._client_confirm_key.hex(),
            "server_confirm_key": pending._server_confirm_key.hex(),
            "epoch_id": pending.epoch_id.hex(),
            "client_mac": pending.client_mac().hex(),
            "server_mac": pending.server_mac().hex(),
        }

    @staticmethod
    def _confirm(offer: Offer, pending: PendingEpoch) -> dict[str, Any]:
        confirm = Confirm(offer.epoch, offer.attempt, pending.client_mac())
        return {
            "epoch": confirm.epoch,
            "attempt": confirm.attempt,
            "mac": confirm.mac.hex(),
            "encoded": confirm.encode().hex(),
        }

    def _first_records(self, pending: PendingEpoch) -> dict[str, Any]:
        number = pending.epoch.to_bytes(4, "big")
        ping = frame(FrameType.PING, 0, fixed("ping", 8))
        first = pending.epoch == 1
        aead = self._given.aead
        return {
            "client_records": describe_records(aead, pending.client_traffic_secret, ping),
            "server_records": describe_records(
                aead,
                pending.server_traffic_secret,
                frame(FrameType.COMMITTED, 0, number) if first else ping,
            ),
        }


def describe_record_series(aead: Aead) -> dict[str, Any]:
    """Records of one direction: some sequence numbers, with and without padding."""
    secret = fixed(f"{aead} traffic secret", 48)
    sealer = RecordSealer(aead, secret)
    records = []
    for sequence, size, padding in (
        (0, 1, 0),
        (1, 100, 0),
        (255, 7, 0),
        (256, 7, 0),
        (65_536, 40, 24),
        (23_726_565, 300, 0),
    ):
        content = fixed(f"{aead} content {sequence}", size)
        sealer.records = sequence
        records.append(
            {
                "sequence": sequence,
                "content": content.hex(),
                "padding": padding,
                "record": seal(sealer, content, padding).hex(),
            }
        )
    return {
        "aead": AEAD_CODES[aead],
        "traffic_secret": secret.hex(),
        "key": expand(secret, labels.KEY, b"", 32).hex(),
        "iv": expand(secret, labels.IV, b"", 12).hex(),
        "records": records,
    }


def describe_frames() -> list[dict[str, Any]]:
    """One frame of each type, as bytes."""
    limit = (1 << 20).to_bytes(8, "big")
    reason = bytes([Reason.SHUTDOWN.code])
    abort = Abort(2, 1, Reason.EPOCH_TIMEOUT).encode()
    announced = [OfferedKey("etsi-qkd-014", 32, "key-1"), OfferedKey("file", 64, "key-2")]
    report = KeyReport(
        fixed("instance", INSTANCE_ID_BYTES), (("key-1", None), ("key-2", Reason.NO_KEY_SOURCE))
    )
    given = (
        (FrameType.DATA, 1, b"data"),
        (FrameType.OPEN, 3, OpenRequest("web", "192.0.2.7:50000", "127.0.0.1:8080").encode()),
        (FrameType.OPENED, 3, b""),
        (FrameType.REFUSED, 5, bytes([Reason.SERVICE_UNKNOWN.code])),
        (FrameType.STREAM_CREDIT, 3, limit),
        (FrameType.SESSION_CREDIT, 0, limit),
        (FrameType.HALF_CLOSE, 3, b""),
        (FrameType.RESET, 3, bytes([Reason.CONNECTION_RESET.code])),
        (FrameType.PING, 0, fixed("ping", 8)),
        (FrameType.PONG, 0, fixed("ping", 8)),
        (FrameType.GO_AWAY, 0, reason),
        (FrameType.END, 0, reason),
        (FrameType.EPOCH, 0, abort),
        (FrameType.SWITCH, 0, (2).to_bytes(4, "big")),
        (FrameType.COMMITTED, 0, (1).to_bytes(4, "big")),
        (FrameType.REQUEST, 0, bytes([Reason.REAUTHENTICATION.code])),
        (FrameType.ANNOUNCE, 0, encode_announce(announced)),
        (FrameType.REPORT, 0, report.encode()),
        (FrameType.TLS, 0, fixed("reauth id", REAUTH_ID_BYTES) + b"TLS bytes"),
    )
    return [
        {
            "frame": kind.name,
            "type": int(kind),
            "stream_id": stream_id,
            "payload": payload.hex(),
            "encoded": frame(kind, stream_id, payload).hex(),
        }
        for kind, stream_id, payload in given
    ]


def make_vectors() -> dict[str, Any]:
    """The whole file as a value."""
    return {
        "about": ABOUT,
        "sequences": [TunnelScript(given).describe() for given in SEQUENCES],
        "records": [describe_record_series(aead) for aead in Aead],
        "frames": describe_frames(),
    }


def render(vectors: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file."""
    OUTPUT.write_text(render(make_vectors()), encoding="utf-8")


if __name__ == "__main__":
    main()
