"""The control interface of the simulator: let something happen, and see how things stand.

    GET  /network                                   every span, route, relay and KME
    GET  /link                                      the first route, in short
    POST /link    {"action": "cut"}                 any event of qproxy.sim.events
                  {"action": "cut", "span": "north"}
                  {"action": "hang", "kme": "kme-a"}
                  {"action": "restore"}

All answer with how things stand. It is plain HTTP and asks nobody who they are, so it listens
on this machine only; that a POST must say ``application/json`` keeps web pages from sending one.
"""

from __future__ import annotations

from qproxy.errors import KeySourceError, Reason
from qproxy.net.http_server import Request, Response
from qproxy.sim.api import Refusal, require_json
from qproxy.sim.events import EventError, parse_event
from qproxy.sim.network import SimulatedNetwork
from qproxy.sources.etsi014_wire import decode_json, encode_json


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
        if request.path not in {"/link", "/network"} or request.query:
            raise Refusal(404, "no such resource; expected /link or /network")
        if request.method == "GET" and request.path == "/network":
            return self._network.describe(now)
        if request.method == "POST" and request.path == "/link":
            require_json(request, always=True)
            asked = decode_json(request.body, "action", Reason.KME_BAD_REQUEST)
            self._network.apply(parse_event(asked, word_key="action"), now)
        elif request.method != "GET":
            allow = "GET" if request.path == "/network" else "GET, POST"
            raise Refusal(405, f"expected {allow}", headers=(("Allow", allow),))
        return self.report(now)
