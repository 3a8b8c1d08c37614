"""The simulated network: KMEs, relays, spans, and the routes by which two KMEs share keys.

Everything about it that is not HTTP is here: :meth:`SimulatedNetwork.issue` gives keys to a
master SAE, :meth:`SimulatedNetwork.claim` gives them to the slave SAE, and
:meth:`SimulatedNetwork.apply` lets something happen. A key is made and carried when it is asked
for; what is stored ahead is the key of the single spans. So the rate end to end is that of the
slowest span, and a route's stock is that of the span that has least.

Time is an argument, in seconds of any monotonic clock; randomness is a function passed in.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qproxy.config.network import KeyFormatConfig, NetworkConfig
from qproxy.sim import events
from qproxy.sim.events import Event, EventError, Store
from qproxy.sim.production import production_of
from qproxy.sim.relay import Relay, Tap
from qproxy.sim.route import Route
from qproxy.sim.span import SimulatedSpan
from qproxy.sim.store import KeyStore, SaePair
from qproxy.sources.etsi014_wire import WireKey

_T = TypeVar("_T")


class KmeMode(enum.StrEnum):
    """Whether a KME does what it is there for."""

    UP = "up"
    HANGING = "hanging"
    UNAVAILABLE = "unavailable"
    GARBAGE = "garbage"
    KILLED = "killed"


class NoRoute(Exception):  # noqa: N818 - an ordinary answer, and part of the interface
    """No route joins the KMEs of two SAEs."""


@dataclass(slots=True)
class _Kme:
    mode: KmeMode = KmeMode.UP
    skew_s: float = 0.0


class SimulatedNetwork:
    """A network, and all the keys in it.

    Args:
        config: nodes, spans and routes.
        saes: SAE ID to the name of its KME.
        kmes: names of the KMEs.
        now: the time it starts.
        random_bytes: gives that many random bytes: keys and key IDs.
        on_mode: told of every KME whose mode is set, after it was.
        tap: told of everything that travels between nodes, by span.

    Attributes:
        keys: what keys SAEs may ask for.
        spans: by name.
        relays: by name.
        routes: by name.
        store: keys that wait for their slave SAE.
    """

    def __init__(
        self,
        config: NetworkConfig,
        saes: Mapping[str, str],
        kmes: Sequence[str],
        *,
        now: float,
        random_bytes: Callable[[int], bytes],
        on_mode: Callable[[str, KmeMode], None] = lambda name, mode: None,
        tap: Tap = lambda span, sealed: None,
    ) -> None:
        self.keys: KeyFormatConfig = config.keys
        self.on_mode = on_mode
        self._saes = saes
        self._random_bytes = random_bytes
        self._kmes = {name: _Kme() for name in kmes}
        self.spans = {
            name: SimulatedSpan(
                span, production_of(span, config.optics), now=now, random_bytes=random_bytes
            )
            for name, span in config.spans.items()
        }
        self.relays = {name: Relay(name) for name in config.relays}
        self.routes = {
            name: Route(
                route,
                self.spans,
                self.relays,
                key_size_bits=config.keys.key_size_bits,
                random_bytes=random_bytes,
                tap=tap,
            )
            for name, route in config.routes.items()
        }
        self.store = KeyStore()

    # --- Keys ---------------------------------------------------------------------------------

    def route(self, sae_id: str, other_sae_id: str) -> Route:
        """The route for the keys of two SAEs: one that names both, or one that names none.

        Raises:
            NoRoute: there is none.
        """
        ends = {self._saes.get(sae_id), self._saes.get(other_sae_id)}
        between = [route for route in self.routes.values() if set(route.config.between) == ends]
        for route in between:
            if {sae_id, other_sae_id} <= set(route.config.saes):
                return route
        for route in between:
            if not route.config.saes:
                return route
        raise NoRoute

    def issue(
        self,
        pair: SaePair,
        number: int,
        size_bits: int,
        now: float,
        *,
        also: Sequence[str] = (),
    ) -> list[WireKey]:
        """Make keys for two SAEs; the slave's copies wait in the store.

        Args:
            pair: who asks, and who else is to have them.
            number: how many keys.
            size_bits: size of each, a multiple of 8.
            now: the time.
            also: more slave SAEs that are to have them, at the same KME as the slave.

        Returns:
            The master's copies, owned by the caller.

        Raises:
            NoRoute: nothing joins their KMEs.
            StoreFull: too many keys wait for slave SAEs.
            NotEnoughKeys: less key is stored. In each case nothing was taken.
        """
        route = self.route(pair.master_sae_id, pair.slave_sae_id)
        others = [SaePair(pair.master_sae_id, sae) for sae in also]
        self.store.check_room(pair, number, now, also=others)
        start = self._saes[pair.master_sae_id]
        carried = route.take(number, size_bits, now, start=start)
        near, far = [], []
        for key in carried:
            key_id = str(uuid.UUID(bytes=self._random_bytes(16), version=4))
            near.append(WireKey(key_id, key.near))
            far.append(WireKey(key_id, key.far))
        for each in others:
            self.store.add(each, [WireKey(key.key_id, bytearray(key.key)) for key in far], now)
        self.store.add(pair, far, now)
        return near

    def claim(self, pair: SaePair, key_ids: Sequence[str], now: float) -> list[WireKey]:
        """Give keys to the slave SAE of a pair: all of them, or none.

        Args:
            pair: the requester as slave, and the master it named.
            key_ids: distinct IDs.
            now: the time.

        Returns:
            The slave's copies in the order asked, owned by the caller.

        Raises:
            NoRoute: nothing joins their KMEs.
            NotNamed: one of them was made for another slave SAE.
            KeysNotFound: one of them is not there.
        """
        route = self.route(pair.master_sae_id, pair.slave_sae_id)
        master, slave = (self._saes[sae] for sae in (pair.master_sae_id, pair.slave_sae_id))
        skew_s = self._kmes[slave].skew_s - self._kmes[master].skew_s
        return self.store.take(pair, key_ids, now, skew_s=skew_s, in_step=route.in_step)

    # --- Events -------------------------------------------------------------------------------

    @property
    def modes(self) -> dict[str, KmeMode]:
        """Whether each KME does what it is there for, by its name."""
        return {name: kme.mode for name, kme in self._kmes.items()}

    def apply(self, event: Event, now: float) -> None:
        """Let something happen.

        Raises:
            EventError: it is about something that does not exist. Nothing has happened.
        """
        match event:
            case events.Cut(span):
                self._span(span).cut(now)
            case events.Jam(span, qber):
                self._span(span).jam(now, qber)
            case events.Intercept(fraction, span):
                self._span(span).intercept(now, fraction)
            case events.Misalign(error, span):
                self._span(span).misalign(now, error)
            case events.Degrade(rate_factor, qber, span):
                self._span(span).degrade(now, rate_factor=rate_factor, qber=qber)
            case events.Drain(span):
                for drained in self.spans.values() if span is None else [self._span(span)]:
                    drained.drain(now)
            case events.Compromise(relay):
                self._named(self.relays, "relay", relay).compromised = True
            case events.Desync(route):
                self._route(route).in_step = False
            case events.Restore():
                self._restore(event, now)
            case _:
                self._apply_to_kme(event, now)

    def _apply_to_kme(
        self,
        event: events.Crash
        | events.Restart
        | events.Hang
        | events.Unavailable
        | events.Garbage
        | events.Kill
        | events.Skew,
        now: float,
    ) -> None:
        kme = self._named(self._kmes, "kme", event.kme)
        match event:
            case events.Skew(seconds=seconds):
                kme.skew_s = seconds
                return
            case events.Crash(store=Store.LOST):
                self._lose_store(event.kme, now)
                mode = KmeMode.KILLED
            case events.Crash() | events.Kill():
                mode = KmeMode.KILLED
            case events.Restart():
                mode = KmeMode.UP
            case events.Hang():
                mode = KmeMode.HANGING
            case events.Unavailable():
                mode = KmeMode.UNAVAILABLE
            case events.Garbage():
                mode = KmeMode.GARBAGE
        self._set_mode(event.kme, mode)

    def _lose_store(self, kme: str, now: float) -> None:
        """What only one end still has is of no use: its spans' key goes, and what waited here."""
        for span in self.spans.values():
            if kme in span.config.between:
                span.drain(now)
        self.store.drop({sae for sae, place in self._saes.items() if place == kme})

    def _restore(self, event: events.Restore, now: float) -> None:
        """One thing, or everything."""
        given = [event.span, event.kme, event.relay, event.route]
        every = given == [None] * 4
        spans = list(self.spans) if every else [event.span]
        kmes = list(self._kmes) if every else [event.kme]
        relays = list(self.relays) if every else [event.relay]
        routes = list(self.routes) if every else [event.route]
        for name in filter(None, spans):
            self._span(name).restore(now)
        for name in filter(None, kmes):
            self._named(self._kmes, "kme", name).skew_s = 0.0
            self._set_mode(name, KmeMode.UP)
        for name in filter(None, relays):
            self._named(self.relays, "relay", name).compromised = False
        for name in filter(None, routes):
            self._route(name).in_step = True

    def _set_mode(self, kme: str, mode: KmeMode) -> None:
        self._kmes[kme].mode = mode
        self.on_mode(kme, mode)

    def _span(self, name: str | None) -> SimulatedSpan:
        return self._named(self.spans, "span", name)

    def _route(self, name: str | None) -> Route:
        return self._named(self.routes, "route", name)

    def _named(self, things: Mapping[str, _T], what: str, name: str | None) -> _T:
        if name is None and len(things) == 1:
            return next(iter(things.values()))
        if name is None or name not in things:
            known = ", ".join(list(things)[:10]) or "none"
            raise EventError(f"expected one of this network: {known}", key=what)
        return things[name]

    # --- How things stand ---------------------------------------------------------------------

    def describe(self, now: float) -> dict[str, object]:
        """Everything that can be seen from outside, for JSON. It holds no secret."""
        return {
            "simulated": True,
            "spans": {name: self._describe_span(span, now) for name, span in self.spans.items()},
            "routes": {name: route.describe(now) for name, route in self.routes.items()},
            "relays": {
                name: {"compromised": relay.compromised, "keys_passed_on": relay.passed_on}
                for name, relay in self.relays.items()
            },
            "kmes": {
                name: {"mode": kme.mode, "clock_skew_s": kme.skew_s}
                for name, kme in self._kmes.items()
            },
        }

    def _describe_span(self, span: SimulatedSpan, now: float) -> dict[str, object]:
        report = span.report(now)
        return {
            "between": list(span.config.between),
            "state": report.state,
            "qber": report.qber,
            "key_rate_bps": report.key_rate_bps,
            "stored_bits": report.stored_bits,
            "max_buffer_bits": span.config.max_buffer_bits,
            "used_bits": report.used_bits,
        }
