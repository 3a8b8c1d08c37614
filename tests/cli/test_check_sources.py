"""What `qproxy check` says of the certificates we show to KMEs."""

from __future__ import annotations

import pytest

from qproxy.cli.main import main
from tests import pki

CA = pki.authority()
GOOD = pki.identity(CA, "gw-a")
CONFIG = """\
node: {name: gw-a}
identity: {certificate: gw-a.pem, private_key: gw-a.key, ca: ca.pem}
peers: {gw-b: {address: '127.0.0.1:7444', key_source: site}}
key_sources:
  site:
    type: etsi-qkd-014
    ca: ca.pem
    pkcs12: sae.p12
    pkcs12_password_file: password
    kmes: {north: {url: 'https://north'}, south: {url: 'https://south:8443/prefix'}}
"""


@pytest.fixture
def check(tmp_path, capsys):
    pki.write_identity(tmp_path, "gw-a", pki.identity(CA, "gw-a"), CA)
    for name in ("sae.p12", "password"):
        (tmp_path / name).touch(mode=0o600)
    (tmp_path / "password").write_bytes(b"correct horse\n")

    def run(identity=GOOD, password=b"correct horse"):
        (tmp_path / "sae.p12").write_bytes(pki.pkcs12_bytes(identity, password=password))
        (tmp_path / "config.yaml").write_text(CONFIG)
        code = main(["check", str(tmp_path / "config.yaml")])
        output = capsys.readouterr()
        assert "horse" not in output.out + output.err
        return code, output.out + output.err

    return run


def test_a_good_bundle_passes_and_every_kme_is_shown_in_order(check):
    code, said = check()
    assert code == 0
    assert "ETSI GS QKD 014, https://north, else https://south:8443/prefix" in said


def test_an_expired_certificate_in_a_bundle_is_an_error_at_its_kme(check):
    code, said = check(pki.identity(CA, "gw-a", expired=True))
    assert code == 78
    assert "expired on" in said
    assert "key_sources.site.kmes.north" in said


def test_another_password_is_an_error_at_its_kme(check):
    code, said = check(password=b"another")
    assert code == 78
    assert "key_sources.site.kmes.south.pkcs12: cannot be opened with the password" in said


@pytest.mark.parametrize("name", ["sae.p12", "password"])
def test_secrets_that_others_may_read_are_warned_of(check, tmp_path, name):
    (tmp_path / name).chmod(0o644)
    code, said = check()
    assert code == 0
    assert f"{name} can be read or changed by other users (mode 0644)" in said
