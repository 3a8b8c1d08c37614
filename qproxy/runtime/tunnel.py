"""Drives one tunnel core over one TCP connection.

Theory of operation. The reactor calls :meth:`Tunnel._on_ready` when the socket has something to
read or room to write. What is read goes into the core, whose events are handed out at once; what
the core has to send goes out at the end of the reactor's turn, so that many small messages share a
record and a system call, or at once where there is much of it. What the core and the kernel hold
unsent is kept short (:mod:`qproxy.tunnel.pace`), for every later byte waits behind it; streams that
found no room are asked for data in the order the core names. One task of trio's watches the clock,
and lives as long as the tunnel.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.net.reactor import HANGUP, READABLE, WRITABLE, Reactor, current_reactor
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
#: Reads in a row, while more is there, before the other connections have their turn.
TURNS = 4
#: So much waiting to be sent is worth a system call at once: the peer can begin with it.
BULK_BYTES = 64 * 1024
#: tcp(7): bytes the kernel holds unsent before it calls the socket full. socket lacks the name.
TCP_NOTSENT_LOWAT = 25
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
        #: Bytes :meth:`send` would take for a stream now; see :meth:`Connection.sendable`.
        self.sendable = connection.sendable
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
        self._reactor: Reactor = current_reactor()
        self._over = trio.Event()
        self._fault: Exception | None = None
        self._write_blocked = False
        self._read_again = False
        self._hung_up = False
        self._flush_due = False
        self._flushing = False
        self._high_water = 0
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
                nursery.start_soon(self._clock_loop)
                self._reactor.watch(self._sock, self._on_ready)
                self.flush()
                await self._over.wait()
                if self._fault is not None:
                    raise self._fault
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
                self._reactor.forget(self._sock)
                self._sock.close()
                self._close_relays()
                self.closed.set()

    # For relays.

    def send(self, stream_id: int, slots: DataSlots, count: int) -> None:
        """Send what was received into slots, at most :meth:`sendable` bytes."""
        self.connection.send_slots(stream_id, slots, count)
        self._flush_soon()

    def half_close(self, stream_id: int) -> None:
        """The application sent FIN."""
        self.connection.half_close(stream_id, self._reactor.time())
        self._flush_soon()

    def reset(self, stream_id: int, reason: Reason) -> None:
        """Give a stream up."""
        self.connection.reset_stream(stream_id, reason, self._reactor.time())
        self._flush_soon()

    def consumed(self, stream_id: int, count: int) -> None:
        """The application's socket took bytes: their credit goes back with the next flush."""
        if count:
            self.connection.data_consumed(stream_id, count, self._reactor.time())
            if not self._dispatching:
                self._flush_soon()

    def forget(self, stream_id: int) -> None:
        """A relay is over."""
        self.relays.pop(stream_id, None)

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of a relay's for as long as the tunnel lives."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    # For the owner.

    def open_stream(self, service: str, client: str, listener: str) -> int:
        """Ask the peer for a stream; it leaves with what else this turn has to send.

        Raises:
            LocalProtocolError: the tunnel takes no new streams.
        """
        stream_id = self.connection.open_stream(
            service, client_address=client, listener_address=listener, now=self._reactor.time()
        )
        self._flush_soon()
        return stream_id

    def accept_stream(self, stream_id: int) -> None:
        """Tell the peer that the service is connected, with what else this turn has to send."""
        self.connection.accept_stream(stream_id)
        self._flush_soon()

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
        self._flush_due = False
        if self._write_blocked or self._flushing:
            return
        self._flushing = True
        try:
            for _ in range(TURNS):
                data = self.connection.data_to_send()
                if data and self._send(data) < len(data):
                    self._write_blocked = True
                    self._bound_kernel()
                # What has left makes room for those that found none.
                if not self._give_turns():
                    return
        finally:
            self._flushing = False
        # Even where no turn is in progress: the others have theirs first.
        self._flush_due = True
        self._reactor.at_end(self._flush_due_now)

    def end(self, reason: Reason) -> None:
        """Send the authenticated END and let the tunnel run out."""
        self.connection.end(reason, trio.current_time())
        self._after_core()

    def tell_core(self, action: Callable[[Connection, float], None]) -> None:
        """Call the core and carry out what follows from it."""
        action(self.connection, trio.current_time())
        self._after_core()

    # Inside.

    def _flush_soon(self) -> None:
        """Send when everybody has had a turn; now, where there is much or no turn in progress."""
        pending = self.connection.output_pending
        if pending >= BULK_BYTES:
            self.flush()
        elif pending and not self._flush_due:
            if self._reactor.turning:
                self._flush_due = True
                self._reactor.at_end(self._flush_due_now)
            else:
                self.flush()

    def _flush_due_now(self) -> None:
        try:
            if self._flush_due:
                self.flush()
        except Exception as error:  # raised where the tunnel's task can end it
            self._fault = error
            self._over.set()

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

    def _on_ready(self, change: int) -> None:
        """The reactor's: the socket has changed."""
        try:
            if change & WRITABLE and self._write_blocked:
                self._write_blocked = False
                self.flush()
            if change & ~WRITABLE:
                if change & HANGUP:
                    self._hung_up = True
                self._read()
        except Exception as error:  # raised where the tunnel's task can end it
            self._fault = error
            self._over.set()

    def _read(self) -> None:
        """Read into the core, as far as there is something, and hand out its events."""
        connection = self.connection
        self._read_again = False
        for _ in range(TURNS):
            if self._over.is_set() or connection.closed:
                break
            buffer = connection.receive_buffer()
            try:
                count = self._sock.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            wanted, now = len(buffer), self._reactor.time()
            try:
                if count:
                    connection.received(count, now)
                else:
                    connection.receive_eof(now)
            except RemoteProtocolError as error:
                self.close_detail = str(error)
            self._after_core()
            if count < wanted and not self._hung_up:
                break
        else:
            if not self._read_again:
                self._read_again = True
                self._reactor.soon(self._read_on)
        if connection.closed:
            self._over.set()

    def _read_on(self) -> None:
        if self._read_again:
            self._on_ready(READABLE)

    async def _clock_loop(self) -> None:
        while (deadline := self.connection.next_timeout()) is not None:
            now = trio.current_time()
            await trio.sleep(min(max(0.0, deadline - now), TICK_S))
            now = trio.current_time()
            if deadline <= now and not self.connection.closed:
                self.connection.handle_timeout(now)
                self._after_core()
            await self._check_streams(now)
        # The core closed on its own clock: nobody would notice before the next byte.
        self._over.set()

    async def _last_words(self) -> None:
        """Send what is left, for a moment."""
        self._reactor.forget(self._sock)
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
        self._flush_soon()

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
            case StreamRequested(stream_id):
                # Where its reset has come with it, there is nothing to answer any more.
                if self.connection.session.streams.get(stream_id) is not None:
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
                self._wake_all()
            case CreditAvailable(stream_id) if stream_id is not None:
                if relay := self.relays.get(stream_id):
                    relay.wake()
            case _:
                # The peer need not wait for what is made of it here, such as a line of the log.
                if self.connection.output_pending:
                    self.flush()
                if isinstance(event, TunnelEstablished):
                    self.established.set()
                elif isinstance(event, TunnelClosed):
                    self.close_reason = event.reason
                self._owner.on_tunnel_event(self, event)

    def _give_turns(self) -> bool:
        """Let streams that found no room read now, as the core names them.

        Returns:
            Whether there is more to send now that the socket may take.
        """
        next_turn = self.connection.next_turn
        while (stream_id := next_turn()) is not None:
            relay = self.relays.get(stream_id)
            if relay is not None:
                relay.take_turn()
        return bool(self.connection.output_pending) and not self._write_blocked

    def _bound_kernel(self) -> None:
        """The socket is full: hold no more in the kernel unsent than the core says."""
        high_water = self.connection.transport_full(trio.current_time())
        if high_water != self._high_water:
            self._high_water = high_water
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, high_water)

    def _wake_all(self) -> None:
        """There is credit for the tunnel again; who lacked it was not remembered."""
        for relay in self.relays.values():
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
