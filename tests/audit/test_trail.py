"""From events to facts: which bytes ran under which keys."""

import dataclasses

from qproxy.audit.facts import (
    EndedBy,
    EpochCommittedFacts,
    EpochConfirmedFacts,
    EpochEndedFacts,
    EpochFailedFacts,
    ModeChangedFacts,
    TunnelClosedFacts,
    encode_facts,
)
from qproxy.errors import Reason
from qproxy.keys import KeyOrigin
from qproxy.modes import Mode
from qproxy.tunnel.events import EpochConfirmed, EpochFailed
from tests.audit.helpers import CONNECTION_ID, committed, ends, move, new_epoch


def of(end, kind):
    return [fact for fact in end.facts if isinstance(fact, kind)]


def test_bytes_belong_to_the_epoch_whose_keys_they_ran_under():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100)
    move(b, a, 1000)
    # 7 bytes of the server's come under epoch 1 after the client has committed epoch 2, while
    # the client sends 30 under epoch 2 already.
    a.commit(committed(2, confirmed=False))
    a.sent += 30
    b.sent += 7
    b.commit(committed(2))
    b.received += 30
    a.received += 7
    a.confirm(2)
    move(b, a, 50)
    a.close()
    b.close()
    ended_a = [(e.epoch, e.bytes_sent, e.bytes_received) for e in of(a, EpochEndedFacts)]
    ended_b = [(e.epoch, e.bytes_sent, e.bytes_received) for e in of(b, EpochEndedFacts)]
    assert ended_a == [(1, 100, 1007), (2, 30, 50)]
    assert ended_b == [(1, 1007, 100), (2, 50, 30)]
    assert [e.ended_by for e in of(a, EpochEndedFacts)] == [EndedBy.SWITCH, EndedBy.CLOSE]
    assert of(a, TunnelClosedFacts)[0].bytes_received == 1057


def test_a_tunnel_that_dies_between_commit_and_switch_ends_both_epochs():
    a, _b = ends()
    a.commit(committed(1, confirmed=False))
    a.confirm(1)
    a.sent, a.received, a.streams = 10, 20, 1
    a.commit(committed(2, confirmed=False))
    a.sent, a.received, a.streams = 15, 29, 3
    a.close(clean=False)
    ended = of(a, EpochEndedFacts)
    assert [(e.epoch, e.bytes_sent, e.bytes_received) for e in ended] == [(1, 10, 29), (2, 5, 0)]
    assert [e.streams_opened for e in ended] == [1, 2]
    assert {e.ended_by for e in ended} == {EndedBy.CLOSE}
    assert not of(a, TunnelClosedFacts)[0].clean


def test_discarded_bytes_are_counted_apart():
    a, _b = ends()
    a.commit(committed(1))
    a.received, a.discarded = 5, 6
    a.close()
    ended = of(a, EpochEndedFacts)[0]
    assert (ended.bytes_received, ended.bytes_discarded) == (5, 6)


def test_a_commit_says_what_the_keys_are_made_from():
    a, _b = ends()
    a.commit(committed(1, key_ids=("one", "two"), confirmed=False, reason=Reason.INITIAL))
    fields = encode_facts(of(a, EpochCommittedFacts)[0])
    assert fields == {
        "peer": "gw-b",
        "connection_id": CONNECTION_ID.hex(),
        "role": "client",
        "epoch": 1,
        "attempt": 1,
        "epoch_id": f"{1:032x}",
        "mode": "hybrid",
        "previous_mode": None,
        "reason": "initial",
        "source_key_ever": True,
        "reauthenticated": False,
        "key_digests": ["7692c3ad3540bb803c020b3aee66cd88", "3fc4ccfe745870e2c0d99f71f30ff065"],
        "key_count": 2,
        "key_sources": ["kme", "kme"],
        "key_kinds": ["etsi-qkd-014", "etsi-qkd-014"],
        "key_paths": ["", ""],
        "keys_are": ["simulated", "simulated"],
        "kem": "ml-kem-1024",
        "aead": "aes-256-gcm",
        "tls_group": "X25519MLKEM768",
        "policy_local": "prefer",
        "policy_peer": "prefer",
        "policy_effective": "prefer",
        "confirmed": False,
    }


def test_a_classical_epoch_names_no_key_source():
    a, _b = ends()
    a.commit(committed(1, hybrid=False))
    fact = of(a, EpochCommittedFacts)[0]
    assert fact.key_sources == fact.key_kinds == fact.key_paths == fact.keys_are == ()


def test_each_key_says_where_it_is_from_and_what_it_may_be_called():
    a, _b = ends()
    origins = (
        KeyOrigin("kme-n", "etsi-qkd-014", simulated=False, path="north"),
        KeyOrigin("kp", "skip", simulated=False, path="south"),
        KeyOrigin("pad", "file", simulated=False, path="pad"),
    )
    event = committed(1, key_ids=("a", "b", "c"))
    a.commit(dataclasses.replace(event, origins=origins))
    fact = of(a, EpochCommittedFacts)[0]
    assert fact.key_sources == ("kme-n", "kp", "pad")
    assert fact.key_kinds == ("etsi-qkd-014", "skip", "file")
    assert fact.key_paths == ("north", "south", "pad")
    assert fact.keys_are == ("qkd", "unstated", "pre-shared-pad")


def test_every_change_of_mode_is_a_record_and_nothing_else_is():
    a, _b = ends()
    for number, hybrid in enumerate((True, True, False, False, True), start=1):
        a.commit(committed(number, hybrid=hybrid))
    changes = [(f.epoch, f.was, f.mode) for f in of(a, ModeChangedFacts)]
    assert changes == [
        (1, None, Mode.HYBRID),
        (3, Mode.HYBRID, Mode.CLASSICAL_ONLY),
        (5, Mode.CLASSICAL_ONLY, Mode.HYBRID),
    ]


def test_only_the_current_epoch_is_confirmed():
    a, _b = ends()
    assert a.trail.on_confirmed(EpochConfirmed(1)) == []
    a.commit(committed(1, confirmed=False))
    assert a.trail.on_confirmed(EpochConfirmed(2)) == []
    a.confirm(1)
    assert [f.epoch for f in of(a, EpochConfirmedFacts)] == [1]


def test_a_failed_attempt_and_a_tunnel_without_an_epoch():
    a, b = ends()
    event = EpochFailed(1, 2, Mode.HYBRID, Reason.KME_TIMEOUT, remote=True)
    a.facts += a.trail.on_failed(event, CONNECTION_ID)
    b.facts += b.trail.on_failed(event, None)
    fact = of(a, EpochFailedFacts)[0]
    assert (fact.epoch, fact.attempt, fact.reason, fact.remote) == (1, 2, Reason.KME_TIMEOUT, True)
    assert of(b, EpochFailedFacts)[0].connection_id is None
    b.close(clean=False)
    assert of(b, TunnelClosedFacts)[0].epoch == 0
    assert of(b, EpochEndedFacts) == []
