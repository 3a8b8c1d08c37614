"""Two sites with two KMEs each: any of them may die, and hybrid mode goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import pki
from tests.e2e.conftest import MakePair
from tests.e2e.pair import GatewayPair, KmePair, write_pki
from tests.e2e.sockets import Backend, TwoWayTraffic, proxied

PASSWORD = b"correct horse"


@pytest.fixture
def kmes(tmp_path: Path) -> Iterator[dict[str, KmePair]]:
    """Two pairs of KMEs that know nothing of each other."""
    started: dict[str, KmePair] = {}
    try:
        for half in ("north", "south"):
            directory = tmp_path / half
            directory.mkdir()
            write_pki(directory / "pki")
            started[half] = KmePair(directory)
        yield started
    finally:
        for pair in started.values():
            pair.close()


def source(kmes: dict[str, KmePair], site: str) -> dict[str, Any]:
    """A key source over both KMEs of one site, known to them by a PKCS #12 file."""
    return {
        "type": "etsi-qkd-014",
        "ca": "pki/ca.pem",
        "pkcs12": f"pki/gw-{site}.p12",
        "pkcs12_password_file": "pki/password",
        "kmes": {half: {"url": kmes[half].urls[f"kme-{site}"]} for half in ("north", "south")},
        "max_kme_retry_s": 2,
    }


@pytest.fixture
def pair(make_pair: MakePair, kmes: dict[str, KmePair]) -> GatewayPair:
    made = make_pair(
        start=False,
        kme=False,
        peer={"policy": "prefer", "key_source": "site", "rekey": {"interval_s": 0.2}},
        config_a={"key_sources": {"site": source(kmes, "a")}},
        config_b={"key_sources": {"site": source(kmes, "b")}},
        level="debug",
    )
    room = made.directory / "pki"
    for name in ("gw-a", "gw-b"):
        bundle = pki.pkcs12_bytes(pki.identity(pki.authority(), name), password=PASSWORD)
        (room / f"{name}.p12").touch(mode=0o600)
        (room / f"{name}.p12").write_bytes(bundle)
    (room / "password").touch(mode=0o600)
    (room / "password").write_bytes(PASSWORD + b"\n")
    return made.start()


def hybrid_epochs(pair: GatewayPair, after: int, number: int) -> None:
    """Wait for so many epochs with QKD keys in a row of time, after a mark of A's log."""
    for _ in range(number):
        pair.a.wait_for_event("epoch_committed", after=after, mode="hybrid")
        after = pair.a.mark()


@pytest.mark.parametrize("action", ["kill", pytest.param("unavailable", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dies", ["kme-a", pytest.param("kme-b", marks=pytest.mark.slow)])
def test_a_kme_dies_and_the_other_takes_over_until_it_is_back(
    pair: GatewayPair, kmes: dict[str, KmePair], backend: Backend, dies: str, action: str
) -> None:
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        assert pair.a.wait_for_event("kme_in_use")["kme"] == "north"
        hybrid_epochs(pair, 0, 3)

        mark = pair.a.mark()
        kmes["north"].control(action, kme=dies)
        failed = pair.a.wait_for_event("kme_failed", after=mark)
        assert (failed["kme"], failed["level"], failed["source"]) == ("north", "warning", "site")
        pair.a.wait_for_event("kme_in_use", after=mark, kme="south", was="north")
        pair.a.wait_for_event("epoch_committed", after=pair.a.mark(), mode="hybrid")
        hybrid_epochs(pair, pair.a.mark(), 10)

        mark = pair.a.mark()
        kmes["north"].control("restore", kme=dies)
        if pair.a.find("kme_in_use")[-1]["kme"] != "north":  # it may be tried just now
            pair.a.wait_for_event("kme_in_use", after=mark, kme="north")
        hybrid_epochs(pair, pair.a.mark(), 10)
        traffic.finish()
    assert len(pair.a.find("tunnel_up")) == 1
    for gateway in (pair.a, pair.b):
        assert PASSWORD.decode() not in repr(gateway.events)


def replace_file(path: Path, content: bytes) -> None:
    """As an operator should: whole, and in one moment."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.replace(path)


def test_a_new_bundle_is_taken_into_use_and_a_broken_one_is_not(pair: GatewayPair) -> None:
    room = pair.directory / "pki"
    who = pki.identity(pki.authority(), "gw-a", common_name="renewed")
    mark = pair.a.mark()
    replace_file(room / "gw-a.p12", pki.pkcs12_bytes(who, password=b"battery staple"))
    replace_file(room / "password", b"battery staple\n")
    pair.a.signal(signal.SIGHUP)
    pair.a.wait_for_event("reloaded", after=mark, cause="signal")
    hybrid_epochs(pair, pair.a.mark(), 3)
    assert not pair.a.find("kme_failed")

    mark = pair.a.mark()
    replace_file(room / "password", b"wrong stapler\n")
    pair.a.signal(signal.SIGHUP)
    failed = pair.a.wait_for_event("reload_failed", after=mark)
    assert "gw-a.p12: cannot be opened with the password given" in failed["detail"]
    hybrid_epochs(pair, pair.a.mark(), 3)
    for secret in (PASSWORD, b"battery staple", b"wrong stapler"):
        assert secret.decode() not in repr(pair.a.events)
