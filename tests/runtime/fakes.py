"""Fakes for the runtime's tests: a key source in memory, and two gateways' cores over sockets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.sources.base import SourceStatus


class FakeLink:
    """What two fake sources share: a counter of keys.

    Attributes:
        name: stands before every key ID.
        next_number: of the next key.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.next_number = 0


class FakeSource:
    """A key source whose answers a test decides.

    Attributes:
        failure: what every call fails with, or None.
        hang: calls never answer.
        wrong_keys: keys come, but not those the other side has.
        stored: what the status says.
        id_suffix: stands behind every key ID.
        simulated_keys: keys say that they are; the status always does.
        most_keys: how many more it gives, or None for any number.
        given: IDs given out by ``get_keys``.
        redeemed: IDs given out by ``get_keys_by_id``.
    """

    def __init__(self, name: str = "fake", link: FakeLink | None = None) -> None:
        self.name = name
        self.failure: Reason | None = None
        self.hang = False
        self.wrong_keys = False
        self.stored: int | None = 1000
        self.qber: float | None = 0.01
        self.key_rate_bps: float | None = 100_000.0
        self.id_suffix = ""
        self.simulated_keys = True
        self.most_keys: int | None = None
        self.given: list[str] = []
        self.redeemed: list[str] = []
        self.closed = False
        self._link = link or FakeLink()

    async def status(self) -> SourceStatus:
        await self._maybe_fail()
        return SourceStatus(
            stored_key_count=self.stored,
            max_key_count=10_000,
            key_size_bits=256,
            max_key_per_request=128,
            min_key_size_bits=64,
            max_key_size_bits=1024,
            source_kme_id="a",
            target_kme_id="b",
            simulated=True,
            qber=self.qber,
            key_rate_bps=self.key_rate_bps,
        )

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        await self._maybe_fail()
        prefix = f"{self._link.name}-" if self._link.name else ""
        if self.most_keys is not None:
            if self.most_keys < 1:
                raise KeySourceError(Reason.KEYS_EXHAUSTED, "as the test wants it")
            number = min(number, self.most_keys)
            self.most_keys -= number
        first = self._link.next_number
        ids = [f"{prefix}key-{first + offset}{self.id_suffix}" for offset in range(number)]
        self._link.next_number += number
        self.given += ids
        return [self._key(key_id, size_bits) for key_id in ids]

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        await self._maybe_fail()
        self.redeemed += key_ids
        return [self._key(key_id, size_bits) for key_id in key_ids]

    async def aclose(self) -> None:
        self.closed = True

    async def _maybe_fail(self) -> None:
        if self.hang:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise KeySourceError(self.failure, "as the test wants it")

    def _key(self, key_id: str, size_bits: int) -> QkdKey:
        salt = self.name if self.wrong_keys else ""
        secret = hashlib.shake_256(f"{salt}/{key_id}".encode()).digest(size_bits // 8)
        return QkdKey(key_id, bytearray(secret), source=self.name, simulated=self.simulated_keys)
