"""The reader: defaults, every sort of fault with its line and key, and all faults at once."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.address import TcpAddress, UnixAddress
from qproxy.config.model import (
    Etsi014SourceConfig,
    FileSourceConfig,
    GatewayConfig,
    KmeSimConfig,
    LinkConfig,
    ListenerConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    RekeyConfig,
    ServiceConfig,
    ShutdownConfig,
    TunnelConfig,
)
from qproxy.config.reader import (
    ConfigFileError,
    load_any_config,
    load_gateway_config,
    load_kme_sim_config,
)
from qproxy.config.scalars import load_psk
from qproxy.config.walk import MAX_ERRORS
from qproxy.errors import ConfigError
from qproxy.modes import Aead, ClientAuth, KemAlgorithm, KemProviderChoice, Policy

FILES = ("a.pem", "a.key", "ca.pem")
PSK = "00112233445566778899aabbccddeeff" * 2
MINIMAL = """\
node: {name: gw-a}
identity: {certificate: a.pem, private_key: a.key, ca: ca.pem}
peers:
  gw-b:
    address: 127.0.0.1:7444
    key_source: kme-a
key_sources:
  kme-a:
    type: etsi-qkd-014
    url: https://127.0.0.1:8441
    ca: ca.pem
    certificate: a.pem
    private_key: a.key
"""
SIM = """\
kme_sim:
  kmes:
    kme-a: {listen: '127.0.0.1:8441', certificate: a.pem, private_key: a.key, ca: ca.pem}
    kme-b: {listen: '127.0.0.1:8442', certificate: a.pem, private_key: a.key, ca: ca.pem}
  saes: {gw-a: kme-a, gw-b: kme-b}
"""


@pytest.fixture
def room(tmp_path):
    """A directory with the files that configurations name."""
    for name in FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "psk").write_text(PSK + "\n")
    (tmp_path / "bad-psk").write_text(PSK + "00\n")
    (tmp_path / "keys").mkdir()
    return tmp_path


def load(room, text, loader=load_gateway_config):
    path = room / "config.yaml"
    path.write_text(text)
    return loader(path)


def faults(room, text, loader=load_gateway_config):
    with pytest.raises(ConfigFileError) as caught:
        load(room, text, loader)
    return caught.value.errors


def test_a_minimal_file_gives_the_defaults(room):
    config = load(room, MINIMAL)
    assert config.path == room / "config.yaml"
    assert config.node.name == "gw-a"
    assert config.node.kem_provider is KemProviderChoice.AUTO
    assert config.identity.certificate == room / "a.pem"
    assert config.identity.crl is None
    assert (config.log, config.tunnel) == (LogConfig(), TunnelConfig())
    assert config.shutdown == ShutdownConfig(drain_s=10.0)
    assert config.listeners == config.services == {}
    peer = config.peers["gw-b"]
    assert (peer.name, peer.local_sae_id, peer.peer_sae_id) == ("gw-b", "gw-a", "gw-b")
    assert peer.address == TcpAddress("127.0.0.1", 7444)
    assert peer.policy is Policy.PREFER
    assert peer.kem is KemAlgorithm.ML_KEM_1024
    assert peer.aead is Aead.AES_256_GCM
    assert peer.rekey == RekeyConfig()
    assert config.key_sources["kme-a"] == Etsi014SourceConfig(
        name="kme-a",
        url="https://127.0.0.1:8441",
        ca=room / "ca.pem",
        certificate=room / "a.pem",
        private_key=room / "a.key",
    )


def test_every_value_arrives(room):
    config = load(
        room,
        MINIMAL
        + """\
  pad: {type: file, directory: keys}
log: {format: json, level: debug}
tunnel: {listen: 'unix:t.sock', ping_interval_s: 1.5, max_stream_window_bytes: 1MiB}
listeners:
  web:
    listen: 0.0.0.0:443
    peer: gw-b
    service: web
    tls: {certificate: a.pem, private_key: a.key, client_ca: ca.pem, client_auth: required}
    wait_for_service: true
    idle_timeout_s: 60
    max_connections: 1_000
services:
  db:
    connect: unix:/run/db.sock
    tls: {ca: ca.pem, server_name: db.example, certificate: a.pem, private_key: a.key}
    peers: [gw-b]
shutdown: {drain_s: 0}
""",
    )
    assert config.log == LogConfig(format=LogFormat.JSON, level=LogLevel.DEBUG)
    assert config.tunnel.listen == UnixAddress(str(room / "t.sock"))
    assert config.tunnel.ping_interval_s == 1.5
    assert config.tunnel.max_stream_window_bytes == 1024 * 1024
    assert config.key_sources["pad"] == FileSourceConfig(name="pad", directory=room / "keys")
    web = config.listeners["web"]
    assert web.tls.client_auth is ClientAuth.REQUIRED
    assert web.tls.client_ca == room / "ca.pem"
    assert (web.wait_for_service, web.idle_timeout_s, web.max_connections) == (True, 60.0, 1000)
    assert config.services["db"].tls.server_name == "db.example"
    assert config.services["db"].peers == ("gw-b",)
    assert config.shutdown.drain_s == 0.0


def test_empty_sections_and_nulls_are_defaults(room):
    config = load(
        room,
        MINIMAL + "listeners:\nservices: ~\ntunnel:\nlog: null\n",
    )
    assert config.listeners == config.services == {}
    assert config.tunnel == TunnelConfig()
    text = MINIMAL.replace("    key_source", "    psk_file: null\n    key_source")
    assert load(room, text).peers["gw-b"].psk_file is None


@pytest.mark.parametrize("word", ["off", "prefer", "require", "'off'"])
def test_policy_words_are_words(room, word):
    text = MINIMAL.replace("    key_source", f"    policy: {word}\n    key_source")
    assert load(room, text).peers["gw-b"].policy == word.strip("'")


@pytest.mark.parametrize("name", ["on", "no", "1", "0x1F", "1e3", "1:30", "2026-01-31"])
def test_names_are_taken_as_written(room, name):
    config = load(room, MINIMAL.replace("gw-a", name))
    assert config.node.name == name
    assert config.peers["gw-b"].local_sae_id == name


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("65_536", 65536),
        ("65536B", 65536),
        ("64KiB", 65536),
        ("64 MiB", 64 * 2**20),
        ("'64GiB'", 64 * 2**30),
    ],
)
def test_sizes(room, text, size):
    config = load(
        room, MINIMAL.replace("    key_source", f"    rekey: {{bytes: {text}}}\n    key_source")
    )
    assert config.peers["gw-b"].rekey.bytes == size


def test_anchors_and_aliases_work_for_whole_values(room):
    text = MINIMAL.replace("    key_source", "    rekey: &r {interval_s: 7}\n    key_source")
    text = text.replace(
        "key_sources:", "  gw-c: {address: 127.0.0.1:1, policy: off, rekey: *r}\nkey_sources:"
    )
    assert load(room, text).peers["gw-c"].rekey.interval_s == 7.0


PEER = "    key_source: kme-a\n"
URL = "https://127.0.0.1:8441"


def changed(old, new):
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "key", "message", "hint"),
    [
        # What a file is.
        ("- a\n- b\n", 1, None, "expected a section of keys and values, got a list of 2", None),
        ("just text\n", 1, None, "got 'just text'", None),
        # Keys.
        (MINIMAL + "listners: {}\n", 14, "listners", "expected a known key", "'listeners'"),
        (MINIMAL + "zzz: {}\n", 14, "zzz", "expected a known key", "known keys here: node"),
        (MINIMAL + "kme_sim: {}\n", 14, "kme_sim", "expected a known key", "qproxy kme-sim"),
        (MINIMAL + "node: {name: x}\n", 14, "node", "got it again (first on line 1)", "remove"),
        (MINIMAL + "<<: {}\n", 14, None, "YAML merge", "alias"),
        (MINIMAL + "? [a]\n: b\n", 14, None, "expected a key, got a list of 1", None),
        (
            changed(PEER, PEER + "    polcy: off\n"),
            7,
            "peers.gw-b.polcy",
            "expected a known key",
            "did you mean 'policy'?",
        ),
        (changed(PEER, PEER + f"    psk: {PSK}\n"), 7, "peers.gw-b.psk", "known key", "psk_file"),
        # Types.
        ("node: 5\n" + MINIMAL[19:], 1, "node", "expected a section of keys and values", None),
        (changed("{name: gw-a}", "{name: [x]}"), 1, "node.name", "got a list of 1", None),
        (changed("{name: gw-a}", "{name: ~}"), 1, "node.name", "got nothing", None),
        (changed("{name: gw-a}", "{name: !!str x}"), 0, None, None, None),
        (changed("{name: gw-a}", "{name: !x x}"), 1, "node.name", "a YAML tag", "remove"),
        (changed("{name: gw-a}", "{name: a b}"), 1, "node.name", "got 'a b'", None),
        (changed("{name: gw-a}", "{name: g, kem_provider: oqs}"), 1, "node.kem_provider",
         "expected one of auto, liboqs, openssl, got 'oqs'", "did you mean 'liboqs'?"),
        (changed(PEER, PEER + "    tunnels: '1'\n"), 7, "peers.gw-b.tunnels", "got a text",
         "remove the quotes"),
        (changed(PEER, PEER + "    tunnels: 1.5\n"), 7, "peers.gw-b.tunnels", "got '1.5'", None),
        (changed(PEER, PEER + "    policy: on\n"), 7, "peers.gw-b.policy", "got 'on'", None),
        (changed(PEER, PEER + "    policy: false\n"), 7, "peers.gw-b.policy", "got 'false'", None),
        (MINIMAL + "tunnel: {unsafe_core_dumps: yes}\n", 14, "tunnel.unsafe_core_dumps",
         "expected true or false, got 'yes'", "write true"),
        (MINIMAL + "services: {w: {connect: 'h:1', peers: gw-b}}\n", 14, "services.w.peers",
         "expected a list of peers' names, each once, got 'gw-b'", None),
        (MINIMAL + "services: {w: {connect: 'h:1', peers: []}}\n", 14, "services.w.peers",
         "got a list of 0", None),
        (MINIMAL + "services: {w: {connect: 'h:1', peers: [gw-b, gw-b]}}\n", 14,
         "services.w.peers", "got one of them twice", None),
        # Ranges.
        (changed(PEER, PEER + "    tunnels: 0\n"), 7, "peers.gw-b.tunnels",
         "expected a whole number from 1 to 64, got '0'", None),
        (changed(PEER, PEER + "    tunnels: 65\n"), 7, "peers.gw-b.tunnels", "got '65'", None),
        (changed(PEER, PEER + "    tunnels: " + "9" * 500 + "\n"), 7, "peers.gw-b.tunnels",
         "from 1 to 64", None),
        (changed(PEER, PEER + "    qkd_key_size_bits: 257\n"), 7, "peers.gw-b.qkd_key_size_bits",
         "a multiple of 8, got '257'", None),
        (changed(PEER, PEER + "    qkd_key_size_bits: 128\n"), 7, "peers.gw-b.qkd_key_size_bits",
         "from 256 to 8192", None),
        (changed(PEER, PEER + "    kme_timeout_s: 2s\n"), 7, "peers.gw-b.kme_timeout_s",
         "expected a number of seconds", "without a unit"),
        (changed(PEER, PEER + "    kme_timeout_s: .inf\n"), 7, "peers.gw-b.kme_timeout_s",
         "got '.inf'", None),
        (changed(PEER, PEER + "    kme_timeout_s: -1\n"), 7, "peers.gw-b.kme_timeout_s",
         "got '-1'", None),
        (changed(PEER, PEER + "    rekey: {bytes: 64MB}\n"), 7, "peers.gw-b.rekey.bytes",
         "from 64KiB to 256GiB, got '64MB'", "KiB, MiB, GiB"),
        (changed(PEER, PEER + "    rekey: {bytes: 1KiB}\n"), 7, "peers.gw-b.rekey.bytes",
         "got '1KiB'", None),
        (changed(PEER, PEER + "    rekey: {bytes: lots}\n"), 7, "peers.gw-b.rekey.bytes",
         "got 'lots'", "64MiB"),
        # Addresses and URLs.
        (changed("127.0.0.1:7444", "127.0.0.1"), 5, "peers.gw-b.address", "got '127.0.0.1'",
         "the port is missing"),
        (changed("127.0.0.1:7444", "127.0.0.1:0"), 5, "peers.gw-b.address", "got", "port 0"),
        (changed("127.0.0.1:7444", "unix:" + "x/" * 60), 5, "peers.gw-b.address", "got",
         "at most 107 bytes"),
        (changed(URL, "http://kme:1"), 10, "key_sources.kme-a.url", "the scheme 'http'", "TLS"),
        (changed(URL, "https://u:hunter2@kme"), 10, "key_sources.kme-a.url", "got a user", None),
        (changed(URL, "https://kme/?k=hunter2"), 10, "key_sources.kme-a.url", "query", None),
        (changed(URL, "https://kme:99999"), 10, "key_sources.kme-a.url", "port or host", None),
        (changed(URL, "https://"), 10, "key_sources.kme-a.url", "host that is none", None),
        (changed(URL, "https://[::1"), 10, "key_sources.kme-a.url", "port or host", None),
        (changed(URL, "'https://k me'"), 10, "key_sources.kme-a.url", "blanks", None),
        # Files.
        (changed("ca: ca.pem}", "ca: no.pem}"), 2, "identity.ca",
         "no.pem': No such file or directory", None),
        (changed("ca: ca.pem}", "ca: keys}"), 2, "identity.ca", "is not a file", None),
        (changed("ca: ca.pem}", "ca: 'a\\0b'}").replace("'a\\0b'", '"a\\0b"'), 2, "identity.ca",
         "a NUL", None),
        (changed("private_key: a.key,", f"private_key: {PSK},"), 2, "identity.private_key",
         "got that path: No such file", "not what is in it"),
        (changed(PEER, PEER + f"    psk_file: {PSK}\n"), 7, "peers.gw-b.psk_file",
         "got that path: No such file", "not what is in it"),
        (changed(PEER, PEER + "    psk_file: bad-psk\n"), 7, "peers.gw-b.psk_file",
         "expected the path of a file of 64 hexadecimal digits", "openssl rand"),
        (MINIMAL + "  pad: {type: file, directory: a.pem}\n", 14, "key_sources.pad.directory",
         "is not a directory", None),
        # What must be there.
        (MINIMAL.replace("node: {name: gw-a}\n", ""), 0, "node",
         "expected a section of keys and values, got nothing", "add this key"),
        (changed("certificate: a.pem, private", "private"), 2, "identity.certificate",
         "got nothing", "add this key"),
        (MINIMAL + "listeners: {web: {listen: '127.0.0.1:1', peer: gw-b}}\n", 14,
         "listeners.web.service", "got nothing", "add this key"),
        (MINIMAL + "  pad: {directory: keys}\n", 14, "key_sources.pad.type",
         "expected one of etsi-qkd-014, skip, file, got nothing", "add this key"),
        (MINIMAL + "  pad: {type: fil, directory: keys}\n", 14, "key_sources.pad.type",
         "got 'fil'", "did you mean 'file'?"),
        (MINIMAL + "  pad: 5\n", 14, "key_sources.pad", "expected a section with a type", None),
        (MINIMAL + "  pad: {type: file, directory: keys, url: x}\n", 14, "key_sources.pad.url",
         "known key", "directory"),
        # Names.
        (changed("key_source: kme-a", "key_source: kmea"), 6, "peers.gw-b.key_source",
         "expected a name from key_sources, got 'kmea'", "did you mean 'kme-a'?"),
        (MINIMAL + "listeners: {w: {listen: '127.0.0.1:1', peer: x, service: w}}\n", 14,
         "listeners.w.peer", "expected a name from peers, got 'x'", "known names: gw-b"),
        (MINIMAL + "services: {w: {connect: 'h:1', peers: [gw-b, gw-x]}}\n", 14,
         "services.w.peers.1", "got 'gw-x'", "did you mean 'gw-b'?"),
        (changed("gw-b:", "gw-a:"), 4, "peers.gw-a", "got this node's own", None),
        (changed("  gw-b:", "  a b:"), 4, "peers.a b", "expected a name", None),
        # Values that do not fit each other.
        (changed(PEER, ""), 4, "peers.gw-b.key_source", "with policy prefer", "policy: off"),
        (changed(PEER, PEER + "    epoch_timeout_s: 5\n"), 7, "peers.gw-b.epoch_timeout_s",
         "expected more than kme_timeout_s (5), got 5", None),
        (changed(PEER, PEER + "    policy: require\n    max_without_qkd_s: 60\n"), 8,
         "peers.gw-b.max_without_qkd_s", "more than rekey.interval_s (60)", None),
        (changed(PEER, PEER + "    rekey: {interval_s: 700}\n"), 7, "peers.gw-b.rekey.max_age_s",
         "expected at least interval_s (700), got 600", None),
        (changed("    address: 127.0.0.1:7444\n", ""), 4, "peers.gw-b.address",
         "no tunnel.listen", "add address here"),
        (MINIMAL + "tunnel: {ping_interval_s: 45}\n", 14, "tunnel.peer_timeout_s",
         "more than ping_interval_s (45)", None),
        (MINIMAL + "tunnel: {max_stream_window_bytes: 64MiB}\n", 14,
         "tunnel.max_session_window_bytes", "more than max_stream_window_bytes", "slow stream"),
        (MINIMAL + "listeners: {w: {listen: '0.0.0.0:1', peer: gw-b, service: w}}\n", 14,
         "listeners.w.listen", "loopback", "unsafe_allow_remote_plaintext: true"),
        (MINIMAL + "listeners: {w: {listen: '127.0.0.1:1', peer: gw-b, service: w, tls: "
         "{certificate: a.pem, private_key: a.key, client_auth: required}}}\n", 14,
         "listeners.w.tls.client_ca", "with client_auth required", None),
        (MINIMAL + "listeners: {w: {listen: '127.0.0.1:1', peer: gw-b, service: w, tls: "
         "{certificate: a.pem, private_key: a.key, client_ca: ca.pem}}}\n", 14,
         "listeners.w.tls.client_auth", "with a client_ca, got none", None),
        (MINIMAL + "services: {w: {connect: 'h:1', tls: {ca: ca.pem, certificate: a.pem}}}\n", 14,
         "services.w.tls.private_key", "beside certificate", None),
        (MINIMAL + "services: {w: {connect: 'h:1', tls: {ca: ca.pem, private_key: a.key}}}\n", 14,
         "services.w.tls.certificate", "beside private_key", None),
        (MINIMAL + "services: {w: {connect: 'unix:/x', tls: {ca: ca.pem}}}\n", 14,
         "services.w.tls.server_name", "with a unix socket", None),
        (MINIMAL + "services: {w: {connect: 'h:1', policy: off}}\n", 14, "services.w.policy",
         "expected one of prefer, require, got 'off'", "leave this key out"),
        (MINIMAL + "listeners: {w: {listen: '127.0.0.1:1', peer: gw-b, service: w, "
         "policy: reqire}}\n", 14, "listeners.w.policy", "got 'reqire'", "require"),
        (MINIMAL + "services: {w: {connect: 'h:1', max_without_qkd_s: 9}}\n", 14,
         "services.w.max_without_qkd_s", "policy: require beside it, got no policy", "the peer's"),
        (MINIMAL + "listeners: {w: {listen: '127.0.0.1:1', peer: gw-b, service: w, "
         "policy: prefer, max_without_qkd_s: 9}}\n", 14, "listeners.w.max_without_qkd_s",
         "policy: require beside it, got prefer", "add policy: require here"),
        (changed(PEER, "    policy: off\n") + "listeners: {w: {listen: '127.0.0.1:1', peer: gw-b, "
         "service: w, policy: require}}\n", 14, "listeners.w.policy",
         "gw-b with no key_source", "give peers.gw-b a key_source"),
        (changed(PEER, PEER + "    policy: off\n") + "services: {w: {connect: 'h:1', "
         "peers: [gw-b], policy: require}}\n", 15, "services.w.policy",
         "gw-b with policy off", None),
        (changed(PEER, PEER + "    policy: off\n") + "services: {w: {connect: 'h:1', "
         "policy: require}}\n", 15, "services.w.policy", "gw-b with policy off", None),
        (MINIMAL + "tunnel: {listen: '127.0.0.1:1'}\nlisteners: {w: {listen: '127.0.0.1:1', "
         "peer: gw-b, service: w}}\n", 15, "listeners.w.listen", "got that of tunnel.listen", None),
        (changed("key_sources:", "  gw-c: {address: 'h:1', key_source: kme-a, "
         "peer_sae_id: gw-b}\nkey_sources:"), 7, "peers.gw-c.peer_sae_id",
         "than that of peer gw-b", None),
    ],
)  # fmt: skip
def test_one_fault_gives_one_error(room, text, line, key, message, hint):
    if message is None:
        load(room, text)
        return
    errors = faults(room, text)
    error = errors[0]
    assert [str(other) for other in errors] == [str(error)]
    assert (error.line or 0, error.key) == (line, key)
    assert message in error.message
    assert error.file == room / "config.yaml"
    if hint is not None:
        assert hint in error.hint
    for secret in (PSK, "hunter2"):
        assert secret not in str(error)
        assert secret not in (error.hint or "")


def test_a_psk_of_zeros_is_no_key(room):
    (room / "zeros").write_text("0" * 64)
    (error,) = faults(room, changed(PEER, PEER + "    psk_file: zeros\n"))
    assert error.key == "peers.gw-b.psk_file"
    assert "got only zeros, which is the same as no key" in error.message


def test_all_faults_come_at_once_in_the_order_of_the_file(room):
    errors = faults(
        room,
        """\
node: {name: gw-a, kem_provider: openssll}
identity: {certificate: a.pem, private_key: a.key, ca: no.pem}
peers:
  gw-b: {address: nowhere, policy: of}
  gw-c: {key_source: kme-x, tunnels: 0}
listners: {}
listeners:
  w: {listen: 0.0.0.0:1, peer: gw-z, service: w}
""",
    )
    assert [(error.line, error.key) for error in errors] == [
        (1, "node.kem_provider"),
        (2, "identity.ca"),
        (4, "peers.gw-b.address"),
        (4, "peers.gw-b.policy"),
        (5, "peers.gw-c.tunnels"),
        (5, "peers.gw-c.key_source"),
        (6, "listners"),
        (8, "listeners.w.listen"),
        (8, "listeners.w.peer"),
    ]


def test_an_error_of_many_is_itself_the_first(room):
    with pytest.raises(ConfigError, match="and 1 more") as caught:
        load(room, MINIMAL + "a: 1\nb: 2\n")
    assert caught.value.key == "a"
    assert caught.value.line == 14


def test_the_number_of_errors_is_bounded(room):
    errors = faults(room, MINIMAL + "".join(f"k{n}: 1\n" for n in range(3 * MAX_ERRORS)))
    assert len(errors) == MAX_ERRORS


def test_an_unreadable_tunnel_section_does_not_blame_the_peers(room):
    text = MINIMAL.replace("    address: 127.0.0.1:7444\n", "") + "tunnel: {listen: nowhere}\n"
    assert [error.key for error in faults(room, text)] == ["tunnel.listen"]


def test_a_file_no_one_may_read_is_an_error(room, monkeypatch):
    # Root may read everything, so the answer of the system is faked.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "ca.pem")
    errors = faults(room, MINIMAL)
    assert {error.key for error in errors} == {"identity.ca", "key_sources.kme-a.ca"}
    assert "may not read" in errors[0].message


def test_unsafe_listener_and_free_ports(room):
    listener = "listen: '0.0.0.0:0', peer: gw-b, service: w, unsafe_allow_remote_plaintext: true"
    config = load(room, MINIMAL + f"listeners: {{v: {{{listener}}}, w: {{{listener}}}}}\n")
    assert config.listeners["v"] == ListenerConfig(
        name="v",
        listen=TcpAddress("0.0.0.0", 0),
        peer="gw-b",
        service="w",
        unsafe_allow_remote_plaintext=True,
    )


def test_a_listener_and_a_service_may_require_more_than_their_peer(room):
    config = load(
        room,
        MINIMAL
        + """\
listeners:
  pay: {listen: '127.0.0.1:1', peer: gw-b, service: pay, policy: require, max_without_qkd_s: 20}
services:
  pay: {connect: 'h:1', policy: require}
  watch: {connect: 'h:2', peers: [gw-b], policy: prefer}
""",
    )
    listener, services = config.listeners["pay"], config.services
    assert (listener.policy, listener.max_without_qkd_s) == (Policy.REQUIRE, 20.0)
    assert (services["pay"].policy, services["pay"].max_without_qkd_s) == (Policy.REQUIRE, None)
    assert services["watch"].policy is Policy.PREFER


def test_a_service_for_every_peer_may_require_keys_that_only_some_can_get(room):
    text = changed("key_sources:", "  gw-c: {address: 'h:1', policy: off}\nkey_sources:")
    text += "services: {pay: {connect: 'h:1', policy: require}}\n"
    assert load(room, text).services["pay"].policy is Policy.REQUIRE


def test_service_defaults(room):
    config = load(room, MINIMAL + "services: {w: {connect: '10.0.0.1:80'}}\n")
    assert config.services["w"] == ServiceConfig(name="w", connect=TcpAddress("10.0.0.1", 80))


def test_kme_sim_file(room):
    config = load(room, SIM + "log: {level: error}\n", load_kme_sim_config)
    assert config.path == room / "config.yaml"
    assert set(config.kmes) == {"kme-a", "kme-b"}
    assert config.kmes["kme-b"].listen == TcpAddress("127.0.0.1", 8442)
    assert config.saes == {"gw-a": "kme-a", "gw-b": "kme-b"}
    assert config.link == LinkConfig()
    assert config.control is None
    assert config.log.level is LogLevel.ERROR


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (SIM.replace("    kme-b", "    kme-c"), "kme_sim.saes.gw-b", "from kme_sim.kmes"),
        (SIM.replace("8442", "8441"), "kme_sim.kmes.kme-b.listen", "of kme_sim.kmes.kme-a.listen"),
        ("\n".join(SIM.split("\n")[:3] + SIM.split("\n")[4:]).replace("gw-b: kme-b", "x: kme-a"),
         "kme_sim.kmes", "expected 2 to 16 entries"),
        (SIM.replace("  saes:", SIM.split("\n")[3].replace("b: {", "c: {").replace("8442", "1")
                     + "\n  saes:"),
         "kme_sim.kmes", "expected exactly 2 entries of the form '<kme>: ...', got 3"),
        (SIM + "  control: {listen: '0.0.0.0:1'}\n", "kme_sim.control.listen", "a loopback"),
        (SIM + "  control: {listen: '127.0.0.1:8441'}\n", "kme_sim.control.listen", "that of"),
        (SIM + "  link: {initial_key_count: 99999}\n", "kme_sim.link.initial_key_count",
         "expected at most max_key_count (10000), got 99999"),
        (SIM + "  link: {key_size_bits: 2048}\n", "kme_sim.link.key_size_bits", "at most max_key"),
        (SIM + "  link: {min_key_size_bits: 512}\n", "kme_sim.link.min_key_size_bits", "at most"),
        (SIM + "  link: {qber: 0.6}\n", "kme_sim.link.qber", "from 0 to 0.5"),
        (SIM + "peers: {}\n", "peers", "expected a known key"),
    ],
)  # fmt: skip
def test_kme_sim_faults(room, text, key, message):
    (error,) = faults(room, text, load_kme_sim_config)
    assert error.key == key
    assert message in error.message


def test_either_kind_of_file(room):
    assert isinstance(load(room, SIM, load_any_config), KmeSimConfig)
    assert isinstance(load(room, MINIMAL, load_any_config), GatewayConfig)
    assert faults(room, "- x\n", load_any_config)


def test_psk_is_read_whole_and_never_shown(room):
    assert load_psk(room / "psk") == bytearray.fromhex(PSK)
    for text in ("", PSK[:-1], PSK + "0", "g" + PSK[1:], PSK + " " + PSK, PSK + " " * 300 + PSK):
        (room / "psk").write_text(text)
        with pytest.raises(ConfigError, match="64 hexadecimal digits") as caught:
            load_psk(room / "psk")
        assert PSK[:16] not in str(caught.value)
        assert caught.value.__cause__ is None


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, len(MINIMAL)),
        st.integers(0, 4),
        st.text("abc019:{}[]-&*!'\"\n \t#.~/", max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@given(MUTATIONS)
def test_a_damaged_file_is_a_configuration_or_a_config_error(tmp_path_factory, mutations):
    room = tmp_path_factory.getbasetemp()
    for name in FILES:
        (room / name).touch()
    text = MINIMAL
    for position, length, new in mutations:
        text = text[:position] + new + text[position + length :]
    path = room / "damaged.yaml"
    path.write_text(text)
    found: list[ConfigError] = []
    try:
        load_any_config(path)
    except ConfigError as error:
        found += getattr(error, "errors", (error,))
    assert all(str(fault).isprintable() for fault in found)


def workers(written):
    return MINIMAL.replace("{name: gw-a}", f"{{name: gw-a, workers: {written}}}")


@pytest.mark.parametrize(("written", "read"), [("1", 1), ("auto", 0), ("128", 128)])
def test_workers_are_a_number_or_one_for_each_cpu(room, written, read):
    (room / "gateway.yaml").write_text(workers(written))
    assert load_gateway_config(room / "gateway.yaml").node.workers == read


@pytest.mark.parametrize("written", ["0", "129", "-1", "all", "'2'", "2.5"])
def test_other_numbers_of_workers_are_refused(room, written):
    (room / "gateway.yaml").write_text(workers(written))
    with pytest.raises(ConfigFileError, match="auto, or a whole number from 1 to 128") as caught:
        load_gateway_config(room / "gateway.yaml")
    assert caught.value.key == "node.workers"
