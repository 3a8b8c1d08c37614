"""The keys of `kme_sim.network` and `kme_sim.timetable`. Defaults are in `network`."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from qproxy.config import network_checks as checks
from qproxy.config.document import line_of
from qproxy.config.network import (
    MAX_BUFFER_BITS,
    MAX_HOPS,
    MAX_KEYS_PER_REQUEST,
    MAX_PATHS,
    MAX_RELAYS,
    MAX_ROUTES,
    MAX_SPANS,
    FibreSpanConfig,
    FixedSpanConfig,
    KeyFormatConfig,
    NetworkConfig,
    OpticsConfig,
    RouteConfig,
    RoutePolicy,
    SatelliteSpanConfig,
)
from qproxy.config.scalars import Integer, Number, Reference, Text, Word
from qproxy.config.sections import ListOf, Named, Section, Tagged
from qproxy.config.walk import INVALID, KeyPath, Kind, Walk, pairs
from qproxy.keys import MAX_QKD_KEY_BYTES
from qproxy.sim.events import (
    EVENTS,
    MAX_TIMETABLE_EVENTS,
    EventError,
    Figure,
    TimedEvent,
    members_of,
    parse_event,
)
from qproxy.sim.physics.bb84 import Decoys

#: Latest that an event of a timetable may happen: a week, in seconds.
MAX_AT_S: Final = 604_800.0

_NAME = Text("a name of 1 to 64 letters, digits and '._-'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SAE_ID = Text("an SAE ID of 1 to 128 printable ASCII characters without blanks", r"[!-~]{1,128}")
_KEY_SIZE = Integer(8, 8 * MAX_QKD_KEY_BYTES, multiple_of=8)
_NUMBER: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?\Z")
#: Members of events that are numbers. A name may look like one.
_FIGURES: Final = frozenset(
    member.name
    for event in EVENTS.values()
    for member in members_of(event)
    if isinstance(member.kind, Figure)
)


class TimetableEntry:
    """One event and when it happens, as a section: `{at_s: 30, event: cut, span: north}`."""

    expected = "an event, like {at_s: 30, event: cut, span: north}"
    _at_s = Number(0, MAX_AT_S, "seconds")

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """A TimedEvent, or INVALID after a report."""
        before = len(walk.errors)
        walk.lines.setdefault(path, line_of(node))
        at_s: Any = INVALID
        document: dict[str, object] = {}
        for key, _, value in pairs(walk, node, path, self.expected):
            if key == "at_s":
                at_s = self._at_s.read(walk, value, (*path, key))
            else:
                document[key] = _plain(value, number=key in _FIGURES)
        if len(walk.errors) > before:
            return INVALID
        if at_s is INVALID:
            walk.report((*path, "at_s"), f"expected {self._at_s.expected}, got nothing")
            return INVALID
        try:
            return TimedEvent(at_s, parse_event(document))
        except EventError as error:
            where = path if error.key is None else (*path, error.key)
            walk.report(where, error.message, error.hint)
            return INVALID


def _plain(node: yaml.Node, *, number: bool) -> object:
    """A value as JSON would have it: a number, a text, nothing, or something that is no member."""
    if not isinstance(node, yaml.ScalarNode):
        return ()
    if number and node.style is None and _NUMBER.match(node.value):
        return float(node.value)
    return None if node.style is None and node.value in {"", "~", "null"} else str(node.value)


_SPANS = ("kme_sim", "network", "spans")
_ENDS = ListOf(_NAME, "a list of two different nodes, like [kme-a, relay-1]", 2)
_SPAN: Final[dict[str, Kind]] = {
    "between": _ENDS,
    "abort_qber": Number(0.001, 0.25, ""),
    "max_buffer_bits": Integer(8, MAX_BUFFER_BITS),
    "initial_buffer_bits": Integer(0, MAX_BUFFER_BITS),
}
_OPTICS_NAME = Reference(("kme_sim", "network", "optics"), _NAME)

_FIXED = Section(
    FixedSpanConfig,
    {**_SPAN, "key_rate_bps": Number(0, 1e9, "bits per second"), "qber": Number(0, 0.5, "")},
    check=checks.check_span,
)

_FIBRE = Section(
    FibreSpanConfig,
    {
        **_SPAN,
        "length_km": Number(0, 2000, "kilometres"),
        "loss_db_per_km": Number(0, 10, "decibels"),
        "extra_loss_db": Number(0, 100, "decibels"),
        "optics": _OPTICS_NAME,
    },
    check=checks.check_span,
)

_SATELLITE = Section(
    SatelliteSpanConfig,
    {
        **_SPAN,
        "zenith_loss_db": Number(0, 100, "decibels"),
        "altitude_km": Number(100, 40_000, "kilometres"),
        "first_pass_s": Number(0, MAX_AT_S, "seconds"),
        "pass_duration_s": Number(1, 3600, "seconds"),
        "pass_interval_s": Number(2, MAX_AT_S, "seconds"),
        "optics": _OPTICS_NAME,
    },
    check=checks.check_satellite,
)

_OPTICS = Section(
    OpticsConfig,
    {
        "source_rate_hz": Number(1, 1e11, "pulses per second"),
        "detector_efficiency": Number(0, 1, ""),
        "background_yield": Number(0, 1, "clicks per pulse"),
        "dead_time_s": Number(0, 1, "seconds"),
        "misalignment": Number(0, 0.5, ""),
        "signal_intensity": Number(0.001, 2, "photons per pulse"),
        "decoy_intensity": Number(0.0001, 2, "photons per pulse"),
        "error_correction_efficiency": Number(1, 3, ""),
        "sifting": Number(0, 1, ""),
        "decoys": Word(Decoys),
        "block_pulses": Number(0, 1e12, "pulses (0 = without end)"),
    },
)

_ROUTE = Section(
    RouteConfig,
    {
        "between": ListOf(Reference(("kme_sim", "kmes"), _NAME), "a list of two different KMEs", 2),
        "paths": ListOf(
            ListOf(Reference(_SPANS, _NAME), f"a list of 1 to {MAX_HOPS} spans", MAX_HOPS),
            f"a list of 1 to {MAX_PATHS} different lists of spans",
            MAX_PATHS,
        ),
        "policy": Word(RoutePolicy),
        "saes": ListOf(
            Reference(("kme_sim", "saes"), _SAE_ID),
            "a list of different SAEs from kme_sim.saes",
            100,
        ),
        "disjoint_from": Reference(("kme_sim", "network", "routes"), _NAME),
    },
    check=checks.check_route,
)

NETWORK: Final = Section(
    NetworkConfig,
    {
        "relays": ListOf(_NAME, f"a list of 1 to {MAX_RELAYS} different names", MAX_RELAYS),
        "spans": Named(
            _NAME,
            Tagged({"fibre": _FIBRE, "satellite": _SATELLITE, "fixed": _FIXED}),
            "<span>",
            1,
            MAX_SPANS,
        ),
        "routes": Named(_NAME, _ROUTE, "<route>", 1, MAX_ROUTES),
        "optics": Named(_NAME, _OPTICS, "<optics>", 0, MAX_SPANS),
        "keys": Section(
            KeyFormatConfig,
            {
                "key_size_bits": _KEY_SIZE,
                "min_key_size_bits": _KEY_SIZE,
                "max_key_size_bits": _KEY_SIZE,
                "max_key_per_request": Integer(1, MAX_KEYS_PER_REQUEST),
                "max_sae_id_count": Integer(0, 63),
            },
            check=checks.check_key_sizes,
        ),
    },
)

TIMETABLE: Final = ListOf(
    TimetableEntry(),
    f"a list of 1 to {MAX_TIMETABLE_EVENTS} different events, like [{{at_s: 30, event: cut}}]",
    MAX_TIMETABLE_EVENTS,
)
