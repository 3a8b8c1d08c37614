"""Where the demonstration works, and how it talks."""

import io
import stat

import pytest

from qproxy.config.reader import load_gateway_config, load_kme_sim_config
from qproxy.demo.narrator import Narrator, Tone, wants_colour
from qproxy.demo.settings import DemoError
from qproxy.demo.workdir import (
    make_pki,
    open_workdir,
    write_far_gateway,
    write_kme_sim,
    write_near_gateway,
)
from qproxy.modes import Policy


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_temporary_directory_is_private_and_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_workdir(None) as directory:
        assert directory.parent == tmp_path
        assert mode_of(directory) == 0o700
        (directory / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_named_is_private_and_stays(tmp_path):
    with open_workdir(tmp_path / "a" / "b") as directory:
        assert mode_of(directory) == 0o700
        (directory / "file").write_text("x")
    assert (tmp_path / "a" / "b" / "file").exists()


def test_a_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DemoError, match="not empty"), open_workdir(tmp_path):
        pass
    with pytest.raises(DemoError, match="cannot use"), open_workdir(tmp_path / "file" / "in"):
        pass


def test_the_configurations_it_writes_are_good(tmp_path):
    make_pki(tmp_path)
    sim = load_kme_sim_config(write_kme_sim(tmp_path))
    far = load_gateway_config(
        write_far_gateway(tmp_path, kme="127.0.0.1:8442", service="127.0.0.1:8000")
    )
    near = load_gateway_config(
        write_near_gateway(tmp_path, kme="127.0.0.1:8441", peer="127.0.0.1:7444")
    )
    assert set(sim.saes) == {far.node.name, near.node.name}
    for config in (far, near):
        (peer,) = config.peers.values()
        assert (peer.policy, peer.rekey.interval_s) == (Policy.PREFER, 1.0)


def test_others_may_set_the_link_the_peer_and_whole_sections(tmp_path):
    make_pki(tmp_path)
    sim = load_kme_sim_config(write_kme_sim(tmp_path, link={"key_rate_bps": 256}))
    assert sim.link.key_rate_bps == 256
    peer = {"tunnels": 3}
    far = load_gateway_config(
        write_far_gateway(
            tmp_path, kme="127.0.0.1:8442", service="127.0.0.1:8000", peer_settings=peer
        )
    )
    near = load_gateway_config(
        write_near_gateway(
            tmp_path,
            kme="127.0.0.1:8441",
            peer="127.0.0.1:7444",
            peer_settings=peer,
            sections={"admin": {"listen": "127.0.0.1:0"}},
        )
    )
    assert [each.tunnels for each in (*far.peers.values(), *near.peers.values())] == [3, 3]
    assert [each.rekey.interval_s for each in far.peers.values()] == [60.0]
    assert near.admin.listen is not None


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_for_terminals_whose_user_did_not_say_no(stream, environment, wanted):
    assert wants_colour(stream, environment) is wanted


def test_lines_hold_the_time_and_nothing_that_speaks_to_a_terminal():
    plain, coloured = io.StringIO(), io.StringIO()
    Narrator(plain, lambda: 1.25, colour=False).say("gw-a", "a\x1b[2Jb", Tone.GOOD)
    Narrator(coloured, lambda: 1.25, colour=True).say("gw-a", "text", Tone.GOOD)
    assert plain.getvalue() == "   1.2 s  gw-a     a\\x1b[2Jb\n"
    assert coloured.getvalue() == "\x1b[32m   1.2 s  gw-a     text\x1b[0m\n"
