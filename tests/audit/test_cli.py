"""`qproxy audit verify` and `compare`, from the command line to the exit code."""

from dataclasses import replace

import pytest

from qproxy.audit.facts import GatewayStopped
from qproxy.cli.main import main
from tests.audit.helpers import (
    KEY,
    check,
    confirmed,
    ends,
    header,
    log_lines,
    make_writer,
    move,
    new_epoch,
    seal,
    started,
    stopped,
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(log_lines(6)))
    return path


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY.hex() + "\n")
    return path


def run(*arguments):
    return main(["audit", *map(str, arguments)])


def head_of(lines):
    return check(lines).head.hash.hex()


def test_verify_prints_the_head_of_a_whole_log(log, capsys):
    assert run("verify", log) == 0
    out = capsys.readouterr().out
    assert "ok: log of gw-a" in out
    assert "records 1 to 6 in 1 files" in out
    assert head_of(log_lines(6)) in out


def test_verify_names_the_line_that_is_broken(log, capsys):
    log.write_bytes(log.read_bytes().replace(b'"epoch":2', b'"epoch":9'))
    assert run("verify", log) == 1
    captured = capsys.readouterr()
    assert f"error: {log}, line 4: the hash does not follow" in captured.err
    assert "3 records before it are in order" in captured.err
    assert captured.out == ""


def test_verify_compares_the_head_with_the_one_expected(log, capsys):
    head = head_of(log_lines(6))
    assert run("verify", log, "--expect-head", head.upper()) == 0
    log.write_bytes(b"".join(log_lines(6)[:-1]))
    assert run("verify", log) == 0
    assert run("verify", log, "--expect-head", head) == 1
    assert "not the one expected" in capsys.readouterr().err


def test_verify_finds_a_head_noted_earlier(log, capsys):
    earlier = head_of(log_lines(6)[:4])
    assert run("verify", log, "--contains", earlier) == 0
    assert run("verify", log, "--contains", "0" * 96) == 1
    assert "no record has the hash sought" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--expect-head", "--contains"])
def test_a_hash_that_is_none_is_wrong_usage(log, option):
    with pytest.raises(SystemExit) as caught:
        run("verify", log, option, "abc")
    assert caught.value.code == 2


def test_verify_reads_what_was_rotated_out_too(log, capsys):
    first, head = seal([header(), started()])
    second, _ = seal([header(number=2, previous=head.hash), stopped()], head=head, first_us=9000)
    log.with_name("audit.jsonl.000001").write_bytes(b"".join(first))
    log.write_bytes(b"".join(second))
    assert run("verify", log) == 0
    assert "records 1 to 4 in 2 files" in capsys.readouterr().out
    log.with_name("audit.jsonl.000001").unlink()
    assert run("verify", log) == 1
    assert "older files of the chain are missing" in capsys.readouterr().err
    assert run("verify", log, "--partial") == 0


def test_a_keyed_log_needs_its_key(log, key_file, capsys):
    log.write_bytes(b"".join(log_lines(6, key=KEY)))
    assert run("verify", log) == 1
    assert run("verify", log, "--hmac-key-file", key_file) == 0
    captured = capsys.readouterr()
    assert "hmac-sha-384" in captured.out
    assert KEY.hex() not in captured.out + captured.err
    assert run("verify", log, "--hmac-key-file", log) == 78


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"x" * 1_000_000, b"[" * 1_000_000, b"\xff\xfe\x00" * 1000, b"\x1b[2J\n"],
)
def test_hostile_files_give_one_clear_error(log, data, capsys):
    log.write_bytes(data)
    assert run("verify", log) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err) < 1000
    assert "\x1b" not in err


def test_a_missing_file_is_an_error(tmp_path, capsys):
    assert run("verify", tmp_path / "nothing") == 1
    assert "No such file" in capsys.readouterr().err


def test_a_log_that_the_writer_wrote_verifies(tmp_path, capsys):
    writer = make_writer(tmp_path / "w.jsonl")
    for number in range(20):
        writer.write(confirmed(number))
    head = writer.close()
    assert run("verify", tmp_path / "w.jsonl", "--expect-head", head.hash.hex()) == 0
    assert "warning" not in capsys.readouterr().err
    writer = make_writer(tmp_path / "w.jsonl")
    writer.close()
    assert run("verify", tmp_path / "w.jsonl") == 0
    assert "without gateway_stopped" in capsys.readouterr().err


# compare ----------------------------------------------------------------------------------------


def two_logs(tmp_path, *, arrives=10, key_b=None):
    a, b = ends()
    new_epoch(a, b, 1)
    move(a, b, 10, arrives=arrives)
    for end in (a, b):
        end.close()
        end.stop()
    (tmp_path / "a.jsonl").write_bytes(b"".join(seal(a.facts)[0]))
    if key_b is not None:
        b.facts[0] = header("gw-b", key=key_b)
    (tmp_path / "b.jsonl").write_bytes(b"".join(seal(b.facts, key=key_b)[0]))
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def test_compare_says_that_two_logs_agree(tmp_path, capsys):
    assert run("compare", *two_logs(tmp_path)) == 0
    assert capsys.readouterr().out == "gw-a and gw-b agree: 1 tunnels, 1 epochs in both logs\n"


def test_compare_lists_what_differs(tmp_path, capsys):
    assert run("compare", *two_logs(tmp_path, arrives=9)) == 1
    out = capsys.readouterr().out
    assert "differs: tunnel " in out
    assert "gw-a sent 10 bytes, gw-b received 9" in out
    assert "gw-a and gw-b differ: 1 differences" in out


def test_compare_takes_only_logs_that_verify(tmp_path, capsys):
    a, b = two_logs(tmp_path)
    b.write_bytes(b.read_bytes()[:-5])
    assert run("compare", a, b) == 1
    assert "torn" in capsys.readouterr().err


def test_compare_takes_a_key_for_each_log(tmp_path, key_file):
    a, b = two_logs(tmp_path, key_b=KEY)
    assert run("compare", a, b) == 1
    assert run("compare", a, b, "--hmac-key-file-b", key_file) == 0


def test_compare_looks_at_a_window_of_time(tmp_path, capsys):
    logs = two_logs(tmp_path, arrives=9)
    assert run("compare", *logs, "--until", "2026-01-30") == 0
    assert "nothing was compared" in capsys.readouterr().err
    assert run("compare", *logs, "--since", "2026-02") == 0
    assert run("compare", *logs, "--since", "2026-01-31", "--until", "2026-01-31") == 1
    with pytest.raises(SystemExit) as caught:
        run("compare", *logs, "--since", "yesterday")
    assert caught.value.code == 2


def test_audit_alone_is_wrong_usage():
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2


# Several workers, each with a chain of its own.


@pytest.fixture
def of_workers(tmp_path):
    """Logs of two workers; their gateway's ``audit.file`` does not exist."""
    for number, count in enumerate((6, 3)):
        (tmp_path / f"audit-w{number}.jsonl").write_bytes(b"".join(log_lines(count)))
    (tmp_path / "audit-w0.jsonl.lock").touch()
    (tmp_path / "audit-wide.jsonl").touch()
    return tmp_path / "audit.jsonl"


def test_verify_takes_the_logs_of_all_workers(of_workers, capsys):
    assert run("verify", of_workers) == 0
    out = capsys.readouterr().out
    assert out.count("ok: log of gw-a") == 2
    assert head_of(log_lines(6)) in out
    assert head_of(log_lines(3)) in out
    for head in (head_of(log_lines(6)), head_of(log_lines(3))):
        assert run("verify", of_workers, "--expect-head", head) == 0
    assert run("verify", of_workers, "--expect-head", head_of(log_lines(5))) == 1
    assert run("verify", of_workers, "--contains", head_of(log_lines(5))) == 0
    assert run("verify", of_workers, "--contains", "00" * 48) == 1
    capsys.readouterr()
    # And that of the time when there was one process.
    of_workers.write_bytes(b"".join(log_lines(4)))
    assert run("verify", of_workers) == 0
    assert capsys.readouterr().out.count("ok: log of gw-a") == 3


def test_one_bad_worker_is_enough(of_workers, capsys):
    path = of_workers.with_name("audit-w1.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"epoch":1', b'"epoch":9'))
    assert run("verify", of_workers) == 1
    assert str(path) in capsys.readouterr().err
    assert run("compare", of_workers, of_workers) == 1


def test_compare_joins_the_logs_of_workers(tmp_path, capsys):
    """Two tunnels, in one worker here and in two at the other end."""
    stories = {"a": [], "b": [[], []]}
    for number in (0, 1):
        a, b = ends()
        new_epoch(a, b, 1)
        move(a, b, 10)
        for end in (a, b):
            end.close()
            end.facts = [
                replace(fact, connection_id=f"{number:032x}")
                if hasattr(fact, "connection_id")
                else fact
                for fact in end.facts
            ]
            end.stop()
        stories["a"] += a.facts if number == 0 else a.facts[2:]
        stories["b"][number] = b.facts
    # A's first tunnel was over before its gateway stopped: no second header and start between.
    stories["a"] = [fact for fact in stories["a"] if not isinstance(fact, GatewayStopped)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(seal([*stories["a"], stopped()])[0]))
    for number, facts in enumerate(stories["b"]):
        (tmp_path / f"b-w{number}.jsonl").write_bytes(b"".join(seal(facts)[0]))
    assert run("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl") == 0
    assert capsys.readouterr().out == "gw-a and gw-b agree: 2 tunnels, 2 epochs in both logs\n"
    # One worker's log alone is not the gateway's.
    assert run("compare", tmp_path / "a.jsonl", tmp_path / "b-w0.jsonl") == 1
    # Nor is another gateway's log one of its workers'.
    (tmp_path / "b-w2.jsonl").write_bytes(b"".join(log_lines()))
    capsys.readouterr()
    assert run("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl") == 1
    assert "a log of gw-a stands among those of gw-b" in capsys.readouterr().err
