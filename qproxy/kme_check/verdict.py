"""What a check can say, and what qproxy will do about a deviation."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from qproxy.errors import Reason
from qproxy.kme_check.evidence import Evidence


class Verdict(enum.StrEnum):
    """How a KME's behaviour stands to the standard."""

    CONFORMS = "conforms"
    DEVIATES = "deviates"
    NOTE = "note"
    """The standard does not say, or leaves it open; what was seen is worth knowing."""
    SKIPPED = "skipped"


class Effect(enum.StrEnum):
    """What a deviation means to a gateway."""

    TOLERATED = "tolerated"
    """It makes no difference to qproxy, or qproxy goes another way."""
    REFUSED = "refused"
    """qproxy refuses such an answer; enough of them in a row, and the link is down."""
    LINK_DOWN = "link down"
    """No key can be had this way: the link goes down and stays down."""
    UNSEEN = "unseen"
    """A gateway cannot notice it, so nothing happens. The KME must be put right."""


@dataclass(frozen=True, slots=True)
class Handling:
    """What qproxy does about a deviation.

    Attributes:
        effect: what it means to a gateway.
        reason: the word in logs, status and metrics, where there is one.
        text: how, in a few words.
    """

    effect: Effect
    reason: Reason | None
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found at one KME.

    Attributes:
        verdict: how it stands to the standard.
        text: what was seen; our own words throughout.
        handling: for a deviation, what qproxy does about it.
    """

    verdict: Verdict
    text: str = ""
    handling: Handling | None = None

    @property
    def usable(self) -> bool:
        """Whether a gateway can live with it."""
        return self.handling is None or self.handling.effect is Effect.TOLERATED


def conforms(text: str = "") -> Outcome:
    """As the standard has it."""
    return Outcome(Verdict.CONFORMS, text)


def note(text: str, handling: Handling | None = None) -> Outcome:
    """The standard is silent."""
    return Outcome(Verdict.NOTE, text, handling)


def skipped(text: str) -> Outcome:
    """Not tried, and why."""
    return Outcome(Verdict.SKIPPED, text)


def deviates(text: str, handling: Handling) -> Outcome:
    """Not as the standard has it."""
    return Outcome(Verdict.DEVIATES, text, handling)


def tolerated(text: str) -> Handling:
    """It makes no difference to qproxy, or qproxy goes another way."""
    return Handling(Effect.TOLERATED, None, text)


def refused(reason: Reason, text: str) -> Handling:
    """qproxy refuses such an answer."""
    return Handling(Effect.REFUSED, reason, text)


def link_down(reason: Reason, text: str) -> Handling:
    """No key can be had this way."""
    return Handling(Effect.LINK_DOWN, reason, text)


def unseen(text: str) -> Handling:
    """A gateway cannot notice it."""
    return Handling(Effect.UNSEEN, None, text)


class Scope(enum.Enum):
    """Whom a check is about."""

    MASTER = "master"
    """The KME that is asked for new keys, once for each end that is reached."""
    SLAVE = "slave"
    """The KME that is asked for keys by ID; needs both ends."""
    PAIR = "pair"
    """The two KMEs together; needs both ends, and is judged once."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Attributes:
        name: for scripts; never changes its meaning.
        title: what a conforming KME does.
        clause: where the standard says so; empty where it does not.
        scope: whom it is about.
        judge: from the facts to an outcome.
    """

    name: str
    title: str
    clause: str
    scope: Scope
    judge: Callable[[Evidence], Outcome]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and what came of it.

    Attributes:
        check: the check.
        kme: name of the key source it is about; both, joined by a plus sign, for a pair.
        outcome: what was found.
    """

    check: Check
    kme: str
    outcome: Outcome
