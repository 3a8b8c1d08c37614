"""Credit: how much each side may send before the other has handed data on.

Limits are absolute byte counts since the stream or tunnel began, so a repeated or lost update
cannot add up wrongly. Credit is given back when data is handed on, not when it arrives: a slow
reader holds back its own stream and nobody else.

Windows, in three rules. A *stream's* window starts small and follows what its reader takes: when
most of a window is taken within one round trip, the sender is held up by it, and the window grows
to six times what was taken. What is more than four times that is not needed on a long path, and on
a short one half of it is tried, and twice as much now and then (:mod:`qproxy.tunnel.trials`). So it
settles at two to four times the bandwidth-delay product, or at what two busy event loops need. The
*session's* window is the memory limit, in full and from the start: it holds up nobody before memory
really is short. The *budget* lets all streams' windows together grow to three quarters of the
session's, and none to more than the others have left it. So streams that stop reading leave room
for those that go on.
"""

from __future__ import annotations

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tunnel.constants import INITIAL_SESSION_CREDIT_BYTES, INITIAL_STREAM_CREDIT_BYTES
from qproxy.tunnel.trials import REVIEW_S, Trials

#: Round trip assumed until one was measured, in seconds.
ASSUMED_ROUND_TRIP_S = 0.1
#: Windows are sized for round trips no shorter than this, in seconds. What waits for a busy reader
#: is up to four times what it reads in this time, and small messages wait behind it.
MIN_ROUND_TRIP_S = 0.0007
#: A window of which more than this share is taken within a round trip is too small.
FULL_SHARE = 0.45
#: What a window that is too small grows to, in multiples of what was taken in a round trip. So it
#: nearly trebles in each of the first round trips.
GROWTH = 6
#: A window of more than this many times what is taken in a round trip may be too large.
LARGE = 4
#: Beside a round trip of this length, what event loops take does not matter, in seconds. On a
#: shorter one, what is taken at once may be what they had left lying, so it is measured over this
#: time at least; and a larger window than the round trip calls for is tried.
LONG_ROUND_TRIP_S = 0.005
#: What a window that is too small grows to on a short path, in multiples of what was taken.
SHORT_GROWTH = 3
#: A rate is measured over this many round trips at least.
REVIEW_ROUND_TRIPS = 2
#: One that took longer to measure than this says nothing, in seconds: the stream had pauses.
MAX_REVIEW_S = 2.0
#: Share of the session's window that all streams' windows may grow to together: the rest is for
#: the initial credit of streams that have not shown yet what they need.
BUDGET_SHARE = 0.75
#: A reader that takes no more than this share of what waits for it, from one survey to the next, is
#: as good as none: one byte now and then does not make a stream alive.
IDLE_SHARE = 1 / 16
#: With less than this share of the session's window open to the peer, credit that came back is
#: announced at once ...
SHORT_SHARE = 0.125
#: ... if it is this much, in bytes.
SHORT_NEWS_BYTES = 64 * 1024


class SendCredit:
    """What the peer lets us send."""

    __slots__ = ("limit", "sent")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sent = 0

    @property
    def available(self) -> int:
        """Bytes that may be sent now."""
        return self.limit - self.sent

    def raise_to(self, limit: int) -> None:
        """Take a credit update. Raises RemoteProtocolError where it would not raise the limit."""
        if limit <= self.limit:
            raise RemoteProtocolError(
                Reason.FLOW_CONTROL, f"credit limit {limit} does not exceed {self.limit}"
            )
        self.limit = limit


class ReceiveCredit:
    """What we let the peer send.

    Attributes:
        window: bytes the peer may have under way or unread with us.
        limit: what was announced.
        received: bytes that came.
        consumed: bytes of them that were handed on.
    """

    __slots__ = ("_renew_at", "consumed", "limit", "received", "window")

    def __init__(self, initial: int, window: int) -> None:
        self.window = window
        self.limit = initial
        self.received = 0
        self.consumed = 0
        self._renew_at = _three_quarters(window)

    @property
    def unread(self) -> int:
        """Bytes received and not yet handed on."""
        return self.received - self.consumed

    def on_received(self, count: int) -> None:
        """Raises RemoteProtocolError where the peer sent more than it was allowed."""
        self.received += count
        if self.received > self.limit:
            raise RemoteProtocolError(
                Reason.FLOW_CONTROL,
                f"{self.received} bytes received with a credit of {self.limit}",
            )

    def _renew(self) -> int:
        """The limit to announce."""
        self.limit = self.consumed + self.window
        return self.limit


class SessionCredit(ReceiveCredit):
    """What we let the peer send over all streams, with a window that stays as it is.

    Attributes:
        short_at: with less than this open to the peer, the session is short of credit, in bytes.
    """

    __slots__ = ("short_at",)

    def __init__(self, max_window: int) -> None:
        """Begin with the limit of the protocol; a smaller window cannot take it back."""
        super().__init__(
            INITIAL_SESSION_CREDIT_BYTES, max(INITIAL_SESSION_CREDIT_BYTES, max_window)
        )
        self.short_at = int(SHORT_SHARE * self.window)

    def on_consumed(self, count: int) -> int | None:
        """``count`` bytes were handed on; with 0, the session may be short of credit.

        Returns:
            The new limit to announce, or None where that is not worth a frame.

        Raises:
            LocalProtocolError: more was handed on than received.
        """
        self.consumed += count
        if self.consumed > self.received:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "more bytes consumed than received")
        if self.limit - self.consumed <= self._renew_at:
            return self._renew()
        if self.limit - self.received >= self.short_at:
            return None
        news = self.consumed + self.window - self.limit
        return self._renew() if news >= SHORT_NEWS_BYTES else None


class WindowBudget:
    """What all streams' windows of a tunnel may have beyond their initial credit.

    Attributes:
        total: bytes in all.
        free: bytes of it that no window has.
        grown: the windows that have some.
    """

    __slots__ = ("free", "grown", "total")

    def __init__(self, session_window: int) -> None:
        self.total = self.free = int(BUDGET_SHARE * session_window)
        self.grown: dict[StreamCredit, None] = {}


class StreamCredit(ReceiveCredit):
    """What we let the peer send on one stream, with a window that follows the need.

    Attributes:
        idle_surveys: how many surveys in a row have found that next to nothing was handed on.
    """

    __slots__ = ("_budget", "_max_window", "_review_at", "_review_from", "_span_at", "_span_from",
                 "_surveyed", "_trials", "idle_surveys")  # fmt: skip

    def __init__(self, max_window: int, budget: WindowBudget, now: float) -> None:
        super().__init__(INITIAL_STREAM_CREDIT_BYTES, INITIAL_STREAM_CREDIT_BYTES)
        self.idle_surveys = 0
        self._max_window = max_window
        self._budget = budget
        self._span_at = self._review_at = now
        self._span_from = self._review_from = 0
        self._surveyed = 0
        self._trials = Trials(now)

    def on_consumed(self, count: int, now: float, round_trip_s: float) -> int | None:
        """``count`` bytes were handed on.

        Args:
            count: bytes.
            now: the time.
            round_trip_s: shortest lately measured.

        Returns:
            The new limit to announce, or None while three quarters of the window are still open.

        Raises:
            LocalProtocolError: more was handed on than received.
        """
        self.consumed += count
        if self.consumed > self.received:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "more bytes consumed than received")
        if self.limit - self.consumed > self._renew_at:
            return None
        self._tune(now, max(round_trip_s, MIN_ROUND_TRIP_S))
        if self.limit - self.consumed > self._renew_at:
            return None  # The window has shrunk.
        return self._renew()

    def survey(self) -> None:
        """Called from time to time: a window that nobody uses halves."""
        taken = self.consumed - self._surveyed
        self._surveyed = self.consumed
        if taken > IDLE_SHARE * self.unread:
            self.idle_surveys = 0
            return
        self.idle_surveys += 1
        self._shrink()

    def release(self) -> None:
        """No more data will come: the window goes back to the budget."""
        self._resize(INITIAL_STREAM_CREDIT_BYTES)

    def _tune(self, now: float, round_trip_s: float) -> None:
        """Look at what was taken in this span of time, a round trip long or not over yet."""
        elapsed = now - self._span_at
        taken = self.consumed - self._span_from
        short = round_trip_s < LONG_ROUND_TRIP_S
        if elapsed >= max(round_trip_s, LONG_ROUND_TRIP_S):
            taken = int(taken * round_trip_s / elapsed)
            self._span_at = now
            self._span_from = self.consumed
        elif short:
            taken = 0
        if taken > FULL_SHARE * self.window:
            larger = min((SHORT_GROWTH if short else GROWTH) * taken, self._largest())
            if larger > self.window:
                self._resize(larger)
                self._trials.drop()
                self._review_at, self._review_from = now, self.consumed
                return
        if now - self._review_at >= max(REVIEW_S, REVIEW_ROUND_TRIPS * round_trip_s):
            self._review(now, round_trip_s)

    def _review(self, now: float, round_trip_s: float) -> None:
        """Try another window, or end a trial."""
        seconds = now - self._review_at
        count = self.consumed - self._review_from
        self._review_at, self._review_from = now, self.consumed
        if seconds > MAX_REVIEW_S or count < self.window:
            # Slow, or with pauses: no window holds it up.
            self._trials.drop()
            if LARGE * count * round_trip_s < self.window * seconds:
                self._shrink()
            return
        rate = count / seconds
        largest = self._largest()
        factor = self._trials.step(
            rate,
            now,
            large=LARGE * rate * round_trip_s < self.window > INITIAL_STREAM_CREDIT_BYTES,
            largest=self.window >= largest or round_trip_s >= LONG_ROUND_TRIP_S,
        )
        if factor < 1:
            self._shrink()
        elif factor > 1:
            self._resize(max(self.window, min(2 * self.window, largest)))

    def _largest(self) -> int:
        """What the window may grow to: half of what the others have left of the budget.

        So one as large as this would still fit.
        """
        others = self._budget.free + self.window - INITIAL_STREAM_CREDIT_BYTES
        return min(self._max_window, INITIAL_STREAM_CREDIT_BYTES + others // 2)

    def _shrink(self) -> None:
        """Halve the window. What waits to be read keeps its place in the budget."""
        smaller = max(INITIAL_STREAM_CREDIT_BYTES, self.window // 2, self.unread)
        if smaller < self.window:
            self._resize(smaller)

    def _resize(self, window: int) -> None:
        budget = self._budget
        budget.free += self.window - window
        self.window = window
        self._renew_at = _three_quarters(window)
        if window > INITIAL_STREAM_CREDIT_BYTES:
            budget.grown[self] = None
        else:
            budget.grown.pop(self, None)


def _three_quarters(window: int) -> int:
    return window - window // 4
