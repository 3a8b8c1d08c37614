"""Hostile REQUEST, ANNOUNCE, REPORT and TLS frames: an error or nothing, and nothing that grows.

The attacker is a peer with the right keys (or a thief of them): it seals frames of its own making.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.modes import Mode
from qproxy.tunnel.announce import KeyReport, encode_announce
from qproxy.tunnel.constants import MAX_TLS_PHASE_BYTES
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochRequested,
    KeysAnnounced,
    KeysReported,
    Reauthenticated,
    ReauthenticationDue,
    TunnelClosed,
)
from qproxy.tunnel.frames import FrameType
from qproxy.tunnel.messages import REAUTH_ID_BYTES, OfferedKey
from qproxy.tunnel.reauth import MAX_TLS_CHUNK_BYTES
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import (
    APPLICATION_DATA,
    HANDSHAKE,
    frame,
    inject_frame,
    other,
    seal,
)
from tests.tunnel.helpers import Pair, qkd_keys, tunnel_context
from tests.tunnel.rules import BOTH, client_epochs, fails
from tests.tunnel.test_hostile import (
    OPEN_STATES,
    at_rest,
    check_limits,
    exchange,
    feed,
    fitting,
    property_of,
    settle,
)

C, S = Role.CLIENT, Role.SERVER


def begun() -> Pair:
    pair = at_rest()
    pair.pump()
    pair.client.reauthenticate(pair.now)
    return pair


def complete() -> Pair:
    pair = begun()
    pair.pump()
    return pair


def after(start: Callable[[], Pair], *senders: Role) -> Pair:
    pair = start()
    exchange(pair, *senders)
    return pair


def offered(mode: Mode = Mode.HYBRID) -> Pair:
    pair = complete()
    pair.start_epoch(mode, qkd_keys("b") if mode is Mode.HYBRID else [])
    return pair


def mixed_in() -> Pair:
    pair = offered()
    pair.pump()
    return pair


def asked() -> Pair:
    pair = begun()
    pair.server.request_epoch(Reason.REAUTHENTICATION, pair.now)
    return pair


STATES: dict[str, Callable[[], Pair]] = OPEN_STATES | {
    "begun": begun,
    "server's flight": lambda: after(begun, C),
    "client's end": lambda: after(begun, C, S),
    "tickets": lambda: after(begun, C, S, C),
    "complete": complete,
    "offer that mixes in": offered,
    "accept that mixes in": lambda: after(offered, C),
    "confirm that mixes in": lambda: after(offered, C, S),
    "mixed in": mixed_in,
    "asked while under way": asked,
}


def tapped(pair: Pair, role: Role) -> list[bytes]:
    """The payloads of TLS frames that one end means to send; they are not sent."""
    payloads: list[bytes] = []
    pair.end(role)._preparation._send = payloads.extend  # type: ignore[method-assign]
    return payloads


def give(pair: Pair, role: Role, payloads: list[bytes]) -> None:
    """Hand TLS payloads to one end as its peer's, and take them off the list."""
    for payload in list(payloads):
        payloads.remove(payload)
        inject_frame(pair, other(role), FrameType.TLS, 0, payload)


def real_handshake() -> dict[Role, list[bytes]]:
    """All TLS payloads of one re-authentication, by sender."""
    pair = at_rest()
    pair.pump()
    said: dict[Role, list[bytes]] = {C: tapped(pair, C), S: tapped(pair, S)}
    kept: dict[Role, list[bytes]] = {C: [], S: []}
    pair.client.reauthenticate(pair.now)
    while said[C] or said[S]:
        for role in BOTH:
            kept[role] += said[role]
            give(pair, other(role), said[role])
    assert all(pair.of(role, Reauthenticated) for role in BOTH)
    return kept


RECORDED = real_handshake()
KEYS = [OfferedKey("etsi-qkd-014", 32, "k1"), OfferedKey("etsi-qkd-014", 64, "k2")]
GENUINE: dict[str, tuple[FrameType, bytes]] = {
    "request": (FrameType.REQUEST, bytes([Reason.LINK_DOWN.code])),
    "request for proof": (FrameType.REQUEST, bytes([Reason.REAUTHENTICATION.code])),
    "announce": (FrameType.ANNOUNCE, encode_announce(KEYS)),
    "report": (
        FrameType.REPORT,
        KeyReport(b"instance", (("k1", None), ("k2", Reason.KEY_NOT_FOUND))).encode(),
    ),
    "client hello": (FrameType.TLS, RECORDED[C][0]),
    "server flight": (FrameType.TLS, RECORDED[S][0]),
    "client finished": (FrameType.TLS, RECORDED[C][-1]),
    "ticket": (FrameType.TLS, RECORDED[S][-1]),
}


@dataclasses.dataclass(frozen=True)
class Attack:
    """One genuine frame and what is done to it, drawn before anything runs."""

    genuine: str
    change: str
    at: int
    times: int
    noise: bytes
    current_id: bool
    step: int

    def payloads(self, payload: bytes) -> list[bytes]:
        if self.change == "cut":
            return [payload[: self.at % len(payload)]]
        if self.change == "extend":
            return [payload + self.noise]
        if self.change == "flip":
            flipped = bytearray(payload)
            flipped[self.at // 8 % len(payload)] ^= 1 << self.at % 8
            return [bytes(flipped)]
        if self.change == "zero id":
            return [bytes(REAUTH_ID_BYTES) + payload[REAUTH_ID_BYTES:]]
        return [payload] * (self.times if self.change == "repeat" else 1)


ATTACKS = st.builds(
    Attack,
    genuine=st.sampled_from(sorted(GENUINE)),
    change=st.sampled_from(["as it is", "cut", "extend", "flip", "repeat", "zero id"]),
    at=st.integers(0, 1 << 15),
    times=st.integers(2, 4),
    noise=st.binary(min_size=1, max_size=40),
    current_id=st.booleans(),
    step=st.sampled_from([0, 0, 300]),
)


@pytest.mark.parametrize("state", STATES)
@property_of(40)
@given(
    attacks=st.lists(ATTACKS, min_size=1, max_size=4),
    liar=st.sampled_from(BOTH),
    flush=st.booleans(),
)
def test_an_error_or_nothing_at_every_state(
    state: str, attacks: list[Attack], liar: Role, flush: bool
) -> None:
    pair = STATES[state]()
    if pair.end(liar)._writer._sealer is None:
        liar = other(liar)
    if flush:
        feed(pair, other(liar), pair.take_output(liar))
    pair.take_output(liar)
    for attack in attacks:
        kind, payload = GENUINE[attack.genuine]
        inner = pair.end(other(liar))._preparation._inner
        if kind is FrameType.TLS and inner is not None and attack.current_id:
            payload = inner.reauth_id + payload[REAUTH_ID_BYTES:]
        for altered in attack.payloads(payload):
            record = seal(pair, liar, fitting(frame(kind, 0, altered)))
            feed(pair, other(liar), record, attack.step)
    settle(pair)
    ids = [{e.epoch: e.epoch_id for e in pair.of(role, EpochCommitted)} for role in BOTH]
    for number in ids[0].keys() & ids[1].keys():
        assert ids[0][number] == ids[1][number]


@pytest.mark.parametrize("kind", ["announce", "report", "request"])
@pytest.mark.parametrize("at", range(60))
def test_one_that_is_cut_or_too_long_is_malformed(kind: str, at: int) -> None:
    code, payload = GENUINE[kind]
    liar = C if code is FrameType.ANNOUNCE else S
    altered = payload[:at] if at < len(payload) else payload + bytes(at - len(payload) + 1)
    pair = at_rest()
    pair.pump()
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: inject_frame(pair, liar, code, 0, altered),
        other(liar),
    )


@pytest.mark.parametrize(("count", "reason"), [(0, "malformed"), (65, "malformed"), (64, None)])
@pytest.mark.parametrize("kind", [FrameType.ANNOUNCE, FrameType.REPORT])
def test_the_number_of_keys_is_bounded(kind: FrameType, count: int, reason: str | None) -> None:
    liar = C if kind is FrameType.ANNOUNCE else S
    keys = [OfferedKey("file", 32, f"k{n}") for n in range(count)]
    report = KeyReport(b"instance", tuple((key.key_id, None) for key in keys)).encode()
    payload = encode_announce(keys) if kind is FrameType.ANNOUNCE else report
    pair = at_rest()
    pair.pump()
    if reason is None:
        inject_frame(pair, liar, kind, 0, payload)
        assert pair.end(other(liar)).established
        return
    fails(
        pair,
        Reason.MALFORMED_MESSAGE,
        lambda: inject_frame(pair, liar, kind, 0, payload),
        other(liar),
    )


# --- floods -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("liar", "kind", "event"),
    [
        (C, "announce", KeysAnnounced),
        (S, "report", KeysReported),
        (S, "request", EpochRequested),
        (S, "request for proof", ReauthenticationDue),
        (S, "ticket", None),
    ],
)
def test_a_flood_of_frames_leaves_nothing_behind(liar: Role, kind: str, event: type | None) -> None:
    """Whatever is made of a frame goes to the driver with the call that took it."""
    pair = mixed_in()
    code, payload = GENUINE[kind]
    if kind == "ticket":
        payload = pair.end(other(liar))._preparation._last_reauth_id + payload[REAUTH_ID_BYTES:]
    one = frame(code, 0, payload)
    content = one * min(100, (1 << 14) // len(one))
    sent = 0
    for _ in range(50):
        before = sum(len(events) for events in pair.events.values())
        assert feed(pair, other(liar), seal(pair, liar, content))
        made = sum(len(events) for events in pair.events.values()) - before
        sent += len(content) // len(one)
        assert made <= len(content) // len(one)
        assert not pair.end(other(liar))._events
        assert pair.end(other(liar)).output_pending == 0
        check_limits(pair)
    if event is ReauthenticationDue:
        assert len(pair.of(other(liar), ReauthenticationDue)) == 1
    elif event is not None:
        assert len(pair.of(other(liar), event)) == sent
    assert pair.end(other(liar)).established


@pytest.mark.parametrize("size", [1, 1000, MAX_TLS_CHUNK_BYTES])
@pytest.mark.parametrize("liar", BOTH)
def test_a_handshake_that_never_ends_is_bounded(liar: Role, size: int) -> None:
    """Records that OpenSSL can do nothing with, and parts of one: the limit is on all of them."""
    pair = begun()
    hello = pair.take_output(C)
    if liar is C:
        pair.deliver(S, hello)
    inner = pair.end(other(liar))._preparation._inner
    assert inner is not None
    # change_cipher_spec is what TLS 1.3 ignores.
    record = b"\x14\x03\x03\x00\x01\x01"
    stream = record * (2 * MAX_TLS_PHASE_BYTES // len(record))
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    per_record = max(1, (1 << 14) // (size + 23))
    taken = 0
    for at in range(0, len(chunks), per_record):
        some = chunks[at : at + per_record]
        content = b"".join(frame(FrameType.TLS, 0, inner.reauth_id + chunk) for chunk in some)
        if not feed(pair, other(liar), seal(pair, liar, content)):
            break
        taken += sum(map(len, some))
    assert taken <= MAX_TLS_PHASE_BYTES
    assert pair.last(other(liar), TunnelClosed).reason in {
        Reason.RECORD_OVERFLOW,
        Reason.TLS_FAILURE,
    }


@pytest.mark.parametrize("victim", BOTH)
def test_a_peer_that_never_completes_loses_the_tunnel(victim: Role) -> None:
    pair = begun()
    if victim is S:
        pair.deliver(S, pair.take_output(C))
    end = pair.end(victim)
    due = end.next_timeout()
    assert due is not None
    assert due <= pair.now + 10
    pair.now += 10
    end.handle_timeout(pair.now)
    pair.collect(victim)
    assert pair.last(victim, TunnelClosed).reason is Reason.HANDSHAKE_TIMEOUT


# --- handshakes out of place --------------------------------------------------------------------


@pytest.mark.parametrize("fresh_id", [False, True])
def test_a_recorded_handshake_proves_nothing(fresh_id: bool) -> None:
    """A thief with the traffic keys replays what the client once sent in another tunnel."""
    pair = at_rest()
    pair.pump()
    tapped(pair, S)
    for payload in RECORDED[C]:
        altered = (b"a fresh ID here!" if fresh_id else payload[:16]) + payload[16:]
        try:
            inject_frame(pair, C, FrameType.TLS, 0, altered)
        except RemoteProtocolError as error:
            assert error.reason is Reason.TLS_FAILURE  # noqa: PT017 - the one that must come
    pair.collect(S)
    assert not pair.of(S, Reauthenticated)
    assert pair.server.closed


def test_a_handshake_between_two_tunnels_is_mixed_in_by_neither() -> None:
    """Thieves of two tunnels' keys pass an inner handshake of one on into the other."""
    one, two = at_rest(), at_rest()
    one.pump()
    two.pump()
    from_client, from_server = tapped(one, C), tapped(two, S)
    one.client.reauthenticate(one.now)
    while from_client or from_server:
        give(two, S, from_client)
        give(one, C, from_server)
    one.collect(C)
    two.collect(S)
    assert one.of(C, Reauthenticated)
    assert two.of(S, Reauthenticated)
    for pair in (one, two):
        pair.start_epoch()
        fails(pair, Reason.BINDING_MISMATCH, pair.pump, S)
        assert pair.server.epoch == 1


@pytest.mark.parametrize("what", ["id", "binding"])
def test_a_client_cannot_leave_a_complete_one_out(what: str) -> None:
    pair = at_rest()
    pair.pump()
    pair.client.use_tls_context(tunnel_context(C, "gw-a", common_name="another one"))
    pair.client.reauthenticate(pair.now)
    pair.pump()
    epochs = client_epochs(pair)
    if what == "id":
        epochs._inner = None
    else:
        epochs._inner_binding = epochs.binding
    pair.start_epoch()
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, S)


def test_ids_are_not_used_again_at_once_and_not_changed() -> None:
    pair = mixed_in()
    last = pair.server._preparation._last_reauth_id
    hello = RECORDED[C][0][REAUTH_ID_BYTES:]
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, C, FrameType.TLS, 0, last + hello),
        S,
    )
    pair = after(begun, C)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, C, FrameType.TLS, 0, b"another ID here!" + hello),
        S,
    )


def test_none_begins_before_the_last_is_mixed_in() -> None:
    pair = complete()
    hello = RECORDED[C][0]
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, C, FrameType.TLS, 0, hello),
        S,
    )


def test_a_server_cannot_begin_one() -> None:
    pair = at_rest()
    pair.pump()
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_frame(pair, S, FrameType.TLS, 0, RECORDED[C][0]),
        C,
    )


@pytest.mark.parametrize("behind", [b"\x17", b"\x17\x03\x03\x00\x20" + bytes(31)])
@pytest.mark.parametrize("victim", BOTH)
def test_a_part_of_a_record_behind_the_handshake_is_refused(victim: Role, behind: bytes) -> None:
    pair = at_rest()
    pair.pump()
    said = {role: tapped(pair, role) for role in BOTH}
    pair.client.reauthenticate(pair.now)
    give(pair, S, said[C])
    if victim is S:
        give(pair, C, said[S])
    said[other(victim)][-1] += behind
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: give(pair, victim, said[other(victim)]),
        victim,
    )


@pytest.mark.parametrize("content_type", [APPLICATION_DATA, HANDSHAKE])
def test_records_that_nobody_can_open_end_the_tunnel(content_type: int) -> None:
    pair = after(begun, C)
    inner = pair.server._preparation._inner
    assert inner is not None
    record = bytes([content_type]) + b"\x03\x03\x00\x40" + bytes(64)
    fails(
        pair,
        Reason.TLS_FAILURE,
        lambda: inject_frame(pair, C, FrameType.TLS, 0, inner.reauth_id + record),
        S,
    )


@pytest.mark.parametrize("sayer", BOTH)
@pytest.mark.parametrize("state", ["begun", "server's flight", "client's end", "complete"])
def test_an_end_in_the_middle_is_clean(state: str, sayer: Role) -> None:
    pair = STATES[state]()
    pair.end(sayer).end(Reason.SHUTDOWN, pair.now)
    pair.pump()
    for role in BOTH:
        assert pair.last(role, TunnelClosed).clean


@pytest.mark.parametrize("sayer", BOTH)
@pytest.mark.parametrize("state", ["begun", "server's flight", "client's end"])
def test_a_go_away_in_the_middle_harms_nothing_but_time(state: str, sayer: Role) -> None:
    pair = STATES[state]()
    pair.end(sayer).go_away(Reason.SHUTDOWN)
    pair.pump()
    for role in BOTH:
        assert pair.of(role, Reauthenticated)
        assert pair.end(role).established
