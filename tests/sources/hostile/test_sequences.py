"""What a KME may do wrong over several calls, and by GET."""

from __future__ import annotations

import socket

import pytest
import trio

from qproxy.config.model import KeyRequestMethod
from qproxy.errors import KeySourceError, Reason
from qproxy.net.http_client import HttpClient
from qproxy.sources.etsi014 import Etsi014Source, KeyCalls
from tests.sources.hostile.kme import CLOSE, Kme, client_of, http, http_json


async def refused(awaitable) -> Reason:
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value.reason


def answers(*made):
    """One answer after the other; the last one stays. None is the right answer."""
    rest = list(made)

    def answer(kme, asked):
        make = rest.pop(0) if len(rest) > 1 else rest[0]
        return kme.behave(asked) if make is None else make(kme, asked)

    return answer


def gives(*entries):
    return lambda _kme, _asked: [http_json({"keys": list(entries)})]


async def test_one_key_in_two_answers_under_two_ids(autojump_clock):
    kme = Kme()
    entry = kme.entry()
    kme.misbehave = answers(gives(entry), gives({**entry, "key_ID": "another"}))
    async with client_of(kme) as source:
        await source.get_keys(1, 256)
        assert await refused(source.get_keys(1, 256)) is Reason.KEY_INVALID
        kme.misbehave = gives({**entry, "key_ID": "a third"})
        assert await refused(source.get_keys_by_id(["a third"], 256)) is Reason.KEY_INVALID
        kme.misbehave = None
        assert len(await source.get_keys(1, 256)) == 1


async def test_one_id_in_two_answers_with_two_keys():
    kme = Kme()
    entry = kme.entry()
    other = {**kme.entry(), "key_ID": entry["key_ID"]}
    kme.misbehave = answers(gives(entry), gives(other))
    async with client_of(kme) as source:
        await source.get_keys(1, 256)
        assert await refused(source.get_keys(1, 256)) is Reason.KME_INVALID_RESPONSE
        kme.misbehave = None
        assert len(await source.get_keys(1, 256)) == 1


async def test_the_same_answer_for_ever():
    """Such as one from a cache that nobody told not to be there."""
    kme = Kme()
    kme.misbehave = gives(kme.entry())
    async with client_of(kme) as source:
        await source.get_keys(1, 256)
        for _ in range(3):
            assert await refused(source.get_keys(1, 256)) is Reason.KME_INVALID_RESPONSE


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, Reason.KME_UNAUTHORIZED), (400, Reason.KME_BAD_REQUEST), (404, Reason.KEY_NOT_FOUND)],
)
async def test_a_second_redemption_that_is_refused(status, reason):
    kme = Kme()
    kme.misbehave = answers(None, lambda *_: [http_json({"message": "no"}, f"{status} X")])
    async with client_of(kme) as source:
        (key,) = await source.get_keys_by_id(["a"], 256)
        assert await refused(source.get_keys_by_id(["a"], 256)) is reason
        assert bytes(key.key) in kme.secrets  # and the first is still whole


async def test_a_kme_that_forgets_a_key_as_soon_as_it_issues_the_next():
    kme = Kme()
    not_found = {"message": "One or more keys specified are not found on KME."}

    def answer(_kme, asked):
        last = kme.entries_given[-1]["key_ID"]
        if asked.call == "dec_keys" and asked.key_ids != [last]:
            return [http_json(not_found, "400 Bad Request")]
        return kme.behave(asked)

    async with client_of(kme) as source:
        older, newer = await source.get_keys(2, 256)
        kme.misbehave = answer
        assert await refused(source.get_keys_by_id([older.key_id], 256)) is Reason.KEY_NOT_FOUND
        both = source.get_keys_by_id([older.key_id, newer.key_id], 256)
        assert await refused(both) is Reason.KEY_NOT_FOUND
        assert len(await source.get_keys_by_id([newer.key_id], 256)) == 1


async def test_a_get_that_ignores_number_and_size():
    """It gives one key of its own size; POST is heeded."""
    kme = Kme()

    def answer(_kme, asked):
        if asked.method == "GET":
            return [http_json({"keys": [kme.entry(size_bytes=16)]})]
        return kme.behave(asked)

    kme.misbehave, kme.only = answer, "enc_keys"
    async with client_of(kme) as source:
        assert len(await source.get_keys(3, 256)) == 3
        assert len(await source.get_keys(1, 256)) == 1
    methods = [asked.method for asked in kme.asked if asked.call == "enc_keys"]
    assert methods == ["GET", "POST", "POST"]


@pytest.mark.parametrize("refusal", ["405 X", "501 X", "404 X"])
@pytest.mark.parametrize("call", ["enc_keys", "dec_keys"])
async def test_a_server_without_get(call, refusal):
    kme = Kme()

    def answer(_kme, asked):
        return [http(b"<html>", refusal)] if asked.method == "GET" else kme.behave(asked)

    kme.misbehave, kme.only = answer, call
    async with client_of(kme) as source:
        for number in range(2):
            if call == "enc_keys":
                assert len(await source.get_keys(1, 256)) == 1
            else:
                assert len(await source.get_keys_by_id([f"id-{number}"], 256)) == 1
    assert [asked.method for asked in kme.asked] == ["GET", "POST", "POST"]


async def test_a_server_without_post_where_get_is_configured():
    kme = Kme()

    def answer(_kme, asked):
        return [http(b"<html>", "405 X")] if asked.method == "POST" else kme.behave(asked)

    kme.misbehave = answer
    calls = KeyCalls(method=KeyRequestMethod.GET)
    async with client_of(kme, calls=calls) as source:
        assert len(await source.get_keys(3, 256)) == 3
        assert await refused(source.get_keys_by_id(["a", "b"], 256)) is Reason.KME_BAD_REQUEST


async def test_a_kme_that_gives_one_key_whatever_was_asked():
    kme = Kme()
    kme.misbehave = lambda *_: [http_json({"keys": [kme.entry()]})]
    kme.only = "enc_keys"
    async with client_of(kme) as source:
        assert len(await source.get_keys(5, 256)) == 5
    assert len(kme.asked) == 6


async def test_a_kme_that_says_that_it_has_many_and_gives_few():
    kme = Kme()
    kme.misbehave = answers(
        gives(kme.entry()), gives(kme.entry()), lambda *_: [http_json({"message": "no"}, "503 X")]
    )
    kme.only = "enc_keys"
    async with client_of(kme) as source:
        keys = await source.get_keys(5, 256)
        assert len(keys) == 2  # those that came are of use
        assert all(bytes(key.key) in kme.secrets for key in keys)
        assert await refused(source.get_keys(5, 256)) is Reason.KME_UNAVAILABLE


async def test_a_key_call_is_never_sent_twice_however_it_ends():
    """Neither by GET nor by POST, on a connection that was used before."""
    for method in (KeyRequestMethod.GET, KeyRequestMethod.POST):
        kme = Kme()
        kme.misbehave = answers(None, lambda *_: [CLOSE])
        async with client_of(kme, calls=KeyCalls(method=method)) as source:
            await source.get_keys(1, 256)
            assert await refused(source.get_keys(1, 256)) is Reason.KME_UNREACHABLE
            assert await refused(source.get_keys_by_id(["a"], 256)) is Reason.KME_UNREACHABLE
        assert [asked.call for asked in kme.asked] == ["enc_keys", "enc_keys", "dec_keys"]


async def test_a_status_may_be_sent_twice():
    kme = Kme()
    kme.misbehave = answers(None, lambda *_: [CLOSE], None)
    async with client_of(kme) as source:
        await source.status()
        await source.status()
    assert len(kme.asked) == 3


async def test_redirects_are_never_followed():
    other = Kme()
    kme = Kme()
    async with client_of(other), client_of(kme) as source:
        target = f"Location: http://127.0.0.1:{other.port}/api/v1/keys/gw-b/status"
        for status in (301, 302, 303, 307, 308):
            kme.misbehave = lambda *_, status=status: [http(b"", f"{status} X", target)]
            assert await refused(source.status()) is Reason.KME_INVALID_RESPONSE
            assert await refused(source.get_keys(1, 256)) is Reason.KME_INVALID_RESPONSE
    assert other.connections == 0


async def test_calls_side_by_side_survive_one_another(autojump_clock):
    """One hangs, one breaks, one is right: each gets its own end."""
    kme = Kme()
    ends = {}

    def answer(_kme, asked):
        if asked.call == "status":
            return [b"HTTP/1.1 200 OK\r\n", 1000]
        if asked.key_ids == ["broken"]:
            return [b"\0", CLOSE]
        return kme.behave(asked)

    kme.misbehave = answer
    async with client_of(kme) as source:

        async def end_of(name, make):
            try:
                await make()
                ends[name] = None
            except KeySourceError as error:
                ends[name] = error.reason

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_of, "status", source.status)
            for name in ("broken", "right"):
                nursery.start_soon(
                    end_of, name, lambda name=name: source.get_keys_by_id([name], 256)
                )
    assert ends == {
        "status": Reason.KME_TIMEOUT,
        "broken": Reason.KME_INVALID_RESPONSE,
        "right": None,
    }


async def test_a_caller_that_gives_up_leaves_nothing_behind(autojump_clock):
    kme = Kme(misbehave=lambda *_: [b"HTTP/1.1 200 OK\r\n", 1000])
    async with client_of(kme) as source:
        for _ in range(20):  # more than there are connections
            with trio.move_on_after(0.1):
                await source.get_keys(1, 256)
        kme.misbehave = None
        assert len(await source.get_keys(1, 256)) == 1


async def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source = Etsi014Source("kme", HttpClient(tls=None), f"http://127.0.0.1:{port}", "a", "b")
    assert await refused(source.status()) is Reason.KME_UNREACHABLE
    await source.aclose()


async def test_a_url_that_is_none_is_an_error_like_any_other():
    source = Etsi014Source("kme", HttpClient(tls=None), "ftp://[", "a", "b")
    assert await refused(source.status()) is Reason.KME_INVALID_RESPONSE
    await source.aclose()
