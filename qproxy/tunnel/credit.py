"""Credit: how much each side may send before the other has handed data on.

Limits are absolute byte counts since the stream or tunnel began, so a repeated or lost update
cannot add up wrongly. Credit is given back when data is handed on, not when it arrives: a slow
reader holds back its own stream and nobody else.

Windows, in three rules. A *stream's* window starts small and follows what its reader takes: when
most of a window is taken within one round trip, the sender is held up by it, and the window grows
to four times what was taken; when it is far more than is taken in a round trip, it halves. So it
settles at 1.7 to 4 times the bandwidth-delay product, whatever the path. The *session's* window
is the memory limit, in full and from the start: it holds up nobody before memory really is short.
The *budget* lets all streams' windows together grow to three quarters of the session's, each by at
most half of what is left. So streams that stop reading leave room for those that go on.
"""

from __future__ import annotations

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tunnel.constants import INITIAL_STREAM_CREDIT_BYTES

#: Round trip assumed until one was measured, in seconds.
ASSUMED_ROUND_TRIP_S = 0.1
#: Windows are sized for round trips no shorter than this, in seconds: what two event loops may take
#: over a piece of bulk data. On a short path it saves credit frames.
MIN_ROUND_TRIP_S = 0.005
#: A window of which more than this share is taken within a round trip is too small.
FULL_SHARE = 0.6
#: What a window that is too small grows to, in multiples of what was taken in a round trip.
GROWTH = 4
#: A window of more than this many times what is taken in a round trip is too large.
LARGE = 4
#: Share of the session's window that all streams' windows may grow to together: the rest is for
#: the initial credit of streams that have not shown yet what they need.
BUDGET_SHARE = 0.75


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
    """What we let the peer send, with a window that stays as it is.

    Attributes:
        window: bytes the peer may have under way or unread with us.
        limit: what was announced.
        received: bytes that came.
        consumed: bytes of them that were handed on.
    """

    __slots__ = ("_renew_at", "consumed", "limit", "received", "window")

    def __init__(self, initial: int, window: int) -> None:
        """Begin with the limit of the protocol; a smaller window cannot take it back."""
        self.window = max(initial, window)
        self.limit = initial
        self.received = 0
        self.consumed = 0
        self._renew_at = _three_quarters(self.window)

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

    def on_consumed(self, count: int) -> int | None:
        """``count`` bytes were handed on.

        Returns:
            The new limit to announce, or None while three quarters of the window are still open.

        Raises:
            LocalProtocolError: more was handed on than received.
        """
        self.consumed += count
        if self.consumed > self.received:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "more bytes consumed than received")
        return self.renew()

    def renew(self) -> int | None:
        """The limit to announce now, or None where that is not worth a frame."""
        if self.limit - self.consumed > self._renew_at:
            return None
        self.limit = self.consumed + self.window
        return self.limit


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
        idle_surveys: how many surveys in a row have found that nothing was handed on.
    """

    __slots__ = ("_budget", "_max_window", "_span_at", "_span_from", "_surveyed", "idle_surveys")

    def __init__(self, max_window: int, budget: WindowBudget, now: float) -> None:
        super().__init__(INITIAL_STREAM_CREDIT_BYTES, INITIAL_STREAM_CREDIT_BYTES)
        self.idle_surveys = 0
        self._max_window = max_window
        self._budget = budget
        self._span_at = now
        self._span_from = 0
        self._surveyed = 0

    def on_handed_on(self, count: int, now: float, round_trip_s: float) -> int | None:
        """``count`` bytes were handed on. See :meth:`on_consumed`.

        Args:
            count: bytes.
            now: the time.
            round_trip_s: shortest lately measured.
        """
        self.consumed += count
        if self.consumed > self.received:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "more bytes consumed than received")
        if self.limit - self.consumed > self._renew_at:
            return None
        self._tune(now, max(round_trip_s, MIN_ROUND_TRIP_S))
        return self.renew()

    def survey(self) -> None:
        """Called from time to time: a window that nobody uses halves."""
        if self.consumed != self._surveyed:
            self._surveyed = self.consumed
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
        over = elapsed >= round_trip_s
        if over:
            taken = int(taken * round_trip_s / elapsed)
            self._span_at = now
            self._span_from = self.consumed
        if taken > FULL_SHARE * self.window:
            more = min(GROWTH * taken, self._max_window) - self.window
            more = min(more, self._budget.free // 2)
            if more > 0:
                self._resize(self.window + more)
        elif over and LARGE * taken < self.window:
            self._shrink()

    def _shrink(self) -> None:
        """Halve the window. What waits to be read keeps its place in the budget."""
        if self.window > INITIAL_STREAM_CREDIT_BYTES:
            self._resize(max(INITIAL_STREAM_CREDIT_BYTES, self.window // 2, self.unread))

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
