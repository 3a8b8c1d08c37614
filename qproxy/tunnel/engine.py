"""What happens inside one end of a tunnel: records, frames, epochs, key changes, the end.

:class:`Engine` owns the parts and decides which of them a record belongs to and when keys change.
:class:`~qproxy.tunnel.connection.Connection` is the same object with the methods a driver calls.

Key changes, in order (docs/protocol.md, "Commit and switch"):

* client: ACCEPT verified, CONFIRM and SWITCH under the old key, then the new key; reads under the
  old key until the server's SWITCH.
* server: CONFIRM verified, SWITCH under the old key, then the new key; the client's very next
  record is its SWITCH.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from OpenSSL import SSL

from qproxy.crypto.kem import KemProvider
from qproxy.crypto.records import MAX_CONTENT_BYTES, RecordOpener, RecordSealer
from qproxy.crypto.schedule import EMPTY_TRANSCRIPT
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError, public_reason
from qproxy.tunnel.codec import malformed
from qproxy.tunnel.constants import (
    MAX_RECORDS_BEFORE_CLIENT_SWITCH,
    MAX_RECORDS_BEFORE_SERVER_SWITCH,
)
from qproxy.tunnel.data_run import DataRun
from qproxy.tunnel.epoch_client import ClientEpochs
from qproxy.tunnel.epoch_server import ServerEpochs
from qproxy.tunnel.epochs import Committed, make_binding
from qproxy.tunnel.events import (
    EpochConfirmed,
    Event,
    GoAwayReceived,
    HandshakeCompleted,
    TunnelClosed,
    TunnelEstablished,
)
from qproxy.tunnel.frames import (
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    LONE_FRAMES,
    STREAM_FRAMES,
    FrameType,
    decode_epoch_number,
    decode_reason,
)
from qproxy.tunnel.messages import (
    Abort,
    Accept,
    Confirm,
    Offer,
    Reject,
    decode_epoch_message,
)
from qproxy.tunnel.preparation import Preparation
from qproxy.tunnel.records_in import RecordSplitter
from qproxy.tunnel.records_out import MAX_OUTPUT_BYTES, RecordWriter
from qproxy.tunnel.session import Session
from qproxy.tunnel.settings import Role, TunnelSettings
from qproxy.tunnel.states import ClientEpochState, Phase, ServerEpochState
from qproxy.tunnel.timers import Timers
from qproxy.tunnel.tls_phase import FindPeer, TlsPhase

_DATA = int(FrameType.DATA)


class Engine:
    """One end of one tunnel, without the methods a driver calls.

    Attributes:
        role: client (dialled) or server.
        phase: where the tunnel stands.
        session: the streams; read its counters, call them through the connection.
    """

    def __init__(
        self,
        role: Role,
        settings: TunnelSettings,
        *,
        tls_context: SSL.Context,
        kem: KemProvider,
        random_bytes: Callable[[int], bytes],
        now: float,
        find_peer: FindPeer | None = None,
    ) -> None:
        """Make one end of a tunnel.

        Args:
            role: CLIENT for the end that dialled.
            settings: names, policy, limits.
            tls_context: a TLS 1.3 context with our certificate, the trust and ALPN "qproxy/1".
            kem: ML-KEM provider.
            random_bytes: source of nonces and IDs; ``os.urandom`` outside tests.
            now: monotonic time in seconds, on the clock of every later ``now``.
            find_peer: server: gives the settings that replace ``settings`` once the peer's
                certificate is verified, by its names; None from it keeps ``settings``, whose
                ``peer_name`` must then be in the certificate.
        """
        self.role = role
        self.phase = Phase.TLS
        self._settings = settings
        self._kem = kem
        self._random_bytes = random_bytes
        self._events: list[Event] = []
        self._splitter = RecordSplitter()
        self._writer = RecordWriter(now)
        self._tls: TlsPhase | None = TlsPhase(tls_context, role, settings, find_peer)
        self._epochs: ClientEpochs | ServerEpochs | None = None
        self._opener: RecordOpener | None = None
        self._next_opener: RecordOpener | None = None
        self._records_to_switch = 0
        self._plain = memoryview(bytearray(self._splitter.capacity))
        self._peer_ended = False
        self.session = Session(role, settings, self._writer, self._events, now)
        self._timers = Timers(settings, role, self._writer, self.session, self._events, now)
        self._preparation = Preparation(
            role, settings, tls_context, self._writer, self._timers, self._events, random_bytes
        )
        if role is Role.CLIENT:
            self._writer.add_raw(self._tls.start())

    @property
    def closed(self) -> bool:
        """The tunnel is over; send what is left and close the connection."""
        return self.phase is Phase.CLOSED

    @property
    def epoch(self) -> int:
        """Number of the last epoch this end committed; 0 before the first."""
        return self._epochs.chain.epoch - 1 if self._epochs is not None else 0

    def _guarded_process(self, now: float) -> None:
        """Take in what was received; whatever the peer broke ends the tunnel, then is raised."""
        try:
            self._process(now)
            self._check_limits(now)
        except RemoteProtocolError as error:
            self._broken(error)
            raise

    def _broken(self, error: RemoteProtocolError) -> None:
        """The peer broke the protocol: the tunnel is over."""
        self._take_epoch_events()
        self._close(error.reason, clean=False)

    def _check_limits(self, now: float) -> None:
        # One call takes in a bounded number of bytes and answers with at most about as many,
        # so looking once per call keeps the output within twice the limit.
        if self._writer.pending > MAX_OUTPUT_BYTES:
            raise RemoteProtocolError(
                Reason.PEER_NOT_READING, f"{self._writer.pending} bytes wait for the peer to read"
            )
        if now >= self._writer.pace.look_at:
            self._writer.pace.look(self._writer.sent_bytes, now)
        if self.phase is Phase.OPEN:
            reason = self._check_due(now)
            if reason is not None:
                raise RemoteProtocolError(reason, "the epoch's hard limit has passed")

    def _check_due(self, now: float, *, closely: bool = False) -> Reason | None:
        """Limits by bytes, records and age, on this end's own counts (rule R8).

        Args:
            now: the time.
            closely: look even where a look just before found nothing near: a timer has run out,
                and what it was set for must be done or it runs out again at once.
        """
        records = self._writer.records
        if self._opener is not None and self._next_opener is None:
            records = max(records, self._opener.records)
        timers = self._timers
        if not closely and timers.nothing_due(records, now):
            return None
        return timers.check_due(self._epoch_busy(), self.epoch, records, now)

    def _process(self, now: float) -> None:
        """Take in every whole record that is there."""
        if len(self._plain) < self._splitter.capacity:
            self._plain = memoryview(bytearray(self._splitter.capacity))
        run = DataRun(self.session, now)
        before = self._splitter.buffered
        try:
            self._process_records(run, now)
        finally:
            run.flush()
            # Only whole records count as life: bytes that drip in prove nothing.
            if self._splitter.buffered < before:
                self._timers.heard(now)

    def _process_records(self, run: DataRun, now: float) -> None:
        plain, start, splitter = self._plain, 0, self._splitter
        while True:
            opener = self._opener
            if opener is not None and self._takes_data():
                # Full records stand together, many at a time: that is what bulk data is.
                records = splitter.next_full_records()
                if records:
                    start = self._process_full_records(opener, records, run, start, now)
                    continue
            record = splitter.next_record()
            if record is None:
                return
            if opener is None:
                self._on_tls_record(record, now)
            else:
                if self._next_opener is not None:
                    self._count_to_switch()
                length = opener.open_into(record, plain[start:] if start else plain)
                start = self._take_content(run, start, start + length, now)
            if self.phase is Phase.CLOSED:
                return

    def _process_full_records(
        self,
        opener: RecordOpener,
        records: list[memoryview],
        run: DataRun,
        start: int,
        now: float,
    ) -> int:
        """Take in full records. Returns where the next content goes."""
        plain = self._plain
        opened, last_bytes = opener.open_full_run(records, plain[start:] if start else plain)
        if opened < len(records):
            self._splitter.put_back(len(records) - opened)
        taken = run.take_full(plain, start, opened - 1)
        start += taken * MAX_CONTENT_BYTES
        for _ in range(opened - 1 - taken):
            start = self._take_content(run, start, start + MAX_CONTENT_BYTES, now)
        return self._take_content(run, start, start + last_bytes, now)

    def _take_content(self, run: DataRun, start: int, end: int, now: float) -> int:
        """Take one record's content, in a run if it is only data. Returns where it ends."""
        if not (self._takes_data() and run.take(self._plain, start, end)):
            run.flush()
            self._on_content(start, end, now)
        return end

    def _takes_data(self) -> bool:
        """Whether a record may hold nothing but data: no epoch is waiting for its switch."""
        return self.phase is Phase.OPEN and self._next_opener is None

    def _on_tls_record(self, record: memoryview, now: float) -> None:
        tls = self._require_tls()
        was_authenticated = tls.peer is not None
        output, messages = tls.receive_record(record)
        self._writer.add_raw(output)
        if not was_authenticated and tls.peer is not None:
            self._on_authenticated(tls, now)
        for message in messages:
            self._on_epoch_message(message, now)

    def _on_authenticated(self, tls: TlsPhase, now: float) -> None:
        """C0, S0: the peer is who it should be; its certificate enters the bindings."""
        peer = tls.peer
        if peer is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "nobody authenticated")
        self._settings = tls.settings
        self._timers.use(tls.settings)
        self._preparation.settings = tls.settings
        binding = make_binding(self.role, self._settings, peer)
        exchange = ClientEpochs if self.role is Role.CLIENT else ServerEpochs
        self._epochs = exchange(
            self._settings,
            self._kem,
            self._random_bytes,
            binding,
            tls.exporter(EMPTY_TRANSCRIPT),
            now,
        )
        self.phase = Phase.FIRST_EPOCH
        self._events.append(
            HandshakeCompleted(
                self._settings.peer_name, peer.group, peer.cipher, peer.certificate_hash
            )
        )
        if self.role is Role.CLIENT:
            self._timers.epoch_due(Reason.INITIAL)

    def _on_content(self, position: int, end: int, now: float) -> None:
        """The frames of one record, which lie in the plaintext buffer."""
        start = position
        plain = self._plain
        if position == end:
            raise malformed("a record without frames")
        while position < end:
            payload_start = position + FRAME_HEADER_BYTES
            if payload_start > end:
                raise malformed("a frame header ends outside its record")
            frame, stream_id, length = FRAME_HEADER.unpack_from(plain, position)
            payload_end = payload_start + length
            if payload_end > end:
                raise malformed("a frame ends outside its record")
            payload = plain[payload_start:payload_end]
            if frame == _DATA and self.phase is Phase.OPEN and self._records_to_switch != 1:
                self.session.on_data(stream_id, [payload], length, now)
            else:
                alone = position == start and payload_end == end
                self._on_frame(frame, stream_id, bytes(payload), now, alone=alone)
            position = payload_end

    def _on_frame(
        self, code: int, stream_id: int, payload: bytes, now: float, *, alone: bool
    ) -> None:
        try:
            frame = FrameType(code)
        except ValueError:
            raise malformed(f"frame type {code} is unknown") from None
        self._check_frame(frame, stream_id, alone=alone)
        if self.phase is Phase.ENDING and frame is not FrameType.END:
            self._on_frame_while_ending(frame, payload, now)
            return
        match frame:
            case FrameType.EPOCH:
                self._on_epoch_message(payload, now)
            case FrameType.SWITCH:
                self._on_switch(decode_epoch_number(payload, "SWITCH"), now)
            case FrameType.COMMITTED:
                self._on_committed(decode_epoch_number(payload, "COMMITTED"), now)
            case FrameType.END:
                self._on_end(decode_reason(payload, "END"))
            case FrameType.GO_AWAY:
                self.session.going_away = True
                self._events.append(GoAwayReceived(decode_reason(payload, "GO_AWAY")))
            case FrameType.REQUEST | FrameType.ANNOUNCE | FrameType.REPORT | FrameType.TLS:
                self._preparation.on_frame(frame, payload, self._require_epochs(), now)
            case FrameType.PING | FrameType.PONG:
                self._timers.on_ping_frame(frame, payload, now)
            case _:
                self.session.on_frame(frame, stream_id, payload, now)

    def _on_frame_while_ending(self, frame: FrameType, payload: bytes, now: float) -> None:
        """What the peer sent before our END reached it: only what changes the key of its END.

        Data that was under way is counted, so that both ends can account for it.
        """
        if frame is FrameType.SWITCH:
            self._on_switch(decode_epoch_number(payload, "SWITCH"), now)
        elif frame is FrameType.DATA:
            self.session.bytes_discarded += len(payload)
        elif frame is FrameType.EPOCH and isinstance(self._epochs, ServerEpochs):
            message = decode_epoch_message(payload)
            if isinstance(message, Confirm):
                self._install_as_server(self._epochs.on_confirm(message, now), now)

    def _check_frame(self, frame: FrameType, stream_id: int, *, alone: bool) -> None:
        if frame in LONE_FRAMES and not alone:
            raise malformed(f"{frame.name} is not alone in its record")
        if frame not in STREAM_FRAMES and stream_id != 0:
            raise malformed(f"{frame.name} with stream ID {stream_id}")
        if self.phase is Phase.AWAIT_COMMITTED and frame is not FrameType.COMMITTED:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"{frame.name} where COMMITTED was due"
            )
        if self._must_switch_now() and frame is not FrameType.SWITCH:
            raise RemoteProtocolError(
                Reason.UNEXPECTED_MESSAGE, f"{frame.name} where SWITCH was due"
            )

    def _on_epoch_message(self, data: bytes, now: float) -> None:
        message = decode_epoch_message(data)
        epochs = self._epochs
        match message, epochs:
            case Offer(), ServerEpochs():
                self._send_epoch_message(epochs.on_offer(message, data, now))
            case Confirm(), ServerEpochs():
                self._install_as_server(epochs.on_confirm(message, now), now)
            case Abort(), ServerEpochs():
                epochs.on_abort(message)
            case Accept(), ClientEpochs():
                outcome = epochs.on_accept(message, now)
                if isinstance(outcome, Committed):
                    self._install_as_client(outcome, now)
                else:
                    self._send_epoch_message(outcome)
            case Reject(), ClientEpochs():
                epochs.on_reject(message)
            case _:
                raise RemoteProtocolError(
                    Reason.UNEXPECTED_MESSAGE,
                    f"{type(message).__name__.upper()} is not for the {self.role.value}",
                )
        self._take_epoch_events()

    def _install_as_client(self, committed: Committed, now: float) -> None:
        """C4: the client's direction changes keys now; the server's at its SWITCH."""
        pending = committed.pending
        sealer = RecordSealer(committed.aead, pending.client_traffic_secret)
        opener = RecordOpener(committed.aead, pending.server_traffic_secret)
        self._send_epoch_message(committed.message)
        if self.phase is Phase.FIRST_EPOCH:
            self._leave_tls(opener)
            self.phase = Phase.AWAIT_COMMITTED
        else:
            self._writer.add_frame(FrameType.SWITCH, 0, pending.epoch.to_bytes(4, "big"))
            self._next_opener = opener
            self._records_to_switch = MAX_RECORDS_BEFORE_SERVER_SWITCH
        self._writer.install(sealer)
        self._finish_install(committed, now)

    def _install_as_server(self, committed: Committed, now: float) -> None:
        """S4: the server's direction changes keys now; the client's next record is its SWITCH.

        After our END nothing more is sent, so there is nothing to switch (rule R12); but the
        client, which had committed before it knew, ends its own direction under the new key.
        """
        pending = committed.pending
        sealer = RecordSealer(committed.aead, pending.server_traffic_secret)
        opener = RecordOpener(committed.aead, pending.client_traffic_secret)
        number = pending.epoch.to_bytes(4, "big")
        if self.phase is Phase.FIRST_EPOCH:
            self._leave_tls(opener)
            self._writer.install(sealer)
            self._writer.add_frame(FrameType.COMMITTED, 0, number)
            self.phase = Phase.OPEN
            self._require_server().on_switch()
        else:
            if self.phase is not Phase.ENDING:
                self._writer.add_frame(FrameType.SWITCH, 0, number)
                self._writer.install(sealer)
            self._next_opener = opener
            self._records_to_switch = MAX_RECORDS_BEFORE_CLIENT_SWITCH + 1
        first = pending.epoch == 1
        self._finish_install(committed, now)
        if first:
            self._on_established(now)

    def _finish_install(self, committed: Committed, now: float) -> None:
        epochs = self._epochs
        if epochs is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "keys without an exchange")
        epochs.chain.commit(committed.pending)
        self._timers.epoch_committed(now)
        if committed.event.reauthenticated:
            self._timers.reauthenticated(now)
        self._take_epoch_events()
        self._events.append(replace(committed.event, traffic=self.session.traffic))

    def _on_switch(self, epoch: int, now: float) -> None:
        if self._next_opener is None or epoch != self.epoch or self._epochs is None:
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, f"SWITCH to epoch {epoch}")
        self._opener = self._next_opener
        self._next_opener = None
        self._records_to_switch = 0
        self._epochs.on_switch()
        if self.role is Role.CLIENT:
            self._events.append(EpochConfirmed(epoch, self.session.traffic))

    def _on_committed(self, epoch: int, now: float) -> None:
        if self.phase is not Phase.AWAIT_COMMITTED or epoch != 1 or self._epochs is None:
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, f"COMMITTED for epoch {epoch}")
        self.phase = Phase.OPEN
        self._epochs.on_switch()
        self._events.append(EpochConfirmed(epoch, self.session.traffic))
        self._on_established(now)

    def _on_established(self, now: float) -> None:
        self._events.append(TunnelEstablished())
        self.session.announce_window()
        self._timers.ping(self._random_bytes, now)

    def _on_end(self, reason: Reason) -> None:
        """The peer's direction is over. Answer in kind, unless ours is over already."""
        self._peer_ended = True
        local = self._timers.ending_reason
        if self.phase is Phase.OPEN:
            self._writer.add_frame(FrameType.END, 0, bytes([Reason.CLOSED.code]))
        self._close(reason if local is None else local, clean=True)

    def _count_to_switch(self) -> None:
        self._records_to_switch -= 1
        if self._records_to_switch <= 0:
            raise RemoteProtocolError(Reason.UNEXPECTED_MESSAGE, "SWITCH did not come in time")

    def _must_switch_now(self) -> bool:
        return self._next_opener is not None and self._records_to_switch <= 1

    def _leave_tls(self, opener: RecordOpener) -> None:
        """The hand-over (rule R11): OpenSSL must hold nothing back."""
        self._require_tls().finish()
        self._tls = None
        self._splitter.tls_phase = False
        self._opener = opener

    def _send_epoch_message(self, message: bytes | None) -> None:
        if message is None:
            return
        if self._tls is not None:
            self._writer.add_raw(self._tls.send_message(message))
        else:
            self._writer.add_frame(FrameType.EPOCH, 0, message)

    def _take_epoch_events(self) -> None:
        if self._epochs is not None and self._epochs.events:
            self._events.extend(self._epochs.events)
            self._epochs.events.clear()

    def _epoch_busy(self) -> bool:
        epochs = self._epochs
        if isinstance(epochs, ServerEpochs):
            return epochs.state is not ServerEpochState.IDLE
        return epochs is not None and epochs.state is not ClientEpochState.IDLE

    def _require_tls(self) -> TlsPhase:
        if self._tls is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "the TLS phase is over")
        return self._tls

    def _require_epochs(self) -> ClientEpochs | ServerEpochs:
        if self._epochs is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "no epoch exchange yet")
        return self._epochs

    def _require_server(self) -> ServerEpochs:
        if not isinstance(self._epochs, ServerEpochs):
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "not the server's end")
        return self._epochs

    def _check_open(self) -> None:
        if self.phase is not Phase.OPEN:
            raise LocalProtocolError(Reason.TUNNEL_LOST, f"the tunnel is {self.phase.value}")

    def _close(self, reason: Reason, *, clean: bool) -> None:
        """The end, whatever the cause: streams reset, secrets erased, one last END if it may."""
        if self.closed:
            return
        self.session.reset_all(Reason.TUNNEL_LOST)
        if self.phase in {Phase.TLS, Phase.FIRST_EPOCH, Phase.AWAIT_COMMITTED}:
            # Nobody has proved anything yet: no alert, no ticket, no word about the cause.
            self._writer.discard()
        elif self.phase is Phase.OPEN and not clean:
            self._say_why(reason)
        self.phase = Phase.CLOSED
        self._writer.output()
        self._writer.close()
        self._opener = self._next_opener = None
        self._tls = None
        self._preparation.drop()
        if self._epochs is not None:
            self._epochs.wipe()
        self._events.append(TunnelClosed(reason, clean, self.session.traffic))

    def _say_why(self, reason: Reason) -> None:
        try:
            self._writer.add_frame(FrameType.END, 0, bytes([public_reason(reason).code]))
        except LocalProtocolError:
            # The key has protected all the records it may: the peer finds out by EOF.
            self._writer.discard()
