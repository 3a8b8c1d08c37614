"""The thread of a gateway: the reactor's loop, with trio as its guest.

trio's guest mode (https://trio.readthedocs.io/en/stable/reference-lowlevel.html) leaves the thread
to the host while no task of trio's has anything to do, and waits for trio's own descriptors and
deadlines in a helper thread. So a message between an application and a tunnel costs what this loop
costs, and everything else is written as trio tasks all the same.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from qproxy.net.reactor import Reactor, adopt

ResultT = TypeVar("ResultT")

#: Objects made, more than freed, before the garbage collector looks for cycles among the new ones.
GC_THRESHOLD = 20_000


class _Host:
    """What trio asks of the loop it is a guest of."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._calls: deque[Callable[[], object]] = deque()
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        reactor.watch_descriptor(self._waker, self._on_woken)

    def call_soon(self, action: Callable[[], object]) -> None:
        """From this thread."""
        self._calls.append(action)

    def call_soon_from_thread(self, action: Callable[[], object]) -> None:
        """From any thread."""
        self._calls.append(action)
        os.eventfd_write(self._waker, 1)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Turn the reactor and let trio have its turns."""
        reactor, calls = self._reactor, self._calls
        while not done():
            reactor.turn(wait=not calls)
            for _ in range(len(calls)):
                calls.popleft()()

    def close(self) -> None:
        """Let go of the descriptors."""
        self._reactor.close()
        os.close(self._waker)

    def _on_woken(self, _change: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._waker)


def spare_garbage_collection() -> None:
    """Look for cycles less often, for the whole process.

    What is loaded by now stays, and what comes and goes is nearly all freed by reference counts.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)


def run(main: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Like :func:`trio.run`, but the data plane has the thread first.

    Args:
        main: the async function to run.

    Returns:
        What it returns.

    Raises:
        Exception: what it raises.
    """
    reactor = Reactor()
    host = _Host(reactor)
    results: list[Any] = []

    async def with_reactor() -> ResultT:
        adopt(reactor)
        return await main()

    try:
        trio.lowlevel.start_guest_run(
            with_reactor,
            run_sync_soon_threadsafe=host.call_soon_from_thread,
            run_sync_soon_not_threadsafe=host.call_soon,
            done_callback=results.append,
        )
        host.run_until(lambda: bool(results))
    finally:
        host.close()
    result: ResultT = results[0].unwrap()
    return result
