"""Streams inside a tunnel: who opened them, which halves are open, and their credit.

Stream IDs of the tunnel's client are odd, the server's even, and each side's only ever grow, so an
ID says by itself whether a stream is yet to come, is live, or is gone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tunnel.constants import INITIAL_STREAM_CREDIT_BYTES
from qproxy.tunnel.credit import SendCredit, StreamCredit, WindowBudget
from qproxy.tunnel.frames import MAX_STREAM_ID
from qproxy.tunnel.settings import Role


class StreamState(enum.Enum):
    """Where a stream stands between OPEN and its answer."""

    OPENING = "opening"  # we sent OPEN; no answer yet; we may send data
    REQUESTED = "requested"  # the peer sent OPEN; we have not answered; it may send data
    OPEN = "open"


class Stream:
    """One live stream.

    Attributes:
        stream_id: its number.
        state: whether OPEN was answered.
        sending: False once our half is closed.
        receiving: False once the peer's half is closed.
        starved: the driver was told "no credit" and waits for CreditAvailable.
        waiting: the driver was told "no room" and waits for its turn.
        bulk: it had more to send, the last time, than fits one record or was offered.
        offered: bytes the driver was last told that it may send.
        turn: how often the output had run empty when the stream last had its turn.
    """

    __slots__ = ("bulk", "offered", "receive_credit", "receiving", "send_credit", "sending",
                 "starved", "state", "stream_id", "turn", "waiting")  # fmt: skip

    def __init__(self, stream_id: int, state: StreamState, receive_credit: StreamCredit) -> None:
        self.stream_id = stream_id
        self.state = state
        self.sending = True
        self.receiving = True
        self.starved = False
        self.waiting = False
        self.bulk = False
        self.offered = 0
        self.turn = -1
        self.send_credit = SendCredit(INITIAL_STREAM_CREDIT_BYTES)
        self.receive_credit = receive_credit


class StreamTable:
    """All live streams of a tunnel, and the IDs of those that are gone."""

    def __init__(
        self, role: Role, max_peer_streams: int, max_window_bytes: int, budget: WindowBudget
    ) -> None:
        self._streams: dict[int, Stream] = {}
        self._local_parity = 1 if role is Role.CLIENT else 0
        self._next_local_id = 1 if role is Role.CLIENT else 2
        self._highest_peer_id = 0
        self._peer_streams = 0
        self._max_peer_streams = max_peer_streams
        self._max_window_bytes = max_window_bytes
        self._budget = budget

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def get(self, stream_id: int) -> Stream | None:
        """A live stream, or None."""
        return self._streams.get(stream_id)

    def is_local(self, stream_id: int) -> bool:
        """Whether this end opened the stream."""
        return stream_id % 2 == self._local_parity

    def open_local(self, now: float) -> Stream:
        """A new stream of ours. Raises LocalProtocolError when the IDs are used up."""
        if self._next_local_id > MAX_STREAM_ID:
            raise LocalProtocolError(Reason.LIMIT_REACHED, "stream IDs of this tunnel are used up")
        stream = self._make(self._next_local_id, StreamState.OPENING, now)
        self._next_local_id += 2
        self._streams[stream.stream_id] = stream
        return stream

    def open_peer(self, stream_id: int, now: float) -> Stream | None:
        """A new stream of the peer's.

        Returns:
            The stream, or None where the peer has as many open as it may: refuse it.

        Raises:
            RemoteProtocolError: the ID is not the peer's to give, or was used before.
        """
        if stream_id == 0 or self.is_local(stream_id) or stream_id <= self._highest_peer_id:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"OPEN with stream ID {stream_id}, not a new one"
            )
        self._highest_peer_id = stream_id
        if self._peer_streams >= self._max_peer_streams:
            return None
        stream = self._make(stream_id, StreamState.REQUESTED, now)
        self._streams[stream_id] = stream
        self._peer_streams += 1
        return stream

    def lookup(self, stream_id: int, frame: str) -> Stream | None:
        """The stream a received frame is for.

        Returns:
            The stream, or None where it is gone: such frames crossed its end and mean nothing.

        Raises:
            RemoteProtocolError: no stream had this ID yet.
        """
        stream = self._streams.get(stream_id)
        if stream is None and not self._was_opened(stream_id):
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"{frame} for stream {stream_id}, which was never opened"
            )
        return stream

    def require(self, stream_id: int) -> Stream:
        """The stream a local call is for. Raises LocalProtocolError where it is gone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            raise LocalProtocolError(Reason.CLOSED, f"stream {stream_id} is closed")
        return stream

    def remove(self, stream: Stream) -> None:
        """Forget a stream whose two halves are closed, or that was reset."""
        stream.receive_credit.release()
        if self._streams.pop(stream.stream_id, None) is not None and not self.is_local(
            stream.stream_id
        ):
            self._peer_streams -= 1

    def _make(self, stream_id: int, state: StreamState, now: float) -> Stream:
        return Stream(stream_id, state, StreamCredit(self._max_window_bytes, self._budget, now))

    def _was_opened(self, stream_id: int) -> bool:
        if stream_id == 0:
            return False
        if self.is_local(stream_id):
            return stream_id < self._next_local_id
        return stream_id <= self._highest_peer_id
