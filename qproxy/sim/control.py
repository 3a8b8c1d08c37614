"""The control interface of the simulator: disturb the link, or a KME, and see how things stand.

    GET  /link
    POST /link    {"action": "cut"}
                  {"action": "jam"}
                  {"action": "degrade", "rate_factor": 0.1, "qber": 0.05}
                  {"action": "drain"}                       stored keys are thrown away
                  {"action": "desync"}                      the KMEs give out different keys
                  {"action": "hang", "kme": "kme-a"}        requests get no answer
                  {"action": "unavailable", "kme": "kme-a"} requests get 503
                  {"action": "garbage", "kme": "kme-a"}     requests get 200 and what is no JSON
                  {"action": "kill", "kme": "kme-a"}        connections are refused
                  {"action": "restore"}                     the link and both KMEs
                  {"action": "restore", "kme": "kme-a"}     that KME only

Both answer with how things stand. It is plain HTTP and asks nobody who they are, so it listens
on this machine only; that a POST must say ``application/json`` keeps web pages from sending one.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping

from qproxy.errors import KeySourceError, Reason
from qproxy.net.http_server import Request, Response
from qproxy.sim.api import Refusal, require_json
from qproxy.sim.link import SimulatedLink
from qproxy.sim.store import KeyStore
from qproxy.sources.etsi014_wire import decode_json, encode_json


class KmeMode(enum.StrEnum):
    """Whether a KME does what it is there for."""

    UP = "up"
    HANGING = "hanging"
    UNAVAILABLE = "unavailable"
    GARBAGE = "garbage"
    KILLED = "killed"


_MODES = {
    "hang": KmeMode.HANGING,
    "unavailable": KmeMode.UNAVAILABLE,
    "garbage": KmeMode.GARBAGE,
    "kill": KmeMode.KILLED,
}


class Control:
    """What the control interface knows and does.

    Args:
        link: the link it disturbs.
        store: the keys it puts out of step.
        kmes: names of the KMEs.
        on_mode: told of every KME whose mode is set.
    """

    def __init__(
        self,
        link: SimulatedLink,
        store: KeyStore,
        kmes: Iterable[str],
        on_mode: Callable[[str, KmeMode], None],
    ) -> None:
        self._link = link
        self._store = store
        self._modes = dict.fromkeys(kmes, KmeMode.UP)
        self._on_mode = on_mode

    def handle(self, request: Request, now: float) -> Response:
        """Answer one request.

        Args:
            request: what came.
            now: the time, in seconds.
        """
        try:
            self._handle(request, now)
        except Refusal as refusal:
            return refusal.response
        except KeySourceError as error:
            return Refusal(400, str(error)).response
        no_store = (("Cache-Control", "no-store"),)
        return Response(200, encode_json(self.report(now)), headers=no_store)

    def report(self, now: float) -> dict[str, object]:
        """How things stand, for people and scripts."""
        link = self._link.report(now)
        return {
            "simulated": True,
            "link": link.state,
            "qber": link.qber,
            "key_rate_bps": link.key_rate_bps,
            "stored_key_count": self._link.stored_key_count(now),
            "in_step": self._store.in_step,
            "kmes": dict(self._modes),
        }

    def _handle(self, request: Request, now: float) -> None:
        if request.path != "/link" or request.query:
            raise Refusal(404, "no such resource; expected /link")
        if request.method == "POST":
            require_json(request, always=True)
            self._act(decode_json(request.body, "action", Reason.KME_BAD_REQUEST), now)
        elif request.method != "GET":
            raise Refusal(405, "expected GET or POST", headers=(("Allow", "GET, POST"),))

    def _act(self, asked: dict[str, object], now: float) -> None:
        action, kme = _word("action", asked), _word("kme", asked)
        figures: dict[str, float] = {}
        for name in ("rate_factor", "qber"):
            if name in asked:
                figures[name] = _figure(name, asked.pop(name))
        if asked:
            raise Refusal(400, "expected action, kme, rate_factor and qber only")
        if kme is not None and kme not in self._modes:
            raise Refusal(400, f"kme: expected one of {', '.join(self._modes)}")
        if action == "degrade" and kme is None:
            self._degrade(figures, now)
            return
        if figures:
            raise Refusal(400, "rate_factor and qber go with degrade only")
        if action == "restore":
            if kme is None:
                self._link.restore(now)
                self._store.in_step = True
            for name in self._modes if kme is None else (kme,):
                self._set_mode(name, KmeMode.UP)
        elif action in _MODES and kme is not None:
            self._set_mode(kme, _MODES[action])
        elif action in {"cut", "jam", "drain"} and kme is None:
            {"cut": self._link.cut, "jam": self._link.jam, "drain": self._link.drain}[action](now)
        elif action == "desync" and kme is None:
            self._store.in_step = False
        else:
            raise Refusal(
                400,
                "action: expected cut, jam, degrade, drain, desync or restore without kme,"
                " or hang, unavailable, garbage, kill or restore with kme",
            )

    def _degrade(self, figures: Mapping[str, float], now: float) -> None:
        if figures.keys() != {"rate_factor", "qber"}:
            raise Refusal(400, "degrade: expected rate_factor and qber")
        try:
            self._link.degrade(now, rate_factor=figures["rate_factor"], qber=figures["qber"])
        except ValueError as error:
            raise Refusal(400, f"degrade: {error}") from None

    def _set_mode(self, kme: str, mode: KmeMode) -> None:
        self._modes[kme] = mode
        self._on_mode(kme, mode)


def _word(name: str, asked: dict[str, object]) -> str | None:
    value = asked.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, f"{name}: expected a string")
    return value


def _figure(name: str, value: object) -> float:
    # A JSON integer may be too wide for a float.
    if type(value) is int and 0 <= value <= 1:
        return float(value)
    if type(value) is float and math.isfinite(value):
        return value
    raise Refusal(400, f"{name}: expected a number from 0 to 1")
