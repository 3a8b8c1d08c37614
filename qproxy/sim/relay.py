"""How a key travels over trusted relays, hop by hop, under one-time pads.

The KME that makes a key K shares a hop key with the first relay, that one another with the
second, and so on. K leaves under the first hop key; every relay takes it off and puts the next
one on::

    KME a            relay 1                       relay 2                       KME b
    K  --K ^ h1-->   (K ^ h1) ^ h1 = K --K ^ h2-->  (K ^ h2) ^ h2 = K --K ^ h3-->   K

So each hop uses up as much of its key as the key is long, what is on the way says nothing without
a hop key, and every relay sees K. One relay in the wrong hands is enough.

The messages between the nodes are not authenticated here; real ones must be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

#: Most sightings that a compromised relay keeps; the oldest go first.
MAX_COPIES: Final = 4096

#: Told of what is on the way between two nodes: the span's name and the sealed key.
Tap = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop's share in the transport of one key.

    Attributes:
        span: its name.
        key: as long as the key that travels; used for it alone.
    """

    span: str
    key: bytearray = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a relay sees of one key that it passes on.

    Attributes:
        span_in: where it came from.
        span_out: where it went.
        hop_key_in: what it came under.
        hop_key_out: what it went under.
        key: the key itself.
    """

    span_in: str
    span_out: str
    hop_key_in: bytes = field(repr=False)
    hop_key_out: bytes = field(repr=False)
    key: bytes = field(repr=False)


class Relay:
    """One trusted node.

    Args:
        name: its name.

    Attributes:
        compromised: whether it keeps a copy of everything it sees.
        copies: what an attacker has, once it is compromised.
        passed_on: how many keys it has passed on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.compromised = False
        self.copies: deque[Sighting] = deque(maxlen=MAX_COPIES)
        self.passed_on = 0

    def pass_on(self, sealed: bytes, before: Hop, after: Hop) -> bytes:
        """Take the key from under one hop key and put it under the next.

        Args:
            sealed: the key under ``before``.
            before: the hop it came over.
            after: the hop it goes over.

        Returns:
            The key under ``after``.
        """
        key = _xor(sealed, before.key)
        self.passed_on += 1
        if self.compromised:
            self.copies.append(
                Sighting(before.span, after.span, bytes(before.key), bytes(after.key), bytes(key))
            )
        sealed = bytes(_xor(key, after.key))
        key[:] = bytes(len(key))
        return sealed


def carry(key: bytearray, hops: Sequence[Hop], relays: Sequence[Relay], tap: Tap) -> bytearray:
    """Bring a key from one end of a path to the other.

    Args:
        key: what travels; it stays with the caller.
        hops: in order, each with a hop key as long as the key. They are overwritten.
        relays: the nodes between them, one fewer.
        tap: told of everything on the way.

    Returns:
        The key as it arrives, owned by the caller.
    """
    sealed = bytes(_xor(key, hops[0].key))
    tap(hops[0].span, sealed)
    for relay, before, after in zip(relays, hops[:-1], hops[1:], strict=True):
        sealed = relay.pass_on(sealed, before, after)
        tap(after.span, sealed)
    arrived = _xor(sealed, hops[-1].key)
    for hop in hops:
        hop.key[:] = bytes(len(hop.key))
    return arrived


def _xor(one: bytes | bytearray, other: bytes | bytearray) -> bytearray:
    if len(one) != len(other):
        raise ValueError("expected a one-time pad as long as what it seals")
    return bytearray(
        (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")
    )
