"""The SKIP source: against a fake HTTP client, against a real server, and against hostile ones."""

import json
import traceback
from urllib.parse import urlsplit

import pytest
import trio

from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.net.http_client import HttpClient, HttpClientError, HttpErrorKind, HttpResponse
from qproxy.sources.base import KeySource
from qproxy.sources.skip import MAX_PARALLEL_REQUESTS, SkipSource
from tests.sources.hostile.raw import http, serve
from tests.sources.hostile.secrecy import all_of as everything_said
from tests.sources.skip_provider import provider_pair, serving

KEY = bytes(range(1, 33)).hex()
CAPABILITIES = {
    "entropy": False,
    "key": True,
    "algorithm": "BB84, they say",
    "localSystemID": "Alice",
    "remoteSystemID": ["Carol", "B*"],
}


class FakeHttp:
    """In place of the HTTP client: every request is answered by a function of its URL."""

    def __init__(self, answer):
        self.asked = []
        self.repeatable = set()
        self.under_way = self.most_under_way = 0
        self.closed = False
        self._answer = answer

    async def request(self, method, url, *, json=None, repeatable=False):
        assert json is None
        self.asked.append((method, url))
        if repeatable:
            self.repeatable.add(url)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(0.1)
        finally:
            self.under_way -= 1
        answer = self._answer(url)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def aclose(self):
        self.closed = True


def response(document, status=200):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return HttpResponse(status, {}, body)


def counting():
    """Answers with one fresh key after the other; by ID with the key of that ID."""
    number = 0

    def answer(url):
        nonlocal number
        path = urlsplit(url).path
        if path == "/key":
            number += 1
            key_id = f"{number:032x}"
        else:
            key_id = path.rsplit("/", 1)[1]
        return response({"keyId": key_id, "key": f"{int(key_id, 16):064x}"})

    return answer


def source_with(answer):
    http = FakeHttp(answer if callable(answer) else lambda _url: answer)
    return SkipSource("kp", http, "https://kp.example/", "Alice", "Bob"), http


async def refused(awaitable):
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value


# --- what is asked, and what comes of it ----------------------------------------------------


async def test_each_key_is_asked_for_by_itself(autojump_clock):
    source, http = source_with(counting())
    keys = await source.get_keys(6, 256)
    assert http.asked == [("GET", "https://kp.example/key?remoteSystemID=Bob&size=256")] * 6
    assert sorted(key.key_id for key in keys) == [f"{n:032x}" for n in range(1, 7)]
    assert all(len(key.key) == 32 and key.source == "kp" for key in keys)
    assert not any(key.simulated for key in keys)


async def test_keys_by_id_come_in_the_order_asked(autojump_clock):
    source, http = source_with(counting())
    wanted = [f"{n:032x}" for n in (5, 3, 9, 1, 7)]
    keys = await source.get_keys_by_id(wanted, 256)
    assert [key.key_id for key in keys] == wanted
    assert [key.key[-1] for key in keys] == [5, 3, 9, 1, 7]
    asked = [urlsplit(url) for _, url in http.asked]
    assert sorted(url.path for url in asked) == sorted(f"/key/{key_id}" for key_id in wanted)
    assert {url.query for url in asked} == {"remoteSystemID=Bob"}


async def test_only_capabilities_may_be_asked_for_twice(autojump_clock):
    source, http = source_with(counting())
    await source.get_keys(1, 256)
    await source.get_keys_by_id(["ab" * 16], 256)
    assert not http.repeatable
    source, http = source_with(response(CAPABILITIES))
    await source.status()
    assert http.repeatable == {"https://kp.example/capabilities"}


async def test_few_requests_are_under_way_at_once(autojump_clock):
    source, http = source_with(counting())
    began = trio.current_time()
    await source.get_keys(40, 256)
    assert http.most_under_way == MAX_PARALLEL_REQUESTS
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_no_request_is_begun_that_a_deadline_would_cut_off(autojump_clock):
    source, http = source_with(counting())
    with trio.fail_after(0.55):
        keys = await source.get_keys(40, 256)
    assert len(keys) == 16
    assert len(http.asked) == 16


async def test_keys_that_came_before_a_failure_are_given(autojump_clock):
    fresh = counting()
    answers = iter([None] * 6 + [response(b"", 500)] * 40)
    source, _ = source_with(lambda url: next(answers) or fresh(url))
    assert len(await source.get_keys(40, 256)) == 6


async def test_keys_by_id_are_all_there_or_none(autojump_clock, wiped):
    known = counting()
    source, _ = source_with(lambda url: response(b"", 400) if "/bb" in url else known(url))
    ids = ["aa" * 16, "cc" * 16, "bb" * 16]
    assert (await refused(source.get_keys_by_id(ids, 256))).reason is Reason.KEY_NOT_FOUND
    assert len(wiped) == 2
    assert all(key.key == b"" for key in wiped)


async def test_keys_under_way_are_wiped_on_cancellation(autojump_clock, wiped):
    known = counting()
    source, _ = source_with(known)
    with trio.move_on_after(0.15):
        await source.get_keys_by_id([f"{n:032x}" for n in range(1, 20)], 256)
    assert len(wiped) == MAX_PARALLEL_REQUESTS
    assert all(key.key == b"" for key in wiped)


@pytest.fixture
def wiped(monkeypatch):
    """Every key the source makes."""
    from qproxy.keys import QkdKey

    made = []

    def spy(*arguments, **options):
        made.append(QkdKey(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("qproxy.sources.skip.QkdKey", spy)
    return made


async def test_status_says_what_the_provider_says_and_no_more(autojump_clock):
    source: KeySource
    source, http = source_with(response(CAPABILITIES))
    status = await source.status()
    assert (status.source_kme_id, status.target_kme_id) == ("Alice", "Bob")
    assert status.algorithm == "BB84, they say"
    assert status.stored_key_count is status.key_rate_bps is status.qber is None
    assert not status.simulated
    await source.aclose()
    assert http.closed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": False}, "gives no keys"),
        ({"localSystemID": "Mallory"}, "local_sae_id"),
        ({"remoteSystemID": ["Carol"]}, "peer_sae_id"),
    ],
)
async def test_another_provider_than_the_configured_one_is_told(autojump_clock, change, says):
    source, _ = source_with(response(CAPABILITIES | change))
    error = await refused(source.status())
    assert error.reason is Reason.KME_BAD_REQUEST
    assert says in str(error)
    assert not error.retryable


# --- refusals -------------------------------------------------------------------------------

FAILURES = [
    # status, reason for a fresh key, reason by ID
    (400, Reason.KME_BAD_REQUEST, Reason.KEY_NOT_FOUND),
    (401, Reason.KME_UNAUTHORIZED, Reason.KME_UNAUTHORIZED),
    (403, Reason.KME_UNAUTHORIZED, Reason.KME_UNAUTHORIZED),
    (404, Reason.KME_BAD_REQUEST, Reason.KEY_NOT_FOUND),
    (405, Reason.KME_BAD_REQUEST, Reason.KME_BAD_REQUEST),
    (410, Reason.KME_BAD_REQUEST, Reason.KEY_NOT_FOUND),
    (418, Reason.KME_BAD_REQUEST, Reason.KME_BAD_REQUEST),
    (429, Reason.KME_UNAVAILABLE, Reason.KME_UNAVAILABLE),
    (500, Reason.KME_UNAVAILABLE, Reason.KME_UNAVAILABLE),
    (502, Reason.KME_UNAVAILABLE, Reason.KME_UNAVAILABLE),
    (503, Reason.KME_UNAVAILABLE, Reason.KME_UNAVAILABLE),
    (204, Reason.KME_INVALID_RESPONSE, Reason.KME_INVALID_RESPONSE),
    (302, Reason.KME_INVALID_RESPONSE, Reason.KME_INVALID_RESPONSE),
]


@pytest.mark.parametrize(("status", "fresh", "by_id"), FAILURES)
async def test_a_status_code_has_one_meaning(autojump_clock, status, fresh, by_id):
    source, _ = source_with(response({"error": KEY}, status))
    for awaitable, reason in (
        (source.get_keys(1, 256), fresh),
        (source.get_keys_by_id(["ab" * 16], 256), by_id),
        (source.status(), fresh),
    ):
        error = await refused(awaitable)
        assert (error.reason, error.status) == (reason, status)
        assert KEY not in everything_said(error)


@pytest.mark.parametrize("kind", list(HttpErrorKind))
async def test_transport_failures_are_told_apart(autojump_clock, kind):
    source, _ = source_with(HttpClientError(kind, "as the test wants it"))
    for awaitable in (source.get_keys(3, 256), source.status()):
        error = await refused(awaitable)
        assert error.reason in {
            Reason.KME_UNREACHABLE,
            Reason.KME_TLS,
            Reason.KME_TIMEOUT,
            Reason.KME_INVALID_RESPONSE,
        }
        assert str(kind) in str(error)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"keyId": "cd" * 16, "key": KEY}, Reason.KME_INVALID_RESPONSE),  # another ID
        ({"keyId": "ab" * 16, "key": KEY[:-2]}, Reason.KEY_INVALID),
        ({"keyId": "ab" * 16, "key": KEY * 2}, Reason.KEY_INVALID),
        ({"keyId": "ab" * 16, "key": "00" * 32}, Reason.KEY_INVALID),
        ({"keyId": KEY, "key": "zz" * 32}, Reason.KME_INVALID_RESPONSE),
    ],
)
async def test_a_bad_key_is_refused(autojump_clock, document, reason):
    source, _ = source_with(response(document))
    error = await refused(source.get_keys_by_id(["ab" * 16], 256))
    assert error.reason is reason
    assert KEY not in everything_said(error)


async def test_an_id_in_other_capitals_is_the_same_id(autojump_clock):
    source, _ = source_with(response({"keyId": "AB" * 16, "key": KEY}))
    (key,) = await source.get_keys_by_id(["ab" * 16], 256)
    assert key.key_id == "ab" * 16


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ([("ab" * 16, KEY), ("AB" * 16, KEY[::-1])], Reason.KME_INVALID_RESPONSE),
        ([("ab" * 16, KEY), ("cd" * 16, KEY)], Reason.KEY_INVALID),
    ],
)
async def test_keys_that_come_twice_are_refused(autojump_clock, documents, reason):
    answers = iter(documents)

    def answer(_url):
        key_id, key = next(answers)
        return response({"keyId": key_id, "key": key})

    source, _ = source_with(answer)
    assert (await refused(source.get_keys(2, 256))).reason is reason


@pytest.mark.parametrize(
    "ids",
    [[""], ["xyz"], ["../../capabilities"], ["ab?remoteSystemID=Eve"], ["ab"] * 2, ["ab", "AB"]],
    ids=str,
)
async def test_ids_no_provider_can_have_issued_are_not_asked_for(ids):
    source, http = source_with(counting())
    assert (await refused(source.get_keys_by_id(ids, 256))).reason is Reason.KEY_NOT_FOUND
    assert http.asked == []


@pytest.mark.parametrize(
    ("number", "size_bits"), [(0, 256), (1025, 256), (1, 0), (1, 7), (1, 8200), (-1, -8)]
)
async def test_impossible_requests_are_refused(number, size_bits):
    source, http = source_with(counting())
    assert (await refused(source.get_keys(number, size_bits))).reason is Reason.KME_BAD_REQUEST
    assert http.asked == []


@pytest.mark.parametrize("system_id", ["", "a\n", "x" * 256, "\ud800"])
def test_a_system_id_that_is_none_is_refused(system_id):
    with pytest.raises(ConfigError):
        SkipSource("kp", FakeHttp(None), "https://kp", "Alice", system_id)


# --- over HTTP ------------------------------------------------------------------------------


async def test_two_providers_give_both_ends_the_same_keys():
    alice, bob = provider_pair()
    async with serving(alice) as url_a, serving(bob) as url_b:
        a = SkipSource("a", HttpClient(tls=None), url_a, "Alice", "Bob")
        b = SkipSource("b", HttpClient(tls=None), url_b, "Bob", "Alice")
        await a.status()
        await b.status()
        taken = await a.get_keys(9, 512)
        found = await b.get_keys_by_id([key.key_id for key in taken], 512)
        assert [key.key for key in found] == [key.key for key in taken]
        again = await refused(b.get_keys_by_id([taken[0].key_id], 512))
        assert again.reason is Reason.KEY_NOT_FOUND
        await a.aclose()
        await b.aclose()


HOSTILE = [
    ("closes at once", b"", {Reason.KME_UNREACHABLE}),
    ("half a response, then closes", http({"keyId": "ab", "key": KEY})[:-20], None),
    ("no HTTP at all", b"SSH-2.0-OpenSSH_9\r\n\r\n", None),
    ("endless headers", [b"HTTP/1.1 200 OK\r\n"] + [b"X: y\r\n" * 10000] * 20, None),
    ("deep JSON", http(b"[" * 200_000), None),
    ("HTML with 200", http(b"<html>hello</html>"), None),
    ("an empty answer", http(b""), None),
    ("a redirect", http(b"", status="302 X", headers="Location: http://127.0.0.1:1/\r\n"), None),
    ("base64", http({"keyId": "ab", "key": "AQIDBAUGBwgJCgsMDQ4PEA=="}), None),
    ("a key in an error", http({"error": KEY}, status="500 X"), {Reason.KME_UNAVAILABLE}),
    ("a short key", http({"keyId": "ab", "key": KEY[:8]}), {Reason.KEY_INVALID}),
    ("100 MB", None, None),
]


@pytest.mark.parametrize(("name", "sent", "reasons"), HOSTILE, ids=[case[0] for case in HOSTILE])
async def test_a_hostile_provider_costs_an_error_and_leaks_nothing(name, sent, reasons, caplog):
    def zeros(size):
        yield f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + b'{"key":"'
        for _ in range(size // 65536):
            yield b"A" * 65536

    async with trio.open_nursery() as nursery:
        what = zeros if sent is None else sent
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(
                lambda stream: serve(what, stream), 0, host="127.0.0.1", task_status=task_status
            )
        )
        port = listeners[0].socket.getsockname()[1]
        source = SkipSource("kp", HttpClient(tls=None), f"http://127.0.0.1:{port}", "Alice", "Bob")
        for awaitable in (
            source.get_keys(2, 256),
            source.get_keys_by_id(["ab"], 256),
            source.status(),
        ):
            error = await refused(awaitable)
            assert error.reason in (reasons or {Reason.KME_INVALID_RESPONSE}) | {
                Reason.KME_INVALID_RESPONSE
            }
            assert KEY not in everything_said(error)
            assert KEY not in "".join(traceback.format_exception(error))
        await source.aclose()
        nursery.cancel_scope.cancel()
    assert KEY not in caplog.text
