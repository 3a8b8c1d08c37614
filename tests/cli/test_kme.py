"""`qproxy kme check`: which ends it finds, what it prints, how it ends."""

import json
import subprocess
import sys

import pytest

from qproxy.cli.kme_options import DEFAULT_MAX_KEYS
from qproxy.cli.main import main
from qproxy.config.reader import load_gateway_config
from qproxy.errors import ConfigError
from qproxy.kme_check import plan
from qproxy.kme_check.ends import choose_ends
from qproxy.pki import init_pki

GATEWAY = """\
node: {{name: {name}}}
identity: {{certificate: pki/{name}.pem, private_key: pki/{name}.key, ca: pki/ca.pem}}
peers:
  {peer}: {{address: '127.0.0.1:7444', key_source: {kme}}}
key_sources:
  {kme}: {{type: etsi-qkd-014, url: 'https://{address}', ca: pki/ca.pem,
    certificate: pki/{name}.pem, private_key: pki/{name}.key}}
"""
SIM = """\
kme_sim:
  kmes:
    kme-a: {listen: '127.0.0.1:0', certificate: pki/kme-a.pem, private_key: pki/kme-a.key, ca: pki/ca.pem}
    kme-b: {listen: '127.0.0.1:0', certificate: pki/kme-b.pem, private_key: pki/kme-b.key, ca: pki/ca.pem}
  saes: {gw-a: kme-a, gw-b: kme-b}
log: {format: json}
"""  # noqa: E501


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A directory with certificates, and simulated KMEs that run beside the tests."""
    room = tmp_path_factory.mktemp("kme")
    init_pki(room / "pki")
    (room / "sim.yaml").write_text(SIM)
    command = [sys.executable, "-m", "qproxy", "kme-sim", str(room / "sim.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "kme_sim_ready":
                break
        write(room, "a.yaml", name="gw-a", peer="gw-b", kme="kme-a", address=event["kmes"]["kme-a"])
        write(room, "b.yaml", name="gw-b", peer="gw-a", kme="kme-b", address=event["kmes"]["kme-b"])
        yield room
        process.terminate()
        process.communicate()


def write(room, file, **values):
    (room / file).write_text(GATEWAY.format(**values))
    return room / file


def run(capsys, room, *arguments):
    code = main(["kme", "check", *(str(room / a) if "yaml" in a else a for a in arguments)])
    return code, capsys.readouterr()


def test_both_ends_are_checked_and_the_number_of_keys_is_said_first(room, capsys):
    code, said = run(capsys, room, "a.yaml", "b.yaml")
    lines = said.out.splitlines()
    assert code == 0
    assert lines[1].startswith("  kme-a (SAE gw-a with gw-b): https://127.0.0.1:")
    assert lines[3].startswith("Takes 16 keys; up to 290 where a KME gives what it should refuse")
    assert any("both ends get the same keys under the same IDs [5.4]: 8 of 8" in x for x in lines)
    assert lines[-2].endswith("16 keys used")
    assert lines[-1] == "conforms in everything that was tried"
    assert said.err == ""


def test_json_is_all_of_standard_output(room, capsys):
    code, said = run(capsys, room, "a.yaml", "b.yaml", "--json", "--keys", "20")
    document = json.loads(said.out)
    assert code == 0
    assert document["format"] == 1
    assert document["conforms"] is document["usable"] is True
    assert document["keys"]["at_worst"] <= 20
    assert {end["local_sae_id"] for end in document["ends"]} == {"gw-a", "gw-b"}
    first = document["findings"][0]
    assert (first["check"], first["clause"], first["verdict"]) == ("tls-version", "5.1", "conforms")
    assert "Takes " in said.err


def test_one_end_says_what_was_skipped(room, capsys):
    code, said = run(capsys, room, "b.yaml")
    assert code == 0
    assert "One end only: what needs the other is skipped." in said.out
    assert "skipped   both ends get the same keys" in said.out
    assert "of them fetched by nobody" in said.out


def test_two_sites_check_one_after_the_other(room, capsys, tmp_path):
    file = tmp_path / "keys.json"
    code, said = run(capsys, room, "a.yaml", "--hand-over", str(file))
    assert code == 0
    assert said.out.splitlines()[-1].endswith("--take-over keys.json")
    assert file.stat().st_mode & 0o077 == 0
    code, said = run(capsys, room, "b.yaml", "--take-over", str(file), "--json")
    findings = {each["check"]: each for each in json.loads(said.out)["findings"]}
    assert code == 0
    assert findings["dec-same-keys"]["verdict"] == "conforms"
    assert findings["dec-same-keys"]["text"] == "8 of 8 keys compared"
    assert {name for name, each in findings.items() if each["verdict"] == "skipped"} == {
        "status-mirrored",
        "exhaustion",
    }
    code, said = run(capsys, room, "b.yaml", "--take-over", str(file), "--json")
    findings = {each["check"]: each for each in json.loads(said.out)["findings"]}
    assert (code, findings["dec-same-keys"]["qproxy"]["reason"]) == (1, "key_not_found")


def test_keys_of_another_link_are_not_taken_over(room, capsys, tmp_path):
    file = tmp_path / "keys.json"
    run(capsys, room, "a.yaml", "--hand-over", str(file))
    code, said = run(capsys, room, "a.yaml", "--take-over", str(file))
    assert code == 78
    assert "expected keys of gw-b for gw-a" in said.err


def test_a_file_is_never_overwritten_and_not_left_behind(room, capsys, tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    file.write_text("mine")
    code, said = run(capsys, room, "a.yaml", "--hand-over", str(file))
    assert (code, file.read_text()) == (78, "mine")
    assert "File exists" in said.err
    monkeypatch.setattr("qproxy.cli.kme.trio.run", lambda _main: 1 / 0)
    assert run(capsys, room, "a.yaml", "--hand-over", str(tmp_path / "new.json"))[0] == 1
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("option", ["--hand-over", "--take-over"])
def test_handing_over_is_for_one_end(room, capsys, tmp_path, option):
    code, said = run(capsys, room, "a.yaml", "b.yaml", option, str(tmp_path / "x.json"))
    assert code == 2
    assert "both ends are in reach" in said.err


def test_a_kme_that_refuses_us_is_1(room, capsys):
    text = (room / "a.yaml").read_text().replace("pki/gw-a.", "pki/server.")
    (room / "stranger.yaml").write_text(text.replace("name: gw-a", "name: localhost"))
    code, said = run(capsys, room, "stranger.yaml", "--keys", "0")
    assert code == 1
    assert "DEVIATES  GET status gives a status [5.2]" in said.out
    assert "qproxy: link down (kme_unauthorized)" in said.out
    assert said.out.splitlines()[-1] == "to be put right before use: status-answers"


def test_the_same_end_twice_is_one_end(room, capsys):
    code, said = run(capsys, room, "a.yaml", "a.yaml", "--keys", "0")
    assert code == 0
    assert "One end only" in said.out


@pytest.mark.parametrize("arguments", [["check"], ["check", "a", "--keys", "-1"], [],
                                       ["check", "a", "--keys", "9" * 9]])  # fmt: skip
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["kme", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_three_configurations_are_wrong_usage(room, capsys):
    code, said = run(capsys, room, "a.yaml", "b.yaml", "b.yaml")
    assert code == 2
    assert "expected one CONFIG, or two" in said.err


def test_the_default_number_of_keys_stands_in_one_place_and_a_half():
    assert DEFAULT_MAX_KEYS == plan.DEFAULT_MAX_KEYS


# --- which ends --------------------------------------------------------------------------------


def ends(room, *files, sources=()):
    return choose_ends([load_gateway_config(room / file) for file in files], sources)


def test_two_sources_called_alike_are_told_apart(room):
    write(room, "like-a.yaml", name="gw-a", peer="gw-b", kme="kme", address="127.0.0.1:1")
    write(room, "like-b.yaml", name="gw-b", peer="gw-a", kme="kme", address="127.0.0.1:2")
    assert [end.name for end in ends(room, "like-a.yaml", "like-b.yaml")] == [
        "kme@gw-a",
        "kme@gw-b",
    ]


def test_two_ends_of_two_links_are_refused(room):
    write(room, "c.yaml", name="gw-b", peer="gw-c", kme="kme-b", address="127.0.0.1:2")
    with pytest.raises(ConfigError, match="not the two ends of one link") as caught:
        ends(room, "a.yaml", "c.yaml")
    assert "local_sae_id" in caught.value.hint


def test_one_file_may_hold_both_ends(room):
    one = (room / "a.yaml").read_text()
    both = one.replace(
        "key_source: kme-a}",
        "key_source: kme-a}\n  lab: {address: '127.0.0.1:7445', key_source: kme-z, "
        "local_sae_id: gw-b, peer_sae_id: gw-a}",
    )
    source = "kme-z: {type: etsi-qkd-014, url: 'https://127.0.0.1:3', ca: pki/ca.pem,"
    both += f"  {source} certificate: pki/gw-b.pem, private_key: pki/gw-b.key}}\n"
    (room / "both.yaml").write_text(both)
    assert [end.name for end in ends(room, "both.yaml")] == ["kme-a", "kme-z"]
    assert [end.name for end in ends(room, "both.yaml", sources=["kme-z"])] == ["kme-z"]


def test_more_than_one_link_asks_for_the_source(room):
    text = (room / "a.yaml").read_text()
    more = text.replace(
        "key_source: kme-a}", "key_source: kme-a}\n  gw-c: {address: '127.0.0.1:7445', "
        "key_source: kme-a}",
    )  # fmt: skip
    (room / "more.yaml").write_text(more)
    with pytest.raises(ConfigError, match="expected one link") as caught:
        ends(room, "more.yaml")
    assert "--source" in caught.value.hint
    with pytest.raises(ConfigError, match="no key source 'kme-q'"):
        ends(room, "more.yaml", sources=["kme-q"])


def test_one_of_several_sources_towards_a_peer_has_its_own_sae_ids(room):
    text = (room / "a.yaml").read_text()
    head, _, tail = text.partition("  kme-a: {type")
    paths = "key_sources: {north: {source: kme-a}, south: {source: kme-q, local_sae_id: left}}}"
    head = head.replace("key_source: kme-a}", paths)
    (room / "paths.yaml").write_text(f"{head}  kme-a: {{type{tail}  kme-q: {{type{tail}")
    (north,) = ends(room, "paths.yaml", sources=["kme-a"])
    (south,) = ends(room, "paths.yaml", sources=["kme-q"])
    assert (north.local_sae_id, north.peer_sae_id) == ("gw-a", "gw-b")
    assert (south.local_sae_id, south.peer_sae_id) == ("left", "gw-b")
    with pytest.raises(ConfigError, match="expected one link"):
        ends(room, "paths.yaml")


def test_a_source_of_another_type_is_refused(room):
    text = (room / "a.yaml").read_text().partition("key_sources:")[0]
    (room / "pad").mkdir(exist_ok=True)
    (room / "pad.yaml").write_text(f"{text}key_sources:\n  kme-a: {{type: file, directory: pad}}\n")
    with pytest.raises(ConfigError, match="no peer uses a key source of type etsi-qkd-014"):
        ends(room, "pad.yaml")
    with pytest.raises(ConfigError, match="is not of type etsi-qkd-014"):
        ends(room, "pad.yaml", sources=["kme-a"])


def test_one_of_several_kmes_can_be_named(room):
    text = (room / "a.yaml").read_text()
    head, _, tail = text.partition("  kme-a: {type")
    url = tail.partition("url: '")[2].partition("'")[0]
    kmes = f"kmes: {{one: {{url: '{url}'}}, two: {{url: 'https://127.0.0.1:9'}}}}"
    (room / "several.yaml").write_text(
        f"{head}  kme-a: {{type{tail}".replace(f"url: '{url}'", kmes)
    )
    assert [end.kme.name for end in ends(room, "several.yaml")] == ["one"]
    (end,) = ends(room, "several.yaml", sources=["kme-a/two"])
    assert (end.name, end.kme.url) == ("kme-a/two", "https://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no KME 'three'") as caught:
        ends(room, "several.yaml", sources=["kme-a/three"])
    assert caught.value.hint == "expected one of one, two"
