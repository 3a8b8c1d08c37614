"""Clients and service against each other, and against a service that lies."""

import contextlib

import pytest
import trio

from qproxy.demo.heartbeat import FRAME_BYTES, Frames, Heartbeat
from qproxy.demo.load import Fault, Load
from qproxy.demo.pattern import MAX_CHUNK_BYTES, Pattern, chunks
from qproxy.demo.record import HeartbeatRecord, Traffic
from qproxy.demo.service import serve
from qproxy.demo.settings import DemoOptions, split_load


@pytest.fixture
async def service_port(nursery):
    _, port = await nursery.start(serve)
    return port


@contextlib.asynccontextmanager
async def lying_service(answer):
    """A server that reads a request to its end, then answers as it likes."""

    async def handle(stream):
        async with stream:
            request = b"".join([data async for data in stream])
            await stream.send_all(answer(request))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_uploads_downloads_and_short_connections_are_verified_and_counted(service_port):
    traffic = Traffic()
    load = Load(service_port, traffic)
    await load.upload(3 * MAX_CHUNK_BYTES + 7)
    await load.download(3 * MAX_CHUNK_BYTES + 5)
    await load.short_connections(40)
    assert traffic.faults == []
    assert traffic.opened == 4 + 4 + 40
    assert traffic.lost_bytes == 0
    assert traffic.verified_bytes == 6 * MAX_CHUNK_BYTES + 12 + 40 * 1024
    assert traffic.received_bytes > 3 * MAX_CHUNK_BYTES + 5 + 40 * 1024


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (lambda request: b"", "other bytes"),
        (lambda request: b"1 " + b"0" * 64 + b"\n", "other bytes"),
        (lambda request: b"x" * 300, "more than 256 bytes"),
    ],
)
async def test_a_wrong_answer_to_an_upload_is_a_fault(answer, word):
    async with lying_service(answer) as port:
        traffic = Traffic()
        await Load(port, traffic).upload(4000)
    assert (traffic.failed, traffic.lost_bytes) == (4, 4000)
    assert word in traffic.faults[0]


def one_bit_wrong(request):
    _, seed, count = request.split()
    data = bytearray(Pattern(int(seed)).take(int(count)))
    data[-1] ^= 1
    return bytes(data)


def one_byte_short(request):
    _, seed, count = request.split()
    return Pattern(int(seed)).take(int(count) - 1)


def one_byte_more(request):
    _, seed, count = request.split()
    return Pattern(int(seed)).take(int(count) + 1)


@pytest.mark.parametrize("answer", [one_bit_wrong, one_byte_short, one_byte_more])
async def test_a_download_that_is_not_byte_for_byte_is_a_fault(answer):
    async with lying_service(answer) as port:
        traffic = Traffic()
        await Load(port, traffic).download(4000)
    assert (traffic.failed, traffic.lost_bytes) == (4, 4000)


@pytest.mark.parametrize("answer", [lambda r: r[5:-1], lambda r: r, lambda r: r[:4:-1]])
async def test_a_short_connection_that_echoes_something_else_is_a_fault(answer):
    async with lying_service(answer) as port:
        traffic = Traffic()
        await Load(port, traffic).short_connections(3)
    assert (traffic.failed, traffic.opened) == (3, 3)


async def test_a_refused_connection_is_a_fault():
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        traffic = Traffic()
        await Load(unused.getsockname()[1], traffic).short_connections(2)
    assert traffic.failed == 2
    assert "connect" in traffic.faults[0]


async def test_a_connection_that_stalls_is_given_up(autojump_clock):
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        traffic = Traffic()
        await Load(silent.getsockname()[1], traffic).short_connections(1)
    assert traffic.faults == ["receive: no progress for 15 s"]


async def test_the_long_lived_stream_runs_until_it_is_stopped(service_port, nursery):
    record, traffic = HeartbeatRecord(FRAME_BYTES), Traffic()
    moments = []
    heartbeat = Heartbeat(record, traffic, trio.current_time(), moments.append)
    await nursery.start(heartbeat.run, service_port)
    await heartbeat.stop()
    assert record.fault is None
    assert moments == sorted(moments)
    assert moments
    assert record.frames_sent == record.frames_verified > 0
    assert record.ended_at_s is not None
    assert (traffic.failed, traffic.lost_bytes, traffic.opened) == (0, 0, 1)


async def test_the_long_lived_stream_tells_an_end_from_afar(nursery):
    async def hang_up(stream):
        await stream.receive_some(5)
        await stream.aclose()

    listeners = await nursery.start(trio.serve_tcp, hang_up, 0)
    record, traffic = HeartbeatRecord(FRAME_BYTES), Traffic()
    heartbeat = Heartbeat(record, traffic, trio.current_time())
    await nursery.start(heartbeat.run, listeners[0].socket.getsockname()[1])
    await heartbeat.stop()
    assert record.fault is not None
    assert record.ended_at_s is None
    assert traffic.failed == 1


def test_frames_are_checked_however_they_are_cut():
    frames = Frames()
    data = b"".join(frames.make(number) for number in range(3))
    assert [frames.take(data[:1]), frames.take(data[1:2000]), frames.take(data[2000:])] == [0, 1, 2]
    frames.finish(3)


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2]])
def test_a_frame_that_is_lost_doubled_or_moved_is_seen(order):
    frames = Frames()
    with pytest.raises(Fault):
        frames.take(b"".join(frames.make(number) for number in order))


def test_an_end_before_the_last_frame_or_within_one_is_seen():
    frames = Frames()
    frames.take(frames.make(0) + frames.make(1)[:-1])
    with pytest.raises(Fault):
        frames.finish(2)
    with pytest.raises(Fault):
        frames.finish(1)


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\n", b"DOWNLOAD 1\n", b"x" * 200, b"ECHO"])
async def test_the_service_closes_on_anything_else(service_port, request_):
    stream = await trio.open_tcp_stream("127.0.0.1", service_port)
    async with stream:
        await stream.send_all(request_)
        await stream.send_eof()
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some(10) == b""


def test_a_pattern_is_the_same_however_it_is_taken_and_differs_by_number():
    whole, pieces = Pattern(7), Pattern(7)
    assert whole.take(1000) == b"".join(pieces.take(size) for size in (1, 0, 499, 500))
    assert Pattern(8).take(16) != Pattern(7).take(16)
    assert chunks(2 * MAX_CHUNK_BYTES + 1) == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 1]
    assert chunks(0) == []
    with pytest.raises(ValueError, match="expected 0 to"):
        whole.take(MAX_CHUNK_BYTES + 1)


@pytest.mark.parametrize(("megabytes", "connections"), [(1, 1), (16, 100), (300, 2000), (7, 3)])
def test_the_parts_of_the_load_make_up_the_whole(megabytes, connections):
    parts = split_load(DemoOptions(megabytes=megabytes, connections=connections))
    assert sum(part.up_bytes + part.down_bytes for part in parts) == megabytes * 10**6
    assert sum(part.connections for part in parts) == connections
