"""One stream of a tunnel joined to one local connection.

Theory of operation. Towards the tunnel, a task per stream reads from the endpoint and hands what it
read to the core at once; since nothing is awaited in between, all relays share one read buffer and
an idle stream owns none. Towards the application there is no task at all while the kernel takes
what arrives: the tunnel's reader calls :meth:`Relay.on_data`, which sends straight from the core's
buffer. Only what the kernel does not take is copied and queued, and a task drains the queue. The
queue is bounded by the stream's credit, for credit is given back only when data has been sent.

How a connection ends is handed on as it came: FIN as half-close, RST as reset, both ways.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import trio

from qproxy.errors import LocalProtocolError, Reason
from qproxy.net.endpoint import MAX_SEND_VIEWS, ConnectionLost, Endpoint
from qproxy.quantum.service_policy import ServicePolicy
from qproxy.tunnel.slots import DataSlots

if TYPE_CHECKING:
    from qproxy.runtime.tunnel import Tunnel

#: After a read of so many bytes more may have come while they were sealed: reading again at once
#: then costs less than asking whether there is something to read.
BULK_BYTES = 16 * 1024
#: Such reads in a row before the other tasks have their turn.
TURNS = 4

#: Small pieces of data that wait for the application are gathered into chunks of up to this size,
#: in bytes.
QUEUE_CHUNK_BYTES = 64 * 1024
#: How long an application may take over what is left for it once its tunnel is gone, in seconds.
LAST_DELIVERY_S = 30.0

#: The read buffer that all relays of a process share: nothing is awaited between receiving into it
#: and sealing from it.
_slots = DataSlots()


class Relay:
    """Carries one stream until both directions have ended, or either side resets it.

    Attributes:
        stream_id: the stream in its tunnel.
        active_at: when bytes last moved, for the idle timeout.
        idle_timeout_s: silence both ways after which the stream is reset; 0 for never.
        policy: what the stream demands of its tunnel's keys as long as it lives, or None.
        failure: why the stream was reset, or None.
    """

    __slots__ = (
        "_accepted",
        "_delivered",
        "_draining",
        "_endpoint",
        "_failed",
        "_local_ended",
        "_over",
        "_queue",
        "_queue_from",
        "_remote_ended",
        "_scope",
        "_settled",
        "_tunnel",
        "_wakeup",
        "active_at",
        "failure",
        "idle_timeout_s",
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
        self.active_at = trio.current_time()
        self.failure: Reason | None = None
        self._tunnel = tunnel
        self._endpoint: Endpoint | None = None
        self._scope = trio.CancelScope()
        self._queue: deque[bytearray] = deque()
        self._queue_from = 0
        self._draining = False
        self._local_ended = False
        self._remote_ended = False
        self._failed = False
        self._over = False
        self._accepted = trio.Event()
        self._delivered = False
        self._settled = trio.Event()
        self._wakeup: trio.Event | None = None
        if accepted:
            self._accepted.set()

    @property
    def ended(self) -> bool:
        """The stream was reset, by whichever side."""
        return self._failed

    async def run(self, endpoint: Endpoint) -> None:
        """Carry bytes until the stream is over. Owns the endpoint and closes it; never raises."""
        self._endpoint = endpoint
        try:
            with self._scope:
                if not self._failed:
                    self._drain_now()
                    await self._accepted.wait()
                    await self._pump()
                    await self._settled.wait()
                    await self._deliver_alone(endpoint)
        except (ConnectionLost, LocalProtocolError) as error:
            self._broken(error)
        finally:
            if self._delivered and self._local_ended and not self._failed:
                endpoint.close()
            else:
                self.fail(Reason.SHUTDOWN if self._tunnel.open else Reason.TUNNEL_LOST)
                endpoint.abort()
            self._over = True
            self._tunnel.forget(self.stream_id)

    # What the tunnel's reader tells, synchronously.

    def on_data(self, views: list[memoryview], size: int) -> None:
        """``size`` bytes for the application; the views are valid during this call only."""
        if self._failed:
            return
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

    def on_half_closed(self) -> None:
        """FIN from the far side, after everything before it."""
        self._remote_ended = True
        self._drain_now()

    def on_accepted(self) -> None:
        """The far gateway has connected to the service."""
        self._accepted.set()

    def on_reset(self, reason: Reason) -> None:
        """RST, a refusal, or the end of the tunnel: the application gets an RST, too."""
        if reason is not Reason.TUNNEL_LOST or not self._complete:
            self._end(reason)

    def on_tunnel_over(self) -> None:
        """The tunnel and its tasks are gone. What has come whole is still delivered."""
        if self._complete:
            self._settled.set()
        else:
            self._end(Reason.TUNNEL_LOST)

    def wake(self) -> None:
        """There may be room to send again."""
        if self._wakeup is not None:
            self._wakeup.set()
            self._wakeup = None

    def fail(self, reason: Reason) -> None:
        """This side gives the stream up. Idempotent, and nothing once the relay has ended."""
        if not (self._failed or self._over):
            self._tunnel.reset(self.stream_id, reason)
            self._end(reason)

    # Inside.

    @property
    def _complete(self) -> bool:
        """Both halves have ended: nothing is left but to hand on what is queued."""
        return self._local_ended and self._remote_ended and not self._failed

    async def _deliver_alone(self, endpoint: Endpoint) -> None:
        """Send what is queued where the tunnel, whose task would have done it, is gone.

        The far gateway ends its tunnels as soon as its own connections have ended, and a slow
        application here may by then have much to read that arrived in order and whole.
        """
        with trio.move_on_after(LAST_DELIVERY_S):
            while not self._send_queued():
                await endpoint.wait_sendable()

    def _broken(self, error: ConnectionLost | LocalProtocolError) -> None:
        """The endpoint or the core said no. A fault of ours costs the stream, never its tunnel."""
        lost = isinstance(error, LocalProtocolError) and not self._tunnel.open
        self.fail(Reason.TUNNEL_LOST if lost else error.reason)

    def _end(self, reason: Reason) -> None:
        if self._failed or self._over:
            return
        self._failed = True
        self.failure = reason
        self._queue.clear()
        if self._endpoint is not None:
            self._endpoint.abort()
        self._scope.cancel()

    async def _pump(self) -> None:
        """Application to tunnel, until the application's FIN."""
        endpoint, tunnel, stream_id = self._endpoint, self._tunnel, self.stream_id
        if endpoint is None:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, "a relay without an endpoint")
        turns = 0
        await endpoint.wait_receivable()
        while True:
            room = tunnel.sendable(stream_id)
            if room <= 0:
                await self._wait_for_room()
                continue
            wanted = min(room, _slots.capacity)
            count = endpoint.try_receive_vectors(_slots.views(wanted))
            if count is None:
                await endpoint.wait_receivable()
                turns = 0
                continue
            if count == 0:
                self._local_ended = True
                tunnel.half_close(stream_id)
                return
            self.active_at = trio.current_time()
            tunnel.send(stream_id, _slots, count)
            turns += 1
            if count < BULK_BYTES:
                await endpoint.wait_receivable()
                turns = 0
            elif turns >= TURNS:
                # More is likely there; let the others have their turn first.
                await trio.lowlevel.checkpoint()
                turns = 0

    async def _wait_for_room(self) -> None:
        wakeup = self._wakeup = trio.Event()
        self._tunnel.wait_for_room(self)
        await wakeup.wait()

    def _keep_rest(self, views: list[memoryview], sent: int) -> None:
        """Copy what the kernel did not take: the views die with the core's next input.

        Gathered into chunks, for the peer may send a window full of single bytes, and each of
        them would cost hundreds in a buffer of its own.
        """
        for view in views:
            if sent >= len(view):
                sent -= len(view)
                continue
            rest = view[sent:]
            sent = 0
            if self._queue and len(self._queue[-1]) + len(rest) <= QUEUE_CHUNK_BYTES:
                self._queue[-1] += rest
            else:
                self._queue.append(bytearray(rest))
        if self._queue and self._endpoint is not None:
            self._start_drain()

    def _drain_now(self) -> None:
        """Send what is queued, and FIN behind it, as far as the kernel takes it at once."""
        if self._failed or self._endpoint is None:
            return
        try:
            if self._send_queued():
                return
        except (ConnectionLost, LocalProtocolError) as error:
            self._broken(error)
            return
        self._start_drain()

    def _start_drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._tunnel.start_task(self._drain)

    async def _drain(self) -> None:
        """Send what is queued as the kernel takes it. One such task per stream at most."""
        endpoint = self._endpoint
        if endpoint is None:
            return
        try:
            while not self._failed and not self._send_queued():
                await endpoint.wait_sendable()
        except (ConnectionLost, LocalProtocolError) as error:
            # Not a failure where the tunnel's reader sent the rest meanwhile and all has ended.
            self._broken(error)
        finally:
            self._draining = False

    def _send_queued(self) -> bool:
        """Send from the queue. True when nothing is left to do."""
        endpoint = self._endpoint
        if endpoint is None:
            return True
        while self._queue:
            views = [memoryview(chunk) for chunk in islice(self._queue, MAX_SEND_VIEWS)]
            views[0] = views[0][self._queue_from :]
            sent = endpoint.try_send(views)
            if not sent:
                return False
            self.active_at = trio.current_time()
            self._drop_sent(sent)
            self._tunnel.consumed(self.stream_id, sent)
        if self._remote_ended and not self._delivered:
            if not endpoint.send_eof():
                return False
            self._delivered = True
            self._settled.set()
        return True

    def _drop_sent(self, sent: int) -> None:
        self._queue_from += sent
        while self._queue and self._queue_from >= len(self._queue[0]):
            self._queue_from -= len(self._queue.popleft())
