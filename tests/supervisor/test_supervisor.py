"""The supervisor with workers that do as the test says: placing, reloading, merging."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.admin.assess import assess
from qproxy.admin.merge import retired
from qproxy.admin.status import WorkerState
from qproxy.config.model import TunnelConfig
from qproxy.supervisor import supervisor as module
from qproxy.supervisor.ports import Ports
from qproxy.supervisor.supervisor import HOLD_S, Supervisor
from tests.admin import made
from tests.runtime.test_reload import Recorder
from tests.supervisor.test_pure import CONFIG

WHERE = TunnelConfig(listen=TcpAddress("127.0.0.1", 0), handshake_timeout_s=60.0)
DIALLED = replace(CONFIG, tunnel=WHERE, listeners={}, services={})


class Log(Recorder):
    """A log that keeps its lines."""

    def bind(self, **_fields):
        return self


class FakeSlot:
    """A worker's place without a worker."""

    def __init__(self, number):
        self.number = number
        self.state = WorkerState.RUNNING
        self.last = made.GATEWAY
        self.gone = None
        self.audit_failed = False
        self.due_s = 0.0
        self.told = []
        self.answers = {"prepare": {"ok": True}, "commit": {}}
        self.asked = []
        self.given = []

    def starts_within(self, seconds):
        return self.state in {WorkerState.STARTING, WorkerState.WAITING} and self.due_s <= seconds

    def tell(self, kind, sock=None, **fields):
        self.told.append((kind, fields))
        if sock is not None:
            self.given.append(sock)
        return True

    async def ask(self, kind, _timeout_s):
        await trio.lowlevel.checkpoint()
        self.asked.append(kind)
        return self.answers[kind]

    async def refresh(self):
        await trio.lowlevel.checkpoint()

    def status(self):
        return replace(made.WORKER, number=self.number, state=self.state)


@asynccontextmanager
async def supervisor(config=DIALLED, slots=2):
    log = Log()
    ports = Ports(config)
    found = Supervisor(config, slots, ports, log)
    found.slots = [FakeSlot(number) for number in range(slots)]
    found.log = log
    try:
        async with trio.open_nursery() as nursery:
            for sock in ports.tunnel:
                nursery.start_soon(found._accept_tunnels, sock, nursery)
            yield found
            nursery.cancel_scope.cancel()
    finally:
        ports.close()
        for slot in found.slots:
            for sock in slot.given:
                sock.close()


async def dial(found):
    """One more tunnel, once it is where it goes or waits."""
    (listening,) = found._ports.tunnel
    sock = socket.create_connection(listening.getsockname())
    with trio.move_on_after(0.2):
        before = sum(len(slot.given) for slot in found.slots)
        while sum(len(slot.given) for slot in found.slots) == before:
            await trio.sleep(0.01)
    return sock


def placed(found):
    return [len(slot.given) for slot in found.slots]


async def test_tunnels_go_round(autojump_clock):
    async with supervisor() as found:
        dialled = [await dial(found) for _ in range(4)]
        assert placed(found) == [2, 2]
        assert [fields["ticket"] for _, fields in found.slots[0].told] == [0, 2]
        found._on_message(0, {"kind": "over", "ticket": 0})
        dialled.append(await dial(found))
        assert placed(found) == [3, 2]
        for sock in dialled:
            sock.close()


async def test_a_tunnel_waits_for_the_worker_that_lost_its_own(autojump_clock):
    async with supervisor() as found:
        first, second = await dial(found), await dial(found)
        slot = found.slots[0]
        slot.state = WorkerState.WAITING
        found._on_change(0)
        again = await dial(found)
        assert placed(found) == [1, 1]
        slot.state = WorkerState.STARTING
        found._on_change(0)
        await trio.sleep(HOLD_S / 2)
        assert placed(found) == [1, 1]
        slot.state = WorkerState.RUNNING
        found._on_change(0)
        await trio.sleep(0.1)
        assert placed(found) == [2, 1]
        for sock in (first, second, again):
            sock.close()


async def test_a_tunnel_does_not_wait_for_ever(autojump_clock):
    async with supervisor() as found:
        slot = found.slots[0]
        slot.state = WorkerState.STARTING
        one = await dial(found)
        assert placed(found) == [0, 0]
        await trio.sleep(HOLD_S)
        assert placed(found) == [0, 1]
        # Nor at all for one that is not coming soon.
        slot.state, slot.due_s = WorkerState.WAITING, HOLD_S + 1
        two = await dial(found)
        assert placed(found) == [0, 2]
        # And where nobody is there, no longer than a handshake may take.
        found.slots[1].state = WorkerState.ENDING
        three = await dial(found)
        await trio.sleep(HOLD_S + WHERE.handshake_timeout_s + 1)
        assert three.recv(1) == b""
        for sock in (one, two, three):
            sock.close()


@pytest.fixture
def unchanged(monkeypatch):
    """The configuration on disk is the one that runs."""

    async def compare(_config, _log):
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(module, "compare_with_file", compare)


async def test_a_reload_is_taken_into_use_by_all(unchanged):
    async with supervisor() as found:
        await found._reload()
        assert [slot.asked for slot in found.slots] == [["prepare", "commit"]] * 2
        ((level, event, fields),) = found.log.lines
        assert (level, event, fields["workers"]) == ("info", "reloaded", [0, 1])


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ({"ok": False, "detail": "ca.pem: no certificate", "hint": None}, "ca.pem: no certificate"),
        (None, "the worker did not answer"),
        ({}, None),
    ],
)
async def test_a_reload_that_one_worker_cannot_do_is_taken_by_none(unchanged, answer, detail):
    async with supervisor() as found:
        found.slots[1].answers["prepare"] = answer
        await found._reload()
        assert [slot.asked for slot in found.slots] == [["prepare"]] * 2
        ((level, event, fields),) = found.log.lines
        assert (level, event) == ("error", "reload_failed")
        assert (fields["failed_in"], fields["detail"]) == (1, detail)


async def test_a_worker_that_is_not_there_is_not_asked(unchanged):
    async with supervisor() as found:
        found.slots[0].state = WorkerState.STARTING
        await found._reload()
        assert [slot.asked for slot in found.slots] == [[], ["prepare", "commit"]]
        found._draining = True
        found.log.lines.clear()
        await found._reload()
        assert found.log.lines == []


async def test_the_snapshot_is_of_all_and_of_each():
    async with supervisor() as found:
        found.slots[0].last, found.slots[0].gone = None, retired(made.GATEWAY)
        whole = await found.snapshot()
        assert [worker.number for worker in whole.workers] == [0, 1]
        assert whole.peers[0].bytes_sent == 2 * made.PEER.bytes_sent
        assert len(whole.peers[0].tunnels) == 1
        assert assess(whole).ready
        found._draining = True
        assert not assess(await found.snapshot()).ready


# Ports.


def test_ports_are_reserved_and_given_up(tmp_path):
    from qproxy.address import UnixAddress
    from qproxy.config.model import ListenerConfig

    def listener(name, listen):
        return ListenerConfig(name=name, listen=listen, peer="gw-b", service="web")

    path = tmp_path / "s.sock"
    config = replace(
        DIALLED,
        listeners={
            "tcp": listener("tcp", TcpAddress("127.0.0.1", 0)),
            "unix": listener("unix", UnixAddress(str(path))),
        },
    )

    async def main():
        ports = Ports(config)
        tcp = ports.addresses["tcp"]
        assert isinstance(tcp, TcpAddress)
        assert tcp.port > 0
        assert ports.texts() == {"tcp": [str(tcp)], "unix": ["unix"]}
        assert list(ports.shared) == ["unix"]
        assert path.exists()
        ports.close()
        ports.close()
        assert not path.exists()
        assert (ports.tunnel, ports.shared) == ([], {})

    trio.run(main)
    assert Path(tmp_path).is_dir()
