"""A TLS handshake on a connection that the reactor watches: no task waits for it."""

from __future__ import annotations

from collections.abc import Callable

from qproxy.errors import Reason
from qproxy.net.endpoint import ConnectionLost
from qproxy.net.reactor import Timer, current_reactor
from qproxy.net.tls_endpoint import TlsEndpoint


class Handshake:
    """Runs a handshake to its end, or for so long."""

    def __init__(
        self,
        endpoint: TlsEndpoint,
        timeout_s: float | None,
        done: Callable[[ConnectionLost | None], None],
    ) -> None:
        """Nothing is done before :meth:`begin`.

        Args:
            endpoint: fresh, on a connected socket.
            timeout_s: after so many seconds it has failed with HANDSHAKE_TIMEOUT; None where the
                caller has a deadline of its own, and cancels.
            done: called once; with the failure, after which the endpoint is closed, or with None.
        """
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._done = done
        self._over = False
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Wait for the other end's words and answer them. May call ``done`` before it returns."""
        if self._timeout_s is not None:
            self._timer = current_reactor().call_later(self._timeout_s, self._too_late)
        try:
            self._endpoint.watch(self._step)
        except (ConnectionLost, OSError) as error:
            self._finish(ConnectionLost(Reason.CONNECTION_RESET, str(error)))

    def cancel(self) -> None:
        """Give up without a word: the connection is reset."""
        if not self._over:
            self._stop()
            self._endpoint.abort()

    def _step(self, _change: int) -> None:
        if self._over:
            return
        try:
            if not self._endpoint.try_handshake():
                return
        except ConnectionLost as lost:
            self._finish(lost)
            return
        self._finish(None)

    def _too_late(self) -> None:
        self._finish(ConnectionLost(Reason.HANDSHAKE_TIMEOUT, "no TLS handshake in time"))

    def _finish(self, lost: ConnectionLost | None) -> None:
        if self._over:
            return
        self._stop()
        if lost is not None:
            self._endpoint.abort()
        self._done(lost)

    def _stop(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
