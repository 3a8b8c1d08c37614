import os

import pytest

from bench.children import Child, children, wait_until
from bench.memory import MemoryParameters, run_memory
from bench.memory_use import MemoryUse, slope
from bench.pairs import Kind
from bench.pairs.direct import Direct
from bench.requests import RequestsParameters, run_requests
from tests.bench.helpers import EchoPair, FakePair


def test_the_slope_is_what_one_more_adds() -> None:
    assert slope([(0, 10.0), (100, 210.0), (400, 810.0)]) == pytest.approx(2.0)
    # Not on a line: least squares.
    assert slope([(0, 0.0), (1, 2.0), (2, 2.0)]) == pytest.approx(1.0)


@pytest.mark.parametrize("points", [[], [(3, 1.0)], [(3, 1.0), (3, 2.0)]])
def test_without_two_different_numbers_there_is_no_slope(points) -> None:
    with pytest.raises(ValueError, match="two different"):
        slope(points)


def test_memory_counts_all_processes_that_one_started(tmp_path) -> None:
    one = "import time; data = bytearray(b'x' * 20_000_000); print('awake', flush=True); time.sleep"
    script = f'python3 -c "{one}(300)" & python3 -c "{one}(300)" & wait'
    with children() as started:
        started.append(Child("two", ["sh", "-c", script], tmp_path / "log"))
        wait_until(lambda: started[0].log.read_text().count("awake") == 2, "both", started)
        use = MemoryUse.of(started[0].pid)
        for pid in map(int, _grandchildren(started[0].pid)):
            os.kill(pid, 15)
    assert use.processes == 3
    assert use.own_kib > 2 * 20_000_000 / 1024
    assert use.own_kib <= use.pss_kib <= use.rss_kib


def _grandchildren(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return file.read().split()


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert MemoryUse.of(2**22 + 1).own_kib == 0


def test_memory_of_streams_is_a_slope_for_each_side_idle_busy_and_after() -> None:
    parameters = MemoryParameters(rounds=1, streams=(0, 2, 6), settle_s=0.0, busy_s=0.02)
    record = run_memory([EchoPair(), Direct()], parameters)
    assert [row.failed for row in record.rows] == [None]
    assert record.rows[0].kind is Kind.PEER
    assert record.cases == ["idle", "busy", "after"]
    for sample in record.samples:
        sides = [sample.values[f"{role}_kib_per_stream"] for role in ("near", "far")]
        assert sample.values["kib_per_stream"] == pytest.approx(sum(sides))
    busy = record.samples[1].values
    assert busy["near_processes_at_6"] == 1
    assert busy["far_own_kib_at_0"] > 0


def test_requests_are_counted_on_one_and_on_many_connections() -> None:
    parameters = RequestsParameters(rounds=1, connections=(1, 4), seconds=0.03)
    record = run_requests([FakePair("one")], parameters)
    assert record.cases == ["1 connection", "4 connections"]
    for sample in record.samples:
        rate = sample.values["count"] / sample.values["seconds"]
        assert sample.values["requests_per_s"] == pytest.approx(rate)
        assert sample.values["p50_us"] <= sample.values["p99_us"]
