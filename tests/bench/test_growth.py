import resource

import pytest

from bench import growth as module
from bench.generator import TrafficClient
from bench.growth import GrowthParameters, allow_descriptors, run_growth
from bench.stats import BenchError
from tests.bench.helpers import EchoPair, FakePair

SMALL = GrowthParameters(
    rounds=2, streams=(1, 3, 9), settle_s=0.0, ping_s=0.01, request_s=0.02, sample_bytes=100_003
)


@pytest.fixture(autouse=True)
def descriptors_as_they_are():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_every_number_of_streams_has_all_figures() -> None:
    record = run_growth([EchoPair()], SMALL)
    assert [row.failed for row in record.rows] == [None]
    assert record.cases == ["1 stream", "3 streams", "9 streams"]
    for sample in record.samples:
        for figure in record.figures:
            assert sample.values[figure.name] >= 0, figure.name
    assert record.notes == []


def test_where_a_pair_gives_up_is_said_once_and_it_is_measured_up_to_there(monkeypatch) -> None:
    opened = TrafficClient.open

    def open_few(self, port, count):
        if count > 2:
            raise BenchError("2 connections open, then: reset")
        return opened(self, port, count)

    monkeypatch.setattr(TrafficClient, "open", open_few)
    record = run_growth([FakePair("weak")], SMALL)
    assert record.rows[0].failed is None
    assert [(sample.round, sample.case) for sample in record.samples] == [
        (number, case) for number in (0, 1) for case in ("1 stream", "3 streams")
    ]
    assert record.notes == ["weak gave up at 9 streams: 2 connections open, then: reset"]


def test_descriptors_are_allowed_as_far_as_may_be(monkeypatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(module, "WANTED_DESCRIPTORS", hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    assert allow_descriptors() == hard
