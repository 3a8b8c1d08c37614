"""What a handshake may and may not do, over memory BIOs."""

from __future__ import annotations

import contextlib

import pytest
from OpenSSL import SSL

from qproxy.errors import ConfigError, Reason, RemoteProtocolError
from qproxy.modes import ClientAuth
from qproxy.tls.context import (
    client_context,
    expect_server_name,
    server_context,
    verify_failure,
    verify_failure_detail,
)
from qproxy.tls.identity import TlsIdentity, TrustStore
from tests import pki

CA = pki.authority()


def server_identity(algorithm=pki.P256):
    return pki.identity(CA, "server.test", algorithm=algorithm)


def connect(server, client, name=None):
    """Both ends, before the handshake."""
    accepting, dialling = SSL.Connection(server), SSL.Connection(client)
    accepting.set_accept_state()
    dialling.set_connect_state()
    if name is not None:
        expect_server_name(dialling, name)
    return accepting, dialling


def move(source, target) -> None:
    with contextlib.suppress(SSL.WantReadError):
        target.bio_write(source.bio_read(65536))


def shake(accepting, dialling):
    """Run both ends as far as they go; gives the errors of (server, client)."""
    errors = {accepting: None, dialling: None}
    for _ in range(6):
        for end, other in ((dialling, accepting), (accepting, dialling)):
            if errors[end] is None:
                try:
                    end.do_handshake()
                    end.recv(1)
                except SSL.WantReadError:
                    pass
                except (SSL.Error, RemoteProtocolError) as error:
                    errors[end] = error
            move(end, other)
    return errors[accepting], errors[dialling]


def alert(error) -> str:
    return error.args[0][-1][-1]


@pytest.mark.parametrize("algorithm", [pki.P256, pki.ML_DSA_65, pki.ED25519, pki.RSA_2048])
def test_mutual_handshake_with_every_algorithm_and_a_hybrid_group(algorithm):
    client_identity = pki.identity(CA, "client.test", algorithm=algorithm)
    pair = connect(
        server_context(
            server_identity(algorithm),
            trust=CA.trust,
            client_auth=ClientAuth.REQUIRED,
            tls13_only=True,
        ),
        client_context(trust=CA.trust, identity=client_identity, tls13_only=True),
        "server.test",
    )
    assert shake(*pair) == (None, None)
    assert [end.get_group_name() for end in pair] == ["X25519MLKEM768"] * 2
    assert pair[0].get_peer_certificate(as_cryptography=True) == client_identity.certificate
    assert [verify_failure(end) for end in pair] == [None, None]
    assert [verify_failure_detail(end) for end in pair] == [None, None]


def test_sni_is_a_dns_name_and_never_an_address():
    for name, expected in (("server.test", b"server.test"), ("127.0.0.1", None)):
        identity = pki.identity(CA, name)
        pair = connect(server_context(identity), client_context(trust=CA.trust), name)
        assert shake(*pair) == (None, None)
        assert pair[0].get_servername() == expected


def test_intermediates_are_sent_along():
    leaf = pki.identity(pki.intermediate(CA), "server.test")
    pair = connect(server_context(leaf), client_context(trust=CA.trust))
    assert shake(*pair) == (None, None)
    alone = TlsIdentity(leaf.chain[:1], leaf.private_key)
    pair = connect(server_context(alone), client_context(trust=CA.trust))
    shake(*pair)
    assert verify_failure(pair[1]) is Reason.CERTIFICATE_INVALID


def test_the_first_protocol_of_the_server_that_the_client_offers_wins():
    pair = connect(
        server_context(server_identity(), alpn=(b"qproxy/1", b"http/1.1")),
        client_context(trust=CA.trust, alpn=(b"h2", b"http/1.1", b"qproxy/1")),
    )
    assert shake(*pair) == (None, None)
    assert [end.get_alpn_proto_negotiated() for end in pair] == [b"qproxy/1"] * 2


def test_no_protocol_in_common_is_an_alert():
    pair = connect(
        server_context(server_identity(), alpn=(b"qproxy/1",)),
        client_context(trust=CA.trust, alpn=(b"h2",)),
    )
    server_error, client_error = shake(*pair)
    assert server_error.reason is Reason.TLS_FAILURE
    assert "no application protocol" in alert(client_error)


def test_a_client_without_protocols_is_let_in_with_none():
    pair = connect(
        server_context(server_identity(), alpn=(b"qproxy/1",)), client_context(trust=CA.trust)
    )
    assert shake(*pair) == (None, None)
    assert pair[0].get_alpn_proto_negotiated() == b""


def test_tls_versions():
    def limited(version):
        context = client_context(trust=CA.trust)
        context.set_min_proto_version(0)
        context.set_max_proto_version(version)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        return context

    modern = server_context(server_identity())
    pair = connect(modern, limited(SSL.TLS1_2_VERSION))
    assert shake(*pair) == (None, None)
    assert pair[0].get_protocol_version_name() == "TLSv1.2"
    assert pair[0].get_cipher_name().startswith("ECDHE-")
    assert "GCM" in pair[0].get_cipher_name() or "CHACHA20" in pair[0].get_cipher_name()
    assert shake(*connect(modern, limited(SSL.TLS1_1_VERSION)))[1] is not None
    strict = server_context(server_identity(), tls13_only=True)
    assert shake(*connect(strict, limited(SSL.TLS1_2_VERSION)))[1] is not None


def test_cbc_suites_are_refused():
    context = client_context(trust=CA.trust)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(b"ECDHE-ECDSA-AES256-SHA384")
    assert None not in shake(*connect(server_context(server_identity()), context))


def test_ciphersuites_can_be_chosen():
    suite = "TLS_CHACHA20_POLY1305_SHA256"
    pair = connect(
        server_context(server_identity(), ciphersuites=suite), client_context(trust=CA.trust)
    )
    assert shake(*pair) == (None, None)
    assert pair[0].get_cipher_name() == suite


def test_unknown_ciphersuites_are_a_config_error():
    with pytest.raises(ConfigError, match="NO_SUCH"):
        client_context(trust=CA.trust, ciphersuites="NO_SUCH")


def test_client_authentication_needs_a_ca():
    with pytest.raises(ConfigError, match="client CA"):
        server_context(server_identity(), client_auth=ClientAuth.REQUIRED)


def test_a_key_of_another_certificate_is_a_config_error():
    mixed = TlsIdentity(server_identity().chain, pki.identity(CA, "other").private_key)
    with pytest.raises(ConfigError):
        server_context(mixed)


REFUSED = {
    "expired": ({"expired": True}, Reason.CERTIFICATE_EXPIRED, "cert_has_expired at depth 0"),
    "not yet valid": (
        {"not_yet_valid": True},
        Reason.CERTIFICATE_INVALID,
        "cert_not_yet_valid at depth 0",
    ),
    "for clients": ({"server": False}, Reason.CERTIFICATE_INVALID, "invalid_purpose at depth 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_failed_check_is_known_here_and_not_there(case):
    options, reason, detail = REFUSED[case]
    identity = pki.identity(CA, "server.test", **options)
    pair = connect(server_context(identity), client_context(trust=CA.trust))
    server_error, _ = shake(*pair)
    assert verify_failure(pair[1]) is reason
    assert verify_failure_detail(pair[1]) == detail
    assert "alert" in alert(server_error)
    assert verify_failure(pair[0]) is None


def test_another_ca_of_the_same_name_is_refused():
    impostor = pki.Authority(
        pki.authority.__wrapped__().certificate, pki.make_key(pki.P256)
    )  # same subject, another key
    identity = pki.identity(impostor, "server.test")
    pair = connect(server_context(identity), client_context(trust=CA.trust))
    shake(*pair)
    assert verify_failure(pair[1]) is Reason.CERTIFICATE_INVALID


def test_a_wrong_name_ends_the_handshake_with_an_alert():
    pair = connect(server_context(server_identity()), client_context(trust=CA.trust), "other.test")
    server_error, client_error = shake(*pair)
    assert "alert" in alert(server_error)
    assert client_error is not None
    assert verify_failure(pair[1]) is Reason.PEER_NAME_MISMATCH
    assert "other.test" in verify_failure_detail(pair[1])


def refused_by_crls(identity, *crls):
    trust = TrustStore((CA.certificate,), crls)
    pair = connect(server_context(identity), client_context(trust=trust))
    shake(*pair)
    return verify_failure(pair[1])


def test_crls():
    good = server_identity()
    bad = pki.identity(CA, "revoked.test")
    crl = pki.crl(CA, bad.certificate)
    assert refused_by_crls(good, crl) is None
    assert refused_by_crls(bad, crl) is Reason.CERTIFICATE_REVOKED
    assert refused_by_crls(bad) is None


def test_a_stale_or_foreign_or_forged_crl_fails_closed():
    other = pki.authority("other CA")
    forger = pki.Authority(CA.certificate, other.private_key)
    for crl in (pki.crl(CA, expired=True), pki.crl(other), pki.crl(forger)):
        assert refused_by_crls(server_identity(), crl) is Reason.CERTIFICATE_INVALID


def test_every_ca_of_a_chain_needs_its_crl():
    middle = pki.intermediate(CA)
    leaf = pki.identity(middle, "server.test")
    both = pki.crl(CA), pki.crl(middle)
    assert refused_by_crls(leaf, *both) is None
    assert refused_by_crls(leaf, both[1]) is Reason.CERTIFICATE_INVALID
    revoked = pki.crl(CA, middle.certificate), both[1]
    assert refused_by_crls(leaf, *revoked) is Reason.CERTIFICATE_REVOKED


def test_renegotiation_is_refused():
    context = client_context(trust=CA.trust)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    pair = connect(server_context(server_identity()), context)
    assert shake(*pair) == (None, None)
    with pytest.raises(SSL.Error):
        pair[1].renegotiate()
