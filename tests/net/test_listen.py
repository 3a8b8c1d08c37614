"""Listening, accepting and dialling."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from qproxy.address import TcpAddress, UnixAddress
from qproxy.errors import Reason
from qproxy.net.endpoint import ConnectionLost
from qproxy.net.listen import (
    ACCEPTS_IN_A_ROW,
    Acceptor,
    Connecting,
    accept,
    open_connection,
    open_listeners,
    reserve_port,
)
from qproxy.net.reactor import current_reactor


@pytest.fixture
def unix_path(tmp_path):
    return tmp_path / "s.sock"


async def connects(address) -> None:
    (listener,) = open_listeners(address)
    with listener:
        where = address
        if isinstance(address, TcpAddress):
            where = TcpAddress(*listener.getsockname()[:2])
        with await open_connection(where, 5) as dialled, await accept(listener) as accepted:
            assert not dialled.getblocking()
            assert not accepted.getblocking()
            dialled.send(b"x")
            await trio.lowlevel.wait_readable(accepted)
            assert accepted.recv(10) == b"x"


async def test_tcp():
    await connects(TcpAddress("127.0.0.1", 0))


async def test_ipv6():
    try:
        await connects(TcpAddress("::1", 0))
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("no IPv6 loopback here")


async def test_unix(unix_path):
    await connects(UnixAddress(str(unix_path)))


async def test_unix_socket_is_for_its_owner_alone(unix_path):
    before = os.umask(0o022)
    try:
        (listener,) = open_listeners(UnixAddress(str(unix_path)))
        with listener:
            assert stat.S_IMODE(unix_path.stat().st_mode) == 0o600
        assert os.umask(0o022) == 0o022, "the umask was not put back"
    finally:
        os.umask(before)


async def test_stale_unix_socket_is_replaced(unix_path):
    (listener,) = open_listeners(UnixAddress(str(unix_path)))
    listener.close()
    assert unix_path.exists()
    await connects(UnixAddress(str(unix_path)))


@pytest.mark.parametrize("backlog", [0, 10])
async def test_unix_socket_in_use_is_left_alone(unix_path, backlog):
    address = UnixAddress(str(unix_path))
    (listener,) = open_listeners(address, backlog)
    waiting = []
    try:
        if backlog == 0:  # full: nobody can tell it from a listener that never accepts
            waiting.append(await open_connection(address, 5))
        with pytest.raises(OSError) as caught:
            open_listeners(address)
        assert caught.value.errno == errno.EADDRINUSE
        assert unix_path.exists()
    finally:
        for sock in (listener, *waiting):
            sock.close()


async def test_a_file_that_is_no_socket_is_left_alone(unix_path):
    unix_path.write_text("precious")
    with pytest.raises(OSError) as caught:
        open_listeners(UnixAddress(str(unix_path)))
    assert caught.value.errno == errno.EADDRINUSE
    assert unix_path.read_text() == "precious"


async def test_port_in_use_is_refused_unless_shared():
    (first,) = open_listeners(TcpAddress("127.0.0.1", 0), reuse_port=True)
    with first:
        address = TcpAddress(*first.getsockname())
        with pytest.raises(OSError):
            open_listeners(address)
        (second,) = open_listeners(address, reuse_port=True)
        second.close()


async def test_a_name_with_several_addresses_listens_on_one_port(monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0))
        for host in ("127.0.0.1", "127.0.0.2")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    listeners = open_listeners(TcpAddress("both.test", 0))
    assert [s.getsockname()[0] for s in listeners] == ["127.0.0.1", "127.0.0.2"]
    assert len({s.getsockname()[1] for s in listeners}) == 1
    for listener in listeners:
        listener.close()


async def failure(address, timeout_s=5) -> Reason:
    with pytest.raises(ConnectionLost) as caught:
        await open_connection(address, timeout_s)
    return caught.value.reason


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_refused():
    assert await failure(TcpAddress("127.0.0.1", closed_port())) is Reason.CONNECT_REFUSED


async def test_no_unix_socket_there(tmp_path: Path):
    assert await failure(UnixAddress(str(tmp_path / "none"))) is Reason.CONNECT_FAILED


class Resolver(trio.abc.HostnameResolver):
    """Answers with fixed addresses; None for no such name, Ellipsis for never."""

    def __init__(self, addresses) -> None:
        self.addresses = addresses

    async def getaddrinfo(self, host, port, *_, **__):
        if self.addresses is ...:
            await trio.sleep_forever()
        if self.addresses is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.addresses
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_no_such_name():
    trio.socket.set_custom_hostname_resolver(Resolver(None))
    assert await failure(TcpAddress("nowhere.test", 1)) is Reason.CONNECT_FAILED


async def test_a_resolver_that_hangs_is_a_timeout(autojump_clock):
    trio.socket.set_custom_hostname_resolver(Resolver(...))
    assert await failure(TcpAddress("slow.test", 1)) is Reason.CONNECT_TIMEOUT
    assert trio.current_time() > 0


async def test_the_next_address_is_tried():
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    with listener:
        trio.socket.set_custom_hostname_resolver(Resolver(["127.0.0.2", "127.0.0.1"]))
        address = TcpAddress("two.test", listener.getsockname()[1])
        with await open_connection(address, 5) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


async def test_no_answer_is_a_timeout(autojump_clock):
    # A listener whose backlog is full drops further SYNs: nobody ever answers.
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0), backlog=0)
    address = TcpAddress(*listener.getsockname())
    with listener, await open_connection(address, 5):
        assert await failure(address, 3) is Reason.CONNECT_TIMEOUT


async def test_accepting_what_waits_already_gives_the_other_tasks_their_turn():
    number = 20
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with listener, contextlib.ExitStack() as sockets:
        for _ in range(number):
            sockets.enter_context(socket.create_connection(listener.getsockname()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            for _ in range(number):
                sockets.enter_context(await accept(listener))
            assert turns >= number // 2  # trio shuffles who comes first
            nursery.cancel_scope.cancel()


async def test_closing_the_listener_wakes_accept():
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def accepting():
            with pytest.raises(trio.ClosedResourceError):
                await accept(listener)

        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(listener)
        listener.close()


class FailingListener:
    """A listener whose accept fails so many times with an errno."""

    def __init__(self, listener, number, times):
        self._listener, self._number, self._times = listener, number, times

    def accept(self):
        if self._times:
            self._times -= 1
            raise OSError(self._number, "made up")
        return self._listener.accept()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EMFILE, errno.ENOBUFS])
async def test_accept_outlives_passing_errors(number, autojump_clock):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    with listener, await open_connection(TcpAddress(*listener.getsockname()), 5):
        (await accept(FailingListener(listener, number, 3))).close()


async def test_accept_gives_up_on_a_broken_listener():
    with pytest.raises(OSError) as caught:
        await accept(FailingListener(None, errno.EINVAL, 1))
    assert caught.value.errno == errno.EINVAL


async def test_a_reserved_port_is_shared_by_those_who_listen_and_takes_nothing_itself():
    (held,) = reserve_port(TcpAddress("127.0.0.1", 0))
    address = TcpAddress(*held.getsockname()[:2])
    with held:
        with pytest.raises(ConnectionLost) as refused:
            await open_connection(address, 5)
        assert refused.value.reason is Reason.CONNECT_REFUSED
        (first,) = open_listeners(address, reuse_port=True)
        (second,) = open_listeners(address, reuse_port=True)
        with first, contextlib.ExitStack() as dialled:
            with second:
                counts = {first: 0, second: 0}
                for _ in range(64):
                    dialled.enter_context(await open_connection(address, 5))
                for listener in counts:
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            dialled.enter_context(listener.accept()[0])
                            counts[listener] += 1
                assert sum(counts.values()) == 64
                assert min(counts.values()) > 0
            # One of them is gone: the other gets all.
            for _ in range(8):
                dialled.enter_context(await open_connection(address, 5))
                dialled.enter_context(first.accept()[0])


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_port_on_which_somebody_listens_cannot_be_reserved(reuse_port):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0), reuse_port=reuse_port)
    with listener, pytest.raises(OSError, match="in use"):
        reserve_port(TcpAddress(*listener.getsockname()[:2]))


# --- for the reactor -----------------------------------------------------------------------


class ExhaustibleListener:
    """A listener that finds the system out of descriptors while the test says so."""

    def __init__(self, listener):
        self.exhausted = True
        self._listener = listener

    def accept(self):
        if self.exhausted:
            raise OSError(errno.EMFILE, "as the test wants it")
        return self._listener.accept()

    def fileno(self):
        return self._listener.fileno()


async def test_a_pause_outlasts_the_rest_after_the_system_ran_out(autojump_clock):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    exhaustible = ExhaustibleListener(listener)
    accepted = []
    acceptor = Acceptor(exhaustible, lambda sock, _address: accepted.append(sock))
    with listener, socket.create_connection(listener.getsockname()):
        await trio.testing.wait_all_tasks_blocked()
        exhaustible.exhausted = False
        acceptor.pause()
        await trio.sleep(60)
        assert accepted == []
        acceptor.resume()
        await trio.sleep(60)
        assert len(accepted) == 1
        accepted[0].close()
        acceptor.close()


async def test_accepting_goes_on_after_the_system_ran_out(autojump_clock):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    exhaustible = ExhaustibleListener(listener)
    accepted = []
    acceptor = Acceptor(exhaustible, lambda sock, _address: accepted.append(sock))
    with listener, socket.create_connection(listener.getsockname()):
        await trio.sleep(60)
        exhaustible.exhausted = False
        await trio.sleep(60)
        assert len(accepted) == 1
        accepted[0].close()
        acceptor.close()


class CountedListener:
    """A listener that counts how often it was asked for a connection."""

    def __init__(self, listener):
        self.asked = 0
        self._listener = listener

    def accept(self):
        self.asked += 1
        return self._listener.accept()

    def fileno(self):
        return self._listener.fileno()


async def test_a_connection_now_and_then_costs_one_call():
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    counted = CountedListener(listener)
    with listener, contextlib.ExitStack() as sockets:
        acceptor = Acceptor(counted, lambda sock, _address: sockets.enter_context(sock))
        for number in range(1, 11):
            sockets.enter_context(socket.create_connection(listener.getsockname()))
            await trio.testing.wait_all_tasks_blocked()
            assert counted.asked == number
            current_reactor().turn(wait=False)  # what has come over the connection, say
        acceptor.close()


async def test_many_that_wait_are_taken_in_few_turns_and_calls():
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    counted = CountedListener(listener)
    reactor, number, turns = current_reactor(), 2 * ACCEPTS_IN_A_ROW, set()
    with listener, contextlib.ExitStack() as sockets:

        def on_accepted(sock, _address):
            sockets.enter_context(sock)
            turns.add(reactor.turns)

        for _ in range(number):
            sockets.enter_context(socket.create_connection(listener.getsockname()))
        acceptor = Acceptor(counted, on_accepted)
        await trio.testing.wait_all_tasks_blocked()
        assert counted.asked == number + 1  # the last one was asked for in vain
        assert len(turns) == 3
        acceptor.close()


async def test_a_fault_of_the_listener_is_told_and_rested_from(autojump_clock, caplog):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    accepted = []
    faults = 3

    class Faulty(CountedListener):
        def accept(self):
            if self.asked < faults:
                self.asked += 1
                raise OSError(errno.EINVAL, "as the test wants it")
            return super().accept()

    faulty = Faulty(listener)
    acceptor = Acceptor(faulty, lambda sock, _address: accepted.append(sock))
    with listener, socket.create_connection(listener.getsockname()):
        await trio.testing.wait_all_tasks_blocked()
        assert faulty.asked == 1
        await trio.sleep(60)
        assert len(accepted) == 1
        assert [record.getMessage() for record in caplog.records] == ["reactor_failed"] * faults
        accepted[0].close()
        acceptor.close()


async def test_a_listener_closed_while_it_rests_or_pauses_is_watched_no_more(autojump_clock):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()):
        resting = Acceptor(ExhaustibleListener(listener), None)
        await trio.testing.wait_all_tasks_blocked()
        resting.close()
        paused = Acceptor(listener, None)
        paused.pause()
        paused.close()
        paused.resume()
        await trio.sleep(60)
        assert current_reactor().watched == 0


async def test_what_is_sent_leaves_at_once_on_either_end_however_it_was_made():
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    address = TcpAddress(*listener.getsockname())
    with listener:
        made = [await open_connection(address, 5), await accept(listener)]
        acceptor = Acceptor(listener, lambda sock, _address: made.append(sock))
        Connecting(address, socket.AF_INET, listener.getsockname(), made.append).begin()
        await trio.testing.wait_all_tasks_blocked()
        acceptor.close()
    assert len(made) == 4
    for sock in made:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_blocking(sock.fileno())
        sock.close()


async def test_a_storm_of_connections_leaves_the_open_ones_their_turns():
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    reactor = current_reactor()
    per_turn = {}
    with listener, contextlib.ExitStack() as storm:

        def dial(count):
            for _ in range(count):
                storm.enter_context(socket.create_connection(listener.getsockname()))

        def on_accepted(sock, _address):
            storm.enter_context(sock)
            per_turn[reactor.turns] = per_turn.get(reactor.turns, 0) + 1
            if sum(per_turn.values()) < 200:
                dial(2)

        acceptor = Acceptor(listener, on_accepted)
        dial(20)
        with trio.fail_after(20):
            while sum(per_turn.values()) < 200:
                await trio.sleep(0.001)
        acceptor.close()
    # Once for the change, and once to go on with.
    assert max(per_turn.values()) <= 2 * ACCEPTS_IN_A_ROW


class SlowSocket(socket.socket):
    """Connects only when it is looked at for the third time."""

    tries = 0

    def connect_ex(self, sockaddr):
        self.tries += 1
        if self.tries < 3:
            return errno.EINPROGRESS if self.tries == 1 else errno.EALREADY
        self.setblocking(True)
        answer = super().connect_ex(sockaddr)
        self.setblocking(False)
        return answer


async def test_the_connected_socket_is_the_callees_alone(monkeypatch):
    (listener,) = open_listeners(TcpAddress("127.0.0.1", 0))
    sockaddr = listener.getsockname()
    results = []
    with listener:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", SlowSocket)
            Connecting(TcpAddress(*sockaddr), socket.AF_INET, sockaddr, results.append).begin()
        assert results == []
        assert current_reactor().watched == 1
        await trio.testing.wait_all_tasks_blocked()
        (connected,) = results
        assert connected.getpeername() == sockaddr
        assert current_reactor().watched == 0
        connected.close()


async def test_running_out_of_descriptors_is_a_failure_to_connect(monkeypatch):
    def exhausted(*_):
        raise OSError(errno.EMFILE, "as the test wants it")

    results = []
    address = TcpAddress("127.0.0.1", 9)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", exhausted)
        connecting = Connecting(address, socket.AF_INET, ("127.0.0.1", 9), results.append)
        connecting.begin()
        connecting.cancel()
    (failure,) = results
    assert failure.reason is Reason.CONNECT_FAILED
