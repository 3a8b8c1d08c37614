import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from bench.pairs.base import hybrid_groups
from bench.pairs.tap import Tap, server_hello
from qproxy.pki import init_pki


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    init_pki(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "gw-b.pem", tmp_path / "gw-b.key")
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(tmp_path / "ca.pem")
    return server, client


def server_says(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None]:
    """Everything a server says in a handshake over memory, and a session to take up again."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts[0].wrap_bio(to_server, to_client, server_side=True)
    client = contexts[1].wrap_bio(
        to_client_copy := ssl.MemoryBIO(), to_server, server_hostname="gw-b", session=session
    )
    said = b""
    done = [False, False]
    for _ in range(6):
        for index, end in ((1, client), (0, server)):
            if not done[index]:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    done[index] = True
            data = to_client.read()
            said += data
            to_client_copy.write(data)
    server.write(b"!")
    to_client_copy.write(to_client.read())
    assert client.read(1) == b"!"
    return said, client.session


def test_version_cipher_suite_and_group_are_read_off_the_wire(contexts) -> None:
    contexts[1].set_ecdh_curve("prime256v1")
    said, _ = server_says(contexts)
    hello = server_hello(said)
    assert hello is not None
    assert hello.facts() == {
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "group": "secp256r1",
    }
    assert not hello.resumed


def test_a_session_that_is_taken_up_again_is_seen(contexts) -> None:
    _, session = server_says(contexts)
    said, _ = server_says(contexts, session)
    hello = server_hello(said)
    assert hello is not None
    assert hello.resumed


def test_the_hello_after_a_retry_counts(contexts) -> None:
    contexts[0].set_ecdh_curve("secp384r1")
    said, _ = server_says(contexts)
    hello = server_hello(said)
    assert hello is not None
    assert hello.group == "secp384r1"


def test_half_a_hello_is_none(contexts) -> None:
    said, _ = server_says(contexts)
    size = 5 + int.from_bytes(said[3:5], "big")
    assert server_hello(said[: size - 1]) is None
    assert server_hello(b"") is None
    assert server_hello(b"HTTP/1.1 400 Bad Request\r\n") is None


def test_a_tap_passes_everything_on_and_keeps_what_the_server_says() -> None:
    def answer(listening: socket.socket) -> None:
        sock, _ = listening.accept()
        with sock:
            sock.sendall(sock.recv(10)[::-1])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        with contextlib.closing(Tap(("127.0.0.1", listening.getsockname()[1]))) as tap:
            with socket.create_connection(("127.0.0.1", tap.port), 10) as sock:
                sock.sendall(b"abc")
                assert sock.recv(10) == b"cba"
            assert [bytes(kept) for kept in tap.answers] == [b"cba"]
            assert not tap.has(1)
        thread.join()


@pytest.mark.parametrize(
    ("version", "groups"),
    [
        ("stunnel 5.68, OpenSSL 3.0.22", None),
        ("stunnel 5.75, OpenSSL 3.5.1", "X25519MLKEM768:X25519"),
        ("HAProxy 3.2, OpenSSL 4.0.0", "X25519MLKEM768:X25519"),
        ("HAProxy 3.2, unknown TLS library", None),
    ],
)
def test_the_hybrid_group_is_asked_for_where_openssl_has_it(version, groups) -> None:
    assert hybrid_groups(version) == groups
