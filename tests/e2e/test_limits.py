"""Limits and timeouts: how many, how long, and what happens beyond."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import MakePair
from tests.e2e.pair import GatewayPair
from tests.e2e.sockets import (
    Backend,
    BlackHole,
    assert_refused,
    assert_reset,
    connect,
    proxied,
    receive_exactly,
    round_trip,
)


@dataclass
class World:
    pair: GatewayPair
    backend: Backend


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One pair with a listener and a service for each limit."""
    with Backend() as backend, BlackHole() as hole:
        tls = {"ca": "pki/ca.pem", "server_name": "localhost"}
        services = {
            "app": backend.address,
            "single": {"connect": backend.address, "max_connections": 1},
            "impatient": {"connect": backend.address, "idle_timeout_s": 1},
            "hole": {"connect": hole.address, "connect_timeout_s": 0.3},
            "silent-tls": {"connect": backend.address, "tls": tls, "connect_timeout_s": 0.3},
        }
        listeners = {name: {} for name in services} | {
            "two": {"service": "app", "max_connections": 2},
            "hasty": {"service": "app", "idle_timeout_s": 1},
        }
        with GatewayPair(
            tmp_path_factory.mktemp("limits"),
            listeners=listeners,
            services=services,
            kme=False,
            level="debug",
        ) as pair:
            yield World(pair, backend)
            assert not pair.a.find("tunnel_closed")
            assert not pair.b.find("tunnel_closed")


def test_clients_beyond_max_connections_wait_in_the_backlog(world: World) -> None:
    pair, backend = world.pair, world.backend
    address = pair.address("two")
    with proxied(address, backend) as (near, far), proxied(address, backend) as (near2, far2):
        round_trip(near2, far2)
        full = pair.a.wait_for_event("listener_full")
        assert (full["listener"], full["limit"]) == ("two", 2)
        with connect(address) as third:
            third.sendall(b"patience")
            # Both others work on, and nobody else has reached the service.
            round_trip(near, far)
            round_trip(near2, far2)
            assert backend.nobody_is_waiting()
            near2.close()
            assert far2.recv(1) == b""
            far2.close()
            # One place is free: now it is the third one's turn, and its bytes were kept.
            with backend.accept() as far3:
                assert receive_exactly(far3, 8) == b"patience"
                round_trip(third, far3)


def test_a_service_beyond_its_max_connections_refuses(world: World) -> None:
    pair = world.pair
    with proxied(pair.address("single"), world.backend) as (near, far):
        round_trip(near, far)
        mark = pair.b.mark()
        assert_refused(pair.address("single"))
        refused = pair.b.wait_for_event("stream_refused", after=mark)
        assert (refused["service"], refused["reason"]) == ("single", "limit_reached")
        round_trip(near, far)


def test_a_stream_that_is_idle_for_too_long_at_the_listener_is_reset(world: World) -> None:
    mark = world.pair.a.mark()
    with proxied(world.pair.address("hasty"), world.backend) as (near, far):
        round_trip(near, far)
        assert_reset(near)
        assert_reset(far)
    world.pair.a.wait_for_event("stream_closed", after=mark, reason="idle_timeout")


def test_a_stream_that_is_idle_for_too_long_at_the_service_is_reset(world: World) -> None:
    with proxied(world.pair.address("impatient"), world.backend) as (near, far):
        round_trip(near, far)
        assert_reset(near)
        assert_reset(far)


def test_a_service_that_never_answers_is_refused_after_its_connect_timeout(world: World) -> None:
    mark = world.pair.b.mark()
    with connect(world.pair.address("hole")) as near:
        near.sendall(b"into the dark")
        assert_reset(near)
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert (refused["service"], refused["reason"]) == ("hole", "connect_timeout")


def test_a_tls_service_that_never_speaks_is_refused_after_its_connect_timeout(
    world: World,
) -> None:
    mark = world.pair.b.mark()
    with proxied(world.pair.address("silent-tls"), world.backend) as (near, _far):
        assert_reset(near)
    refused = world.pair.b.wait_for_event("stream_refused", after=mark)
    assert (refused["service"], refused["reason"]) == ("silent-tls", "connect_timeout")


def test_a_client_that_leaves_while_its_service_is_dialled_leaves_nothing_behind(
    make_pair: MakePair,
) -> None:
    with BlackHole() as hole:
        pair = make_pair(
            kme=False,
            services={"app": {"connect": hole.address, "connect_timeout_s": 1}},
            config_b={"shutdown": {"drain_s": 3600}},
        )
        connect(pair.address("app")).close()
        pair.b.wait_for_event("stream_refused", reason="connect_timeout")
        pair.b.signal(signal.SIGTERM)
        assert pair.b.wait_for_exit() == 0
        assert pair.b.find("drained")[0]["streams_cut"] == 0


def test_streams_beyond_the_tunnels_limit_are_refused(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, config_b={"tunnel": {"max_streams_per_tunnel": 2}})
    address = pair.address("app")
    with proxied(address, backend) as (near, far), proxied(address, backend) as (near2, far2):
        assert_refused(address)
        round_trip(near, far)
        round_trip(near2, far2)
    assert not pair.a.find("tunnel_closed")


def test_a_peer_that_connects_and_says_nothing_is_dropped(make_pair: MakePair) -> None:
    pair = make_pair(kme=False, config_b={"tunnel": {"handshake_timeout_s": 1}})
    mark = pair.b.mark()
    with connect(pair.tunnel_address) as silent, contextlib.suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    refused = pair.b.wait_for_event("tunnel_refused", after=mark)
    assert refused["reason"] == "handshake_timeout"
    assert not pair.b.find("tunnel_closed")
