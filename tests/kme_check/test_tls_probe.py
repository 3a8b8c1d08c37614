"""The offer of TLS 1.1: well formed enough that a server that has it takes it."""

import ssl
import warnings

import pytest

from qproxy.kme_check.evidence import Refusal
from qproxy.kme_check.tls_probe import encode_old_client_hello, judge_old_tls
from tests import pki

HELLO = encode_old_client_hello(bytes(range(32)), "kme.example")


def answer_of_a_server(tmp_path, hello, oldest):
    """What Python's own TLS says to a ClientHello."""
    ca = pki.authority()
    files = pki.write_identity(tmp_path, "kme", pki.identity(ca, "kme.example"), ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = oldest
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(files.certificate, files.private_key)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(hello)
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name", ["kme.example", None, "kmé.example"])
def test_a_server_with_tls_1_1_takes_it(tmp_path, name):
    hello = encode_old_client_hello(bytes(32), name)
    answer = answer_of_a_server(tmp_path, hello, ssl.TLSVersion.TLSv1)
    assert judge_old_tls(answer) is Refusal.ACCEPTED
    assert answer[9:11] == b"\x03\x02"


def test_a_server_without_it_refuses(tmp_path):
    answer = answer_of_a_server(tmp_path, HELLO, ssl.TLSVersion.TLSv1_2)
    assert judge_old_tls(answer) is Refusal.REFUSED
    assert answer[-1] == 70  # protocol_version


@pytest.mark.parametrize(
    ("received", "verdict"),
    [
        (b"", Refusal.REFUSED),
        (b"\x15\x03\x01\x00\x02\x02\x46", Refusal.REFUSED),
        (b"\x16\x03\x02\x00\x40\x02\x00\x00\x3c\x03\x02", Refusal.ACCEPTED),
        (b"\x16\x03\x02", Refusal.UNCLEAR),
        (b"HTTP/1.1 400", Refusal.UNCLEAR),
    ],
)
def test_what_an_answer_says(received, verdict):
    assert judge_old_tls(received) is verdict
