"""The reactor over real sockets: edges, order, timers, faults; under trio and as its host."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from qproxy.net.reactor import (
    ALL_BUT_ROOM,
    HANGUP,
    READABLE,
    WHILE_READABLE,
    WRITABLE,
    Reactor,
    current_reactor,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


class Seen:
    """What a socket's function was told."""

    def __init__(self) -> None:
        self.changes: list[int] = []

    def __call__(self, change: int) -> None:
        self.changes.append(change)

    def take(self) -> int:
        told = 0
        for change in self.changes:
            told |= change
        self.changes.clear()
        return told


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.005)


async def test_the_present_state_is_told_first_and_then_each_change_once(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    seen = Seen()
    far.send(b"early")
    current_reactor().watch(near, seen)
    await settle()
    assert seen.take() & (READABLE | WRITABLE) == READABLE | WRITABLE
    await settle()
    assert seen.take() == 0  # not read, and not told again
    far.send(b"more")
    await settle()
    assert seen.take() & READABLE
    far.shutdown(socket.SHUT_WR)
    await settle()
    assert seen.take() & HANGUP
    current_reactor().forget(near)


async def test_another_function_for_the_same_socket_is_told_the_present_state(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    first, second = Seen(), Seen()
    reactor = current_reactor()
    reactor.watch(near, first)
    far.send(b"data")
    await settle()
    assert first.take() & READABLE
    reactor.watch(near, second)
    await settle()
    assert second.take() & READABLE
    assert first.take() == 0
    assert reactor.watched == 1
    reactor.forget(near)
    assert reactor.watched == 0


async def test_that_there_is_room_is_told_only_to_those_who_want_to_know(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    seen = Seen()
    reactor = current_reactor()
    reactor.watch(near, seen, ALL_BUT_ROOM)
    await settle()
    assert seen.changes == []
    far.send(b"x")
    await settle()
    assert seen.take() == READABLE
    reactor.watch(near, seen)
    await settle()
    assert seen.take() & WRITABLE
    reactor.forget(near)


async def test_what_nobody_takes_is_told_in_every_turn_where_that_was_asked_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    reactor = current_reactor()
    told: list[int] = []

    def take_the_third_time(change: int) -> None:
        told.append(change)
        if len(told) == 3:
            near.recv(1)

    reactor.watch(near, take_the_third_time, WHILE_READABLE)
    await settle()
    assert told == []
    far.send(b"x")
    await settle()
    assert told == [READABLE] * 3
    reactor.forget(near)


async def test_a_socket_closed_is_told_of_no_more_even_in_the_turn_it_was_closed_in() -> None:
    reactor = current_reactor()
    pairs = [socket.socketpair() for _ in range(2)]
    told: list[int] = []

    def close_both(number: int) -> None:
        told.append(number)
        for near, _ in pairs:
            reactor.close_socket(near)

    for number, (near, _) in enumerate(pairs):
        near.setblocking(False)
        reactor.watch(near, lambda _change, number=number: close_both(number))
    await settle()
    assert len(told) == 1
    assert reactor.watched == 0
    for near, far in pairs:
        assert near.fileno() == -1
        assert far.recv(1) == b""
        far.close()


async def test_a_socket_forgotten_is_told_of_no_more_even_in_the_turn_it_was_forgotten_in() -> None:
    reactor = current_reactor()
    pairs = [socket.socketpair() for _ in range(2)]
    told: list[int] = []

    def forget_both(number: int) -> None:
        told.append(number)
        for near, _ in pairs:
            reactor.forget(near)

    for number, (near, _) in enumerate(pairs):
        near.setblocking(False)
        reactor.watch(near, lambda _change, number=number: forget_both(number))
    await settle()
    for _, far in pairs:
        far.send(b"x")
    await settle()
    assert len(told) == 1
    for near, far in pairs:
        near.close()
        far.close()


async def test_actions_run_after_the_sockets_and_the_ends_after_all(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, _far = pair
    reactor = current_reactor()
    order: list[str] = []

    def on_ready(_change: int) -> None:
        order.append("socket")
        reactor.at_end(lambda: order.append("end"))
        reactor.soon(lambda: order.append("soon"))

    reactor.watch(near, on_ready)
    await settle()
    assert order == ["socket", "soon", "end"]
    reactor.soon(lambda: order.append("from a task"))
    reactor.at_end(lambda: order.append("its end"))
    await settle()
    assert order[3:] == ["from a task", "its end"]
    reactor.forget(near)


async def test_an_action_asked_for_by_an_action_waits_for_the_next_turn() -> None:
    reactor = current_reactor()
    turns: list[int] = []

    def again() -> None:
        turns.append(reactor.turns)
        if len(turns) < 3:
            reactor.soon(again)

    reactor.soon(again)
    await settle()
    assert turns == [turns[0], turns[0] + 1, turns[0] + 2]


async def test_a_fault_in_one_function_does_not_keep_the_others_from_their_turn(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    near, far = pair
    reactor = current_reactor()
    seen = Seen()

    def broken(_change: int) -> None:
        raise RuntimeError("a bug")

    reactor.watch(near, broken)
    far.setblocking(False)
    reactor.watch(far, seen)
    reactor.soon(lambda: broken(0))
    reactor.at_end(lambda: seen(HANGUP))
    await settle()
    assert seen.take() & HANGUP
    assert "reactor_failed" in caplog.text
    reactor.forget(near)
    reactor.forget(far)


async def test_timers_go_by_trios_clock_in_order(autojump_clock: trio.testing.MockClock) -> None:
    reactor = current_reactor()
    began = trio.current_time()
    fired: list[tuple[str, float]] = []

    def note(name: str) -> None:
        fired.append((name, trio.current_time() - began))

    late = reactor.call_later(50, lambda: note("late"))
    reactor.call_later(20, lambda: note("second"))
    reactor.call_later(10, lambda: note("first"))
    cancelled = reactor.call_later(15, lambda: note("never"))
    cancelled.cancel()
    assert cancelled.cancelled
    await trio.sleep(30)
    assert [name for name, _ in fired] == ["first", "second"]
    assert [at for _, at in fired] == pytest.approx([10, 20])
    late.cancel()
    await trio.sleep(100)
    assert len(fired) == 2


async def test_each_run_has_one_reactor() -> None:
    assert current_reactor() is current_reactor()


def test_another_run_has_another_one() -> None:
    async def mine() -> Reactor:
        return current_reactor()

    assert trio.run(mine) is not trio.run(mine)


async def test_a_change_of_a_socket_that_is_gone_is_not_told_of_the_next_with_its_number(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    reactor = current_reactor()
    gone, gone_far = socket.socketpair()
    gone.setblocking(False)
    number = gone.fileno()
    seen = Seen()
    opened: list[socket.socket] = []

    def replace(change: int) -> None:
        if change & READABLE:
            reactor.forget(gone)
            gone.close()
            opened.extend(socket.socketpair())
            opened[0].setblocking(False)
            reactor.watch(opened[0], seen)

    reactor.watch(near, replace)
    reactor.watch(gone, lambda _change: None)
    await settle()
    far.send(b"x")
    gone_far.close()
    await settle()
    assert opened[0].fileno() == number
    assert seen.changes == [WRITABLE]
    reactor.forget(near)
    reactor.forget(opened[0])
    for sock in opened:
        sock.close()


async def test_what_asks_for_the_end_of_a_turn_again_and_again_keeps_nobody_waiting() -> None:
    reactor = current_reactor()
    turns: list[int] = []

    def again() -> None:
        turns.append(reactor.turns)
        if len(turns) < 10:
            reactor.at_end(again)

    reactor.at_end(again)
    await settle()
    assert len(set(turns)) == 10
