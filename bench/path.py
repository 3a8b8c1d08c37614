"""A path with a constant delay and a rate, for whole IP packets, so that TCP itself is under test.

    python -m bench.path --round-trip-ms 100 --megabits 1000 --queue-ms 20

It makes a TUN device in its network namespace (see :mod:`bench.namespace`) and sends back every
packet that leaves through it, some time later, under another address:

    10.77.0.1 (near) connects to 10.77.1.2 ──► queue at so many Mbit/s ──► so many ms ──►
    10.77.1.1 (far) sees the connection come from 10.77.0.2, and answers there the same way

So one namespace and one process stand for two sites, and both ways of a connection go over links
of their own. Exchanging the addresses' last bytes leaves every checksum right, since these are
sums. The device takes TCP segments of up to 64 KiB uncut (a virtio header before each packet),
which is what makes a gigabit per second cheap: some two thousand packets a second.

Bounds: a packet that would wait longer than ``--queue-ms`` for its turn is dropped, as by a router
with a buffer of that size; what is on its way is bounded by rate and delay. Packets of one
direction never overtake each other.

It prints "ready", and serves until its standard input ends; then it prints what it dropped as JSON.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Where the far side listens, and where the near side reaches it through the path.
FAR_HOST = "10.77.1.1"
PATH_HOST = "10.77.1.2"
#: Where the near side's connections come from, and where the far side sees them come from.
NEAR_HOST = "10.77.0.1"
NEAR_SEEN = "10.77.0.2"
DEVICE = "wan0"
#: Linux's own. BBR would stop nearly all traffic for 0.2 s every 10 s to look at the round trip,
#: and small requests would show that and little else.
CONGESTION_CONTROL = "cubic"
_TUN = Path("/dev/net/tun")
# linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_VNET_HEADER_BYTES = 10
_MAX_PACKET_BYTES = _VNET_HEADER_BYTES + 65_535
#: Behind the virtio header, where the IPv4 header has the last bytes of its addresses, and which
#: byte tells the side that a packet is for.
_SOURCE = _VNET_HEADER_BYTES + 15
_SIDE = _VNET_HEADER_BYTES + 18
_DESTINATION = _VNET_HEADER_BYTES + 19
_IP_HEADER_BYTES = 20
#: Frames on a real line are longer than packets in memory by what cutting them takes: Ethernet's 38
#: bytes and 52 of IP and TCP for every 1448 of data.
SEGMENT_BYTES = 1448
_FRAME_OVERHEAD = 1538 / SEGMENT_BYTES


@dataclass(frozen=True, slots=True)
class PathSettings:
    """One path; both ways are alike.

    Attributes:
        round_trip_ms: both ways' delays together.
        megabits_per_s: rate of each way, as on the line: with headers.
        queue_ms: a packet that would wait longer for its turn is dropped.
        congestion_control: TCP's algorithm on it; "" for the machine's own.
        window: no connection has more under way than fits on the path (see
            :func:`bench.path_tcp.window_segments`).
    """

    round_trip_ms: float
    megabits_per_s: float = 1000.0
    queue_ms: float = 20.0
    congestion_control: str = CONGESTION_CONTROL
    window: bool = False

    @property
    def payload_mb_per_s(self) -> float:
        """What TCP can carry at most, in MB/s."""
        return self.megabits_per_s / 8 / _FRAME_OVERHEAD

    @property
    def name(self) -> str:
        """For cases."""
        return f"{self.round_trip_ms:g} ms"


class DelayLine:
    """One way of the path: a queue with a rate in front of a constant delay. Reads no clock.

    Args:
        delay_s: from the end of a packet's turn to its arrival.
        bytes_per_s: of the line.
        queue_s: the longest wait for a turn.

    Attributes:
        dropped: packets that found the queue full.
        longest_wait_s: of any packet that did not.
    """

    def __init__(self, delay_s: float, bytes_per_s: float, queue_s: float) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._queue_s = queue_s
        self._free_at = 0.0
        self._under_way: deque[tuple[float, bytearray]] = deque()
        self.dropped = 0
        self.longest_wait_s = 0.0

    def push(self, packet: bytearray, now: float) -> bool:
        """Take a packet in. Returns whether it fitted."""
        wait_s = max(0.0, self._free_at - now)
        if wait_s > self._queue_s:
            self.dropped += 1
            return False
        self.longest_wait_s = max(self.longest_wait_s, wait_s)
        turn_s = len(packet) * _FRAME_OVERHEAD / self._bytes_per_s
        self._free_at = now + wait_s + turn_s
        self._under_way.append((self._free_at + self._delay_s, packet))
        return True

    @property
    def next_at(self) -> float | None:
        """When the next packet arrives, or None where none is under way."""
        return self._under_way[0][0] if self._under_way else None

    def pop(self, now: float) -> bytearray | None:
        """The next packet that has arrived by now, in the order they came in."""
        if self._under_way and self._under_way[0][0] <= now:
            return self._under_way.popleft()[1]
        return None


def missing() -> str | None:
    """Why there can be no path here, or None."""
    return None if _TUN.exists() else f"there is no {_TUN}"


def open_device() -> int:
    """Make the device in this process's network namespace and give it its addresses."""
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), flags))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    # The path's own queue is the only one that shall ever be full.
    for command in (
        f"addr add {NEAR_HOST}/32 dev {DEVICE}",
        f"addr add {FAR_HOST}/32 dev {DEVICE}",
        f"link set {DEVICE} up mtu 1500 txqueuelen 10000",
    ):
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
    return descriptor


def run_before_others() -> bool:
    """Ask to be run at once whenever there is something to do: a line waits for no CPU.

    Returns:
        Whether it is so; it takes root.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


class Reflector:
    """Packets from a device to the lines of both ways, and back to the device when they arrive.

    Args:
        device: descriptor of the TUN device, non-blocking.
        settings: of the path.

    Attributes:
        packets: taken in so far.
        latest_s: how late any of them was handed over, at most.
    """

    def __init__(self, device: int, settings: PathSettings) -> None:
        self._device = device
        rate = settings.megabits_per_s * 1e6 / 8
        numbers = (settings.round_trip_ms / 2000, rate, settings.queue_ms / 1000)
        self.lines = (DelayLine(*numbers), DelayLine(*numbers))
        self.packets = 0
        self.latest_s = 0.0

    def run(self, control: int) -> None:
        """Serve until a descriptor has something to read or ends."""
        while True:
            now = time.monotonic()
            if control in self._wait(control, self._deliver(now) - now):
                return
            self._take()

    def _wait(self, control: int, timeout_s: float) -> list[int]:
        timeout = None if timeout_s == float("inf") else max(0.0, timeout_s)
        return select.select([self._device, control], [], [], timeout)[0]

    def _deliver(self, now: float) -> float:
        """Hand over what has arrived. Returns when the next packet does."""
        next_at = float("inf")
        for line in self.lines:
            if line.next_at is not None:
                self.latest_s = max(self.latest_s, now - line.next_at)
            while (packet := line.pop(now)) is not None:
                os.write(self._device, packet)
            if line.next_at is not None:
                next_at = min(next_at, line.next_at)
        return next_at

    def _take(self) -> None:
        """Take in what the device has, but never so long that arrivals are late."""
        for _ in range(16):
            try:
                packet = bytearray(os.read(self._device, _MAX_PACKET_BYTES))
            except BlockingIOError:
                return
            self.packets += 1
            if (way := direction(packet)) is not None:
                exchange_addresses(packet)
                self.lines[way].push(packet, time.monotonic())


def direction(packet: bytearray) -> int | None:
    """The side a packet is for, near 0, far 1; None where it is no IPv4 packet to either."""
    start = _VNET_HEADER_BYTES
    if len(packet) < start + _IP_HEADER_BYTES or packet[start] >> 4 != 4:
        return None
    return packet[_SIDE] if packet[_SIDE] in (0, 1) else None


def exchange_addresses(packet: bytearray) -> None:
    """Make it come from the address its sender is known by, and go to the one that listens."""
    packet[_SOURCE], packet[_DESTINATION] = packet[_DESTINATION], packet[_SOURCE]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m bench.path")
    parser.add_argument("--round-trip-ms", type=float, required=True)
    parser.add_argument("--megabits", type=float, required=True)
    parser.add_argument("--queue-ms", type=float, required=True)
    options = parser.parse_args(arguments)
    settings = PathSettings(options.round_trip_ms, options.megabits, options.queue_ms)
    reflector = Reflector(open_device(), settings)
    first = run_before_others()
    print("ready", flush=True)
    reflector.run(sys.stdin.fileno())
    report = {
        "packets": reflector.packets,
        "dropped": sum(line.dropped for line in reflector.lines),
        "longest_wait_ms": 1000 * max(line.longest_wait_s for line in reflector.lines),
        "latest_ms": 1000 * reflector.latest_s,
        "run_before_others": first,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
