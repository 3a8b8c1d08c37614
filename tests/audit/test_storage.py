"""The files: appended whole or not at all, rotated, gone on with after a crash."""

import errno
import hashlib
import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qproxy.audit.facts import ChainBroken, GatewayStarted, LogHeader, LogResumed
from qproxy.audit.record import MAX_LINE_BYTES, Chain
from qproxy.audit.storage import (
    MIN_MAX_FILE_BYTES,
    ChainFile,
    DiskFile,
    LogIdentity,
    log_files,
)
from qproxy.audit.tail import AuditError, DamagedError, LockedError, read_lines, read_tail
from qproxy.audit.verify import verify
from tests.audit.helpers import IDENTITY, KEY, Disk, confirmed, stamp, started


def open_log(path, *, key=None, us=0, **options):
    options.setdefault("max_file_bytes", MIN_MAX_FILE_BYTES)
    log = ChainFile(path, Chain(key), options.pop("identity", IDENTITY), **options)
    log.open(stamp(us))
    return log


def write(log, count, *, us=1000):
    for number in range(1, count + 1):
        log.append([(stamp(us + number), confirmed(number))])


def checked(path, *, key=None):
    """The records of a log and its rotated files, verified."""
    records = []
    named = [(file.name, read_lines(file)) for file in log_files(path)]
    report = verify(named, key=key, on_record=records.append)
    return report, [record.facts for record in records]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def test_a_new_log_is_private_and_begins_with_a_header(path):
    log = open_log(path)
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    report, facts = checked(path)
    assert report.whole
    assert report.head == log.head
    assert [type(fact) for fact in facts] == [LogHeader]
    assert facts[0].node == "gw-a"


@pytest.mark.parametrize("key", [None, KEY])
def test_a_restart_goes_on_with_the_chain(path, key):
    log = open_log(path, key=key)
    write(log, 3)
    log.close()
    log = open_log(path, key=key)
    write(log, 2)
    log.close()
    report, facts = checked(path, key=key)
    assert report.whole
    assert report.records == 7
    assert facts[4] == LogResumed(version="0.1.0")


def test_a_full_file_is_rotated_and_the_chain_runs_on(path):
    log = open_log(path)
    for number in range(1, 401):
        log.append([(stamp(number), confirmed(number))])
    log.close()
    names = [file.name for file in log_files(path)]
    assert names == ["audit.jsonl.000001", "audit.jsonl.000002", "audit.jsonl"]
    assert all(file.stat().st_size < MIN_MAX_FILE_BYTES + 1000 for file in log_files(path))
    report, facts = checked(path)
    assert report.whole
    headers = [fact for fact in facts if isinstance(fact, LogHeader)]
    assert [fact.file_number for fact in headers] == [1, 2, 3]
    assert len({fact.chain_id for fact in headers}) == 1
    log = open_log(path)
    log.close()
    assert checked(path)[0].whole


def torn_at(path, cut):
    log = open_log(path)
    write(log, 3)
    log.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    return data[: len(data) - cut]


def test_a_torn_last_line_is_cut_off_and_told(path):
    data = torn_at(path, 20)
    torn = data[data.rfind(b"\n") + 1 :]
    assert "torn" in checked(path)[0].broken.problem
    open_log(path).close()
    report, facts = checked(path)
    assert report.whole
    assert facts[-1] == LogResumed(
        version="0.1.0", torn_bytes=len(torn), torn_sha384=hashlib.sha384(torn).hexdigest()
    )
    assert any(f"{len(torn)} bytes cut off" in text for text in report.remarks)


@given(cut=st.integers(1, 1500))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_log_torn_anywhere_can_be_gone_on_with(tmp_path, cut):
    path = tmp_path / f"{cut}.jsonl"
    path.unlink(missing_ok=True)
    torn_at(path, min(cut, 1000))
    log = open_log(path)
    write(log, 1)
    log.close()
    assert checked(path)[0].whole


def test_a_torn_header_is_a_log_not_begun(path):
    open_log(path).close()
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    open_log(path).close()
    report, facts = checked(path)
    assert report.whole
    assert [type(fact) for fact in facts] == [LogHeader, LogResumed]
    assert facts[1].torn_bytes == len(torn)


def test_zeros_at_the_end_after_a_power_cut_are_torn_too(path):
    log = open_log(path)
    log.close()
    with path.open("ab") as file:
        file.write(bytes(5000))
    open_log(path).close()
    report, facts = checked(path)
    assert report.whole
    assert facts[-1].torn_bytes == 5000


def test_a_crash_between_renaming_and_beginning_goes_on_in_a_new_file(path):
    log = open_log(path)
    write(log, 2)
    log.close()
    path.rename(path.with_name("audit.jsonl.000001"))
    open_log(path).close()
    report, facts = checked(path)
    assert report.whole
    assert facts[-2].file_number == 2
    assert isinstance(facts[-1], LogResumed)


def test_the_same_with_a_torn_header(path):
    log = open_log(path)
    write(log, 2)
    log.close()
    path.rename(path.with_name("audit.jsonl.000001"))
    path.write_bytes(b'{"hash":"')
    open_log(path).close()
    report, facts = checked(path)
    assert report.whole
    assert facts[-1].torn_bytes == 9


def damage(path, change):
    log = open_log(path)
    write(log, 5)
    log.close()
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"epoch":4', b'"epoch":7'),
        lambda data: b"\n".join(data.split(b"\n")[:3] + data.split(b"\n")[4:]),
        lambda data: data + b"junk\n",
        lambda data: b"junk\n" + data,
        lambda data: data[data.find(b"\n") + 1 :],
        lambda data: b"x" * (MAX_LINE_BYTES + 1),
        lambda data: data + bytes(3) + b"\n",
    ],
)
def test_a_damaged_log_is_not_gone_on_with(path, change):
    damage(path, change)
    before = path.read_bytes()
    with pytest.raises(DamagedError):
        open_log(path)
    assert path.read_bytes() == before


def test_only_the_tail_of_a_large_file_is_read(path, monkeypatch):
    log = open_log(path)
    write(log, 50)
    log.close()
    monkeypatch.setattr("qproxy.audit.tail.TAIL_BYTES", 2000)
    tail = read_tail(path, Chain())
    assert tail.head == log.head
    assert tail.size_bytes == path.stat().st_size
    path.write_bytes(path.read_bytes().replace(b'"epoch":50', b'"epoch":51'))
    with pytest.raises(DamagedError, match="does not follow"):
        read_tail(path, Chain())


def test_the_log_of_another_gateway_is_left_alone(path):
    open_log(path).close()
    with pytest.raises(AuditError, match="the log of gw-a"):
        open_log(path, identity=LogIdentity(node="gw-b", version="1"))


def test_a_chain_does_not_become_keyed_later(path):
    open_log(path).close()
    with pytest.raises(AuditError, match="not keyed"):
        open_log(path, key=KEY)


def test_another_key_is_noticed(path):
    open_log(path, key=KEY).close()
    with pytest.raises(DamagedError, match="another key"):
        open_log(path, key=bytes(32))


def test_two_processes_do_not_write_one_log(path):
    log = open_log(path)
    with pytest.raises(LockedError):
        open_log(path)
    log.close()
    open_log(path).close()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_only_a_regular_file_is_written(path, make):
    make(path)
    with pytest.raises((OSError, DamagedError)):
        open_log(path)


def test_a_pipe_is_no_log_file(path):
    os.mkfifo(path)
    with pytest.raises(OSError):
        DiskFile(path)


# Writing that fails -----------------------------------------------------------------------------


def test_a_batch_is_appended_whole_or_not_at_all(path):
    disk = Disk()
    log = open_log(path, open_file=disk)
    before, head = path.read_bytes(), log.head
    disk.room = 100
    with pytest.raises(OSError) as caught:
        log.append([(stamp(1), confirmed(1)), (stamp(2), confirmed(2))])
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert log.head == head
    disk.room = None
    log.append([(stamp(1), confirmed(1)), (stamp(2), confirmed(2))])
    log.close()
    assert checked(path)[0].records == 3


def test_what_could_not_be_cut_back_at_once_is_cut_back_before_the_next_batch(path):
    disk = Disk()
    log = open_log(path, open_file=disk)
    disk.room, disk.truncate_error = 100, errno.EIO
    with pytest.raises(OSError):
        log.append([(stamp(1), confirmed(1))])
    disk.room = None
    with pytest.raises(OSError):
        log.append([(stamp(1), confirmed(1))])
    disk.truncate_error = None
    log.append([(stamp(1), confirmed(1))])
    log.close()
    assert checked(path)[0].records == 2


def test_a_batch_that_does_not_reach_the_disk_is_not_appended(path):
    disk = Disk()
    log = open_log(path, open_file=disk)
    before = path.read_bytes()
    disk.sync_error = errno.EIO
    with pytest.raises(OSError):
        log.append([(stamp(1), confirmed(1))], sync=True)
    assert path.read_bytes() == before


def test_a_disk_that_fills_up_while_a_file_is_rotated_is_survived(path):
    disk = Disk()
    log = open_log(path, open_file=disk)
    while path.stat().st_size < MIN_MAX_FILE_BYTES:
        log.append([(stamp(1), confirmed(1))])
    disk.room = 50
    for _ in range(3):
        with pytest.raises(OSError):
            log.append([(stamp(2), confirmed(2))])
    disk.room = None
    log.append([(stamp(2), confirmed(2))])
    log.close()
    report, facts = checked(path)
    assert report.whole
    assert facts[-1] == confirmed(2)
    assert report.files == 2


# Somebody else at the file ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meddle", "problem"),
    [
        (lambda path: path.unlink(), "moved or deleted"),
        (lambda path: path.rename(path.with_name("elsewhere")), "moved or deleted"),
        (lambda path: path.write_bytes(b""), "somebody else changed"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "somebody else changed"),
    ],
)
def test_a_file_that_was_meddled_with_is_noticed_before_the_next_record(path, meddle, problem):
    log = open_log(path)
    write(log, 2)
    head = log.head
    meddle(path)
    with pytest.raises(DamagedError, match=problem) as caught:
        log.append([(stamp(5000), started())])
    log.restart(stamp(5000), str(caught.value))
    log.append([(stamp(5000), started())])
    log.close()
    facts = []
    report = verify([("log", read_lines(path))], on_record=lambda r: facts.append(r.facts))
    assert report.broken is None
    assert facts[0].previous_hash == head.hash.hex()
    assert isinstance(facts[1], ChainBroken)
    assert problem in facts[1].problem
    assert facts[2] == GatewayStarted(version="0.1.0", kem_provider="openssl")


def test_what_was_damaged_is_kept(path):
    damage(path, lambda data: data + b"junk\n")
    damaged = path.read_bytes()
    log = ChainFile(path, Chain(), IDENTITY)
    with pytest.raises(DamagedError):
        log.open(stamp(0))
    log.restart(stamp(0), "junk")
    log.close()
    assert path.with_name("audit.jsonl.damaged-1").read_bytes() == damaged
    report, facts = checked(path)
    assert report.whole
    assert facts[1] == ChainBroken(problem="junk", moved_to="audit.jsonl.damaged-1")


def test_a_new_chain_never_takes_the_number_of_a_rotated_file(path):
    log = open_log(path)
    for number in range(200):
        log.append([(stamp(number), confirmed(1))])
    log.close()
    path.write_bytes(b"junk\n")
    identity = LogIdentity(node="gw-a", version="0.1.0", random_bytes=lambda size: b"2" * size)
    log = ChainFile(path, Chain(), identity, max_file_bytes=MIN_MAX_FILE_BYTES)
    with pytest.raises(DamagedError):
        log.open(stamp(0))
    log.restart(stamp(0), "junk")
    for number in range(200):
        log.append([(stamp(number), confirmed(1))])
    log.close()
    names = [file.name for file in log_files(path)]
    assert names == ["audit.jsonl.000001", "audit.jsonl.000002", "audit.jsonl"]
    assert "another chain begins here" in checked(path)[0].broken.problem


def test_reading_lines_is_bounded(path):
    path.write_bytes(b"x" * 100_000 + b"\n")
    assert max(map(len, read_lines(path))) == MAX_LINE_BYTES + 1


def test_a_file_size_too_small_is_refused(path):
    with pytest.raises(ValueError, match="max_file_bytes"):
        ChainFile(path, Chain(), IDENTITY, max_file_bytes=1)
