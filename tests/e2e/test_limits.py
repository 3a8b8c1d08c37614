"""Limits and timeouts: how many, how long, and what happens beyond."""

from __future__ import annotations

import contextlib
import signal

from tests.e2e.conftest import MakePair
from tests.e2e.sockets import (
    Backend,
    BlackHole,
    assert_reset,
    connect,
    proxied,
    receive_exactly,
    round_trip,
)


def test_clients_beyond_max_connections_wait_in_the_backlog(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, listeners={"app": {"max_connections": 2}})
    address = pair.address("app")
    with proxied(address, backend) as (near, far), proxied(address, backend) as (near2, far2):
        round_trip(near2, far2)
        full = pair.a.wait_for_event("listener_full")
        assert (full["listener"], full["limit"]) == ("app", 2)
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


def test_a_service_beyond_its_max_connections_refuses(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(
        kme=False, services={"app": {"connect": backend.address, "max_connections": 1}}
    )
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        with connect(pair.address("app")) as second:
            assert_reset(second)
        refused = pair.b.wait_for_event("stream_refused")
        assert (refused["service"], refused["reason"]) == ("app", "limit_reached")
        round_trip(near, far)


def test_a_stream_that_is_idle_for_too_long_at_the_listener_is_reset(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, listeners={"app": {"idle_timeout_s": 1}}, level="debug")
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        assert_reset(near)
        assert_reset(far)
    assert pair.a.wait_for_event("stream_closed")["reason"] == "idle_timeout"
    assert not pair.a.find("tunnel_closed")


def test_a_stream_that_is_idle_for_too_long_at_the_service_is_reset(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, services={"app": {"connect": backend.address, "idle_timeout_s": 1}})
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        assert_reset(near)
        assert_reset(far)
    assert not pair.b.find("tunnel_closed")


def test_a_service_that_never_answers_is_refused_after_its_connect_timeout(
    make_pair: MakePair,
) -> None:
    with BlackHole() as hole:
        pair = make_pair(
            kme=False, services={"app": {"connect": hole.address, "connect_timeout_s": 0.3}}
        )
        with connect(pair.address("app")) as near:
            near.sendall(b"into the dark")
            assert_reset(near)
        refused = pair.b.wait_for_event("stream_refused")
        assert (refused["service"], refused["reason"]) == ("app", "connect_timeout")


def test_a_tls_service_that_never_speaks_is_refused_after_its_connect_timeout(
    make_pair: MakePair, backend: Backend
) -> None:
    tls = {"ca": "pki/ca.pem", "server_name": "localhost"}
    service = {"connect": backend.address, "tls": tls, "connect_timeout_s": 0.3}
    pair = make_pair(kme=False, services={"app": service})
    with proxied(pair.address("app"), backend) as (near, _far):
        assert_reset(near)
    refused = pair.b.wait_for_event("stream_refused")
    assert refused["reason"] == "connect_timeout"


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
        with connect(address) as third:
            assert_reset(third)
        round_trip(near, far)
        round_trip(near2, far2)
    assert not pair.a.find("tunnel_closed")


def test_a_peer_that_connects_and_says_nothing_is_dropped(make_pair: MakePair) -> None:
    pair = make_pair(kme=False, config_b={"tunnel": {"handshake_timeout_s": 0.5}})
    mark = pair.b.mark()
    with connect(pair.tunnel_address) as silent, contextlib.suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    refused = pair.b.wait_for_event("tunnel_refused", after=mark)
    assert refused["reason"] == "handshake_timeout"
    assert not pair.b.find("tunnel_closed")
