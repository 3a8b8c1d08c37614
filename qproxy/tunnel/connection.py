"""One end of a tunnel: bytes and the time in, events and bytes out.

Theory of operation. :class:`Connection` is the face of a tunnel end; what happens inside is in
:class:`~qproxy.tunnel.engine.Engine`, which it extends. A driver does five things: it puts received
bytes into :meth:`receive_buffer` and calls :meth:`received`; sends what :meth:`data_to_send` gives
and calls :meth:`data_sent`; handles the :meth:`events`; calls :meth:`handle_timeout` when
:meth:`next_timeout` has passed; and calls the methods that open, feed and close streams.

No sockets, no clock, no randomness of its own: time is an argument, random bytes and ML-KEM come
from the constructor. Errors: :class:`~qproxy.errors.RemoteProtocolError` means the peer (or the
path) broke the protocol and the tunnel is over; :class:`~qproxy.errors.LocalProtocolError` means
the caller asked for something that cannot be; anything else out of this class is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence

from OpenSSL import SSL

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError, public_reason
from qproxy.keys import QkdKey, wipe_keys
from qproxy.modes import Mode, Policy
from qproxy.tunnel.announce import KeyReport
from qproxy.tunnel.engine import Engine
from qproxy.tunnel.epoch_client import ClientEpochs
from qproxy.tunnel.epoch_server import ServerEpochs
from qproxy.tunnel.events import Event
from qproxy.tunnel.frames import FrameType, OpenRequest
from qproxy.tunnel.messages import OfferedKey
from qproxy.tunnel.settings import Role
from qproxy.tunnel.slots import DataSlots
from qproxy.tunnel.states import ClientEpochState, Phase


class Connection(Engine):
    """One end of one tunnel."""

    # What the driver asks.

    @property
    def established(self) -> bool:
        """Streams may be opened, unless going away."""
        return self.phase is Phase.OPEN

    @property
    def connection_id(self) -> bytes | None:
        """16 bytes that name the tunnel, public and the same on both ends.

        None before the peer is authenticated, and at the server before its first OFFER.
        """
        return None if self._epochs is None else self._epochs.connection_id

    @property
    def effective_policy(self) -> Policy:
        """The stricter of both ends' policies, as far as known."""
        return self._settings.policy if self._epochs is None else self._epochs.effective_policy

    @property
    def peer_policy(self) -> Policy | None:
        """The peer's policy as last authenticated, or None before that."""
        return self._epochs.peer_policy if self._epochs is not None else None

    @property
    def qkd_age_from(self) -> float | None:
        """When a QKD key last entered the keys; None where none ever did."""
        if self._epochs is None or not self._epochs.qkd_ever:
            return None
        return self._epochs.fresh_qkd_at

    @property
    def qkd_deadline(self) -> float | None:
        """When the tunnel ends unless a fresh QKD key comes; None where no end requires one."""
        return self._epochs.qkd_deadline if self._epochs is not None else None

    @property
    def epoch_exchange_idle(self) -> bool:
        """Client: whether ``start_epoch`` may be called now."""
        return (
            isinstance(self._epochs, ClientEpochs)
            and self._epochs.state is ClientEpochState.IDLE
            and self.phase in {Phase.FIRST_EPOCH, Phase.OPEN}
            and not self.session.going_away
        )

    @property
    def output_pending(self) -> int:
        """Bytes that wait to be sent."""
        return self._writer.pending

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        if not self._events:
            return []
        events = self._events[:]
        self._events.clear()
        return events

    # Bytes in.

    def receive_buffer(self) -> memoryview:
        """Where to put received bytes. Earlier ``DataReceived`` views are invalid after it."""
        return self._splitter.free_space()

    def received(self, count: int, now: float) -> None:
        """``count`` bytes were put into :meth:`receive_buffer`.

        Raises:
            RemoteProtocolError: the tunnel is over. Events up to ``TunnelClosed`` and a last
                output may still be fetched.
        """
        if self.phase is Phase.CLOSED:
            return
        self._splitter.advance(count)
        self._guarded_process(now)

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """The same for bytes that lie elsewhere: copies, and may process more than once.

        Raises:
            RemoteProtocolError: as :meth:`received`.
        """
        view = memoryview(data)
        while view and not self.closed:
            space = self.receive_buffer()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            view = view[count:]
            self.received(count, now)

    def receive_eof(self, now: float) -> None:
        """The transport ended.

        Raises:
            RemoteProtocolError: ``truncated`` where no authenticated END came before.
        """
        if self.closed:
            return

        truncated = RemoteProtocolError(
            Reason.TRUNCATED, f"the connection ended in phase {self.phase.value} without END"
        )
        self._broken(truncated)
        raise truncated

    # Bytes out.

    def data_to_send(self) -> memoryview:
        """Everything that waits to be sent; valid until the next call of anything else."""
        return self._writer.output()

    def data_sent(self, count: int) -> None:
        """The first ``count`` bytes of :meth:`data_to_send` are on their way."""
        self._writer.sent(count)

    @property
    def output_high_water(self) -> int:
        """Bytes that the transport should hold unsent at most."""
        return self._writer.pace.high_water

    def transport_full(self, now: float) -> int:
        """The transport took less than :meth:`data_to_send` gave, or nothing.

        Call it after :meth:`data_sent`. How fast the transport takes bytes is measured from one
        such call to the next.

        Returns:
            :attr:`output_high_water`, which may have changed: a TCP socket is to be told by
            TCP_NOTSENT_LOWAT.
        """
        return self._writer.transport_full(now)

    # Time.

    def next_timeout(self) -> float | None:
        """When to call :meth:`handle_timeout` at the latest, or None once closed."""
        if self.closed:
            return None
        moment = self._timers.next(self.phase, self._epochs, busy=self._epoch_busy())
        inner = self._preparation.deadline if self.phase is Phase.OPEN else None
        return moment if inner is None else min(moment, inner)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Never raises; a tunnel that must end says so by ``TunnelClosed``."""
        if self.closed:
            return
        reason = self._timers.expired(self.phase, self._epochs, now)
        if reason is not None:
            self._close(reason, clean=False)
            return
        epochs = self._epochs
        if epochs is not None and epochs.deadline is not None and now >= epochs.deadline:
            if isinstance(epochs, ClientEpochs) and epochs.state is ClientEpochState.OFFERED:
                self._send_epoch_message(epochs.on_timeout())
                self._take_epoch_events()
            else:
                self._close(Reason.EPOCH_TIMEOUT, clean=False)
                return
        if self.phase is Phase.OPEN:
            reason = self._check_due(now, closely=True)
            if reason is not None:
                self._close(reason, clean=False)
                return
            if self._preparation.overdue(now):
                self._close(Reason.HANDSHAKE_TIMEOUT, clean=False)
                return
            self._timers.check_reauthentication(now)
            self._timers.ping_if_due(self._random_bytes, now)
            self.session.survey(now)
        if self._timers.idle_tick(now):
            self._splitter.shrink()
            self._writer.shrink()

    # Epochs.

    def start_epoch(self, mode: Mode, reason: Reason, keys: Sequence[QkdKey], now: float) -> None:
        """Client: make an OFFER. The keys are the core's from here on and are wiped by it.

        Raises:
            LocalProtocolError: not now, or not in this mode. The keys are wiped all the same.
        """
        try:
            if not isinstance(self._epochs, ClientEpochs) or not self.epoch_exchange_idle:
                raise LocalProtocolError(Reason.UNEXPECTED_MESSAGE, "no epoch can be started now")
            offer = self._epochs.start(mode, reason, keys, now)
        except LocalProtocolError:
            wipe_keys(keys)
            raise
        self._timers.epoch_started()
        self._send_epoch_message(offer)

    def provide_keys(self, epoch: int, attempt: int, keys: Sequence[QkdKey], now: float) -> None:
        """Server: the keys of a ``KeysNeeded``, in its order. The core wipes them.

        An answer that comes too late is dropped.
        """
        if self.closed or not isinstance(self._epochs, ServerEpochs):
            wipe_keys(keys)
            return
        epochs = self._epochs
        try:
            message = epochs.provide_keys(epoch, attempt, keys, now)
        except RemoteProtocolError as error:
            self._close(error.reason, clean=False)
            return
        if message is not None:
            self._send_epoch_message(message)
        self._take_epoch_events()

    def refuse_keys(self, epoch: int, attempt: int, reason: Reason) -> None:
        """Server: the keys of a ``KeysNeeded`` cannot be had."""
        if self.closed or not isinstance(self._epochs, ServerEpochs):
            return
        message = self._epochs.refuse_keys(epoch, attempt, reason)
        if message is not None:
            self._send_epoch_message(message)
        self._take_epoch_events()

    def announce_keys(self, keys: Sequence[OfferedKey]) -> None:
        """Client: name keys that will be offered soon, 1 to 64 at a time.

        Raises:
            LocalProtocolError: the tunnel is not up, or an ID or size cannot be announced.
        """
        self._check_open()
        self._preparation.announce(keys)

    def report_keys(self, report: KeyReport) -> None:
        """Server: answer a ``KeysAnnounced``."""
        if self.phase is Phase.OPEN:
            self._preparation.report(report)

    def request_epoch(self, reason: Reason, now: float) -> None:
        """Server: ask the client for a new epoch, or with ``reauthentication`` for a fresh proof
        of who it is, without which the tunnel ends a minute later.
        """
        if self.phase is Phase.OPEN and self.role is Role.SERVER:
            self._preparation.request(reason, self._require_epochs(), now)

    def use_tls_context(self, tls_context: SSL.Context) -> None:
        """The certificates, authorities and revocation lists of every later re-authentication."""
        self._preparation.tls_context = tls_context

    def reauthenticate(self, now: float) -> None:
        """Client: run a fresh TLS handshake inside the tunnel and mix it into the next epoch.

        Raises:
            LocalProtocolError: the tunnel is not up or takes no more epochs, or one is under way.
        """
        self._check_open()
        if self.session.going_away:
            raise LocalProtocolError(Reason.GOING_AWAY, "no epoch could mix it in any more")
        self._preparation.reauthenticate(self._require_epochs(), now)

    # Streams.

    def open_stream(
        self, service: str, *, client_address: str = "", listener_address: str = "", now: float
    ) -> int:
        """Open a stream to a service behind the peer. Returns its ID; data may follow at once.

        Raises:
            LocalProtocolError: the tunnel is not up, or takes no new streams.
        """
        self._check_open()
        return self.session.open_stream(OpenRequest(service, client_address, listener_address), now)

    def accept_stream(self, stream_id: int) -> None:
        """Answer ``StreamRequested``: the service is connected."""
        self._check_open()
        self.session.accept_stream(stream_id)

    def refuse_stream(self, stream_id: int, reason: Reason, now: float) -> None:
        """Answer ``StreamRequested``: no."""
        self._check_open()
        self.session.refuse_stream(stream_id, reason, now)

    def sendable(self, stream_id: int) -> int:
        """Bytes :meth:`send_data` would take now. See :meth:`Session.sendable`."""
        self._check_open()
        return self.session.sendable(stream_id)

    def next_turn(self) -> int | None:
        """The stream to ask for data now, of those whose :meth:`sendable` was 0 for want of room.

        Ask when the transport takes bytes again after :meth:`transport_full`, until it is full or
        this is None: small streams come first, then bulk in turn. Each stream is named once and,
        where it has more data than it may send, again later.

        Returns:
            A stream ID, or None while nobody waits or there is still no room.
        """
        turns = self.session.turns
        if turns.waiting:
            return self.session.next_turn()
        if not turns.more:
            self._writer.pace.idle = True
        return None

    def send_data(self, stream_id: int, data: memoryview) -> int:
        """Send stream data. Returns the number of bytes taken, from the front.

        Raises:
            LocalProtocolError: the stream or the tunnel is closed.
        """
        self._check_open()
        return self.session.send_data(stream_id, data)

    def send_slots(self, stream_id: int, slots: DataSlots, count: int) -> None:
        """Send ``count`` bytes that were received into ``slots``, at most :meth:`sendable`.

        Raises:
            LocalProtocolError: the stream or the tunnel is closed, or credit does not allow it.
        """
        self._check_open()
        self.session.send_slots(stream_id, slots, count)

    def data_consumed(self, stream_id: int, count: int, now: float) -> None:
        """``count`` bytes of ``DataReceived`` were handed on."""
        if self.phase is Phase.OPEN:
            self.session.data_consumed(stream_id, count, now)

    def half_close(self, stream_id: int, now: float) -> None:
        """No more data from this end on a stream."""
        self._check_open()
        self.session.half_close(stream_id, now)

    def reset_stream(self, stream_id: int, reason: Reason, now: float) -> None:
        """End a stream at once. Harmless where it is gone."""
        if self.phase is Phase.OPEN:
            self.session.reset_stream(stream_id, reason, now)

    # Endings.

    def go_away(self, reason: Reason) -> None:
        """Take no new streams and start no new epoch; what is open goes on."""
        if self.phase is Phase.OPEN and not self.session.going_away:
            self.session.going_away = True
            self._writer.add_frame(FrameType.GO_AWAY, 0, bytes([reason.code]))

    def end(self, reason: Reason, now: float) -> None:
        """Send the authenticated END, last of this direction. Open streams are reset.

        Before the tunnel is up there is nothing to authenticate it with: it just closes.
        """
        if self.phase is Phase.OPEN:
            self.session.reset_all(Reason.TUNNEL_LOST)
            if self._epochs is not None:
                self._epochs.drop()
            self._writer.add_frame(FrameType.END, 0, bytes([public_reason(reason).code]))
            self.phase = Phase.ENDING
            self._timers.ending(reason, now)
        elif self.phase not in {Phase.ENDING, Phase.CLOSED}:
            self._close(reason, clean=False)

    def abandon(self, reason: Reason) -> None:
        """The driver can do no more for this tunnel: it is over, whatever the peer still says.

        An END is left in the output where the tunnel is up. Harmless where it is over already.
        """
        self._close(self._timers.ending_reason or reason, clean=False)
