"""Keys by their IDs: what a slave SAE asks, and what it should not get."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Sequence

from qproxy.kme_check.evidence import REST, Evidence
from qproxy.kme_check.facts import Answer
from qproxy.kme_check.side import Side


async def ask_for_unknown(evidence: Evidence, side: Side) -> None:
    """IDs that no KME has issued."""
    evidence.answers["unknown-get"] = await side.dec_key(str(uuid.uuid4()))
    evidence.answers["unknown-post"] = await side.dec_keys([str(uuid.uuid4())])


async def fetch(evidence: Evidence, slave: Side) -> None:
    """Every key that the evidence has, at the slave's KME; the first one drawn comes last.

    Args:
        evidence: with the keys that the master drew; the answers go into it.
        slave: the other end.
    """
    await ask_for_unknown(evidence, slave)
    await _Fetch(evidence, slave).run()


class _Fetch:
    """The keys of one master at one slave."""

    def __init__(self, evidence: Evidence, slave: Side) -> None:
        self._evidence = evidence
        self._slave = slave

    async def run(self) -> None:
        """Some together, one beside an unknown ID, the rest, and the first one drawn."""
        evidence = self._evidence
        if several := ids_of(evidence, "post-several"):
            await self._several(several[::-1])
        if spare := ids_of(evidence, "post-default"):
            await self._mixed(spare[0])
        oldest = (ids_of(evidence, "get-default") or ids_of(evidence, "post-optional"))[:1]
        rest = [i for i in ids_of(evidence, "get-sized", "post-optional") if i not in oldest]
        at_once = evidence.limits.max_key_per_request
        for start in range(0, len(rest), at_once):
            few = rest[start : start + at_once]
            await self._note(f"{REST}{start}", self._slave.dec_keys(few))
        if oldest:
            await self._oldest(oldest)

    async def _several(self, key_ids: Sequence[str]) -> None:
        """In another order than drawn; with an extension to an ID; then once more."""
        extended = await self._note("several-post", self._slave.dec_keys(key_ids, extended=True))
        if extended.status == 400:
            await self._note("several-plain", self._slave.dec_keys(key_ids))
        await self._note("again-post", self._slave.dec_keys(key_ids))

    async def _mixed(self, key_id: str) -> None:
        """A good ID beside one that nobody issued; then the good one alone."""
        if self._evidence.limits.max_key_per_request > 1:
            await self._note("partial", self._slave.dec_keys([key_id, str(uuid.uuid4())]))
        else:
            self._evidence.unasked["partial"] = "this KME takes one key ID at a time"
        await self._note("after-partial", self._slave.dec_keys([key_id]))

    async def _oldest(self, oldest: Sequence[str]) -> None:
        """The first key drawn, by GET where there is one; then once more in the same way."""
        by_get = await self._note("oldest-get", self._slave.dec_key(oldest[0]))
        if by_get.ok:
            await self._note("again-oldest", self._slave.dec_key(oldest[0]))
        else:
            await self._note("oldest-post", self._slave.dec_keys(oldest))
            await self._note("again-oldest", self._slave.dec_keys(oldest))

    async def _note(self, name: str, asked: Awaitable[Answer]) -> Answer:
        answer = await asked
        self._evidence.answers[name] = answer
        return answer


def ids_of(evidence: Evidence, *names: str) -> list[str]:
    """IDs of keys that requests gave and that can be asked for, each once."""
    return list(dict.fromkeys(key.key_id for key in evidence.given(*names) if key.key_id))
