import random
import struct

import pytest

from bench import path_tcp
from bench.path import DelayLine, PathSettings, direction, exchange_addresses

FRAME = 1538 / 1448


def line(delay_s: float = 0.05, bytes_per_s: float = 1e6, queue_s: float = 0.02) -> DelayLine:
    return DelayLine(delay_s, bytes_per_s, queue_s)


def packet(source: str, destination: str, payload: bytes = b"") -> bytearray:
    """A virtio header and an IPv4 packet; addresses as text, no checksum."""
    header = bytearray(20)
    header[0] = 0x45
    header[12:16] = bytes(int(part) for part in source.split("."))
    header[16:20] = bytes(int(part) for part in destination.split("."))
    return bytearray(10) + header + payload


def one_complement_sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    return total % 0xFFFF


def test_a_packet_arrives_after_its_turn_and_the_delay_and_not_before() -> None:
    path = line()
    assert path.push(bytearray(1000), now=10.0)
    due = 10.0 + 1000 * FRAME / 1e6 + 0.05
    assert path.next_at == pytest.approx(due)
    assert path.pop(due - 1e-6) is None
    assert path.pop(due + 1e-6) == bytearray(1000)
    assert path.next_at is None


def test_packets_never_overtake_each_other_and_the_rate_holds() -> None:
    generator = random.Random(7)
    path = line(queue_s=10.0)
    now, sizes = 0.0, [generator.randrange(60, 65_000) for _ in range(200)]
    for number, size in enumerate(sizes):
        now += generator.random() * 0.001
        assert path.push(bytearray(number.to_bytes(2, "big") + bytes(size - 2)), now)
    arrived = []
    while (due := path.next_at) is not None:
        taken = path.pop(due)
        assert taken is not None
        arrived.append((due, int.from_bytes(taken[:2], "big")))
    assert [number for _, number in arrived] == list(range(200))
    span_s = arrived[-1][0] - arrived[0][0]
    assert sum(sizes[1:]) * FRAME / span_s <= 1e6 * 1.0001


def test_a_full_queue_drops_and_counts_and_empties_with_time() -> None:
    path = line(queue_s=0.02)
    while path.push(bytearray(1000), now=0.0):
        pass
    assert path.dropped == 1
    assert path.longest_wait_s <= 0.02
    assert not path.push(bytearray(1000), now=0.0)
    assert path.push(bytearray(1000), now=0.01)


def test_what_is_under_way_is_bounded_by_rate_delay_and_queue() -> None:
    path = line(delay_s=0.05, bytes_per_s=1e6, queue_s=0.02)
    held = 0
    for tick in range(5000):
        now = tick / 10_000
        while (taken := path.pop(now)) is not None:
            held -= len(taken)
        if path.push(bytearray(1000), now):
            held += 1000
        assert held <= 1e6 * (0.05 + 0.02) + 2000


def test_addresses_are_exchanged_so_that_each_side_sees_the_other() -> None:
    up = packet("10.77.0.1", "10.77.1.2")
    assert direction(up) == 1
    before = one_complement_sum(bytes(up))
    exchange_addresses(up)
    assert up == packet("10.77.0.2", "10.77.1.1")
    assert one_complement_sum(bytes(up)) == before
    down = packet("10.77.1.1", "10.77.0.2", b"answer")
    assert direction(down) == 0
    exchange_addresses(down)
    assert down == packet("10.77.1.2", "10.77.0.1", b"answer")


@pytest.mark.parametrize(
    "stray",
    [b"", bytes(10), bytes(10) + b"\x60" + bytes(39), bytes(packet("10.77.0.1", "10.77.9.9"))],
    ids=["empty", "no packet", "IPv6", "elsewhere"],
)
def test_what_is_not_for_either_side_goes_nowhere(stray: bytes) -> None:
    assert direction(bytearray(stray)) is None


def test_a_path_carries_less_than_its_rate_because_of_headers() -> None:
    assert PathSettings(100.0).payload_mb_per_s == pytest.approx(117.7, abs=0.1)


def test_routes_name_the_algorithm_and_the_window_where_there_is_one() -> None:
    plain = PathSettings(100.0, congestion_control="")
    assert path_tcp.route_commands(plain) == [
        "route replace 10.77.1.2/32 dev wan0 src 10.77.0.1",
        "route replace 10.77.0.2/32 dev wan0 src 10.77.1.1",
    ]
    full = PathSettings(100.0, congestion_control="cubic", window=True)
    for command in path_tcp.route_commands(full):
        assert command.endswith(f"congctl lock cubic cwnd lock {path_tcp.window_segments(full)}")


def test_a_window_fits_on_its_path() -> None:
    for round_trip_ms in (5.0, 30.0, 100.0):
        settings = PathSettings(round_trip_ms)
        fits = settings.payload_mb_per_s * 1e6 * round_trip_ms / 1000
        assert 0.9 * fits < path_tcp.window_segments(settings) * 1448 < fits


def test_metrics_of_both_sides_are_waited_for() -> None:
    near = "10.77.1.2 age 0.4sec cwnd 8000 rtt 100508us source 10.77.0.1\n"
    far = "10.77.0.2 age 0.4sec cwnd 8000 rtt 100508us source 10.77.1.1\n"
    assert path_tcp.has_metrics(near + far)
    assert not path_tcp.has_metrics(near)
    assert not path_tcp.has_metrics(near + far.replace("cwnd 8000 ", ""))
    assert not path_tcp.has_metrics("")
