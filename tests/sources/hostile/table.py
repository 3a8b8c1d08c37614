"""What a KME may do wrong, one row for each, and what must come of it."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qproxy.errors import Reason
from tests.sources.hostile.kme import (
    CLOSE,
    HANG,
    RESET,
    STATUS,
    Asked,
    Kme,
    Part,
    chunked,
    http,
    http_json,
)

OK = None
UNREACHABLE = Reason.KME_UNREACHABLE
TIMEOUT = Reason.KME_TIMEOUT
UNAUTHORIZED = Reason.KME_UNAUTHORIZED
BAD_REQUEST = Reason.KME_BAD_REQUEST
UNAVAILABLE = Reason.KME_UNAVAILABLE
INVALID = Reason.KME_INVALID_RESPONSE
EXHAUSTED = Reason.KEYS_EXHAUSTED
NOT_FOUND = Reason.KEY_NOT_FOUND
BAD_KEY = Reason.KEY_INVALID

Answer = Callable[[Kme, Asked], Iterable[Part]]
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Row:
    """One misbehaviour.

    Attributes:
        name: what the KME does.
        answer: what it sends instead of the right answer.
        enc: what get_keys of two keys must end with; OK for two good keys.
        dec: the same for get_keys_by_id of two.
        status: the same for status; "same" where it is as for ``enc``.
    """

    name: str
    answer: Answer
    enc: Reason | None
    dec: Reason | None
    status: Reason | None


def every(name: str, answer: Answer | list[Part], reason: Reason | None) -> Row:
    """The same whatever was asked."""
    make = answer if callable(answer) else lambda _kme, _asked, parts=answer: parts
    return Row(name, make, reason, reason, reason)


def right(change: Callable[[bytes], Iterable[Part]]) -> Answer:
    """The right answer's body, sent in some wrong way."""

    def answer(kme: Kme, asked: Asked) -> Iterable[Part]:
        return change(good_body(kme, asked))

    return answer


def good_body(kme: Kme, asked: Asked) -> bytes:
    (whole,) = kme.behave(asked)
    assert isinstance(whole, bytes)
    return whole.partition(b"\r\n\r\n")[2]


def keys(
    name: str, change: Callable[[list[Any], Kme], Any], enc: Reason | None, dec: Reason | None
) -> Row:
    """The list of keys, changed; returned where it is another."""

    def answer(kme: Kme, asked: Asked) -> Iterable[Part]:
        entries = kme.entries(asked)
        changed = change(entries, kme)
        return [http_json({"keys": entries if changed is None else changed})]

    return Row(name, answer, enc, dec, INVALID)


def first(name: str, member: str, value: object, enc: Reason | None, dec: Reason | None) -> Row:
    """One member of the first key, with another value; a callable makes it of the right one."""

    def change(entries: list[Any], _kme: Kme) -> None:
        entry = entries[0]
        entry[member] = value(entry[member]) if callable(value) else value

    return keys(name, change, enc, dec)


def document(name: str, change: Callable[[str], str | bytes], reason: Reason | None) -> Row:
    """The right answer's JSON text, changed."""

    def answer(kme: Kme, asked: Asked) -> Iterable[Part]:
        changed = change(good_body(kme, asked).decode())
        return [http(changed if isinstance(changed, bytes) else changed.encode())]

    return Row(name, answer, reason, reason, reason)


def told(status: int, message: object, enc: Reason, dec: Reason) -> Row:
    """An error in the standard's form, a key in it."""

    def answer(kme: Kme, _asked: Asked) -> Iterable[Part]:
        secret = kme.entry()
        return [http_json({"message": message, "details": [secret]}, f"{status} X", "X-Key: 1")]

    # Keys that are not found or not there are no words about a status.
    of_status = UNAVAILABLE if status >= 500 else BAD_REQUEST
    if enc in {UNAUTHORIZED, UNAVAILABLE}:
        of_status = enc
    return Row(f"{status} with {str(message)[:30]!r}", answer, enc, dec, of_status)


def padded(of: bytes, times: int) -> Iterable[bytes]:
    return itertools.repeat(of * (65536 // len(of)), times)


def drip(data: bytes) -> Iterable[Part]:
    for byte in data:
        yield bytes([byte])
        yield 1


def endless_json(head: bytes) -> Answer:
    def answer(_kme: Kme, _asked: Asked) -> Iterable[Part]:
        return itertools.chain([head, b'{"keys":[{"key":"'], padded(b"A", 1600))

    return answer


def chunks_of(data: bytes) -> Answer:
    def answer(_kme: Kme, _asked: Asked) -> Iterable[Part]:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        return itertools.chain([head], itertools.repeat(data, 100_000))

    return answer


def gzipped(coding: str) -> Answer:
    def answer(kme: Kme, asked: Asked) -> Iterable[Part]:
        packer = zlib.compressobj(wbits=31)
        body = packer.compress(good_body(kme, asked))
        body += b"".join(map(packer.compress, padded(b" ", 1024))) + packer.flush()
        return [http(body, "200 OK", f"Content-Encoding: {coding}")]

    return answer


HTTP_ROWS = [
    every("closes at once", [CLOSE], UNREACHABLE),
    every("resets the connection", [RESET], UNREACHABLE),
    every("never answers", [HANG], TIMEOUT),
    every("answers too late", right(lambda body: [2.5, http(body)]), TIMEOUT),
    every("answers just in time", right(lambda body: [1.5, http(body)]), OK),
    every("half a status line", [b"HTTP/1.1 2", CLOSE], INVALID),
    every("half a status line and hangs", [b"HTTP/1.1 2", HANG], TIMEOUT),
    every("half a head", [b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE], INVALID),
    every("half a head and hangs", [b"HTTP/1.1 200 OK\r\nX: y\r\n", HANG], TIMEOUT),
    every("half a body", right(lambda body: [http(body)[:-20], CLOSE]), INVALID),
    every("half a body and resets", right(lambda body: [http(body)[:-20], RESET]), INVALID),
    every("half a body and hangs", right(lambda body: [http(body)[:-20], HANG]), TIMEOUT),
    every("drips the head", right(lambda body: drip(http(body))), TIMEOUT),
    every("drips the body", right(lambda body: [http(body)[:-9], *drip(http(body)[-9:])]), TIMEOUT),
    every("drips chunks", right(lambda body: [chunked(body)[:50], *drip(chunked(body)[50:])]),
          TIMEOUT),
    every("chunks of one byte",
          right(lambda body: [chunked(*[body[i : i + 1] for i in range(len(body))])]), OK),
    every("chunks that never end", chunks_of(b"400\r\n" + b"A" * 1024 + b"\r\n"), INVALID),
    every("chunk extensions that never end", chunks_of(b"1;" + b"x" * 4096 + b"\r\nA\r\n"),
          INVALID),
    every("a chunk length that is none",
          [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", CLOSE], INVALID),
    every("a chunk length of 2^64",
          [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", CLOSE],
          INVALID),
    every("chunks that end without an end",
          right(lambda body: [chunked(body)[:-5], CLOSE]), INVALID),
    every("trailers after the last chunk",
          right(lambda body: [chunked(body)[:-2] + b"X-Key: y\r\n\r\n"]), OK),
    every("100,000 headers", lambda _kme, _asked: [b"HTTP/1.1 200 OK\r\n",
          *padded(b"X: y\r\n", 10)], INVALID),
    every("a header of 1 MB", lambda _kme, _asked: [b"HTTP/1.1 200 OK\r\nX: ",
          *padded(b"y", 16)], INVALID),
    every("a status line of 1 MB", lambda _kme, _asked: [b"HTTP/1.1 200 ",
          *padded(b"y", 16)], INVALID),
    every("a header without a colon", [b"HTTP/1.1 200 OK\r\nhello\r\n\r\n", CLOSE], INVALID),
    every("SSH", [b"SSH-2.0-OpenSSH_9.9\r\n\r\n", CLOSE], INVALID),
    every("HTTP/2", [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", CLOSE], INVALID),
    every("HTTP/0.9", right(lambda body: [body, CLOSE]), INVALID),
    every("HTTP/1.0, body to the end",
          right(lambda body: [b"HTTP/1.0 200 OK\r\n\r\n" + body, CLOSE]), OK),
    every("a status code of 99", [http(b"{}", "99 X"), CLOSE], INVALID),
    every("a status code of 1000", [http(b"{}", "1000 X"), CLOSE], INVALID),
    every("a negative length", right(lambda body: [http(body, length=-1), CLOSE]), INVALID),
    every("a length in hexadecimal", right(lambda body: [http(body, length="0x10"), CLOSE]),
          INVALID),
    every("a length of 10^30", right(lambda body: [http(body, length=10**30), CLOSE]), INVALID),
    every("two lengths", right(lambda body: [http(body, "200 OK", "Content-Length: 3"), CLOSE]),
          INVALID),
    every("a length that is too short", right(lambda body: [http(body, length=len(body) - 1)]),
          INVALID),
    every("a length that is too long",
          right(lambda body: [http(body, length=len(body) + 1), CLOSE]), INVALID),
    every("more bytes after the answer", right(lambda body: [http(body) + b"\x00" * 99]), OK),
    every("the answer twice", right(lambda body: [http(body) * 2]), OK),
    every("says that it closes, and stays",
          right(lambda body: [http(body, "200 OK", "Connection: close")]), OK),
    every("says nothing, and closes", right(lambda body: [http(body), CLOSE]), OK),
    every("a few interim answers",
          right(lambda body: [b"HTTP/1.1 102 Processing\r\n\r\n" * 5 + http(body)]), OK),
    every("interim answers without end", lambda _kme, _asked: padded(
          b"HTTP/1.1 102 Processing\r\n\r\n", 100), INVALID),
    every("switches protocols", [b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n", HANG], INVALID),
    every("100 MB of JSON, announced", endless_json(b"HTTP/1.1 200 OK\r\n"
          b"Content-Length: 104857617\r\n\r\n"), INVALID),
    every("100 MB of JSON, not announced", endless_json(b"HTTP/1.0 200 OK\r\n\r\n"), INVALID),
    every("100 MB of an error", endless_json(b"HTTP/1.1 503 X\r\n"
          b"Content-Length: 104857617\r\n\r\n"), INVALID),
    every("a gzip bomb", gzipped("gzip"), INVALID),
    every("a coding nobody knows", gzipped("x-better"), INVALID),
    every("two codings", gzipped("identity, gzip"), INVALID),
    every("gzip that says nothing of it",
          right(lambda body: [http(gzip.compress(body))]), INVALID),
    every("the coding identity",
          right(lambda body: [http(body, "200 OK", "Content-Encoding: identity")]), OK),
    every("an empty answer", [http(b"")], INVALID),
    every("HTML", [http(b"<html>200</html>", "200 OK", "Content-Type: text/html")], INVALID),
    every("HTML with 500", [http(b"<html>oops</html>", "500 X")], UNAVAILABLE),
    every("HTML with 503", [http(b"<html>busy</html>", "503 X")], UNAVAILABLE),
    every("HTML with 401", [http(b"<html>who?</html>", "401 X")], UNAUTHORIZED),
    every("JSON that calls itself HTML",
          right(lambda body: [http(body, "200 OK", "Content-Type: text/html")]), OK),
    *(every(f"a redirect with {status}", [http(b"{}", f"{status} X",
            "Location: http://127.0.0.1:9/")], INVALID)
      for status in (300, 301, 302, 303, 307, 308)),
    *(every(f"nothing with {status}", [f"HTTP/1.1 {status} X\r\n\r\n".encode()], INVALID)
      for status in (204, 304)),
    *(every(f"the right answer with {status}",
            right(lambda body, status=status: [http(body, f"{status} X")]), INVALID)
      for status in (201, 202, 203, 206)),
]  # fmt: skip

DOCUMENT_ROWS = [
    document("a byte order mark", lambda text: b"\xef\xbb\xbf" + text.encode(), INVALID),
    document("UTF-16", lambda text: text.encode("utf-16"), INVALID),
    document("UTF-32", lambda text: text.encode("utf-32-le"), INVALID),
    document("a byte that is no UTF-8", lambda text: text.encode().replace(b"kme", b"km\xe9")
             .replace(b'"keys"', b'"\xe9": 1, "keys"'), INVALID),
    document("a NUL at the end", lambda text: text + "\0", INVALID),
    document("white space around", lambda text: f" \r\n\t{text}\n ", OK),
    document("something after the document", lambda text: text + "{}", INVALID),
    document("half the document", lambda text: text[: len(text) // 2], INVALID),
    document("a comma too many", lambda text: text[:-1] + ",}", INVALID),
    document("a comment", lambda text: "/* hello */" + text, INVALID),
    document("single quotes", lambda text: text.replace('"', "'"), INVALID),
    document("a list around it", lambda text: f"[{text}]", INVALID),
    document("a text around it", json.dumps, INVALID),
    document("null", lambda _: "null", INVALID),
    document("a number", lambda _: "7", INVALID),
    document("an empty object", lambda _: "{}", INVALID),
    document("NaN", lambda text: text[:-1] + ', "x": NaN}', INVALID),
    document("Infinity", lambda text: text[:-1] + ', "x": -Infinity}', INVALID),
    document("a number too large for a float", lambda text: text[:-1] + ', "x": 1e999}', OK),
    document("a number of 5000 digits", lambda text: f'{text[:-1]}, "x": {"9" * 5000}}}', INVALID),
    document("a number of 4000 digits", lambda text: f'{text[:-1]}, "x": {"9" * 4000}}}', OK),
    document("a member twice", lambda text: text[:-1] + ', "x": 1, "x": 1}', INVALID),
    document("the keys twice", lambda text: text[:-1] + ", " + text[1:], INVALID),
    document("a member twice far inside", lambda text: text[:-1] + ', "x": [{"y": 1, "y": 2}]}',
             INVALID),
    document("members nobody knows", lambda text: text[:-1] + ', "x": {"y": [1]}, "\u00e9": null}',
             OK),
    document("200,000 brackets", lambda _: "[" * 200_000, INVALID),
    document("200,000 braces", lambda _: '{"a":' * 200_000, INVALID),
    document("an unknown member 100,000 deep",
             lambda text: f'{text[:-1]}, "x": {"[" * 100_000}{"]" * 100_000}}}', INVALID),
    document("an extension that is a list", lambda text: text[:-1]
             + ', "key_container_extension": [1], "status_extension": [1]}', INVALID),
    document("an extension of any content", lambda text: text[:-1]
             + ', "key_container_extension": {"a": [{}]}, "status_extension": {"a": [{}]}}', OK),
    document("half a surrogate pair in a member nobody knows",
             lambda text: text[:-1] + ', "x": "\\ud800"}', OK),
    document("a megabyte of small lists", lambda _: '{"keys":[' + ",".join(["[]"] * 340_000)
             + "]}", INVALID),
]  # fmt: skip


def _swap_ids(entries: list[Any], _kme: Kme) -> None:
    entries[0]["key_ID"] = entries[1]["key_ID"]


def _swap_keys(entries: list[Any], _kme: Kme) -> None:
    entries[0]["key"] = entries[1]["key"]


def _more(number: int) -> Callable[[list[Any], Kme], Any]:
    def change(entries: list[Any], kme: Kme) -> None:
        entries += [kme.entry() for _ in range(number)]

    return change


def _resized(size_bytes: int) -> Callable[[list[Any], Kme], Any]:
    def change(entries: list[Any], kme: Kme) -> None:
        entries[0]["key"] = kme.entry(size_bytes=size_bytes)["key"]

    return change


def _loose_bits(text: str) -> str:
    """The same key to a careless decoder: the two bits that padding leaves over are set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-2] + alphabet[alphabet.index(text[-2]) | 1] + "="


KEY_ROWS = [
    keys("Keys with a capital", lambda entries, _: None, OK, OK),
    keys("keys is null", lambda *_: {}, INVALID, INVALID),
    keys("keys is a text", lambda *_: "keys", INVALID, INVALID),
    keys("keys is one key", lambda entries, _: entries[0], INVALID, INVALID),
    keys("keys holds null", lambda entries, _: [None, entries[0]], INVALID, INVALID),
    keys("keys holds a list", lambda entries, _: [entries], INVALID, INVALID),
    keys("keys holds bare texts", lambda entries, _: [entry["key"] for entry in entries],
         INVALID, INVALID),
    keys("no key", lambda *_: [], EXHAUSTED, NOT_FOUND),
    keys("one key too few", lambda entries, _: entries[:1], OK, NOT_FOUND),
    keys("one key too many", _more(1), INVALID, INVALID),
    keys("1000 keys too many", _more(1000), INVALID, INVALID),
    keys("2000 keys too many", _more(2000), INVALID, INVALID),
    keys("other keys than asked for", lambda _, kme: [kme.entry(), kme.entry()], OK, INVALID),
    keys("the keys in another order", lambda entries, _: entries[::-1], OK, OK),
    keys("one key ID twice", _swap_ids, INVALID, INVALID),
    keys("one key under two IDs", _swap_keys, BAD_KEY, BAD_KEY),
    first("no key_ID", "key_ID", None, INVALID, INVALID),
    first("an empty key_ID", "key_ID", "", INVALID, INVALID),
    first("a key_ID that is a number", "key_ID", 7, INVALID, INVALID),
    first("a key_ID that is true", "key_ID", True, INVALID, INVALID),
    first("a key_ID that is a list", "key_ID", ["a"], INVALID, INVALID),
    first("a key_ID of 129 characters", "key_ID", "a" * 129, INVALID, INVALID),
    first("a key_ID with a line end", "key_ID", "a\r\nb", INVALID, INVALID),
    first("a key_ID with a NUL", "key_ID", "a\0b", INVALID, INVALID),
    first("a key_ID that turns the writing round", "key_ID", "a\u202eb", INVALID, INVALID),
    first("a key_ID with half a surrogate pair", "key_ID", "a\ud800", INVALID, INVALID),
    first("a key_ID that climbs", "key_ID", "../../status", OK, INVALID),
    first("a key_ID in capitals", "key_ID", str.upper, OK, OK),
    first("no key in the key", "key", None, INVALID, INVALID),
    first("a key that is a number", "key", 7, INVALID, INVALID),
    first("a key that is a list of bytes", "key", [1, 2, 3], INVALID, INVALID),
    first("a key that is empty", "key", "", INVALID, INVALID),
    first("a key in base64 with a wrong character", "key", lambda t: t[:-5] + "!" + t[-4:],
          INVALID, INVALID),
    first("a key in base64 without padding", "key", lambda t: t.rstrip("="), INVALID, INVALID),
    first("a key in base64 with too much padding", "key", lambda t: t + "====", INVALID, INVALID),
    first("a key in base64 with loose bits", "key", _loose_bits, INVALID, INVALID),
    first("a key in base64 with a line end", "key", lambda t: t[:20] + "\n" + t[20:],
          INVALID, INVALID),
    first("a key in URL-safe base64", "key", "-_" * 21 + "8=", INVALID, INVALID),
    first("a key in hexadecimal", "key", lambda t: base64.b64decode(t).hex(), BAD_KEY, BAD_KEY),
    first("a key that is its own ID", "key_ID", lambda _: "AAECAwQFBgcICQoLDA0ODw==", OK, INVALID),
    keys("a key that is too short", _resized(31), BAD_KEY, BAD_KEY),
    keys("a key that is too long", _resized(33), BAD_KEY, BAD_KEY),
    keys("a key of one byte", _resized(1), BAD_KEY, BAD_KEY),
    keys("a key of 1024 bytes", _resized(1024), BAD_KEY, BAD_KEY),
    keys("a key of 1025 bytes", _resized(1025), INVALID, INVALID),
    keys("a key of 500 kB", _resized(500_000), INVALID, INVALID),
    first("a key of 249 bits, filled up", "key", base64.b64encode(b"\x01" + bytes(30)).decode(),
          BAD_KEY, BAD_KEY),
    first("a key that is all zero", "key", base64.b64encode(bytes(32)).decode(), BAD_KEY, BAD_KEY),
    first("extensions of the key", "key_extension", {"a": [1]}, OK, OK),
    first("an extension of the key that is none", "key_ID_extension", 7, OK, OK),
]  # fmt: skip
KEY_ROWS[0] = Row(
    "Keys with a capital",
    lambda kme, asked: [http_json({"Keys": kme.entries(asked)})],
    OK,
    OK,
    INVALID,
)
KEY_ROWS += [
    Row(
        "keys and Keys",
        lambda kme, asked: [http_json({"Keys": kme.entries(asked), "keys": kme.entries(asked)})],
        INVALID,
        INVALID,
        INVALID,
    ),
    Row(
        "an error with 200",
        lambda kme, asked: [http_json({"message": "no", "details": kme.entries(asked)})],
        INVALID,
        INVALID,
        INVALID,
    ),
]

_NOT_FOUND_TEXT = "one or more keys specified are not found on KME"
ERROR_ROWS = [
    told(400, "bad", BAD_REQUEST, BAD_REQUEST),
    told(400, "size shall be a multiple of 8", BAD_REQUEST, BAD_REQUEST),
    told(400, "not all extension_mandatory parameters are supported", BAD_REQUEST, BAD_REQUEST),
    told(400, _NOT_FOUND_TEXT, BAD_REQUEST, NOT_FOUND),
    told(400, "insufficient keys", EXHAUSTED, BAD_REQUEST),
    told(401, "no", UNAUTHORIZED, UNAUTHORIZED),
    told(403, "no", UNAUTHORIZED, UNAUTHORIZED),
    told(404, "no such thing", BAD_REQUEST, NOT_FOUND),
    told(404, "no more keys", EXHAUSTED, NOT_FOUND),
    told(409, "busy", EXHAUSTED, NOT_FOUND),
    told(410, "gone", BAD_REQUEST, NOT_FOUND),
    told(412, "no", EXHAUSTED, NOT_FOUND),
    told(415, "what?", BAD_REQUEST, BAD_REQUEST),
    told(418, "short and stout", BAD_REQUEST, BAD_REQUEST),
    told(422, "no", BAD_REQUEST, NOT_FOUND),
    told(429, "slow down", UNAVAILABLE, UNAVAILABLE),
    told(408, "slow", UNAVAILABLE, UNAVAILABLE),
    told(500, "oops", UNAVAILABLE, UNAVAILABLE),
    told(500, "key pool depleted", EXHAUSTED, UNAVAILABLE),
    told(502, "no", UNAVAILABLE, UNAVAILABLE),
    told(503, "later", UNAVAILABLE, UNAVAILABLE),
    told(503, "not enough keys", EXHAUSTED, UNAVAILABLE),
    told(503, _NOT_FOUND_TEXT, UNAVAILABLE, NOT_FOUND),
    told(504, "too late", UNAVAILABLE, UNAVAILABLE),
    told(599, "no", UNAVAILABLE, UNAVAILABLE),
    told(503, 7, UNAVAILABLE, UNAVAILABLE),
    told(503, ["a"], UNAVAILABLE, UNAVAILABLE),
    told(503, "x" * 100_000, UNAVAILABLE, UNAVAILABLE),
    told(503, "a\r\nb\x1b[2J\ud800", UNAVAILABLE, UNAVAILABLE),
]


def _status(name: str, reason: Reason | None, **members: Any) -> tuple[str, object, Reason | None]:
    return name, {**STATUS, **members}, reason


#: Statuses, and what must come of them.
STATUS_ROWS = [
    _status("SAE IDs that are numbers", OK, master_SAE_ID=1, slave_SAE_ID=2),
    _status("SAE IDs in other capitals", OK, master_SAE_ID="GW-A", slave_SAE_ID="Gw-B"),
    _status("SAE IDs of others", OK, master_SAE_ID="x", slave_SAE_ID="y"),
    _status("a KME ID that is null", INVALID, source_KME_ID=None),
    _status("a KME ID of 257 bytes", INVALID, source_KME_ID="a" * 257),
    _status("a KME ID that is a list", INVALID, target_KME_ID=["a"]),
    _status("a KME ID that is a fraction", INVALID, target_KME_ID=1.5),
    _status("no counts", OK, stored_key_count=None, max_key_count=None),
    _status("more keys than fit", OK, stored_key_count=10**9),
    _status("a count below zero", INVALID, stored_key_count=-1),
    _status("a count that is true", INVALID, stored_key_count=True),
    _status("a count that is a text", INVALID, stored_key_count="7"),
    _status("a count that is a fraction", INVALID, stored_key_count=7.0),
    _status("a count of 2^53", INVALID, stored_key_count=2**53),
    _status("a count of 10^400", INVALID, max_key_count=10**400),
    _status("a key size of 0", INVALID, key_size=0),
    _status("a key size of 249", OK, key_size=249),
    _status("a largest size below the smallest", OK, max_key_size=8, min_key_size=1024),
    _status("a smallest size of 0", OK, min_key_size=0),
    _status("no keys in a request", INVALID, max_key_per_request=0),
    _status("10^15 keys in a request", OK, max_key_per_request=10**15),
    _status("a rate too large for a float", OK, status_extension={"key_rate_bps": 10**400}),
    _status("a rate that is a text", OK, status_extension={"key_rate_bps": "fast"}),
    _status("an error rate of 7", OK, status_extension={"qber": 7}),
    _status("an extension that is null", OK, status_extension=None),
    _status("an extension that is a text", INVALID, status_extension="simulated"),
]

ROWS = [*HTTP_ROWS, *DOCUMENT_ROWS, *KEY_ROWS, *ERROR_ROWS]
