"""Snapshots of several workers as one: sums, the worst of what differs, and nothing forgotten."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qproxy.admin.assess import SETTLING_S, assess
from qproxy.admin.decode import decode
from qproxy.admin.document import encode_document, plain
from qproxy.admin.merge import merge, retired, worker_obstacle
from qproxy.admin.metrics import StatusCollector
from qproxy.admin.status import GatewayStatus, KeyUse, PeerStatus, WorkerState
from qproxy.admin.text import status_lines
from qproxy.errors import Reason
from qproxy.modes import Mode, Policy
from qproxy.quantum.health import LinkState
from tests.admin import made
from tests.admin.test_document import document


def merged(*live, past=(), **changes):
    options = {"uptime_s": 77.0, "draining": False} | changes
    return merge(dict(enumerate(live)), past, **options)


def counters(status):
    """Every counter: (name, labels) -> value."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in StatusCollector(status, assess(status)).collect()
        if family.type == "counter"
        for sample in family.samples
        if not sample.name.startswith("qproxy_worker")
    }


def test_one_worker_is_itself():
    found = merged(made.GATEWAY)
    tunnels = (made.tunnel(worker=0),)
    assert found == replace(made.with_peer(tunnels=tunnels), uptime_s=77.0)


def test_a_kme_that_one_worker_does_without_shows_and_switches_are_kept():
    (source,) = merged(made.GATEWAY, made.ON_THE_SPARE_KME).peers[0].sources
    assert (source.failing_kmes, source.kme_switches) == (("north",), 3)
    gone = retired(made.ON_THE_SPARE_KME)
    assert (gone.peers[0].sources[0].kme, gone.peers[0].sources[0].failing_kmes) == (None, ())
    (source,) = merged(made.GATEWAY, past=(gone,)).peers[0].sources
    assert (source.kme, source.failing_kmes, source.kme_switches) == ("kme-a", (), 3)
    assert source.kme_failures == {"north": 7, "south": 0}


def test_two_workers_are_the_sum_of_both():
    found = merged(made.GATEWAY, made.GATEWAY)
    one, two = made.PEER, found.peers[0]
    assert [tunnel.worker for tunnel in two.tunnels] == [0, 1]
    assert (two.tunnels_wanted, two.streams_open) == (2, 2 * one.streams_open)
    assert two.epochs == {Mode.HYBRID: 168, Mode.CLASSICAL_ONLY: 2}
    assert two.bytes_sent == 2 * one.bytes_sent
    assert two.epoch_failures[0].count == 4
    assert two.stock is not None
    assert (two.stock.available, two.stock.confirmed) == (60, 168)
    # Both ask one KME.
    assert two.link is not None
    assert two.link.stored_keys == 900
    assert two.link.key_rate_bps == 100_000.0
    (listener,) = found.listeners
    assert listener.addresses == made.LISTENER.addresses
    assert listener.connections_accepted == 2 * made.LISTENER.connections_accepted
    assert listener.max_connections == 2 * made.LISTENER.max_connections
    assert counters(found) == {key: 2 * value for key, value in counters(made.GATEWAY).items()}


def test_where_workers_differ_the_worst_is_shown():
    found = merged(made.GATEWAY, made.FALLEN_BACK, made.PAYMENTS_REFUSED)
    (peer,) = found.peers
    assert (peer.mode, peer.source_key, peer.source_key_age_s) == (
        Mode.CLASSICAL_ONLY,
        KeyUse.CHAINED,
        310.0,
    )
    assert peer.link is not None
    assert (peer.link.state, peer.link.reason) == (LinkState.DOWN, Reason.KME_UNREACHABLE)
    assert not found.listeners[0].policy_met
    assert found.services[0].policy_met == {"gw-b": False}
    strict = made.with_peer(policy=made.REQUIRE)
    assert merged(made.GATEWAY, strict).peers[0].policy.effective is Policy.REQUIRE
    assert merged(made.GATEWAY, made.NO_TUNNEL).peers[0].mode is Mode.HYBRID


#: All workers run one configuration.
ALIKE = [name for name in made.ALL if name not in {"empty", "without QKD"}]


@pytest.mark.parametrize("name", ALIKE)
def test_no_counter_goes_down_when_a_worker_dies(name):
    gone = made.ALL[name]
    before = merged(made.GATEWAY, gone)
    after = merged(made.GATEWAY, past=[retired(gone)])
    assert counters(after) == counters(before)
    # Any number of them is kept as one.
    kept = merged(past=[retired(gone), retired(gone)])
    assert counters(merged(made.GATEWAY, past=[retired(kept)])) == counters(
        merged(made.GATEWAY, gone, gone)
    )


def test_without_any_worker_no_listener_has_what_its_policy_demands():
    strict = replace(made.LISTENER, policy=Policy.REQUIRE)
    past = [retired(made.gateway(listeners=(strict, made.LISTENER)))]
    found = merged(past=past).listeners
    assert [listener.policy_met for listener in found] == [False, True]


def test_the_dead_are_not_shown_as_living():
    found = merged(past=[retired(made.GATEWAY)])
    (peer,) = found.peers
    assert (peer.tunnels, peer.mode, peer.streams_open) == ((), None, 0)
    assert peer.stock is not None
    assert peer.stock.available == 0
    assert found.listeners[0].addresses == ()
    assert found.listeners[0].connections_open == 0
    assert not assess(found).ready
    # Nor is their last trouble news for ever.
    trouble = replace(made.DRAINING, draining=False)
    assert assess(merged(trouble)).warnings
    assert not assess(merged(made.GATEWAY, past=[retired(trouble)])).warnings


@pytest.mark.parametrize("name", made.ALL)
def test_a_snapshot_survives_the_way_from_a_worker(name):
    status = made.ALL[name]
    told = json.loads(encode_document(plain(status)))
    assert decode(GatewayStatus, told) == status


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("node",), 7),
        (("draining",), "no"),
        (("uptime_s",), True),
        (("peers",), {}),
        (("peers", 0), None),
        (("peers", 0, "policy", "local"), "maybe"),
        (("peers", 0, "epochs"), {"sideways": 1}),
        (("peers", 0, "keys"), 1.5),
        (("peers", 0, "tunnels", 0), []),
    ],
)
def test_what_is_no_snapshot_is_refused(path, value):
    told = json.loads(encode_document(plain(made.GATEWAY)))
    inner = told
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=r"no \w+|type|valid"):
        decode(GatewayStatus, told)
    del inner[path[-1]]
    if isinstance(path[-1], str):
        with pytest.raises(ValueError, match="no GatewayStatus"):
            decode(GatewayStatus, told)


def test_what_nests_too_deep_is_refused():
    deep: object = None
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="type"):
        decode(PeerStatus, deep)


# Workers in the judgement.


def with_workers(*workers):
    return made.gateway(workers=workers)


def test_a_worker_that_cannot_carry_is_waited_for_and_then_told():
    young = replace(made.WORKER, ready=False, obstacle="gw-b: no usable tunnel", uptime_s=1.0)
    assert assess(with_workers(made.WORKER, young)).ready
    old = replace(young, uptime_s=SETTLING_S)
    found = assess(with_workers(made.WORKER, old)).not_ready
    assert [(entry.about, entry.name, entry.reason) for entry in found] == [
        ("worker", "0", Reason.NO_TUNNEL)
    ]


def test_a_worker_that_died_is_a_warning_while_others_live():
    gone = replace(
        made.WORKER,
        number=1,
        state=WorkerState.WAITING,
        pid=None,
        uptime_s=None,
        ready=False,
        last_end="killed by SIGKILL",
        last_end_age_s=2.0,
    )
    found = assess(with_workers(made.WORKER, gone))
    assert found.ready
    assert found.warnings[0].detail == "waiting, killed by SIGKILL 2.0 s ago"
    back = replace(gone, state=WorkerState.RUNNING, ready=True, uptime_s=1.0)
    assert "was started again" in assess(with_workers(back)).warnings[0].detail
    assert not assess(with_workers(replace(back, last_end_age_s=3600.0))).warnings
    silent = replace(made.WORKER, answers=False)
    assert "does not answer" in assess(with_workers(silent)).warnings[0].detail


def test_only_peers_that_a_worker_needs_stand_in_its_way():
    assert worker_obstacle(made.GATEWAY) is None
    assert "no usable tunnel" in (worker_obstacle(made.NO_TUNNEL) or "")
    # It dials us, and no listener leads to it: any worker may have its tunnel.
    waits = replace(made.NO_TUNNEL, listeners=())
    waits = replace(waits, peers=(replace(waits.peers[0], address=None, tunnels_wanted=None),))
    assert worker_obstacle(waits) is None


def test_audit_trails_of_workers_count_like_the_one():
    stops = replace(made.WORKER, audit=made.AUDIT_STOPS.audit)
    assert assess(with_workers(stops)).not_ready[0].reason is Reason.AUDIT_FAILURE
    lossy = replace(made.WORKER, audit=made.AUDIT_GOES_ON.audit)
    assert [entry.reason for entry in assess(with_workers(lossy)).warnings] == [
        Reason.AUDIT_FAILURE,
        Reason.AUDIT_FAILURE,
    ]


def test_people_see_every_worker_and_where_each_tunnel_is():
    text = "\n".join(status_lines(document(made.WORKERS)))
    assert "worker 0 (process 4711): running for 1 h 23 min, tunnels 1" in text
    assert "audit /var/lib/qproxy/audit-w0.jsonl: 512 records" in text
    assert "worker 1: waiting, tunnels 0, streams 0, connections 0, starts 4" in text
    assert "!! worker 2: gw-b: no usable tunnel" in text
    assert "tunnel in worker 0, dialled here" in text
    # A gateway from before there were workers.
    older = document(made.GATEWAY)
    del older["workers"]
    assert status_lines(older)
