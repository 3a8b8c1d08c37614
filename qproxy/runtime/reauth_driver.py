"""Begins the re-authentications of one tunnel that this gateway dialled.

The core says once that one is due, and the gateway says so when certificates have changed. Begun it
must be: both ends close the tunnel a minute later. So whatever keeps one from beginning now is
tried again, and what the peer asks for is paced, because each costs a handshake and an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio
from OpenSSL import SSL

from qproxy.errors import LocalProtocolError, Reason
from qproxy.log import Logger
from qproxy.runtime.tunnel import Tunnel
from qproxy.tunnel.connection import Connection
from qproxy.tunnel.events import EpochCommitted

#: Shortest time from the begin of one re-authentication to one that the peer asks for, in seconds.
#: The peer waits for a minute.
REQUEST_PAUSE_S = 10.0
#: After a start that failed because another was under way: the next try at the latest, in seconds.
RETRY_S = 1.0


class ReauthDriver:
    """What begins one tunnel's re-authentications."""

    def __init__(self, tunnel: Tunnel, context: Callable[[], SSL.Context], log: Logger) -> None:
        """Drive one tunnel.

        Args:
            tunnel: the tunnel, dialled by this end.
            context: gives the client's TLS context of now.
            log: bound to the peer.
        """
        self._tunnel = tunnel
        self._context = context
        self._log = log
        self._reason = Reason.REAUTHENTICATION
        self._begin_at = math.inf
        self._begun_at = -math.inf
        self._blocked = False
        self._changed = trio.Event()

    def due(self, reason: Reason) -> None:
        """The core says so: the interval has passed, or the peer asks (``reauthentication``)."""
        now = trio.current_time()
        asked = reason is Reason.REAUTHENTICATION
        self._want(reason, max(now, self._begun_at + REQUEST_PAUSE_S) if asked else now)

    def begin(self) -> None:
        """Certificates have changed: what is under way was made with the ones of before."""
        self._want(Reason.REAUTHENTICATION, trio.current_time())

    def on_committed(self, event: EpochCommitted) -> None:
        """What kept another from beginning may be over."""
        if event.reauthenticated and self._blocked:
            self._want(self._reason, trio.current_time())

    async def run(self) -> None:
        """Begin what is wanted, until cancelled."""
        while True:
            with trio.move_on_at(self._begin_at):
                await self._changed.wait()
            self._changed = trio.Event()
            if trio.current_time() >= self._begin_at:
                self._begin()

    # Inside.

    def _want(self, reason: Reason, at: float) -> None:
        if at < self._begin_at:
            self._begin_at, self._reason = at, reason
        self._changed.set()

    def _begin(self) -> None:
        def start(core: Connection, now: float) -> None:
            core.use_tls_context(self._context())
            core.reauthenticate(now)

        now = trio.current_time()
        self._begin_at, self._blocked = math.inf, False
        try:
            self._tunnel.tell_core(start)
        except LocalProtocolError as error:
            self._log.debug("reauthentication_not_started", detail=str(error))
            if error.reason not in {Reason.GOING_AWAY, Reason.TUNNEL_LOST}:
                self._blocked = True
                self._begin_at = now + RETRY_S
        else:
            self._begun_at = now
            self._log.debug("reauthenticating", reason=self._reason)
