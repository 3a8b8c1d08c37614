import json

import pytest

from bench import handshake as module
from bench.handshake import (
    PLAIN,
    TUNNEL,
    WITHOUT_QKD,
    HandshakeParameters,
    ManyTunnels,
    run_handshake,
)
from bench.handshake_parts import InMemoryHandshakes
from bench.pairs import Site
from bench.stats import BenchError
from qproxy.config.reader import load_gateway_config
from qproxy.modes import Policy
from qproxy.pki import KeyAlgorithm, init_pki

UP = {"event": "tunnel_up", "mode": "hybrid"}


@pytest.fixture(params=list(KeyAlgorithm))
def pki(request, tmp_path):
    init_pki(tmp_path / "pki", algorithm=request.param)
    return tmp_path / "pki"


def test_a_tunnel_in_memory_has_tls_in_it_and_more(pki) -> None:
    took = InMemoryHandshakes(pki).once()
    assert 0 < took.tunnel_tls_s < took.tunnel_s
    assert took.tls_s > 0


@pytest.mark.parametrize(("qkd", "policy"), [(True, Policy.REQUIRE), (False, Policy.OFF)])
def test_the_near_gateway_is_told_to_dial_as_many_tunnels_as_are_measured(
    tmp_path, qkd, policy
) -> None:
    init_pki(tmp_path / "pki")
    site = Site.make(tmp_path / "site", tmp_path / "pki", service_port=9)
    pair = ManyTunnels(7, qkd=qkd)
    config = load_gateway_config(tmp_path / "site" / pair.near_command(site)[-1])
    (peer,) = config.peers.values()
    assert (peer.tunnels, peer.policy) == (7, policy)


def test_tunnels_dialled_in_vain_are_an_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(module, "_ups", lambda _near: [UP] * 4)
    monkeypatch.setattr(module, "gateway_events", lambda _near, name: iter([name]))
    pair = ManyTunnels(4)
    monkeypatch.setattr(pair, "running", FakeRunning)
    parameters = HandshakeParameters(count=4)
    with pytest.raises(BenchError, match="in vain"):
        list(module._tunnels(pair, tmp_path, tmp_path / "runs", parameters, "P-256"))


def test_plain_and_in_memory_handshakes_are_measured_where_no_tunnel_comes_up(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)

    def fails(*_arguments):
        raise BenchError("no tunnel")
        yield

    monkeypatch.setattr(module, "_tunnels", fails)
    record = run_handshake(HandshakeParameters(rounds=1, count=2, in_memory=2))
    failed = {row.name: row.failed for row in record.rows if row.failed}
    assert failed == dict.fromkeys([TUNNEL, WITHOUT_QKD], "round 1: no tunnel")
    cases = ["P-256, first tunnel", "P-256", "ML-DSA-65, first tunnel", "ML-DSA-65"]
    assert record.cases == cases
    for case in cases:
        took = record.spread(PLAIN, case, "handshake_ms")
        tls = record.spread(PLAIN, case, "tls_ms")
        assert took is not None
        assert tls is not None
        assert 0 < tls.median <= took.median
    (plain,) = (row for row in record.rows if row.name == PLAIN)
    assert [facts["group"] for facts in plain.facts] == ["X25519MLKEM768"] * 2
    json.loads(record.to_json())


def test_the_first_tunnel_of_a_gateway_is_a_case_of_its_own(monkeypatch, tmp_path) -> None:
    ups = [{**UP, "handshake_ms": ms, "tls_ms": ms / 2} for ms in (20.0, 4.0, 6.0, 8.0)]
    monkeypatch.setattr(module, "_ups", lambda _near: ups)
    monkeypatch.setattr(module, "gateway_events", lambda _near, _name: iter(()))
    pair = ManyTunnels(4)
    monkeypatch.setattr(pair, "running", FakeRunning)
    parameters = HandshakeParameters(count=4)
    first, rest = module._tunnels(pair, tmp_path, tmp_path / "runs", parameters, "P-256")
    assert first[:2] == (TUNNEL, "P-256, first tunnel")
    assert first[2]["handshake_ms"] == 20.0
    assert (rest[2]["handshake_ms"], rest[2]["handshake_max_ms"]) == (6.0, 8.0)
    assert rest[2]["tls_ms"] == 3.0
    assert rest[2]["count"] == 3


class FakeRunning:
    """A pair that is there without having been started."""

    def __init__(self, _site) -> None:
        self.proxies = {"near": None}
        self.processes = []
        self.facts = {"mode": "hybrid"}

    def __enter__(self):
        return self

    def __exit__(self, *_error) -> None:
        pass
