"""Several KMEs behind one source: who is asked, who is left out, and how they come back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.log import Logger
from qproxy.sources.base import KeySource, SourceStatus, SpareKmes
from qproxy.sources.failover import MAX_GIVEN_IDS, FailoverSource

HANG = object()
DOWN = Reason.KME_UNREACHABLE


@dataclass
class FakeKme:
    """A KME that does what it is told; ``fails`` is the reason of every call, or HANG."""

    name: str
    fails: Any = None
    status_fails: Any = None
    holds: set[str] = field(default_factory=set)
    stored: int | None = 5
    asked: list[str] = field(default_factory=list)
    given: list[QkdKey] = field(default_factory=list)
    closed: bool = False

    async def _do(self, what, fails):
        self.asked.append(what)
        await trio.lowlevel.checkpoint()
        if fails is HANG:
            await trio.sleep_forever()
        if isinstance(fails, Exception):
            raise fails
        if fails is not None:
            raise KeySourceError(fails, f"{what} of {self.name}")

    async def status(self):
        await self._do("status", self.status_fails or self.fails)
        return SourceStatus(self.stored, None, 256, 8, 64, 1024, f"id-{self.name}", "far")

    async def get_keys(self, number, size_bits):
        await self._do("get", self.fails)
        return self._give([f"{self.name}-{len(self.given) + n}" for n in range(number)])

    async def get_keys_by_id(self, key_ids, size_bits):
        await self._do("by_id", self.fails)
        if not self.holds.issuperset(key_ids):
            raise KeySourceError(Reason.KEY_NOT_FOUND, "not here", retryable=False)
        return self._give(key_ids)

    def _give(self, key_ids):
        keys = [QkdKey(key_id, bytearray(b"k" * 32)) for key_id in key_ids]
        self.given += keys
        return keys

    async def aclose(self):
        self.closed = True

    def calls(self):
        """What was asked since the last look."""
        asked, self.asked = self.asked, []
        return asked


@dataclass
class Log:
    """A log that keeps its lines; debug lines apart."""

    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def bind(self, **fields):
        return Log(self.lines, {**self.fields, **fields})

    def _write(self, event, /, *_error, **fields):
        self.lines.append((event, {**self.fields, **fields}))

    info = warning = error = unexpected = _write

    def debug(self, event, /, **fields):
        pass

    def told(self):
        """Events and their KMEs since the last look."""
        lines = [(event, fields.get("kme")) for event, fields in self.lines]
        self.lines.clear()
        return lines


class Site:
    """Two KMEs and the source over them."""

    def __init__(self):
        self.north, self.south = FakeKme("north"), FakeKme("south")
        self.log = Log()
        kmes: list[tuple[str, KeySource]] = [("north", self.north), ("south", self.south)]
        self.source = FailoverSource(
            "site", kmes, cast("Logger", self.log), retry_s=1, max_retry_s=8, random=lambda: 0.5
        )

    async def draw(self):
        """Name of the KME that gave a key."""
        (key,) = await self.source.get_keys(1, 256)
        return key.key_id.partition("-")[0]

    async def settle(self):
        """Let tasks that were started in passing come to an end."""
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def site():
    return Site()


async def refused(awaitable):
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value.reason


# --- who is asked ------------------------------------------------------------------------------


async def test_keys_come_from_the_preferred_kme_alone(site):
    typed: KeySource = site.source
    assert await site.draw() == "north"
    status = await typed.status()
    assert (status.kme, status.failing_kmes, status.kme_switches) == ("north", (), 0)
    assert status.source_kme_id == "id-north"
    assert site.south.asked == []
    assert site.log.told() == [("kme_in_use", "north")]


@pytest.mark.parametrize(
    "reason",
    [
        Reason.KME_UNREACHABLE,
        Reason.KME_TLS,
        Reason.KME_TIMEOUT,
        Reason.KME_UNAVAILABLE,
        Reason.KME_UNAUTHORIZED,
        Reason.KME_BAD_REQUEST,
        Reason.KME_INVALID_RESPONSE,
        Reason.KEYS_EXHAUSTED,
        Reason.KEY_INVALID,
    ],
)
async def test_one_that_fails_is_left_for_the_next_within_the_same_call(site, reason):
    site.north.fails = reason
    assert await site.draw() == "south"
    assert await site.draw() == "south"
    assert site.north.calls() == ["get"]
    status = await site.source.status()
    assert (status.kme, status.failing_kmes, status.kme_switches) == ("south", ("north",), 0)
    assert site.log.told() == [("kme_failed", "north"), ("kme_in_use", "south")]


async def test_a_switch_is_told_and_counted(site):
    await site.draw()
    site.north.fails = DOWN
    await site.draw()
    status = await site.source.status()
    assert status.kme_switches == 1
    assert status.kme_failures == {"north": 1, "south": 0}
    line = next(fields for event, fields in site.log.lines if event == "kme_failed")
    assert line == {"source": "site", "kme": "north", "reason": DOWN, "retry_s": 1}
    assert site.log.lines[-1] == (
        "kme_in_use",
        {"source": "site", "kme": "south", "was": "north"},
    )


async def test_with_every_kme_down_all_are_tried_and_a_true_reason_is_given(site):
    site.north.fails, site.south.fails = DOWN, Reason.KME_UNAVAILABLE
    for _ in range(3):
        assert await refused(site.draw()) in {DOWN, Reason.KME_UNAVAILABLE}
    assert site.north.calls() == ["get"] * 3
    assert site.south.calls() == ["get"] * 3
    site.south.fails = Reason.KEYS_EXHAUSTED  # one that answers and is empty tells more
    assert await refused(site.draw()) is Reason.KEYS_EXHAUSTED
    site.south.fails = None
    assert await site.draw() == "south"


# --- returning ---------------------------------------------------------------------------------


async def test_the_preferred_kme_is_returned_to_by_itself(site, autojump_clock):
    site.north.fails = DOWN
    await site.draw()
    site.north.calls()
    site.north.fails = None
    assert await site.draw() == "south"
    assert site.north.calls() == []
    await trio.sleep(1)
    assert await site.draw() == "south"  # this call only sets the retry going
    await site.settle()
    assert site.north.calls() == ["status"]
    site.log.told()
    assert await site.draw() == "north"
    assert (await site.source.status()).failing_kmes == ()
    assert site.log.told() == [("kme_in_use", "north")]


async def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_success(site, autojump_clock):
    site.north.fails = DOWN
    retries = []
    for _ in range(4000):
        await site.source.status()
        await site.settle()
        retries += [trio.current_time()] * len(site.north.calls())
        await trio.sleep(0.01)
    pauses = [b - a for a, b in itertools.pairwise(retries)]
    assert [round(pause, 1) for pause in pauses] == [1, 2, 4, 8, 8, 8, 8]
    site.north.fails = None
    await trio.sleep(9)
    await site.source.status()
    await site.settle()
    assert await site.draw() == "north"
    site.log.lines.clear()
    site.north.fails = DOWN
    await site.draw()
    assert site.log.lines[0][1]["retry_s"] == 1


async def test_a_kme_whose_status_answers_and_whose_keys_fail_is_returned_to_ever_less(
    site, autojump_clock
):
    real = site.north.get_keys

    async def no_keys(number, size_bits):
        site.north.asked.append("get")
        raise KeySourceError(Reason.KME_UNAVAILABLE, "no")

    site.north.get_keys = no_keys
    for _ in range(600):
        assert await site.draw() == "south"
        await trio.sleep(0.1)
    # 60 s: after 0, 1, 2, 4, 8, 8 ... s, and not every second.
    assert 8 <= site.north.calls().count("get") <= 12
    site.north.get_keys = real
    await trio.sleep(9)
    await site.draw()
    await site.settle()
    assert await site.draw() == "north"


async def test_an_empty_kme_is_not_returned_to_before_it_has_keys(site, autojump_clock):
    site.north.fails = Reason.KEYS_EXHAUSTED
    await site.draw()
    site.north.fails, site.north.stored = None, 0
    for _ in range(50):
        assert await site.draw() == "south"
        await trio.sleep(0.2)
    site.north.stored = 1
    await trio.sleep(9)
    await site.draw()
    await site.settle()
    assert await site.draw() == "north"


async def test_a_kme_that_hangs_costs_one_call_and_no_other(site, autojump_clock):
    site.north.fails = HANG
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(0.5):
            await site.draw()
    began = trio.current_time()
    for _ in range(100):
        assert await site.draw() == "south"
        await trio.sleep(0.1)
    assert trio.current_time() - began == pytest.approx(10)  # nobody waited for it
    await site.settle()
    assert site.north.calls() == ["get", "status"]  # one retry, which still hangs
    await site.source.aclose()
    await site.settle()


async def test_calls_that_fail_side_by_side_make_one_pause(site, autojump_clock):
    site.north.fails = DOWN
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(site.draw)
    assert site.north.calls() == ["get"] * 5
    assert site.log.told().count(("kme_failed", "north")) == 1
    assert site.source._kmes[0].pause_s == 2


async def test_where_all_are_left_out_one_that_hangs_does_not_keep_calls_from_the_other(
    site, autojump_clock
):
    site.north.fails = site.south.fails = DOWN
    await refused(site.draw())
    site.north.fails, site.south.fails = HANG, None
    gave = []
    for _ in range(2):
        with trio.move_on_after(0.3):
            gave.append(await site.draw())
    assert gave[0] == "south"


async def test_a_call_given_up_at_once_says_nothing_of_the_kme(site, autojump_clock):
    site.north.fails = HANG
    with trio.move_on_after(0.01):
        await site.draw()
    assert site.log.told() == []
    site.north.fails = None
    assert await site.draw() == "north"


async def test_a_fault_in_a_retry_is_told_and_ends_nothing(site, autojump_clock):
    site.north.fails = DOWN
    await site.draw()
    site.north.fails = ZeroDivisionError("a fault of ours")
    await trio.sleep(2)
    await site.draw()
    await site.settle()
    assert ("kme_retry_failed", "north") in site.log.told()
    assert await site.draw() == "south"


async def test_closing_closes_all_and_ends_retries(site, autojump_clock):
    site.north.fails = DOWN
    await site.draw()
    site.north.fails = HANG
    await trio.sleep(2)
    await site.draw()
    await site.settle()
    await site.source.aclose()
    await site.settle()
    assert (site.north.closed, site.south.closed) == (True, True)
    await trio.sleep(100)
    site.north.calls()
    await site.draw()
    await site.settle()
    assert site.north.calls() == []  # nothing is retried any more


# --- redeeming ---------------------------------------------------------------------------------


def ids(keys):
    return [key.key_id for key in keys]


async def test_a_key_is_redeemed_wherever_it_is(site):
    site.south.holds = {"a", "b", "c"}
    assert ids(await site.source.get_keys_by_id(["b", "a"], 256)) == ["b", "a"]
    assert (site.north.calls(), site.south.calls()) == (["by_id"], ["by_id"])
    # The next keys will be there as well.
    assert ids(await site.source.get_keys_by_id(["c"], 256)) == ["c"]
    assert (site.north.calls(), site.south.calls()) == ([], ["by_id"])
    assert site.log.told() == []  # that it was not here says nothing against a KME


async def test_keys_of_several_kmes_in_one_call_are_put_together(site):
    site.north.holds, site.south.holds = {"a", "c"}, {"b"}
    assert ids(await site.source.get_keys_by_id(["a", "b", "c"], 256)) == ["a", "b", "c"]


async def test_keys_in_hand_are_wiped_where_one_is_nowhere(site):
    site.north.holds, site.south.holds = {"a"}, {"b"}
    assert await refused(site.source.get_keys_by_id(["a", "b", "x"], 256)) is Reason.KEY_NOT_FOUND
    assert [bytes(key.key) for key in (*site.north.given, *site.south.given)] == [b"", b""]


async def test_the_standards_401_for_a_key_of_others_is_not_held_against_a_kme(site):
    site.north.fails, site.south.holds = Reason.KME_UNAUTHORIZED, {"a"}
    assert ids(await site.source.get_keys_by_id(["a"], 256)) == ["a"]
    assert site.log.told() == []


async def test_nobody_has_it_is_only_said_if_everybody_could_be_asked(site):
    site.north.fails = DOWN
    assert await refused(site.source.get_keys_by_id(["a"], 256)) is DOWN
    site.north.fails = None
    assert await refused(site.source.get_keys_by_id(["a"], 256)) is Reason.KEY_NOT_FOUND


async def test_one_that_is_left_out_is_still_asked_for_a_key_but_last(site):
    site.north.fails = DOWN
    await site.draw()
    site.north.fails = None
    site.north.holds = {"a"}
    site.north.calls()
    assert ids(await site.source.get_keys_by_id(["a"], 256)) == ["a"]
    assert await refused(site.source.get_keys_by_id(["b"], 256)) is Reason.KEY_NOT_FOUND


async def test_redeeming_returns_a_kme_that_was_left_out_for_no_answer_but_not_an_empty_one(site):
    site.north.holds = {"a", "b"}
    site.north.fails = DOWN
    await refused(site.source.get_keys_by_id(["a"], 256))
    site.north.fails = None
    await site.source.get_keys_by_id(["a"], 256)
    assert (await site.source.status()).failing_kmes == ()
    site.north.fails = Reason.KEYS_EXHAUSTED
    assert await site.draw() == "south"
    site.north.fails = None
    await site.source.get_keys_by_id(["b"], 256)
    assert (await site.source.status()).failing_kmes == ("north",)


# --- the other site cannot redeem ----------------------------------------------------------------


async def drawn_ids(site, number=1):
    return ids(await site.source.get_keys(number, 256))


async def test_a_kme_whose_keys_the_other_site_cannot_have_is_left_out(site, autojump_clock):
    typed: SpareKmes = site.source
    assert isinstance(site.source, SpareKmes)
    assert not isinstance(site.north, SpareKmes)
    first = await drawn_ids(site, 2)
    more = await drawn_ids(site, 3)
    # All that came from there is in doubt, and nothing else.
    assert typed.keys_failed(first[:1], Reason.KEY_NOT_FOUND) == first + more
    (south,) = await drawn_ids(site)
    assert south.startswith("south")
    assert site.log.told()[-2:] == [("kme_failed", "north"), ("kme_in_use", "south")]


async def test_only_a_confirmed_key_of_its_own_shows_that_a_kme_is_of_use_again(
    site, autojump_clock
):
    def given():
        return sum(key.key_id.startswith("north") for key in site.north.given)

    failed = await drawn_ids(site)
    site.source.keys_failed(failed, Reason.KME_UNREACHABLE)
    for _ in range(300):
        (key_id,) = await drawn_ids(site)
        if key_id.startswith("north"):
            site.source.keys_failed([key_id], Reason.KME_UNREACHABLE)
        else:
            site.source.keys_confirmed([key_id])  # says nothing of the other
        await trio.sleep(0.1)
    assert 4 <= given() <= 7  # after 1, 2, 4, 8, 8 ... s
    await trio.sleep(9)
    await site.draw()
    await site.settle()
    (key_id,) = await drawn_ids(site)
    assert key_id.startswith("north")
    site.source.keys_confirmed([key_id])
    site.log.lines.clear()
    site.source.keys_failed([key_id], Reason.KEY_MISMATCH)
    assert site.log.lines[0][1]["retry_s"] == 1


async def test_keys_from_before_a_kme_failed_do_not_speak_for_it(site, autojump_clock):
    keys = await drawn_ids(site, 20)
    site.north.fails = DOWN
    pauses = []
    for key_id in keys:
        await drawn_ids(site)
        site.source.keys_confirmed([key_id])
        pauses.append(site.source._kmes[0].pause_s)
        await trio.sleep(1)
        await site.settle()
    assert pauses == sorted(pauses)
    assert pauses[-1] == 8


async def test_the_only_kme_left_is_not_left_out_for_that(site):
    site.north.fails = DOWN
    (key_id,) = await drawn_ids(site)
    site.log.told()
    assert site.source.keys_failed([key_id], Reason.KEY_NOT_FOUND) == []
    assert site.log.told() == []
    assert await site.draw() == "south"


@pytest.mark.parametrize(
    "reason", [Reason.KEY_SPENT, Reason.NO_KEY_SOURCE, Reason.POLICY_OFF, Reason.LIMIT_REACHED]
)
async def test_what_is_no_kmes_fault_is_not_held_against_one(site, reason):
    failed = await drawn_ids(site)
    assert site.source.keys_failed(failed, reason) == []
    assert await site.draw() == "north"


async def test_keys_of_others_are_nobodys_fault_here(site):
    await site.draw()
    assert site.source.keys_failed(["another", ""], Reason.KEY_NOT_FOUND) == []
    site.source.keys_confirmed(["another"])
    assert await site.draw() == "north"


async def test_how_many_keys_are_remembered_is_bounded(site):
    first = await drawn_ids(site)
    for _ in range(MAX_GIVEN_IDS // 1024 + 1):
        await drawn_ids(site, 1024)
    assert len(site.source._given) == MAX_GIVEN_IDS
    assert site.source.keys_failed(first, Reason.KEY_NOT_FOUND) == []
