"""Two tunnel cores joined by a simulated path, on a simulated clock: for flow control.

A path has a rate and a delay each way. In front of it stands what the kernel would hold unsent:
at most as much as the core asks for (TCP_NOTSENT_LOWAT), writable again when half of that has
left. Congestion control is left out: what has left the queue is on its way. Work takes no time, and
nothing is random.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import (
    CreditAvailable,
    DataReceived,
    RoundTrip,
    StreamHalfClosed,
    StreamRequested,
    StreamReset,
)
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.slots import DataSlots
from tests.tunnel.helpers import CLIENT, SERVER, established

#: What the path carries at once, in bytes: a few packets.
BURST_BYTES = 4 * 1024
_slots = DataSlots()


class Clock:
    """Simulated time and what is to happen in it."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), action))

    def run_until(self, end: float) -> None:
        while self._due and self._due[0][0] <= end:
            self.now, _, action = heapq.heappop(self._due)
            action()
        self.now = end


class Path:
    """One direction between the two ends: a kernel's queue, a line of a rate, and a delay.

    Attributes:
        max_unsent: what the kernel may hold unsent, in bytes.
        unsent: what it holds.
        carried: bytes that have left.
        on_writable: called when it takes bytes again after it refused some ...
        late_s: ... so late, in seconds.
        bounded: False where the queue is at the far end's kernel, which takes all that comes.
    """

    def __init__(
        self, clock: Clock, rate_bps: float, delay_s: float, deliver: Callable[[bytes], None]
    ) -> None:
        self.max_unsent = 0
        self.unsent = bytearray()
        self.carried = 0
        self.on_writable: Callable[[], None] = lambda: None
        self.late_s = 0.0
        self.bounded = True
        self._clock = clock
        self._bytes_per_s = rate_bps / 8
        self._delay_s = delay_s
        self._deliver = deliver
        self._busy = False
        self._refused = False

    def send(self, data: memoryview) -> int:
        """As much as there is room for, like a non-blocking socket."""
        room = max(0, self.max_unsent - len(self.unsent)) if self.bounded else len(data)
        count = min(len(data), room)
        self.unsent += data[:count]
        self._refused = count < len(data)
        if not self._busy:
            self._next_burst()
        return count

    def _next_burst(self) -> None:
        burst = bytes(self.unsent[:BURST_BYTES])
        del self.unsent[: len(burst)]
        self._busy = bool(burst)
        if burst:
            self._clock.at(
                self._clock.now + len(burst) / self._bytes_per_s, lambda: self._left(burst)
            )

    def _left(self, burst: bytes) -> None:
        self.carried += len(burst)
        self._clock.at(self._clock.now + self._delay_s, lambda: self._deliver(burst))
        self._next_burst()
        if self._refused and 2 * len(self.unsent) < self.max_unsent:
            self._refused = False
            self._clock.at(self._clock.now + self.late_s, self.on_writable)


@dataclass
class Source:
    """What an application has written and the gateway has not read.

    Attributes:
        endless: it always has more.
        pieces: sizes of what was written, in bytes.
    """

    endless: bool = False
    pieces: deque[int] = field(default_factory=deque)

    def take(self, room: int) -> int:
        if self.endless:
            return room
        taken = 0
        while self.pieces and taken < room:
            count = min(self.pieces[0], room - taken)
            self.pieces[0] -= count
            taken += count
            if not self.pieces[0]:
                self.pieces.popleft()
        return taken


@dataclass
class End:
    """One gateway: a core and a driver that does what docs/architecture.md says.

    Attributes:
        sources: what applications have to send, by stream.
        deaf: streams whose application reads nothing.
        received: bytes of each stream that were handed on.
        resets: streams that were reset.
        round_trips: as pings found them.
        on_data: told of data that was handed on.
    """

    clock: Clock
    core: Connection
    path: Path = field(init=False)
    sources: dict[int, Source] = field(default_factory=dict)
    deaf: set[int] = field(default_factory=set)
    received: dict[int, int] = field(default_factory=dict)
    resets: list[int] = field(default_factory=list)
    round_trips: list[RoundTrip] = field(default_factory=list)
    on_data: Callable[[int, int], None] = lambda _stream_id, _count: None
    blocked: bool = False

    def write(self, stream_id: int, size: int) -> None:
        """An application writes."""
        self.sources.setdefault(stream_id, Source()).pieces.append(size)
        self.pump(stream_id)

    def pump(self, stream_id: int) -> None:
        """Read from an application and send, as long as there is something and room for it."""
        source = self.sources.get(stream_id)
        if source is None or self.core.session.streams.get(stream_id) is None:
            return
        while source.endless or source.pieces:
            room = self.core.sendable(stream_id)
            count = source.take(min(room, _slots.capacity))
            if not count:
                return
            self.core.send_slots(stream_id, _slots, count)
            self.flush()

    def flush(self) -> None:
        """Send what the kernel takes."""
        while not self.blocked and (data := self.core.data_to_send()):
            count = self.path.send(data)
            self.blocked = count < len(data)
            self.core.data_sent(count)
            if self.blocked:
                self.path.max_unsent = self.core.transport_full(self.clock.now)

    def on_writable(self) -> None:
        """The kernel takes bytes again: those that wait, then those whose turn it is."""
        self.blocked = False
        self.flush()
        while not self.blocked and (stream_id := self.core.next_turn()) is not None:
            self.pump(stream_id)

    def on_bytes(self, data: bytes) -> None:
        """The path delivers."""
        view = memoryview(data)
        while view:
            space = self.core.receive_buffer()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            view = view[count:]
            self.core.received(count, self.clock.now)
            self.dispatch()

    def dispatch(self) -> None:
        while events := self.core.events():
            for event in events:
                match event:
                    case DataReceived(stream_id, _, size):
                        if stream_id not in self.deaf:
                            self.received[stream_id] = self.received.get(stream_id, 0) + size
                            self.core.data_consumed(stream_id, size, self.clock.now)
                            self.on_data(stream_id, size)
                    case StreamRequested(stream_id):
                        self.core.accept_stream(stream_id)
                    case CreditAvailable(None):
                        for stream_id in list(self.sources):
                            self.pump(stream_id)
                    case CreditAvailable(stream_id) if stream_id is not None:
                        self.pump(stream_id)
                    case StreamReset(stream_id):
                        self.resets.append(stream_id)
                        self.sources.pop(stream_id, None)
                    case RoundTrip():
                        self.round_trips.append(event)
                    case StreamHalfClosed():
                        raise AssertionError("nobody half-closes here")
        self.flush()

    def tick(self) -> None:
        """What the driver's clock does."""
        due = self.core.next_timeout()
        if due is not None and due <= self.clock.now:
            self.core.handle_timeout(self.clock.now)
            self.dispatch()
        self.clock.at(self.clock.now + 0.25, self.tick)


class Simulation:
    """A pair of gateways with a path between them.

    Attributes:
        client: the end that dialled.
        server: the other.
        clock: their time.
    """

    def __init__(
        self,
        *,
        rate_bps: float,
        round_trip_s: float,
        client: TunnelSettings = CLIENT,
        server: TunnelSettings = SERVER,
    ) -> None:
        pair = established(client, server)
        self.round_trip_s = round_trip_s
        self.rate_bps = rate_bps
        self.clock = Clock(pair.now)
        self.client = End(self.clock, pair.client)
        self.server = End(self.clock, pair.server)
        for near, far in ((self.client, self.server), (self.server, self.client)):
            near.path = Path(self.clock, rate_bps, round_trip_s / 2, far.on_bytes)
            near.path.max_unsent = near.core.output_high_water
            near.path.on_writable = near.on_writable
            # As if it had been this path that the first ping went over.
            near.core.session._round_trips.clear()
            near.core.session._measured = False
            near.core.session.on_round_trip(round_trip_s)
            self.clock.at(self.clock.now, near.tick)

    def end(self, role: Role) -> End:
        return self.client if role is Role.CLIENT else self.server

    @property
    def bdp(self) -> float:
        """Bandwidth-delay product, in bytes."""
        return self.rate_bps / 8 * self.round_trip_s

    def run(self, seconds: float) -> None:
        self.clock.run_until(self.clock.now + seconds)

    def open(self, *, by: Role = Role.CLIENT) -> int:
        """A stream that both ends know."""
        end = self.end(by)
        stream_id = end.core.open_stream("web", now=self.clock.now)
        end.flush()
        self.run(2 * self.round_trip_s + 0.001)
        return stream_id

    def bulk(self, sender: Role, stream_id: int) -> None:
        """An application sends without end from now on."""
        end = self.end(sender)
        end.sources[stream_id] = Source(endless=True)
        self.clock.at(self.clock.now, lambda: end.pump(stream_id))

    def window(self, receiver: Role, stream_id: int) -> int:
        stream = self.end(receiver).core.session.streams.get(stream_id)
        assert stream is not None
        return stream.receive_credit.window


class Requests:
    """A client that sends a small request on a stream of its own, over and over.

    Attributes:
        latencies: seconds from each request to its answer.
    """

    def __init__(
        self, simulation: Simulation, stream_id: int, every_s: float, size: int = 256
    ) -> None:
        self.latencies: list[float] = []
        self._simulation = simulation
        self._stream_id = stream_id
        self._every_s = every_s
        self._size = size
        self._asked: deque[float] = deque()
        self._at_server = 0
        self._at_client = 0
        for end, told in (
            (simulation.client, self._answered),
            (simulation.server, self._arrived),
        ):
            end.on_data = _chain(end.on_data, told)
        self._ask()

    def _ask(self) -> None:
        clock = self._simulation.clock
        self._asked.append(clock.now)
        self._simulation.client.write(self._stream_id, self._size)
        clock.at(clock.now + self._every_s, self._ask)

    def _arrived(self, stream_id: int, count: int) -> None:
        if stream_id == self._stream_id:
            self._at_server += count
            while self._at_server >= self._size:
                self._at_server -= self._size
                self._simulation.server.write(stream_id, self._size)

    def _answered(self, stream_id: int, count: int) -> None:
        if stream_id == self._stream_id:
            self._at_client += count
            while self._at_client >= self._size:
                self._at_client -= self._size
                self.latencies.append(self._simulation.clock.now - self._asked.popleft())


def _chain(
    first: Callable[[int, int], None], then: Callable[[int, int], None]
) -> Callable[[int, int], None]:
    def both(stream_id: int, count: int) -> None:
        first(stream_id, count)
        then(stream_id, count)

    return both
