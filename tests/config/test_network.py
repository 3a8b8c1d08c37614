"""The simulated network as it is configured: what is read, and every fault with its place."""

import pytest

from qproxy.config.network import (
    FibreSpanConfig,
    FixedSpanConfig,
    OpticsConfig,
    RoutePolicy,
    SatelliteSpanConfig,
)
from qproxy.config.reader import load_kme_sim_config
from qproxy.errors import ConfigError
from qproxy.sim.events import Crash, Cut, Intercept, Store, TimedEvent
from qproxy.sim.physics.bb84 import Decoys

KMES = """\
kme_sim:
  kmes:
    kme-a: {listen: '127.0.0.1:8441', certificate: a.pem, private_key: a.key, ca: ca.pem}
    kme-b: {listen: '127.0.0.1:8442', certificate: a.pem, private_key: a.key, ca: ca.pem}
    kme-c: {listen: '127.0.0.1:8443', certificate: a.pem, private_key: a.key, ca: ca.pem}
  saes: {gw-a: kme-a, gw-b: kme-b, gw-c: kme-c}
"""
NETWORK = """\
  network:
    relays: [r1, r2]
    optics:
      slow: {source_rate_hz: 1000000, decoys: infinite}
    spans:
      one: {type: fibre, between: [kme-a, r1], length_km: 46, optics: slow}
      two: {type: fixed, between: [r1, kme-b], key_rate_bps: 1000}
      sky: {type: satellite, between: [kme-a, r2], zenith_loss_db: 30}
      back: {type: fixed, between: [kme-b, r2], key_rate_bps: 1000, qber: 0.02}
      far: {type: fixed, between: [r2, kme-c], key_rate_bps: 1000}
    routes:
      main: {between: [kme-a, kme-b], paths: [[one, two], [sky, back]], policy: pinned}
      other: {between: [kme-b, kme-a], saes: [gw-a, gw-b]}
"""
TIMETABLE = """\
  timetable:
    - {at_s: 30, event: cut, span: one}
    - {at_s: 1.5, event: crash, kme: kme-c, store: lost}
    - {at_s: 1.5, event: intercept, span: two, fraction: 1}
"""


def load(tmp_path, text):
    for name in ("a.pem", "a.key", "ca.pem"):
        (tmp_path / name).write_text("")
    path = tmp_path / "sim.yaml"
    path.write_text(text)
    return load_kme_sim_config(path)


def fault(tmp_path, text):
    """The one error that a file has."""
    try:
        load(tmp_path, text)
    except ConfigError as error:
        return error
    except ExceptionGroup as group:
        (error,) = group.exceptions
        return error
    raise AssertionError("no error")


def test_a_network_is_read_whole(tmp_path):
    config = load(tmp_path, KMES + NETWORK + TIMETABLE)
    network = config.network
    assert network.relays == ("r1", "r2")
    assert network.optics["slow"] == OpticsConfig(
        name="slow", source_rate_hz=1e6, decoys=Decoys.INFINITE
    )
    assert network.spans["one"] == FibreSpanConfig(
        name="one", between=("kme-a", "r1"), length_km=46.0, optics="slow"
    )
    assert network.spans["back"] == FixedSpanConfig(
        name="back", between=("kme-b", "r2"), key_rate_bps=1000.0, qber=0.02
    )
    assert isinstance(network.spans["sky"], SatelliteSpanConfig)
    assert network.routes["main"].paths == (("one", "two"), ("sky", "back"))
    assert network.routes["main"].policy is RoutePolicy.PINNED
    assert network.routes["other"].paths == ()
    assert config.timetable == (
        TimedEvent(30.0, Cut("one")),
        TimedEvent(1.5, Crash("kme-c", Store.LOST)),
        TimedEvent(1.5, Intercept(1.0, "two")),
    )


def test_a_timetable_goes_with_a_plain_link_too(tmp_path):
    kmes = "\n".join(line for line in KMES.splitlines() if "    kme-c:" not in line) + "\n"
    text = kmes.replace(", gw-c: kme-c", "") + "  timetable: [{at_s: 1, event: cut, span: link}]\n"
    assert load(tmp_path, text).timetable == (TimedEvent(1.0, Cut("link")),)
    error = fault(tmp_path, text.replace("span: link", "span: one"))
    assert (error.key, error.hint) == ("kme_sim.timetable.0.span", "known names: link")


def test_a_name_in_the_timetable_may_look_like_a_number(tmp_path):
    text = (KMES + NETWORK + TIMETABLE).replace(" one: {", " 1: {").replace("[one, ", "['1', ")
    text = text.replace("cut, span: one", "cut, span: 1")
    assert load(tmp_path, text).timetable[0] == TimedEvent(30.0, Cut("1"))


N = "kme_sim.network"


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("[kme-a, r1]", "[kme-a, r9]", f"{N}.spans.one.between", "from kme_sim.kmes and relays"),
        ("[kme-a, r1]", "[kme-a]", f"{N}.spans.one.between", "two names, like"),
        ("[kme-a, r1]", "[r1, r1]", f"{N}.spans.one.between", "two different nodes"),
        ("length_km: 46", "length_km: 46km", f"{N}.spans.one.length_km", "kilometres"),
        (", length_km: 46", "", f"{N}.spans.one.length_km", "got nothing"),
        ("type: fibre", "type: fiber", f"{N}.spans.one.type", "one of fibre, satellite, fixed"),
        ("optics: slow", "optics: sloe", f"{N}.spans.one.optics", "a name from"),
        ("length_km: 46", "length_km: 46, initial_buffer_bits: 99000000",
         f"{N}.spans.one.initial_buffer_bits", "at most max_buffer_bits (16000000)"),
        ("length_km: 46", "length_km: 46, abort_qber: 0.3", f"{N}.spans.one.abort_qber", "to 0.25"),
        ("decoys: infinite", "decoy_intensity: 0.6", f"{N}.optics.slow", "below signal_intensity"),
        ("zenith_loss_db: 30", "zenith_loss_db: 30, pass_interval_s: 200",
         f"{N}.spans.sky.pass_duration_s", "below pass_interval_s"),
        ("[r1, r2]\n    o", "[r1, r2, kme-a]\n    o", f"{N}.relays.2", "a name of its own"),
        ("[[one, two]", "[[one, tow]", f"{N}.routes.main.paths.0.1", "a name from"),
        ("[[one, two]", "[[two, one]", f"{N}.routes.main.paths.0", "spans that do not join"),
        ("[[one, two]", "[[one]", f"{N}.routes.main.paths.0", "a way to r1"),
        ("[[one, two]", "[[sky, far]", f"{N}.routes.main.paths.0", "a way to kme-c"),
        ("policy: pinned", "policy: pined", f"{N}.routes.main.policy", "failover, pinned"),
        ("between: [kme-a, kme-b]", "between: [kme-a, r1]", f"{N}.routes.main.between.1",
         "a name from kme_sim.kmes"),
        ("between: [kme-a, kme-b]", "between: [kme-b]", f"{N}.routes.main.between", "two names"),
        (", saes: [gw-a, gw-b]", "", f"{N}.routes.other", "another route than main"),
        ("saes: [gw-a, gw-b]", "saes: [gw-a, gw-c]", f"{N}.routes.other.saes", "got 'gw-c'"),
        ("saes: [gw-a, gw-b]", "saes: [gw-a]", f"{N}.routes.other.saes", "an SAE of each of"),
        ("saes: [gw-a, gw-b]", "saes: [gw-x]", f"{N}.routes.other.saes.0", "a name from"),
        ("cut, span: one", "cut, span: won", "kme_sim.timetable.0.span", "a span of this file"),
        ("cut, span: one", "cut", "kme_sim.timetable.0.span", "of this file, got nothing"),
        ("cut, span: one", "cutt, span: one", "kme_sim.timetable.0.event", "one of cut, jam"),
        ("cut, span: one", "cut, relay: r1", "kme_sim.timetable.0.relay", "no such member"),
        ("fraction: 1}", "fraction: 2}", "kme_sim.timetable.2.fraction", "from 0 to 1"),
        ("fraction: 1}", "fraction: [1]}", "kme_sim.timetable.2.fraction", "from 0 to 1"),
        ("{at_s: 30, ", "{", "kme_sim.timetable.0.at_s", "got nothing"),
        ("at_s: 30", "at_s: soon", "kme_sim.timetable.0.at_s", "a number of seconds"),
        ("at_s: 30", "at_s: 30, at_s: 31", "kme_sim.timetable.0.at_s", "each key once"),
        ("kme-c, store", "kme-d, store", "kme_sim.timetable.1.kme", "a kme of this file"),
    ],
)  # fmt: skip
def test_every_fault_is_said_once_with_file_line_and_key(tmp_path, old, new, key, message):
    text = KMES + NETWORK + TIMETABLE
    assert text.count(old) == 1, old
    line = text[: text.index(old)].count("\n") + 1
    error = fault(tmp_path, text.replace(old, new))
    assert error.key == key
    assert message in error.message
    assert error.file == tmp_path / "sim.yaml"
    assert error.line == line


def test_a_route_that_no_spans_make_is_a_fault(tmp_path):
    text = (KMES + NETWORK).replace("[r2, kme-c]", "[r2, kme-b]")
    text += "      lost: {between: [kme-a, kme-c]}\n"
    error = fault(tmp_path, text)
    assert (error.key, "at most 64 spans" in error.message) == (f"{N}.routes.lost.between", True)


def test_a_path_goes_through_relays_only(tmp_path):
    text = (KMES + NETWORK).replace("[r1, kme-b], key", "[r1, kme-c], key")
    text = text.replace("[[one, two], [sky, back]]", "[[one, two, far, back]]")
    error = fault(tmp_path, text)
    assert (error.key, error.message.rpartition(", got ")[2]) == (
        f"{N}.routes.main.paths.0",
        "a way through kme-c, which is no relay",
    )


def with_other(line):
    old = "      other: {between: [kme-b, kme-a], saes: [gw-a, gw-b]}\n"
    assert old in NETWORK
    return KMES + NETWORK.replace(old, f"      other: {line}\n")


def test_routes_that_must_be_disjoint_and_are(tmp_path):
    """The other one is pinned to its first path, so that its second does not count."""
    text = with_other(
        "{between: [kme-b, kme-a], saes: [gw-a, gw-b], paths: [[back, sky]], disjoint_from: main}"
    )
    assert load(tmp_path, text).network.routes["other"].disjoint_from == "main"


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("{between: [kme-b, kme-a], saes: [gw-a, gw-b], paths: [[two, one]], "
         "disjoint_from: main}", "'relay r1' in both"),
        ("{between: [kme-b, kme-a], saes: [gw-a, gw-b], disjoint_from: main}", "in both"),
        ("{between: [kme-b, kme-a], saes: [gw-a, gw-b], disjoint_from: other}", "itself"),
    ],
)  # fmt: skip
def test_routes_that_must_be_disjoint_and_are_not(tmp_path, line, got):
    error = fault(tmp_path, with_other(line))
    assert error.key == f"{N}.routes.other.disjoint_from"
    assert got in error.message


def test_link_and_network_exclude_each_other(tmp_path):
    error = fault(tmp_path, KMES + NETWORK + "  link: {qber: 0.02}\n")
    assert (error.key, error.message) == (N, "expected either link or network, got both")
