"""Certificates and keys from files, and what the user is told when they are no good."""

from __future__ import annotations

import pytest

from qproxy.errors import ConfigError
from qproxy.tls.identity import (
    MAX_PASSWORD_BYTES,
    MAX_PEM_FILE_BYTES,
    TlsIdentity,
    TrustStore,
    load_password,
)
from tests import pki

CA = pki.authority()
ALGORITHMS = [pki.P256, pki.ML_DSA_65, pki.ED25519, pki.RSA_2048]


def who(algorithm=pki.P256):
    return pki.identity(CA, "gw-a", algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_identity_is_read_back(tmp_path, algorithm):
    files = pki.write_identity(tmp_path, "gw-a", who(algorithm), CA)
    loaded = TlsIdentity.load(files.certificate, files.private_key)
    assert loaded.chain == who(algorithm).chain
    assert pki.key_pem(loaded.private_key) == pki.key_pem(who(algorithm).private_key)


def test_chain_keeps_its_order(tmp_path):
    leaf = pki.identity(pki.intermediate(CA), "gw-a")
    files = pki.write_identity(tmp_path, "gw-a", leaf, CA)
    loaded = TlsIdentity.load(files.certificate, files.private_key)
    assert loaded.chain == leaf.chain
    assert len(loaded.chain) == 2
    assert loaded.certificate == leaf.chain[0]


def test_the_private_key_is_not_shown():
    assert "private" not in repr(who()).lower()


def fails(load, *paths) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*paths)
    assert caught.value.file in paths
    assert "PRIVATE KEY" not in caught.value.message
    return caught.value


@pytest.fixture
def files(tmp_path):
    return pki.write_identity(tmp_path, "gw-a", who(), CA)


@pytest.mark.parametrize("missing", ["certificate", "private_key"])
def test_missing_file(files, missing):
    getattr(files, missing).unlink()
    error = fails(TlsIdentity.load, files.certificate, files.private_key)
    assert error.file == getattr(files, missing)
    assert "No such file" in error.message
    assert error.hint


@pytest.mark.parametrize("broken", ["certificate", "private_key"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_garbled_file(files, broken, content):
    getattr(files, broken).write_bytes(content)
    error = fails(TlsIdentity.load, files.certificate, files.private_key)
    assert error.file == getattr(files, broken)
    assert "expected PEM" in error.hint


def test_files_the_wrong_way_round(files):
    fails(TlsIdentity.load, files.private_key, files.certificate)


def test_encrypted_key(files):
    files.private_key.write_bytes(pki.key_pem(who().private_key, b"password"))
    error = fails(TlsIdentity.load, files.certificate, files.private_key)
    assert error.message == "is encrypted"


def test_key_of_another_certificate(files):
    files.private_key.write_bytes(pki.key_pem(pki.identity(CA, "gw-b").private_key))
    error = fails(TlsIdentity.load, files.certificate, files.private_key)
    assert "does not belong" in error.message
    assert error.file == files.private_key


def test_file_over_the_limit_is_not_read_whole(files):
    files.certificate.write_bytes(b"x" * (MAX_PEM_FILE_BYTES + 1))
    assert "larger than" in fails(TlsIdentity.load, files.certificate, files.private_key).message


def test_trust_store(tmp_path):
    other = pki.authority("other CA", pki.ML_DSA_65)
    crls = pki.crl(CA), pki.crl(other)
    ca, crl = tmp_path / "ca.pem", tmp_path / "crl.pem"
    ca.write_bytes(pki.certificate_pem(CA.certificate, other.certificate))
    crl.write_bytes(b"# two lists\n" + pki.crl_pem(*crls))
    assert TrustStore.load(ca) == TrustStore((CA.certificate, other.certificate))
    assert TrustStore.load(ca, crl).crls == crls


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----"]
)
def test_garbled_crl(tmp_path, files, content):
    crl = tmp_path / "crl.pem"
    crl.write_bytes(content)
    error = fails(TrustStore.load, files.ca, crl)
    assert error.file == crl
    assert "revocation list" in error.message


# --- PKCS #12 ----------------------------------------------------------------------------------

PASSWORD = b"correct horse"


def bundle(path, identity, *others, password=PASSWORD):
    path.write_bytes(pki.pkcs12_bytes(identity, *others, password=password))
    return path


def password_file(path, content=PASSWORD):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("algorithm", [pki.P256, pki.ED25519, pki.RSA_2048])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_bundle_is_read_back(tmp_path, algorithm, end):
    p12 = bundle(tmp_path / "a.p12", who(algorithm))
    loaded = TlsIdentity.load_pkcs12(p12, password_file(tmp_path / "pw", PASSWORD + end))
    assert loaded.chain == who(algorithm).chain
    assert pki.key_pem(loaded.private_key) == pki.key_pem(who(algorithm).private_key)


def test_a_bundle_without_a_password_needs_none(tmp_path):
    p12 = bundle(tmp_path / "a.p12", who(), password=None)
    assert TlsIdentity.load_pkcs12(p12).chain == who().chain


def test_the_chain_of_a_bundle_is_put_in_order_and_ends_below_the_root(tmp_path):
    low = pki.intermediate(pki.intermediate(CA), "lower")
    leaf = pki.identity(low, "gw-a")
    stranger = pki.authority("somebody else").certificate
    scattered = (CA.certificate, leaf.chain[2], stranger, leaf.chain[1])
    p12 = bundle(tmp_path / "a.p12", leaf, *scattered)
    loaded = TlsIdentity.load_pkcs12(p12, password_file(tmp_path / "pw"))
    assert loaded.chain == leaf.chain
    assert len(loaded.chain) == 3


@pytest.mark.parametrize("content", [b"", b"garbage", b"0\x82\x07\xef\x02\x01\x03"])
def test_a_bundle_that_is_none(tmp_path, content):
    p12 = tmp_path / "a.p12"
    p12.write_bytes(content)
    assert "is no PKCS #12" in fails(TlsIdentity.load_pkcs12, p12).message


@pytest.mark.parametrize("given", [None, b"wrong", PASSWORD + b" "])
def test_another_password_is_told_without_a_password(tmp_path, given):
    p12 = bundle(tmp_path / "a.p12", who())
    file = None if given is None else password_file(tmp_path / "pw", given)
    error = fails(TlsIdentity.load_pkcs12, p12, *([] if file is None else [file]))
    assert error.file == p12
    assert error.__cause__ is None
    assert error.__suppress_context__
    for text in (str(error), str(error.hint)):
        assert PASSWORD.decode() not in text
        assert given is None or given.decode() not in text


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a\nb\n", b"a\0", b"x" * (MAX_PASSWORD_BYTES + 1)], ids=len
)
def test_a_password_file_that_holds_no_password(tmp_path, content):
    file = password_file(tmp_path / "pw", content)
    error = fails(TlsIdentity.load_pkcs12, bundle(tmp_path / "a.p12", who()), file)
    assert error.file == file


def test_a_password_is_bytes_that_can_be_wiped(tmp_path):
    password = load_password(password_file(tmp_path / "pw", PASSWORD + b"\n"))
    assert type(password) is bytearray
    assert password == PASSWORD


def test_a_bundle_of_certificates_only(tmp_path):
    p12 = tmp_path / "a.p12"
    p12.write_bytes(pki.pkcs12_bytes(None, CA.certificate, password=None))
    assert "no private key" in fails(TlsIdentity.load_pkcs12, p12).message
