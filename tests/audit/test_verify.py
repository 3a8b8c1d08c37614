"""Verification: whatever is done to a log is found, and where."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.audit.facts import ChainBroken, LogResumed, RecordsLost
from qproxy.audit.record import MAX_LINE_BYTES, AuditRecord, Chain, Head, encode_line
from qproxy.audit.verify import MAX_REMARKS, verify
from tests.audit.helpers import (
    CHAIN_ID,
    KEY,
    check,
    confirmed,
    header,
    log_lines,
    seal,
    split_file,
    stamp,
    started,
    stopped,
)

LINES = log_lines(8)
KEYED = log_lines(8, key=KEY)
BYTES = b"".join(LINES)


def relink(lines, *, key=None):
    """What an attacker can do who knows no key: the right hash for every line."""
    return seal_bodies([line[116:-2] for line in lines], key)


def seal_bodies(bodies, key=None):
    previous, lines = bytes(48), []
    for body in bodies:
        previous = Chain(key).next_hash(previous, body)
        lines.append(b'{"hash":"' + previous.hex().encode() + b'","record":' + body + b"}\n")
    return lines


def test_an_untouched_log_is_whole():
    report = check(LINES)
    assert report.broken is None
    assert report.whole
    assert report.records == 8
    assert (report.first_sequence, report.head.sequence) == (1, 8)
    assert report.head.hash.hex().encode() in LINES[-1]
    assert report.header == header()
    assert (report.first_time, report.last_time) == (stamp(0).time, stamp(7000).time)


def test_the_helper_relinks_as_the_product_does():
    assert relink(LINES) == LINES


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_found(data):
    at = data.draw(st.integers(0, len(BYTES) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != BYTES[at]))
    changed = bytearray(BYTES)
    changed[at] = value
    report = check(split_file_lf(bytes(changed)))
    assert report.broken is not None
    assert report.broken.line == BYTES[:at].count(b"\n") + 1


def split_file_lf(data):
    """Lines as a file gives them: only LF ends one."""
    return [part + b"\n" for part in data.split(b"\n")[:-1]] + (
        [data.rsplit(b"\n", 1)[-1]] if not data.endswith(b"\n") else []
    )


@pytest.mark.parametrize("flip", [1, 0x20, 0x80])
def test_every_single_byte_of_a_keyed_log_matters(flip):
    data = b"".join(KEYED[:4])
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= flip
        assert check(split_file_lf(bytes(changed)), key=KEY).broken is not None


@given(st.integers(0, 6))
def test_a_removed_line_is_found(at):
    report = check(LINES[:at] + LINES[at + 1 :])
    assert report.broken is not None
    assert report.broken.line == at + 1


@given(st.integers(0, 7), st.integers(0, 8))
def test_a_duplicated_line_is_found(at, to):
    report = check([*LINES[:to], LINES[at], *LINES[to:]])
    assert report.broken is not None


@given(st.permutations(range(8)).filter(lambda order: order != list(range(8))))
def test_reordered_lines_are_found(order):
    assert check([LINES[at] for at in order]).broken is not None


@given(st.integers(0, 6))
def test_without_a_key_the_chain_alone_cannot_stop_a_rewrite_but_sequence_numbers_can(at):
    """Removing a line and computing every hash again still leaves a gap in the numbers."""
    report = check(relink(LINES[:at] + LINES[at + 1 :]))
    assert report.broken is not None


def test_a_full_rewrite_without_a_key_passes_and_only_the_head_tells():
    """What docs/audit.md admits: this is why heads are noted elsewhere."""
    facts = [header(), started(), *map(confirmed, (1, 2, 3, 9, 5, 6))]
    forged, forged_head = seal(facts)
    report = check(forged, seek=check(LINES).head.hash)
    assert report.whole
    assert report.head == forged_head
    assert report.head != check(LINES).head
    assert not report.sought_found


def test_a_rewrite_without_the_key_of_a_keyed_chain_is_found():
    assert check(KEYED, key=KEY).whole
    assert check(relink(KEYED), key=KEY).broken.line == 1
    plain = check(LINES, key=KEY)
    assert "not keyed" in plain.broken.problem
    # Keeping the genuine start does not help either.
    report = check(
        [*KEYED[:5], *seal(map(confirmed, (8, 9)), head=check(KEYED[:5], key=KEY).head)[0]], key=KEY
    )
    assert report.broken.line == 6


def test_a_keyed_chain_needs_its_key():
    assert "HMAC key is needed" in check(KEYED).broken.problem
    other = check(KEYED, key=bytes(32))
    assert other.broken.line == 1
    assert "HMAC key is another" in other.broken.problem


def test_a_log_cut_at_the_end_is_whole_by_itself_and_the_noted_head_is_missing_from_it():
    head = check(LINES).head.hash
    cut = check(LINES[:-2], seek=head)
    assert cut.whole
    assert not cut.sought_found
    assert check(LINES, seek=check(LINES[:-2]).head.hash).sought_found


def test_a_torn_last_line_is_reported():
    report = check([*LINES[:-1], LINES[-1][:-10]])
    assert report.broken.line == 8
    assert "torn" in report.broken.problem
    assert report.records == 7


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"x" * (MAX_LINE_BYTES + 1), "longer than"),
        (b"\xff\xfe\n", "expected"),
        (b"\n", "expected"),
        (b"[" * 10000 + b"\n", "expected"),
    ],
)
def test_hostile_lines_give_clear_errors(line, problem):
    report = check([*LINES[:3], line, *LINES[4:]])
    assert report.broken.line == 4
    assert problem in report.broken.problem
    assert len(str(report.broken)) < 300


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"[" * 8000 + b"]" * 8000, "nested"),
        (b'{"kind":"\xff"}', "ASCII"),
        (b"{}", "kind"),
    ],
)
def test_hostile_records_with_the_right_hash_give_clear_errors(body, problem):
    bodies = [line[116:-2] for line in LINES[:3]]
    report = check(seal_bodies([*bodies, body]))
    assert report.broken.line == 4
    assert problem in report.broken.problem


def test_an_empty_log_and_an_empty_file_are_no_logs():
    assert check([]).broken.problem == "empty"
    assert verify([]).broken.problem == "no records"
    assert verify([("a", LINES), ("b", [])]).broken.file == "b"


def test_a_log_begins_with_a_header():
    assert "header" in check(seal([started()])[0]).broken.problem
    assert "header" in check(seal([header(), started(), header()])[0]).broken.problem


def test_another_format_version_is_refused():
    strange = dataclasses.replace(header(), format_version=3)
    assert "format" in check(seal([strange])[0]).broken.problem


# Rotated files ----------------------------------------------------------------------------------


def rotated():
    first, head = seal([header(), started(), confirmed(1)])
    second, head2 = seal(
        [header(number=2, previous=head.hash), confirmed(2)], head=head, first_us=9000
    )
    third, _ = seal([header(number=3, previous=head2.hash), stopped()], head=head2, first_us=20000)
    return [("1", first), ("2", second), ("3", third)]


def test_the_chain_runs_through_rotated_files():
    report = verify(rotated())
    assert report.whole
    assert (report.files, report.records, report.head.sequence) == (3, 7, 7)


def test_a_missing_or_exchanged_file_is_found():
    one, two, three = rotated()
    assert verify([one, three]).broken.file == "3"
    assert verify([two, one, three]).broken.file == "1"
    assert verify([one, one]).broken is not None


def test_missing_older_files_leave_a_log_that_is_not_whole():
    _one, two, three = rotated()
    report = verify([two, three])
    assert report.broken is None
    assert not report.whole
    assert report.first_sequence == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"chain_id": "ff" * 16},
        {"node": "gw-c"},
        {"number": 4},
        {"previous": b"p" * 48},
    ],
)
def test_a_file_of_another_chain_does_not_follow(changes):
    first, head = seal([header(), started()])
    options = {"number": 2, "previous": head.hash, **changes}
    second, _ = seal([header(**options)], head=head, first_us=9000)
    assert verify([("1", first), ("2", second)]).broken.file == "2"


def test_a_chain_begins_with_record_1_and_file_1_begins_a_chain():
    begun_late, _ = seal([header()], head=Head(4, bytes(48)))
    assert "begins here" in check(begun_late).broken.problem
    no_start, _ = seal([header(previous=b"p" * 48)], head=Head(4, b"p" * 48))
    assert "does not begin here" in check(no_start).broken.problem


# Clocks and remarks -----------------------------------------------------------------------------


def at(us, sequence, facts, head, *, time_us=None):
    moment = dataclasses.replace(stamp(us), time=stamp(us if time_us is None else time_us).time)
    line, digest = encode_line(AuditRecord(sequence, moment, facts), head.hash, Chain())
    return line, Head(sequence, digest)


def test_the_monotonic_clock_never_goes_back_within_a_run():
    one, head = at(0, 1, header(), Head())
    two, head = at(500, 2, started(), head)
    back, _ = at(499, 3, confirmed(1), head)
    assert "went back from 500 to 499" in check([one, two, back]).broken.problem
    resumed, head = at(0, 3, LogResumed(version="1"), head)
    again, _ = at(499, 4, confirmed(1), head)
    assert check([one, two, resumed, again]).whole


def test_a_clock_set_back_is_remarked_and_not_wrong():
    one, head = at(1000, 1, header(), Head())
    two, _ = at(2000, 2, started(), head, time_us=10)
    report = check([one, two])
    assert report.whole
    assert "set back" in report.remarks[0]


def test_what_went_wrong_at_the_gateway_is_remarked():
    facts = [
        header(),
        ChainBroken(problem="line 3 is strange", moved_to="audit.jsonl.damaged-1"),
        started(),
        RecordsLost(count=17, since_offset_us=1),
        LogResumed(version="1"),
        LogResumed(version="1", torn_bytes=9, torn_sha384="ab" * 48),
        stopped(),
        LogResumed(version="1"),
    ]
    report = check(seal(facts)[0])
    assert report.whole
    texts = "\n".join(report.remarks)
    assert "line 3 is strange" in texts
    assert "damaged-1" in texts
    assert "17 records were lost" in texts
    assert "without gateway_stopped" in texts
    assert "9 bytes cut off" in texts
    assert len(report.remarks) == 4  # the run after an orderly stop is nothing to remark on


def test_remarks_are_bounded():
    lost = [RecordsLost(count=1, since_offset_us=1)] * (MAX_REMARKS + 5)
    report = check(seal([header(), *lost])[0])
    assert (len(report.remarks), report.remarks_dropped) == (MAX_REMARKS, 5)


def test_every_right_record_is_handed_on_and_no_other():
    seen = []
    check([*LINES[:4], LINES[5]], on_record=seen.append)
    assert [record.sequence for record in seen] == [1, 2, 3, 4]


def test_helpers_agree_about_lines():
    assert split_file(BYTES) == LINES
    assert len(CHAIN_ID) == 32
