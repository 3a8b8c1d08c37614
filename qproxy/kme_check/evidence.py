"""Everything that was seen with one end as master: what the checks judge."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from qproxy.kme_check.ends import End
from qproxy.kme_check.facts import Answer, KeyFact
from qproxy.kme_check.plan import Limits
from qproxy.sources.etsi014_errors import Call
from qproxy.sources.recent import folded_key_id

#: Names of the requests by which keys are fetched that serve no check of their own begin so.
REST: Final = "rest-post-"


class Refusal(enum.StrEnum):
    """What became of a handshake that a KME should not complete."""

    REFUSED = "refused"
    ACCEPTED = "accepted"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Transport:
    """What was seen of TLS.

    Attributes:
        version: such as ``TLSv1.3``; empty where there was no handshake.
        group: of the key exchange, where OpenSSL names it.
        failure: why there was no handshake; our own words.
        old_tls: what became of an offer of TLS 1.1 at most.
        without_certificate: what became of a request by nobody.
    """

    version: str = ""
    group: str | None = None
    failure: str = ""
    old_tls: Refusal = Refusal.UNCLEAR
    without_certificate: Refusal = Refusal.UNCLEAR


@dataclass(slots=True)
class Evidence:
    """What was seen with one end as master.

    Attributes:
        master: whose KME is asked for new keys.
        slave: whose KME is asked for them by ID; None where it is out of reach.
        limits: out of the master's status, or what stood in for it.
        transport: of the master's KME.
        answers: by the name of the request, see :mod:`qproxy.kme_check.plan`.
        unasked: requests that were not made, and why.
        heard: every answer of the master's KME, those to its other role included.
        lost: requests on a kept connection of the master's KME that was closed without a word.
    """

    master: End
    slave: End | None
    limits: Limits = field(default_factory=Limits)
    transport: Transport = field(default_factory=Transport)
    answers: dict[str, Answer] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)
    heard: list[Answer] = field(default_factory=list)
    lost: int = 0

    def why_unasked(self, *names: str) -> str | None:
        """Why requests were not made, or None where all of them were."""
        for name in names:
            if name not in self.answers:
                return self.unasked.get(name, "what comes before it failed")
        return None

    def given(self, *names: str) -> list[KeyFact]:
        """Keys that requests gave, in order."""
        return [key for name in names if name in self.answers for key in self.answers[name].keys]

    @property
    def drawn_ids(self) -> set[str]:
        """IDs of keys that were given out as new."""
        return self._ids(Call.ENC_KEYS)

    @property
    def fetched_ids(self) -> set[str]:
        """IDs of keys that were given out by ID."""
        return self._ids(Call.DEC_KEYS)

    def _ids(self, call: Call) -> set[str]:
        answers = [answer for answer in self.answers.values() if answer.call is call]
        return {folded_key_id(key.key_id) for answer in answers for key in answer.keys}

    @property
    def keys_used(self) -> int:
        """Keys taken out of the store: those the KME of the master gave."""
        return sum(
            len(answer.keys) for answer in self.answers.values() if answer.call is Call.ENC_KEYS
        )
