"""Every row of the table, for every call: classified, survived, and silent about keys."""

from __future__ import annotations

import logging

import pytest
import trio

from qproxy.errors import KeySourceError
from tests.sources.hostile.kme import Kme, client_of, http_json
from tests.sources.hostile.secrecy import all_of, found_in, spellings
from tests.sources.hostile.table import ROWS, STATUS_ROWS, Row

CALLS = ["enc_keys", "dec_keys", "status"]
IDS = ["8a1d3a0c-6e07-4f5e-9a11-0000000000ab", "b"]


@pytest.fixture
def said(caplog, capfd):
    """Gives everything that was logged or printed, by anybody."""
    caplog.set_level(logging.DEBUG)

    def everything():
        records = [f"{record.getMessage()} {vars(record)!r}" for record in caplog.records]
        printed = capfd.readouterr()
        return "\n".join([*records, caplog.text, printed.out, printed.err])

    return everything


async def make_call(source, call):
    """One call; its keys and the error that it ended with."""
    try:
        if call == "status":
            await source.status()
            return [], None
        if call == "enc_keys":
            return await source.get_keys(2, 256), None
        return await source.get_keys_by_id(IDS, 256), None
    except KeySourceError as error:
        return [], error


def check_keys(keys, call, kme):
    """Good keys: as many as asked, whole, and really that KME's."""
    if call == "status":
        return
    assert 1 <= len(keys) <= 2
    assert all(bytes(key.key) in kme.secrets and len(key.key) == 32 for key in keys)
    assert len({key.key_id for key in keys}) == len(keys)
    if call == "dec_keys":
        assert [key.key_id for key in keys] == IDS


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_a_kme_that_misbehaves(row: Row, call, said, autojump_clock):
    kme = Kme()
    async with client_of(kme) as source:
        await source.status()  # so that what follows is the call alone
        kme.misbehave, kme.only = row.answer, call
        keys, error = await make_call(source, call)
        expected = {"enc_keys": row.enc, "dec_keys": row.dec, "status": row.status}[call]
        assert (error and error.reason) == expected
        if error is None:
            check_keys(keys, call, kme)

        await trio.testing.wait_all_tasks_blocked()  # what the KME closes is closed
        kme.misbehave = None
        again, survived = await make_call(source, call)
        assert survived is None
        check_keys(again, call, kme)
        shown = repr(source) + repr(keys) + repr(again)
    told = said() + shown + ("" if error is None else all_of(error))
    assert found_in(told, kme.secrets) == []


@pytest.mark.parametrize("row", STATUS_ROWS, ids=[row[0] for row in STATUS_ROWS])
async def test_a_status_that_is_odd(row):
    _, document, expected = row
    kme = Kme(misbehave=lambda *_: [http_json(document)], only="status")
    async with client_of(kme) as source:
        _, error = await make_call(source, "status")
        assert (error and error.reason) == expected
        kme.misbehave = None
        assert (await make_call(source, "status"))[1] is None
        keys, error = await make_call(source, "enc_keys")
        assert error is None
        check_keys(keys, "enc_keys", kme)


def test_the_search_for_secrets_finds_them():
    """So that finding none means something."""
    secret = bytes(range(7, 39))
    for text in spellings(secret):
        assert found_in(f"key {text} is broken", [secret])
        assert found_in(text[6:21], [secret])
    assert found_in("nothing of it", [secret]) == []
    error = KeyError("x")
    error.__cause__ = ValueError(secret)
    assert found_in(all_of(error), [secret])


def test_the_rows_have_names_of_their_own():
    names = [row.name for row in ROWS] + [row[0] for row in STATUS_ROWS]
    assert len(set(names)) == len(names) > 200
