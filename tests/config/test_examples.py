"""What users copy and read: every example loads, and docs, reference and model agree."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from qproxy.cli.main import main
from qproxy.config.model import GatewayConfig, KmeSimConfig
from qproxy.config.reader import load_any_config, load_gateway_config, load_kme_sim_config
from qproxy.config.scalars import format_size
from qproxy.config.schema import GATEWAY, KME_SIM, REQUIRED, list_keys
from qproxy.pki import KeyAlgorithm, init_pki
from qproxy.sources.file import make_key_directories

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
DERIVED = {
    "peers.<peer>.local_sae_id": "`node.name`",
    "peers.<peer>.peer_sae_id": "the peer's name",
}

ALL_KEYS = {
    info.path: info
    for info in (*list_keys(GATEWAY), *(i for i in list_keys(KME_SIM) if i.path[:4] == "kme_"))
}


@pytest.fixture(scope="module", params=list(KeyAlgorithm))
def configs(request, tmp_path_factory):
    """A copy of configs/ after the commands at the top of its files."""
    room = tmp_path_factory.mktemp("configs")
    for name in EXAMPLES:
        shutil.copy(ROOT / "configs" / name, room)
    init_pki(room / "pki", algorithm=request.param)
    for name in ("gw-b.psk", "gw-a-gw-b.psk"):
        (room / "pki" / name).touch(mode=0o600)
        (room / "pki" / name).write_text("5a" * 32 + "\n")
    make_key_directories(room / "keys", room / "keys-b", number=2)
    return room


def test_all_examples_are_here():
    assert EXAMPLES == [
        "kme-network.yaml",
        "kme-sim.yaml",
        "minimal-a.yaml",
        "minimal-b.yaml",
        "production-a.yaml",
        "production-b.yaml",
        "reference.yaml",
        "two-paths-a.yaml",
        "two-paths-b.yaml",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_passes_check(configs, name, capsys):
    assert main(["check", str(configs / name)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith("ok, ")
    assert "error" not in output.err


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_says_which_commands_come_first(name):
    text = (ROOT / "configs" / name).read_text()
    comment = text[: text.index("\n\n", 200)]
    assert "qproxy pki init configs/pki" in comment or "at the top of" in comment


@pytest.mark.parametrize("pair", ["minimal", "production", "two-paths"])
def test_the_two_halves_of_a_pair_fit(configs, pair):
    a = load_gateway_config(configs / f"{pair}-a.yaml")
    b = load_gateway_config(configs / f"{pair}-b.yaml")
    to_b, to_a = a.peers[b.node.name], b.peers[a.node.name]
    assert to_b.address == b.tunnel.listen
    assert to_a.address is None
    assert (to_b.local_sae_id, to_b.peer_sae_id) == (to_a.peer_sae_id, to_a.local_sae_id)
    assert list(to_b.key_sources) == list(to_a.key_sources)
    for field in (
        "policy",
        "combine_at_least",
        "kem",
        "aead",
        "psk_file",
        "qkd_key_size_bits",
        "rekey",
    ):
        assert getattr(to_b, field) == getattr(to_a, field)
    assert {listener.service for listener in a.listeners.values()} == set(b.services)


def test_the_simulated_kmes_fit_the_minimal_pair(configs):
    sim = load_kme_sim_config(configs / "kme-sim.yaml")
    for half in "ab":
        gateway = load_gateway_config(configs / f"minimal-{half}.yaml")
        (source,) = gateway.key_sources.values()
        kme = sim.kmes[sim.saes[gateway.node.name]]
        assert source.url == f"https://{kme.listen}"


def keys_of(text):
    """Dotted keys of a YAML file, chosen names as placeholders, sections left out."""
    placeholders = {
        "peers": "<peer>",
        "key_sources": "<key source>",
        "peers.<peer>.key_sources": "<path>",
        "key_sources.<key source>.kmes": "<kme>",
        "listeners": "<listener>",
        "services": "<service>",
        "kme_sim.kmes": "<kme>",
        "kme_sim.saes": "<sae>",
        "kme_sim.network.spans": "<span>",
        "kme_sim.network.routes": "<route>",
        "kme_sim.network.optics": "<optics>",
    }
    found = {}

    def walk(node, path):
        for key, value in node.value:
            name = placeholders.get(path, key.value)
            below = f"{path}.{name}" if path else name
            if isinstance(value, yaml.MappingNode):
                walk(value, below)
            else:
                found.setdefault(below, []).append((value.value, key.start_mark.line))

    walk(yaml.compose(text, yaml.SafeLoader), "")
    return found


# A simulator has either a link or a network, so it takes two files to show every key.
REFERENCES = [(["reference.yaml"], GATEWAY), (["kme-sim.yaml", "kme-network.yaml"], KME_SIM)]


@pytest.mark.parametrize(("names", "section"), REFERENCES)
def test_the_references_have_every_key_and_no_other(names, section):
    keys = {key for name in names for key in keys_of((ROOT / "configs" / name).read_text())}
    # `tls: null` stands for a section that is left out.
    keys -= {"listeners.<listener>.tls", "services.<service>.tls"}
    assert keys == {info.path for info in list_keys(section)}


@pytest.mark.parametrize(
    ("name", "section"), [(name, section) for names, section in REFERENCES for name in names]
)
def test_the_references_show_defaults_unless_they_say_example(name, section):
    text = (ROOT / "configs" / name).read_text()
    lines = text.splitlines()
    keys = keys_of(text)
    compared = 0
    for info in list_keys(section):
        for value, line in keys.get(info.path, ()):
            leaf = info.path.rpartition(".")[2]
            if "# example" in lines[line] or info.path in DERIVED or leaf in ("<sae>", "type"):
                continue
            assert info.default is not REQUIRED, f"{info.path} has no default: say example"
            assert value in written(info), info.path
            compared += 1
    assert compared >= 9


def written(info):
    """How a default may be written in YAML."""
    default = info.default
    if default is None:
        return {"null"}
    if isinstance(default, bool):
        return {str(default).lower()}
    if default == ():
        return {"none"}
    if isinstance(default, float):
        return {f"{default:g}", str(int(default)), f"{default:.9f}".rstrip("0")}
    if isinstance(default, int):
        return {str(default), format_size(default)}
    return {str(default)}


def documented():
    rows = {}
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        cells = re.split(r" (?<!\\)\| ", line.removeprefix("| ").removesuffix(" |"))
        if line.startswith("| `") and len(cells) == 4:
            key = cells[0].strip("`")
            assert key not in rows, f"{key} stands twice"
            rows[key] = cells[1:]
    return rows


def test_the_docs_have_every_key_and_no_other():
    assert set(documented()) == set(ALL_KEYS)


@pytest.mark.parametrize("key", ALL_KEYS)
def test_the_docs_give_range_default_and_reason(key):
    expected, default, why = documented()[key]
    info = ALL_KEYS[key]
    assert expected == info.expected
    if key in DERIVED:
        assert default == DERIVED[key]
    elif info.default is REQUIRED:
        assert default == "required"
    else:
        assert default.strip("`") in written(info)
    assert why.endswith(".")
    assert len(why) > 10


def test_both_kinds_of_example_are_loaded_as_what_they_are(configs):
    kinds = {name: type(load_any_config(configs / name)) for name in EXAMPLES}
    assert {kinds.pop("kme-sim.yaml"), kinds.pop("kme-network.yaml")} == {KmeSimConfig}
    assert set(kinds.values()) == {GatewayConfig}
