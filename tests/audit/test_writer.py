"""The writer: never in the way, never silent."""

import errno
import threading

import pytest

from qproxy.audit import writer as module
from qproxy.audit.facts import (
    ChainBroken,
    GatewayStarted,
    LogHeader,
    LogResumed,
    RecordsLost,
)
from qproxy.audit.storage import LogIdentity, log_files
from qproxy.audit.tail import AuditError, LockedError, read_lines
from qproxy.audit.verify import verify
from qproxy.audit.writer import AuditFault
from qproxy.config.model import Fsync, OnAuditFailure
from tests.audit.helpers import KEY, Disk, Faults, confirmed, make_writer, started, stopped


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def checked(path, *, key=None):
    records = []
    named = [(file.name, read_lines(file)) for file in log_files(path)]
    report = verify(named, key=key, on_record=records.append)
    assert report.broken is None, report.broken
    return [record.facts for record in records]


def wait_for(condition):
    """Wait for the writing thread, for at most ten seconds."""
    pause = threading.Event()
    for _ in range(10_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it never happened")


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_written_is_in_the_log_in_order(path, fsync, key):
    writer = make_writer(path, fsync=fsync, hmac_key=key)
    facts = [started(), *map(confirmed, range(1, 600)), stopped()]
    for fact in facts:
        writer.write(fact)
    head = writer.close()
    assert checked(path, key=key)[1:] == facts
    assert head.sequence == 602
    assert (writer.records_written, writer.records_lost, writer.failures) == (601, 0, 0)


def test_fsync_each_waits_for_the_disk_before_a_record_counts_as_written(path):
    disk = Disk()
    writer = make_writer(path, fsync=Fsync.EACH, open_file=disk)
    before = disk.syncs
    writer.write(started())
    wait_for(lambda: writer.records_written == 1)
    assert disk.syncs == before + 1
    writer.close()


def test_fsync_interval_waits_once_for_many_records_even_when_no_more_come(path, monkeypatch):
    monkeypatch.setattr(module, "SYNC_INTERVAL_S", 0.01)
    disk = Disk()
    writer = make_writer(path, fsync=Fsync.INTERVAL, open_file=disk)
    before = disk.syncs
    writer.write(started())
    wait_for(lambda: disk.syncs > before)
    writer.close()


def test_fsync_never_leaves_it_to_the_kernel_but_for_the_end(path):
    disk = Disk()
    writer = make_writer(path, fsync=Fsync.NEVER, open_file=disk)
    before = disk.syncs
    for _ in range(100):
        writer.write(started())
    wait_for(lambda: writer.records_written == 100)
    assert disk.syncs == before
    writer.close()
    assert disk.syncs == before + 1


def test_write_does_not_wait_for_the_disk(path):
    disk = Disk()
    writer = make_writer(path, open_file=disk)
    disk.frozen.clear()
    for number in range(100):
        writer.write(confirmed(number))  # would hang here
    assert writer.records_written == 0
    disk.frozen.set()
    writer.close()
    assert len(checked(path)) == 101


def test_a_restart_is_told_and_times_begin_again(path):
    make_writer(path).close()
    writer = make_writer(path)
    writer.write(started())
    writer.close()
    assert [type(fact) for fact in checked(path)] == [LogHeader, LogResumed, GatewayStarted]


# Failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errno.ENOSPC, AuditFault.DISK_FULL),
        (errno.EDQUOT, AuditFault.DISK_FULL),
        (errno.EROFS, AuditFault.UNWRITABLE),
        (errno.EIO, AuditFault.UNWRITABLE),
    ],
)
def test_an_outage_is_told_once_and_loses_nothing_while_the_queue_holds(path, error, fault, caplog):
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults)
    disk.error = error
    writer.write(started())
    assert faults.called.wait(10)
    for number in range(50):
        writer.write(confirmed(number))
    assert writer.failing is fault
    disk.error = None
    wait_for(lambda: writer.failing is None)
    writer.close()
    assert checked(path)[1:] == [started(), *map(confirmed, range(50))]
    assert faults.seen == [fault]
    assert (writer.failures, writer.records_lost) == (1, 0)
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == ["audit_failed"]


def test_a_full_disk_in_the_middle_of_a_record_leaves_no_half_record(path):
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults)
    disk.room = 100
    writer.write(started())
    assert faults.called.wait(10)
    assert len(checked(path)) == 1
    disk.room = None
    writer.close()
    assert checked(path)[1:] == [started()]


def test_a_long_outage_says_how_many_records_it_cost(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUEUED_RECORDS", 10)
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults)
    disk.error = errno.ENOSPC
    writer.write(started())
    assert faults.called.wait(10)
    for number in range(1, 30):
        writer.write(confirmed(number))
    assert writer.records_lost == 20
    disk.error = None
    wait_for(lambda: writer.failing is None and writer.records_written == 11)
    writer.write(stopped())
    writer.close()
    facts = checked(path)[1:]
    assert facts[:10] == [started(), *map(confirmed, range(1, 10))]
    assert isinstance(facts[10], RecordsLost)
    assert facts[10].count == 20
    assert facts[11:] == [stopped()]


def test_a_disk_that_hangs_is_a_failure_too(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUEUED_RECORDS", 3)
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults)
    disk.frozen.clear()
    for number in range(5):
        writer.write(confirmed(number))
    assert faults.seen == [AuditFault.QUEUE_FULL]
    disk.frozen.set()
    writer.close()
    assert isinstance(checked(path)[-1], RecordsLost)


def test_a_record_that_waits_too_long_is_a_failure_before_the_queue_is_full(path):
    now = [0.0]
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults, monotonic=lambda: now[0])
    disk.frozen.clear()
    writer.write(confirmed(1))
    now[0] = module.MAX_WAIT_S
    writer.write(confirmed(2))
    assert faults.seen == []
    now[0] += 0.1
    writer.write(confirmed(3))
    assert faults.seen == [AuditFault.TOO_SLOW]
    disk.frozen.set()
    writer.close()
    assert len(checked(path)) == 4


def test_a_second_outage_is_told_again(path):
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults)
    for count in (1, 2):
        disk.error = errno.EIO
        writer.write(started())
        wait_for(lambda count=count: len(faults.seen) == count)
        disk.error = None
        wait_for(lambda: writer.failing is None)
    assert writer.failures == 2
    writer.close()


def test_a_failing_sync_is_an_outage_and_the_record_is_written_once(path):
    disk, faults = Disk(), Faults()
    writer = make_writer(path, open_file=disk, on_failure=faults, fsync=Fsync.EACH)
    disk.sync_error = errno.EIO
    writer.write(started())
    assert faults.called.wait(10)
    disk.sync_error = None
    wait_for(lambda: writer.records_written == 1)
    writer.close()
    assert checked(path)[1:] == [started()]


def test_a_record_that_cannot_be_spelled_is_lost_and_told_and_holds_up_nothing(path):
    faults = Faults()
    writer = make_writer(path, on_failure=faults)
    writer.write(GatewayStarted(version="\n", kem_provider=""))
    writer.write(stopped())
    wait_for(lambda: writer.records_written == 2)
    writer.close()
    facts = checked(path)[1:]
    assert stopped() in facts
    assert [f.count for f in facts if isinstance(f, RecordsLost)] == [1]
    assert faults.seen == [AuditFault.INTERNAL_ERROR]


def test_a_file_deleted_under_the_writer_is_noticed_and_the_chain_goes_on(path):
    faults = Faults()
    writer = make_writer(path, on_failure=faults)
    path.unlink()
    writer.write(started())
    wait_for(lambda: writer.records_written == 1)
    writer.close()
    assert faults.seen == [AuditFault.DAMAGED]
    facts = checked(path)
    assert [type(fact) for fact in facts] == [LogHeader, ChainBroken, GatewayStarted]
    assert facts[0].file_number == 2


def test_after_close_nothing_is_written_and_nothing_is_told(path):
    faults = Faults()
    writer = make_writer(path, on_failure=faults)
    writer.close()
    writer.write(started())
    assert len(checked(path)) == 1
    assert writer.records_lost == 1
    assert faults.seen == []


def test_a_disk_that_hangs_does_not_hold_up_the_end(path):
    disk = Disk()
    writer = make_writer(path, open_file=disk)
    disk.frozen.clear()
    writer.write(started())
    writer.close(timeout_s=0.01)
    assert writer.records_lost == 1
    disk.frozen.set()


# Beginning --------------------------------------------------------------------------------------


def test_with_stop_a_log_that_cannot_be_opened_is_an_error(path):
    path.parent.joinpath("audit.jsonl").mkdir()
    with pytest.raises(AuditError):
        make_writer(path)


def test_with_stop_a_missing_directory_is_an_error_that_names_the_file(path):
    with pytest.raises(AuditError, match=r"nowhere/audit\.jsonl: No such file"):
        make_writer(path.parent / "nowhere" / "audit.jsonl")


def test_with_stop_a_damaged_log_is_an_error_and_left_alone(path):
    path.write_bytes(b"junk\n")
    with pytest.raises(AuditError, match="line 1"):
        make_writer(path)
    assert path.read_bytes() == b"junk\n"


def test_with_continue_records_wait_until_the_log_can_be_opened(path):
    faults = Faults()
    late = path.parent / "later" / "audit.jsonl"
    writer = make_writer(late, on_failure=faults, failure=OnAuditFailure.CONTINUE)
    assert faults.seen == [AuditFault.UNWRITABLE]
    writer.write(started())
    late.parent.mkdir()
    wait_for(lambda: writer.failing is None)
    writer.close()
    assert checked(late)[1:] == [started()]


def test_with_continue_a_damaged_log_is_moved_aside_and_told(path):
    path.write_bytes(b"junk\n")
    faults = Faults()
    writer = make_writer(path, on_failure=faults, failure=OnAuditFailure.CONTINUE)
    writer.write(started())
    wait_for(lambda: writer.records_written == 1)
    writer.close()
    assert faults.seen == [AuditFault.DAMAGED]
    facts = checked(path)
    assert [type(fact) for fact in facts] == [LogHeader, ChainBroken, GatewayStarted]
    assert path.with_name(facts[1].moved_to).read_bytes() == b"junk\n"


@pytest.mark.parametrize("failure", OnAuditFailure)
def test_a_log_that_another_process_writes_is_left_alone(path, failure):
    first = make_writer(path)
    faults = Faults()
    if failure is OnAuditFailure.STOP:
        with pytest.raises(LockedError):
            make_writer(path, on_failure=faults, failure=failure)
    else:
        second = make_writer(path, on_failure=faults, failure=failure)
        assert faults.seen == [AuditFault.LOCKED]
        second.close()
    first.write(started())
    first.close()
    assert len(checked(path)) == 2


def test_with_continue_the_log_of_another_gateway_is_never_moved(path):
    make_writer(path).close()
    before = path.read_bytes()
    other = LogIdentity(node="gw-b", version="1")
    writer = make_writer(path, identity=other, failure=OnAuditFailure.CONTINUE)
    writer.write(started())
    writer.close()
    assert path.read_bytes() == before
    assert writer.records_lost == 1


def test_the_head_is_logged_where_the_file_cannot_be_changed(path, caplog):
    caplog.set_level("INFO")
    writer = make_writer(path)
    writer.write(started())
    head = writer.close()
    heads = [r.fields for r in caplog.records if r.getMessage() == "audit_head"]
    assert [h["sequence"] for h in heads] == [1, 2]
    assert heads[-1]["hash"] == head.hash.hex()


def test_the_head_is_logged_now_and_then(path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "HEAD_INTERVAL_S", 0.0)
    writer = make_writer(path)
    writer.write(started())
    wait_for(lambda: writer.records_written == 1)
    writer.write(stopped())
    writer.close()
    heads = [r.fields["sequence"] for r in caplog.records if r.getMessage() == "audit_head"]
    assert heads == [1, 2, 3]
