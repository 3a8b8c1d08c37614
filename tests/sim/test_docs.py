"""docs/simulation.md and the picture in it say what the code does."""

import csv
import dataclasses
import importlib.util
import math
import re
import shutil
import sys
from pathlib import Path

import pytest

from qproxy.config.network import OpticsConfig
from qproxy.config.reader import load_kme_sim_config
from qproxy.pki import init_pki
from qproxy.sim.events import EVENTS, members_of
from qproxy.sim.physics.bb84 import fibre_loss_db, key_rate
from tests.sim.test_scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXT = (DOCS / "simulation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    """docs/plots/key_rate.py, which no package holds. It must not need matplotlib for numbers."""
    spec = importlib.util.spec_from_file_location("key_rate", DOCS / "plots" / "key_rate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["key_rate"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["key_rate"]


@pytest.fixture(scope="module")
def scenario_room(tmp_path_factory):
    room = tmp_path_factory.mktemp("configs")
    shutil.copytree(ROOT / "configs" / "scenarios", room / "scenarios")
    init_pki(room / "pki")
    return room / "scenarios"


def test_the_docs_have_every_event_with_all_it_takes():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", TEXT, re.MULTILINE))
    assert list(rows) == list(EVENTS)
    for word, takes in rows.items():
        named = set(re.findall(r"`(\w+)`", takes))
        assert named == {member.name for member in members_of(EVENTS[word])}, word


def test_the_docs_name_tests_and_files_that_exist():
    for path in re.findall(r"`((?:tests|configs|qproxy|docs)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)", TEXT):
        assert (DOCS / path).exists(), path


def test_the_plots_numbers_are_the_models(script):
    curves = {curve.scenario: curve for curve in script.read_curves()}
    assert list(curves) == SCENARIOS
    points = script.make_points(list(curves.values()))
    for point in points:
        curve = curves[point.scenario]
        loss_db = fibre_loss_db(point.distance_km, script.LOSS_DB_PER_KM)
        if curve.orbit is not None:
            away = point.distance_km / curve.orbit.altitude_km
            loss_db = curve.orbit.zenith_loss_db + 20 * math.log10(away)
        rate = key_rate(curve.optics, loss_db)
        assert (point.key_rate_bps, point.qber) == (rate.secret_bps, rate.qber)
    own = {(p.scenario, p.distance_km) for p in points if p.preset}
    assert ("metro-bank-46km", 46.0) in own
    assert len([name for name, _ in own if name == "metro-ring"]) == 5
    passes = [p.distance_km for p in points if p.link == "satellite"]
    assert (min(passes), round(max(passes))) == (500.0, 1163)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_plots_optics_are_those_that_the_simulator_reads(script, name, scenario_room):
    (curve,) = (curve for curve in script.read_curves() if curve.scenario == name)
    network = load_kme_sim_config(scenario_room / f"{name}.yaml").network
    for span in network.spans.values():
        optics = OpticsConfig() if span.optics is None else network.optics[span.optics]
        assert optics == OpticsConfig(name=optics.name, **dataclasses.asdict(curve.optics))
        if curve.orbit is None:
            assert span.length_km in curve.lengths_km
            assert (span.loss_db_per_km, span.extra_loss_db) == (script.LOSS_DB_PER_KM, 0.0)


def test_the_committed_numbers_and_the_picture_are_of_todays_model(script):
    text = script.encode_csv(script.make_points(script.read_curves()))
    assert script.CSV.read_text(encoding="utf-8") == text, "run docs/plots/key_rate.py"
    picture = script.SVG.read_text(encoding="utf-8")
    assert script.digest(text) in picture, "run docs/plots/key_rate.py"
    assert "SIMULATED" in picture
    rows = list(csv.DictReader(text.splitlines()))
    (bank,) = [r for r in rows if r["scenario"] == "metro-bank-46km" and r["preset"] == "1"]
    assert float(bank["key_rate_bps"]) == pytest.approx(7400, rel=0.01)
    assert float(bank["qber"]) == pytest.approx(0.008, abs=5e-5)


def test_the_picture_can_be_drawn(script, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; see the extra 'report'")
    script.draw(script.make_points(script.read_curves()), tmp_path / "new.svg")
    assert "metro-ring" in (tmp_path / "new.svg").read_text(encoding="utf-8")
