"""Several KMEs behind one key source: the preferred one while it answers, else the next.

All of them serve the same pair of SAEs, and each has a partner at the other site. A key can be
redeemed only at the partner of the KME that gave it.

Theory of operation. A KME that fails a call is *left out*: the call goes on at the next one, and so
do the calls after it. When its pause is over, a task of its own asks the KME for its status, so
that no call waits for a KME that may still hang. If it answers it is back, in its old place of the
order; if not, the pause doubles. The pause begins anew only once the KME has done again what it
failed at (:class:`Proof`): one whose status answers and whose keys fail must not be returned to
every second. With every KME left out, calls try them all, the one that has rested longest first.

Redeeming is different. That one KME does not have a key says nothing against it, so it is not left
out; the next is asked. First comes the KME that redeemed last: the other site draws from one KME
for as long as that one works. A call whose keys are from several KMEs is split.
"""

from __future__ import annotations

import enum
import random as random_module
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey, wipe_keys
from qproxy.log import Logger
from qproxy.sources.base import KeySource, SourceStatus

#: A call that was cancelled after less time than this says nothing about the KME, in seconds.
MIN_PATIENCE_S = 0.05
#: How long a KME that is tried again may take over its status, in seconds.
RETRY_TIMEOUT_S = 10.0
#: Key IDs whose KME is remembered, the last ones: more than lie in a stock.
MAX_GIVEN_IDS = 8192
#: How much each pause is varied, so that gateways do not call in step.
JITTER = 0.1

#: Of one key, or of one request for keys by ID; nothing against the KME.
_OF_THE_KEY = frozenset(
    {
        Reason.KEY_NOT_FOUND,
        Reason.KEY_SPENT,
        Reason.KEY_INVALID,
        Reason.KME_UNAUTHORIZED,  # the standard's word for "not your key" as well
        Reason.KME_BAD_REQUEST,
    }
)
#: What the other site says of keys when the partner of the KME that gave them is at fault.
_OF_THE_PARTNER = frozenset(
    {
        Reason.KEY_NOT_FOUND,
        Reason.KEY_MISMATCH,
        Reason.KEY_INVALID,
        Reason.KEYS_EXHAUSTED,
        Reason.KME_UNREACHABLE,
        Reason.KME_TLS,
        Reason.KME_TIMEOUT,
        Reason.KME_UNAUTHORIZED,
        Reason.KME_BAD_REQUEST,
        Reason.KME_UNAVAILABLE,
        Reason.KME_INVALID_RESPONSE,
    }
)
#: How a KME may say that it does not have a key.
_NOT_HERE = frozenset({Reason.KEY_NOT_FOUND, Reason.KME_UNAUTHORIZED})

ResultT = TypeVar("ResultT")
Call = Callable[[KeySource], Awaitable[ResultT]]


class Proof(enum.IntEnum):
    """What a KME can do, each more than the one before."""

    STATUS = 0  # it answers
    REDEEMED = 1  # it gave keys by ID
    DREW = 2  # it gave fresh keys
    CONFIRMED = 3  # the other site had the same keys


@dataclass(slots=True, eq=False)
class Kme:
    """One KME of several, and how it has been doing.

    Attributes:
        name: its configured name.
        source: how it is called; closed with the failover.
        failure: why it is left out, or None while it is not.
        retry_at: when its pause is over.
        failures: calls to it that failed since the start.
        last_asked: number of the last call to it, counted over all of them.
        pause_s: how long the next pause will be, or None for the shortest.
        needs: what it must do before its next pause is the shortest again.
        retry: ends the task that tries it again, while there is one.
    """

    name: str
    source: KeySource
    failure: Reason | None = None
    retry_at: float = 0.0
    failures: int = 0
    last_asked: int = 0
    pause_s: float | None = None
    needs: Proof = Proof.STATUS
    retry: trio.CancelScope | None = field(default=None, repr=False)


class FailoverSource:
    """A :class:`~qproxy.sources.base.KeySource` over several others, in order of preference.

    Args:
        name: the source's key in ``key_sources``.
        kmes: by configured name, the preferred one first; at least one. This object closes them.
        log: where to say which KME is used and which is left out.
        retry_s: the first pause of a KME that failed.
        max_retry_s: what it grows to.
        random: between 0 and 1, for the jitter.
    """

    def __init__(
        self,
        name: str,
        kmes: Sequence[tuple[str, KeySource]],
        log: Logger,
        *,
        retry_s: float = 1.0,
        max_retry_s: float = 60.0,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.name = name
        self._kmes = [Kme(kme_name, source) for kme_name, source in kmes]
        self._log = log.bind(source=name)
        self._retry_s = retry_s
        self._max_retry_s = max_retry_s
        self._random = random
        self._in_use: Kme | None = None
        self._redeems = self._kmes[0]
        self._given: OrderedDict[str, Kme] = OrderedDict()
        self._switches = 0
        self._calls = 0
        self._closed = False

    @property
    def in_use(self) -> str | None:
        """Name of the KME that answered last, or None before any did."""
        return self._in_use.name if self._in_use is not None else None

    async def status(self) -> SourceStatus:
        """The status of the KME that keys would come from, and which others are left out."""
        status = await self._first_answer(lambda source: source.status(), Proof.STATUS)
        return replace(
            status,
            kme=self.in_use or "",
            failing_kmes=tuple(kme.name for kme in self._kmes if kme.failure is not None),
            kme_switches=self._switches,
            kme_failures={kme.name: kme.failures for kme in self._kmes},
        )

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """Keys of one KME: the first in order that gives any."""
        keys = await self._first_answer(
            lambda source: source.get_keys(number, size_bits), Proof.DREW
        )
        if self._in_use is not None:
            self._given.update({key.key_id: self._in_use for key in keys})
        while len(self._given) > MAX_GIVEN_IDS:
            self._given.popitem(last=False)
        return keys

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """Every key from whichever KME has it."""
        self._retry_what_is_due()
        try:
            return await self._redeem(list(key_ids), size_bits)
        except KeySourceError as error:
            if error.reason not in _NOT_HERE or len(key_ids) < 2:
                raise
        keys: list[QkdKey] = []
        try:
            for key_id in key_ids:
                keys += await self._redeem([key_id], size_bits)
        except BaseException:
            wipe_keys(keys)
            raise
        return keys

    def keys_failed(self, key_ids: Sequence[str], reason: Reason) -> Collection[str]:
        """Leave out the KME that gave these keys, if there is another to get keys from.

        Its own calls all succeed, so nobody else would notice that its partner is gone.
        """
        doubtful: list[str] = []
        for kme in self._givers(key_ids) if reason in _OF_THE_PARTNER else ():
            if any(other.failure is None for other in self._kmes if other is not kme):
                self._failed(kme, reason, Proof.CONFIRMED)
                doubtful += [key_id for key_id, giver in self._given.items() if giver is kme]
        return doubtful

    def keys_confirmed(self, key_ids: Sequence[str]) -> None:
        """The partners of the KMEs that gave these keys had them too."""
        for kme in self._givers(key_ids):
            if kme.failure is None:  # else the key is from before it failed
                self._did(kme, Proof.CONFIRMED)

    async def aclose(self) -> None:
        """Close all of them."""
        self._closed = True
        for kme in self._kmes:
            if kme.retry is not None:
                kme.retry.cancel()
        for kme in self._kmes:
            await kme.source.aclose()

    def _givers(self, key_ids: Sequence[str]) -> list[Kme]:
        """The KMEs that gave these keys, as far as it is remembered."""
        given = {self._given.get(key_id) for key_id in key_ids}
        return [kme for kme in self._kmes if kme in given]

    # Calls that any KME can answer.

    async def _first_answer(self, call: Call[ResultT], proof: Proof) -> ResultT:
        self._retry_what_is_due()
        failures: list[KeySourceError] = []
        for kme in self._usable():
            try:
                result = await self._ask(kme, call, proof)
            except KeySourceError as error:
                self._failed(kme, error.reason, proof)
                failures.append(error)
            else:
                self._did(kme, proof)
                self._returned(kme)
                self._use(kme)
                return result
        raise _most_telling(failures)

    def _usable(self) -> list[Kme]:
        usable = [kme for kme in self._kmes if kme.failure is None]
        return usable or sorted(self._kmes, key=lambda kme: kme.last_asked)

    async def _ask(self, kme: Kme, call: Call[ResultT], proof: Proof) -> ResultT:
        began = trio.current_time()
        self._calls += 1
        kme.last_asked = self._calls
        try:
            return await call(kme.source)
        except trio.Cancelled:
            # The caller's patience is at an end. Without this the next call would wait here too.
            if trio.current_time() - began >= MIN_PATIENCE_S:
                self._failed(kme, Reason.KME_TIMEOUT, proof)
            raise

    # Calls for keys that one KME has.

    async def _redeem(self, key_ids: list[str], size_bits: int) -> list[QkdKey]:
        failures: list[KeySourceError] = []
        for kme in self._likely():
            try:
                keys = await self._ask(
                    kme, lambda source: source.get_keys_by_id(key_ids, size_bits), Proof.REDEEMED
                )
            except KeySourceError as error:
                if error.reason not in _OF_THE_KEY:
                    self._failed(kme, error.reason, Proof.REDEEMED)
                failures.append(error)
            else:
                # One that is left out for its fresh keys stays so.
                if kme.needs <= Proof.REDEEMED:
                    self._did(kme, Proof.REDEEMED)
                    self._returned(kme)
                self._redeems = kme
                return keys
        raise _most_telling(failures)

    def _likely(self) -> list[Kme]:
        """The one that redeemed last, the others in order; those left out come last of all."""
        return sorted(
            self._kmes, key=lambda kme: (kme.failure is not None, kme is not self._redeems)
        )

    # How each of them does.

    def _failed(self, kme: Kme, reason: Reason, proof: Proof) -> None:
        now = trio.current_time()
        kme.failures += 1
        kme.needs = max(kme.needs, proof)
        if kme.failure is not None and now < kme.retry_at:
            return  # calls side by side fail side by side, and make one pause
        pause_s = kme.pause_s or self._retry_s
        kme.retry_at = now + pause_s * (1 + JITTER * (2 * self._random() - 1))
        kme.pause_s = min(2 * pause_s, self._max_retry_s)
        write = self._log.warning if kme.failure is None else self._log.debug
        write("kme_failed", kme=kme.name, reason=reason, retry_s=round(pause_s, 3))
        kme.failure = reason

    def _did(self, kme: Kme, proof: Proof) -> None:
        if proof >= kme.needs:
            kme.pause_s, kme.needs = None, Proof.STATUS

    def _returned(self, kme: Kme) -> None:
        if kme.failure is not None:
            self._log.info("kme_returned", kme=kme.name, was=kme.failure)
            kme.failure = None

    def _use(self, kme: Kme) -> None:
        before, self._in_use = self._in_use, kme
        if before is kme:
            return
        if before is not None:
            self._switches += 1
        self._log.info("kme_in_use", kme=kme.name, was=before.name if before is not None else None)

    # Trying again.

    def _retry_what_is_due(self) -> None:
        now = trio.current_time()
        for kme in self._kmes:
            due = kme.failure is not None and kme.retry_at <= now
            if due and kme.retry is None and not self._closed:
                kme.retry = trio.CancelScope()
                # A task that no call waits for: a KME that still hangs would take its caller along.
                trio.lowlevel.spawn_system_task(self._retry, kme, kme.retry)

    async def _retry(self, kme: Kme, scope: trio.CancelScope) -> None:
        try:
            with scope, trio.fail_after(RETRY_TIMEOUT_S):
                status = await kme.source.status()
                if kme.failure is Reason.KEYS_EXHAUSTED and status.stored_key_count == 0:
                    self._failed(kme, Reason.KEYS_EXHAUSTED, Proof.DREW)
                else:
                    self._did(kme, Proof.STATUS)
                    self._returned(kme)
        except KeySourceError as error:
            self._failed(kme, error.reason, Proof.STATUS)
        except trio.TooSlowError:
            self._failed(kme, Reason.KME_TIMEOUT, Proof.STATUS)
        except Exception as error:  # a fault of ours must not end the gateway
            self._log.unexpected("kme_retry_failed", error, kme=kme.name)
            self._failed(kme, Reason.INTERNAL_ERROR, Proof.STATUS)
        finally:
            kme.retry = None


def _most_telling(failures: Sequence[KeySourceError]) -> KeySourceError:
    """Which of several KMEs' failures to raise.

    One that answered and is empty tells more than one that did not answer. But that nobody has a
    key is only true if everyone could be asked.
    """
    for failure in failures:
        if failure.reason is Reason.KEYS_EXHAUSTED:
            return failure
    for failure in failures:
        if failure.reason not in _NOT_HERE:
            return failure
    return failures[0]
