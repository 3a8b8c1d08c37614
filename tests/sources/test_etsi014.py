"""The ETSI GS QKD 014 client against a KME that answers what a test tells it to."""

import base64
import json
import traceback
from collections import deque

import pytest
import trio

from qproxy.config.model import KeyRequestMethod
from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.net.http_client import HttpClientError, HttpErrorKind, HttpResponse
from qproxy.sources.base import KeySource
from qproxy.sources.etsi014 import Etsi014Source, KeyCalls, LinkFigures, _source_status
from qproxy.sources.etsi014_wire import ErrorMessage, decode_status
from qproxy.sources.etsi014_wire import decode_key_container as decode
from qproxy.sources.http import TRANSPORT_REASONS

BASE = "https://kme.example:8441/api/v1/keys/gw-b"
UUID = "6f2ab81c-9f0e-4f3a-8b56-2d51c0ffee00"
NOT_FOUND = "one or more keys specified are not found on KME"
STATUS = {
    "source_KME_ID": "kme-a",
    "target_KME_ID": "kme-b",
    "master_SAE_ID": "gw-a",
    "slave_SAE_ID": "gw-b",
    "key_size": 256,
    "stored_key_count": 7,
    "max_key_count": 100,
    "max_key_per_request": 128,
    "max_key_size": 1024,
    "min_key_size": 64,
    "max_SAE_ID_count": 0,
}


class FakeKme:
    """In place of the HTTP client: gives prepared answers, keeps what was asked."""

    def __init__(self):
        self.asked = []
        self.answers = deque()
        self.closed = False

    def answers_with(self, *answers):
        self.answers.extend(answers)

    async def request(self, method, url, *, json=None, repeatable=False):
        assert repeatable == url.endswith("/status")
        self.asked.append((method, url) if json is None else (method, url, json))
        await trio.lowlevel.checkpoint()
        answer = self.answers.popleft()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def aclose(self):
        self.closed = True


def response(document, status=200):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return HttpResponse(status, {}, body)


def key(number, size_bytes=32):
    return f"id-{number}", bytes([number + 1]) * size_bytes


def container(*keys, **more):
    items = [{"key_ID": i, "key": base64.b64encode(secret).decode()} for i, secret in keys]
    return response({"keys": items, **more})


def error(status, message="", **more):
    return response({"message": message, **more}, status)


@pytest.fixture
def kme():
    return FakeKme()


async def asked_in_vain(kme, source):
    """This KME tells nothing of itself, so whatever is asked for is asked for at once."""
    kme.answers_with(response(b"<html>", 500))
    with pytest.raises(KeySourceError):
        await source.status()
    kme.asked.clear()
    return source


@pytest.fixture
async def source(kme):
    source = Etsi014Source("kme-a", kme, "https://kme.example:8441/", "gw-a", "gw-b")
    return await asked_in_vain(kme, source)


async def refused(awaitable):
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value


def shown(keys):
    return [(k.key_id, bytes(k.key)) for k in keys]


# --- what is asked --------------------------------------------------------------------------


async def test_status(kme, source):
    kme.answers_with(response(STATUS))
    typed: KeySource = source
    status = await typed.status()
    assert kme.asked == [("GET", f"{BASE}/status")]
    assert (status.source_kme_id, status.target_kme_id) == ("kme-a", "kme-b")
    assert (status.stored_key_count, status.max_key_count) == (7, 100)
    assert (status.key_size_bits, status.max_key_per_request) == (256, 128)
    assert (status.simulated, status.qber, status.key_rate_bps) == (False, None, None)


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ({"simulated": True, "qber": 0.01, "key_rate_bps": 5}, (True, 0.01, 5.0)),
        ({"simulated": "yes", "qber": "0.01", "key_rate_bps": -1}, (False, None, None)),
        ({"simulated": 1, "qber": True, "key_rate_bps": 10**400}, (False, None, None)),
        ({"qber": 1.5, "key_rate_bps": None}, (False, None, None)),
    ],
    ids=str,
)
async def test_what_a_status_extension_may_say(kme, source, extension, expected):
    kme.answers_with(response({**STATUS, "status_extension": extension}))
    status = await source.status()
    assert (status.simulated, status.qber, status.key_rate_bps) == expected


async def test_enc_keys_is_a_get_with_number_and_size(kme, source):
    kme.answers_with(container(key(1), key(2)))
    keys = await source.get_keys(2, 256)
    assert kme.asked == [("GET", f"{BASE}/enc_keys?number=2&size=256")]
    assert shown(keys) == [key(1), key(2)]
    assert [k.source for k in keys] == ["kme-a", "kme-a"]


async def test_dec_keys_of_one_id_is_a_get(kme, source):
    kme.answers_with(container(("a b/ü", b"k" * 32)))
    keys = await source.get_keys_by_id(["a b/ü"], 256)
    assert kme.asked == [("GET", f"{BASE}/dec_keys?key_ID=a%20b%2F%C3%BC")]
    assert shown(keys) == [("a b/ü", b"k" * 32)]


async def test_dec_keys_of_several_ids_is_a_post(kme, source):
    kme.answers_with(container(key(1), key(2)))
    await source.get_keys_by_id(["id-1", "id-2"], 256)
    body = {"key_IDs": [{"key_ID": "id-1"}, {"key_ID": "id-2"}]}
    assert kme.asked == [("POST", f"{BASE}/dec_keys", body)]


async def test_sae_ids_are_percent_encoded(kme):
    source = Etsi014Source("k", kme, "https://kme/prefix", "gw-a", "C=NL/O=a b?#%ü")
    kme.answers_with(response(STATUS))
    await source.status()
    assert kme.asked[0][1] == (
        "https://kme/prefix/api/v1/keys/C%3DNL%2FO%3Da%20b%3F%23%25%C3%BC/status"
    )


@pytest.mark.parametrize("sae_id", ["", ".", "..", "a\nb", "a" * 257, "\ud800"])
def test_sae_ids_that_cannot_stand_in_a_url_are_refused(kme, sae_id):
    for pair in ((sae_id, "gw-b"), ("gw-a", sae_id)):
        with pytest.raises(ConfigError):
            Etsi014Source("k", kme, "https://kme", *pair)


async def test_closing_closes_the_client(kme, source):
    await source.aclose()
    assert kme.closed


@pytest.mark.parametrize(
    ("number", "size_bits"), [(0, 256), (-1, 256), (1025, 256), (1, 0), (1, 12), (1, 8200)]
)
async def test_impossible_requests_are_never_sent(kme, source, number, size_bits):
    caught = await refused(source.get_keys(number, size_bits))
    assert (caught.reason, caught.retryable) == (Reason.KME_BAD_REQUEST, False)
    assert kme.asked == []


@pytest.mark.parametrize(
    "key_ids", [[""], ["a" * 129], ["a\0"], ["a\r\nb"], ["\ud800"], ["a", "a"]], ids=repr
)
async def test_ids_no_kme_can_have_issued_are_never_sent(kme, source, key_ids):
    assert (await refused(source.get_keys_by_id(key_ids, 256))).reason is Reason.KEY_NOT_FOUND
    assert kme.asked == []


async def test_no_ids_at_all_are_never_sent(kme, source):
    assert (await refused(source.get_keys_by_id([], 256))).reason is Reason.KME_BAD_REQUEST
    assert kme.asked == []


# --- simulated is said of keys as well ------------------------------------------------------


async def test_keys_are_simulated_where_the_container_says_so(kme, source):
    kme.answers_with(
        container(key(1), key_container_extension={"simulated": True}), container(key(2))
    )
    assert (await source.get_keys(1, 256))[0].simulated
    assert not (await source.get_keys(1, 256))[0].simulated


async def test_keys_are_simulated_where_the_last_status_said_so(kme, source):
    kme.answers_with(
        response({**STATUS, "status_extension": {"simulated": True}}),
        container(key(1)),
        container(key(2)),
    )
    await source.status()
    assert (await source.get_keys(1, 256))[0].simulated
    assert (await source.get_keys_by_id(["id-2"], 256))[0].simulated


# --- servers that differ --------------------------------------------------------------------


@pytest.mark.parametrize("answer", [error(405), error(501), response(b"<html>", 404)], ids=repr)
async def test_a_server_without_get_is_asked_by_post_from_then_on(kme, source, answer):
    kme.answers_with(answer, container(key(1)), container(key(2)), container(key(3)))
    assert shown(await source.get_keys(1, 256)) == [key(1)]
    assert shown(await source.get_keys(1, 256)) == [key(2)]
    assert shown(await source.get_keys_by_id(["id-3"], 256)) == [key(3)]
    post = ("POST", f"{BASE}/enc_keys", {"number": 1, "size": 256})
    assert kme.asked[1:3] == [post, post]
    assert kme.asked[3][0] == "POST"


async def test_dec_keys_goes_over_to_post_as_well(kme, source):
    kme.answers_with(error(405), container(key(1)))
    assert shown(await source.get_keys_by_id(["id-1"], 256)) == [key(1)]


async def test_a_server_whose_get_ignores_number_is_asked_for_the_rest_by_post(kme, source):
    kme.answers_with(container(key(1)), container(key(2), key(3)), container(key(4)))
    assert shown(await source.get_keys(3, 256)) == [key(1), key(2), key(3)]
    assert kme.asked[1] == ("POST", f"{BASE}/enc_keys", {"number": 2, "size": 256})
    await source.get_keys(1, 256)
    assert kme.asked[2][0] == "POST"


async def test_a_server_whose_get_ignores_size_is_asked_by_post(kme, source):
    kme.answers_with(container(key(1, 16)), container(key(2)))
    assert shown(await source.get_keys(1, 256)) == [key(2)]


async def test_one_key_under_two_ids_in_two_answers_is_refused(kme, source):
    kme.answers_with(container(("a", b"k" * 32)), container(("b", b"k" * 32)))
    assert (await refused(source.get_keys(2, 256))).reason is Reason.KEY_INVALID


async def test_one_key_under_two_ids_in_two_calls_is_refused(kme, source):
    kme.answers_with(container(("a", b"k" * 32)), container(("b", b"k" * 32)))
    assert len(await source.get_keys(1, 256)) == 1
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KEY_INVALID
    kme.answers_with(container(("c", b"k" * 32)))
    assert (await refused(source.get_keys_by_id(["c"], 256))).reason is Reason.KEY_INVALID


async def test_one_id_in_two_calls_for_fresh_keys_is_refused(kme, source):
    kme.answers_with(container((UUID, b"k" * 32)), container((UUID.upper(), b"l" * 32)))
    assert len(await source.get_keys(1, 256)) == 1
    caught = await refused(source.get_keys(1, 256))
    assert caught.reason is Reason.KME_INVALID_RESPONSE


async def test_the_same_key_redeemed_again_is_the_callers_affair(kme, source):
    """The gateway claims each ID once before it comes here."""
    kme.answers_with(container(("a", b"k" * 32)), container(("a", b"k" * 32)))
    for _ in range(2):
        assert shown(await source.get_keys_by_id(["a"], 256)) == [("a", b"k" * 32)]


async def test_a_uuid_may_come_back_in_other_capitals(kme, source):
    kme.answers_with(container((UUID.lower(), b"k" * 32)))
    assert shown(await source.get_keys_by_id([UUID.upper()], 256)) == [(UUID.upper(), b"k" * 32)]
    assert (await refused(source.get_keys_by_id([UUID, UUID.upper()], 256))).reason is (
        Reason.KEY_NOT_FOUND
    )
    kme.answers_with(container(("ID-1", b"m" * 32)))
    caught = await refused(source.get_keys_by_id(["id-1"], 256))
    assert caught.reason is Reason.KME_INVALID_RESPONSE


async def test_one_id_in_two_answers_is_refused(kme, source):
    kme.answers_with(container(("a", b"k" * 32)), container(("a", b"l" * 32)))
    assert (await refused(source.get_keys(2, 256))).reason is Reason.KME_INVALID_RESPONSE


async def test_dec_keys_are_put_into_the_order_asked(kme, source):
    kme.answers_with(container(key(3), key(1), key(2)))
    keys = await source.get_keys_by_id(["id-1", "id-2", "id-3"], 256)
    assert shown(keys) == [key(1), key(2), key(3)]


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
async def test_more_enc_keys_than_asked_are_refused(kme, source, number):
    kme.answers_with(container(*[key(i) for i in range(number + 1)]))
    assert (await refused(source.get_keys(number, 256))).reason is Reason.KME_INVALID_RESPONSE


async def test_a_server_that_gives_no_key_is_exhausted(kme, source):
    kme.answers_with(container(), container())
    assert (await refused(source.get_keys(2, 256))).reason is Reason.KEYS_EXHAUSTED
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KEYS_EXHAUSTED
    assert [asked[0] for asked in kme.asked] == ["GET", "GET"]  # which says nothing against GET


@pytest.mark.parametrize("size_bytes", [1, 31, 33, 64])
async def test_enc_keys_of_another_length_are_refused(kme, source, size_bytes):
    kme.answers_with(container(key(1, size_bytes)), container(key(2, size_bytes)))
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KEY_INVALID


@pytest.mark.parametrize("size_bytes", [1, 31, 33, 64])
async def test_dec_keys_of_another_length_are_refused(kme, source, size_bytes):
    kme.answers_with(container(key(1, size_bytes)))
    assert (await refused(source.get_keys_by_id(["id-1"], 256))).reason is Reason.KEY_INVALID


async def test_keys_that_are_all_zero_are_refused(kme, source):
    zero = container(("z", bytes(32)))
    kme.answers_with(zero, zero)
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KEY_INVALID
    assert (await refused(source.get_keys_by_id(["z"], 256))).reason is Reason.KEY_INVALID


async def test_one_key_under_two_ids_is_refused(kme, source):
    twice = container(("a", b"k" * 32), ("b", b"k" * 32))
    kme.answers_with(twice, twice)
    assert (await refused(source.get_keys(2, 256))).reason is Reason.KEY_INVALID
    assert (await refused(source.get_keys_by_id(["a", "b"], 256))).reason is Reason.KEY_INVALID


async def test_one_id_twice_is_refused(kme, source):
    twice = container(("a", b"k" * 32), ("a", b"l" * 32))
    kme.answers_with(twice, twice)
    assert (await refused(source.get_keys(2, 256))).reason is Reason.KME_INVALID_RESPONSE
    caught = await refused(source.get_keys_by_id(["a"], 256))
    assert caught.reason is Reason.KME_INVALID_RESPONSE


async def test_an_id_the_other_site_would_not_ask_for_is_refused(kme, source):
    kme.answers_with(container(("a\r\nb", b"k" * 32)))
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KME_INVALID_RESPONSE


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([key(1)], Reason.KEY_NOT_FOUND),
        ([], Reason.KEY_NOT_FOUND),
        ([key(1), key(3)], Reason.KME_INVALID_RESPONSE),
        ([key(1), key(2), key(3)], Reason.KME_INVALID_RESPONSE),
    ],
)
async def test_other_dec_keys_than_asked_are_refused(kme, source, given, reason):
    kme.answers_with(container(*given))
    assert (await refused(source.get_keys_by_id(["id-1", "id-2"], 256))).reason is reason


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b'{"message":"no"}', b'{"keys":[{}]}'], ids=repr
)
async def test_an_answer_that_cannot_be_read_is_refused(kme, source, body):
    kme.answers_with(response(body), response(body), response(body))
    for call in (source.get_keys(1, 256), source.get_keys_by_id(["a"], 256), source.status()):
        assert (await refused(call)).reason is Reason.KME_INVALID_RESPONSE


# --- what failures mean ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason", "retryable"),
    [
        (HttpErrorKind.CONNECT, Reason.KME_UNREACHABLE, True),
        (HttpErrorKind.TLS, Reason.KME_TLS, False),
        (HttpErrorKind.TIMEOUT, Reason.KME_TIMEOUT, True),
        (HttpErrorKind.LOST, Reason.KME_UNREACHABLE, True),
        (HttpErrorKind.PROTOCOL, Reason.KME_INVALID_RESPONSE, True),
        (HttpErrorKind.TOO_LARGE, Reason.KME_INVALID_RESPONSE, True),
    ],
)
async def test_what_the_transport_says(kme, source, kind, reason, retryable):
    kme.answers_with(*[HttpClientError(kind, "said by the client")] * 3)
    for call in (source.get_keys(1, 256), source.get_keys_by_id(["a"], 256), source.status()):
        caught = await refused(call)
        assert (caught.reason, caught.retryable, caught.status) == (reason, retryable, None)


def test_every_kind_of_transport_failure_has_a_reason():
    assert set(TRANSPORT_REASONS) == set(HttpErrorKind)


ENC, DEC = "enc", "dec"


@pytest.mark.parametrize(
    ("call", "answer", "reason", "retryable"),
    [
        (ENC, error(401), Reason.KME_UNAUTHORIZED, False),
        (DEC, error(401), Reason.KME_UNAUTHORIZED, False),
        (ENC, response(b"Forbidden", 403), Reason.KME_UNAUTHORIZED, False),
        (ENC, error(400, "size shall be a multiple of 8"), Reason.KME_BAD_REQUEST, False),
        (ENC, error(400), Reason.KME_BAD_REQUEST, False),
        (ENC, response(b"<html>", 400), Reason.KME_BAD_REQUEST, False),
        (DEC, error(400, NOT_FOUND), Reason.KEY_NOT_FOUND, False),
        (DEC, error(400, NOT_FOUND.upper() + "."), Reason.KEY_NOT_FOUND, False),
        (DEC, error(400, "key_IDs is missing"), Reason.KME_BAD_REQUEST, False),
        (DEC, error(404, "no"), Reason.KEY_NOT_FOUND, False),
        (DEC, error(409), Reason.KEY_NOT_FOUND, False),
        (DEC, error(410), Reason.KEY_NOT_FOUND, False),
        (DEC, error(412), Reason.KEY_NOT_FOUND, False),
        (DEC, error(503, NOT_FOUND), Reason.KEY_NOT_FOUND, False),
        (DEC, error(503), Reason.KME_UNAVAILABLE, True),
        (ENC, error(503), Reason.KME_UNAVAILABLE, True),
        (ENC, response(b"<html>", 503), Reason.KME_UNAVAILABLE, True),
        (ENC, error(504), Reason.KME_UNAVAILABLE, True),
        (ENC, error(500), Reason.KME_UNAVAILABLE, True),
        (ENC, error(429), Reason.KME_UNAVAILABLE, True),
        (ENC, error(503, "not enough keys are stored"), Reason.KEYS_EXHAUSTED, True),
        (ENC, error(400, "Insufficient key material"), Reason.KEYS_EXHAUSTED, True),
        (ENC, error(404, "No more keys"), Reason.KEYS_EXHAUSTED, True),
        (ENC, error(404, "No available keys"), Reason.KEYS_EXHAUSTED, True),
        (ENC, error(404, "unknown SAE"), Reason.KME_BAD_REQUEST, False),
        (ENC, error(409), Reason.KEYS_EXHAUSTED, True),
        (ENC, error(412), Reason.KEYS_EXHAUSTED, True),
        (ENC, error(418), Reason.KME_BAD_REQUEST, False),
        (ENC, error(301), Reason.KME_INVALID_RESPONSE, True),
        (ENC, response(b"", 204), Reason.KME_INVALID_RESPONSE, True),
        (ENC, response(b"{}", 202), Reason.KME_INVALID_RESPONSE, True),
    ],
    ids=str,
)
async def test_what_a_status_code_means(kme, source, call, answer, reason, retryable):
    kme.answers_with(answer)
    asked = source.get_keys(1, 256) if call == ENC else source.get_keys_by_id(["a"], 256)
    caught = await refused(asked)
    assert (caught.reason, caught.retryable) == (reason, retryable)
    assert caught.status == answer.status
    assert len(kme.asked) == 1


# --- secrets --------------------------------------------------------------------------------


SECRET = base64.b64encode(b"\x07" * 32).decode()


@pytest.mark.parametrize(
    "answer",
    [
        container(("a", b"\x07" * 32), ("b", b"\x07" * 32), ("c", b"\x07" * 32)),
        container((SECRET, b"\x07" * 31)),
        error(503, f"key {SECRET} is broken"),
        error(400, SECRET, details=[{"key": SECRET}]),
        response(f'{{"keys":"{SECRET}"}}'.encode()),
        response(f'{{"keys":[{{"key":"{SECRET}'.encode()),
        HttpClientError(HttpErrorKind.PROTOCOL, f"illegal header {SECRET}"),
    ],
    ids=range(7),
)
async def test_no_error_nor_anything_chained_to_it_holds_what_came(kme, source, answer):
    kme.answers_with(*[answer] * 4)
    for call in (source.get_keys(2, 256), source.get_keys_by_id(["a", "b"], 256)):
        caught = await refused(call)
        seen = "".join(traceback.format_exception(caught)) + repr(vars(caught))
        link: BaseException | None = caught
        while link is not None:
            seen += f"{link!r}{link.args!r}"
            link = link.__cause__ or link.__context__
        assert SECRET not in seen
        assert str(caught) in seen


async def test_what_is_refused_is_wiped(kme, source, monkeypatch):
    seen = []

    def spy(body, original=decode):
        decoded = original(body)
        seen.extend(decoded.keys)
        return decoded

    monkeypatch.setattr("qproxy.sources.etsi014.decode_key_container", spy)
    kme.answers_with(
        container(key(1), key(2), key(3)),  # too many
        container(key(1, 16)),  # too short over GET
        container(key(1, 16)),  # and over POST
    )
    await refused(source.get_keys(2, 256))
    await refused(source.get_keys(1, 256))
    kme.answers_with(
        container(key(1), key(3)),  # not asked for
        container(key(1)),  # not all
        container(key(1), ("id-2", bytes(32))),  # all zero
        container(("id-1", b"k" * 32), ("id-2", b"k" * 32)),  # the same
    )
    for _ in range(4):
        await refused(source.get_keys_by_id(["id-1", "id-2"], 256))
    assert len(seen) == 12
    assert all(k.key == b"" for k in seen)


async def test_keys_in_hand_are_wiped_when_the_rest_fails_or_is_cancelled(kme, monkeypatch):
    for failure in (container(("a", b"\x02" * 32)), trio.TooSlowError()):
        seen = []

        def spy(body, original=decode, seen=seen):
            decoded = original(body)
            seen.extend(decoded.keys)
            return decoded

        monkeypatch.setattr("qproxy.sources.etsi014.decode_key_container", spy)
        source = Etsi014Source("k", kme, "https://kme", "gw-a", "gw-b")
        await asked_in_vain(kme, source)
        kme.answers_with(container(key(1)), failure)
        with pytest.raises((KeySourceError, trio.TooSlowError)):
            await source.get_keys(2, 256)
        assert {bytes(k.key) for k in seen} == {b""}


async def test_keys_handed_out_are_whole_and_their_repr_is_not(kme, source):
    kme.answers_with(container(("a", b"\x07" * 32)))
    (taken,) = await source.get_keys(1, 256)
    assert taken.key == b"\x07" * 32
    assert "x07" not in repr(taken)


# --- GET or POST, and what goes with it -------------------------------------------------------


def calling(kme, **calls):
    return Etsi014Source(
        "k", kme, "https://kme.example:8441", "gw-a", "gw-b", calls=KeyCalls(**calls)
    )


@pytest.mark.parametrize("size_bits", [256, 512])
async def test_method_post_is_post_for_keys_and_get_for_the_status(kme, size_bits):
    source = calling(kme, method=KeyRequestMethod.POST)
    kme.answers_with(
        response(STATUS), container(key(1, size_bits // 8)), container(key(2, size_bits // 8))
    )
    await source.status()
    await source.get_keys(1, size_bits)
    await source.get_keys_by_id(["id-2"], size_bits)
    assert kme.asked == [
        ("GET", f"{BASE}/status"),
        ("POST", f"{BASE}/enc_keys", {"number": 1, "size": size_bits}),
        ("POST", f"{BASE}/dec_keys", {"key_IDs": [{"key_ID": "id-2"}]}),
    ]


async def test_method_get_stays_with_get(kme):
    source = calling(kme, method=KeyRequestMethod.GET)
    kme.answers_with(error(405))
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KME_BAD_REQUEST
    kme.answers_with(response(STATUS), container(key(1)), container(key(2)))
    assert shown(await source.get_keys(2, 256)) == [key(1), key(2)]
    kme.answers_with(container(key(3, 16)))
    assert (await refused(source.get_keys(1, 256))).reason is Reason.KEY_INVALID
    assert {asked[0] for asked in kme.asked} == {"GET"}
    assert kme.asked[2:4] == [
        ("GET", f"{BASE}/enc_keys?number=2&size=256"),
        ("GET", f"{BASE}/enc_keys?number=1&size=256"),
    ]


async def test_what_a_get_cannot_say_is_said_by_post(kme):
    source = calling(
        kme,
        additional_slave_sae_ids=("gw-c",),
        extension_mandatory=({"route": "direct"},),
        extension_optional=({"age": 5}, {"x": None}),
    )
    kme.answers_with(container(key(1)), container(key(2)))
    await source.get_keys(1, 256)
    body = {
        "number": 1,
        "size": 256,
        "additional_slave_SAE_IDs": ["gw-c"],
        "extension_mandatory": [{"route": "direct"}],
        "extension_optional": [{"age": 5}, {"x": None}],
    }
    assert kme.asked == [("POST", f"{BASE}/enc_keys", body)]
    await source.get_keys_by_id(["id-2"], 256)
    assert kme.asked[1] == ("GET", f"{BASE}/dec_keys?key_ID=id-2")


@pytest.mark.parametrize("text", list(ErrorMessage))
async def test_the_standards_own_refusals_are_told_in_its_words(kme, source, text):
    kme.answers_with(error(400, text), error(400, text))
    caught = await refused(source.get_keys(1, 256))
    assert caught.reason is Reason.KME_BAD_REQUEST
    assert str(text) in str(caught)
    assert not caught.retryable


async def test_additional_saes_that_the_kme_does_not_take_are_not_asked_for(kme):
    source = calling(kme, additional_slave_sae_ids=("gw-c", "gw-d"))
    kme.answers_with(response({**STATUS, "max_SAE_ID_count": 1}))
    await source.status()
    caught = await refused(source.get_keys(1, 256))
    assert (caught.reason, caught.retryable) == (Reason.KME_BAD_REQUEST, False)
    kme.answers_with(response({**STATUS, "max_SAE_ID_count": 2}), container(key(1)))
    await source.status()
    assert len(await source.get_keys(1, 256)) == 1


def test_additional_saes_are_checked_like_the_others(kme):
    with pytest.raises(ConfigError):
        calling(kme, additional_slave_sae_ids=("..",))


async def test_extensions_of_keys_and_containers_are_passed_over(kme, source):
    item = {
        "key_ID": "a",
        "key_ID_extension": {"v": 1},
        "key": base64.b64encode(b"k" * 32).decode(),
        "key_extension": {"v": [2]},
    }
    for name in ("keys", "Keys"):
        kme.answers_with(response({name: [item], "key_container_extension": {"v": {}}, "more": 1}))
        assert shown(await source.get_keys_by_id(["a"], 256)) == [("a", b"k" * 32)]


# --- the KME's limits --------------------------------------------------------------------------


def limits(**more):
    return response({**STATUS, **more})


async def test_more_keys_than_the_kme_gives_at_once_take_several_requests(kme):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    kme.answers_with(
        limits(max_key_per_request=2),
        container(key(1), key(2)),
        container(key(3), key(4)),
        container(key(5)),
    )
    assert shown(await source.get_keys(5, 256)) == [key(n) for n in range(1, 6)]
    assert [asked[1].partition("?")[2] for asked in kme.asked] == [
        "",
        "number=2&size=256",
        "number=2&size=256",
        "number=1&size=256",
    ]


async def test_ids_over_the_limit_take_several_requests(kme):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    kme.answers_with(limits(max_key_per_request=2), container(key(2), key(1)), container(key(3)))
    keys = await source.get_keys_by_id(["id-1", "id-2", "id-3"], 256)
    assert shown(keys) == [key(1), key(2), key(3)]
    assert [asked[0] for asked in kme.asked] == ["GET", "POST", "GET"]


async def test_ids_of_which_a_later_request_fails_are_all_lost(kme, monkeypatch):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    kme.answers_with(limits(max_key_per_request=1), container(key(1)), error(400, NOT_FOUND))
    wiped = []
    monkeypatch.setattr("qproxy.sources.etsi014.wipe_keys", wiped.extend)
    assert (await refused(source.get_keys_by_id(["id-1", "x"], 256))).reason is Reason.KEY_NOT_FOUND
    assert [k.key_id for k in wiped] == ["id-1"]


@pytest.mark.parametrize("failure", [error(503), error(503, "no more keys"), error(401)], ids=repr)
async def test_keys_that_came_before_a_later_request_failed_are_given(kme, failure):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    kme.answers_with(limits(max_key_per_request=1), container(key(1)), failure)
    assert shown(await source.get_keys(3, 256)) == [key(1)]
    kme.answers_with(failure)
    await refused(source.get_keys(3, 256))


async def test_no_request_is_begun_that_would_not_be_through_in_time(kme, autojump_clock):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    request = kme.request

    async def slow(method, url, **more):
        await trio.sleep(0.1)
        return await request(method, url, **more)

    kme.request = slow
    kme.answers_with(limits(max_key_per_request=1), *[container(key(n)) for n in range(1, 10)])
    with trio.fail_after(0.55):  # 0.1 s status, and keys while there are 0.2 s left
        assert len(await source.get_keys(9, 256)) == 3
    assert len(await source.get_keys(6, 256)) == 6


@pytest.mark.parametrize("size_bits", [56, 1032, 8192])
async def test_a_size_that_the_kme_does_not_give_is_not_asked_for(kme, source, size_bits):
    kme.answers_with(response(STATUS))
    await source.status()
    kme.asked.clear()
    caught = await refused(source.get_keys(1, size_bits))
    assert (caught.reason, caught.retryable) == (Reason.KME_BAD_REQUEST, False)
    assert "64 to 1024 bits" in str(caught)
    assert kme.asked == []
    # A key that the other site has got is there, whatever is said of fresh ones.
    kme.answers_with(container(("a", b"k" * (size_bits // 8))))
    assert len(await source.get_keys_by_id(["a"], size_bits)) == 1


async def test_a_kme_that_is_not_there_is_not_asked_twice(kme):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    kme.answers_with(HttpClientError(HttpErrorKind.CONNECT, "refused"))
    assert (await refused(source.get_keys(2, 256))).reason is Reason.KME_UNREACHABLE
    assert kme.asked == [("GET", f"{BASE}/status")]


async def test_one_key_is_asked_for_without_a_status(kme):
    source = Etsi014Source("k", kme, "https://kme.example:8441", "gw-a", "gw-b")
    kme.answers_with(container(key(1)))
    await source.get_keys(1, 256)
    assert len(kme.asked) == 1


# --- QBER and key rate where vendors put them ----------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "extension", "qber", "rate"),
    [
        (LinkFigures(), {"qber": 0.02, "key_rate_bps": 5000}, 0.02, 5000.0),
        (
            LinkFigures("link.quality.QBER", 0.01, "link.rate_kbps", 1000.0),
            {"link": {"quality": {"QBER": 3.5}, "rate_kbps": 66}},
            0.035,
            66_000.0,
        ),
        (LinkFigures("a.b", 1.0, "c", 1.0), {"a": 7, "c": {"d": 1}}, None, None),
        (LinkFigures(qber_scale=0.01), {"qber": 120, "key_rate_bps": -1}, None, None),
        (LinkFigures(), {"qber": True, "key_rate_bps": "fast"}, None, None),
        (LinkFigures(), {}, None, None),
    ],
)
def test_figures_are_read_from_where_the_vendor_puts_them(figures, extension, qber, rate) -> None:
    status = decode_status(json.dumps({**STATUS, "status_extension": extension}).encode())
    told = _source_status(status, figures, simulated=False)
    assert (told.qber, told.key_rate_bps) == (
        None if qber is None else pytest.approx(qber),
        rate,
    )
