"""What somebody on the path between the gateways sees, and what whoever reads the logs sees."""

from __future__ import annotations

import base64
import secrets
import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.pair import GatewayPair
from tests.e2e.sockets import Backend, proxied, receive_all, round_trip
from tests.e2e.wire import split_records

MARKER = b"-- what only the application may see --"
SERVICE = "service-of-nobodys-business"
REKEYS = 5


def encodings(secret: bytes) -> dict[str, bytes]:
    """The forms in which bytes get into logs, JSON, URLs and memory."""
    url_safe = base64.urlsafe_b64encode(secret).rstrip(b"=")
    forms = {
        "raw": secret,
        "hex": secret.hex().encode(),
        "base64": base64.b64encode(secret).rstrip(b"="),
        "url-safe base64": url_safe,
        "repr": repr(secret)[2:-1].encode(),
        "list": ", ".join(str(byte) for byte in secret).encode(),
    }
    if len(secret) == 16:
        forms["uuid"] = str(uuid.UUID(bytes=secret)).encode()
        forms["uuid version 4"] = str(uuid.UUID(bytes=secret, version=4)).encode()
    return forms


def find_secrets(haystack: bytes, needles: Iterable[bytes]) -> list[str]:
    """Which secrets stand in the haystack, in whatever form; without quoting them."""
    lowered = haystack.lower()
    return [
        f"secret {number} as {form}"
        for number, secret in enumerate(needles)
        for form, text in encodings(secret).items()
        if text in haystack or (form in {"hex", "uuid", "uuid version 4"} and text in lowered)
    ]


def use(pair: GatewayPair, backend: Backend) -> None:
    """Data both ways over some rekeys, then everything ends in order."""
    with proxied(pair.address(SERVICE), backend) as (near, far):
        for _ in range(REKEYS):
            round_trip(near, far, MARKER * 1000)
            mark = pair.a.mark()
            pair.a.wait_for_event("epoch_committed", after=mark, mode="hybrid")
        near.sendall(MARKER)
        near.shutdown(socket.SHUT_WR)
        assert receive_all(far) == MARKER
        far.sendall(MARKER)
        far.shutdown(socket.SHUT_WR)
        assert receive_all(near) == MARKER
    for gateway in (pair.a, pair.b):
        gateway.close()


@dataclass
class Used:
    """A pair that has carried data and ended, and all that was secret in it.

    Attributes:
        keys: the pre-shared key and every key the KMEs made.
        key_ids: 16 bytes each.
    """

    pair: GatewayPair
    keys: list[bytes]
    key_ids: list[bytes]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    directory: Path = tmp_path_factory.mktemp("wire")
    recording = directory / "recording"
    psk = secrets.token_bytes(32)
    (directory / "psk").write_text(psk.hex() + "\n")
    (directory / "psk").chmod(0o600)
    with (
        Backend() as backend,
        GatewayPair(
            directory,
            listeners={SERVICE: {}},
            services={SERVICE: backend.address},
            record_keys=recording,
            relay=True,
            level="debug",
            peer={"rekey": {"interval_s": 0.2}, "psk_file": "psk"},
        ) as pair,
    ):
        use(pair, backend)
        made = [bytes.fromhex(line) for line in recording.read_text().split()]
        keys = [item for item in made if len(item) == 32]
        key_ids = [item for item in made if len(item) == 16]
        # More than one for each epoch, or the recording missed some.
        assert min(len(keys), len(key_ids)) >= pair.a.find("peer_totals")[0]["keys"] > REKEYS
        yield Used(pair, [psk, *keys], key_ids)


def test_between_the_gateways_there_are_tls_records_and_nothing_else(used: Used) -> None:
    assert used.pair.relay is not None
    (recording,) = used.pair.relay.recordings
    for direction in (recording.to_server, recording.to_client):
        kinds = [kind for kind, _ in split_records(direction)]
        # One plaintext flight, at most one relic of TLS 1.2, and from there on ciphertext.
        assert kinds[0] == "handshake"
        first_ciphertext = kinds.index("application_data")
        assert set(kinds[:first_ciphertext]) <= {"handshake", "change_cipher_spec"}
        assert set(kinds[first_ciphertext:]) == {"application_data"}


def test_no_application_byte_key_or_name_shows_between_the_gateways(used: Used) -> None:
    assert used.pair.relay is not None
    (recording,) = used.pair.relay.recordings
    for direction in (recording.to_server, recording.to_client):
        assert len(direction) > REKEYS * 1000 * len(MARKER)
        assert find_secrets(bytes(direction), [*used.keys, *used.key_ids]) == []
        for public in (MARKER[:16], SERVICE.encode(), b"gw-a", b"gw-b", b"kme-a"):
            assert public not in direction


def test_no_log_holds_a_secret_even_at_level_debug(used: Used) -> None:
    assert used.pair.kme is not None
    for program in (used.pair.a, used.pair.b, used.pair.kme.program):
        log = program.log.encode()
        assert len(program.events) > REKEYS
        assert find_secrets(log, used.keys) == []
        assert MARKER[:16] not in log
    for path in (used.pair.directory / "pki").glob("*.key"):
        for line in path.read_text().splitlines()[1:-1]:
            for program in (used.pair.a, used.pair.b, used.pair.kme.program):
                assert line not in program.log


def test_the_search_for_secrets_finds_them() -> None:
    other, secret = bytes(range(100, 132)), bytes(range(200, 232))
    for form, text in encodings(secret).items():
        assert f"secret 1 as {form}" in find_secrets(b"> " + text + b" <", [other, secret])
    assert find_secrets(secret.hex().upper().encode(), [secret]) == ["secret 0 as hex"]
