"""Two logs side by side: what must agree, and what ordinary misfortune explains."""

import dataclasses

import pytest

from qproxy.audit import compare as module
from qproxy.audit.compare import CompareError, Story, Window, compare
from qproxy.audit.facts import (
    EndedBy,
    EpochCommittedFacts,
    EpochConfirmedFacts,
    EpochEndedFacts,
    LogResumed,
    ModeChangedFacts,
    RecordsLost,
    TunnelClosedFacts,
)
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.tunnel.settings import Role
from tests.audit.helpers import End, check, committed, ends, move, new_epoch, seal, stamp


def story(end):
    found = Story()
    report = check(seal(end.facts)[0], on_record=found.add)
    assert report.whole
    return found


def result(a, b, window=None):
    one, other = compare(story(a), story(b), window), compare(story(b), story(a), window)
    assert len(one.differences) == len(other.differences)
    assert len(one.remarks) == len(other.remarks)
    return one


def life():
    """A tunnel with three epochs, a fall back and a climb back, closed in order."""
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100)
    move(b, a, 1000)
    new_epoch(a, b, 2, hybrid=False, reason=Reason.LINK_CHANGE, in_flight=77)
    move(a, b, 5)
    new_epoch(a, b, 3)
    move(b, a, 6)
    for end in (a, b):
        end.close()
        end.stop()
    return a, b


def change(end, kind, number, **changes):
    """Change a fact in one gateway's log, before it is sealed."""
    for at, fact in enumerate(end.facts):
        if isinstance(fact, kind) and getattr(fact, "epoch", None) == number:
            end.facts[at] = dataclasses.replace(fact, **changes)
            return
    raise AssertionError("no such fact")


def remove(end, kind, number=None):
    kept = [
        fact
        for fact in end.facts
        if not (isinstance(fact, kind) and number in {None, getattr(fact, "epoch", None)})
    ]
    assert len(kept) < len(end.facts)
    end.facts = kept


def test_two_honest_logs_agree():
    report = result(*life())
    assert report.agree
    assert report.remarks == []
    assert (report.tunnels, report.epochs) == (1, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch_id", "ff" * 16),
        ("mode", Mode.CLASSICAL_ONLY),
        ("previous_mode", Mode.HYBRID),
        ("reason", Reason.OPERATOR),
        ("attempt", 2),
        ("source_key_ever", False),
        ("reauthenticated", True),
        ("key_digests", ("ff" * 16,)),
        ("key_count", 2),
        ("key_kinds", ("file",)),
        ("key_paths", ("north",)),
        ("keys_are", (KeyNature.PAD,)),
        ("kem", KemAlgorithm.ML_KEM_768),
        ("aead", Aead.CHACHA20_POLY1305),
        ("tls_group", "X25519"),
        ("policy_effective", Policy.REQUIRE),
        ("policy_local", Policy.OFF),
        ("policy_peer", Policy.OFF),
        ("role", Role.CLIENT),
        ("peer", "gw-c"),
    ],
)
def test_any_difference_about_an_epoch_is_told(field, value):
    a, b = life()
    number = 1 if field == "peer" else 3
    change(b, EpochCommittedFacts, number, **{field: value})
    if field == "role":
        value = "both say they are the client"
    differences = result(a, b).differences
    assert differences
    name = {"policy_local": "policy", "policy_peer": "policy"}.get(field, field)
    assert any(name in text or str(value) in text for text in differences)


def test_a_difference_says_which_tunnel_which_epoch_and_who_says_what():
    a, b = life()
    change(b, EpochCommittedFacts, 3, kem=KemAlgorithm.ML_KEM_768)
    assert compare(story(a), story(b)).differences == [
        f"tunnel {a.connection_id.hex()}, epoch 3: "
        "kem is ml-kem-1024 at gw-a and ml-kem-768 at gw-b"
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_epoch_in_one_log_only_is_told(number):
    a, b = life()
    for kind in (EpochCommittedFacts, ModeChangedFacts, EpochEndedFacts):
        remove(b, kind, number)
    differences = result(a, b).differences
    assert any(f"epoch {number}: only gw-a committed it" in text for text in differences)


def test_a_tunnel_in_one_log_only_is_told():
    a, b = life()
    b.facts = b.facts[:2]
    differences = result(a, b).differences
    assert len(differences) == 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_log_cut_at_the_end_is_told(number):
    a, b = life()
    for at, fact in enumerate(b.facts):
        if isinstance(fact, EpochEndedFacts) and fact.epoch == number:
            b.facts = b.facts[:at]
            break
    assert not result(a, b).agree


def test_even_the_last_records_missing_are_told():
    a, b = life()
    at = next(i for i, f in enumerate(b.facts) if isinstance(f, EpochEndedFacts) and f.epoch == 3)
    b.facts = b.facts[:at]
    assert result(a, b).differences == [
        f"tunnel {a.connection_id.hex()}, epoch 3: gw-b does not say what was carried: "
        "its log ends before that, or records are missing"
    ]


def test_a_crash_explains_a_missing_end():
    a, b = life()
    at = next(i for i, f in enumerate(b.facts) if isinstance(f, EpochEndedFacts) and f.epoch == 3)
    b.facts = [*b.facts[:at], LogResumed(version="1")]
    report = result(a, b)
    assert report.agree
    assert "its run ended first" in report.remarks[0]


@pytest.mark.parametrize("field", ["bytes_sent", "bytes_received", "bytes_discarded"])
@pytest.mark.parametrize("by", [-1, 1])
def test_byte_counts_that_do_not_mirror_are_told(field, by):
    a, b = life()
    fact = next(f for f in b.facts if isinstance(f, EpochEndedFacts) and f.epoch == 1)
    if getattr(fact, field) + by < 0:
        by = 2
    change(b, EpochEndedFacts, 1, **{field: getattr(fact, field) + by})
    differences = result(a, b).differences
    assert len(differences) == 1
    assert "sent" in differences[0]


def test_discarded_bytes_did_arrive():
    a, b = ends()
    new_epoch(a, b, 1)
    a.sent += 10
    b.received += 4
    b.discarded += 6
    a.close()
    b.close()
    assert result(a, b).remarks == []
    assert result(a, b).agree


def test_bytes_under_way_in_a_tunnel_that_was_cut_are_explained():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100, arrives=60)
    a.close(clean=False)
    b.close(clean=False)
    report = result(a, b)
    assert report.agree
    assert "sent 100 bytes, gw-b received 60: the tunnel was cut" in report.remarks[0]


def test_bytes_missing_from_a_tunnel_that_ended_in_order_are_not_explained():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100, arrives=60)
    a.close(clean=False)  # it never got the peer's END
    b.close(clean=True)  # but its own END arrived, and everything before it must have
    assert not result(a, b).agree


def test_bytes_that_nobody_sent_are_never_explained():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100, arrives=101)
    a.close(clean=False)
    b.close(clean=False)
    assert not result(a, b).agree


def test_bytes_missing_from_an_epoch_that_was_switched_are_not_explained_by_a_cut():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100, arrives=60)
    new_epoch(a, b, 2)
    a.close(clean=False)
    b.close(clean=False)
    assert not result(a, b).agree


def unconfirmed():
    a, b = ends()
    new_epoch(a, b, 1)
    a.commit(committed(2, confirmed=False))
    a.sent += 9
    return a, b


def test_an_epoch_the_server_never_had_is_explained_by_a_tunnel_that_ended():
    a, b = unconfirmed()
    a.close(clean=False)
    b.close(clean=False)
    report = result(a, b)
    assert report.agree
    assert "only gw-a committed it; it was never confirmed" in report.remarks[0]


def test_it_is_not_explained_while_the_tunnel_goes_on():
    a, b = unconfirmed()
    assert not result(a, b).agree


def test_the_server_alone_cannot_have_an_epoch():
    a, b = ends()
    new_epoch(a, b, 1)
    b.commit(committed(2))
    a.close(clean=False)
    b.close(clean=False)
    assert not result(a, b).agree


def test_an_epoch_that_was_never_confirmed_is_told():
    a, b = ends()
    new_epoch(a, b, 1)
    a.commit(committed(2, confirmed=False))
    b.commit(committed(2))
    assert "so far" in result(a, b).remarks[0]
    a.close(clean=False)
    b.close(clean=False)
    assert any("never confirmed at gw-a" in text for text in result(a, b).remarks)


def test_epochs_after_one_that_was_never_confirmed_are_not_explained():
    a, b = life()
    remove(a, EpochConfirmedFacts, 2)
    assert result(a, b).differences == [
        f"tunnel {a.connection_id.hex()}, epoch 2: never confirmed at gw-a, though epochs followed"
    ]


@pytest.mark.parametrize("side", [0, 1])
def test_a_mode_change_is_recorded_by_both_or_told(side):
    pair = life()
    remove(pair[side], ModeChangedFacts, 2)
    assert "has no record of the mode change" in result(*pair).differences[0]


def test_a_mode_change_that_is_none_and_one_for_another_reason_are_told():
    a, b = life()
    extra = next(f for f in b.facts if isinstance(f, ModeChangedFacts))
    change(b, ModeChangedFacts, 2, reason=Reason.OPERATOR)
    assert "reason is link_change at gw-a" in compare(story(a), story(b)).differences[0]
    a, b = ends()
    new_epoch(a, b, 1)
    new_epoch(a, b, 2)
    b.facts.append(dataclasses.replace(extra, epoch=2))
    assert "gw-b records a mode change" in result(a, b).differences[0]


def test_open_tunnels_agree_so_far():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 10, arrives=3)
    report = result(a, b)
    assert report.agree
    assert "still in use" in report.remarks[0]


def test_counts_missing_on_both_sides_of_an_epoch_in_the_past_are_told():
    a, b = life()
    remove(a, EpochEndedFacts, 2)
    remove(b, EpochEndedFacts, 2)
    assert "neither says what was carried" in result(a, b).differences[0]


def test_tunnels_with_other_peers_are_none_of_our_business():
    a, b = life()
    other = End("gw-a", "gw-c", Role.CLIENT, connection_id=b"o" * 16)
    other.commit(committed(1))
    a.facts += other.facts[2:]
    assert result(a, b).agree


def test_two_logs_of_one_gateway_are_no_pair():
    a, _b = life()
    assert "nothing to compare" in compare(story(a), story(a)).differences[0]


def test_lost_records_are_remarked_and_explain_nothing_away():
    a, b = life()
    remove(b, EpochCommittedFacts, 3)
    remove(b, ModeChangedFacts, 3)
    remove(b, EpochEndedFacts, 3)
    b.facts.append(RecordsLost(count=3, since_offset_us=1))
    report = result(a, b)
    assert not report.agree
    assert "may have lost" in report.differences[0]
    assert "lost 3 records" in report.remarks[0]


def test_a_window_leaves_out_what_only_the_longer_log_can_know():
    a, b = life()
    second = End("gw-a", "gw-b", Role.CLIENT, connection_id=b"2" * 16)
    second.commit(committed(1))
    a.facts += second.facts[2:]
    assert not result(a, b).agree
    at = len(a.facts) - len(second.facts[2:])
    until = stamp(at * 1000 - 1).time
    assert result(a, b, Window(until=until)).agree
    assert result(a, b, Window(since="2030")).tunnels == 0
    assert result(a, b, Window(since="2030")).agree


def test_a_closed_record_without_a_tunnel_is_harmless():
    a, b = life()
    a.facts.append(
        TunnelClosedFacts(
            peer="gw-b",
            connection_id=None,
            role=Role.CLIENT,
            epoch=0,
            reason=Reason.TLS_FAILURE,
            clean=False,
            bytes_sent=0,
            bytes_received=0,
            bytes_discarded=0,
            streams_opened=0,
        )
    )
    assert result(a, b).agree


def test_findings_and_epochs_are_bounded(monkeypatch):
    a, b = life()
    monkeypatch.setattr(module, "MAX_FINDINGS", 1)
    b.facts = b.facts[:2]
    report = compare(story(a), story(b))
    assert (len(report.differences), report.dropped) == (1, 2)
    monkeypatch.setattr(module, "MAX_EPOCHS", 2)
    with pytest.raises(CompareError, match="more than 2 epochs"):
        story(a)


def test_ended_by_is_what_separates_a_cut_from_a_gap():
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 100, arrives=60)
    a.close(clean=False)
    b.close(clean=False)
    change(b, EpochEndedFacts, 1, ended_by=EndedBy.SWITCH)
    assert not result(a, b).agree
