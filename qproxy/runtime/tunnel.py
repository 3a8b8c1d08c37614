"""Drives one tunnel core over one TCP connection.

Theory of operation. Three tasks: one reads the socket into the core and hands out its events, one
waits for the socket only when it would not take what the core had to send, one watches the clock.
Everything else is synchronous and happens where the bytes are: :meth:`Tunnel.flush` sends straight
from the core's buffer, and the socket is waited for only after it has said no. The socket is raw
and non-blocking: trio's SocketStream would set TCP_NOTSENT_LOWAT to 16 KiB, which costs throughput.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.runtime.counters import TunnelFacts
from qproxy.runtime.relay import Relay
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import (
    CreditAvailable,
    DataReceived,
    Event,
    StreamAccepted,
    StreamHalfClosed,
    StreamRefused,
    StreamRequested,
    StreamReset,
    TunnelClosed,
    TunnelEstablished,
)
from qproxy.tunnel.slots import DataSlots

#: How often the clock is looked at, at least, in seconds. Deadlines that a message sets are
#: noticed this late at worst; those known before are met exactly.
TICK_S = 0.25
#: How often streams are looked for that are idle or whose policy is no longer met, in seconds.
STREAM_CHECK_S = 1.0
#: Streams reset in a row, before the other tasks have their turn.
RESETS_IN_A_ROW = 64
#: After a read of so many bytes it is likely that more has come while they were dealt with: reading
#: again at once then costs less than asking whether there is something to read.
BULK_BYTES = 16 * 1024
#: Reads in a row, while more is there, before the other tasks have their turn.
TURNS = 4
#: How long the last bytes (END with its reason) may take to leave, in seconds.
LAST_WORDS_S = 1.0


class TunnelOwner(Protocol):
    """Who is told what is not about streams in progress."""

    def on_tunnel_event(self, tunnel: Tunnel, event: Event) -> None:
        """An event about the handshake, epochs, policy or the tunnel's life."""

    def on_stream_requested(self, tunnel: Tunnel, event: StreamRequested) -> None:
        """The peer opens a stream."""


class Tunnel:
    """One tunnel in operation.

    Attributes:
        connection: the core.
        established: set when streams may be opened.
        closed: set when it is over; ``close_reason`` says why.
        close_reason: the local cause of the end.
        close_detail: more about it, for the log.
        draining: takes no new streams.
        relays: streams in progress, by ID.
        facts: what its owner learned about it, for the admin side.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection,
        owner: TunnelOwner,
    ) -> None:
        """Take over a connected TCP socket and a fresh core."""
        self.connection = connection
        self.established = trio.Event()
        self.closed = trio.Event()
        self.close_reason: Reason | None = None
        self.close_detail = ""
        self.draining = False
        self.relays: dict[int, Relay] = {}
        self.facts = TunnelFacts(began_at=trio.current_time())
        self._sock = sock
        self._owner = owner
        self._nursery: trio.Nursery | None = None
        self._write_blocked = False
        self._write_wakeup = trio.Event()
        self._reading = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._waiting: dict[Relay, None] = {}
        self._dispatching = False
        self._stream_check_at = 0.0
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def open(self) -> bool:
        """Streams in progress go on."""
        return self.connection.established

    @property
    def usable(self) -> bool:
        """New streams may be opened."""
        return self.open and not self.draining and not self.connection.session.going_away

    def meets(self, policy: ServicePolicy | None) -> bool:
        """Whether streams with this policy may be opened here now, and go on."""
        if policy is None or not policy.requires:
            return True
        mixed_at = self.connection.qkd_age_from
        age_s = None if mixed_at is None else trio.current_time() - mixed_at
        return policy.met(self.facts.mode, age_s)

    async def run(self) -> None:
        """Run until the tunnel is over. Closes the socket; raises nothing but cancellation.

        However it ends, the owner has been told by ``TunnelClosed`` before.
        """
        cut = Reason.SHUTDOWN
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write_loop)
                nursery.start_soon(self._clock_loop)
                self.flush()
                with self._reading:
                    await self._read_loop()
                await self._last_words()
                nursery.cancel_scope.cancel()
        except Exception:
            cut = Reason.INTERNAL_ERROR
            raise
        finally:
            self._nursery = None
            try:
                self._cut(cut)
            finally:
                self._sock.close()
                self._close_relays()
                self.closed.set()

    # For relays.

    def sendable(self, stream_id: int) -> int:
        """Bytes :meth:`send` would take now."""
        return self.connection.sendable(stream_id)

    def send(self, stream_id: int, slots: DataSlots, count: int) -> None:
        """Send what was received into slots, at most :meth:`sendable` bytes."""
        self.connection.send_slots(stream_id, slots, count)
        self.flush()

    def half_close(self, stream_id: int) -> None:
        """The application sent FIN."""
        self.connection.half_close(stream_id, trio.current_time())
        self.flush()

    def reset(self, stream_id: int, reason: Reason) -> None:
        """Give a stream up."""
        self.connection.reset_stream(stream_id, reason, trio.current_time())
        self.flush()

    def consumed(self, stream_id: int, count: int) -> None:
        """The application's socket took bytes: their credit goes back with the next flush."""
        if count:
            self.connection.data_consumed(stream_id, count, trio.current_time())
            if not self._dispatching and self.connection.output_pending:
                self.flush()

    def wait_for_room(self, relay: Relay) -> None:
        """Wake this relay when credit or room may be there."""
        stream = self.connection.session.streams.get(relay.stream_id)
        if stream is not None and stream.starved:
            return  # Its own CreditAvailable wakes it; no flush can help before.
        self._waiting[relay] = None

    def forget(self, stream_id: int) -> None:
        """A relay is over."""
        self.relays.pop(stream_id, None)

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of a relay's for as long as the tunnel lives."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    # For the owner.

    def attach(
        self,
        stream_id: int,
        *,
        idle_timeout_s: float = 0.0,
        accepted: bool = True,
        policy: ServicePolicy | None = None,
    ) -> Relay:
        """A relay for a stream: it queues until its endpoint is there. See :class:`Relay`."""
        relay = Relay(
            self, stream_id, idle_timeout_s=idle_timeout_s, accepted=accepted, policy=policy
        )
        self.relays[stream_id] = relay
        return relay

    def flush(self) -> None:
        """Send what the core has, as far as the socket takes it now."""
        if self._write_blocked:
            return
        data = self.connection.data_to_send()
        if not data:
            return
        if self._send(data) < len(data):
            self._write_blocked = True
            self._write_wakeup.set()
        elif self._waiting:
            self._wake_waiting()

    def end(self, reason: Reason) -> None:
        """Send the authenticated END and let the tunnel run out."""
        self.connection.end(reason, trio.current_time())
        self._after_core()

    def tell_core(self, action: Callable[[Connection, float], None]) -> None:
        """Call the core and carry out what follows from it."""
        action(self.connection, trio.current_time())
        self._after_core()

    # Inside.

    def _send(self, data: memoryview) -> int:
        try:
            count = self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The reader sees the same fault, and decides what it means.
            count = len(data)
        self.connection.data_sent(count)
        return count

    async def _read_loop(self) -> None:
        connection = self.connection
        turns = 0
        while not connection.closed:
            try:
                count = self._sock.recv_into(connection.receive_buffer())
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                turns = 0
                continue
            except OSError:
                count = 0
            now = trio.current_time()
            try:
                if count:
                    connection.received(count, now)
                else:
                    connection.receive_eof(now)
            except RemoteProtocolError as error:
                self.close_detail = str(error)
            self._after_core()
            turns += 1
            if self.connection.closed:
                return
            if count < BULK_BYTES:
                await trio.lowlevel.wait_readable(self._sock)
                turns = 0
            elif turns >= TURNS:
                await trio.lowlevel.checkpoint()
                turns = 0

    async def _write_loop(self) -> None:
        """Wait for the socket after it has said no."""
        with self._writing:
            while True:
                await self._write_wakeup.wait()
                self._write_wakeup = trio.Event()
                # Woken in the same moment as the last words, it must not wait beside them.
                while not self._writing.cancel_called and self.connection.data_to_send():
                    await trio.lowlevel.wait_writable(self._sock)
                    # Fetched again: the core may have more by now, or a larger buffer.
                    data = self.connection.data_to_send()
                    self._send(data)
                self._write_blocked = False
                self._wake_waiting()

    async def _clock_loop(self) -> None:
        while (deadline := self.connection.next_timeout()) is not None:
            now = trio.current_time()
            await trio.sleep(min(max(0.0, deadline - now), TICK_S))
            now = trio.current_time()
            if deadline <= now and not self.connection.closed:
                self.connection.handle_timeout(now)
                self._after_core()
            await self._check_streams(now)
        # The core closed on its own clock: the reader would not notice before the next byte.
        self._reading.cancel()

    async def _last_words(self) -> None:
        """Send what is left, for a moment. The writer may be waiting for the socket: no more."""
        self._writing.cancel()
        with trio.move_on_after(LAST_WORDS_S, shield=True):
            while data := self.connection.data_to_send():
                if not self._send(data):
                    await trio.lowlevel.wait_writable(self._sock)

    def _cut(self, reason: Reason) -> None:
        """Cancelled, or broken by a fault of ours: say so where the socket takes it at once."""
        if not self.connection.closed:
            self.connection.abandon(reason)
            self._after_core()

    def _after_core(self) -> None:
        """Hand out all events, those that handling them brings about too, then send once."""
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while events := self.connection.events():
                self._dispatch(events)
        finally:
            self._dispatching = False
        self.flush()

    def _dispatch(self, events: list[Event]) -> None:
        """Hand out events."""
        for event in events:
            if isinstance(event, DataReceived):
                relay = self.relays.get(event.stream_id)
                if relay is not None:
                    relay.on_data(event.views, event.size)
            else:
                self._on_event(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case StreamRequested():
                self._owner.on_stream_requested(self, event)
            case StreamAccepted(stream_id):
                if relay := self.relays.get(stream_id):
                    relay.on_accepted()
            case StreamHalfClosed(stream_id):
                if relay := self.relays.get(stream_id):
                    relay.on_half_closed()
            case StreamRefused(stream_id, reason) | StreamReset(stream_id, reason):
                if relay := self.relays.get(stream_id):
                    relay.on_reset(reason)
            case CreditAvailable(None):
                self._wake_waiting()
            case CreditAvailable(stream_id) if stream_id is not None:
                if relay := self.relays.get(stream_id):
                    relay.wake()
            case _:
                if isinstance(event, TunnelEstablished):
                    self.established.set()
                elif isinstance(event, TunnelClosed):
                    self.close_reason = event.reason
                self._owner.on_tunnel_event(self, event)

    def _wake_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for relay in waiting:
            relay.wake()

    async def _check_streams(self, now: float) -> None:
        """Reset the streams that are idle, and those whose policy is not met any more."""
        if now < self._stream_check_at:
            return
        self._stream_check_at = now + STREAM_CHECK_S
        resets = 0
        for relay in list(self.relays.values()):
            reason = self._overdue(relay, now)
            if reason is None:
                continue
            relay.fail(reason)
            resets += 1
            if resets % RESETS_IN_A_ROW == 0:
                await trio.lowlevel.checkpoint()

    def _overdue(self, relay: Relay, now: float) -> Reason | None:
        if not self.meets(relay.policy):
            return Reason.QKD_TOO_OLD
        if relay.idle_timeout_s and now - relay.active_at >= relay.idle_timeout_s:
            return Reason.IDLE_TIMEOUT
        return None

    def _close_relays(self) -> None:
        for relay in list(self.relays.values()):
            relay.on_tunnel_over()
