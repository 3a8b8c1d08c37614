"""Thresholds of the quantum link, the stock of keys and re-authentication, as a file gives them."""

import dataclasses

import pytest

from qproxy.config import schema
from qproxy.config.model import KeyStockConfig, PeerConfig, RekeyConfig
from qproxy.config.schema import GATEWAY, list_keys
from qproxy.quantum import stock as quantum_stock
from qproxy.quantum.health_settings import HealthSettings
from qproxy.quantum.stock import StockSettings
from tests.config.test_reader import MINIMAL, faults, load, room

__all__ = ["room"]

PEER = "    key_source: kme-a\n"


def with_peer(lines: str) -> str:
    return MINIMAL.replace(PEER, PEER + lines)


def test_every_threshold_is_a_key():
    keys = {info.path for info in list_keys(GATEWAY)}
    for field in dataclasses.fields(HealthSettings):
        assert f"peers.<peer>.link_health.{field.name}" in keys


def test_the_stock_has_the_defaults_of_its_room():
    kept, stock = KeyStockConfig(), StockSettings()
    assert (kept.low_water, kept.high_water, kept.max_age_s) == (
        stock.low_water,
        stock.high_water,
        stock.max_age_s,
    )


def test_a_stock_takes_the_most_that_may_be_configured():
    assert schema.MAX_STOCK_KEYS == quantum_stock.MAX_STOCK_KEYS


def test_values_arrive(room):
    text = with_peer(
        "    rekey: {reauth_interval_s: 0}\n"
        "    key_stock: {low_water: 2, high_water: 5, max_age_s: 30}\n"
        "    link_health: {probe_interval_s: 0.25, qber_down: 0.1, jitter: 0}\n"
    )
    peer: PeerConfig = load(room, text + "# end\n").peers["gw-b"]
    assert peer.rekey == RekeyConfig(reauth_interval_s=0.0)
    assert peer.key_stock == KeyStockConfig(low_water=2, high_water=5, max_age_s=30.0)
    assert peer.link_health == HealthSettings(probe_interval_s=0.25, qber_down=0.1, jitter=0.0)


@pytest.mark.parametrize(
    ("lines", "key", "told"),
    [
        ("link_health: {qber_clear: 0.2}", "link_health", "qber_clear <= qber_degraded"),
        ("link_health: {ratio_window: 2}", "link_health", "ratio_to_degraded <= ratio_window"),
        ("link_health: {good_s: 6}", "link_health", "good_s <= max_good_s"),
        ("link_health: {jitter: 1}", "link_health.jitter", "0 to 0.9"),
        ("link_health: {failures: 3}", "link_health.failures", "known key"),
        ("key_stock: {low_water: 33}", "key_stock.low_water", "at most high_water (32)"),
        (
            "qkd_keys_per_epoch: 8\n    key_stock: {low_water: 1, high_water: 7}",
            "key_stock.high_water",
            "at least qkd_keys_per_epoch (8)",
        ),
        ("rekey: {reauth_interval_s: 5}", "rekey.reauth_interval_s", "(0 = never)"),
    ],
)
def test_values_that_do_not_fit_are_named(room, lines, key, told):
    (fault,) = faults(room, with_peer(f"    {lines}\n"))
    assert fault.key == f"peers.gw-b.{key}"
    assert told in fault.message


def test_a_pid_file_need_not_exist_but_its_directory_must(room):
    text = MINIMAL.replace("{name: gw-a}", "{name: gw-a, pid_file: gw.pid}")
    assert load(room, text).node.pid_file == room / "gw.pid"
    (fault,) = faults(room, text.replace("gw.pid", "nowhere/gw.pid"))
    assert fault.key == "node.pid_file"
    (fault,) = faults(room, text.replace("gw.pid", "keys"))
    assert "directory" in fault.message
