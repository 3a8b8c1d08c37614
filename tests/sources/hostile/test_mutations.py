"""Right answers with something wrong in them somewhere: an error of ours, or a right key."""

from __future__ import annotations

import random

import pytest
import trio

from qproxy.errors import KeySourceError
from tests.sources.hostile.kme import CLOSE, Kme, client_of
from tests.sources.hostile.secrecy import all_of, found_in

ROUNDS = 80


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to three small accidents."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at, size = chance.randrange(len(changed)), chance.randint(1, 8)
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = chance.randbytes(size)
            case 3:
                changed[at:at] = changed[at : at + 40]
            case 4:
                changed[at:at] = chance.choice([b"\r\n", b"\0", b'"', b"{", b"]", b"9" * 30, b":"])
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("call", ["enc_keys", "dec_keys", "status"])
@pytest.mark.parametrize("seed", range(4))
async def test_an_answer_with_accidents_in_it(call, seed, autojump_clock):
    chance = random.Random(f"{call} {seed}")
    kme = Kme()

    def answer(_kme, asked):
        (right,) = kme.behave(asked)
        return [mutated(right, chance), CLOSE]

    survived, told = 0, []
    async with client_of(kme) as source:
        await source.status()
        for _ in range(ROUNDS):
            kme.misbehave, kme.only = answer, call
            try:
                if call == "status":
                    await source.status()
                elif call == "enc_keys":
                    for key in await source.get_keys(2, 256):
                        assert len(key.key) == 32
                else:
                    for key in await source.get_keys_by_id(["a", "b"], 256):
                        assert len(key.key) == 32
                survived += 1
            except KeySourceError as error:
                told.append(all_of(error))
            await trio.testing.wait_all_tasks_blocked()
        kme.misbehave = None
        await source.status()
        assert await source.get_keys(2, 256)
    assert told
    assert survived + len(told) == ROUNDS
    assert found_in("\n".join(set(told)), kme.secrets) == []
