"""The admin section: off unless asked for, and on this machine unless somebody insists."""

from __future__ import annotations

import pytest

from qproxy.address import TcpAddress
from qproxy.config.model import AdminConfig
from qproxy.config.reader import load_gateway_config
from qproxy.errors import ConfigError
from qproxy.pki import init_pki
from tests.admin.test_command import CONFIG


@pytest.fixture
def load(tmp_path):
    init_pki(tmp_path / "pki")

    def load(text):
        (tmp_path / "gateway.yaml").write_text(CONFIG + text)
        return load_gateway_config(tmp_path / "gateway.yaml").admin

    return load


def test_there_is_none_by_default(load):
    assert load("") == AdminConfig(listen=None, hosts=None, unsafe_allow_remote=False)


@pytest.mark.parametrize("listen", ["127.0.0.1:9464", "[::1]:9464", "unix:admin.sock"])
def test_loopback_and_unix_sockets_are_fine(load, listen):
    assert load(f"admin: {{listen: '{listen}'}}\n").listen is not None


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "192.0.2.1:9464", "gw-a.example:9464"])
def test_other_addresses_must_be_insisted_on(load, listen):
    with pytest.raises(ConfigError, match="loopback address or unix socket") as caught:
        load(f"admin: {{listen: '{listen}'}}\n")
    assert "admin.listen" in str(caught.value)
    found = load(f"admin: {{listen: '{listen}', unsafe_allow_remote: true, hosts: [gw-a.ops]}}\n")
    assert isinstance(found.listen, TcpAddress)
    assert found.hosts == ("gw-a.ops",)


def test_its_address_is_its_own(load):
    text = "listeners:\n  web: {listen: '127.0.0.1:8080', peer: gw-b, service: web}\n"
    with pytest.raises(ConfigError, match="address of its own"):
        load(text + "admin: {listen: '127.0.0.1:8080'}\n")
