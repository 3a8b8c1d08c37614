"""The control interface of the simulator: let something happen, and see how things stand.

    GET  /network                                   every span, route, relay and KME
    POST /events  {"event": "cut"}                  any event of qproxy.sim.events
                  {"event": "cut", "span": "north"}
                  {"event": "hang", "kme": "kme-a"}
                  {"event": "restore"}
    GET  /link                                      the first route, in short
    POST /link    {"action": "cut"}                 as /events, answered in short

All answer with how things stand. It is plain HTTP and asks nobody who they are, so it listens
on this machine only. Web pages in a browser on this machine are kept out three times over: a POST
must say ``application/json``, which a page cannot without being asked first (there is no answer to
that question); nothing that names an ``Origin`` is obeyed; and over TCP the ``Host`` must be an
address of this machine itself, so that no name of the page's own leads here (DNS rebinding).
"""

from __future__ import annotations

import re

from qproxy.address import TcpAddress
from qproxy.errors import KeySourceError, Reason
from qproxy.net.http_server import Request, Response
from qproxy.sim.api import Refusal, require_json
from qproxy.sim.events import EventError, parse_event
from qproxy.sim.network import SimulatedNetwork
from qproxy.sources.etsi014_wire import decode_json, encode_json

_METHODS = {"/network": ("GET",), "/events": ("POST",), "/link": ("GET", "POST")}
_HOST = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^:\[\]]+))(?::[0-9]{1,5})?")


class Control:
    """What the control interface knows and does.

    Args:
        network: what it disturbs.
    """

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network

    def handle(self, request: Request, now: float) -> Response:
        """Answer one request.

        Args:
            request: what came.
            now: the time, in seconds.
        """
        try:
            answer = self._handle(request, now)
        except Refusal as refusal:
            return refusal.response
        except EventError as error:
            text = str(error) if error.hint is None else f"{error}; {error.hint}"
            return Refusal(400, text).response
        except KeySourceError as error:
            return Refusal(400, str(error)).response
        return Response(200, encode_json(answer), headers=(("Cache-Control", "no-store"),))

    def report(self, now: float) -> dict[str, object]:
        """How the first route stands, for people and scripts."""
        network = self._network
        route = next(iter(network.routes.values()))
        report = route.report(now)
        return {
            "simulated": True,
            "link": report.state,
            "qber": report.qber,
            "key_rate_bps": report.key_rate_bps,
            "stored_key_count": report.stored_key_count,
            "in_step": route.in_step,
            "kmes": network.modes,
        }

    def _handle(self, request: Request, now: float) -> dict[str, object]:
        methods = _METHODS.get(request.path)
        if methods is None or request.query:
            raise Refusal(404, f"no such resource; expected {', '.join(_METHODS)}")
        if request.method not in methods:
            allow = ", ".join(methods)
            raise Refusal(405, f"expected {allow}", headers=(("Allow", allow),))
        if request.method == "POST":
            self._let_happen(request, now)
        return self.report(now) if request.path == "/link" else self._network.describe(now)

    def _let_happen(self, request: Request, now: float) -> None:
        if "origin" in request.headers:
            raise Refusal(403, "web pages are not obeyed")
        require_json(request, always=True)
        word_key = "action" if request.path == "/link" else "event"
        asked = decode_json(request.body, word_key, Reason.KME_BAD_REQUEST)
        self._network.apply(parse_event(asked, word_key=word_key), now)


def is_this_machine(host: str) -> bool:
    """Whether a Host header names this machine by an address of its own, or as ``localhost``.

    Args:
        host: the header's value, with or without a port; empty where there was none.
    """
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return False
    name: str = match["bracketed"] or match["plain"]
    return TcpAddress(name.removesuffix("."), 0).is_loopback
