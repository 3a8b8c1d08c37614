"""What a gateway's log says, taken in line by line. No clock and no process in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from qproxy.errors import Reason
from qproxy.modes import Mode

#: Warnings that belong to a cut quantum link, and the climb back from it.
EXPECTED_WHILE_DISTURBED: Final = frozenset(
    {"link_state", "mode_changed", "epoch_failed", "epoch_waits"}
)
#: Complaints kept for each gateway; more say nothing new.
MAX_COMPLAINTS: Final = 20
#: Longest piece of a stray line that is kept, in characters.
MAX_STRAY_CHARS: Final = 200
#: Mode changes kept for each gateway; a run that behaves has three.
MAX_MODE_CHANGES: Final = 100

_FINE: Final = frozenset({"debug", "info"})


@dataclass(frozen=True, slots=True)
class ModeChange:
    """One committed epoch whose mode differs from the one before it.

    Attributes:
        at_s: when its log line came, in seconds since the start.
        mode: the mode from then on.
        reason: why.
        epoch: the epoch's number.
    """

    at_s: float
    mode: str
    reason: str
    epoch: int


@dataclass(slots=True)
class GatewayFacts:
    """One gateway, as far as its log has told.

    Attributes:
        name: of the gateway.
        started: its `gateway_started` line has come.
        kem_provider: library that computes ML-KEM.
        kem: ML-KEM parameter set.
        aead: what protects the records.
        tls_group: key exchange of the tunnel's TLS handshake.
        listeners: name to the addresses it listens on for clients.
        tunnel_listen: where it takes tunnels.
        tunnels_up: tunnels that came up; one that was lost and made again counts twice.
        epochs: committed epochs by mode.
        keys: keys of key sources that went into them.
        simulated: whether every key's source says that it is a simulation; None before the first.
        mode_changes: every change, the first epoch included.
        link: state of the quantum link as the gateway judges it; None before its first word.
        totals: its `peer_totals` line, at the end.
        stopped: its `gateway_stopped` line has come.
        disturbed: warnings about the quantum link are in order now.
        complaints: events that should not be there.
        stray: lines that are no events at all: what a program says that cannot run.
    """

    name: str
    started: bool = False
    kem_provider: str | None = None
    kem: str | None = None
    aead: str | None = None
    tls_group: str | None = None
    listeners: dict[str, list[str]] = field(default_factory=dict)
    tunnel_listen: list[str] = field(default_factory=list)
    tunnels_up: int = 0
    epochs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Mode, 0))
    keys: int = 0
    simulated: bool | None = None
    mode_changes: list[ModeChange] = field(default_factory=list)
    link: str | None = None
    totals: dict[str, int] | None = None
    stopped: bool = False
    disturbed: bool = False
    complaints: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    @property
    def mode(self) -> str | None:
        """The mode of the epoch that runs."""
        return self.mode_changes[-1].mode if self.mode_changes else None

    @property
    def epoch_count(self) -> int:
        """Committed epochs of either mode."""
        return sum(self.epochs.values())

    def take(self, event: Mapping[str, object], at_s: float) -> None:
        """Take in one line.

        Args:
            event: the line's JSON object.
            at_s: when it came, in seconds since the start.
        """
        self._judge(event)
        match event.get("event"):
            case "gateway_started":
                self._on_started(event)
            case "peer_authenticated":
                self.tls_group = _text(event, "group")
            case "tunnel_up":
                self.tunnels_up += 1
                self.kem, self.aead = _text(event, "kem"), _text(event, "aead")
            case "epoch_committed":
                self._on_committed(event)
            case "mode_changed":
                self._on_mode_changed(event, at_s)
            case "link_state":
                self.link = _text(event, "new")
            case "peer_totals":
                self.totals = {name: value for name, value in event.items() if type(value) is int}
            case "gateway_stopped":
                self.stopped = True

    def complain(self, text: str) -> None:
        """Note something that should not be."""
        if len(self.complaints) < MAX_COMPLAINTS:
            self.complaints.append(text)

    def take_stray(self, line: str) -> None:
        """Take in a line that is no JSON object."""
        if len(self.stray) < MAX_COMPLAINTS:
            self.stray.append(line[:MAX_STRAY_CHARS])

    def _judge(self, event: Mapping[str, object]) -> None:
        level, name = event.get("level"), event.get("event")
        if level in _FINE:
            return
        if name == "simulated_keys":
            return  # That is what this demonstration is made with.
        if level == "warning" and self.disturbed and name in EXPECTED_WHILE_DISTURBED:
            return
        if name == "link_state" and event.get("reason") == Reason.LINK_DEGRADED:
            # Slow answers: the KMEs share this machine with everything else. Hybrid goes on.
            return
        told = [f"{key}={event[key]}" for key in ("reason", "detail", "text") if event.get(key)]
        self.complain(" ".join([f"{level}: {name}", *told]))

    def _on_started(self, event: Mapping[str, object]) -> None:
        self.started = True
        self.kem_provider = _text(event, "kem_provider")
        self.tunnel_listen = _texts(event.get("tunnel_listen"))
        listeners = event.get("listeners")
        if isinstance(listeners, dict):
            self.listeners = {str(name): _texts(where) for name, where in listeners.items()}

    def _on_committed(self, event: Mapping[str, object]) -> None:
        mode = _text(event, "mode")
        self.epochs[mode] = self.epochs.get(mode, 0) + 1
        keys = _number(event, "keys")
        self.keys += keys
        if keys:
            self.simulated = event.get("simulated") is True and self.simulated is not False

    def _on_mode_changed(self, event: Mapping[str, object], at_s: float) -> None:
        if len(self.mode_changes) == MAX_MODE_CHANGES:
            self.complain(f"more than {MAX_MODE_CHANGES} mode changes")
            return
        change = ModeChange(
            at_s, _text(event, "mode"), _text(event, "reason"), _number(event, "epoch")
        )
        self.mode_changes.append(change)


def _text(event: Mapping[str, object], name: str) -> str:
    value = event.get(name)
    return value if isinstance(value, str) else "?"


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _number(event: Mapping[str, object], name: str) -> int:
    value = event.get(name)
    return value if type(value) is int else 0
