"""How much may be sealed and not sent: enough that the path never waits, and no more.

Whatever is sealed, or lies unsent in the kernel, is in front of every later byte of the tunnel. At
1 Gbit/s a mebibyte of it is 8 ms. So the high-water mark follows the rate at which the transport
takes bytes, the driver has the kernel hold no more than that unsent (TCP_NOTSENT_LOWAT), and the
core holds a little less: it need only fill the kernel up again.

The rate is measured between two moments at which the transport was full, with never a pause of the
senders in between. It says what to try, not what is right: a rate may be low because the mark is,
where the driver cannot fill the transport up again before it runs empty. So a lower mark stays only
if the rate does, and now and then a higher one is tried, which stays if the rate grows.

A transport that is never full, such as loopback, is as fast as what it was given at least: where
that is a lot, the mark doubles as well, and bulk moves in fewer and larger pieces.
"""

from __future__ import annotations

from qproxy.tunnel.trials import REVIEW_S, Trials

#: Time that bulk data may wait in the output, and again in the kernel, in seconds.
QUEUE_S = 0.0005
#: Bounds of the high-water mark, in bytes; it is halved and doubled between them. Linux hands TCP
#: pieces of up to 64 KiB, and acknowledgements come in bunches: with less than two such pieces
#: a long path runs dry between them, and TCP takes that for a sender with little to say.
MIN_HIGH_WATER_BYTES = 128 * 1024
MAX_HIGH_WATER_BYTES = 1024 * 1024
#: The core holds so much less than the mark, in bytes. What is left at the lowest mark is what the
#: kernel takes at once: Linux says that there is room when half of what it may hold has left.
CORE_LESS_BYTES = 64 * 1024
#: Where it begins, in bytes.
INITIAL_HIGH_WATER_BYTES = 128 * 1024
#: What TCP makes of another mark shows after so many round trips: a sender that was short of data
#: for a while has lost some of its congestion window.
PACE_ROUND_TRIPS = 8
#: How often the rate is looked at of a transport that is not full, in seconds.
_LOOK_INTERVAL_S = 0.01


class Pace:
    """Watches the transport of one tunnel.

    Attributes:
        high_water: what the transport should hold unsent at most, in bytes.
        core_high_water: stream data is taken while less than this waits in the core, in bytes.
        look_at: when to call :meth:`look` again.
        review_s: over how much time without pauses a rate is measured, in seconds.
        idle: since the transport was full there was a moment with room and nothing to send.
    """

    __slots__ = ("_full_at", "_looked_at", "_measured_bytes", "_measured_s", "_taken_at_look",
                 "_taken_before", "_trials", "core_high_water", "high_water", "idle",
                 "look_at", "review_s")  # fmt: skip

    def __init__(self, now: float) -> None:
        self.high_water = INITIAL_HIGH_WATER_BYTES
        self.core_high_water = INITIAL_HIGH_WATER_BYTES - CORE_LESS_BYTES
        self.look_at = now + _LOOK_INTERVAL_S
        self.idle = True
        self.review_s = REVIEW_S
        self._looked_at = now
        self._taken_at_look = 0
        self._full_at = now
        self._taken_before = 0
        self._measured_bytes = 0
        self._measured_s = 0.0
        self._trials = Trials(now)

    def transport_full(self, taken: int, now: float) -> None:
        """The transport took less than was there.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time.
        """
        count, elapsed = taken - self._taken_before, now - self._full_at
        if not count and not self.idle:
            return  # Still full.
        idle, self.idle = self.idle, False
        self._taken_before, self._full_at = taken, now
        if idle:
            return
        self._measured_bytes += count
        self._measured_s += elapsed
        if self._measured_s >= self.review_s:
            self._review(self._measured_bytes / self._measured_s, now)
            self._measured_bytes = 0
            self._measured_s = 0.0

    def use_round_trip(self, seconds: float) -> None:
        """The path's round trip, without queues."""
        self.review_s = max(REVIEW_S, PACE_ROUND_TRIPS * seconds)

    def look(self, taken: int, now: float) -> None:
        """Whether the transport takes more than the mark allows for.

        Args:
            taken: bytes it has taken since the tunnel began.
            now: the time, :attr:`look_at` or later.
        """
        if taken - self._taken_at_look > (now - self._looked_at) * self.high_water / QUEUE_S:
            self._double()
        self._taken_at_look, self._looked_at = taken, now
        self.look_at = now + _LOOK_INTERVAL_S

    def _review(self, rate: float, now: float) -> None:
        """A rate was measured, in bytes a second."""
        target = rate * QUEUE_S
        if target > self.high_water:
            self._trials.drop()
            self._double()
            return
        factor = self._trials.step(
            rate,
            now,
            large=2 * target <= self.high_water > MIN_HIGH_WATER_BYTES,
            largest=self.high_water >= MAX_HIGH_WATER_BYTES,
        )
        self._change(max(int(factor * self.high_water), MIN_HIGH_WATER_BYTES))

    def _double(self) -> None:
        self._change(2 * self.high_water)

    def _change(self, high_water: int) -> None:
        # What the transport takes next is more, or less, than what has left it.
        high_water = min(high_water, MAX_HIGH_WATER_BYTES)
        self.idle = self.idle or high_water != self.high_water
        self.high_water = high_water
        self.core_high_water = high_water - CORE_LESS_BYTES
