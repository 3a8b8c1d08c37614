"""Rekeying, falling back and climbing back, while data flows."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import MakePair
from tests.e2e.pair import GatewayPair
from tests.e2e.processes import poll
from tests.e2e.sockets import (
    Backend,
    ReservedPort,
    TwoWayTraffic,
    assert_refused,
    assert_reset,
    proxied,
    round_trip,
)

REKEYS = 50


@pytest.mark.parametrize(
    "aead", ["aes-256-gcm", pytest.param("chacha20-poly1305", marks=pytest.mark.slow)]
)
def test_a_stream_stays_open_across_50_rekeys(
    make_pair: MakePair, backend: Backend, aead: str
) -> None:
    rekey = {"interval_s": 0.1}
    pair = make_pair(peer={"rekey": rekey, "aead": aead}, level="debug")
    with proxied(pair.address("app"), backend) as (near, far):
        opened_at = pair.a.mark()
        traffic = TwoWayTraffic(near, far)
        before = pair.a.find("epoch_committed")[-1]["epoch"]
        pair.a.wait_for_event("epoch_committed", after=opened_at, epoch=before + REKEYS)
        traffic.finish()
    for gateway in (pair.a, pair.b):
        epochs = gateway.find("epoch_committed")
        # One after the other, each with a QKD key of its own, and no attempt failed.
        assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))
        assert all((epoch["mode"], epoch["keys"]) == ("hybrid", 1) for epoch in epochs)
        assert len({epoch["epoch_id"] for epoch in epochs}) == len(epochs)
        assert not gateway.find("epoch_failed")
        assert len(gateway.find("tunnel_up")) == 1


def test_both_ends_commit_the_same_epochs(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(peer={"rekey": {"interval_s": 0.1}}, level="debug")
    pair.b.wait_for_event("epoch_committed", epoch=5)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
    ids = [
        [event["epoch_id"] for event in gateway.find("epoch_committed")][:5]
        for gateway in (pair.a, pair.b)
    ]
    assert ids[0] == ids[1]


def test_bytes_and_records_bring_about_rekeys_too(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(peer={"rekey": {"interval_s": 600, "records": 256}}, level="debug")
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        pair.a.wait_for_event("epoch_committed", epoch=4, reason="rekey_records")
        traffic.finish()


# With "prefer": the link goes, data does not.


def test_a_tapped_link_means_classical_only_and_a_healed_one_hybrid_again(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair()
    assert pair.kme is not None
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        # Somebody listens on the quantum channel: the error rate says so.
        pair.kme.control("degrade", rate_factor=0.5, qber=0.2)
        fallen = pair.a.wait_for_event("mode_changed", mode="classical-only")
        assert (fallen["level"], fallen["was"]) == ("warning", "hybrid")
        assert fallen["reason"] == "qber_high"
        # A QKD key from before is still chained into the new keys.
        assert (fallen["chained_source_key"], fallen["keys"]) == (True, 0)
        mark = pair.a.mark()
        pair.kme.control("restore")
        climbed = pair.a.wait_for_event("mode_changed", after=mark, mode="hybrid")
        assert (climbed["level"], climbed["was"]) == ("info", "classical-only")
        traffic.finish()
    assert len(pair.a.find("tunnel_up")) == 1


def test_a_link_cut_for_good_is_used_up_and_then_done_without(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(peer={"rekey": {"interval_s": 0.1, "max_age_s": 1}, "qkd_keys_per_epoch": 4})
    assert pair.kme is not None
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        pair.kme.control("cut")
        pair.kme.control("drain")
        # Keys in stock go first, ever more slowly; the tunnel is never closed for its age.
        fallen = pair.a.wait_for_event("mode_changed", mode="classical-only")
        assert fallen["reason"] == "keys_exhausted"
        pair.kme.control("restore")
        pair.a.wait_for_event("mode_changed", mode="hybrid", was="classical-only")
        traffic.finish()
    assert len(pair.a.find("tunnel_up")) == 1


def test_kmes_killed_and_restarted_while_data_flows_lose_no_byte(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(peer={"rekey": {"interval_s": 0.5}})
    assert pair.kme is not None
    with proxied(pair.address("app"), backend) as (near, far):
        traffic = TwoWayTraffic(near, far)
        pair.kme.program.kill()
        fallen = pair.a.wait_for_event("mode_changed", mode="classical-only")
        assert fallen["level"] == "warning"
        pair.b.wait_for_event("mode_changed", mode="classical-only")
        before = traffic.received_bytes
        poll(
            "data flows in classical-only mode",
            lambda: all(
                now > then for now, then in zip(traffic.received_bytes, before, strict=True)
            ),
        )
        mark_a, mark_b = pair.a.mark(), pair.b.mark()
        # The new KMEs know none of the old ones' keys.
        pair.start_kme()
        pair.a.wait_for_event("mode_changed", after=mark_a, mode="hybrid")
        pair.b.wait_for_event("mode_changed", after=mark_b, mode="hybrid")
        traffic.finish()
    assert len(pair.a.find("tunnel_up")) == 1


@pytest.mark.parametrize("kme", [pytest.param("kme-a", marks=pytest.mark.slow), "kme-b"])
@pytest.mark.parametrize(
    "action",
    [
        "kill",
        pytest.param("hang", marks=pytest.mark.slow),
        pytest.param("unavailable", marks=pytest.mark.slow),
    ],
)
def test_one_lost_kme_on_either_side_is_enough_to_fall_back(
    make_pair: MakePair, backend: Backend, kme: str, action: str
) -> None:
    pair = make_pair(peer={"rekey": {"interval_s": 0.5}})
    assert pair.kme is not None
    with proxied(pair.address("app"), backend) as (near, far):
        pair.kme.control(action, kme=kme)
        pair.a.wait_for_event("mode_changed", mode="classical-only")
        round_trip(near, far)
        mark = pair.a.mark()
        pair.kme.control("restore")
        pair.a.wait_for_event("mode_changed", after=mark, mode="hybrid")
        round_trip(near, far)
    assert len(pair.a.find("tunnel_up")) == 1


def test_prefer_without_a_kme_starts_classical_only_and_becomes_hybrid_by_itself(
    make_pair: MakePair, backend: Backend
) -> None:
    with ReservedPort() as kme_a, ReservedPort() as kme_b:
        addresses = {"kme-a": kme_a.address, "kme-b": kme_b.address}
        pair = make_pair(kme=False, kme_addresses=addresses)
        for gateway in (pair.a, pair.b):
            changed = gateway.wait_for_event("mode_changed")
            assert (changed["mode"], changed["was"]) == ("classical-only", None)
            assert changed["level"] == "warning"
            assert changed["chained_source_key"] is False
        assert pair.a.find("mode_changed")[0]["reason"] == "kme_unreachable"
        assert pair.a.find("link_state", new="down")[0]["reason"] == "kme_unreachable"
        with proxied(pair.address("app"), backend) as (near, far):
            round_trip(near, far)
            kme_a.release()
            kme_b.release()
            pair.start_kme()
            for gateway in (pair.a, pair.b):
                gateway.wait_for_event("mode_changed", mode="hybrid", was="classical-only")
            round_trip(near, far)
    assert len(pair.a.find("tunnel_up")) == 1


# With "require": no key, no traffic.


@pytest.mark.parametrize("strict_end", ["gw-a", "gw-b", "both"])
def test_require_without_a_kme_means_no_tunnel(
    make_pair: MakePair, backend: Backend, strict_end: str
) -> None:
    with ReservedPort() as kme_a, ReservedPort() as kme_b:
        strict = {"policy": "require"}
        pair = make_pair(
            kme=False,
            kme_addresses={"kme-a": kme_a.address, "kme-b": kme_b.address},
            config_a={"peers": {"gw-b": strict}} if strict_end != "gw-b" else {},
            config_b={"peers": {"gw-a": strict}} if strict_end != "gw-a" else {},
            tunnel=False,
        )
        # The end that dials says why there is none, also where only the other one insists.
        refused = pair.a.wait_for_event("tunnel_refused")
        assert (refused["level"], refused["policy"]) == ("warning", "require")
        assert refused["reason"] == "policy_require"
        assert refused["obstacle"] == "kme_unreachable"
        if strict_end == "gw-b":
            rejected = pair.b.wait_for_event("epoch_failed")
            assert (rejected["reason"], rejected["mode"]) == ("policy_require", "classical-only")
        if strict_end == "gw-a":
            assert_refused(pair.address("app"))
            assert pair.a.wait_for_event("client_refused")["reason"] == "no_tunnel"
        for gateway in (pair.a, pair.b):
            assert not gateway.find("tunnel_up")
            assert not gateway.find("mode_changed")
        assert backend.nobody_is_waiting()


def test_a_tunnel_that_was_refused_comes_up_when_the_kme_appears(
    make_pair: MakePair, backend: Backend
) -> None:
    with ReservedPort() as kme_a, ReservedPort() as kme_b:
        addresses = {"kme-a": kme_a.address, "kme-b": kme_b.address}
        pair = make_pair(
            kme=False, kme_addresses=addresses, peer={"policy": "require"}, tunnel=False
        )
        pair.a.wait_for_event("tunnel_refused")
        kme_a.release()
        kme_b.release()
        pair.start_kme()
        pair.wait_for_tunnel()
        assert pair.a.find("mode_changed")[0]["mode"] == "hybrid"
        with proxied(pair.address("app"), backend) as (near, far):
            round_trip(near, far)


def test_require_is_content_with_the_few_keys_that_are_there(
    make_pair: MakePair, backend: Backend
) -> None:
    # Fewer than a stock would hold, and hardly any more to come.
    pair = make_pair(peer={"policy": "require"}, link={"initial_key_count": 3, "key_rate_bps": 1})
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
    assert not pair.a.find("tunnel_refused")


def test_require_ends_a_tunnel_that_gets_no_more_qkd_keys(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(
        peer={"policy": "require", "max_without_qkd_s": 1, "rekey": {"interval_s": 0.2}},
        # Hardly more than is used, so that little is in stock when the KMEs die.
        link={"initial_key_count": 4, "key_rate_bps": 2000},
    )
    assert pair.kme is not None
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        mark_a, mark_b = pair.a.mark(), pair.b.mark()
        pair.kme.program.kill()
        assert_reset(near)
        assert_reset(far)
    assert not pair.a.find("mode_changed", mode="classical-only")
    closed = pair.a.wait_for_event("tunnel_closed", after=mark_a)
    told = {closed["reason"], pair.b.wait_for_event("tunnel_closed", after=mark_b)["reason"]}
    assert "qkd_too_old" in told


@pytest.mark.parametrize(
    ("policy_a", "policy_b", "effective"),
    [
        ("prefer", "require", "require"),
        ("require", "prefer", "require"),
        pytest.param("off", "prefer", "prefer", marks=pytest.mark.slow),
        pytest.param("prefer", "off", "prefer", marks=pytest.mark.slow),
    ],
)
def test_the_stricter_policy_of_the_two_ends_holds(
    make_pair: MakePair, backend: Backend, policy_a: str, policy_b: str, effective: str
) -> None:
    pair = make_pair(
        config_a={"peers": {"gw-b": {"policy": policy_a}}},
        config_b={"peers": {"gw-a": {"policy": policy_b}}},
    )
    for gateway, local, peers in ((pair.a, policy_a, policy_b), (pair.b, policy_b, policy_a)):
        agreed = gateway.wait_for_event("policy_agreed")
        assert (agreed["local"], agreed["peers"]) == (local, peers)
        assert (agreed["effective"], agreed["level"]) == (effective, "warning")
        gateway.wait_for_event("mode_changed", mode="hybrid")
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_policy_off_never_asks_a_kme(make_pair: MakePair, backend: Backend) -> None:
    pair: GatewayPair = make_pair(peer={"policy": "off"})
    assert pair.kme is not None
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
    changed = pair.a.wait_for_event("mode_changed")
    assert (changed["mode"], changed["reason"]) == ("classical-only", "policy_off")
