"""The published vectors: what the implementation makes, and what docs/protocol.md says it makes.

The second half shares no code with qproxy: the formulas and byte tables of the document, written
down again on nothing but HMAC, SHA-384 and the two AEADs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from qproxy.tunnel.messages import Accept, decode_epoch_message
from tests.vectors.make_key_schedule import OUTPUT, make_vectors, render

VECTORS: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8"))
EPOCHS = [
    pytest.param(sequence, epoch, id=f"{sequence['name']}-{epoch['epoch']}".replace(" ", "_"))
    for sequence in VECTORS["sequences"]
    for epoch in sequence["epochs"]
]
AEADS = {1: AESGCM, 2: ChaCha20Poly1305}
KEM_FILES = {1: "ml-kem-768-kat.json", 2: "ml-kem-1024-kat.json"}
raw = bytes.fromhex


def test_the_file_is_what_the_implementation_makes():
    assert OUTPUT.read_text(encoding="utf-8") == render(make_vectors())


def encoded_messages() -> list[str]:
    messages = []
    for sequence in VECTORS["sequences"]:
        for epoch in sequence["epochs"]:
            messages += [epoch[name]["encoded"] for name in ("offer", "accept", "confirm")]
            for failed in epoch["failed_attempts"]:
                messages += [failed["offer"]["encoded"], failed["outcome"]["encoded"]]
    return messages


@pytest.mark.parametrize("encoded", encoded_messages())
def test_messages_survive_decoding_and_encoding(encoded):
    assert decode_epoch_message(raw(encoded)).encode() == raw(encoded)


def test_an_accept_without_its_mac_is_the_front_of_it():
    accept = VECTORS["sequences"][0]["epochs"][0]["accept"]
    message = decode_epoch_message(raw(accept["encoded"]))
    assert isinstance(message, Accept)
    assert message.encode_without_mac() + message.mac == raw(accept["encoded"])


# --- docs/protocol.md once more ---------------------------------------------------------------


def lp(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def sha384(*parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(parts)).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha384).digest()


def hkdf_expand(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 §2.3."""
    block, output, counter = b"", b"", 1
    while len(output) < length:
        block = mac(secret, block + info + bytes([counter]))
        output += block
        counter += 1
    return output[:length]


def expand(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    info = struct.pack(">H", length) + lp(b"qproxy1 " + label.encode()) + lp(context)
    return hkdf_expand(secret, info, length)


def text(value: str) -> bytes:
    encoded = value.encode()
    return bytes([len(encoded)]) + encoded


def vec16(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def encode_offer(o: dict[str, Any]) -> bytes:
    message = bytes([1, o["version"], o["aead"], o["kem"]])
    message += struct.pack(">IH", o["epoch"], o["attempt"])
    message += bytes([o["mode"], o["reason"], o["policy"]])
    message += struct.pack(">I", o["max_without_qkd_s"])
    message += raw(o["connection_id"]) + raw(o["nonce"])
    message += bytes([len(raw(o["history"]))]) + raw(o["history"]) + raw(o["reauth_id"])
    message += raw(o["client_certificate_hash"]) + raw(o["server_certificate_hash"])
    message += text(o["client_name"]) + text(o["server_name"])
    message += text(o["client_sae_id"]) + text(o["server_sae_id"])
    message += vec16(raw(o["encapsulation_key"])) + bytes([len(o["keys"])])
    for key in o["keys"]:
        message += text(key["source"]) + struct.pack(">H", key["size_bytes"]) + text(key["key_id"])
    return message


def encode_accept_without_mac(a: dict[str, Any]) -> bytes:
    return (
        struct.pack(">BIHBB", 2, a["epoch"], a["attempt"], a["mode"], a["policy"])
        + struct.pack(">I", a["max_without_qkd_s"])
        + raw(a["nonce"])
        + raw(a["reauth_id"])
        + vec16(raw(a["ciphertext"]))
    )


def encode_outcome(o: dict[str, Any]) -> bytes:
    if o["message"] == "ABORT":
        return struct.pack(">BIHB", 5, o["epoch"], o["attempt"], o["reason"])
    place = struct.pack(">BIHBB", 3, o["epoch"], o["attempt"], o["reason"], o["policy"])
    return place + struct.pack(">I", o["max_without_qkd_s"])


def open_record(aead: int, key: bytes, iv: bytes, sequence: int, record: bytes) -> bytes:
    nonce = (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")
    return AEADS[aead](key).decrypt(nonce, record[5:], record[:5])


@pytest.mark.parametrize(("sequence", "epoch"), EPOCHS)
def test_messages_are_the_document_s_byte_tables(sequence, epoch):
    assert encode_offer(epoch["offer"]) == raw(epoch["offer"]["encoded"])
    accept = epoch["accept"]
    assert encode_accept_without_mac(accept) == raw(accept["encoded_without_mac"])
    assert raw(accept["encoded"]) == raw(accept["encoded_without_mac"]) + raw(accept["mac"])
    confirm = epoch["confirm"]
    place = struct.pack(">BIH", 4, confirm["epoch"], confirm["attempt"])
    assert raw(confirm["encoded"]) == place + raw(confirm["mac"])


@pytest.mark.parametrize(("sequence", "epoch"), EPOCHS)
def test_the_history_is_the_document_s_formula(sequence, epoch):
    history = b""
    for failed in epoch["failed_attempts"]:
        assert raw(failed["offer"]["history"]) == history
        offer, outcome = encode_offer(failed["offer"]), encode_outcome(failed["outcome"])
        assert outcome == raw(failed["outcome"]["encoded"])
        history = sha384(lp(b"qproxy1 history"), lp(history), lp(offer), lp(outcome))
        assert history == raw(failed["history_after"])
    assert raw(epoch["offer"]["history"]) == history


@pytest.mark.parametrize(("sequence", "epoch"), EPOCHS)
def test_the_key_schedule_is_the_document_s_formulas(sequence, epoch):
    before = b""
    chain_key = mac(b"qproxy1 init", raw(sequence["psk"]) or bytes(32))
    assert chain_key == raw(sequence["chain_key_1"])
    if epoch["epoch"] > 1:
        previous = sequence["epochs"][epoch["epoch"] - 2]
        before, chain_key = raw(previous["transcript_hash"]), raw(previous["next_chain_key"])
    offer = raw(epoch["offer"]["encoded"])
    accept = raw(epoch["accept"]["encoded_without_mac"])
    transcript = sha384(lp(b"qproxy1 transcript"), lp(before), lp(offer), lp(accept))
    qkd_key = b"".join(lp(raw(key)) for key in epoch["qkd_keys"])
    ikm = lp(raw(epoch["kem_secret"])) + lp(raw(epoch["exporter"])) + lp(qkd_key)
    secret = mac(chain_key, ikm)
    context = struct.pack(">BI", epoch["offer"]["mode"], epoch["epoch"]) + transcript
    outputs = {
        "next_chain_key": "chain",
        "client_traffic_secret": "client traffic",
        "server_traffic_secret": "server traffic",
        "client_confirm_key": "client confirm",
        "server_confirm_key": "server confirm",
    }
    assert raw(epoch["transcript_hash"]) == transcript
    assert raw(epoch["epoch_secret"]) == secret
    for name, label in outputs.items():
        assert raw(epoch[name]) == expand(secret, label, context, 48), name
    assert raw(epoch["epoch_id"]) == expand(secret, "epoch id", context, 16)
    assert raw(epoch["accept"]["mac"]) == mac(raw(epoch["server_confirm_key"]), transcript)
    assert raw(epoch["confirm"]["mac"]) == mac(raw(epoch["client_confirm_key"]), transcript)


@pytest.mark.parametrize(("sequence", "epoch"), EPOCHS)
def test_the_ml_kem_triple_is_a_known_answer(sequence, epoch):
    path = OUTPUT.parent / KEM_FILES[epoch["offer"]["kem"]]
    known = json.loads(path.read_text())["tests"][epoch["kem_vector"]]
    assert epoch["offer"]["encapsulation_key"] == known["encapsulation_key"]
    assert epoch["accept"]["ciphertext"] == known["ciphertext"]
    assert epoch["kem_secret"] == known["shared_secret"]


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(("sequence", "epoch"), EPOCHS)
def test_the_first_records_open_with_the_document_s_keys(sequence, epoch, side):
    secret, records = raw(epoch[f"{side}_traffic_secret"]), epoch[f"{side}_records"]
    key, iv = expand(secret, "key", b"", 32), expand(secret, "iv", b"", 12)
    assert (raw(records["key"]), raw(records["iv"])) == (key, iv)
    inner = open_record(sequence["aead"], key, iv, 0, raw(records["first_record"]))
    assert inner == raw(records["first_content"]) + b"\x17"


@pytest.mark.parametrize("series", VECTORS["records"], ids=["aes-256-gcm", "chacha20-poly1305"])
def test_records_are_the_document_s_format(series):
    secret = raw(series["traffic_secret"])
    key, iv = expand(secret, "key", b"", 32), expand(secret, "iv", b"", 12)
    for given in series["records"]:
        record = raw(given["record"])
        content = raw(given["content"])
        inner_bytes = len(content) + 1 + given["padding"]
        assert record[:5] == b"\x17\x03\x03" + struct.pack(">H", inner_bytes + 16)
        inner = open_record(series["aead"], key, iv, given["sequence"], record)
        assert inner == content + b"\x17" + bytes(given["padding"])


@pytest.mark.parametrize("given", VECTORS["frames"], ids=lambda given: given["frame"])
def test_frames_are_the_document_s_byte_tables(given):
    payload = raw(given["payload"])
    header = struct.pack(">BIH", given["type"], given["stream_id"], len(payload))
    assert raw(given["encoded"]) == header + payload
