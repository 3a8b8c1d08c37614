"""What a capture sees: TLS 1.3 records from the first byte to the last, and no secret."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from typing import Any

import pytest

from qproxy.crypto.kem import SIZES
from qproxy.errors import Reason
from qproxy.modes import Aead, KemAlgorithm, Mode
from qproxy.tunnel.events import EpochCommitted, TunnelClosed
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import logged_context, split_records
from tests.tunnel.helpers import CLIENT, SERVER, Pair, make_pair, qkd_keys, replace
from tests.tunnel.rules import BOTH
from tests.tunnel.test_connection import open_stream

PSK = hashlib.sha256(b"psk").digest()
#: Shortest piece of a secret or of application data looked for.
PIECE_BYTES = 8


def watch_secrets(pair: Pair, secrets: list[bytes]) -> None:
    """Note every secret both ends derive."""
    for role in BOTH:
        epochs: Any = pair.end(role)._epochs
        chain, derive = epochs.chain, epochs.chain.derive
        secrets.append(bytes(epochs._exporter))

        def noting(*args: Any, derive: Any = derive, chain: Any = chain, **named: Any) -> Any:
            secrets.append(bytes(chain._chain_key))
            secrets.append(bytes(named["kem_secret"]))
            secrets.extend(bytes(key) for key in named["qkd_keys"])
            pending = derive(*args, **named)
            secrets.extend(
                bytes(value) for value in vars(pending).values() if isinstance(value, bytearray)
            )
            return pending

        chain.derive = noting


def converse(aead: Aead, step: int) -> tuple[Pair, list[bytes], list[bytes]]:
    """A tunnel's whole life: handshake, a lying KME, rekeys under load, a close.

    Returns:
        The pair, the secrets of both ends, and what the applications said.
    """
    log: dict[str, bytes] = {}
    pair = make_pair(
        replace(CLIENT, aead=aead, psk=PSK),
        replace(SERVER, psk=PSK),
        client_tls=logged_context(Role.CLIENT, "gw-a", log),
        step=step,
    )
    pair.pump()
    secrets = [PSK, *log.values()]
    watch_secrets(pair, secrets)
    honest = pair.server_keys
    pair.server_keys = lambda needed: qkd_keys(*(k.key_id for k in needed.keys), salt="lie")
    pair.start_epoch(Mode.HYBRID, qkd_keys("mismatch"))
    pair.pump()
    pair.server_keys = honest
    pair.start_epoch(Mode.HYBRID, qkd_keys("one", "two"))
    pair.pump()
    stream_id = open_stream(pair)
    said, noise = [], random.Random(7)
    for number in range(2, 6):
        hybrid = number % 2 == 0
        pair.start_epoch(
            Mode.HYBRID if hybrid else Mode.CLASSICAL_ONLY,
            qkd_keys(f"key-{number}") if hybrid else [],
        )
        for role in BOTH:
            said.append(noise.randbytes(3000))
            pair.end(role).send_data(stream_id, memoryview(said[-1]))
        pair.pump()
    assert pair.client.epoch == 5
    pair.client.end(Reason.SHUTDOWN, pair.now)
    pair.pump()
    assert all(pair.last(role, TunnelClosed).clean for role in BOTH)
    return pair, secrets, said


def pieces(data: bytes) -> set[bytes]:
    return {data[at : at + PIECE_BYTES] for at in range(len(data) - PIECE_BYTES + 1)}


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("step", [0, 1000])
def test_every_byte_belongs_to_a_tls_record(aead: Aead, step: int) -> None:
    pair, _secrets, _said = converse(aead, step)
    for role in BOTH:
        kinds = Counter[int]()
        for number, record in enumerate(split_records(bytes(pair.wire[role]))):
            kinds[record[0]] += 1
            first_hello = role is Role.CLIENT and number == 0
            assert record[1:3] == b"\x03\x03" or (first_hello and record[1:3] == b"\x03\x01")
            assert 1 <= len(record) - 5 <= (1 << 14) + 256
            if record[0] == 23:
                assert len(record) - 5 >= 17
        assert set(kinds) <= {20, 22, 23}
        # One hello, at most one compatibility CCS; everything else is application data.
        assert kinds[22] == 1
        assert kinds[20] <= 1


@pytest.mark.parametrize("aead", list(Aead))
def test_no_secret_and_no_application_byte_is_on_the_wire(aead: Aead) -> None:
    pair, secrets, said = converse(aead, 0)
    assert len(secrets) > 60
    seen = pieces(bytes(pair.wire[Role.CLIENT])) | pieces(bytes(pair.wire[Role.SERVER]))
    for secret in [*secrets, *said]:
        assert not pieces(secret) & seen
    for key in qkd_keys("one", "two", "mismatch", "key-2"):
        assert not pieces(bytes(key.key)) & seen
    for clear in (b"first-key", b"key-2", b"gw-a", b"sae-b", b"etsi-qkd-014", b"127.0.0.1", b"web"):
        assert clear not in pair.wire[Role.CLIENT]
        assert clear not in pair.wire[Role.SERVER]


def test_what_is_looked_for_would_be_found() -> None:
    """The search above finds a secret where one is."""
    _pair, secrets, said = converse(Aead.AES_256_GCM, 0)
    for secret in [*secrets, *said]:
        assert pieces(secret) & pieces(bytes(20) + secret[3:20] + bytes(20))


def test_two_epochs_share_no_traffic_key() -> None:
    _pair, secrets, _said = converse(Aead.AES_256_GCM, 0)
    longest = Counter(secret for secret in secrets if len(secret) == 48)
    # Each of both ends derived each secret once; the failed attempt's differ between the ends.
    assert max(longest.values()) <= 4  # CK_1 is read twice at each end: two attempts


def test_a_rekey_shows_nothing_but_sizes() -> None:
    """Records of a rekey have the same header as any other, and come without a pause."""
    pair, _secrets, _said = converse(Aead.AES_256_GCM, 0)
    records = split_records(bytes(pair.wire[Role.CLIENT]))
    tunnel = [record for record in records if record[0] == 23]
    assert {record[:3] for record in tunnel} == {b"\x17\x03\x03"}
    offers = [r for r in tunnel if len(r) > SIZES[KemAlgorithm.ML_KEM_1024].encapsulation_key]
    assert len(offers) >= 6
    assert [event.epoch for event in pair.of(Role.CLIENT, EpochCommitted)] == [1, 2, 3, 4, 5]


def test_the_same_content_never_gives_the_same_record() -> None:
    """Sequence numbers, directions and epochs all separate the keystreams."""
    pair = make_pair()
    pair.pump()
    pair.start_epoch()
    pair.pump()
    stream_id = open_stream(pair)
    for _ in range(3):
        for _ in range(3):
            for role in BOTH:
                pair.end(role).send_data(stream_id, memoryview(bytes(64)))
                pair.pump()
        pair.start_epoch()
        pair.pump()
    bodies = [
        record[5:]
        for role in BOTH
        for record in split_records(bytes(pair.wire[role]))
        if record[0] == 23
    ]
    assert len(set(bodies)) == len(bodies)
    starts = [body[7 : 7 + 40] for body in bodies if len(body) == 64 + 7 + 17]
    assert len(starts) >= 18
    assert len(set(starts)) == len(starts)


def test_no_secret_in_a_repr() -> None:
    pair = make_pair(replace(CLIENT, psk=PSK), replace(SERVER, psk=PSK))
    pair.pump()
    secrets: list[bytes] = []
    watch_secrets(pair, secrets)
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    held: list[Any] = [pair.client._settings, pair.client._epochs]
    pair.pump()
    held += [*pair.events[Role.CLIENT], *pair.events[Role.SERVER], *vars(pair.client).values()]
    words = " ".join(map(repr, held))
    for secret in [PSK, *secrets]:
        for shown in (secret.hex(), repr(secret)[2:-1]):
            assert shown[:24] not in words
