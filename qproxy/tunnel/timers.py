"""What a tunnel does because time, bytes or records have passed.

Each end enforces its own limits on its own clock (rule R8): only the client starts epochs, so the
server must not depend on it for the end of one.
"""

from __future__ import annotations

from collections.abc import Callable

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.tunnel.constants import PING_BYTES
from qproxy.tunnel.epoch_client import ClientEpochs
from qproxy.tunnel.epoch_server import ServerEpochs
from qproxy.tunnel.events import EpochDue, Event, ReauthenticationDue, RoundTrip
from qproxy.tunnel.frames import FrameType, decode_ping
from qproxy.tunnel.records_out import MAX_DATA_RECORDS_PER_KEY, RecordWriter
from qproxy.tunnel.session import Session
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.states import Phase

#: A new tunnel is pinged so many times in a row, for the first answer comes from an end that is
#: still busy with the handshake ...
_FIRST_PINGS = 4
#: ... so long after each answer, in seconds.
_FIRST_PING_DISTANCE_S = 0.1
#: How long after ``reauth_interval_s`` a tunnel ends that was not re-authenticated, in seconds.
REAUTH_GRACE_S = 60.0
#: Wishes for an epoch that have a deadline or the limit of a key behind them.
PRESSING = frozenset({Reason.REKEY_BYTES, Reason.REKEY_RECORDS, Reason.REAUTHENTICATION})
#: How long the limits of an epoch are left alone while none of its counts comes near, in seconds.
LOOK_INTERVAL_S = 0.01
#: How long the peer may take to answer our END, in seconds.
_END_TIMEOUT_S = 5.0


class Timers:
    """Deadlines, limits, and the pings that measure the round trip.

    Attributes:
        ending_reason: why this end sent END, or None.
    """

    def __init__(
        self,
        settings: TunnelSettings,
        role: Role,
        writer: RecordWriter,
        session: Session,
        events: list[Event],
        now: float,
    ) -> None:
        self._settings = settings
        self._role = role
        self._writer = writer
        self._session = session
        self._events = events
        self._handshake_deadline = now + settings.handshake_timeout_s
        self._heard_at = now
        self._epoch_at = now
        self._epoch_bytes_from = 0
        self._look_at = now
        self._look_at_records = self._look_at_bytes = 0
        self._due: Reason | None = None
        self._next_ping_at = now + settings.ping_interval_s
        self._ping_payload: bytes | None = None
        self._ping_sent_at = now
        self._ping_bytes_from = 0
        self._pongs = 0
        self._idle_mark = (-1, -1)
        self._authenticated_at = now
        self._reauth_due = False
        self._reauth_deadline: float | None = None
        self._reauth_again_at: float | None = None
        self._end_deadline: float | None = None
        self.ending_reason: Reason | None = None

    def use(self, settings: TunnelSettings) -> None:
        """The peer is known: its own limits hold from here on."""
        self._settings = settings
        self._look_at_records = 0

    def heard(self, now: float) -> None:
        """A whole record came from the peer."""
        self._heard_at = now

    # Epochs.

    def epoch_due(self, reason: Reason) -> None:
        """Ask the driver for an epoch, once until one is started.

        What has a hard limit behind it is told even to a driver that lets another wish wait for a
        QKD key.
        """
        if self._due is None or (reason in PRESSING and self._due not in PRESSING):
            self._due = reason
            self._events.append(EpochDue(reason))

    def epoch_started(self) -> None:
        """An OFFER was made."""
        self._due = None

    def epoch_committed(self, now: float) -> None:
        """New keys: all counts start again."""
        self._epoch_at = now
        self._epoch_bytes_from = self._application_bytes()
        self._look_at_records = 0
        self._due = None

    def nothing_due(self, records: int, now: float) -> bool:
        """Whether no limit of the epoch has come near since :meth:`check_due` looked closely.

        Cheap enough to be asked for every batch of records.
        """
        session = self._session
        return (
            now < self._look_at
            and records < self._look_at_records
            and session.bytes_sent + session.bytes_received < self._look_at_bytes
        )

    def check_due(self, busy: bool, epoch: int, records: int, now: float) -> Reason | None:
        """Soft limits ask the driver for an epoch (client); hard ones end the tunnel.

        Args:
            busy: an exchange is under way.
            epoch: the epoch that runs; 0 before the first.
            records: sealed or opened under one key, whichever are more.
            now: the time.

        Returns:
            ``epoch_limit`` where a hard limit has passed, else None.
        """
        settings = self._settings
        # Looked at again when the nearest limit is reached, or soon where that has been already.
        self._look_at = now + LOOK_INTERVAL_S
        self._look_at_records = min(
            settings.rekey_records, settings.max_epoch_records, MAX_DATA_RECORDS_PER_KEY
        )
        self._look_at_bytes = self._epoch_bytes_from + min(
            settings.rekey_bytes, settings.max_epoch_bytes
        )
        carried = self._application_bytes() - self._epoch_bytes_from
        if epoch and (
            (settings.max_epoch_age_s and now >= self._epoch_at + settings.max_epoch_age_s)
            or carried >= settings.max_epoch_bytes
            or records >= min(settings.max_epoch_records, MAX_DATA_RECORDS_PER_KEY)
        ):
            return Reason.EPOCH_LIMIT
        if self._may_ask_for_epoch(busy):
            if carried >= settings.rekey_bytes:
                self.epoch_due(Reason.REKEY_BYTES)
            elif records >= settings.rekey_records:
                self.epoch_due(Reason.REKEY_RECORDS)
            # The sum that `next` names, to the last bit: a difference may round to less.
            elif settings.rekey_interval_s and now >= self._epoch_at + settings.rekey_interval_s:
                self.epoch_due(Reason.REKEY_INTERVAL)
        return None

    # Re-authentication.

    def reauthentication_due(self, reason: Reason) -> None:
        """Client: ask the driver for a re-authentication, once until one has been mixed in."""
        if not self._reauth_due and not self._session.going_away:
            self._reauth_due = True
            self._events.append(ReauthenticationDue(reason))

    def reauthentication_started(self, now: float) -> None:
        """One must be mixed in soon, by this end's will or the peer's."""
        self._reauth_due = True
        self._bound_reauthentication(now)

    def reauthentication_wanted(self, now: float) -> None:
        """Server: the peer was asked to prove again who it is, and has this long to do it."""
        self._reauth_due = True
        self._bound_reauthentication(now)

    def reauthentication_wanted_again(self, now: float) -> None:
        """One was asked for while one is under way: what that one proves may be out of date."""
        self._reauth_again_at = now

    def reauthenticated(self, now: float) -> None:
        """An epoch has mixed a re-authentication in."""
        again_at, self._reauth_again_at = self._reauth_again_at, None
        self._authenticated_at = now
        self._reauth_due = False
        self._reauth_deadline = None
        if again_at is None:
            return
        if self._role is Role.CLIENT:
            self.reauthentication_due(Reason.REAUTHENTICATION)
        else:
            self.reauthentication_wanted(again_at)

    def _bound_reauthentication(self, now: float) -> None:
        if self._reauth_deadline is None:
            self._reauth_deadline = now + REAUTH_GRACE_S

    def _reauth_limit(self) -> float | None:
        """When the tunnel ends for want of a re-authentication, or None."""
        limits = [] if self._reauth_deadline is None else [self._reauth_deadline]
        if self._settings.reauth_interval_s:
            limits.append(
                self._authenticated_at + self._settings.reauth_interval_s + REAUTH_GRACE_S
            )
        return min(limits, default=None)

    def _reauth_moment(self) -> float | None:
        """When the next re-authentication is due, or to be asked for at the server, or None.

        The server's interval may be the shorter one. It asks late, because a client with the same
        interval begins by itself.
        """
        interval = self._settings.reauth_interval_s
        if not interval or self._reauth_due or self._session.going_away:
            return None
        due = self._authenticated_at + interval
        return due if self._role is Role.CLIENT else due + REAUTH_GRACE_S / 2

    # Deadlines.

    def next(
        self, phase: Phase, epochs: ClientEpochs | ServerEpochs | None, *, busy: bool
    ) -> float:
        """The earliest moment at which anything is to be done.

        Never a moment that :meth:`Connection.handle_timeout` has dealt with already, or the
        driver would spin.
        """
        settings = self._settings
        moments = []
        if phase in {Phase.TLS, Phase.FIRST_EPOCH, Phase.AWAIT_COMMITTED}:
            moments.append(self._handshake_deadline)
        if self._end_deadline is not None:
            moments.append(self._end_deadline)
        if epochs is not None and epochs.deadline is not None:
            moments.append(epochs.deadline)
        if phase is Phase.OPEN:
            moments += [self._next_ping_at, self._heard_at + settings.peer_timeout_s]
            if settings.max_epoch_age_s:
                moments.append(self._epoch_at + settings.max_epoch_age_s)
            if self._may_ask_for_epoch(busy) and settings.rekey_interval_s and self._due is None:
                moments.append(self._epoch_at + settings.rekey_interval_s)
            moments += [
                moment
                for moment in (
                    self._reauth_limit(),
                    self._reauth_moment(),
                    self._session.survey_at,
                )
                if moment is not None
            ]
            if epochs is not None and epochs.qkd_deadline is not None:
                moments.append(epochs.qkd_deadline)
        return min(moments)

    def expired(
        self, phase: Phase, epochs: ClientEpochs | ServerEpochs | None, now: float
    ) -> Reason | None:
        """Why the tunnel is over because of time, or None."""
        if phase is Phase.ENDING:
            over = self._end_deadline is not None and now >= self._end_deadline
            return self.ending_reason if over else None
        if phase is not Phase.OPEN:
            return Reason.HANDSHAKE_TIMEOUT if now >= self._handshake_deadline else None
        if now >= self._heard_at + self._settings.peer_timeout_s:
            return Reason.PEER_SILENT
        if epochs is not None and epochs.qkd_deadline is not None and now >= epochs.qkd_deadline:
            return Reason.QKD_TOO_OLD
        reauth_limit = self._reauth_limit()
        if reauth_limit is not None and now >= reauth_limit:
            return Reason.REAUTH_OVERDUE
        max_age = self._settings.max_epoch_age_s
        if max_age and now >= self._epoch_at + max_age:
            return Reason.EPOCH_LIMIT
        return None

    def ending(self, reason: Reason, now: float) -> None:
        """END was sent."""
        self.ending_reason = reason
        self._end_deadline = now + _END_TIMEOUT_S

    def check_reauthentication(self, now: float) -> None:
        """Say so when it is time: the client to its driver, the server to the client."""
        moment = self._reauth_moment()
        if moment is None or now < moment:
            return
        if self._role is Role.CLIENT:
            self.reauthentication_due(Reason.REKEY_INTERVAL)
        else:
            self.request(Reason.REAUTHENTICATION)
            self.reauthentication_wanted(now)

    def request(self, reason: Reason) -> None:
        """Server: REQUEST."""
        self._writer.add_frame(FrameType.REQUEST, 0, bytes([reason.code]))

    # Pings.

    def ping_if_due(self, random_bytes: Callable[[int], bytes], now: float) -> None:
        """One PING per interval; an unanswered one is not repeated."""
        if now >= self._next_ping_at:
            self.ping(random_bytes, now)

    def ping(self, random_bytes: Callable[[int], bytes], now: float) -> None:
        """Send a PING, unless one is still unanswered."""
        self._next_ping_at = now + self._settings.ping_interval_s
        if self._ping_payload is None:
            self._ping_payload = random_bytes(PING_BYTES)
            self._ping_sent_at = now
            self._ping_bytes_from = self._application_bytes()
            self._writer.add_frame(FrameType.PING, 0, self._ping_payload)

    def on_ping_frame(self, frame: FrameType, payload: bytes, now: float) -> None:
        """PING is answered; PONG must answer ours."""
        opaque = decode_ping(payload, frame.name)
        if frame is FrameType.PING:
            self._writer.add_frame(FrameType.PONG, 0, opaque)
            return
        if opaque != self._ping_payload:
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "PONG without its PING")
        self._ping_payload = None
        measured = max(0.0, now - self._ping_sent_at)
        self._session.on_round_trip(measured, self._application_bytes() - self._ping_bytes_from)
        self._pongs += 1
        if self._pongs < _FIRST_PINGS:
            self._next_ping_at = min(self._next_ping_at, now + _FIRST_PING_DISTANCE_S)
        self._events.append(RoundTrip(measured))

    def idle_tick(self, now: float) -> bool:
        """Whether nothing moved since the last call: buffers may shrink."""
        mark = (self._session.bytes_sent, self._session.bytes_received)
        idle = mark == self._idle_mark
        self._idle_mark = mark
        return idle

    def _may_ask_for_epoch(self, busy: bool) -> bool:
        return self._role is Role.CLIENT and not busy and not self._session.going_away

    def _application_bytes(self) -> int:
        return self._session.bytes_sent + self._session.bytes_received
