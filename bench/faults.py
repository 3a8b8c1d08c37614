"""The faults of the quantum side that a pair of gateways must get through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.live import LiveSettings
from bench.stats import BenchError

#: Goal from the first bad sign to classical-only, in seconds, where the KME refuses or errs.
REFUSED_GOAL_S = 1.0
#: The same where it does not answer at all.
HUNG_GOAL_S = 3.0
#: Goal from healed to hybrid, in seconds, at default settings.
CLIMB_GOAL_S = 10.0
#: Goal for the longest gap during a switch, as a multiple of the p99 gap without one.
GAP_GOAL = 3.0

#: Epochs that use up the gateway's stock within seconds, and may not be made to last for minutes.
_SCARCE = LiveSettings(
    peer={
        "rekey": {"interval_s": 0.1, "max_age_s": 4},
        # A full stock of the usual size would last for a minute, an epoch every two seconds.
        "key_stock": {"low_water": 2, "high_water": 8},
    }
)
#: What the KMEs have stored would carry hybrid epochs on for minutes.
_EMPTY_STORE = {"action": "drain"}
#: Keys that differ show when an epoch is made of them.
_FREQUENT = LiveSettings(peer={"rekey": {"interval_s": 0.2}})


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong, and how it is healed: always by ``restore``.

    Attributes:
        name: for tables.
        actions: what the simulator is told, in order.
        settings: what had to differ from the defaults for it to show soon.
        fall_goal_s: longest time from the first bad sign to classical-only, or None: where keys in
            stock may carry hybrid epochs on for as long as they last, and where no single call
            fails (a high QBER is told by answers that are in order).
    """

    name: str
    actions: tuple[Mapping[str, object], ...]
    settings: LiveSettings = field(default_factory=LiveSettings)
    fall_goal_s: float | None = None

    @property
    def particulars(self) -> Mapping[str, object]:
        """What the record tells of it."""
        return {
            "actions": [dict(action) for action in self.actions],
            "link": dict(self.settings.link),
            "peer": dict(self.settings.peer),
        }


def _at_kme(name: str, action: str, goal_s: float) -> list[Fault]:
    return [
        Fault(f"{name}, {side} KME", ({"action": action, "kme": kme},), fall_goal_s=goal_s)
        for side, kme in (("client's", "kme-a"), ("server's", "kme-b"))
    ]


FAULTS: tuple[Fault, ...] = (
    *_at_kme("killed", "kill", REFUSED_GOAL_S),
    *_at_kme("answers 503", "unavailable", REFUSED_GOAL_S),
    *_at_kme("garbage", "garbage", REFUSED_GOAL_S),
    *_at_kme("hung", "hang", HUNG_GOAL_S),
    Fault(
        "eavesdropper (QBER 20 %)",
        ({"action": "degrade", "rate_factor": 0.0, "qber": 0.2},),
    ),
    Fault("cut, keys in stock run out", ({"action": "cut"}, _EMPTY_STORE), _SCARCE),
    Fault("jammed, keys in stock run out", ({"action": "jam"}, _EMPTY_STORE), _SCARCE),
    Fault(
        "keys exhausted",
        ({"action": "degrade", "rate_factor": 0.0, "qber": 0.01}, _EMPTY_STORE),
        _SCARCE,
    ),
    Fault("KMEs out of step", ({"action": "desync"},), _FREQUENT, fall_goal_s=REFUSED_GOAL_S),
)


def chosen_faults(names: Sequence[str] | None) -> list[Fault]:
    """Faults whose name begins with one of some words; all of them for None.

    Raises:
        BenchError: a word is the beginning of no name.
    """
    for name in names or ():
        if not any(fault.name.startswith(name) for fault in FAULTS):
            raise BenchError(f"no fault's name begins with {name!r}")
    return [fault for fault in FAULTS if names is None or fault.name.startswith(tuple(names))]
