"""Credit: how much each side may send before the other has handed data on.

Limits are absolute byte counts since the stream or tunnel began, so a repeated or lost update
cannot add up wrongly. Credit is given back when data is handed on, not when it arrives: a slow
reader holds back its own stream and nobody else.

A receiver's window starts small and doubles while the whole of it is used up within a few round
trips, up to a limit: on a long path a fixed window would cap the rate at window / RTT.
"""

from __future__ import annotations

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError

#: A window that is used up within so many round trips is too small.
GROWTH_ROUND_TRIPS = 4
#: Round trip assumed until one was measured, in seconds.
ASSUMED_ROUND_TRIP_S = 0.1


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
    """

    __slots__ = ("_granted_at", "_max_window", "consumed", "limit", "received", "window")

    def __init__(self, initial: int, max_window: int, now: float) -> None:
        self.window = initial
        self.limit = initial
        self.received = 0
        self.consumed = 0
        self._max_window = max(initial, max_window)  # What was granted cannot be taken back.
        self._granted_at = now

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

    def on_consumed(self, count: int, now: float, round_trip_s: float) -> int | None:
        """``count`` bytes were handed on.

        Returns:
            The new limit to announce, or None while at least half the window is still open.

        Raises:
            LocalProtocolError: more was handed on than received.
        """
        self.consumed += count
        if self.consumed > self.received:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "more bytes consumed than received")
        if self.limit - self.consumed > self.window // 2:
            return None
        if now - self._granted_at < GROWTH_ROUND_TRIPS * round_trip_s:
            self.window = min(2 * self.window, self._max_window)
        self._granted_at = now
        self.limit = self.consumed + self.window
        return self.limit
