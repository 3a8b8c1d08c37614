"""What two gateways log, with the times at which they logged it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qproxy.modes import Mode

#: Events that tell that something is wrong with the quantum link or with a key.
BAD_SIGNS = frozenset({"kme_call_failed", "epoch_failed", "link_state"})
#: Most events kept of one gateway; a run has some hundreds.
MAX_EVENTS = 200_000


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One line of a log.

    Attributes:
        at_s: by the gateway's wall clock, in seconds since 1970; to the millisecond.
        name: of the event.
        fields: all of the line.
    """

    at_s: float
    name: str
    fields: Mapping[str, Any]


class GatewayLog:
    """One gateway's log.

    Args:
        name: of the gateway.

    Attributes:
        events: those of the whole run, in order.
        stray: lines that are no events.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[LoggedEvent] = []
        self.stray: list[str] = []

    def take(self, fields: Mapping[str, Any]) -> None:
        """Take in one line's JSON object; one without a time is passed over."""
        time = fields.get("time")
        if isinstance(time, str) and len(self.events) < MAX_EVENTS:
            at_s = datetime.fromisoformat(time).timestamp()
            self.events.append(LoggedEvent(at_s, str(fields.get("event")), fields))

    def find(self, name: str, *, since_s: float = 0.0, **fields: object) -> Iterator[LoggedEvent]:
        """Events of a name with these fields, not older than a moment."""
        for event in self.events:
            found = event.name == name and event.at_s >= since_s
            if found and all(event.fields.get(key) == value for key, value in fields.items()):
                yield event

    @property
    def mode_changes(self) -> list[tuple[Any, ...]]:
        """Each change as both ends must tell it: epoch, its ID, mode and reason."""
        keys = ("epoch", "epoch_id", "mode", "reason")
        return [tuple(event.fields.get(key) for key in keys) for event in self.find("mode_changed")]


def changed_at(logs: Collection[GatewayLog], mode: Mode, since_s: float) -> float | None:
    """When the last of the gateways committed its first epoch of a mode, or None if one has not."""
    moments = [next(log.find("mode_changed", since_s=since_s, mode=mode), None) for log in logs]
    times = [event.at_s for event in moments if event is not None]
    return max(times) if len(times) == len(logs) else None


def first_bad_sign(logs: Collection[GatewayLog], since_s: float) -> LoggedEvent | None:
    """The first word in any log that something is wrong; a link called healthy is none."""

    def bad(event: LoggedEvent) -> bool:
        healthy = event.name == "link_state" and event.fields.get("new") == "healthy"
        return event.name in BAD_SIGNS and event.at_s >= since_s and not healthy

    signs = [event for log in logs for event in log.events if bad(event)]
    return min(signs, key=lambda event: event.at_s) if signs else None
