"""Everything that can happen to the simulated network, and how it is written down.

An event is a JSON object (or a YAML section of ``kme_sim.timetable``) with the event's word and
what it needs::

    {"event": "cut", "span": "north"}
    {"event": "intercept", "span": "north", "fraction": 0.3}
    {"event": "crash", "kme": "kme-a", "store": "lost"}

:func:`parse_event` makes one of the frozen dataclasses below of it, or says what is wrong with
it. Whether a span of that name exists is for the network to say
(:meth:`qproxy.sim.network.SimulatedNetwork.apply`).

A target that is optional may be left out where there is one thing it could be; ``restore`` and
``drain`` without a target mean everything.

This module is a leaf: the configuration imports it, and it imports nothing but the standard
library.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: What a span, relay, route or KME may be called.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Errors of more than this are more than guessing makes.
MAX_QBER: Final = 0.5
#: Furthest that a KME's clock may be set apart: a day, in seconds.
MAX_SKEW_S: Final = 86_400.0
#: Most events in a timetable.
MAX_TIMETABLE_EVENTS: Final = 1000


class EventError(ValueError):
    """What was given is no event, or none that can happen here. Nothing has happened.

    Attributes:
        message: what was expected and what came; fit to be shown.
        key: the member it is about, where it is about one.
        hint: what to do next, where there is something to say.
    """

    def __init__(self, message: str, *, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(message if key is None else f"{key}: {message}")
        self.message = message
        self.key = key
        self.hint = hint


class Store(enum.StrEnum):
    """What becomes of the keys of a KME that crashes."""

    KEPT = "kept"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Name:
    """A member that names something."""

    expected: str = "a name of 1 to 64 letters, digits and '._-'"

    def read(self, value: object) -> str:
        """The name. Raises EventError."""
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise EventError(f"expected {self.expected}")
        return value


@dataclass(frozen=True, slots=True)
class Figure:
    """A member that is a number in a range, both ends included."""

    minimum: float
    maximum: float
    unit: str = ""

    @property
    def expected(self) -> str:
        """What it may be."""
        of = f" of {self.unit}" if self.unit else ""
        return f"a number{of} from {self.minimum:g} to {self.maximum:g}"

    def read(self, value: object) -> float:
        """The number. Raises EventError."""
        # A JSON integer may be too wide for a float, and a boolean is one in Python.
        if type(value) is int and self.minimum <= value <= self.maximum:
            return float(value)
        if type(value) is float and math.isfinite(value) and self.minimum <= value <= self.maximum:
            return value
        raise EventError(f"expected {self.expected}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A member that is one word of a closed set."""

    words: type[enum.StrEnum]

    @property
    def expected(self) -> str:
        """What it may be."""
        return "one of " + ", ".join(self.words)

    def read(self, value: object) -> enum.StrEnum:
        """The word. Raises EventError."""
        if not isinstance(value, str) or value not in set(self.words):
            raise EventError(f"expected {self.expected}")
        return self.words(value)


MemberKind = Name | Figure | Choice


def _member(kind: MemberKind, **default: Any) -> Any:
    return field(metadata={"kind": kind}, **default)


def _optional(kind: MemberKind) -> Any:
    return _member(kind, default=None)


_NAME = Name()
_QBER = Figure(0.0, MAX_QBER)
_FRACTION = Figure(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Cut:
    """The fibre is dug up: no key is made, and no QBER is measured."""

    span: str | None = _optional(_NAME)


@dataclass(frozen=True, slots=True)
class Jam:
    """The channel is flooded: no key is made. The QBER is as before, or the one given."""

    span: str | None = _optional(_NAME)
    qber: float | None = _optional(_QBER)


@dataclass(frozen=True, slots=True)
class Intercept:
    """Somebody measures a fraction of the pulses and sends on what they saw.

    All of them make a QBER of a quarter and more; the span aborts at its threshold.
    """

    fraction: float = _member(_FRACTION)
    span: str | None = _optional(_NAME)


@dataclass(frozen=True, slots=True)
class Misalign:
    """The optics drift: ``error`` is the new probability that a photon hits the wrong detector."""

    error: float = _member(_QBER)
    span: str | None = _optional(_NAME)


@dataclass(frozen=True, slots=True)
class Degrade:
    """A rate and a QBER are set, whatever the optics say."""

    rate_factor: float = _member(_FRACTION)
    qber: float = _member(_QBER)
    span: str | None = _optional(_NAME)


@dataclass(frozen=True, slots=True)
class Drain:
    """The key stored at the two ends of a span is thrown away; without a span, all there is."""

    span: str | None = _optional(_NAME)


@dataclass(frozen=True, slots=True)
class Compromise:
    """A relay falls into an attacker's hands: it keeps a copy of everything it sees."""

    relay: str = _member(_NAME)


@dataclass(frozen=True, slots=True)
class Crash:
    """A KME's process dies; connections are refused until ``restart``."""

    kme: str = _member(_NAME)
    store: Store = _member(Choice(Store), default=Store.KEPT)  # noqa: RUF009 - it is a field


@dataclass(frozen=True, slots=True)
class Restart:
    """A KME that crashed or was killed starts again, with what is in its store."""

    kme: str = _member(_NAME)


@dataclass(frozen=True, slots=True)
class Hang:
    """A KME takes requests and does not answer."""

    kme: str = _member(_NAME)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A KME answers every request with 503."""

    kme: str = _member(_NAME)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A KME answers every request with 200 and what is no JSON."""

    kme: str = _member(_NAME)


@dataclass(frozen=True, slots=True)
class Kill:
    """A KME's process dies and keeps its store: ``crash`` by its older name."""

    kme: str = _member(_NAME)


@dataclass(frozen=True, slots=True)
class Desync:
    """The two stores of a route are out of step: one key ID, two different keys."""

    route: str | None = _optional(_NAME)


@dataclass(frozen=True, slots=True)
class Skew:
    """A KME's clock is that many seconds ahead of the true time, or behind it where negative."""

    kme: str = _member(_NAME)
    seconds: float = _member(Figure(-MAX_SKEW_S, MAX_SKEW_S, "seconds"))


@dataclass(frozen=True, slots=True)
class Restore:
    """A span, a KME, a relay or a route is as configured again; without a target, everything.

    What is stored stays, and what an attacker has copied stays copied.
    """

    span: str | None = _optional(_NAME)
    kme: str | None = _optional(_NAME)
    relay: str | None = _optional(_NAME)
    route: str | None = _optional(_NAME)


Event = (
    Cut
    | Jam
    | Intercept
    | Misalign
    | Degrade
    | Drain
    | Compromise
    | Crash
    | Restart
    | Hang
    | Unavailable
    | Garbage
    | Kill
    | Desync
    | Skew
    | Restore
)


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """One line of a timetable.

    Attributes:
        at_s: when it happens, in seconds from the start of the simulator.
        event: what happens.
    """

    at_s: float
    event: Event


#: Word to event, in the order in which people are shown them.
EVENTS: Final[Mapping[str, type[Event]]] = {
    kind.__name__.lower(): kind
    for kind in (
        Cut,
        Jam,
        Intercept,
        Misalign,
        Degrade,
        Drain,
        Compromise,
        Crash,
        Restart,
        Hang,
        Unavailable,
        Garbage,
        Kill,
        Desync,
        Skew,
        Restore,
    )
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an event's object.

    Attributes:
        name: its name.
        kind: what it may be.
        required: whether it must be there.
    """

    name: str
    kind: MemberKind
    required: bool


def word_of(event: Event) -> str:
    """An event's word, such as ``cut``."""
    return type(event).__name__.lower()


def members_of(event: type[Event]) -> tuple[Member, ...]:
    """What an event's object may and must have beside its word."""
    return tuple(
        Member(entry.name, entry.metadata["kind"], entry.default is dataclasses.MISSING)
        for entry in dataclasses.fields(event)
    )


def parse_event(document: Mapping[str, object], *, word_key: str = "event") -> Event:
    """Make an event of a decoded JSON object.

    Args:
        document: the object.
        word_key: the member that holds the event's word.

    Raises:
        EventError: it is none.
    """
    kind = EVENTS[find_word(document.get(word_key), word_key)]
    members = {member.name: member for member in members_of(kind)}
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name == word_key or (value is None and name in members and not members[name].required):
            continue
        values[name] = _read(members, name, value)
    for member in members.values():
        if member.required and member.name not in values:
            raise EventError(f"expected {member.kind.expected}, got nothing", key=member.name)
    event = kind(**values)
    _check_restore(event, values)
    return event


def find_word(word: object, word_key: str = "event") -> str:
    """An event's word, or an EventError that lists them."""
    if isinstance(word, str) and word in EVENTS:
        return word
    near = difflib.get_close_matches(word[:64], EVENTS, n=1) if isinstance(word, str) else []
    raise EventError(
        f"expected one of {', '.join(EVENTS)}",
        key=word_key,
        hint=f"did you mean '{near[0]}'?" if near else None,
    )


def encode_event(event: Event) -> dict[str, object]:
    """An event as the JSON object that :func:`parse_event` reads."""
    values = {entry.name: getattr(event, entry.name) for entry in dataclasses.fields(event)}
    return {
        "event": word_of(event),
        **{name: value for name, value in values.items() if value is not None},
    }


def _read(members: Mapping[str, Member], name: str, value: object) -> object:
    if name not in members:
        known = ", ".join(members)
        # The name comes from outside, so it is shown only where it can be no surprise.
        key = name if NAME.fullmatch(name) else None
        raise EventError(
            "expected no such member with this event", key=key, hint=f"it takes {known}"
        )
    try:
        return members[name].kind.read(value)
    except EventError as error:
        raise EventError(error.message, key=name) from None


def _check_restore(event: Event, given: Mapping[str, object]) -> None:
    if isinstance(event, Restore) and len(given) > 1:
        raise EventError(
            f"expected one target at most, got {' and '.join(given)}",
            hint="send one event for each",
        )
