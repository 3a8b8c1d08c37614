"""A peer that dies, a path that breaks, lies or goes dark: what is lost, and what comes back."""

from __future__ import annotations

import contextlib
import select

import pytest

from qproxy.tunnel.constants import PING_BYTES
from qproxy.tunnel.frames import FRAME_HEADER_BYTES
from tests.e2e.conftest import MakePair
from tests.e2e.processes import DEADLINE_S, poll
from tests.e2e.sockets import Backend, assert_reset, proxied, round_trip
from tests.e2e.wire import RECORD_HEADER

#: One PING frame in a record of its own: with its content type and tag (RFC 9846 §5.2).
PING_RECORD_BYTES = RECORD_HEADER.size + FRAME_HEADER_BYTES + PING_BYTES + 1 + 16
TUNNELS = 4


def test_a_killed_far_gateway_resets_streams_and_comes_back_with_its_restart(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        near.sendall(b"under way")
        mark = pair.a.mark()
        pair.b.kill()
        assert_reset(near)
        closed = pair.a.wait_for_event("tunnel_closed", after=mark)
        assert (closed["clean"], closed["reason"]) == (False, "truncated")
        assert pair.a.running
    mark = pair.a.mark()
    pair.start_b()
    pair.a.wait_for_event("tunnel_up", after=mark)
    # The same process of A, the same listener.
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_a_killed_near_gateway_resets_the_services_streams(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        mark = pair.b.mark()
        pair.a.kill()
        assert_reset(far)
        closed = pair.b.wait_for_event("tunnel_closed", after=mark)
        assert (closed["clean"], closed["reason"]) == (False, "truncated")
        assert pair.b.running
    mark = pair.b.mark()
    pair.start_a()
    pair.b.wait_for_event("tunnel_up", after=mark)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_a_cut_path_is_a_truncation_and_never_an_orderly_end(
    make_pair: MakePair, backend: Backend
) -> None:
    pair = make_pair(kme=False, relay=True)
    assert pair.relay is not None
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        mark_a, mark_b = pair.a.mark(), pair.b.mark()
        pair.relay.cut()
        # FIN on the path must not become FIN for an application: it would look like all there is.
        assert_reset(near)
        assert_reset(far)
    for gateway, mark in ((pair.a, mark_a), (pair.b, mark_b)):
        assert gateway.wait_for_event("tunnel_closed", after=mark)["reason"] == "truncated"
    pair.wait_for_tunnel(after_a=mark_a, after_b=mark_b)
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)


def test_one_flipped_bit_ends_the_tunnel(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(kme=False, relay=True)
    assert pair.relay is not None
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        mark = pair.b.mark()
        pair.relay.tamper = lambda data: data[:-1] + bytes([data[-1] ^ 1])
        near.sendall(b"will not arrive")
        assert_reset(far)
        assert_reset(near)
        pair.relay.tamper = None
    closed = pair.b.wait_for_event("tunnel_closed", after=mark)
    assert (closed["reason"], closed["clean"]) == ("bad_record_mac", False)


def test_a_path_that_goes_dark_is_given_up_and_streams_are_reset(
    make_pair: MakePair, backend: Backend
) -> None:
    silence = {"tunnel": {"ping_interval_s": 0.2, "peer_timeout_s": 2}}
    pair = make_pair(kme=False, relay=True, config_a=silence, config_b=silence)
    assert pair.relay is not None
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        mark_a, mark_b = pair.a.mark(), pair.b.mark()
        pair.relay.freeze()
        assert_reset(near)
        assert_reset(far)
    for gateway, mark in ((pair.a, mark_a), (pair.b, mark_b)):
        assert gateway.wait_for_event("tunnel_closed", after=mark)["reason"] == "peer_silent"


@pytest.mark.slow
def test_pings_keep_an_idle_stream_alive(make_pair: MakePair, backend: Backend) -> None:
    silence = {"tunnel": {"ping_interval_s": 0.1, "peer_timeout_s": 2}}
    rekey = {"rekey": {"interval_s": 86400, "max_age_s": 86400}}
    pair = make_pair(kme=False, relay=True, config_a=silence, config_b=silence, peer=rekey)
    assert pair.relay is not None
    (recording,) = pair.relay.recordings
    with proxied(pair.address("app"), backend) as (near, far):
        round_trip(near, far)
        # So many pings and answers take longer than the silence that ends a tunnel.
        enough = len(recording.to_server) + 50 * PING_RECORD_BYTES
        poll("pings go back and forth", lambda: len(recording.to_server) >= enough)
        round_trip(near, far)
    assert not pair.a.find("tunnel_closed")
    assert not pair.b.find("tunnel_closed")


def test_the_loss_of_one_tunnel_costs_only_its_own_streams(
    make_pair: MakePair, backend: Backend
) -> None:
    several = {"peers": {"gw-b": {"tunnels": TUNNELS}}}
    pair = make_pair(kme=False, config_a=several, relay=True)
    assert pair.relay is not None
    poll("all tunnels are up", lambda: len(pair.a.find("tunnel_up")) == TUNNELS)
    with contextlib.ExitStack() as opened:
        # Each goes where the fewest streams are: one to each tunnel.
        streams = [
            opened.enter_context(proxied(pair.address("app"), backend)) for _ in range(TUNNELS)
        ]
        for near, far in streams:
            round_trip(near, far)
        pair.relay.recordings[0].cut()
        (lost,) = select.select([near for near, _ in streams], [], [], DEADLINE_S)[0]
        for near, far in streams:
            if near is lost:
                assert_reset(near)
                assert_reset(far)
            else:
                round_trip(near, far)
    poll("the lost tunnel is replaced", lambda: len(pair.a.find("tunnel_up")) == TUNNELS + 1)
