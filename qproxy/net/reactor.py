"""Readiness of many sockets for the data plane, without a task for each.

Theory of operation
===================

trio runs everything that waits for a reason: tunnels' handshakes, key sources, the admin side. The
connections themselves are too many and too busy for that: a task costs kilobytes, and trio's
scheduler more than the system calls that carry a message. So each data socket is registered here
once, edge-triggered, with a plain function that is called when the kernel says that something has
changed. Functions called from here are short, do not wait, and do not raise.

There is one reactor to a trio run, and it lives in trio's thread, so that nothing needs a lock and
either side may call the other. Who turns it depends on who runs the thread:

* :func:`qproxy.runtime.loop.run` turns it in a loop of its own, in which trio is a guest: a
  message passes through without trio's noticing;
* where trio has the thread to itself (tests, mostly), a system task waits for the reactor's epoll
  descriptor and turns it. Slower, and the same in everything else.

Edge-triggered means: called once for each change. A function reads until the kernel has no more,
or comes back by :meth:`Reactor.soon`; what it leaves is not told again (epoll(7)). Only listening
sockets are told of for as long as somebody waits: most often that is one connection, and to ask
whether there is another would cost each of them a call.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import socket
from collections.abc import Callable
from functools import partial

import trio

from qproxy.log import get_logger
from qproxy.net.busy_poll import BusyPoll

#: There may be something to receive.
READABLE = select.EPOLLIN
#: There is room to send again.
WRITABLE = select.EPOLLOUT
#: The far end has ended its direction, the connection is broken, or urgent data lies in it, beyond
#: which one read does not go: reading finds out which. From here on there may be more although a
#: read brought less than was asked for.
HANGUP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
#: The connection is broken.
BROKEN = select.EPOLLERR

#: Sockets told of in one turn, at most; the others have theirs in the next.
MAX_EVENTS = 256

#: Timers are looked at no more often than this, in seconds.
TIMER_GRAIN_S = 0.05

#: What a socket's function is told: every change ...
ALL_CHANGES = READABLE | WRITABLE | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
#: ... every change but that there is room to send again, until :meth:`Reactor.watch` is called
#: again: a fresh connection has room, and telling that would cost it a turn ...
ALL_BUT_ROOM = ALL_CHANGES & ~WRITABLE
#: ... or in every turn that there is something, as long as there is.
WHILE_READABLE = READABLE

OnReady = Callable[[int], None]


class Timer:
    """A call that is due at some time. :meth:`cancel` is cheap and may come late."""

    __slots__ = ("_action", "at")

    def __init__(self, at: float, action: Callable[[], None]) -> None:
        self.at = at
        self._action: Callable[[], None] | None = action

    @property
    def cancelled(self) -> bool:
        """It was cancelled, or has been called."""
        return self._action is None

    def cancel(self) -> None:
        """Do not call. Lets go of the action at once."""
        self._action = None

    def fire(self) -> None:
        """Call it, once."""
        action, self._action = self._action, None
        if action is not None:
            action()


class Reactor:
    """See this module's theory of operation.

    Attributes:
        now: monotonic time at the beginning of this turn, on trio's clock, in seconds.
        turning: inside a turn: what is asked for at its end will be done.
        turns: turns so far.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._poll = partial(self._epoll.poll, maxevents=MAX_EVENTS)
        self._busy_poll = BusyPoll(self._poll)
        self._ready: dict[int, OnReady] = {}
        #: Descriptors forgotten in this turn. One may stand for another socket by now, and what
        #: this turn's changes say of it is not about that.
        self._forgotten: set[int] = set()
        self._soon: list[Callable[[], None]] = []
        self._at_end: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_numbers = itertools.count()
        self._timers_changed = trio.Event()
        self._log = get_logger(__name__)
        self._wake: Callable[[], None] | None = None
        self.now = 0.0
        self.turning = False
        self.turns = 0

    def time(self) -> float:
        """The time, for one who may be inside a turn, where it does not pass."""
        return self.now if self.turning else trio.current_time()

    def fileno(self) -> int:
        """The epoll descriptor: readable when a turn would find something."""
        return self._epoll.fileno()

    @property
    def pending(self) -> bool:
        """A turn has something to do, whatever the kernel says."""
        return bool(self._soon or self._at_end)

    @property
    def watched(self) -> int:
        """Sockets watched."""
        return len(self._ready)

    def watch(self, sock: socket.socket, on_ready: OnReady, told: int = ALL_CHANGES) -> None:
        """Call ``on_ready`` with the changes of a non-blocking socket, the present state first.

        Its argument is a combination of READABLE, WRITABLE and HANGUP. Again for the same socket:
        another function from now on, and it, too, is told of the present state first.

        Args:
            sock: the caller's; to be forgotten before it is closed.
            on_ready: see above.
            told: of what: ALL_CHANGES, ALL_BUT_ROOM or WHILE_READABLE.

        Raises:
            OSError: the kernel cannot watch it, or has no memory.
        """
        self.watch_descriptor(sock.fileno(), on_ready, told)

    def watch_descriptor(self, number: int, on_ready: OnReady, told: int = ALL_CHANGES) -> None:
        """The same for a descriptor that is no socket."""
        if number in self._ready:
            self._epoll.modify(number, told)
        else:
            self._epoll.register(number, told)
        self._ready[number] = on_ready

    def forget(self, sock: socket.socket) -> None:
        """Watch a socket no more: before it is closed. Idempotent."""
        number = sock.fileno()
        if self._ready.pop(number, None) is not None:
            if self.turning:
                self._forgotten.add(number)
            with contextlib.suppress(OSError):
                self._epoll.unregister(number)

    def close_socket(self, sock: socket.socket) -> None:
        """Watch a socket no more, and close it.

        Only for one that no other process has been given: the kernel itself forgets a socket that
        is closed everywhere, which saves a call.
        """
        number = sock.fileno()
        if self._ready.pop(number, None) is not None and self.turning:
            self._forgotten.add(number)
        sock.close()

    def busy_poll(self, most_s: float) -> None:
        """Look for changes for so long, at most, before sleeping: :mod:`qproxy.net.busy_poll`."""
        self._busy_poll.most_s = most_s

    def soon(self, action: Callable[[], None]) -> None:
        """Call this after the sockets of the turn in progress, or of the next: others go first."""
        self._soon.append(action)
        if self._wake is not None and not self.turning:
            self._wake()

    def at_end(self, action: Callable[[], None]) -> None:
        """Call this at the end of the turn in progress, or of the next where that end has come."""
        self._at_end.append(action)
        if self._wake is not None and not self.turning:
            self._wake()

    def call_later(self, delay_s: float, action: Callable[[], None]) -> Timer:
        """Call this after so many seconds of trio's clock, or up to TIMER_GRAIN_S later."""
        timer = Timer(trio.current_time() + delay_s, action)
        first = not self._timers or timer.at < self._timers[0][0]
        heapq.heappush(self._timers, (timer.at, next(self._timer_numbers), timer))
        if first:
            self._timers_changed.set()
        return timer

    def turn(self, *, wait: bool) -> None:
        """Tell of what has changed.

        Args:
            wait: sleep until something has, if there is nothing else to do.
        """
        if wait and not (self._soon or self._at_end):
            changes = self._busy_poll.wait()
        else:
            changes = self._poll(0)
        self.turns += 1
        self.now = trio.current_time()
        self.turning = True
        ready, forgotten = self._ready, self._forgotten
        for number, change in changes:
            on_ready = ready.get(number)
            if on_ready is not None and number not in forgotten:
                try:
                    on_ready(change)
                except Exception as error:  # a fault of ours costs what it was about, not the rest
                    self._log.unexpected("reactor_failed", error)
        if self._soon:
            actions, self._soon = self._soon, []
            for action in actions:
                self._call(action)
        if self._at_end:
            actions, self._at_end = self._at_end, []
            for action in actions:
                self._call(action)
        self.turning = False
        forgotten.clear()

    async def keep_time(self) -> None:
        """Call timers when they are due: a task of trio's, whose clock they go by."""
        while True:
            self._timers_changed = trio.Event()
            now = trio.current_time()
            while self._timers and self._timers[0][0] <= now:
                self._call(heapq.heappop(self._timers)[2].fire)
            # Cancelled ones are waited for, too, and together: thousands a second are set and
            # cancelled, and waking up for each would cost more than what they guard.
            deadline = self._timers[0][0] if self._timers else float("inf")
            with trio.move_on_at(max(deadline, now + TIMER_GRAIN_S)):
                await self._timers_changed.wait()

    async def turn_in_trio(self) -> None:
        """Turn for as long as trio has the thread to itself."""
        waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(waker, select.EPOLLIN)
        self._wake = lambda: os.eventfd_write(waker, 1)
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(waker)
                self.turn(wait=False)
                if self.pending:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
        finally:
            self._wake = None
            os.close(waker)
            self.close()

    def close(self) -> None:
        """Watch nothing any more."""
        self._ready.clear()
        self._epoll.close()

    def _call(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a fault of ours costs what it was about, not the rest
            self._log.unexpected("reactor_failed", error)


_current: trio.lowlevel.RunVar[Reactor] = trio.lowlevel.RunVar("qproxy_reactor")


def current_reactor() -> Reactor:
    """The reactor of this trio run, turned by a system task of its own if by nobody else."""
    try:
        return _current.get()
    except LookupError:
        reactor = Reactor()
        adopt(reactor)
        trio.lowlevel.spawn_system_task(reactor.turn_in_trio)
        return reactor


def adopt(reactor: Reactor) -> None:
    """Make a reactor that somebody else turns the one of this trio run."""
    _current.set(reactor)
    trio.lowlevel.spawn_system_task(reactor.keep_time)
