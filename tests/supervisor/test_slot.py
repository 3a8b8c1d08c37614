"""One worker's place, with processes that live as long as the test says, on a clock that jumps."""

from __future__ import annotations

import errno
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from qproxy.admin.document import plain
from qproxy.admin.status import WorkerState
from qproxy.log import get_logger
from qproxy.supervisor.backoff import FIRST_PAUSE_S, MAX_PAUSE_S, Backoff
from qproxy.supervisor.channel import Channel
from qproxy.supervisor.slot import (
    AUDIT_EXIT_CODE,
    STARTUP_S,
    ProcessFacts,
    Slot,
    WorkerFailedError,
    describe_exit,
)
from tests.admin import made

TIMEOUT_S = 10.0
FACTS = plain(ProcessFacts(cpu_s=1.5, open_fds=7))


class Process:
    """A worker as its slot sees it, in the hands of a test."""

    def __init__(self, pid):
        ours, theirs = socket.socketpair()
        self.pid = pid
        self.line = Channel(ours)
        self.theirs = Channel(theirs)
        self.code = None
        self._ended = trio.Event()

    async def wait(self):
        await self._ended.wait()
        return self.code

    def kill(self):
        self.end(-signal.SIGKILL)

    def end(self, code):
        if self.code is None:
            self.code = code
            self.line.close()
            self._ended.set()

    def say(self, kind, **fields):
        self.line.send({"kind": kind, **fields})

    def serve(self, status=made.GATEWAY):
        self.say("started", status=plain(status), process=FACTS)


class Place:
    """A running slot and the processes it has had."""

    def __init__(self, nursery):
        self.processes = []
        self.began = []
        self.messages = []
        self.refuse = False
        self.nursery = nursery
        self.slot = Slot(
            3,
            self.launch,
            log=get_logger("qproxy.test"),
            timeout_s=TIMEOUT_S,
            backoff=Backoff(lambda: 0.5),
            on_message=lambda number, message: self.messages.append((number, message)),
        )

    async def launch(self, number):
        assert number == 3
        self.began.append(trio.current_time())
        if self.refuse:
            raise OSError(errno.EAGAIN, "no more processes")
        process = Process(1000 + len(self.processes))
        self.processes.append(process)
        self.nursery.start_soon(process.line.run)
        return process, process.theirs

    @property
    def process(self):
        return self.processes[-1]

    async def until(self, condition, limit_s=1000.0):
        with trio.fail_after(limit_s):
            while not condition():
                await trio.sleep(0.01)

    async def until_state(self, state):
        await self.until(lambda: self.slot.state is state)


@asynccontextmanager
async def place(*, serving=True):
    async with trio.open_nursery() as nursery:
        found = Place(nursery)
        if serving:
            nursery.start_soon(found.slot.run)
            await found.until(lambda: found.processes)
            found.process.serve()
            await found.until_state(WorkerState.RUNNING)
        yield found
        nursery.cancel_scope.cancel()
    for process in found.processes:
        process.end(0)


async def test_a_worker_that_dies_is_started_again_with_growing_pauses(autojump_clock):
    async with place() as found:
        ended = []
        for number in range(10):
            found.process.end(-signal.SIGSEGV)
            ended.append(trio.current_time())
            await found.until_state(WorkerState.WAITING)
            assert found.slot.pid is None
            await found.until(lambda n=number: len(found.processes) == n + 2)
            found.process.serve()
            await found.until_state(WorkerState.RUNNING)
        pauses = [again - end for end, again in zip(ended, found.began[1:], strict=True)]
        assert pauses[0] == pytest.approx(FIRST_PAUSE_S, abs=0.1)
        assert pauses[4] == pytest.approx(16 * FIRST_PAUSE_S, abs=0.1)
        assert pauses[-1] == pytest.approx(MAX_PAUSE_S, abs=0.1)
        status = found.slot.status()
        assert (status.starts, status.last_end) == (11, "killed by SIGSEGV")


async def test_a_first_worker_that_never_serves_is_why_nothing_starts(autojump_clock):
    async with place(serving=False) as found:

        async def run():
            with pytest.raises(WorkerFailedError) as failed:
                await found.slot.run()
            assert failed.value.exit_code == 78

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await found.until(lambda: found.processes)
            found.process.end(78)
        assert len(found.processes) == 1


def test_a_worker_that_was_killed_has_not_said_why():
    assert WorkerFailedError(0, 78).told
    killed = WorkerFailedError(0, -9)
    assert (killed.told, killed.exit_code) == (False, 1)
    assert "killed by SIGKILL" in str(killed)


async def test_a_process_that_cannot_be_started_is_tried_again(autojump_clock):
    async with place() as found:
        found.refuse = True
        found.process.end(1)
        await found.until(lambda: len(found.began) == 4)
        assert found.slot.status().last_end == "could not be started"
        found.refuse = False
        await found.until(lambda: len(found.processes) == 2)


async def test_a_silent_worker_is_killed_and_one_that_beats_is_not(autojump_clock):
    async with place() as found:
        first = found.process
        for _ in range(20):
            await trio.sleep(TIMEOUT_S / 2)
            first.say("beat")
        assert first.code is None
        began = trio.current_time()
        await found.until(lambda: first.code is not None)
        assert first.code == -signal.SIGKILL
        assert TIMEOUT_S <= trio.current_time() - began + 1.0 <= TIMEOUT_S + 3.0
        await found.until_state(WorkerState.WAITING)
        assert found.slot.status().last_end == "hung, and was killed"


async def test_a_worker_that_begins_has_longer(autojump_clock):
    async with place() as found:
        found.process.end(1)
        await found.until(lambda: len(found.processes) == 2)
        await trio.sleep(STARTUP_S - 5)
        assert found.process.code is None
        await found.until(lambda: found.process.code is not None, limit_s=10)


async def test_a_worker_that_talks_nonsense_is_killed(autojump_clock):
    for nonsense in ({}, {"kind": "answer"}, {"kind": "started"}, {"kind": "status", "status": 7}):
        async with place() as found:
            first = found.process
            first.line.send(nonsense)
            await found.until(lambda first=first: first.code == -signal.SIGKILL)


async def test_told_to_stop_it_starts_none_again(autojump_clock):
    async with trio.open_nursery() as nursery, place(serving=False) as found:
        nursery.start_soon(found.slot.run)
        await found.until(lambda: found.processes)
        found.process.serve()
        await found.until_state(WorkerState.RUNNING)
        found.slot.stop()
        found.slot.tell("drain")
        assert (await found.process.line.receive()).message() == {"kind": "drain"}
        found.process.end(0)
        await found.until_state(WorkerState.WAITING)
    assert len(found.processes) == 1


async def test_told_to_stop_while_it_waits_or_begins(autojump_clock):
    async with trio.open_nursery() as nursery, place(serving=False) as found:
        await nursery.start(_stopped_run, found)
    assert len(found.processes) == 0


async def _stopped_run(found, task_status):
    found.slot.stop()
    await found.slot.run(task_status)


async def test_one_that_lost_its_audit_log_is_not_started_again(autojump_clock):
    async with trio.open_nursery() as nursery, place(serving=False) as found:
        nursery.start_soon(found.slot.run)
        await found.until(lambda: found.processes)
        found.process.serve()
        await found.until_state(WorkerState.RUNNING)
        found.process.end(AUDIT_EXIT_CODE)
        await found.until(lambda: found.slot.audit_failed)
    assert len(found.processes) == 1


async def test_what_a_dead_worker_counted_is_kept(autojump_clock):
    audited = replace(made.AUDITED, listeners=())
    async with place() as found:
        first = found.process
        first.say("status", status=plain(audited), process=FACTS)
        await found.until(lambda: found.slot.last == audited)
        assert found.slot.status().audit == made.AUDIT
        assert found.slot.status().cpu_s == 1.5
        first.end(-signal.SIGKILL)
        await found.until(lambda: len(found.processes) == 2)
        assert found.slot.last is None
        assert found.slot.gone is not None
        assert found.slot.gone.peers[0].bytes_sent == made.PEER.bytes_sent
        found.process.serve(audited)
        await found.until_state(WorkerState.RUNNING)
        audit = found.slot.status().audit
        assert audit is not None
        assert audit.records == 2 * made.AUDIT.records
        assert audit.sequence == made.AUDIT.sequence


async def test_answers_belong_to_questions_and_are_not_waited_for_for_ever(autojump_clock):
    async with place() as found, trio.open_nursery() as nursery:
        answers = {}

        async def ask(kind, timeout_s):
            answers[kind] = await found.slot.ask(kind, timeout_s)

        nursery.start_soon(ask, "prepare", 5.0)
        question = (await found.process.line.receive()).message()
        found.process.say("answer", id=question["id"] + 1, ok=False)
        found.process.say("answer", id=question["id"], ok=True)
        await found.until(lambda: "prepare" in answers)
        assert answers["prepare"]["ok"]
        await ask("commit", 1.0)
        assert answers["commit"] is None
        # The line ends while somebody asks.
        nursery.start_soon(ask, "status", 1000.0)
        await trio.testing.wait_all_tasks_blocked()
        found.process.end(1)
        await found.until(lambda: "status" in answers)
        assert answers["status"] is None
        assert await found.slot.ask("status", 1.0) is None


async def test_one_that_does_not_answer_is_shown_with_what_it_said_last(autojump_clock):
    async with place() as found:
        await found.slot.refresh()
        status = found.slot.status()
        assert not status.answers
        assert status.ready
        assert status.streams_open == made.PEER.streams_open


async def test_the_rest_is_passed_on(autojump_clock):
    async with place() as found:
        found.process.say("over", ticket=7)
        await found.until(lambda: found.messages)
        assert found.messages == [(3, {"kind": "over", "ticket": 7})]
        found.process.say("ending")
        await found.until_state(WorkerState.ENDING)


def test_ends_are_told_in_words():
    assert describe_exit(0) == "exit code 0"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-250) == "killed by signal 250"
