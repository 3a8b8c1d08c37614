"""The published vectors, recomputed by an implementation made from docs/protocol.md alone.

Every object of key-schedule.json is built anew from its inputs and compared as a whole, so a
value that nobody computes cannot hide in it. Then the other way round: one bit of any input
changed must change what is derived from it, and bytes that are no message must be refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vectors import independent as ind

Json = dict[str, Any]

HERE = Path(__file__).parent
VECTORS: Json = json.loads((HERE / "key-schedule.json").read_text(encoding="utf-8"))
KATS = {
    kem: json.loads((HERE / name).read_text(encoding="utf-8"))["tests"]
    for kem, name in {1: "ml-kem-768-kat.json", 2: "ml-kem-1024-kat.json"}.items()
}
ALL_EPOCHS: list[tuple[str, Json]] = [
    (f"{s['name'].replace(' ', '_')}-{e['epoch']}", e)
    for s in VECTORS["sequences"]
    for e in s["epochs"]
]
SEQUENCES = [pytest.param(s, id=s["name"].replace(" ", "_")) for s in VECTORS["sequences"]]
EPOCHS = [pytest.param(e, id=name) for name, e in ALL_EPOCHS]
HYBRID_EPOCHS = [pytest.param(e, id=name) for name, e in ALL_EPOCHS if e["qkd_keys"]]
LATER_EPOCHS = [pytest.param(e, id=name) for name, e in ALL_EPOCHS if e["epoch"] > 1]
SECRETS = [
    pytest.param(e, secret, id=f"{name}-{secret}")
    for name, e in ALL_EPOCHS
    for secret in ("chain_key", "kem_secret", "exporter")
    if e[secret]
]
# What depends on the transcript alone, and what on the secrets alone.
PUBLIC = {"transcript_hash", "context"}
SECRET = {"qkd_key", "ikm", "epoch_secret"}
DERIVED = {f.name for f in dataclasses.fields(ind.EpochOutputs)} - PUBLIC - SECRET
TEXTS = {"client_name", "server_name", "client_sae_id", "server_sae_id"}


# --- JSON to values and back ----------------------------------------------------------------


def offer_of(vector: Json) -> ind.Offer:
    """An OFFER from its listed fields; `encoded` is not looked at."""
    values: Json = {}
    for name in (f.name for f in dataclasses.fields(ind.Offer)):
        value = vector[name]
        if name == "keys":
            values[name] = tuple(ind.Key(**key) for key in value)
        elif isinstance(value, str) and name not in TEXTS:
            values[name] = bytes.fromhex(value)
        else:
            values[name] = value
    return ind.Offer(**values)


def listed(value: Any) -> Any:
    """A dataclass, tuple or byte string in the form of the JSON file."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: listed(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [listed(part) for part in value]
    return value.hex() if isinstance(value, bytes) else value


def listed_offer(offer: ind.Offer) -> Json:
    encoded = offer.encode()
    assert ind.decode_message(encoded) == offer
    return {**listed(offer), "encoded": encoded.hex()}


def inputs_of(epoch: Json) -> ind.EpochInputs:
    """The inputs of one epoch as the file states them."""
    return ind.EpochInputs(
        chain_key=bytes.fromhex(epoch["chain_key"]),
        previous_transcript_hash=bytes.fromhex(epoch["previous_transcript_hash"]),
        offer=bytes.fromhex(epoch["offer"]["encoded"]),
        accept_without_mac=bytes.fromhex(epoch["accept"]["encoded_without_mac"]),
        mode=epoch["offer"]["mode"],
        epoch=epoch["epoch"],
        kem_secret=bytes.fromhex(epoch["kem_secret"]),
        exporter=bytes.fromhex(epoch["exporter"]),
        qkd_keys=tuple(bytes.fromhex(key) for key in epoch["qkd_keys"]),
    )


def but(given: ind.EpochInputs, name: str, value: Any) -> ind.EpochInputs:
    """The same inputs but for one."""
    changes: Json = {name: value}
    return dataclasses.replace(given, **changes)


def flip(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


# --- The vectors, recomputed ----------------------------------------------------------------


def records_anew(aead: int, secret: bytes, vector: Json) -> Json:
    protection = ind.Protection.of(aead, secret)
    content = bytes.fromhex(vector["first_content"])
    record = protection.seal(0, content)
    assert protection.open(0, bytes.fromhex(vector["first_record"])) == content
    assert b"".join(frame.encode() for frame in ind.decode_frames(content)) == content
    return {
        "key": protection.key.hex(),
        "iv": protection.iv.hex(),
        "first_content": content.hex(),
        "first_record": record.hex(),
    }


def failed_anew(vector: Json, history: bytes) -> tuple[Json, bytes]:
    offer = dataclasses.replace(offer_of(vector["offer"]), history=history)
    stated = vector["outcome"]
    outcome: ind.Reject | ind.Abort
    if stated["message"] == "REJECT":
        outcome = ind.Reject(
            offer.epoch,
            offer.attempt,
            stated["reason"],
            stated["policy"],
            stated["max_without_qkd_s"],
        )
    else:
        outcome = ind.Abort(offer.epoch, offer.attempt, stated["reason"])
    encoded = outcome.encode()
    assert ind.decode_message(encoded) == outcome
    after = ind.history_hash(history, offer.encode(), encoded)
    anew = {
        "offer": listed_offer(offer),
        "outcome": {
            "message": type(outcome).__name__.upper(),
            **listed(outcome),
            "encoded": encoded.hex(),
        },
        "history_after": after.hex(),
    }
    return anew, after


def epoch_anew(
    vector: Json, aead: int, chain_key: bytes, previous: bytes
) -> tuple[Json, ind.EpochOutputs]:
    """One epoch from its inputs: every field of the vector, and the raw outputs."""
    history = b""
    failed = []
    for stated in vector["failed_attempts"]:
        attempt, history = failed_anew(stated, history)
        failed.append(attempt)
    kat = KATS[vector["offer"]["kem"]][vector["kem_vector"]]
    offer = dataclasses.replace(
        offer_of(vector["offer"]),
        aead=aead,
        attempt=len(failed) + 1,
        history=history,
        encapsulation_key=bytes.fromhex(kat["encapsulation_key"]),
    )
    stated = vector["accept"]
    accept = ind.Accept(
        epoch=offer.epoch,
        attempt=offer.attempt,
        mode=offer.mode,
        policy=stated["policy"],
        max_without_qkd_s=stated["max_without_qkd_s"],
        nonce=bytes.fromhex(stated["nonce"]),
        reauth_id=offer.reauth_id,
        ciphertext=bytes.fromhex(kat["ciphertext"]),
    )
    given = ind.EpochInputs(
        chain_key=chain_key,
        previous_transcript_hash=previous,
        offer=offer.encode(),
        accept_without_mac=accept.encode_without_mac(),
        mode=offer.mode,
        epoch=offer.epoch,
        kem_secret=bytes.fromhex(kat["shared_secret"]),
        exporter=bytes.fromhex(vector["exporter"]),
        qkd_keys=tuple(bytes.fromhex(key) for key in vector["qkd_keys"]),
    )
    assert [len(key) for key in given.qkd_keys] == [key.size_bytes for key in offer.keys]
    assert given.epoch == 1 or not given.exporter
    outputs = ind.derive(given)
    accept = dataclasses.replace(accept, mac=outputs.server_mac)
    confirm = ind.Confirm(offer.epoch, offer.attempt, outputs.client_mac)
    assert ind.decode_message(accept.encode()) == accept
    assert ind.decode_message(confirm.encode()) == confirm
    anew = {
        "epoch": offer.epoch,
        "failed_attempts": failed,
        "offer": listed_offer(offer),
        "accept": {
            **listed(accept),
            "encoded_without_mac": accept.encode_without_mac().hex(),
            "encoded": accept.encode().hex(),
        },
        "kem_vector": vector["kem_vector"],
        "kem_secret": given.kem_secret.hex(),
        "exporter": given.exporter.hex(),
        "qkd_keys": [key.hex() for key in given.qkd_keys],
        "chain_key": chain_key.hex(),
        "previous_transcript_hash": previous.hex(),
        **listed(outputs),
        "confirm": {**listed(confirm), "encoded": confirm.encode().hex()},
        "client_records": records_anew(
            aead, outputs.client_traffic_secret, vector["client_records"]
        ),
        "server_records": records_anew(
            aead, outputs.server_traffic_secret, vector["server_records"]
        ),
    }
    return anew, outputs


def sequence_anew(vector: Json) -> Json:
    chain_key = ind.first_chain_key(bytes.fromhex(vector["psk"]))
    anew = {
        "name": vector["name"],
        "psk": vector["psk"],
        "aead": vector["aead"],
        "chain_key_1": chain_key.hex(),
        "epochs": [],
    }
    previous = b""
    for number, stated in enumerate(vector["epochs"], start=1):
        assert stated["epoch"] == number
        epoch, outputs = epoch_anew(stated, vector["aead"], chain_key, previous)
        anew["epochs"].append(epoch)
        chain_key, previous = outputs.next_chain_key, outputs.transcript_hash
    return anew


def test_the_file_has_no_part_that_is_not_checked_here() -> None:
    assert set(VECTORS) == {"about", "sequences", "records", "frames"}
    assert len(SEQUENCES) >= 6
    assert len(EPOCHS) >= 9


@pytest.mark.parametrize("vector", SEQUENCES)
def test_a_sequence_of_epochs_comes_out_the_same(vector: Json) -> None:
    assert sequence_anew(vector) == vector


@pytest.mark.parametrize("epoch", EPOCHS)
def test_the_first_records_hold_what_the_document_lets_come_first(epoch: Json) -> None:
    server = ind.decode_frames(bytes.fromhex(epoch["server_records"]["first_content"]))
    if epoch["epoch"] == 1:
        assert server == [ind.Frame(ind.COMMITTED, 0, 1)]
    else:
        assert not {ind.SWITCH, ind.COMMITTED} & {frame.type for frame in server}


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda v: f"aead_{v['aead']}")
def test_records_come_out_the_same(vector: Json) -> None:
    protection = ind.Protection.of(vector["aead"], bytes.fromhex(vector["traffic_secret"]))
    anew = {
        "aead": vector["aead"],
        "traffic_secret": vector["traffic_secret"],
        "key": protection.key.hex(),
        "iv": protection.iv.hex(),
        "records": [
            {
                **{name: stated[name] for name in ("sequence", "content", "padding")},
                "record": protection.seal(
                    stated["sequence"], bytes.fromhex(stated["content"]), stated["padding"]
                ).hex(),
            }
            for stated in vector["records"]
        ],
    }
    assert anew == vector
    for stated in vector["records"]:
        opened = protection.open(stated["sequence"], bytes.fromhex(stated["record"]))
        assert opened.hex() == stated["content"]


FRAME_NAMES = [
    "DATA",
    "OPEN",
    "OPENED",
    "REFUSED",
    "STREAM_CREDIT",
    "SESSION_CREDIT",
    "HALF_CLOSE",
    "RESET",
    "PING",
    "PONG",
    "GO_AWAY",
    "END",
    "EPOCH",
    "SWITCH",
    "COMMITTED",
    "REQUEST",
    "ANNOUNCE",
    "REPORT",
    "TLS",
]


def test_there_is_a_vector_of_every_frame() -> None:
    assert [vector["frame"] for vector in VECTORS["frames"]] == FRAME_NAMES


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["frame"])
def test_frames_come_out_the_same(vector: Json) -> None:
    [frame] = ind.decode_frames(bytes.fromhex(vector["encoded"]))
    assert {
        "frame": FRAME_NAMES[frame.type - 1],
        "type": frame.type,
        "stream_id": frame.stream_id,
        "payload": frame.encode_payload().hex(),
        "encoded": frame.encode().hex(),
    } == vector


def test_frames_say_what_the_vectors_are_about() -> None:
    frames = {v["frame"]: ind.decode_frames(bytes.fromhex(v["encoded"])) for v in VECTORS["frames"]}
    addresses = ("192.0.2.7:50000", "127.0.0.1:8080")
    assert frames["OPEN"] == [ind.Frame(ind.OPEN, 3, ind.Open("web", *addresses))]
    assert frames["STREAM_CREDIT"] == [ind.Frame(ind.STREAM_CREDIT, 3, 2**20)]
    assert frames["EPOCH"] == [ind.Frame(ind.EPOCH, 0, ind.Abort(2, 1, 30))]
    assert frames["SWITCH"] == [ind.Frame(ind.SWITCH, 0, 2)]
    assert frames["REQUEST"] == [ind.Frame(ind.REQUEST, 0, 6)]
    announced = (ind.Key("etsi-qkd-014", 32, "key-1"), ind.Key("file", 64, "key-2"))
    assert frames["ANNOUNCE"] == [ind.Frame(ind.ANNOUNCE, 0, ind.Announce(announced))]
    [report], [tls] = frames["REPORT"], frames["TLS"]
    assert isinstance(report.payload, ind.Report)
    assert report.payload.results == (("key-1", 0), ("key-2", 33))
    assert isinstance(tls.payload, ind.Tls)
    assert tls.payload.tls == b"TLS bytes"


# --- One bit of an input --------------------------------------------------------------------


def changed_outputs(before: ind.EpochOutputs, after: ind.EpochOutputs) -> set[str]:
    return {
        f.name
        for f in dataclasses.fields(ind.EpochOutputs)
        if getattr(before, f.name) != getattr(after, f.name)
    }


@pytest.mark.parametrize(("epoch", "name"), SECRETS)
def test_a_bit_of_a_secret_changes_all_that_is_derived(epoch: Json, name: str) -> None:
    given = inputs_of(epoch)
    before = ind.derive(given)
    secret = getattr(given, name)
    expected = DERIVED | {"epoch_secret"} | ({"ikm"} if name != "chain_key" else set())
    for bit in range(8 * len(secret)):
        after = ind.derive(but(given, name, flip(secret, bit)))
        assert changed_outputs(before, after) == expected


@pytest.mark.parametrize("epoch", HYBRID_EPOCHS)
def test_a_bit_of_a_qkd_key_changes_all_that_is_derived(epoch: Json) -> None:
    given = inputs_of(epoch)
    before = ind.derive(given)
    for place, key in enumerate(given.qkd_keys):
        for bit in range(8 * len(key)):
            keys = list(given.qkd_keys)
            keys[place] = flip(key, bit)
            after = ind.derive(dataclasses.replace(given, qkd_keys=tuple(keys)))
            assert changed_outputs(before, after) == DERIVED | SECRET


@pytest.mark.parametrize("epoch", LATER_EPOCHS)
def test_a_bit_of_the_previous_transcript_changes_all_but_the_epoch_secret(epoch: Json) -> None:
    given = inputs_of(epoch)
    before = ind.derive(given)
    for bit in range(8 * len(given.previous_transcript_hash)):
        previous = flip(given.previous_transcript_hash, bit)
        after = ind.derive(dataclasses.replace(given, previous_transcript_hash=previous))
        assert changed_outputs(before, after) == DERIVED | PUBLIC


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("name", ["offer", "accept_without_mac"])
def test_a_bit_of_any_byte_of_a_message_changes_all_but_the_epoch_secret(
    epoch: Json, name: str
) -> None:
    given = inputs_of(epoch)
    before = ind.derive(given)
    message = getattr(given, name)
    seen = {before.transcript_hash}
    for at in range(len(message)):
        changed = but(given, name, flip(message, 8 * at + at % 8))
        seen.add(
            ind.transcript_hash(
                changed.previous_transcript_hash, changed.offer, changed.accept_without_mac
            )
        )
        if at % 101 == 0:
            assert changed_outputs(before, ind.derive(changed)) == DERIVED | PUBLIC
    assert len(seen) == 1 + len(message)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_mode_and_number_are_in_all_outputs_by_themselves(epoch: Json) -> None:
    given = inputs_of(epoch)
    before = ind.derive(given)
    other_mode = ind.derive(dataclasses.replace(given, mode=3 - given.mode))
    assert changed_outputs(before, other_mode) == DERIVED | {"context"}
    for bit in range(32):
        other_number = ind.derive(dataclasses.replace(given, epoch=given.epoch ^ (1 << bit)))
        assert changed_outputs(before, other_number) == DERIVED | {"context"}


def test_a_bit_of_the_pre_shared_key_changes_the_first_chain_key() -> None:
    psk = next(s["psk"] for s in VECTORS["sequences"] if s["psk"])
    keys = {ind.first_chain_key(flip(bytes.fromhex(psk), bit)) for bit in range(256)}
    assert len(keys | {ind.first_chain_key(bytes.fromhex(psk)), ind.first_chain_key(b"")}) == 258
    assert ind.first_chain_key(bytes(32)) == ind.first_chain_key(b"")


@pytest.mark.parametrize("name", ["kem_secret", "exporter", "qkd_keys"])
def test_a_bit_of_a_first_secret_is_felt_in_every_later_epoch(name: str) -> None:
    [sequence] = [s for s in VECTORS["sequences"] if len(s["epochs"]) == 3]
    given = [inputs_of(epoch) for epoch in sequence["epochs"]]
    secret = getattr(given[0], name)
    changed = (flip(secret[0], 0),) if name == "qkd_keys" else flip(secret, 0)
    outputs = ind.derive(but(given[0], name, changed))
    for later in given[1:]:
        outputs_after = ind.derive(dataclasses.replace(later, chain_key=outputs.next_chain_key))
        # The transcripts are the same: it is the chain that carries the difference.
        assert changed_outputs(ind.derive(later), outputs_after) == DERIVED | {"epoch_secret"}
        outputs = outputs_after


def test_no_input_can_stand_for_another() -> None:
    [epoch] = [e for s in VECTORS["sequences"] for e in s["epochs"] if len(e["qkd_keys"]) == 3]
    given = inputs_of(epoch)
    first, second, third = given.qkd_keys
    moved = [
        (given.kem_secret, given.exporter, given.qkd_keys),
        (given.kem_secret, given.exporter, (second, first, third)),
        (given.kem_secret, given.exporter, (first + second, third)),
        (given.kem_secret, given.exporter, (first[:-1], first[-1:] + second, third)),
        (given.kem_secret, given.exporter, (first, second, third, b"")),
        (given.kem_secret, first, (second, third)),
        (given.kem_secret + first, given.exporter, (second, third)),
        (given.exporter, given.kem_secret, given.qkd_keys),
    ]
    secrets = [
        ind.derive(
            dataclasses.replace(given, kem_secret=kem_secret, exporter=exporter, qkd_keys=keys)
        ).epoch_secret
        for kem_secret, exporter, keys in moved
    ]
    assert len(set(secrets)) == len(moved)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_no_two_outputs_of_an_epoch_are_alike(epoch: Json) -> None:
    outputs = ind.derive(inputs_of(epoch))
    values = [getattr(outputs, name) for name in DERIVED]
    assert len({value[:16] for value in values}) == len(DERIVED)


def test_a_bit_of_a_failed_attempt_changes_the_history() -> None:
    [epoch] = [e for s in VECTORS["sequences"] for e in s["epochs"] if e["failed_attempts"]]
    for failed in epoch["failed_attempts"]:
        parts = [
            bytes.fromhex(failed["offer"]["history"]),
            bytes.fromhex(failed["offer"]["encoded"]),
            bytes.fromhex(failed["outcome"]["encoded"]),
        ]
        seen = {ind.history_hash(*parts)}
        flips = 0
        for place, part in enumerate(parts):
            for bit in range(8 * len(part)):
                changed = [*parts[:place], flip(part, bit), *parts[place + 1 :]]
                seen.add(ind.history_hash(*changed))
                flips += 1
        assert len(seen) == 1 + flips


# --- Bytes that are no record ---------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda v: f"aead_{v['aead']}")
def test_a_bit_of_a_record_or_its_secret_is_refused(vector: Json) -> None:
    secret = bytes.fromhex(vector["traffic_secret"])
    protection = ind.Protection.of(vector["aead"], secret)
    for bit in range(8 * len(secret)):
        other = ind.Protection.of(vector["aead"], flip(secret, bit))
        assert other.key != protection.key
        assert other.iv != protection.iv
    for stated in vector["records"]:
        sequence, record = stated["sequence"], bytes.fromhex(stated["record"])
        for bit in range(8 * len(record)):
            with pytest.raises(ind.RefusedError) as refused:
                protection.open(sequence, flip(record, bit))
            assert bit < 40 or refused.value.reason == "bad_record_mac"
        others = [
            (sequence ^ 1, protection),
            (sequence, dataclasses.replace(protection, key=flip(protection.key, 0))),
            (sequence, dataclasses.replace(protection, iv=flip(protection.iv, 0))),
            (sequence, dataclasses.replace(protection, aead=3 - protection.aead)),
        ]
        for number, opener in others:
            with pytest.raises(ind.RefusedError, match="bad_record_mac"):
                opener.open(number, record)


@pytest.mark.parametrize("aead", [1, 2])
def test_the_limits_of_a_record(aead: int) -> None:
    protection = ind.Protection.of(aead, bytes(48))
    whole = bytes(16_383) + b"\x01"
    assert protection.open(0, protection.seal(0, whole)) == whole
    zeros = bytes(20)
    assert protection.open(0, protection.seal(0, zeros, 7)) == zeros
    last = ind.MAX_RECORDS_PER_KEY - 1
    assert protection.open(last, protection.seal(last, b"x")) == b"x"
    with pytest.raises(ind.RefusedError, match="sequence_limit"):
        protection.seal(last + 1, b"x")
    for content, padding in [(b"", 0), (b"", 9), (whole + b"\x01", 0), (b"x", 16_640)]:
        with pytest.raises(ind.RefusedError):
            protection.open(0, protection.seal(0, content, padding))
    header = b"\x17\x03\x03" + ind.u16(2 + 16)
    cipher = ind.CIPHERS[aead](protection.key)
    for inner in [b"x\x16", b"x\x15", b"\x00\x00"]:
        with pytest.raises(ind.RefusedError, match="inner type"):
            protection.open(0, header + cipher.encrypt(protection.iv, inner, header))


# --- Bytes that are no message --------------------------------------------------------------


def all_messages() -> Iterator[bytes]:
    for sequence in VECTORS["sequences"]:
        for epoch in sequence["epochs"]:
            for failed in epoch["failed_attempts"]:
                yield bytes.fromhex(failed["offer"]["encoded"])
                yield bytes.fromhex(failed["outcome"]["encoded"])
            for name in ("offer", "accept", "confirm"):
                yield bytes.fromhex(epoch[name]["encoded"])


@pytest.mark.parametrize("message", list(all_messages()), ids=lambda m: f"type_{m[0]}")
def test_a_message_is_taken_whole_or_refused(message: bytes) -> None:
    assert ind.decode_message(message).encode() == message
    for end in range(len(message)):
        with pytest.raises(ind.RefusedError):
            ind.decode_message(message[:end])
    with pytest.raises(ind.RefusedError):
        ind.decode_message(message + b"\x00")
    for at in range(len(message)):
        # A changed bit may make another message, but never the same bytes from two.
        changed = flip(message, 8 * at + at % 8)
        try:
            decoded = ind.decode_message(changed)
        except ind.RefusedError:
            continue
        assert decoded.encode() == changed


def three_key_offer() -> ind.Offer:
    [offer] = [
        offer_of(epoch["offer"])
        for sequence in VECTORS["sequences"]
        for epoch in sequence["epochs"]
        if len(epoch["offer"]["keys"]) == 3
    ]
    return offer


KEY = ind.Key("etsi-qkd-014", 32, "id")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "unsupported_version"),
        ({"aead": 0}, "malformed_message"),
        ({"aead": 3}, "malformed_message"),
        ({"kem": 0}, "malformed_message"),
        ({"kem": 1}, "malformed_message"),
        ({"kem": 3}, "malformed_message"),
        ({"epoch": 0}, "malformed_message"),
        ({"attempt": 0}, "malformed_message"),
        ({"mode": 0}, "malformed_message"),
        ({"mode": 1}, "malformed_message"),
        ({"mode": 3}, "malformed_message"),
        ({"reason": 0}, "malformed_message"),
        ({"reason": 70}, "malformed_message"),
        ({"policy": 3}, "malformed_message"),
        ({"history": bytes(47)}, "malformed_message"),
        ({"client_name": ""}, "malformed_message"),
        ({"server_name": ""}, "malformed_message"),
        ({"client_name": "gw\n"}, "malformed_message"),
        ({"client_sae_id": "a\u00a0b"}, "malformed_message"),
        ({"server_sae_id": "\ue000"}, "malformed_message"),
        ({"server_sae_id": "\u200b"}, "malformed_message"),
        ({"encapsulation_key": bytes(1567)}, "malformed_message"),
        ({"keys": ()}, "malformed_message"),
        ({"keys": (KEY, KEY)}, "malformed_message"),
        ({"keys": (KEY, dataclasses.replace(KEY, size_bytes=33))}, "malformed_message"),
        ({"keys": (dataclasses.replace(KEY, size_bytes=31),)}, "malformed_message"),
        ({"keys": (dataclasses.replace(KEY, size_bytes=1025),)}, "malformed_message"),
        ({"keys": (dataclasses.replace(KEY, source="x" * 33),)}, "malformed_message"),
        ({"keys": (dataclasses.replace(KEY, source=""),)}, "malformed_message"),
        ({"keys": (dataclasses.replace(KEY, key_id="x" * 129),)}, "malformed_message"),
        ({"keys": (dataclasses.replace(KEY, key_id=""),)}, "malformed_message"),
        (
            {"keys": tuple(dataclasses.replace(KEY, key_id=str(n)) for n in range(9))},
            "malformed_message",
        ),
    ],
    ids=str,
)
def test_an_offer_outside_the_tables_is_refused(changes: Json, reason: str) -> None:
    offer = three_key_offer()
    assert ind.decode_message(offer.encode()) == offer
    with pytest.raises(ind.RefusedError) as refused:
        ind.decode_message(dataclasses.replace(offer, **changes).encode())
    assert refused.value.reason == reason


def test_the_longest_offer_has_the_stated_size() -> None:
    keys = tuple(ind.Key("s" * 32, 1024, "k" * 127 + str(n)) for n in range(8))
    names: Json = dict.fromkeys(TEXTS, "n" * 255)
    longest = dataclasses.replace(three_key_offer(), history=bytes(48), keys=keys, **names)
    assert len(longest.encode()) == 4133
    assert ind.decode_message(longest.encode()) == longest


def test_an_unknown_or_overlong_message_is_refused() -> None:
    for data in [b"", b"\x00", b"\x06" + bytes(7), b"\x05" + bytes(8192)]:
        with pytest.raises(ind.RefusedError, match="malformed_message"):
            ind.decode_message(data)
    not_utf8 = three_key_offer().encode().replace(b"\x04gw-a", b"\x04gw\xc0\x80")
    with pytest.raises(ind.RefusedError, match="UTF-8"):
        ind.decode_message(not_utf8)


# --- Bytes that are no frame ----------------------------------------------------------------


def test_a_frame_is_taken_whole_or_refused() -> None:
    for vector in VECTORS["frames"]:
        encoded = bytes.fromhex(vector["encoded"])
        for end in range(len(encoded)):
            with pytest.raises(ind.RefusedError):
                ind.decode_frames(encoded[:end])
        reasons = {"REFUSED", "RESET", "GO_AWAY", "END", "REQUEST"}
        for bit in range(8 * len(encoded)):
            changed = flip(encoded, bit)
            try:
                frames = ind.decode_frames(changed)
            except ind.RefusedError:
                continue
            unknown_reason = vector["frame"] in reasons and frames[0].payload == ind.CLOSED
            if isinstance(frames[0].payload, ind.Report):
                unknown_reason = any(r == ind.KEY_NOT_FOUND for _, r in frames[0].payload.results)
            assert unknown_reason or b"".join(f.encode() for f in frames) == changed


def test_frames_share_a_record_unless_they_must_be_alone() -> None:
    frames = [
        frame for v in VECTORS["frames"] for frame in ind.decode_frames(bytes.fromhex(v["encoded"]))
    ]
    sociable = [frame for frame in frames if frame.type not in ind.ALONE]
    assert ind.decode_frames(b"".join(frame.encode() for frame in sociable)) == sociable
    for frame in frames:
        if frame.type in ind.ALONE:
            for pair in [(frame, sociable[0]), (sociable[0], frame), (frame, frame)]:
                with pytest.raises(ind.RefusedError, match="alone"):
                    ind.decode_frames(b"".join(f.encode() for f in pair))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("", "malformed_message"),
        ("00000000000000", "malformed_message"),
        ("14000000000000", "malformed_message"),
        ("10000000000000", "malformed_message"),
        ("11000000000003000101", "malformed_message"),
        ("1100000000000100", "malformed_message"),
        ("12000000000009000000000000000000", "malformed_message"),
        ("13000000000011" + "00" * 16 + "16", "malformed_message"),
        ("13000000000010" + "01" * 16, "malformed_message"),
        ("01000000010000", "malformed_message"),
        ("0100000000000161", "unexpected_message"),
        ("0900000001000800000000000000aa", "malformed_message"),
        ("090000000000070000000000000a", "malformed_message"),
        ("0300000003000100", "malformed_message"),
        ("02000000030003000000", "malformed_message"),
        ("050000000300084000000000000001", "malformed_message"),
        ("0f00000000000400000002", "malformed_message"),
        ("0d000000000000", "malformed_message"),
    ],
)
def test_frames_outside_the_table_are_refused(encoded: str, reason: str) -> None:
    with pytest.raises(ind.RefusedError) as refused:
        ind.decode_frames(bytes.fromhex(encoded))
    assert refused.value.reason == reason


@pytest.mark.parametrize("kind", [ind.REFUSED, ind.RESET, ind.GO_AWAY, ind.END, ind.REQUEST])
@pytest.mark.parametrize("code", [0, 70, 255])
def test_an_unknown_reason_in_a_frame_reads_as_closed(kind: int, code: int) -> None:
    stream_id = 1 if kind in ind.OF_A_STREAM else 0
    encoded = ind.u8(kind) + ind.u32(stream_id) + ind.vec16(ind.u8(code))
    assert ind.decode_frames(encoded) == [ind.Frame(kind, stream_id, ind.CLOSED)]


def test_the_longest_payload() -> None:
    longest = ind.Frame(ind.DATA, 1, bytes(16_377))
    assert ind.decode_frames(longest.encode()) == [longest]
    with pytest.raises(ind.RefusedError, match="too long"):
        ind.decode_frames(ind.Frame(ind.DATA, 1, bytes(16_378)).encode())
