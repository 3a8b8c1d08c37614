"""The file source: both sites agree, every key is used once, and nothing readable is trusted."""

import os
from pathlib import Path

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.sources.base import KeySource
from qproxy.sources.file import (
    MAX_KEYS_AT_ONCE,
    FileSource,
    PadFacts,
    inspect_pad,
    make_key_directories,
)


@pytest.fixture(autouse=True)
def _no_sync_of_the_whole_machine(monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def sites(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_key_directories(a, b, number=4)
    return FileSource("pad", a), FileSource("pad", b)


@pytest.fixture
def directory(sites, tmp_path):
    return tmp_path / "a"


async def refused(awaitable):
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value.reason


async def test_what_one_site_takes_the_other_gets_by_id(sites):
    source: KeySource
    for source, other in (sites, sites[::-1]):
        taken = await source.get_keys(3, 256)
        wanted = [key.key_id for key in reversed(taken)]
        found = await other.get_keys_by_id(wanted, 256)
        assert [key.key_id for key in found] == wanted
        assert [key.key for key in reversed(found)] == [key.key for key in taken]
        assert len({bytes(key.key) for key in taken}) == 3
        assert all(len(key.key) == 32 for key in taken)


async def test_the_two_directions_share_no_key(sites):
    a, b = sites
    ours, theirs = await a.get_keys(4, 256), await b.get_keys(4, 256)
    assert not {k.key_id for k in ours} & {k.key_id for k in theirs}
    assert not {bytes(k.key) for k in ours} & {bytes(k.key) for k in theirs}


async def test_status_counts_what_is_left_to_this_site(sites, tmp_path):
    status = await sites[0].status()
    assert (status.key_size_bits, status.stored_key_count) == (256, 4)
    taken = await sites[0].get_keys(3, 256)
    assert (await sites[0].status()).stored_key_count == 1
    # The site that is dialled has the other half to use up.
    waits = FileSource("pad", tmp_path / "b", dials=False)
    assert (await waits.status()).stored_key_count == 4
    await waits.get_keys_by_id([key.key_id for key in taken], 256)
    status = await waits.status()
    assert (status.key_size_bits, status.stored_key_count) == (256, 1)
    assert inspect_pad(tmp_path / "b") == PadFacts(4, 1, 256)


async def test_keys_put_there_later_are_found(sites, tmp_path):
    a, _ = sites
    await a.get_keys(4, 256)
    make_key_directories(tmp_path / "c", tmp_path / "d", number=2)
    for path in (tmp_path / "c" / "master").iterdir():
        path.rename(tmp_path / "a" / "master" / path.name)
    assert len(await a.get_keys(4, 256)) == 2


async def test_each_key_is_taken_once_in_order_of_number(sites):
    a, _ = sites
    taken = [key.key_id for _ in range(4) for key in await a.get_keys(1, 256)]
    assert taken == sorted(taken)
    assert len(set(taken)) == 4
    assert await refused(a.get_keys(1, 256)) is Reason.KEYS_EXHAUSTED


async def test_fewer_keys_than_asked_are_better_than_none(sites):
    assert len(await sites[0].get_keys(5, 256)) == 4
    assert await refused(sites[0].get_keys(5, 256)) is Reason.KEYS_EXHAUSTED


async def test_one_call_takes_no_more_than_a_caller_waits_for(tmp_path):
    make_key_directories(tmp_path / "x", tmp_path / "y", number=3 * MAX_KEYS_AT_ONCE)
    source = FileSource("pad", tmp_path / "x")
    assert len(await source.get_keys(1000, 256)) == MAX_KEYS_AT_ONCE


async def test_a_key_is_given_by_id_once(sites):
    a, b = sites
    (key,) = await a.get_keys(1, 256)
    await b.get_keys_by_id([key.key_id], 256)
    assert await refused(b.get_keys_by_id([key.key_id], 256)) is Reason.KEY_NOT_FOUND


async def test_one_unknown_id_leaves_the_others_untouched(sites):
    a, b = sites
    (key,) = await a.get_keys(1, 256)
    wanted = [key.key_id, key.key_id[:-1] + "9"]
    assert await refused(b.get_keys_by_id(wanted, 256)) is Reason.KEY_NOT_FOUND
    assert len(await b.get_keys_by_id([key.key_id], 256)) == 1


async def test_the_master_half_is_not_given_by_id(sites):
    a, _ = sites
    own = sorted(path.stem for path in (a._directory / "master").iterdir())[0]
    assert await refused(a.get_keys_by_id([own], 256)) is Reason.KEY_NOT_FOUND


@pytest.mark.parametrize("key_id", ["", "../master/x", "x" * 5000, "a\0b", "\ud800", "٣" * 16])
async def test_ids_from_a_peer_never_become_paths(sites, key_id):
    assert await refused(sites[0].get_keys_by_id([key_id], 256)) is Reason.KEY_NOT_FOUND


async def test_an_id_named_twice_is_not_given_twice(sites):
    (key,) = await sites[0].get_keys(1, 256)
    wanted = [key.key_id] * 2
    assert await refused(sites[1].get_keys_by_id(wanted, 256)) is Reason.KEY_NOT_FOUND


@pytest.mark.parametrize(
    ("number", "size_bits"), [(0, 256), (1025, 256), (1, 0), (1, 7), (1, 8200), (-1, -8)]
)
async def test_impossible_requests_are_refused(sites, number, size_bits):
    assert await refused(sites[0].get_keys(number, size_bits)) is Reason.KME_BAD_REQUEST


async def test_another_size_than_the_files_have_is_refused_and_takes_nothing(sites):
    assert await refused(sites[0].get_keys(1, 128)) is Reason.KEY_INVALID
    assert len(await sites[0].get_keys(4, 256)) == 4


async def test_many_takers_never_get_the_same_key(tmp_path):
    a, b = tmp_path / "x", tmp_path / "y"
    make_key_directories(a, b, number=40)
    takers = [FileSource(f"{i}", a) for i in range(4)]
    got = []

    async def take_all(source):
        while True:
            got.extend(await source.get_keys(1, 256))

    async def take(source):
        assert await refused(take_all(source)) is Reason.KEYS_EXHAUSTED

    async with trio.open_nursery() as nursery:
        for taker in takers:
            nursery.start_soon(take, taker)
    assert len(got) == 40
    assert len({key.key_id for key in got}) == 40


async def test_a_claim_left_by_a_crash_is_never_given_again(sites, directory):
    name = min(path.name for path in (directory / "master").iterdir())
    (directory / "master" / name).rename(directory / "claimed" / name)
    taken = await sites[0].get_keys(3, 256)
    assert name.removesuffix(".key") not in {key.key_id for key in taken}
    assert await refused(sites[0].get_keys(1, 256)) is Reason.KEYS_EXHAUSTED


async def test_nothing_is_left_on_disk_of_a_key_that_was_taken(sites, directory):
    taken = await sites[0].get_keys(4, 256)
    left = [path for path in directory.rglob("*") if path.is_file()]
    assert not {path.stem for path in left} & {key.key_id for key in taken}
    assert len(left) == 4


@pytest.mark.parametrize("part", [".", "master", "slave", "claimed"])
async def test_a_directory_others_can_read_is_not_trusted(sites, directory, part):
    (directory / part).chmod(0o750)
    with pytest.raises(KeySourceError, match="0750") as caught:
        await sites[0].get_keys(1, 256)
    assert not caught.value.retryable
    assert await refused(sites[0].get_keys_by_id(["x"], 256)) is Reason.KME_UNAVAILABLE
    assert await refused(sites[0].status()) is Reason.KME_UNAVAILABLE


@pytest.fixture
def claimed(monkeypatch):
    """Every key that is taken, as the source makes it."""
    made = []

    def spy(*arguments, **options):
        made.append(QkdKey(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("qproxy.sources.file.QkdKey", spy)
    return made


async def test_a_bad_file_does_not_cost_the_keys_before_it(sites, directory):
    sorted((directory / "master").iterdir())[2].write_bytes(b"short")
    assert len(await sites[0].get_keys(3, 256)) == 2
    assert await refused(sites[0].get_keys(3, 256)) is Reason.KEY_INVALID


async def test_keys_read_before_an_all_zero_one_are_wiped(sites, directory, claimed):
    sorted((directory / "master").iterdir())[2].write_bytes(bytes(32))
    assert await refused(sites[0].get_keys(3, 256)) is Reason.KEY_INVALID
    assert [key.key for key in claimed] == [b"", b""]
    assert not list((directory / "claimed").iterdir())


@pytest.mark.parametrize("how", ["gone", "bad"])
async def test_keys_claimed_by_id_before_one_that_fails_are_given_up(
    sites, directory, claimed, monkeypatch, how
):
    first, second = sorted((directory / "slave").iterdir())[:2]
    if how == "gone":  # taken by another process after it was seen
        second.unlink()
        monkeypatch.setattr("os.path.lexists", lambda path: True)
    else:
        second.write_bytes(b"short")
    reason = await refused(sites[0].get_keys_by_id([first.stem, second.stem], 256))
    assert reason is (Reason.KEY_NOT_FOUND if how == "gone" else Reason.KEY_INVALID)
    assert not claimed
    assert not list((directory / "claimed").iterdir())
    assert await refused(sites[0].get_keys_by_id([first.stem], 256)) is Reason.KEY_NOT_FOUND


async def test_a_key_that_another_process_took_meanwhile_is_passed_over(
    sites, directory, claimed, monkeypatch
):
    names = [path.stem for path in sorted((directory / "master").iterdir())]
    (directory / "master" / f"{names[0]}.key").unlink()
    monkeypatch.setattr(FileSource, "_key_ids", lambda self, half: names)
    assert [key.key_id for key in await sites[0].get_keys(3, 256)] == names[1:]
    assert await refused(sites[0].get_keys(1, 256)) is Reason.KEYS_EXHAUSTED
    assert (await sites[0].status()).key_size_bits == 0


async def test_a_key_file_others_can_read_is_not_trusted(sites, directory):
    min((directory / "master").iterdir()).chmod(0o644)
    with pytest.raises(KeySourceError, match="0644"):
        await sites[0].get_keys(1, 256)


async def test_a_link_in_place_of_a_key_is_not_followed(sites, directory, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"k" * 32)
    target.chmod(0o600)
    first = min((directory / "master").iterdir())
    first.unlink()
    first.symlink_to(target)
    assert await refused(sites[0].get_keys(1, 256)) is Reason.KME_UNAVAILABLE
    first.unlink()
    os.link(target, first)
    assert await refused(sites[0].get_keys(1, 256)) is Reason.KME_UNAVAILABLE


async def test_an_all_zero_key_is_refused_and_used_up(sites, directory):
    min((directory / "master").iterdir()).write_bytes(bytes(32))
    assert await refused(sites[0].get_keys(1, 256)) is Reason.KEY_INVALID
    assert len(await sites[0].get_keys(3, 256)) == 3


async def test_other_files_in_the_directory_are_left_alone(sites, directory):
    (directory / "master" / "README").write_text("not a key")
    assert len(await sites[0].get_keys(4, 256)) == 4
    assert (directory / "master" / "README").exists()


async def test_a_missing_directory_is_unreachable(tmp_path):
    source = FileSource("pad", tmp_path / "none")
    assert await refused(source.status()) is Reason.KME_UNREACHABLE
    assert await refused(source.get_keys(1, 256)) is Reason.KME_UNREACHABLE
    await source.aclose()


async def test_no_error_shows_a_key(sites, directory):
    first = min((directory / "master").iterdir())
    first.write_bytes(b"SECRET" * 5)
    with pytest.raises(KeySourceError) as caught:
        await sites[0].get_keys(1, 256)
    assert "SECRET" not in repr(caught.value)


def test_directories_are_made_private_and_equal(tmp_path):
    os.umask(os.umask(0o022))
    make_key_directories(tmp_path / "a", tmp_path / "b", number=2, size_bits=512)
    for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0
    halves = {
        site: {half: files(tmp_path / site / half) for half in ("master", "slave")} for site in "ab"
    }
    assert halves["a"]["master"] == halves["b"]["slave"]
    assert halves["b"]["master"] == halves["a"]["slave"]
    assert {len(content) for content in halves["a"]["master"].values()} == {64}


def files(directory: Path):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_directories_are_never_written_over(tmp_path):
    make_key_directories(tmp_path / "a", tmp_path / "b", number=1)
    with pytest.raises(FileExistsError) as caught:
        make_key_directories(tmp_path / "c", tmp_path / "b", number=1)
    assert caught.value.filename == str(tmp_path / "b")
    assert not (tmp_path / "c").exists()


def test_a_pad_that_was_not_finished_has_no_name(tmp_path):
    taken = 0

    def until_the_power_goes(size):
        nonlocal taken
        taken += 1
        if taken > 7:
            raise KeyboardInterrupt
        return os.urandom(size)

    with pytest.raises(KeyboardInterrupt):
        make_key_directories(
            tmp_path / "a", tmp_path / "b", number=4, random_bytes=until_the_power_goes
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.unfinished", "b.unfinished"]


@pytest.mark.parametrize(("number", "size_bits"), [(0, 256), (1, 12), (1, 0), (10**6, 256)])
def test_impossible_directories_are_refused(tmp_path, number, size_bits):
    with pytest.raises(ValueError, match="expected"):
        make_key_directories(tmp_path / "a", tmp_path / "b", number=number, size_bits=size_bits)
    assert not (tmp_path / "a").exists()


async def test_a_disk_that_fails_under_status_is_an_error_like_any_other(sites, monkeypatch):
    def broken(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", broken)
    assert await refused(sites[0].status()) is Reason.KME_UNAVAILABLE
