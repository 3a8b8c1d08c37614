"""Streams at work: frames in, frames out, credit both ways.

Knows nothing of keys or epochs; :class:`~qproxy.tunnel.connection.Connection` gives it the frames
that belong to streams and to flow control.
"""

from __future__ import annotations

from collections import deque

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.tunnel.constants import INITIAL_SESSION_CREDIT_BYTES
from qproxy.tunnel.credit import ASSUMED_ROUND_TRIP_S, SendCredit, SessionCredit, WindowBudget
from qproxy.tunnel.events import (
    CreditAvailable,
    DataReceived,
    Event,
    StreamAccepted,
    StreamHalfClosed,
    StreamRefused,
    StreamRequested,
    StreamReset,
    Traffic,
)
from qproxy.tunnel.frames import (
    FrameType,
    OpenRequest,
    decode_credit,
    decode_empty,
    decode_open,
    decode_reason,
)
from qproxy.tunnel.records_out import RecordWriter
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.slots import DataSlots
from qproxy.tunnel.streams import Stream, StreamState, StreamTable
from qproxy.tunnel.turns import Turns

#: Round trips are smoothed as TCP smooths them (RFC 6298 §2).
_RTT_GAIN = 0.125
#: Windows go by the shortest of so many round trips beside which little was sent ...
_RTT_MEMORY = 4
#: ... that is, no more than so many bytes, or so many a second. Beside more, a PING measures the
#: queue that the windows allow, and windows that went by that would grow without end.
_LITTLE_BYTES = 64 * 1024
_LITTLE_BYTES_PER_S = 8_000_000
#: A starved driver is told of credit when there is so much of it, in bytes. A peer that gives it
#: in morsels makes us work for none.
MIN_CREDIT_NEWS_BYTES = 1024
#: How often idle windows are looked at, in seconds.
SURVEY_INTERVAL_S = 5.0
#: With this share of the session's window unread, streams that nobody reads are shed ...
PRESSED_SHARE = 0.875
#: ... until no more than this share is.
RELIEVED_SHARE = 0.75
#: Surveys in a row without a byte read, before a stream is shed.
IDLE_SURVEYS = 2


class Session:
    """All streams of one tunnel.

    Attributes:
        streams: the live ones.
        turns: those of them that wait for room in the output.
        round_trip_s: smoothed, or the assumption it starts with.
        going_away: no new streams may be opened, whoever said so.
        bytes_sent: application bytes sent since the tunnel began.
        bytes_received: application bytes received since the tunnel began.
        bytes_discarded: application bytes that came for streams which were gone already.
        streams_opened: streams opened by either end since the tunnel began.
    """

    def __init__(
        self,
        role: Role,
        settings: TunnelSettings,
        writer: RecordWriter,
        events: list[Event],
        now: float,
    ) -> None:
        self._receive_credit = SessionCredit(settings.max_session_window_bytes)
        self._budget = WindowBudget(self._receive_credit.window)
        self.streams = StreamTable(
            role, settings.max_streams, settings.max_stream_window_bytes, self._budget
        )
        self.round_trip_s = ASSUMED_ROUND_TRIP_S
        self.going_away = False
        self.bytes_sent = 0
        self.bytes_received = 0
        self.bytes_discarded = 0
        self.streams_opened = 0
        self._writer = writer
        self._events = events
        self._send_credit = SendCredit(INITIAL_SESSION_CREDIT_BYTES)
        self._starved = False
        self.turns = Turns(writer)
        self._round_trips: deque[float] = deque(maxlen=_RTT_MEMORY)
        self._base_round_trip_s = ASSUMED_ROUND_TRIP_S
        self._measured = False
        self._survey_at = now

    @property
    def unread(self) -> int:
        """Bytes received and not yet handed on, over all streams."""
        return self._receive_credit.unread

    @property
    def traffic(self) -> Traffic:
        """The counters as they are now."""
        return Traffic(
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            bytes_discarded=self.bytes_discarded,
            streams_opened=self.streams_opened,
        )

    # Calls from this end.

    def open_stream(self, request: OpenRequest, now: float) -> int:
        """Send OPEN. Returns the stream ID; data may follow at once."""
        if self.going_away:
            raise LocalProtocolError(Reason.GOING_AWAY, "this tunnel takes no new streams")
        stream = self.streams.open_local(now)
        self.streams_opened += 1
        self._writer.add_frame(FrameType.OPEN, stream.stream_id, request.encode())
        return stream.stream_id

    def accept_stream(self, stream_id: int) -> None:
        """Send OPENED: the service answered."""
        self._requested(stream_id).state = StreamState.OPEN
        self._writer.add_frame(FrameType.OPENED, stream_id)

    def refuse_stream(self, stream_id: int, reason: Reason, now: float) -> None:
        """Send REFUSED. The stream is gone."""
        stream = self._requested(stream_id)
        self._writer.add_frame(FrameType.REFUSED, stream_id, bytes([reason.code]))
        self._remove(stream)

    def sendable(self, stream_id: int) -> int:
        """Bytes ``send_data`` would take now: credit and room in the output.

        Where the answer is 0 for want of credit, a ``CreditAvailable`` event follows later. Where
        it is 0 for want of room, :meth:`next_turn` names the stream when it may go on.
        """
        stream = self.streams.require(stream_id)
        if stream.state is StreamState.REQUESTED or not stream.sending:
            return 0
        credit = stream.send_credit.limit - stream.send_credit.sent
        session_credit = self._send_credit.limit - self._send_credit.sent
        if credit <= 0 or session_credit <= 0:
            self.turns.more = False
            stream.starved = credit <= 0
            self._starved = self._starved or session_credit <= 0
            return 0
        stream.offered = min(credit, session_credit, self.turns.room(stream))
        return stream.offered

    def next_turn(self) -> int | None:
        """The stream whose turn it is, of those that found no room; None while there is none."""
        stream = self.turns.next()
        return None if stream is None else stream.stream_id

    def send_data(self, stream_id: int, data: memoryview) -> int:
        """Send as much as credit and room allow. Returns the number of bytes taken."""
        stream = self.streams.require(stream_id)
        if stream.state is StreamState.REQUESTED or not stream.sending:
            raise LocalProtocolError(Reason.UNEXPECTED_MESSAGE, f"stream {stream_id} cannot send")
        count = min(len(data), self.sendable(stream_id))
        if count <= 0:
            return 0
        self._writer.add_data(stream_id, data if count == len(data) else data[:count])
        self._count_sent(stream, count)
        return count

    def send_slots(self, stream_id: int, slots: DataSlots, count: int) -> None:
        """Send ``count`` bytes that were received into slots: at most :meth:`sendable`.

        Raises:
            LocalProtocolError: more than credit allows, or the stream cannot send.
        """
        stream = self.streams.require(stream_id)
        credit = min(
            stream.send_credit.limit - stream.send_credit.sent,
            self._send_credit.limit - self._send_credit.sent,
        )
        if stream.state is StreamState.REQUESTED or not stream.sending or count > credit:
            raise LocalProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"stream {stream_id} cannot send {count} bytes"
            )
        self._writer.add_slots(stream_id, slots, count)
        self._count_sent(stream, count)

    def half_close(self, stream_id: int, now: float) -> None:
        """Send HALF_CLOSE: this end sends no more on the stream."""
        stream = self.streams.require(stream_id)
        if stream.state is StreamState.REQUESTED or not stream.sending:
            raise LocalProtocolError(Reason.UNEXPECTED_MESSAGE, f"stream {stream_id} cannot send")
        stream.sending = False
        self._writer.add_frame(FrameType.HALF_CLOSE, stream_id)
        self._remove_if_done(stream)

    def reset_stream(self, stream_id: int, reason: Reason, now: float) -> None:
        """Send RESET. The stream is gone on this end; calling it for a gone stream is harmless."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        self._writer.add_frame(FrameType.RESET, stream_id, bytes([reason.code]))
        self._remove(stream)

    def data_consumed(self, stream_id: int, count: int, now: float) -> None:
        """``count`` received bytes were handed on: give the credit back.

        For a stream that is gone nothing is left to give: its share went back when it ended.
        """
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        limit = stream.receive_credit.on_consumed(count, now, self._base_round_trip_s)
        if limit is not None and stream.receiving:
            self._writer.add_frame(FrameType.STREAM_CREDIT, stream_id, limit.to_bytes(8, "big"))
        self._give_back_session_credit(count)
        self._remove_if_done(stream)

    # Time.

    def announce_window(self) -> None:
        """The tunnel is up: the peer may fill the whole of the session's window."""
        self._give_back_session_credit(0)

    def on_round_trip(self, seconds: float, moved: int = 0) -> None:
        """A PING was answered, and ``moved`` bytes were sent or received meanwhile."""
        if self._measured:
            self.round_trip_s += _RTT_GAIN * (seconds - self.round_trip_s)
        else:
            self.round_trip_s = self._base_round_trip_s = seconds
        self._measured = True
        if moved <= max(_LITTLE_BYTES, _LITTLE_BYTES_PER_S * seconds):
            self._round_trips.append(seconds)
            self._base_round_trip_s = min(self._round_trips)
        else:
            self._base_round_trip_s = min(self._base_round_trip_s, seconds)
        self._writer.pace.use_round_trip(self._base_round_trip_s)

    @property
    def survey_at(self) -> float | None:
        """When to call :meth:`survey`, or None while there is nothing to look at."""
        return self._survey_at if self._budget.grown or self._pressed else None

    def survey(self, now: float) -> None:
        """Let windows shrink that nobody uses; where memory is short, shed what nobody reads.

        A stream is shed by a reset, the largest first, and no more of them than must be: the
        others could not go on at all.
        """
        if now < self._survey_at:
            return
        self._survey_at = now + SURVEY_INTERVAL_S
        if not self._pressed:
            for credit in list(self._budget.grown):
                credit.survey()
            return
        for stream in self.streams:
            stream.receive_credit.survey()
        idle = [s for s in self.streams if s.receive_credit.idle_surveys >= IDLE_SURVEYS]
        for stream in sorted(idle, key=lambda s: s.receive_credit.unread, reverse=True):
            if self.unread <= RELIEVED_SHARE * self._receive_credit.window:
                break
            self.reset_stream(stream.stream_id, Reason.LIMIT_REACHED, now)
            self._events.append(StreamReset(stream.stream_id, Reason.LIMIT_REACHED))

    @property
    def _pressed(self) -> bool:
        return self.unread > PRESSED_SHARE * self._receive_credit.window

    # Frames from the peer.

    def on_data(self, stream_id: int, views: list[memoryview], count: int, now: float) -> None:
        """One DATA frame, or a run of them for one stream, ``count`` bytes in all."""
        if not count:
            raise RemoteProtocolError(Reason.MALFORMED_MESSAGE, "DATA of 0 bytes")
        credit = self._receive_credit
        credit.on_received(count)
        if credit.limit - credit.received < credit.short_at:
            self._give_back_session_credit(0)
        stream = self.streams.lookup(stream_id, "DATA")
        if stream is None:
            self.bytes_discarded += count
            self._give_back_session_credit(count)
            return
        if stream.state is StreamState.OPENING or not stream.receiving:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"DATA on stream {stream_id}, which cannot receive"
            )
        stream.receive_credit.on_received(count)
        self.bytes_received += count
        self._events.append(DataReceived(stream_id, views, count))

    def on_frame(self, frame: FrameType, stream_id: int, payload: bytes, now: float) -> None:
        """Any other frame of a stream, or SESSION_CREDIT."""
        match frame:
            case FrameType.OPEN:
                self._on_open(stream_id, payload, now)
            case FrameType.OPENED:
                self._on_opened(stream_id, payload)
            case FrameType.REFUSED:
                self._on_refused(stream_id, payload, now)
            case FrameType.STREAM_CREDIT:
                self._on_stream_credit(stream_id, payload)
            case FrameType.SESSION_CREDIT:
                self._on_session_credit(payload)
            case FrameType.HALF_CLOSE:
                self._on_half_close(stream_id, payload, now)
            case FrameType.RESET:
                self._on_reset(stream_id, payload, now)
            case _:
                raise LocalProtocolError(Reason.INTERNAL_ERROR, f"{frame.name} is no stream frame")

    def reset_all(self, reason: Reason) -> None:
        """The tunnel is over: every stream ends with a reset event."""
        for stream in self.streams:
            self.streams.remove(stream)
            self.turns.forget(stream)
            self._events.append(StreamReset(stream.stream_id, reason))

    def _on_open(self, stream_id: int, payload: bytes, now: float) -> None:
        request = decode_open(payload)
        stream = self.streams.open_peer(stream_id, now)
        if stream is None or self.going_away:
            reason = Reason.GOING_AWAY if self.going_away else Reason.LIMIT_REACHED
            self._writer.add_frame(FrameType.REFUSED, stream_id, bytes([reason.code]))
            if stream is not None:
                self.streams.remove(stream)
            return
        self.streams_opened += 1
        self._events.append(
            StreamRequested(
                stream_id, request.service, request.client_address, request.listener_address
            )
        )

    def _on_opened(self, stream_id: int, payload: bytes) -> None:
        decode_empty(payload, "OPENED")
        stream = self.streams.lookup(stream_id, "OPENED")
        if stream is None:
            return
        self._check_opening(stream, "OPENED")
        stream.state = StreamState.OPEN
        self._events.append(StreamAccepted(stream_id))

    def _on_refused(self, stream_id: int, payload: bytes, now: float) -> None:
        reason = decode_reason(payload, "REFUSED")
        stream = self.streams.lookup(stream_id, "REFUSED")
        if stream is None:
            return
        self._check_opening(stream, "REFUSED")
        self._remove(stream)
        self._events.append(StreamRefused(stream_id, reason))

    def _on_stream_credit(self, stream_id: int, payload: bytes) -> None:
        limit = decode_credit(payload, "STREAM_CREDIT")
        stream = self.streams.lookup(stream_id, "STREAM_CREDIT")
        if stream is None:
            return
        stream.send_credit.raise_to(limit)
        if stream.starved and stream.send_credit.available >= MIN_CREDIT_NEWS_BYTES:
            stream.starved = False
            self._events.append(CreditAvailable(stream_id))

    def _on_session_credit(self, payload: bytes) -> None:
        self._send_credit.raise_to(decode_credit(payload, "SESSION_CREDIT"))
        if self._starved and self._send_credit.available >= MIN_CREDIT_NEWS_BYTES:
            self._starved = False
            self._events.append(CreditAvailable(None))

    def _on_half_close(self, stream_id: int, payload: bytes, now: float) -> None:
        decode_empty(payload, "HALF_CLOSE")
        stream = self.streams.lookup(stream_id, "HALF_CLOSE")
        if stream is None:
            return
        if stream.state is StreamState.OPENING or not stream.receiving:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"HALF_CLOSE on stream {stream_id}, closed already"
            )
        stream.receiving = False
        self._events.append(StreamHalfClosed(stream_id))
        self._remove_if_done(stream)

    def _on_reset(self, stream_id: int, payload: bytes, now: float) -> None:
        reason = decode_reason(payload, "RESET")
        stream = self.streams.lookup(stream_id, "RESET")
        if stream is None:
            return
        self._remove(stream)
        self._events.append(StreamReset(stream_id, reason))

    def _check_opening(self, stream: Stream, frame: str) -> None:
        if stream.state is not StreamState.OPENING:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"{frame} for stream {stream.stream_id}, not opening"
            )

    def _requested(self, stream_id: int) -> Stream:
        stream = self.streams.require(stream_id)
        if stream.state is not StreamState.REQUESTED:
            raise LocalProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"stream {stream_id} was answered already"
            )
        return stream

    def _count_sent(self, stream: Stream, count: int) -> None:
        stream.send_credit.sent += count
        self._send_credit.sent += count
        self.bytes_sent += count
        self.turns.added(stream, count)

    def _give_back_session_credit(self, count: int) -> None:
        limit = self._receive_credit.on_consumed(count)
        if limit is not None:
            self._writer.add_frame(FrameType.SESSION_CREDIT, 0, limit.to_bytes(8, "big"))

    def _remove_if_done(self, stream: Stream) -> None:
        """Both halves closed and everything handed on."""
        if not stream.sending and not stream.receiving and not stream.receive_credit.unread:
            self._remove(stream)

    def _remove(self, stream: Stream) -> None:
        unread = stream.receive_credit.unread
        self.streams.remove(stream)
        self.turns.forget(stream)
        if unread:
            self._give_back_session_credit(unread)
