"""The client: requests on standard input, answers on standard output, one JSON object a line."""

from __future__ import annotations

import time
from typing import Any

from bench.traffic.arrivals import arrivals
from bench.traffic.flows import PROBE_BYTES, Flows
from bench.traffic.messages import closed_loop, ping_pong
from bench.traffic.paced import open_loop
from bench.traffic.wire import TrafficError

_BULK = {"down": b"D", "up": b"U", "both": b"B"}


class Client:
    """Does what it is told. Times are this process's.

    ========  =====================================================================================
    do        with
    ========  =====================================================================================
    reach     ``port``: connect, send a message to and fro, close; other connections stay
    open      ``port``, ``count``: so many more connections, each tried with a message
    close     all connections
    bulk      ``direction`` down, up or both, ``bytes`` each way, ``checked``: over all connections
    pings     ``bytes``, ``seconds``: a message to and fro on the first connection
    requests  ``bytes``, ``seconds``: the same on every connection at once
    paced     ``bytes``, ``seconds``, ``rate_per_s``: at fixed times, over all connections in turn
    arrivals  ``port``, ``at_once``, ``bytes``, ``seconds``: new connections, closed when answered
    ========  =====================================================================================

    Every answer has ``seconds``; those to messages and arrivals have ``took_ns``, for each.
    """

    def __init__(self) -> None:
        self._flows = Flows()

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request. Raises TrafficError, OSError."""
        action = request["do"]
        handler = getattr(self, f"_do_{action}", None)
        if handler is None:
            raise TrafficError(f"unknown action {action!r}")
        began = time.perf_counter()
        answer: dict[str, Any] = handler(request)
        return {"seconds": time.perf_counter() - began, **answer}

    def close(self) -> None:
        """Close all connections."""
        self._flows.close()

    def _do_reach(self, request: dict[str, Any]) -> dict[str, Any]:
        flows = Flows()
        try:
            flows.open(request["port"], 1)
        finally:
            flows.close()
        return {}

    def _do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        self._flows.open(request["port"], request["count"])
        return {}

    def _do_close(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._flows.close()
        return {}

    def _do_bulk(self, request: dict[str, Any]) -> dict[str, Any]:
        what = _BULK[request["direction"]]
        self._flows.transfer(what.lower() if request["checked"] else what, request["bytes"])
        return {}

    def _do_pings(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self._flows.sockets:
            raise TrafficError("not connected")
        seconds, took_ns = ping_pong(self._flows.sockets[0], request["bytes"], request["seconds"])
        return {"seconds": seconds, "took_ns": took_ns}

    def _do_requests(self, request: dict[str, Any]) -> dict[str, Any]:
        seconds, took_ns = closed_loop(self._flows.sockets, request["bytes"], request["seconds"])
        return {"seconds": seconds, "took_ns": took_ns}

    def _do_paced(self, request: dict[str, Any]) -> dict[str, Any]:
        paced = open_loop(
            self._flows.sockets, request["bytes"], request["rate_per_s"], request["seconds"]
        )
        if paced.unanswered:
            self._flows.close()
        return {
            "took_ns": paced.took_ns,
            "late_ns": paced.late_ns,
            "unanswered": paced.unanswered,
        }

    def _do_arrivals(self, request: dict[str, Any]) -> dict[str, Any]:
        size = request.get("bytes", PROBE_BYTES)
        seconds, took_ns = arrivals(request["port"], request["at_once"], size, request["seconds"])
        return {"seconds": seconds, "took_ns": took_ns}
