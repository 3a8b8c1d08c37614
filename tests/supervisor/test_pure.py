"""What needs no process: CPUs, pauses, shares and places."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from qproxy.address import TcpAddress, UnixAddress
from qproxy.config.model import (
    AdminConfig,
    AuditConfig,
    GatewayConfig,
    IdentityConfig,
    KeyStockConfig,
    ListenerConfig,
    NodeConfig,
    PeerConfig,
    ServiceConfig,
    TunnelConfig,
)
from qproxy.supervisor.backoff import FIRST_PAUSE_S, MAX_PAUSE_S, SETTLED_S, Backoff
from qproxy.supervisor.cpus import available_cpus, worker_count
from qproxy.supervisor.placing import MAX_WAITING, Placing
from qproxy.supervisor.share import share, worker_config

# CPUs.


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Eight CPUs by affinity, in the group /box/app."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    of_self = tmp_path / "self"
    of_self.write_text("1:cpu:/elsewhere\n0::/box/app\n")
    (tmp_path / "box" / "app").mkdir(parents=True)

    def ask(**quotas):
        for group, text in quotas.items():
            path = {"outer": "box/cpu.max", "inner": "box/app/cpu.max"}.get(group, group)
            (tmp_path / path).write_text(text)
        return available_cpus(tmp_path, of_self)

    return ask


@pytest.mark.parametrize(
    ("quotas", "cpus"),
    [
        ({}, 8),
        ({"inner": "max 100000\n"}, 8),
        ({"inner": "400000 100000\n"}, 4),
        ({"inner": "max 100000\n", "outer": "200000 100000\n"}, 2),
        ({"inner": "350000 100000\n"}, 3),
        ({"inner": "50000 100000\n"}, 1),
        ({"inner": "1600000 100000\n"}, 8),
        ({"inner": "garbage\n", "outer": "100000 0\n"}, 8),
    ],
)
def test_cpus_are_those_of_affinity_and_quota(cgroup, quotas, cpus):
    assert cgroup(**quotas) == cpus


def test_a_quota_of_the_older_control_groups_counts_too(cgroup, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup() == 8
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert cgroup() == 3


def test_a_number_of_workers_is_taken_as_it_is():
    assert worker_count(3) == 3
    assert 1 <= worker_count(0) <= 128


# Pauses.


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_life():
    backoff = Backoff(lambda: 0.5)
    pauses = [backoff.pause_s(1.0) for _ in range(12)]
    assert pauses[:3] == pytest.approx([FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S])
    assert pauses == sorted(pauses)
    assert pauses[-2:] == [MAX_PAUSE_S, MAX_PAUSE_S]
    assert backoff.pause_s(SETTLED_S) == FIRST_PAUSE_S


@pytest.mark.parametrize(("random", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
def test_pauses_have_jitter(random, factor):
    assert Backoff(lambda: random).pause_s(0.0) == pytest.approx(factor * FIRST_PAUSE_S, rel=1e-4)


# Shares.


@pytest.mark.parametrize(("whole", "workers"), [(10, 3), (64, 8), (3, 3), (1, 1), (7, 4)])
def test_parts_add_up_to_the_whole(whole, workers):
    parts = [share(whole, number, workers) for number in range(workers)]
    assert sum(parts) == whole
    assert max(parts) - min(parts) <= 1


def test_no_part_is_nothing():
    assert [share(1, number, 3) for number in range(3)] == [1, 1, 1]


NOWHERE = Path("/nowhere")
CONFIG = GatewayConfig(
    path=NOWHERE / "gw-a.yaml",
    node=NodeConfig(name="gw-a", pid_file=NOWHERE / "pid", workers=0),
    identity=IdentityConfig(certificate=NOWHERE, private_key=NOWHERE, ca=NOWHERE),
    tunnel=TunnelConfig(listen=TcpAddress("127.0.0.1", 7443), max_tunnels=5),
    peers={
        "gw-b": PeerConfig(
            name="gw-b",
            local_sae_id="a",
            peer_sae_id="b",
            tunnels=3,
            qkd_keys_per_epoch=8,
            key_stock=KeyStockConfig(low_water=5, high_water=10),
        )
    },
    listeners={
        "web": ListenerConfig(
            name="web", listen=TcpAddress("127.0.0.1", 0), peer="gw-b", service="web"
        )
    },
    services={
        "db": ServiceConfig(name="db", connect=UnixAddress("/run/db.sock"), max_connections=3)
    },
    admin=AdminConfig(listen=TcpAddress("127.0.0.1", 9464)),
    audit=AuditConfig(file=Path("/var/lib/qproxy/audit.jsonl")),
)


def test_a_worker_has_its_share_and_nothing_that_is_the_supervisors():
    first = worker_config(CONFIG, 0, 2, {"web": TcpAddress("127.0.0.1", 8080)})
    second = worker_config(CONFIG, 1, 2, {"web": TcpAddress("127.0.0.1", 8080)})
    for found in (first, second):
        assert found.admin.listen is found.node.pid_file is found.tunnel.listen is None
        assert found.node.workers == 2
        assert found.listeners["web"].listen == TcpAddress("127.0.0.1", 8080)
        assert found.listeners["web"].max_connections == 5000
        stock = found.peers["gw-b"].key_stock
        assert (stock.low_water, stock.high_water) == (3, 8)
        assert found.peers["gw-b"].tunnels == 3
        assert replace(found.peers["gw-b"], key_stock=KeyStockConfig()) == replace(
            CONFIG.peers["gw-b"], key_stock=KeyStockConfig()
        )
    assert (first.tunnel.max_tunnels, second.tunnel.max_tunnels) == (3, 2)
    assert [c.services["db"].max_connections for c in (first, second)] == [2, 1]
    assert [str(c.audit.file) for c in (first, second)] == [
        "/var/lib/qproxy/audit-w0.jsonl",
        "/var/lib/qproxy/audit-w1.jsonl",
    ]


# Places.


def test_each_peer_gets_a_tunnel_in_every_worker():
    placing = Placing(2)
    given = []
    for source in ("a", "a", "b", "b", "a", "b"):
        number = placing.choose(source, [0, 1])
        assert number is not None
        placing.give(number, source)
        given.append((source, number))
    assert given == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 0), ("b", 1)]


def test_a_place_is_free_again_when_the_tunnel_or_the_worker_is_gone():
    placing = Placing(2)
    tickets = [placing.give(0, "a"), placing.give(0, "a"), placing.give(1, "a")]
    assert placing.choose("a", [0, 1]) == 1
    placing.over(0, tickets[0])
    placing.over(0, tickets[1])
    placing.over(0, 999)
    assert placing.choose("a", [0, 1]) == 0
    placing.give(0, "a")
    placing.give(0, "a")
    placing.forget(0)
    assert placing.choose("a", [0, 1]) == 0


def test_a_worker_that_does_not_begin_gets_no_more():
    placing = Placing(2)
    tickets = [placing.give(0, "a") for _ in range(MAX_WAITING)]
    assert placing.choose("a", [0]) is None
    assert placing.choose("a", [0, 1]) == 1
    placing.begun(0, tickets[0])
    assert placing.choose("a", [0]) == 0
    assert placing.choose("a", []) is None
