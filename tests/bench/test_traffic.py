"""The epoll load generator against its own service, and against services that do wrong."""

import contextlib
import itertools
import socket
import threading
import time

import pytest

from bench.traffic.arrivals import arrivals
from bench.traffic.client import Client
from bench.traffic.flows import Flows
from bench.traffic.messages import closed_loop
from bench.traffic.mover import LOW_WATER_BYTES
from bench.traffic.paced import open_loop
from bench.traffic.service import READ_BYTES, Service
from bench.traffic.timer import ticking
from bench.traffic.wire import HEADER, PATTERN_BYTES, TrafficError, message, pattern


@contextlib.contextmanager
def in_thread(step):
    """Call something again and again beside the test."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def service():
    serving = Service()
    with in_thread(lambda: serving.serve_once(0.02)):
        yield serving
    serving.close()


@pytest.fixture
def flows():
    opened = Flows()
    yield opened
    opened.close()


class Faulty:
    """A service for one connection at a time that answers every read as it is told to."""

    def __init__(self, answer) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.02)
        self.port = self._listening.getsockname()[1]
        self._answer = answer

    def step(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except TimeoutError:
            return
        with sock:
            sock.settimeout(10)
            with contextlib.suppress(OSError):
                while data := sock.recv(READ_BYTES):
                    reply = self._answer(data)
                    if reply is None:
                        return
                    sock.sendall(reply)

    def close(self) -> None:
        self._listening.close()


@contextlib.contextmanager
def faulty(answer):
    serving = Faulty(answer)
    with in_thread(serving.step):
        yield serving.port
    serving.close()


def after_the_probe(answer):
    """Echo the first message of a connection, which tries it, then do as told."""
    seen = []

    def reply(data):
        seen.append(data)
        return data if len(seen) == 1 else answer(data)

    return reply


@pytest.mark.parametrize("connections", [1, 7])
@pytest.mark.parametrize("what", [b"D", b"U", b"B", b"d", b"u", b"b"])
def test_bulk_goes_every_way_over_every_connection_again_and_again(
    service, flows, connections, what
) -> None:
    flows.open(service.port, connections)
    # Less than one each; neither a multiple of any buffer nor below all of them.
    for total in (connections - 1, 2 * LOW_WATER_BYTES + 3, PATTERN_BYTES + 70_003):
        flows.transfer(what, total)
    closed_loop(flows.sockets, 64, 0.01)


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_one_changed_bit_of_a_download_is_found(flows, place) -> None:
    def answer(data):
        _, number, count = HEADER.unpack(data)
        reply = bytearray(pattern()[number : number + count])
        reply[place] ^= 1
        return bytes(reply)

    with faulty(after_the_probe(answer)) as port:
        flows.open(port, 1)
        with pytest.raises(TrafficError, match="not those that were sent"):
            flows.transfer(b"d", 100_000)
        flows.close()


def test_one_changed_bit_of_an_upload_is_found(service) -> None:
    count = 100_000
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        data = bytearray(pattern()[5 : 5 + count])
        for sent in (bytes(data), bytes(data[:-1] + b"?")):
            sock.sendall(HEADER.pack(b"u", 5, count) + sent)
            assert sock.recv(2) == (b"!" if sent == data else b"?")


def test_a_download_cut_short_is_found(flows) -> None:
    with faulty(after_the_probe(lambda _data: None)) as port:
        flows.open(port, 1)
        with pytest.raises(TrafficError, match="1000 bytes missing"):
            flows.transfer(b"D", 1000)
        flows.close()


def test_the_service_echoes_messages_however_they_are_cut(service) -> None:
    stream = b"".join(message(number, 13 + 37 * number) for number in range(9))
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        for begin in range(0, len(stream), 7):
            sock.sendall(stream[begin : begin + 7])
        while len(received) < len(stream):
            received += sock.recv(READ_BYTES)
        assert received == stream


def test_echoes_nobody_reads_are_not_kept_without_end_and_none_is_lost(service) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        sock.setblocking(False)
        one = message(1, 16384)
        sent = 0
        # Until the service stops reading and no buffer in between has room.
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(one[sent % len(one) :])
            time.sleep(0.002)
        sock.setblocking(True)
        sock.settimeout(10)
        received = 0
        while received < sent:
            data = sock.recv(READ_BYTES)
            expected = (one * (len(data) // len(one) + 2))[received % len(one) :]
            assert data == expected[: len(data)]
            received += len(data)


@pytest.mark.parametrize("size", [64, 256, 16384])
def test_messages_return_on_every_connection(service, flows, size) -> None:
    flows.open(service.port, 5)
    seconds, took_ns = closed_loop(flows.sockets, size, 0.05)
    assert len(took_ns) >= 5
    assert seconds >= 0.05
    assert all(took > 0 for took in took_ns)


def test_a_message_that_comes_back_changed_is_found(flows) -> None:
    with faulty(after_the_probe(lambda data: data[:-1] + b"?")) as port:
        flows.open(port, 1)
        with pytest.raises(TrafficError, match="did not come back as it was sent"):
            closed_loop(flows.sockets, 64, 0.05)
        flows.close()


def test_paced_messages_are_as_many_as_the_rate_says_and_all_come_back(service, flows) -> None:
    flows.open(service.port, 3)
    paced = open_loop(flows.sockets, 300, 1000, 0.1)
    assert len(paced.took_ns) == len(paced.late_ns) == 100
    assert paced.unanswered == 0
    assert min(paced.late_ns) >= 0


def test_a_stall_counts_for_every_message_it_held_up(flows) -> None:
    """Sent on time, read late: times are from the intention on, so nearly all are long."""
    stall_s = 0.2

    def answer(data, stalled=[]):  # noqa: B006 - once for this connection
        if not stalled:
            stalled.append(True)
            time.sleep(stall_s)
        return data

    with faulty(after_the_probe(answer)) as port:
        flows.open(port, 1)
        paced = open_loop(flows.sockets, 64, 1000, 0.1)
        flows.close()
    assert len(paced.took_ns) == 100
    assert min(paced.took_ns) / 1e9 >= stall_s - 0.1


def test_messages_without_an_answer_count_as_lasting_until_they_were_given_up(
    flows, monkeypatch
) -> None:
    monkeypatch.setattr("bench.traffic.paced.DRAIN_S", 0.05)
    with faulty(after_the_probe(lambda _data: b"")) as port:
        flows.open(port, 1)
        paced = open_loop(flows.sockets, 64, 1000, 0.05)
        flows.close()
    assert paced.unanswered == 50
    assert len(paced.took_ns) == 50
    assert min(paced.took_ns) / 1e9 >= 0.05 - 0.01


def test_ticks_come_at_their_times_and_none_is_left_out() -> None:
    with ticking(2000) as ticks:
        taken = []
        while len(taken) < 20:
            taken += ticks.take()
            assert not taken or taken[-1] <= time.monotonic_ns()
    assert {after - before for before, after in itertools.pairwise(taken)} == {500_000}


@pytest.mark.parametrize("at_once", [1, 10])
def test_new_connections_are_answered_and_closed(service, at_once) -> None:
    seconds, took_ns = arrivals(service.port, at_once, 64, 0.05)
    assert len(took_ns) >= at_once
    assert seconds >= 0.05
    deadline = time.monotonic() + 10
    while service._sessions and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not service._sessions


def test_a_new_connection_without_an_answer_is_an_error() -> None:
    with (
        faulty(lambda _data: None) as port,
        pytest.raises((TrafficError, ConnectionResetError)),
    ):
        arrivals(port, 1, 64, 0.05)


def test_the_client_does_what_each_line_says(service) -> None:
    client = Client()
    client.handle({"do": "reach", "port": service.port})
    client.handle({"do": "open", "port": service.port, "count": 3})
    for direction in ("down", "up", "both"):
        for checked in (True, False):
            request = {"do": "bulk", "direction": direction, "bytes": 9999, "checked": checked}
            assert client.handle(request)["seconds"] > 0
    for action, more in (("pings", {}), ("requests", {}), ("paced", {"rate_per_s": 500})):
        answer = client.handle({"do": action, "bytes": 64, "seconds": 0.02, **more})
        assert answer["took_ns"]
    client.handle({"do": "close"})
    with pytest.raises(TrafficError, match="not connected"):
        client.handle({"do": "pings", "bytes": 64, "seconds": 0.02})
    request = {"do": "arrivals", "port": service.port, "at_once": 2, "seconds": 0.02}
    assert client.handle(request)["took_ns"]
    with pytest.raises(TrafficError, match="unknown action"):
        client.handle({"do": "nonsense"})
