"""Several key sources of one peer: what is read, and what does not fit."""

import pytest

from qproxy.config.checks import MAX_KEYS_PER_EPOCH
from qproxy.config.model import Combine, PathConfig
from qproxy.config.reader import ConfigFileError, load_gateway_config
from qproxy.errors import ConfigError
from qproxy.runtime.build import bound_sae_ids, build_settings
from qproxy.sources.file import make_key_directories
from qproxy.tunnel.constants import MAX_KEYS_PER_OFFER

FILES = "ca: ca.pem, certificate: a.pem, private_key: a.key"
KME = "{{type: etsi-qkd-014, url: 'https://127.0.0.1:{port}', " + FILES + "}}"
TEXT = """\
node: {{name: gw-a}}
identity: {{certificate: a.pem, private_key: a.key, ca: ca.pem}}
peers:
  gw-b: {{address: '127.0.0.1:7444', {peer}}}
key_sources:
  kme-n: {north}
  kme-s: {south}
  kp: {{type: skip, url: 'https://127.0.0.1:8451', {files}}}
"""
TWO = "key_sources: {north: {source: kme-n}, south: {source: kme-s}}"


@pytest.fixture
def load(tmp_path):
    for name in ("a.pem", "a.key", "ca.pem"):
        (tmp_path / name).write_text("")

    def load(peer, more=""):
        path = tmp_path / "config.yaml"
        text = TEXT.format(
            peer=peer, north=KME.format(port=8441), south=KME.format(port=8442), files=FILES
        )
        path.write_text(text + more)
        return load_gateway_config(path)

    return load


def test_each_path_has_its_source_and_the_peers_sae_ids(load):
    config = load(f"combine: all, combine_at_least: 2, {TWO}")
    peer = config.peers["gw-b"]
    assert peer.combine is Combine.ALL
    assert peer.combine_at_least == 2
    assert peer.paths == (
        PathConfig(name="north", source="kme-n", local_sae_id="gw-a", peer_sae_id="gw-b"),
        PathConfig(name="south", source="kme-s", local_sae_id="gw-a", peer_sae_id="gw-b"),
    )
    settings = build_settings(config, peer)
    assert settings.key_sources == ("etsi-qkd-014/north", "etsi-qkd-014/south")
    assert (settings.local_sae_id, settings.peer_sae_id) == ("gw-a", "gw-b")


def test_a_single_source_is_a_path_without_a_name(load):
    config = load("key_source: kp")
    peer = config.peers["gw-b"]
    assert peer.paths == (
        PathConfig(name="", source="kp", local_sae_id="gw-a", peer_sae_id="gw-b"),
    )
    assert build_settings(config, peer).key_sources == ("skip",)


def test_sae_ids_of_paths_are_all_bound(load):
    south = "south: {source: kp, local_sae_id: 'K;P=1', peer_sae_id: KP2}"
    peer = load(f"key_sources: {{north: {{source: kme-n}}, {south}}}").peers["gw-b"]
    assert [path.local_sae_id for path in peer.paths] == ["gw-a", "K;P=1"]
    assert bound_sae_ids(peer) == ("north=gw-a;south=K%3BP%3D1", "north=gw-b;south=KP2")


def test_sae_ids_that_do_not_fit_an_offer_are_refused(load):
    paths = ", ".join(
        f"{name}: {{source: {source}, local_sae_id: {'x' * 120}}}"
        for name, source in (("a", "kme-n"), ("b", "kme-s"), ("c", "kp"))
    )
    with pytest.raises(ConfigError, match="longer than 255"):
        bound_sae_ids(load(f"key_sources: {{{paths}}}").peers["gw-b"])


@pytest.mark.parametrize(
    ("peer", "key", "says"),
    [
        (f"key_source: kme-n, {TWO}", "peers.gw-b.key_sources", "expected one of"),
        (
            "key_sources: {north: {source: kme-n}, south: {source: kme-n}}",
            "peers.gw-b.key_sources.south.source",
            "'kme-n' twice",
        ),
        ("key_sources: {north: {source: kme-n}}", "peers.gw-b.key_sources", "2 to 4 entries"),
        (
            "key_sources: {north: {source: kme-n}, south: {source: nobody}}",
            "peers.gw-b.key_sources.south.source",
            "nobody",
        ),
        (f"combine_at_least: 3, {TWO}", "peers.gw-b.combine_at_least", "at most"),
        ("combine_at_least: 2, key_source: kme-n", "peers.gw-b.combine_at_least", "at most"),
        (f"qkd_keys_per_epoch: 5, {TWO}", "peers.gw-b.qkd_keys_per_epoch", "at most 4"),
        (f"combine: any, {TWO}", "peers.gw-b.combine", "all"),
        (
            "key_sources: {a-path-with-a-long-name: {source: kme-n}, south: {source: kme-s}}",
            "peers.gw-b.key_sources.a-path-with-a-long-name",
            "1 to 16",
        ),
        ("policy: require", "peers.gw-b.key_source", "name of a key source"),
    ],
)
def test_what_does_not_fit_is_told(load, peer, key, says):
    with pytest.raises(ConfigFileError) as caught:
        load(peer)
    found = [error for error in caught.value.errors if error.key == key]
    assert found, [str(error) for error in caught.value.errors]
    assert says in found[0].message


def test_a_pad_is_shared_by_two_gateways_and_no_more(load, tmp_path):
    make_key_directories(tmp_path / "keys", tmp_path / "other", number=1)
    pads = "  pad: {type: file, directory: keys}\n  pad2: {type: file, directory: keys}\n"
    with pytest.raises(ConfigFileError) as caught:
        load("key_source: pad}\n  gw-c: {address: '127.0.0.1:7445', key_source: pad", pads)
    keys = {error.key for error in caught.value.errors}
    assert keys == {"peers.gw-c.key_source", "key_sources.pad2.directory"}


def test_an_epoch_may_have_as_many_keys_as_an_offer_has_room_for():
    assert MAX_KEYS_PER_EPOCH == MAX_KEYS_PER_OFFER
