"""The presets: each one does what was published of it, and its events show where they should.

Every scenario runs for minutes of a clock that the test moves: both SAEs draw and redeem keys
through the KMEs' API at the pace that was published, and compare them.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from qproxy.cli.main import main
from qproxy.config.reader import load_kme_sim_config
from qproxy.pki import init_pki
from qproxy.sim.network import KmeMode
from tests.sim.helpers import Trial

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted(path.stem for path in (ROOT / "configs" / "scenarios").glob("*.yaml"))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A copy of the scenarios with the PKI that they name."""
    room = tmp_path_factory.mktemp("configs")
    shutil.copytree(ROOT / "configs" / "scenarios", room / "scenarios")
    init_pki(room / "pki")
    return room / "scenarios"


@dataclass
class Moment:
    """What both SAEs have seen in one second."""

    at_s: float
    link: str
    qber: float | None
    rate_bps: float
    stored: int
    shared: int
    path: tuple[str, ...]


class Run:
    """A scenario, second by second."""

    def __init__(self, room, name):
        self.trial = Trial(load_kme_sim_config(room / f"{name}.yaml"))
        (self.route,) = self.trial.network.routes.values()
        self.moments = []

    def go_on(self, until_s, *, every_s, share=True):
        """Let the clock run, with a key each ``every_s`` seconds, from either side in turn."""
        while self.trial.now < until_s:
            self.trial.let_pass(1.0)
            shared = 0
            if share and self.trial.now % every_s == 0:
                ends = ("gw-a", "gw-b") if self.trial.now % (2 * every_s) else ("gw-b", "gw-a")
                shared = self.trial.share(*ends)
            status = self.trial.status()
            extension = status["status_extension"]
            assert extension["simulated"] is True
            self.moments.append(
                Moment(
                    self.trial.now,
                    extension["link"],
                    extension["qber"],
                    extension["key_rate_bps"],
                    status["stored_key_count"],
                    shared,
                    self.route.report(self.trial.now).path,
                )
            )

    def between(self, from_s, to_s):
        """Every second after one time, up to another."""
        return [moment for moment in self.moments if from_s < moment.at_s <= to_s]

    def links(self, from_s, to_s):
        return {moment.link for moment in self.between(from_s, to_s)}

    def shared(self, from_s, to_s):
        return sum(moment.shared for moment in self.between(from_s, to_s))

    def made_bps(self, from_s, to_s):
        """Secret key made between two times by the slowest span, from what was stored and used."""
        spans = self.trial.network.spans.values()
        assert not self.trial.now > to_s
        before = {s.config.name: s.report(from_s) for s in spans}
        self.go_on(to_s, every_s=1)
        rates = []
        for span in spans:
            was, now = before[span.config.name], span.report(to_s)
            made = now.stored_bits + now.used_bits - was.stored_bits - was.used_bits
            rates.append(made / (to_s - from_s))
        return min(rates)


def test_there_is_one_for_every_published_setting():
    assert SCENARIOS == [
        "backbone-2072km",
        "defence-50km",
        "link-70km",
        "metro-bank-46km",
        "metro-ring",
        "satellite-pass",
    ]


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_says_what_is_published_and_what_was_fitted_and_that_it_is_simulated(name):
    text = (ROOT / "configs" / "scenarios" / f"{name}.yaml").read_text()
    head = text[: text.index("kme_sim:")]
    for word in ("SIMULATED", "Published:", "Fitted:", "Assumed:", "Happens:", "protect nothing"):
        assert word in head
    assert f"qproxy kme-sim configs/scenarios/{name}.yaml" in head
    docs = (ROOT / "docs" / "simulation.md").read_text()
    assert f"configs/scenarios/{name}.yaml" in docs


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_passes_check(room, name, capsys):
    assert main(["check", str(room / f"{name}.yaml")]) == 0
    output = capsys.readouterr()
    assert "error" not in output.err
    assert "keys of a simulated link protect nothing" in output.err
    lines = output.out.splitlines()
    assert lines[0] == "pair of simulated KMEs in a network (ETSI GS QKD 014)"
    assert any(line.startswith("  route ") for line in lines)
    assert any(line.startswith("  timetable: ") for line in lines)


def test_metro_bank_46km(room):
    run = Run(room, "metro-bank-46km")
    assert run.made_bps(0.0, 60.0) == pytest.approx(7400, rel=0.01)
    run.go_on(240, every_s=1)
    assert 100 * run.moments[0].qber == pytest.approx(0.8, abs=0.005)
    assert run.links(0, 119) == {"up"}
    # Half of the pulses measured: about an eighth more errors, and no key.
    assert run.links(120, 179) == {"aborted"}
    assert {m.rate_bps for m in run.between(120, 179)} == {0.0}
    assert run.between(120, 179)[0].qber == pytest.approx(0.008 + 0.125, abs=0.005)
    # Keys come from the store meanwhile, and the store fills again.
    assert run.shared(0, 240) == 240
    assert run.moments[178].stored < run.moments[118].stored
    assert run.links(180, 240) == {"up"}
    assert run.moments[-1].stored > run.moments[178].stored


def test_link_70km(room):
    run = Run(room, "link-70km")
    assert run.made_bps(0.0, 60.0) == pytest.approx(66_000, rel=0.01)
    run.go_on(240, every_s=1)
    assert run.moments[0].qber == pytest.approx(0.01, abs=0.001)
    assert run.links(120, 179) == {"degraded"}
    drifted = run.between(120, 179)[0]
    assert drifted.qber == pytest.approx(0.05, abs=0.001)
    assert 0 < drifted.rate_bps < 66_000 / 2
    assert run.links(180, 240) == {"up"}
    assert run.shared(0, 240) == 240


def test_metro_ring(room):
    run = Run(room, "metro-ring")
    rates = [s.report(0.0).key_rate_bps for s in run.trial.network.spans.values()]
    assert all(2e6 <= rate <= 3e6 for rate in rates)
    run.go_on(240, every_s=1)
    east, west = run.route.paths
    assert {m.path for m in run.between(0, 59)} == {east}
    assert {m.path for m in run.between(60, 179)} == {west}
    assert {m.path for m in run.between(180, 240)} == {east}
    # Whoever only draws keys notices nothing at all.
    assert run.links(0, 240) == {"up"}
    assert run.shared(0, 240) == 240
    assert all(2e6 <= m.rate_bps <= 3e6 for m in run.moments)
    relays = run.trial.network.relays
    # As many around either side as there were seconds of it.
    assert (relays["east"].passed_on, relays["west"].passed_on) == (120, 120)


def test_backbone_2072km(room):
    run = Run(room, "backbone-2072km")
    network = run.trial.network
    assert sum(span.config.length_km for span in network.spans.values()) == pytest.approx(2072)
    assert (len(network.relays), len(network.spans)) == (32, 33)
    assert run.made_bps(0.0, 60.0) == pytest.approx(100_000, rel=0.01)
    run.go_on(119, every_s=1)
    # A new key every second, and every relay saw each of them.
    assert run.shared(0, 119) == 119
    assert {relay.passed_on for relay in network.relays.values()} == {119}
    taken = len(network.relays["relay-16"].copies)
    assert taken == 60  # those from the sixtieth second on: the event comes before the key
    assert all(not r.copies for name, r in network.relays.items() if name != "relay-16")
    assert run.links(0, 119) == {"up"}
    stored = run.moments[-1].stored
    run.go_on(120, every_s=1, share=False)
    assert network.modes["kme-b"] is KmeMode.KILLED
    assert run.moments[-1].stored == 0 < stored
    run.go_on(180, every_s=1)
    assert network.modes["kme-b"] is KmeMode.UP
    assert run.shared(120, 180) == 60
    # Each hop used up as much as the next one.
    assert {s.report(180.0).used_bits for s in network.spans.values()} == {179 * 256}


def test_satellite_pass(room):
    run = Run(room, "satellite-pass")
    down_a, down_b = run.trial.network.spans.values()
    run.go_on(60, every_s=10)
    assert run.links(0, 59) == {"out_of_sight"}
    run.go_on(600, every_s=10)
    # One station alone has key, so the two have none in common.
    assert down_a.stored_bits(600.0) / 300 == pytest.approx(1100, rel=0.02)
    assert run.shared(0, 600) == 0
    run.go_on(1200, every_s=10)
    assert run.shared(600, 1200) > 50
    made = down_b.stored_bits(1200.0) + down_b.report(1200.0).used_bits
    # Half a minute of the best was jammed away.
    assert 0.75 * 330_000 < made < 0.9 * 330_000
    assert run.trial.network.relays["satellite"].passed_on == run.shared(0, 1200)
    # Of the link that is in sight there is a QBER; the state is that of the worse one.
    assert run.links(600, 779) == {"out_of_sight"}
    assert run.links(779, 809) == {"jammed"}
    assert 0.01 < run.between(600, 700)[-1].qber < 0.02
    # No more key comes until the next pass, an hour and a half after the first.
    left = run.moments[-1].stored
    run.go_on(1500, every_s=10, share=False)
    assert run.moments[-1].stored == left


def test_defence_50km(room):
    run = Run(room, "defence-50km")
    run.go_on(389, every_s=60)
    # A fresh key every minute, through four minutes without a fibre.
    assert run.shared(0, 389) == 6
    assert run.links(90, 329) == {"cut"}
    assert {m.qber for m in run.between(90, 329)} == {None}
    assert run.moments[0].qber == pytest.approx(0.01, abs=0.001)
    assert run.links(330, 389) == {"up"}
    # Out of step both find a key, and not the same one.
    run.trial.let_pass(31.0)
    drawn = run.trial.draw()
    found = run.trial.redeem(list(drawn))
    assert found.keys() == drawn.keys()
    assert found != drawn
    run.trial.let_pass(60.0)
    assert run.trial.share() == 1


def test_no_scenario_uses_an_address_or_a_name_that_the_gateways_examples_do_not(room):
    for name in SCENARIOS:
        config = load_kme_sim_config(room / f"{name}.yaml")
        assert {str(kme.listen) for kme in config.kmes.values()} == {
            "127.0.0.1:8441",
            "127.0.0.1:8442",
        }
        assert config.saes == {"gw-a": "kme-a", "gw-b": "kme-b"}
        assert re.fullmatch(r"127\.0\.0\.1:8440", str(config.control.listen))
