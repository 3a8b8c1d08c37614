"""How long the loop asks before it sleeps: what comes of it decides."""

from __future__ import annotations

import itertools

from qproxy.net.busy_poll import MIN_MOMENT_S, BusyPoll, Changes

MOST_S = 100e-6
CHANGE: Changes = [(3, 1)]


class Kernel:
    """Changes that come at given times, on a clock that every question moves."""

    def __init__(self, *times: float) -> None:
        self.now = 0.0
        self.times = list(times)
        self.sleeps = 0
        self.asked = 0
        self.gave_way = 0

    def poll(self, timeout_s: float) -> Changes:
        self.asked += 1
        self.now += 1e-6
        if timeout_s < 0 and self.times[0] > self.now:
            self.sleeps += 1
            self.now = self.times[0]
        if self.times and self.times[0] <= self.now:
            self.times.pop(0)
            return CHANGE
        return []

    def clock(self) -> float:
        return self.now

    def give_way(self) -> None:
        self.gave_way += 1

    def busy_poll(self, most_s: float = MOST_S) -> BusyPoll:
        return BusyPoll(self.poll, most_s, clock=self.clock, give_way=self.give_way)


def regular(count: int, every_s: float) -> list[float]:
    return [number * every_s for number in range(1, count + 1)]


def test_changes_that_keep_coming_soon_are_waited_for_awake() -> None:
    kernel = Kernel(*regular(100, 50e-6))
    busy = kernel.busy_poll()
    for _ in range(20):
        busy.wait()
    kernel.sleeps = 0
    for _ in range(80):
        assert busy.wait() == CHANGE
    assert kernel.sleeps == 0
    assert kernel.gave_way > 80
    assert 50e-6 <= busy.moment_s <= MOST_S


def test_a_quiet_gateway_stops_asking_and_sleeps() -> None:
    kernel = Kernel(*regular(20, 20e-6), *(1 + n for n in range(1, 30)))
    busy = kernel.busy_poll()
    for _ in range(40):
        busy.wait()
    assert busy.moment_s == 0
    asked, gave_way = kernel.asked, kernel.gave_way
    assert busy.wait() == CHANGE
    assert kernel.asked == asked + 2  # once before it sleeps, and the sleep
    assert kernel.gave_way == gave_way


def test_the_moment_grows_by_doubling_up_to_the_most_and_shrinks_by_halving_to_nothing() -> None:
    kernel = Kernel()
    busy = kernel.busy_poll()
    moments = []
    for pause_s in [busy_s for busy_s in (15e-6, 30e-6, 60e-6, 90e-6) for _ in range(2)] + [1] * 8:
        kernel.times = [kernel.now + pause_s]
        busy.wait()
        moments.append(busy.moment_s)
    assert moments[0] == MIN_MOMENT_S
    assert max(moments) <= MOST_S
    assert moments[7] > moments[0]
    assert moments[-1] == 0
    for before, after in itertools.pairwise(moments[8:]):
        assert after in (before / 2, 0)


def test_nothing_is_asked_twice_where_the_most_is_nothing() -> None:
    kernel = Kernel(*regular(10, 10e-6))
    busy = kernel.busy_poll(0)
    for _ in range(10):
        assert busy.wait() == CHANGE
    assert kernel.gave_way == 0


def test_what_is_there_already_is_taken_without_a_look_at_the_clock() -> None:
    kernel = Kernel(0.0)
    busy = BusyPoll(kernel.poll, MOST_S, clock=None, give_way=None)  # type: ignore[arg-type]
    assert busy.wait() == CHANGE
