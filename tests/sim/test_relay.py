"""One-time pads, hop by hop: what is on the way, what a relay sees, and what is used up."""

import random
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.sim.events import Compromise, Restore
from qproxy.sim.relay import MAX_COPIES, Hop, Relay, carry
from tests.sim.helpers import Trial, fixed, network_of


def xor(one, other):
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


@given(st.integers(1, 40), st.sampled_from([8, 32, 128]))
def test_a_key_arrives_as_it_left_and_every_message_is_sealed_with_its_hops_key(hops, size):
    randomness = random.Random(hops)
    key = bytearray(randomness.randbytes(size))
    pads = [randomness.randbytes(size) for _ in range(hops)]
    relays = [Relay(f"r{number}") for number in range(hops - 1)]
    wire = []
    arrived = carry(
        key,
        [Hop(f"s{number}", bytearray(pad)) for number, pad in enumerate(pads)],
        relays,
        lambda span, sealed: wire.append((span, sealed)),
    )
    assert arrived == key
    assert arrived is not key
    assert wire == [(f"s{number}", xor(key, pad)) for number, pad in enumerate(pads)]
    assert [relay.passed_on for relay in relays] == [1] * (hops - 1)


def test_hop_keys_are_overwritten_once_they_are_used():
    pads = [bytearray(b"\x11" * 32), bytearray(b"\x22" * 32)]
    carry(
        bytearray(b"k" * 32),
        [Hop("one", pads[0]), Hop("two", pads[1])],
        [Relay("r")],
        lambda *_: None,
    )
    assert pads == [bytearray(32), bytearray(32)]


def test_a_pad_of_another_length_than_the_key_is_refused():
    with pytest.raises(ValueError, match="one-time pad"):
        carry(bytearray(32), [Hop("one", bytearray(16))], [], lambda *_: None)


def test_a_hop_in_a_repr_shows_no_key():
    assert "key" not in repr(Hop("one", bytearray(b"secret")))


CHAIN = network_of(
    [fixed("one", "kme-a", "r1"), fixed("two", "r1", "r2"), fixed("three", "r2", "kme-b")],
    relays=("r1", "r2"),
)


def test_every_hop_uses_up_as_much_as_the_key_is_long():
    trial = Trial(CHAIN)
    assert trial.share(number=3) == 3
    for span in trial.network.spans.values():
        assert span.report(0.0).used_bits == 3 * 256
        assert span.stored_bits(0.0) == 25_600 - 3 * 256


def test_an_honest_relay_keeps_nothing_and_a_compromised_one_everything():
    trial = Trial(CHAIN)
    early = trial.draw()
    trial.apply(Compromise("r1"))
    later = trial.draw(number=2)
    trial.apply(Restore(relay="r1"))
    trial.draw()
    relays = trial.network.relays
    assert [copy.key for copy in relays["r1"].copies] == list(later.values())
    assert not relays["r2"].copies
    assert relays["r1"].passed_on == relays["r2"].passed_on == 4
    assert not {copy.key for copy in relays["r1"].copies} & set(early.values())


def test_what_a_compromised_relay_has_opens_what_was_on_the_way_to_it_and_from_it():
    trial = Trial(CHAIN)
    trial.apply(Compromise("r2"))
    (key,) = trial.draw().values()
    (copy,) = trial.network.relays["r2"].copies
    wire = dict(trial.wire)
    assert (copy.span_in, copy.span_out, copy.key) == ("two", "three", key)
    assert xor(wire["two"], copy.hop_key_in) == xor(wire["three"], copy.hop_key_out) == key
    assert "key=" not in repr(copy)


def test_the_wire_between_relays_never_carries_a_key_nor_the_same_pad_twice():
    trial = Trial(CHAIN)
    keys = [key for _ in range(20) for key in trial.draw().values()]
    messages = [sealed for _, sealed in trial.wire]
    assert len(messages) == 60
    assert not set(messages) & set(keys)
    pads = {
        xor(sealed, keys[number // 3]) for number, sealed in enumerate(messages)
    }  # what only the two ends of a hop know
    assert len(pads) == 60


def test_keys_from_the_other_side_take_the_same_way_back():
    trial = Trial(CHAIN)
    assert trial.share("gw-b", "gw-a", 2) == 2
    assert [span for span, _ in trial.wire] == ["three", "two", "one"] * 2


def test_a_single_span_carries_nothing_for_its_ends_share_the_key_already():
    trial = Trial(network_of([fixed("one", "kme-a", "kme-b")]))
    assert trial.share() == 1
    assert trial.wire == []
    assert trial.network.spans["one"].report(0.0).used_bits == 256


def test_what_a_relay_keeps_is_bounded():
    relay = Relay("r")
    relay.compromised = True
    assert relay.copies.maxlen == MAX_COPIES
    hop = Hop("s", bytearray(secrets.token_bytes(8)))
    relay.pass_on(bytes(8), hop, hop)
    assert len(relay.copies) == 1
