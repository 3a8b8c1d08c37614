"""The trial PKI: certificates fit for mutual TLS, files safe, nothing ever overwritten."""

import datetime as dt
import os
import stat
import types

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from qproxy.modes import ClientAuth
from qproxy.pki import (
    KeyAlgorithm,
    PkiError,
    Validity,
    init_pki,
    issue,
    make_authority,
    make_crl,
)
from qproxy.tls.context import client_context, server_context
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_names

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
ALGORITHMS = list(KeyAlgorithm)


def shake_hands(client, server):
    """Run a handshake between two connections in memory."""
    pending = {client, server}
    for _ in range(20):
        for one, other in ((client, server), (server, client)):
            try:
                one.do_handshake()
                pending.discard(one)
            except SSL.WantReadError:
                pass
            while True:
                try:
                    other.bio_write(one.bio_read(65536))
                except SSL.WantReadError:
                    break
        if not pending:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_identities_shake_hands_both_ways_round(tmp_path, algorithm):
    pki = tmp_path / "pki"
    init_pki(pki, algorithm=algorithm)
    a = TlsIdentity.load(pki / "gw-a.pem", pki / "gw-a.key")
    b = TlsIdentity.load(pki / "gw-b.pem", pki / "gw-b.key")
    trust = TrustStore.load(pki / "ca.pem")
    for one, other in ((a, b), (b, a)):
        client = SSL.Connection(client_context(trust=trust, identity=one), None)
        client.set_connect_state()
        context = server_context(other, trust=trust, client_auth=ClientAuth.REQUIRED)
        server = SSL.Connection(context, None)
        server.set_accept_state()
        shake_hands(client, server)
        assert client.get_peer_certificate().to_cryptography() == other.certificate
        assert server.get_peer_certificate().to_cryptography() == one.certificate


def test_each_identity_has_its_names_and_no_others(tmp_path):
    pki = tmp_path / "pki"
    init_pki(pki, names=["gw-x", "gw-y.example.org"], dns=["web.example.org", "192.0.2.1"])
    local = {"localhost", "127.0.0.1", "::1"}
    expected = {
        "gw-x": {"gw-x"},
        "gw-y.example.org": {"gw-y.example.org"},
        "kme-a": {"kme-a", *local},
        "kme-b": {"kme-b", *local},
        "server": {*local, "web.example.org", "192.0.2.1"},
    }
    for name, names in expected.items():
        certificate = x509.load_pem_x509_certificate((pki / f"{name}.pem").read_bytes())
        assert certificate_names(certificate) == names
    assert {path.stem for path in pki.glob("*.key")} == set(expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_extensions_are_those_of_mutual_tls(algorithm):
    validity = Validity.of_days(10, NOW)
    authority = make_authority(algorithm, validity)
    leaf = issue(authority, ["gw-a"], algorithm, validity).certificate
    leaf.verify_directly_issued_by(authority.certificate)

    ca_extensions, extensions = authority.certificate.extensions, leaf.extensions
    assert ca_extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca_extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert ca_extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not ca_extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert leaf.not_valid_before_utc < NOW
    assert leaf.not_valid_after_utc == NOW + dt.timedelta(days=10)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path, umask):
    pki = tmp_path / "deep" / "pki"
    before = os.umask(umask)
    try:
        written = init_pki(pki)
    finally:
        os.umask(before)
    assert stat.S_IMODE(pki.stat().st_mode) == 0o700
    assert stat.S_IMODE((pki / "ca-private").stat().st_mode) == 0o700
    for path in written:
        expected = 0o600 if path.suffix == ".key" else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert not (pki / "ca.key").exists()
    assert "TRIAL" in (pki / "ca-private" / "README").read_text()


@pytest.mark.parametrize("taken", ["gw-b.key", "ca.pem", "ca-private/ca.key"])
def test_nothing_is_overwritten_and_nothing_half_done(tmp_path, taken):
    pki = tmp_path / "pki"
    (pki / "ca-private").mkdir(parents=True)
    pki.chmod(0o700)
    (pki / taken).write_text("mine")
    with pytest.raises(PkiError, match="is there already"):
        init_pki(pki)
    assert (pki / taken).read_text() == "mine"
    assert [path for path in pki.rglob("*") if path.is_file()] == [pki / taken]


def test_a_dangling_link_is_not_followed(tmp_path):
    pki = tmp_path / "pki"
    pki.mkdir(mode=0o700)
    (pki / "gw-a.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PkiError, match="is there already"):
        init_pki(pki)
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_open_to_others_is_refused(tmp_path):
    pki = tmp_path / "pki"
    pki.mkdir()
    pki.chmod(0o755)
    with pytest.raises(PkiError, match="open to other users") as caught:
        init_pki(pki)
    assert "chmod 700" in caught.value.hint


def test_a_directory_that_cannot_be_made_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PkiError, match="cannot write"):
        init_pki(tmp_path / "file" / "pki")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def fchmod(descriptor, mode):
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fchmod", fchmod)
    with pytest.raises(PkiError, match="No space left on device"):
        init_pki(tmp_path / "pki")
    assert [path for path in (tmp_path / "pki").rglob("*") if path.is_file()] == []


def test_an_openssl_without_ml_dsa_is_an_error_with_a_hint(tmp_path, monkeypatch):
    def generate():
        raise UnsupportedAlgorithm("ML-DSA-65 is not supported")

    monkeypatch.setattr(
        "qproxy.pki.mldsa.MLDSA65PrivateKey", types.SimpleNamespace(generate=generate)
    )
    with pytest.raises(PkiError, match="has no ml-dsa-65") as caught:
        init_pki(tmp_path / "pki", algorithm=KeyAlgorithm.ML_DSA_65)
    assert "ecdsa-p256" in caught.value.hint
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["../gw-a"],
        ["gw/a"],
        [""],
        ["GW-A"],
        ["gw a"],
        ["gw-a\n"],
        ["-gw"],
        ["x" * 64],
        ["gw-a", "gw-a"],
        ["kme-a"],
        ["ca"],
        [],
        [f"gw-{n}" for n in range(101)],
    ],
)
def test_names_that_are_none_are_refused_before_anything_is_written(tmp_path, names):
    with pytest.raises(PkiError):
        init_pki(tmp_path / "pki", names=names)
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("arguments", [{"dns": ["a b"]}, {"days": 0}, {"days": 10_000}])
def test_other_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(PkiError):
        init_pki(tmp_path / "pki", **arguments)
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_crl_names_the_revoked_and_is_signed_by_the_authority(tmp_path, algorithm):
    validity = Validity.of_days(10, NOW)
    authority = make_authority(algorithm, validity)
    good, bad = (issue(authority, [name], algorithm, validity) for name in ("good", "bad"))
    path = tmp_path / "crl.pem"
    path.write_bytes(make_crl(authority, [bad.certificate], validity, number=7))
    crl = x509.load_pem_x509_crl(path.read_bytes())
    assert crl.is_signature_valid(authority.private_key.public_key())
    assert crl.get_revoked_certificate_by_serial_number(bad.certificate.serial_number) is not None
    assert crl.get_revoked_certificate_by_serial_number(good.certificate.serial_number) is None
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7


def test_private_keys_are_not_in_reprs():
    authority = make_authority(KeyAlgorithm.ECDSA_P256, Validity.of_days(1, NOW))
    assert "private_key" not in repr(authority)
