"""What must hold at both ends of a tunnel whatever comes in."""

from __future__ import annotations

from typing import Any

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.tunnel.events import TunnelClosed
from qproxy.tunnel.records_in import LARGE_BUFFER_BYTES
from qproxy.tunnel.records_out import MAX_OUTPUT_BYTES
from qproxy.tunnel.settings import Role
from tests import pki
from tests.tunnel.adversary import other
from tests.tunnel.helpers import Pair, tunnel_context
from tests.tunnel.rules import BOTH

MAX_STREAMS = 8
MAX_ROUNDS = 60
SMALL: dict[str, Any] = {"max_streams": MAX_STREAMS, "max_session_window_bytes": 8 << 20}


def fixed_size_contexts() -> dict[str, Any]:
    """TLS contexts with Ed25519: signatures of one size, so that an example repeats exactly."""
    return {
        "client_tls": tunnel_context(Role.CLIENT, "gw-a", algorithm=pki.ED25519),
        "server_tls": tunnel_context(Role.SERVER, "gw-b", algorithm=pki.ED25519),
    }


def check_limits(pair: Pair) -> None:
    for role in BOTH:
        end = pair.end(role)
        # Output is looked at once per call, and a call answers with about what it was given.
        assert end.output_pending <= MAX_OUTPUT_BYTES + LARGE_BUFFER_BYTES
        assert end._writer.capacity <= 4 * MAX_OUTPUT_BYTES
        assert end._splitter.capacity <= LARGE_BUFFER_BYTES
        assert len(end._plain) <= LARGE_BUFFER_BYTES
        assert end.session.unread <= SMALL["max_session_window_bytes"]
        assert len(end.session.streams) <= 2 * MAX_STREAMS
        if end.closed:
            assert end.next_timeout() is None
            assert end._opener is None
            assert len(end.session.streams) == 0


def feed(pair: Pair, role: Role, data: bytes, step: int = 0) -> bool:
    """Deliver, and say whether the end lives on. Only RemoteProtocolError may come out."""
    was_closed = pair.end(role).closed
    fault: Reason | None = None
    pair.step = step
    try:
        pair.deliver(role, data)
    except RemoteProtocolError as error:
        fault = error.reason
    finally:
        pair.step = 0
    if fault is not None:
        assert not was_closed
        assert pair.end(role).closed
        assert pair.last(role, TunnelClosed) == TunnelClosed(fault, clean=False)
    check_limits(pair)
    return not pair.end(role).closed


def settle(pair: Pair) -> None:
    """Carry what is left, then let time run out. It always comes to an end."""
    for _ in range(MAX_ROUNDS):
        moved = False
        for sender in BOTH:
            pair.collect(sender)
            data = pair.take_output(sender)
            if data:
                moved = True
                feed(pair, other(sender), data)
        if not moved:
            break
    else:
        raise AssertionError("the two ends never come to rest")
    for role in BOTH:
        end = pair.end(role)
        for _ in range(MAX_ROUNDS):
            due = end.next_timeout()
            if due is None:
                break
            pair.now = max(pair.now, due)
            end.handle_timeout(pair.now)
        else:
            raise AssertionError("a tunnel nobody feeds never ends")
        pair.collect(role)
        assert len(pair.of(role, TunnelClosed)) == 1
    check_limits(pair)
