"""One stream of a tunnel joined to one local connection.

Theory of operation. There is no task: the reactor calls :meth:`Relay._on_ready` when the connection
has something to read or room to write, and the tunnel calls the other methods when something has
come for it. Towards the tunnel, what is read is handed to the core at once; since nothing comes in
between, all relays share one read buffer and an idle stream owns none. Towards the application,
:meth:`Relay.on_data` sends straight from the core's buffer; only what the kernel does not take is
copied and queued. The queue is bounded by the stream's credit, for credit is given back only when
data has been sent.

How a connection ends is handed on as it came: FIN as half-close, RST as reset, both ways.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import trio

from qproxy.errors import LocalProtocolError, Reason
from qproxy.log import get_logger
from qproxy.net.endpoint import MAX_SEND_VIEWS, ConnectionLost, Endpoint
from qproxy.net.reactor import BROKEN, HANGUP, READABLE, WRITABLE, Reactor, Timer, current_reactor
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.tunnel.frames import MAX_PAYLOAD_BYTES
from qproxy.tunnel.slots import DataSlots

if TYPE_CHECKING:
    from qproxy.runtime.tunnel import Tunnel

#: Reads in a row, while more is there, before the other connections have their turn.
TURNS = 4

#: Small pieces of data that wait for the application are gathered into chunks of up to this size,
#: in bytes.
QUEUE_CHUNK_BYTES = 64 * 1024
#: How long an application may take over what is left for it once its tunnel is gone, in seconds.
LAST_DELIVERY_S = 30.0

#: The read buffer that all relays of a process share: nothing comes between receiving into it and
#: sealing from it.
_slots = DataSlots()

OnOver = Callable[["Relay"], None]


class Relay:
    """Carries one stream until both directions have ended, or either side resets it.

    Attributes:
        stream_id: the stream in its tunnel.
        active_at: when bytes last moved, for the idle timeout.
        idle_timeout_s: silence both ways after which the stream is reset; 0 for never.
        policy: what the stream demands of its tunnel's keys as long as it lives, or None.
        failure: why the stream was reset, or None.
        on_over: called once, when the relay is over; by whoever opened the stream.
    """

    __slots__ = (
        "_accepted",
        "_bulk",
        "_delivered",
        "_endpoint",
        "_hung_up",
        "_last_delivery",
        "_local_ended",
        "_over",
        "_queue",
        "_queue_from",
        "_reactor",
        "_readable",
        "_remote_ended",
        "_reset",
        "_scheduled",
        "_tunnel",
        "active_at",
        "failure",
        "idle_timeout_s",
        "on_over",
        "policy",
        "stream_id",
    )

    def __init__(
        self,
        tunnel: Tunnel,
        stream_id: int,
        *,
        idle_timeout_s: float = 0.0,
        accepted: bool = True,
        policy: ServicePolicy | None = None,
    ) -> None:
        """Make a relay that has no endpoint yet: what arrives is queued.

        Args:
            tunnel: the stream's tunnel.
            stream_id: its number.
            idle_timeout_s: see the attribute.
            accepted: False to read nothing from the application before the service answers.
            policy: see the attribute.
        """
        self.stream_id = stream_id
        self.idle_timeout_s = idle_timeout_s
        self.policy = policy
        self.failure: Reason | None = None
        self.on_over: OnOver | None = None
        self._reactor: Reactor = current_reactor()
        self.active_at = self._reactor.time()
        self._tunnel = tunnel
        self._endpoint: Endpoint | None = None
        self._queue: deque[bytearray] | None = None
        self._queue_from = 0
        self._readable = False
        self._bulk = False
        self._hung_up = False
        self._reset = False
        self._scheduled = False
        self._local_ended = False
        self._remote_ended = False
        self._over = False
        self._accepted = accepted
        self._delivered = False
        self._last_delivery: Timer | None = None

    @property
    def over(self) -> bool:
        """Nothing more will happen: the endpoint, if there was one, is closed."""
        return self._over

    def start(self, endpoint: Endpoint, *, speaks_first: bool = False) -> None:
        """Carry bytes from here on. Owns the endpoint and closes it.

        Args:
            endpoint: of the application or the service.
            speaks_first: most likely its first words are there, or about to be: read at the end of
                this turn, so that they leave with what opens the stream.
        """
        if self._over:
            endpoint.abort()
            return
        self._endpoint = endpoint
        try:
            endpoint.watch(self._on_ready)
        except (ConnectionLost, OSError):
            self.fail(Reason.CONNECTION_RESET)
            return
        self._drain()
        if speaks_first:
            self._readable = True
            self.wake()

    # What the tunnel tells.

    def on_data(self, views: list[memoryview], size: int) -> None:
        """``size`` bytes for the application; the views are valid during this call only."""
        if self._over:
            return
        if self.idle_timeout_s:
            self.active_at = trio.current_time()
        sent = 0
        if not self._queue and self._endpoint is not None:
            try:
                sent = self._endpoint.try_send(views)
            except (ConnectionLost, LocalProtocolError) as error:
                self._broken(error)
                return
            self._tunnel.consumed(self.stream_id, sent)
        if sent < size:
            self._keep_rest(views, sent)
            self._want_room()

    def on_half_closed(self) -> None:
        """FIN from the far side, after everything before it."""
        self._remote_ended = True
        self._drain()

    def on_accepted(self) -> None:
        """The far gateway has connected to the service."""
        self._accepted = True
        self.wake()

    def on_reset(self, reason: Reason) -> None:
        """RST, a refusal, or the end of the tunnel: the application gets an RST, too."""
        if reason is not Reason.TUNNEL_LOST or not self._complete:
            self._end(reason)

    def on_tunnel_over(self) -> None:
        """The tunnel is gone. What has come whole is still delivered.

        The far gateway ends its tunnels as soon as its own connections have ended, and a slow
        application here may by then have much to read that arrived in order and whole.
        """
        if not self._complete:
            self._end(Reason.TUNNEL_LOST)
        elif self._last_delivery is None and not self._over:
            self._last_delivery = self._reactor.call_later(LAST_DELIVERY_S, self._too_slow)

    def wake(self) -> None:
        """There may be room to send again: read in the next turn."""
        if not self._scheduled and self._readable:
            self._scheduled = True
            self._reactor.soon(self._resume)

    def take_turn(self) -> None:
        """There is room, and it is this stream's turn: read now."""
        if self._readable and not self._over:
            self._on_ready(READABLE)

    def fail(self, reason: Reason) -> None:
        """This side gives the stream up. Idempotent, and nothing once the relay has ended."""
        if not self._over:
            self._tunnel.reset(self.stream_id, reason)
            self._end(reason)

    # Inside.

    @property
    def _complete(self) -> bool:
        """Both halves have ended: nothing is left but to hand on what is queued."""
        return self._local_ended and self._remote_ended

    def _on_ready(self, change: int) -> None:
        """The reactor's: the connection has changed."""
        try:
            if change & WRITABLE and (self._queue or (self._remote_ended and not self._delivered)):
                self._drain()
            if change & ~WRITABLE:
                if change & HANGUP:
                    self._hung_up = True
                    self._reset = self._reset or bool(change & BROKEN)
                self._readable = True
            if self._readable and not self._over:
                self._read()
                if self._reset and not (self._over or self._scheduled):
                    # Nothing more is read now, so reading does not find out.
                    raise ConnectionLost(Reason.CONNECTION_RESET, "the connection was reset")
        except (ConnectionLost, LocalProtocolError) as error:
            self._broken(error)
        except Exception as error:  # a fault of ours costs the stream, never its tunnel
            get_logger(__name__).unexpected("stream_failed", error)
            self.fail(Reason.INTERNAL_ERROR)

    def _resume(self) -> None:
        self._scheduled = False
        if not self._over:
            self._on_ready(READABLE)

    def _read(self) -> None:
        """Application to tunnel, as far as there is something, and room for it."""
        endpoint, tunnel, stream_id = self._endpoint, self._tunnel, self.stream_id
        if endpoint is None or self._local_ended or not self._accepted:
            return
        for _ in range(TURNS):
            room = tunnel.sendable(stream_id)
            if room <= 0:
                return  # The tunnel says when there is.
            wanted = min(room, _slots.capacity if self._bulk else MAX_PAYLOAD_BYTES)
            count = endpoint.try_receive_vectors(_slots.views(wanted))
            if not count:
                self._readable = False
                if count == 0:
                    self._local_ended = True
                    tunnel.half_close(stream_id)
                    self._finish_if_done()
                return
            if self.idle_timeout_s:
                self.active_at = trio.current_time()
            tunnel.send(stream_id, _slots, count)
            self._bulk = count >= MAX_PAYLOAD_BYTES
            if count < wanted and not (endpoint.holds_data or self._hung_up):
                self._readable = False
                return
        self.wake()

    def _too_slow(self) -> None:
        self._end(Reason.TUNNEL_LOST)

    def _broken(self, error: ConnectionLost | LocalProtocolError) -> None:
        """The endpoint or the core said no. A fault of ours costs the stream, never its tunnel."""
        lost = isinstance(error, LocalProtocolError) and not self._tunnel.open
        self.fail(Reason.TUNNEL_LOST if lost else error.reason)

    def _end(self, reason: Reason) -> None:
        if self._over:
            return
        self.failure = reason
        self._queue = None
        if self._endpoint is not None:
            self._endpoint.abort()
        self._finish()

    def _finish_if_done(self) -> None:
        if self._delivered and self._local_ended and not self._over and self._endpoint is not None:
            self._endpoint.close()
            self._finish()

    def _finish(self) -> None:
        """The end, once."""
        self._over = True
        self._readable = False
        if self._last_delivery is not None:
            self._last_delivery.cancel()
        self._tunnel.forget(self.stream_id)
        on_over, self.on_over = self.on_over, None
        if on_over is not None:
            on_over(self)

    def _keep_rest(self, views: list[memoryview], sent: int) -> None:
        """Copy what the kernel did not take: the views die with the core's next input.

        Gathered into chunks, for the peer may send a window full of single bytes, and each of
        them would cost hundreds in a buffer of its own.
        """
        queue = self._queue
        if queue is None:
            queue = self._queue = deque()
        for view in views:
            if sent >= len(view):
                sent -= len(view)
                continue
            rest = view[sent:]
            sent = 0
            if queue and len(queue[-1]) + len(rest) <= QUEUE_CHUNK_BYTES:
                queue[-1] += rest
            else:
                queue.append(bytearray(rest))

    def _want_room(self) -> None:
        if self._endpoint is not None:
            try:
                self._endpoint.want_room()
            except ConnectionLost as error:
                self._broken(error)

    def _drain(self) -> None:
        """Send what is queued, and FIN behind it, as far as the kernel takes it at once."""
        if self._over or self._endpoint is None:
            return
        try:
            if self._send_queued(self._endpoint):
                self._finish_if_done()
            else:
                self._endpoint.want_room()
        except (ConnectionLost, LocalProtocolError) as error:
            self._broken(error)

    def _send_queued(self, endpoint: Endpoint) -> bool:
        """Send from the queue. True when nothing is left to do."""
        queue = self._queue
        while queue:
            views = [memoryview(chunk) for chunk in islice(queue, MAX_SEND_VIEWS)]
            views[0] = views[0][self._queue_from :]
            sent = endpoint.try_send(views)
            if not sent:
                return False
            if self.idle_timeout_s:
                self.active_at = trio.current_time()
            self._queue_from += sent
            while queue and self._queue_from >= len(queue[0]):
                self._queue_from -= len(queue.popleft())
            self._tunnel.consumed(self.stream_id, sent)
        self._queue = None
        if self._remote_ended and not self._delivered:
            self._delivered = endpoint.end() if self._local_ended else endpoint.send_eof()
            return self._delivered
        return True
