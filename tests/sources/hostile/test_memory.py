"""However much a KME sends, little of it is taken and less is kept."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from qproxy.errors import KeySourceError, Reason
from qproxy.sources.recent import MAX_RECENT_KEYS, RecentKeys
from tests.sources.hostile.kme import Kme, client_of
from tests.sources.hostile.table import MEGABYTE, ROWS

#: What one call may take at its worst, in bytes: a document of a megabyte, and what it parses to.
MAX_PEAK_BYTES = 48 * MEGABYTE
#: What may leave a KME for one call: the limits of the client, and what sockets hold.
MAX_SENT_BYTES = 16 * MEGABYTE

BIG = [
    row
    for row in ROWS
    if any(
        word in row.name
        for word in ("MB", "bomb", "never end", "without end", "100,000", "200,000", "megabyte")
    )
]


@pytest.fixture
def traced():
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("row", BIG, ids=[row.name for row in BIG])
async def test_a_flood_is_cut_off(row, traced):
    kme = Kme()
    async with client_of(kme) as source:
        await source.status()
        kme.misbehave = row.answer
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(KeySourceError):
            await source.get_keys(2, 256)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert kme.sent_bytes < MAX_SENT_BYTES
        # What the KME itself builds at once is in the peak as well.
        assert peak < MAX_PEAK_BYTES


async def test_many_failed_calls_leave_nothing(traced):
    rows = [row for row in ROWS if row.enc not in {None, Reason.KME_TIMEOUT}]
    quick = [row for row in rows if row not in BIG][::5]
    assert len(quick) > 20
    kme = Kme()

    async def all_of_them():
        for row in quick:
            kme.misbehave = row.answer
            with pytest.raises(KeySourceError):
                await source.get_keys(2, 256)
        kme.asked.clear()
        kme.secrets.clear()
        kme.entries_given.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async with client_of(kme) as source:
        await all_of_them()
        once = await all_of_them()
        for _ in range(3):
            last = await all_of_them()
    assert last - once < MEGABYTE // 2


def test_what_is_remembered_of_keys_is_bounded_and_is_no_key():
    recent = RecentKeys()
    for number in range(3 * MAX_RECENT_KEYS):
        assert recent.add(f"id-{number}", bytearray(number.to_bytes(32, "big")))
    assert len(recent._ids_by_key) == len(recent._ids) == MAX_RECENT_KEYS
    last = 3 * MAX_RECENT_KEYS - 1
    assert recent.knows_id(f"id-{last}")
    assert not recent.knows_id("id-0")
    assert not recent.add("again", bytearray(last.to_bytes(32, "big")))
    assert not recent.knows_id("again")
    assert last.to_bytes(32, "big") not in {*recent._ids_by_key, *recent._ids}


def test_two_processes_remember_the_same_key_differently():
    key = bytearray(range(32))
    first, second = RecentKeys(), RecentKeys()
    first.add("a", key)
    second.add("a", key)
    assert first._ids_by_key.keys().isdisjoint(second._ids_by_key.keys())
