"""What applications see of two gateways that work: their bytes, and how connections end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.e2e.pair import GatewayPair
from tests.e2e.processes import DEADLINE_S
from tests.e2e.sockets import (
    Backend,
    ReservedPort,
    assert_refused,
    assert_reset,
    connect,
    pattern,
    proxied,
    receive_all,
    receive_exactly,
    reset,
    round_trip,
)

STREAMS = 500
STREAM_BYTES = 64 * 1024
#: More than a stream's credit (8 MiB) and the four sockets' buffers (6 MiB at most) together.
DEAF_MIB = 48


@dataclass
class World:
    pair: GatewayPair
    backend: Backend
    unix_backend: Backend


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One pair for every test here; they do not disturb each other."""
    directory: Path = tmp_path_factory.mktemp("pair")
    with Backend() as backend, Backend(directory / "app.sock") as unix, ReservedPort() as closed:
        services = {
            "app": backend.address,
            "unix": unix.address,
            "closed": closed.address,
            "not-for-us": {"connect": backend.address, "peers": ["gw-c"]},
        }
        listeners = {
            "app": {},
            "careful": {"service": "app", "wait_for_service": True},
            "unix": {"listen": f"unix:{directory}/near.sock"},
            "closed": {},
            "closed-careful": {"service": "closed", "wait_for_service": True},
            "unknown": {"service": "nothing-of-the-kind"},
            "not-for-us": {},
        }
        other_peer = {"gw-c": {"policy": "off"}}
        with GatewayPair(
            directory,
            listeners=listeners,
            services=services,
            config_b={"peers": other_peer},
            level="debug",
        ) as pair:
            yield World(pair, backend, unix)


def test_bytes_arrive_unchanged_both_ways(world: World) -> None:
    with proxied(world.pair.address("app"), world.backend) as (near, far):
        round_trip(near, far, pattern(b"both ways", 100_000))


def test_the_service_may_speak_first(world: World) -> None:
    with proxied(world.pair.address("careful"), world.backend) as (near, far):
        far.sendall(b"220 welcome")
        assert receive_exactly(near, 11) == b"220 welcome"
        round_trip(near, far)


def test_a_unix_socket_listener_leads_to_a_unix_socket_service(world: World) -> None:
    address = world.pair.address("unix")
    assert address.startswith("unix:")
    with proxied(address, world.unix_backend) as (near, far):
        assert (near.family, far.family) == (socket.AF_UNIX, socket.AF_UNIX)
        round_trip(near, far)
        near.shutdown(socket.SHUT_WR)
        assert receive_all(far) == b""


def test_500_streams_at_once_carry_their_own_data_each(world: World) -> None:
    async def at_once() -> None:
        near = [connect(world.pair.address("app")) for _ in range(STREAMS)]
        far = [world.backend.accept() for _ in range(STREAMS)]
        # All of them are open now, and none has carried anything.
        far_by_number: dict[int, socket.socket] = {}
        for number, sock in enumerate(near):
            sock.sendall(number.to_bytes(4, "big"))
        for sock in far:
            far_by_number[int.from_bytes(receive_exactly(sock, 4), "big")] = sock
        assert sorted(far_by_number) == list(range(STREAMS))
        async with trio.open_nursery() as nursery:
            for number in range(STREAMS):
                nursery.start_soon(exchange, near[number], number, b"near")
                nursery.start_soon(exchange, far_by_number[number], number, b"far")

    async def exchange(sock: socket.socket, number: int, side: bytes) -> None:
        other = {b"near": b"far", b"far": b"near"}[side]
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        received = bytearray()

        async def send() -> None:
            await stream.send_all(pattern(side + bytes([number % 256, number >> 8]), STREAM_BYTES))
            await stream.send_eof()

        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(60):
                async for data in stream:
                    received += data
        assert received == pattern(other + bytes([number % 256, number >> 8]), STREAM_BYTES)

    trio.run(at_once)


@pytest.mark.parametrize("listener", ["app", "careful"])
def test_a_client_that_has_sent_everything_still_gets_its_answer(
    world: World, listener: str
) -> None:
    with proxied(world.pair.address(listener), world.backend) as (near, far):
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert receive_all(far) == b"question"
        far.sendall(answer := pattern(b"answer", 300_000))
        far.close()
        assert receive_all(near) == answer


def test_a_service_that_has_sent_everything_still_gets_data(world: World) -> None:
    with proxied(world.pair.address("app"), world.backend) as (near, far):
        far.sendall(b"all I have")
        far.shutdown(socket.SHUT_WR)
        assert receive_all(near) == b"all I have"
        near.sendall(data := pattern(b"upload", 300_000))
        near.shutdown(socket.SHUT_WR)
        assert receive_all(far) == data


def test_a_reset_by_the_client_reaches_the_service_as_a_reset(world: World) -> None:
    with proxied(world.pair.address("app"), world.backend) as (near, far):
        round_trip(near, far)
        reset(near)
        assert_reset(far)


def test_a_reset_by_the_service_reaches_the_client_as_a_reset(world: World) -> None:
    with proxied(world.pair.address("app"), world.backend) as (near, far):
        round_trip(near, far)
        reset(far)
        assert_reset(near)


def test_a_reset_after_half_close_is_still_a_reset(world: World) -> None:
    with proxied(world.pair.address("app"), world.backend) as (near, far):
        near.shutdown(socket.SHUT_WR)
        assert receive_all(far) == b""
        reset(far)
        assert_reset(near)


@pytest.mark.parametrize("listener", ["closed", "closed-careful"])
def test_a_service_that_refuses_means_a_reset_for_the_client(world: World, listener: str) -> None:
    mark = world.pair.b.mark()
    assert_refused(world.pair.address(listener))
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert (refused["service"], refused["reason"]) == ("closed", "connect_refused")
    assert (refused["level"], refused["peer"]) == ("warning", "gw-a")


def test_an_unknown_service_means_a_reset_for_the_client(world: World) -> None:
    mark = world.pair.b.mark()
    assert_refused(world.pair.address("unknown"))
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert (refused["service"], refused["reason"]) == ("nothing-of-the-kind", "service_unknown")


def test_a_service_for_other_peers_means_a_reset_for_the_client(world: World) -> None:
    mark = world.pair.b.mark()
    assert_refused(world.pair.address("not-for-us"))
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert (refused["service"], refused["reason"]) == ("not-for-us", "service_forbidden")
    assert world.backend.nobody_is_waiting()


def test_a_service_that_does_not_read_stops_its_own_stream_only(world: World) -> None:
    address = world.pair.address("app")
    data = pattern(b"too much", 1 << 20) * DEAF_MIB
    with proxied(address, world.backend) as (stuck, deaf):
        sender = threading.Thread(target=stuck.sendall, args=(data,), daemon=True)
        sender.start()
        with proxied(address, world.backend) as (near, far):
            round_trip(near, far, pattern(b"meanwhile", 300_000))
        assert sender.is_alive(), "the stream took more than all buffers on its way can hold"
        assert receive_exactly(deaf, len(data)) == data
        sender.join(DEADLINE_S)
        round_trip(stuck, deaf)


def test_the_tunnel_between_them_is_hybrid(world: World) -> None:
    for gateway in (world.pair.a, world.pair.b):
        up = gateway.find("tunnel_up")[0]
        assert up["mode"] == "hybrid"
        assert 0 < up["tls_ms"] < up["handshake_ms"]
        assert up["tls_group"] == "X25519MLKEM768"
        assert up["tls_cipher"].startswith("TLS_AES_")
        group = gateway.find("peer_authenticated")[0]["group"]
        assert group == "X25519MLKEM768"
