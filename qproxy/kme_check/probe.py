"""A whole run: from one end, or two, to evidence.

With each end as master in turn: its TLS, its status, requests for new keys (see
:mod:`qproxy.kme_check.plan`), then, where the other end is in reach, the same keys by ID. The
first key drawn is fetched last, so that an older key must outlive newer ones. Requests follow one
another: a KME under load is not what is looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from qproxy.kme_check.ends import End
from qproxy.kme_check.evidence import Evidence
from qproxy.kme_check.facts import Answer, fingerprint_with, no_answer
from qproxy.kme_check.fetch import ask_for_unknown, fetch, ids_of
from qproxy.kme_check.hand_over import HandOver
from qproxy.kme_check.plan import BEYOND_LIMITS, Limits, Plan, Step, make_plan
from qproxy.kme_check.side import Side, open_side, path_of, percent_encode_fully
from qproxy.kme_check.tls_probe import probe_transport
from qproxy.net.http_client import HttpErrorKind
from qproxy.sources.etsi014_errors import Call


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run saw.

    Attributes:
        evidence: with each end as master.
        taken: with the far end as master, whose keys came in a file; None where none did.
        hand_over: the keys of a single end, for the other one to fetch.
    """

    evidence: tuple[Evidence, ...]
    taken: Evidence | None = None
    hand_over: HandOver | None = None


async def gather(
    ends: Sequence[End],
    max_keys: int,
    announce: Callable[[Plan], None],
    *,
    taken: HandOver | None = None,
) -> Seen:
    """Ask everything there is to ask.

    Args:
        ends: one end, or two that face each other.
        max_keys: how many keys may be used at worst.
        announce: told what will be asked for, after the status and before the first key.
        taken: keys that the far end drew, with a single end only.

    Raises:
        ConfigError: a certificate, key or authority cannot be used.
    """
    secret = secrets.token_bytes(32) if taken is None else taken.secret
    async with contextlib.AsyncExitStack() as opened:
        sides = []
        for end in ends:
            side = open_side(end, fingerprint_with(secret))
            opened.push_async_callback(side.http.aclose)
            sides.append(side)
        runs = []
        for side in sides:
            other = next((each for each in sides if each is not side), None)
            run = _Run(side, other)
            await run.look()
            runs.append(run)
        plan = make_plan([run.evidence.limits for run in runs], max_keys)
        announce(plan)
        for run, chosen in zip(runs, plan.steps, strict=True):
            run.evidence.unasked.update(plan.left_out)
            if not run.evidence.limits.told:
                unknown = "the status does not tell the limits"
                run.evidence.unasked.update(dict.fromkeys(BEYOND_LIMITS, unknown))
            await run.draw(chosen)
            await run.fetch()
        far = None if taken is None else await _fetch_taken(taken, sides[0])
        evidence = tuple(run.finish() for run in runs)
    hand_over = HandOver.of(evidence[0], secret) if len(evidence) == 1 else None
    return Seen(evidence, far, hand_over)


async def _fetch_taken(taken: HandOver, slave: Side) -> Evidence:
    """The far end's keys at this end's KME."""
    far_end = dataclasses.replace(
        slave.end,
        name="the other end",
        local_sae_id=slave.end.peer_sae_id,
        peer_sae_id=slave.end.local_sae_id,
    )
    drawn = {
        name: Answer(Call.ENC_KEYS, 200, readable=True, keys=keys)
        for name, keys in taken.keys.items()
        if keys
    }
    evidence = Evidence(far_end, slave.end, taken.limits, answers=dict(drawn))
    await fetch(evidence, slave)
    return evidence


class _Run:
    """One end as master, the other, where there is one, as slave."""

    def __init__(self, master: Side, slave: Side | None) -> None:
        self._master = master
        self._slave = slave
        self.evidence = Evidence(
            master.end,
            None if slave is None else slave.end,
            answers={"status": no_answer(Call.STATUS, HttpErrorKind.CONNECT, 0.0)},
        )

    def finish(self) -> Evidence:
        """What was seen, once every run is over."""
        self.evidence.heard, self.evidence.lost = self._master.heard, self._master.lost
        return self.evidence

    @property
    def _turned_away(self) -> bool:
        """Whether there is no use in going on: no KME answers, or it does not know who asks."""
        return self.evidence.answers["status"].status in {None, 401, 403}

    async def look(self) -> None:
        """TLS and status. Takes no key."""
        evidence, master = self.evidence, self._master
        path = path_of(Call.STATUS, master.segment)
        evidence.transport = await probe_transport(master.end, master.tls, path)
        status = await self._note("status", master.ask(Call.STATUS, master.segment))
        if status.status is None:
            return
        evidence.limits = Limits.of(status)
        encoded = percent_encode_fully(master.end.peer_sae_id)
        await self._note("status-encoded", master.ask(Call.STATUS, encoded))

    async def draw(self, chosen: Iterable[Step]) -> None:
        """Ask the master's KME for new keys, and for what it shall refuse."""
        if self._turned_away:
            return
        for step in chosen:
            segment = self._master.segment if step.stranger is None else step.stranger
            asked = self._master.ask(Call.ENC_KEYS, segment, query=step.query, json=step.json)
            await self._note(step.name, asked)
        await self._note("status-again", self._master.ask(Call.STATUS, self._master.segment))

    async def fetch(self) -> None:
        """Ask for keys by ID: at the master's own KME in vain, at the slave's for real."""
        if self._turned_away:
            return
        if spare := ids_of(self.evidence, "post-default"):
            await self._note("wrong-sae", self._master.dec_keys(spare[:1]))
        if self._slave is None:
            await ask_for_unknown(self.evidence, self._master)
        else:
            await fetch(self.evidence, self._slave)

    async def _note(self, name: str, asked: Awaitable[Answer]) -> Answer:
        answer = await asked
        self.evidence.answers[name] = answer
        return answer
