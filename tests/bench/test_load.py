import hashlib
import socket
import threading

import pytest

from bench.load import (
    REQUEST,
    Client,
    LoadError,
    prepare,
    receive_bulk,
    receive_exactly,
    seeded,
    send_bulk,
    serve_connection,
)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        yield listening


def in_thread(target, *arguments) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def serve_one(listening: socket.socket) -> None:
    serve_connection(listening.accept()[0])


def test_client_and_service_move_and_check_bytes_both_ways(listener) -> None:
    thread = in_thread(serve_one, listener)
    client = Client()
    client.handle({"do": "connect", "port": listener.getsockname()[1]})
    for action in ("down", "up", "check_down", "check_up"):
        # Neither a multiple of any buffer nor smaller than all of them.
        assert client.handle({"do": action, "bytes": 1_300_003})["seconds"] > 0
    client.handle({"do": "close"})
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("action", ["check_down", "check_up"])
def test_one_changed_bit_is_found(listener, action: str) -> None:
    total = 100_000

    def flip() -> None:
        sock = listener.accept()[0]
        with sock:
            what, count = REQUEST.unpack(receive_exactly(sock, REQUEST.size))
            data = bytearray(b"".join(seeded(count)))
            if what == b"d":
                digest = hashlib.sha256(data).digest()
                data[total // 2] ^= 1
                sock.sendall(bytes(data) + digest)
            else:
                data = bytearray(receive_exactly(sock, count))
                data[total // 2] ^= 1
                sock.sendall(hashlib.sha256(data).digest())

    thread = in_thread(flip)
    client = Client()
    client.handle({"do": "connect", "port": listener.getsockname()[1]})
    with pytest.raises(LoadError, match="not those that were sent"):
        client.handle({"do": action, "bytes": total})
    client.close()
    thread.join(10)


@pytest.mark.parametrize("total", [10, 5000])
def test_bytes_that_never_come_are_missed(total: int) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"123456789")
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(LoadError, match=f"{total - 9} bytes missing"):
            receive_bulk(near, total, memoryview(bytearray(1000)))


def test_receiving_stops_at_the_byte_asked_for() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"x" * 2500 + b"next")
        receive_bulk(near, 2500, memoryview(bytearray(1000)))
        assert near.recv(10) == b"next"


@pytest.mark.parametrize("total", [0, 1, 999, 1000, 2500])
def test_bulk_sends_exactly_as_much_as_asked_for(total: int) -> None:
    near, far = socket.socketpair()
    with near, far:
        send_bulk(near, total, memoryview(bytearray(1000)))
        near.shutdown(socket.SHUT_WR)
        assert len(receive_exactly(far, total)) == total
        assert far.recv(1) == b""


def test_the_seeded_stream_is_the_same_each_time_and_never_repeats_a_block() -> None:
    blocks = list(seeded(3_000_000))
    assert sum(map(len, blocks)) == 3_000_000
    assert blocks == list(seeded(3_000_000))
    assert blocks[0] != blocks[1]


def test_a_message_cut_short_is_no_clean_end() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"abc")
        far.close()
        with pytest.raises(LoadError, match="middle of a message"):
            receive_exactly(near, 9)


def test_waits_are_bounded_by_the_kernel_and_the_socket_stays_blocking() -> None:
    with socket.socket() as sock:
        prepare(sock)
        assert sock.gettimeout() is None
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            assert any(sock.getsockopt(socket.SOL_SOCKET, option, 16))
