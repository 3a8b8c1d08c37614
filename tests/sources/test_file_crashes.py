"""A pad under crashes: killed or without power at every step, no key is ever used twice.

Every call that changes the disk is a step. A kill stops the program before or after one of them
and keeps what was done. A power cut also undoes what no sync has made durable, wholly or in part.
"""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qproxy.errors import KeySourceError
from qproxy.sources import file as module
from qproxy.sources.file import STALE_CLAIM_S, FileSource, make_key_directories

KEYS = 4


class CrashError(BaseException):
    """The program is gone."""


class Disk:
    """The steps of the module under test: counted, recorded, and cut off at one of them."""

    def __init__(self, monkeypatch, crash_at, *, after):
        self.step = 0
        self.dead = False
        self.crash_at, self.after = crash_at, after
        self.undo = []
        self.directories = []
        for name in ("_rename", "_sync_directory", "_overwrite"):
            self._watch(monkeypatch, module, name)
        self._watch(monkeypatch, Path, "unlink")

    def _watch(self, monkeypatch, owner, name):
        real = getattr(owner, name)

        def stepped(*arguments):
            if self.dead:
                raise CrashError  # Nothing is cleared up by a program that is gone.
            self.step += 1
            self.dead = self.step == self.crash_at
            if self.dead and not self.after:
                raise CrashError
            content = arguments[0].read_bytes() if name == "unlink" else b""
            real(*arguments)
            self._record(name, arguments, content)
            if self.dead:
                raise CrashError

        monkeypatch.setattr(owner, name, stepped)

    def _record(self, name, arguments, content):
        match name:
            case "_rename":
                source, target = arguments
                self.undo.append(({source.parent, target.parent}, lambda: target.rename(source)))
                self.directories.append(2)
            case "unlink":
                path = arguments[0]
                self.undo.append(({path.parent}, lambda: restore(path, content)))
                self.directories.append(1)
            case "_sync_directory":
                for directories, _ in self.undo:
                    directories.discard(arguments[0])

    def cut_power(self, keep):
        """Undo what is not durable, but for what happened to reach the disk."""
        for number, (pending, undo) in reversed(list(enumerate(self.undo))):
            # A rename is durable with either directory: file systems journal it as one change.
            durable = not pending or len(pending) < self.directories[number]
            if not durable and not keep(number):
                undo()


def restore(path, content):
    path.write_bytes(content)
    path.chmod(0o600)


def survivors(directory):
    """What a new process gets out of the pad, by both ways; and again after that one."""
    found = []
    for _ in range(2):
        source = FileSource("pad", directory)
        while True:
            try:
                found += source._take_next(1, 256)
            except KeySourceError:
                break
        for path in sorted((directory / "slave").iterdir()):
            found += source._take_named([path.stem], 256)
    return found


def steps_of(action, tmp_path):
    """How many steps an undisturbed run takes."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path / "measured"
        make_key_directories(directory, tmp_path / "other", number=KEYS)
        disk = Disk(patch, 0, after=False)
        action(FileSource("pad", directory), directory)
        return disk.step


def take_as_master(source, _directory):
    return source._take_next(3, 256)


def take_by_id(source, directory):
    ids = sorted(path.stem for path in (directory / "slave").iterdir())[:3]
    return source._take_named(ids, 256)


@pytest.fixture(autouse=True)
def _no_sync_of_the_machine(monkeypatch):
    """Its own power is not cut."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.mark.parametrize("action", [take_as_master, take_by_id])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("power", ["killed", "power cut", "half durable"])
def test_no_crash_lets_a_key_be_used_twice(tmp_path, action, after, power):
    steps = steps_of(action, tmp_path)
    assert steps == 3 + 2 + 3 * 2  # renames, two syncs, and of each key overwriting and unlinking
    for crash_at in range(1, steps + 2):  # the last one does not crash at all
        directory = tmp_path / f"site-{crash_at}"
        make_key_directories(directory, tmp_path / f"far-{crash_at}", number=KEYS)
        everything = {path.stem: path.read_bytes() for path in directory.rglob("*.key")}
        used = []
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, crash_at, after=after)
            try:
                used = action(FileSource("pad", directory), directory)
            except CrashError:
                assert crash_at <= steps
        assert bool(used) == (crash_at > steps)
        if power != "killed":
            parity = itertools.count()
            disk.cut_power(lambda _n, p=parity: power == "half durable" and next(p) % 2 == 0)
        later = survivors(directory)
        ids = [key.key_id for key in [*used, *later]]
        assert len(set(ids)) == len(ids), f"step {crash_at}"
        for key in later:
            # A key is what it was, or it is not there: never zeros, never half of one.
            assert bytes(key.key) == everything[key.key_id]
        assert len(ids) >= 2 * KEYS - 3


def test_what_a_crash_leaves_is_wiped_later_and_not_read(tmp_path, monkeypatch):
    directory = tmp_path / "a"
    make_key_directories(directory, tmp_path / "b", number=KEYS)
    with monkeypatch.context() as patch:
        disk = Disk(patch, 4, after=True)
        with pytest.raises(CrashError):
            FileSource("pad", directory)._take_next(3, 256)
        assert disk.step == 4
    left = list((directory / "claimed").iterdir())
    assert len(left) == 3
    # Another process may be reading it just now: not yet.
    FileSource("pad", directory)._status()
    assert len(list((directory / "claimed").iterdir())) == 3
    wiped = []
    monkeypatch.setattr(module, "_overwrite", lambda fd, size: wiped.append(size))
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + STALE_CLAIM_S + 1)
    status = FileSource("pad", directory)._status()
    assert status.stored_key_count == 1
    assert wiped == [32, 32, 32]
    assert not list((directory / "claimed").iterdir())


def test_a_used_key_is_overwritten_before_it_is_unlinked(tmp_path, monkeypatch):
    directory = tmp_path / "a"
    make_key_directories(directory, tmp_path / "b", number=KEYS)
    real, seen = Path.unlink, []

    def unlink(path):
        seen.append(path.read_bytes())
        real(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    keys = FileSource("pad", directory)._take_next(3, 256)
    assert seen == [bytes(32)] * 3
    assert all(any(key.key) for key in keys)


def test_a_file_system_that_cannot_overwrite_still_loses_the_file(tmp_path, monkeypatch):
    directory = tmp_path / "a"
    make_key_directories(directory, tmp_path / "b", number=KEYS)

    def full(_descriptor, _size):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "_overwrite", full)
    assert len(FileSource("pad", directory)._take_next(3, 256)) == 3
    assert len(list(directory.rglob("*.key"))) == 2 * KEYS - 3


def test_a_disk_that_cannot_sync_gives_no_key(tmp_path, monkeypatch):
    directory = tmp_path / "a"
    make_key_directories(directory, tmp_path / "b", number=KEYS)

    def broken(_directory):
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr(module, "_sync_directory", broken)
        with pytest.raises(KeySourceError):
            FileSource("pad", directory)._take_next(3, 256)
    # They are spent all the same.
    assert len(FileSource("pad", directory)._take_next(3, 256)) == 1


TAKER = """
import sys
from pathlib import Path
from qproxy.sources.file import FileSource
source = FileSource("pad", Path(sys.argv[1]))
while True:
    for key in source._take_next(2, 256):
        sys.stdout.write(key.key_id + " " + key.key.hex() + "\\n")
        sys.stdout.flush()
"""


@pytest.mark.slow
def test_a_program_killed_again_and_again_never_takes_a_key_twice(tmp_path):
    directory = tmp_path / "a"
    make_key_directories(directory, tmp_path / "b", number=3000)
    everything = {path.stem: path.read_bytes().hex() for path in (directory / "master").iterdir()}
    taken = []
    for number in range(25):
        with subprocess.Popen(
            [sys.executable, "-c", TAKER, directory], stdout=subprocess.PIPE, text=True
        ) as program:
            # Each at another moment of its work: after so many keys, whatever it does just then.
            for _ in range(5 + 3 * number % 17):
                taken.append(program.stdout.readline())
            program.kill()
            taken += program.stdout.readlines()
    found = dict(line.split() for line in taken if line.endswith("\n"))
    assert len(found) == len([line for line in taken if line.endswith("\n")]) > 25 * 5
    assert all(everything[key_id] == key for key_id, key in found.items())
    assert not {path.stem for path in (directory / "master").iterdir()} & found.keys()
