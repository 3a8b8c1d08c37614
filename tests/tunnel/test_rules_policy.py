"""Rules R7 to R10 of docs/protocol.md: lying KMSs, own deadlines, mode changes, bindings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.keys import QkdKey
from qproxy.modes import Mode, Policy
from qproxy.tunnel.events import EpochCommitted, EpochFailed, KeysNeeded, TunnelClosed
from qproxy.tunnel.messages import Binding, MessageType, OfferedKey, Reject, decode_epoch_message
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import inject_epoch, intercept, listen_in
from tests.tunnel.helpers import (
    CLIENT,
    SERVER,
    established,
    make_pair,
    qkd_keys,
    replace,
    with_policy,
)
from tests.tunnel.rules import (
    BOTH,
    FIRST_OR_LATER,
    MODES,
    client_epochs,
    fails,
    flip_last,
    keys_for,
    message_of,
    ready,
)
from tests.tunnel.test_connection import open_stream

# --- R7: a lying KMS -------------------------------------------------------------------------


@FIRST_OR_LATER
def test_r07_differing_qkd_keys_fail_the_attempt_and_prefer_lives_on(first: bool) -> None:
    pair = ready(first)
    honest = pair.server_keys
    pair.server_keys = lambda needed: qkd_keys(*(k.key_id for k in needed.keys), salt="lie")
    number = pair.client.epoch + 1
    for attempt in (1, 2):
        pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{attempt}"))
        pair.pump()
        for role in BOTH:
            failed = pair.last(role, EpochFailed)
            assert (failed.mode, failed.reason) == (Mode.HYBRID, Reason.KEY_MISMATCH)
            assert failed.attempt == attempt
    pair.start_epoch(Mode.CLASSICAL_ONLY)
    pair.pump()
    assert pair.client.epoch == pair.server.epoch == number
    pair.server_keys = honest
    pair.start_epoch(Mode.HYBRID, qkd_keys("good"))
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).mode is Mode.HYBRID


def test_r07_under_require_a_lying_kms_never_leads_to_classical() -> None:
    pair = established(with_policy(CLIENT, Policy.REQUIRE), with_policy(SERVER, Policy.REQUIRE))
    pair.server_keys = lambda needed: qkd_keys(*(k.key_id for k in needed.keys), salt="lie")
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    assert pair.client.established
    with pytest.raises(LocalProtocolError):
        pair.start_epoch(Mode.CLASSICAL_ONLY)
    for role in BOTH:
        pair.end(role)._timers.heard(pair.now + 299)
        pair.end(role).handle_timeout(pair.now + 300)
        pair.collect(role)
        assert pair.last(role, TunnelClosed).reason is Reason.QKD_TOO_OLD


@FIRST_OR_LATER
def test_r07_in_classical_only_mode_a_wrong_accept_mac_is_fatal(first: bool) -> None:
    pair = ready(first)
    intercept(pair.server, message_of(MessageType.ACCEPT, flip_last))
    pair.start_epoch(Mode.CLASSICAL_ONLY)
    fails(pair, Reason.CONFIRM_MAC, pair.pump, Role.CLIENT)


# --- R8: deadlines belong to each end --------------------------------------------------------

IDLE_CLIENT = replace(
    CLIENT,
    rekey_interval_s=0.0,
    max_epoch_age_s=0.0,
    max_epoch_bytes=1 << 60,
    rekey_bytes=1 << 60,
    peer_timeout_s=1e9,
)


def test_r08_the_server_ends_an_epoch_that_is_too_old() -> None:
    pair = established(IDLE_CLIENT, replace(SERVER, max_epoch_age_s=30.0, peer_timeout_s=1e9))
    pair.server.handle_timeout(pair.now + 29.9)
    assert pair.server.established
    pair.server.handle_timeout(pair.now + 30.0)
    pair.collect(Role.SERVER)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.EPOCH_LIMIT


@pytest.mark.parametrize("sender", BOTH)
def test_r08_the_server_ends_an_epoch_that_carried_too_much(sender: Role) -> None:
    pair = established(IDLE_CLIENT, replace(SERVER, max_epoch_bytes=10_000))
    stream_id = open_stream(pair)
    pair.end(sender).send_data(stream_id, memoryview(bytes(9_999)))
    pair.pump()
    assert pair.server.established
    pair.end(sender).send_data(stream_id, memoryview(b"x"))
    if sender is Role.SERVER:
        # Nothing comes in: its own clock must notice.
        pair.server.handle_timeout(pair.now + 1)
        pair.collect(Role.SERVER)
        assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.EPOCH_LIMIT
    else:
        fails(pair, Reason.EPOCH_LIMIT, pair.pump, Role.SERVER)


@pytest.mark.parametrize("sender", BOTH)
def test_r08_the_server_ends_an_epoch_of_too_many_records(sender: Role) -> None:
    pair = established(IDLE_CLIENT, replace(SERVER, max_epoch_records=50))
    stream_id = open_stream(pair)
    for _ in range(60):
        pair.end(sender).send_data(stream_id, memoryview(b"x"))
        data = pair.take_output(sender)
        if sender is Role.SERVER:
            pair.server.handle_timeout(pair.now)
            if pair.server.closed:
                break
        else:
            try:
                pair.deliver(Role.SERVER, data)
            except RemoteProtocolError:
                break
    pair.collect(Role.SERVER)
    assert pair.last(Role.SERVER, TunnelClosed).reason is Reason.EPOCH_LIMIT


@pytest.mark.parametrize("demanding", BOTH)
def test_r08_both_ends_enforce_max_without_qkd_by_their_own_clocks(demanding: Role) -> None:
    """Whoever demands it: the limit goes along with the policy, and both ends keep it."""
    strict = {"policy": Policy.REQUIRE, "max_without_qkd_s": 20}
    client, server = replace(IDLE_CLIENT), replace(SERVER, peer_timeout_s=1e9)
    if demanding is Role.CLIENT:
        client = replace(client, **strict)
    else:
        server = replace(server, **strict)
    for end in BOTH:
        pair = established(client, server)
        start = pair.now
        pair.now += 10
        if demanding is not Role.CLIENT:
            pair.start_epoch(Mode.HYBRID, qkd_keys("fresh"))
            pair.pump()
            start = pair.now
        pair.end(end).handle_timeout(start + 19.9)
        assert pair.end(end).established
        pair.end(end).handle_timeout(start + 20.0)
        pair.collect(end)
        assert pair.last(end, TunnelClosed).reason is Reason.QKD_TOO_OLD


def test_r08_a_classical_epoch_does_not_renew_the_quantum_clock() -> None:
    """``off`` at first, so that classical epochs are allowed; then this end's demand changes."""
    pair = established(IDLE_CLIENT, replace(SERVER, peer_timeout_s=1e9), mode=Mode.HYBRID)
    fresh = pair.server.qkd_age_from
    pair.now += 5
    pair.start_epoch(Mode.CLASSICAL_ONLY)
    pair.pump()
    assert pair.server.epoch == 2
    assert pair.server.qkd_age_from == fresh == 1000.0


def test_r08_only_the_client_starts_an_epoch() -> None:
    pair = established()
    keys = qkd_keys("a")
    with pytest.raises(LocalProtocolError):
        pair.server.start_epoch(Mode.HYBRID, Reason.OPERATOR, keys, pair.now)
    assert keys[0].key == b""
    offer = listen_in(pair.client)
    pair.start_epoch()
    pair.take_output(Role.CLIENT)
    fails(
        pair,
        Reason.UNEXPECTED_MESSAGE,
        lambda: inject_epoch(pair, Role.SERVER, offer[0]),
        Role.CLIENT,
    )


# --- R9: what may change the mode ------------------------------------------------------------


@FIRST_OR_LATER
def test_r09_a_history_that_differs_is_fatal(first: bool) -> None:
    """Somebody between the ends of one attempt, for instance, made a REJECT up."""
    pair = ready(first)
    reject = Reject(pair.client.epoch + 1, 1, Reason.KME_UNREACHABLE, Policy.PREFER, 300)
    intercept(pair.server, message_of(MessageType.REJECT, lambda _m: reject.encode()))
    pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.KME_UNREACHABLE
    pair.start_epoch(Mode.CLASSICAL_ONLY)
    fails(pair, Reason.HISTORY_MISMATCH, pair.pump, Role.SERVER)


@pytest.mark.parametrize("history", [b"", bytes(48)], ids=["none", "another"])
def test_r09_a_client_cannot_hide_or_invent_failed_attempts(history: bytes) -> None:
    pair = established()
    if not history:
        pair.server_keys = lambda _needed: Reason.KEY_NOT_FOUND
        pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
        pair.pump()
    intercept(pair.client, lambda m: [replace(decode_epoch_message(m), history=history).encode()])
    pair.start_epoch()
    fails(pair, Reason.HISTORY_MISMATCH, pair.pump, Role.SERVER)


def test_r09_silence_and_eof_are_no_rejects() -> None:
    """A timeout is this end's own finding, and says so; a lost transport is no event of a mode."""
    pair = established()
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.client.handle_timeout(pair.now + 10)
    pair.collect(Role.CLIENT)
    failed = pair.last(Role.CLIENT, EpochFailed)
    assert (failed.reason, failed.remote) == (Reason.EPOCH_TIMEOUT, False)
    pair.start_epoch(Mode.HYBRID, qkd_keys("b"))
    with pytest.raises(RemoteProtocolError):
        pair.client.receive_eof(pair.now)
    pair.collect(Role.CLIENT)
    assert len(pair.of(Role.CLIENT, EpochFailed)) == 1


def test_r09_accept_comes_only_after_the_key_is_redeemed() -> None:
    pair = established()
    pair.server_keys = None
    sent = listen_in(pair.server)
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    assert not sent
    pair.server.provide_keys(2, 1, qkd_keys("a"), pair.now)
    assert sent[0][0] == MessageType.ACCEPT


@MODES
def test_r09_the_mode_never_changes_inside_an_epoch(mode: Mode) -> None:
    pair = established()
    changed = next(m for m in Mode if m is not mode)
    intercept(pair.server, lambda m: [replace(decode_epoch_message(m), mode=changed).encode()])
    pair.start_epoch(mode, keys_for(mode))
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.CLIENT)


# --- R10: bindings ---------------------------------------------------------------------------

BINDING_FIELDS = [field.name for field in dataclasses.fields(Binding)]


@FIRST_OR_LATER
@pytest.mark.parametrize("name", BINDING_FIELDS)
def test_r10_any_difference_in_the_bindings_is_fatal(name: str, first: bool) -> None:
    """The client lies consistently: its transcript and MACs are made with the altered value."""
    pair = ready(first)
    epochs = client_epochs(pair)
    value = getattr(epochs.binding, name)
    altered = value + "x" if isinstance(value, str) else flip_last(value)
    epochs.binding = replace(epochs.binding, **{name: altered})
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.SERVER)
    assert not pair.of(Role.SERVER, KeysNeeded)[0 if first else 1 :]


def test_r10_swapped_roles_are_fatal() -> None:
    pair = established()
    epochs = client_epochs(pair)
    binding = epochs.binding
    epochs.binding = Binding(
        client_certificate_hash=binding.server_certificate_hash,
        server_certificate_hash=binding.client_certificate_hash,
        client_name=binding.server_name,
        server_name=binding.client_name,
        client_sae_id=binding.server_sae_id,
        server_sae_id=binding.client_sae_id,
    )
    pair.start_epoch()
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.SERVER)


@pytest.mark.parametrize("field", ["local_sae_id", "peer_sae_id"])
@pytest.mark.parametrize("end", BOTH)
def test_r10_ends_configured_with_other_sae_ids_refuse_each_other(field: str, end: Role) -> None:
    changed: dict[str, Any] = {field: "sae-x"}
    client = replace(CLIENT, **changed) if end is Role.CLIENT else CLIENT
    server = replace(SERVER, **changed) if end is Role.SERVER else SERVER
    pair = make_pair(client, server)
    pair.pump()
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.SERVER)


def test_r10_the_connection_id_may_not_change() -> None:
    pair = established()
    client_epochs(pair).connection_id = bytes(16)
    pair.start_epoch()
    fails(pair, Reason.BINDING_MISMATCH, pair.pump, Role.SERVER)


def test_r10_no_sae_id_reaches_the_driver_from_an_offer() -> None:
    """What the server asks its KME with comes from configuration: the event holds no SAE ID."""
    fields = {field.name for field in dataclasses.fields(KeysNeeded)}
    assert fields == {"epoch", "attempt", "keys"}
    assert {field.name for field in dataclasses.fields(OfferedKey)} == {
        "source",
        "size_bytes",
        "key_id",
    }


@pytest.mark.parametrize(
    "keys",
    [
        [],
        qkd_keys("a"),
        qkd_keys("b", "a"),
        qkd_keys("a", "b", "c"),
        qkd_keys("a", "b", size=31),
        qkd_keys("a", "b", size=33),
        qkd_keys("a", "b", size=0),
        [*qkd_keys("a"), *qkd_keys("b", size=33)],
    ],
    ids=["none", "one", "order", "three", "shorter", "longer", "empty", "one longer"],
)
def test_r10_keys_have_exactly_the_announced_ids_and_sizes(keys: list[QkdKey]) -> None:
    pair = established()
    pair.server_keys = lambda _needed: keys
    pair.start_epoch(Mode.HYBRID, qkd_keys("a", "b"))
    pair.pump()
    assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.KEY_INVALID
    assert pair.client.epoch == pair.server.epoch == 1
    assert all(key.key == b"" for key in keys)


@pytest.mark.parametrize("size", [0, 16, 31, 1025])
def test_r10_a_key_of_another_size_is_never_offered(size: int) -> None:
    pair = established()
    with pytest.raises(LocalProtocolError) as caught:
        pair.start_epoch(Mode.HYBRID, [*qkd_keys("a"), *qkd_keys("b", size=size)])
    assert caught.value.reason is Reason.KEY_INVALID
    assert pair.client.epoch_exchange_idle


@pytest.mark.parametrize(
    ("mode", "count"), [(Mode.HYBRID, 0), (Mode.HYBRID, 9), (Mode.CLASSICAL_ONLY, 1)]
)
def test_r10_an_epoch_without_a_key_is_never_hybrid(mode: Mode, count: int) -> None:
    pair = established()
    with pytest.raises(LocalProtocolError) as caught:
        pair.start_epoch(mode, qkd_keys(*(f"k{number}" for number in range(count))))
    assert caught.value.reason is Reason.KEY_INVALID


@pytest.mark.parametrize(
    "ids", [("a", "a"), ("",), ("x" * 129,), ("bell\x07",), ("\ud800",)], ids=repr
)
def test_r10_key_ids_that_a_peer_would_take_for_an_attack_are_never_offered(
    ids: tuple[str, ...],
) -> None:
    """A lying KME must not be able to kill a tunnel through the IDs it gives (see R7)."""
    pair = established()
    keys = [QkdKey(key_id, bytearray(32)) for key_id in ids]
    with pytest.raises(LocalProtocolError) as caught:
        pair.start_epoch(Mode.HYBRID, keys)
    assert caught.value.reason is Reason.KEY_INVALID
    assert all(key.key == b"" for key in keys)
    assert pair.client.epoch_exchange_idle
    pair.start_epoch()
    pair.pump()
    assert pair.server.epoch == 2


def test_r10_several_keys_all_count() -> None:
    for lied in ("a", "b", "c"):
        pair = established()
        pair.server_keys = lambda needed, lied=lied: [  # type: ignore[misc]
            qkd_keys(key.key_id, salt="lie" if key.key_id == lied else "")[0] for key in needed.keys
        ]
        pair.start_epoch(Mode.HYBRID, qkd_keys("a", "b", "c"))
        pair.pump()
        assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.KEY_MISMATCH
