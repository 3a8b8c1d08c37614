"""trio as the guest of the data plane's loop: everything trio does still works there."""

from __future__ import annotations

import os
import signal
import socket

import pytest
import trio

from qproxy.net.reactor import current_reactor
from qproxy.runtime.loop import run


def test_what_main_returns_and_raises_comes_out() -> None:
    async def returns() -> str:
        await trio.sleep(0)
        return "done"

    async def raises() -> None:
        await trio.sleep(0)
        raise ValueError("as it was")

    assert run(returns) == "done"
    with pytest.raises(ValueError, match="as it was"):
        run(raises)


@pytest.mark.parametrize("busy_poll_s", [0.0, 100e-6])
def test_sockets_of_the_reactor_and_tasks_of_trios_talk_to_each_other(busy_poll_s: float) -> None:
    rounds = 50

    async def main() -> list[bytes]:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        arrived = trio.Event()
        received: list[bytes] = []

        def on_ready(_change: int) -> None:
            nonlocal arrived
            try:
                received.append(near.recv(100))
            except BlockingIOError:
                return
            arrived.set()

        with near, far, trio.fail_after(20):
            current_reactor().busy_poll(busy_poll_s)
            current_reactor().watch(near, on_ready)
            for number in range(rounds):
                arrived = trio.Event()
                await trio.lowlevel.wait_writable(far)
                far.send(b"%d" % number)
                await arrived.wait()
            current_reactor().forget(near)
        return received

    received = run(main)
    assert received == [b"%d" % number for number in range(rounds)]


def test_actions_timers_threads_and_signals_reach_their_tasks() -> None:
    async def main() -> list[str]:
        order: list[str] = []
        done = trio.Event()
        with trio.fail_after(20), trio.open_signal_receiver(signal.SIGUSR1) as signals:
            current_reactor().soon(lambda: order.append("soon"))
            current_reactor().call_later(0.01, done.set)
            await done.wait()
            order.append("timer")
            order.append(await trio.to_thread.run_sync(lambda: "thread"))
            os.kill(os.getpid(), signal.SIGUSR1)
            async for _ in signals:
                order.append("signal")
                break
        return order

    assert run(main) == ["soon", "timer", "thread", "signal"]


def test_a_cancelled_main_cleans_up() -> None:
    cleaned: list[bool] = []

    async def main() -> None:
        with trio.move_on_after(0.01):
            try:
                await trio.sleep_forever()
            finally:
                cleaned.append(True)

    run(main)
    assert cleaned == [True]
