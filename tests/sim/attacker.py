"""Somebody who has recorded a tunnel's whole wire, and some of its secrets.

Written from docs/protocol.md and RFC 9846 (TLS 1.3) with `tests/vectors/independent.py`, the
second implementation of the tunnel's bytes: nothing of qproxy is imported. With every secret it
reads everything, which is what makes its failing without one of them say something.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.vectors import independent as ind

#: What somebody puts in the place of a secret of 32 bytes that he does not have.
BLIND_GUESSES = (bytes(32), b"\xff" * 32, b"")
EXPORTER_LABEL = b"EXPORTER-qproxy-1"


class CannotReadError(Exception):
    """No combination of what is known and what is guessed opens the first record."""


@dataclass(frozen=True)
class Transcript:
    """The epoch messages of one epoch, as they were on the wire."""

    offer: bytes
    accept: bytes


@dataclass(frozen=True)
class Loot:
    """What has fallen into the attacker's hands. None is nothing at all.

    Attributes:
        tls: secrets of the TLS phase by their SSLKEYLOGFILE names, as X25519 and TLS's own
            ML-KEM broken would give them: traffic secrets and the exporter's.
        kem: the ML-KEM secret of each epoch, in order.
        qkd: keys that relays or KMEs gave away, in any order.
        pre_shared_key: the peers' own, or empty.
    """

    tls: Mapping[str, bytes] | None = None
    kem: Sequence[bytes] | None = None
    qkd: Sequence[bytes] | None = None
    pre_shared_key: bytes = b""


@dataclass
class Reading:
    """What he reads.

    Attributes:
        transcripts: of every epoch he got into.
        data: application data by direction, "client" and "server".
    """

    transcripts: list[Transcript] = field(default_factory=list)
    data: dict[str, bytes] = field(default_factory=lambda: {"client": b"", "server": b""})


# --- TLS 1.3 ----------------------------------------------------------------------------------


def expand_label(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """RFC 9846 §7.1."""
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(context)]) + context
    return ind.expand(secret, info, length)


def exporter(exporter_secret: bytes) -> bytes:
    """RFC 9846 §7.5 with an empty context: the exporter of the first epoch."""
    empty = hashlib.sha384(b"").digest()
    secret = expand_label(exporter_secret, EXPORTER_LABEL, empty, 48)
    return expand_label(secret, b"exporter", empty, 48)


def split(wire: bytes) -> list[bytes]:
    """Whole records with their headers."""
    records = []
    while wire:
        end = 5 + int.from_bytes(wire[3:5], "big")
        records.append(wire[:end])
        wire = wire[end:]
    return records


def tls_messages(records: Iterable[bytes], traffic_secret: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each record that is application data under a TLS traffic secret."""
    cipher = AESGCM(expand_label(traffic_secret, b"key", b"", 32))
    iv = int.from_bytes(expand_label(traffic_secret, b"iv", b"", 12), "big")
    sequence = 0
    for number, record in enumerate(records):
        nonce = (iv ^ sequence).to_bytes(12, "big")
        try:
            inner = cipher.decrypt(nonce, record[5:], record[:5]).rstrip(b"\0")
        except InvalidTag:
            continue  # the handshake's records before, the tunnel's after
        sequence += 1
        if inner[-1:] == b"\x17":
            yield number, inner[:-1]


# --- The tunnel -------------------------------------------------------------------------------


class Attacker:
    """One attack on one recorded tunnel.

    Args:
        wire: all bytes of each direction, "client" and "server".
        loot: what else there is.
        overheard: the epoch messages of every epoch, for an attacker who is given them although
            he cannot read the records they were in.
    """

    def __init__(
        self, wire: Mapping[str, bytes], loot: Loot, overheard: Sequence[Transcript] = ()
    ) -> None:
        self._records = {side: split(bytes(data)) for side, data in wire.items()}
        self._loot = loot
        self._overheard = overheard
        self.reading = Reading()

    def read(self) -> Reading:
        """Everything from the first epoch to the last.

        Raises:
            CannotReadError: an epoch's keys cannot be found. ``reading`` holds what was read.
        """
        loot = self._loot
        chain_key = ind.first_chain_key(loot.pre_shared_key)
        previous = b""
        transcript, left = self._first_epoch()
        exporters: Sequence[bytes] = [b"", bytes(48)]
        if loot.tls is not None:
            exporters = [exporter(loot.tls["EXPORTER_SECRET"])]
        for number in itertools.count(1):
            self.reading.transcripts.append(transcript)
            outputs, left = self._find_keys(
                chain_key, previous, transcript, number, exporters, left
            )
            following, left = self._open(transcript, outputs, left)
            if following is None:
                return self.reading
            chain_key, previous = outputs.next_chain_key, outputs.transcript_hash
            transcript, exporters = following, [b""]
        raise AssertionError("unreachable")

    def _first_epoch(self) -> tuple[Transcript, dict[str, list[bytes]]]:
        """OFFER and ACCEPT, and the records behind them, from TLS or as they were given."""
        tls = self._loot.tls or {}
        if "CLIENT_TRAFFIC_SECRET_0" not in tls:
            if not self._overheard:
                raise CannotReadError("the first epoch's messages are inside TLS")
            return self._overheard[0], self._records
        messages, left = {}, {}
        for side, name in (("client", "CLIENT"), ("server", "SERVER")):
            found = list(tls_messages(self._records[side], tls[f"{name}_TRAFFIC_SECRET_0"]))
            messages[side] = found[0][1]
            left[side] = self._records[side][found[-1][0] + 1 :]
        return Transcript(messages["client"], messages["server"]), left

    def _find_keys(
        self,
        chain_key: bytes,
        previous: bytes,
        transcript: Transcript,
        epoch: int,
        exporters: Sequence[bytes],
        left: Mapping[str, Sequence[bytes]],
    ) -> tuple[ind.EpochOutputs, dict[str, list[bytes]]]:
        """The epoch's keys, by everything known and every guess at the rest.

        Returns:
            The keys, and the records of each direction from the first that they open.
        """
        loot = self._loot
        offer, accept = (ind.decode_message(m) for m in (transcript.offer, transcript.accept))
        assert isinstance(offer, ind.Offer)
        assert isinstance(accept, ind.Accept)
        kems = BLIND_GUESSES if loot.kem is None else loot.kem[epoch - 1 : epoch]
        known = BLIND_GUESSES if loot.qkd is None else (*loot.qkd, *BLIND_GUESSES)
        for kem, exp, qkd in itertools.product(
            kems, exporters, itertools.permutations(known, len(offer.keys))
        ):
            outputs = ind.derive(
                ind.EpochInputs(
                    chain_key=chain_key,
                    previous_transcript_hash=previous,
                    offer=transcript.offer,
                    accept_without_mac=accept.encode_without_mac(),
                    mode=offer.mode,
                    epoch=epoch,
                    kem_secret=kem,
                    exporter=exp,
                    qkd_keys=qkd,
                )
            )
            opened = {
                "client": self._opened(offer.aead, outputs.client_traffic_secret, left["client"]),
                "server": self._opened(offer.aead, outputs.server_traffic_secret, left["server"]),
            }
            # The MAC in ACCEPT tells a right guess as well as a record does.
            assert any(opened.values()) == (outputs.server_mac == accept.mac)
            if any(opened.values()):
                return outputs, opened
        raise CannotReadError(f"no key of epoch {epoch} opens any record")

    def _opened(self, aead: int, secret: bytes, records: Sequence[bytes]) -> list[bytes]:
        """The records from the first one that a key opens; none where it opens none."""
        protection = ind.Protection.of(aead, secret)
        for number, record in enumerate(records):
            try:
                protection.open(0, record)
            except ind.RefusedError:
                continue
            return list(records[number:])
        return []

    def _open(
        self,
        transcript: Transcript,
        outputs: ind.EpochOutputs,
        left: Mapping[str, Sequence[bytes]],
    ) -> tuple[Transcript | None, dict[str, list[bytes]]]:
        """Read an epoch to its end; the messages of the next one, and the records behind it."""
        offer = ind.decode_message(transcript.offer)
        assert isinstance(offer, ind.Offer)
        secrets = {
            "client": outputs.client_traffic_secret,
            "server": outputs.server_traffic_secret,
        }
        messages: dict[int, bytes] = {}
        behind: dict[str, list[bytes]] = {}
        for side, records in left.items():
            protection = ind.Protection.of(offer.aead, secrets[side])
            rest = list(records)
            for sequence in itertools.count():
                if not rest:
                    break
                frames = ind.decode_frames(protection.open(sequence, rest.pop(0)))
                for frame in frames:
                    if frame.type == ind.DATA:
                        assert isinstance(frame.payload, bytes)
                        self.reading.data[side] += frame.payload
                    if frame.type == ind.EPOCH:
                        encoded = frame.encode_payload()
                        messages[encoded[0]] = encoded
                if any(frame.type == ind.SWITCH for frame in frames):
                    break
            behind[side] = rest
        if ind.ACCEPT not in messages:
            return None, behind
        return Transcript(messages[ind.OFFER], messages[ind.ACCEPT]), behind
