"""Judges on facts made up for them: what no simple server does, and what the table promises."""

import re

import pytest

from qproxy.config.model import PemFiles, SourceEndpoint
from qproxy.errors import Reason
from qproxy.kme_check.checks import CHECKS, MIRRORED
from qproxy.kme_check.ends import End
from qproxy.kme_check.evidence import Evidence, Refusal, Transport
from qproxy.kme_check.facts import (
    Answer,
    KeyFact,
    fingerprint_with,
    no_answer,
    read_answer,
)
from qproxy.kme_check.judge_errors import answers_at_all, speed
from qproxy.kme_check.judge_keys import dec_unknown, key_ids, key_values
from qproxy.kme_check.judge_link import (
    status_answers,
    status_extension,
    status_percent_encoding,
    tls_client_certificate,
    tls_old,
)
from qproxy.kme_check.verdict import Effect, Verdict
from qproxy.net.http_client import HttpErrorKind, HttpResponse
from qproxy.sources.etsi014_errors import Call

ENDPOINT = SourceEndpoint(
    name="kme", url="https://kme", ca=None, client=PemFiles(None, None), server_name=None
)
UUIDS = ["3f0b9c8e-0000-4000-8000-000000000001", "3f0b9c8e-0000-4000-8000-000000000002"]


def seen(peer="gw-b", **answers):
    end = End("kme", ENDPOINT, "gw-a", peer)
    answers = {"status": Answer(Call.STATUS, 200, readable=True, is_json=True)} | answers
    evidence = Evidence(end, None, answers={k.replace("_", "-"): v for k, v in answers.items()})
    evidence.heard = list(evidence.answers.values())
    return evidence


def key(key_id, digest=b"d", **changes):
    return KeyFact(key_id, 256, digest, **({"canonical": True, "all_zero": False} | changes))


def enc(*keys):
    return Answer(Call.ENC_KEYS, 200, keys=keys, readable=True)


def test_an_id_that_comes_again_in_a_later_answer_is_refused():
    evidence = seen(get_default=enc(key(UUIDS[0])), post_default=enc(key(UUIDS[0], b"e")))
    outcome = key_ids(evidence)
    assert outcome.handling.reason is Reason.KME_INVALID_RESPONSE
    assert key_ids(seen(get_default=enc(key(UUIDS[0]), key(UUIDS[1])))).verdict is Verdict.CONFORMS


def test_a_key_that_comes_again_under_another_id_is_refused():
    evidence = seen(get_default=enc(key(UUIDS[0])), post_default=enc(key(UUIDS[1])))
    assert key_values(evidence).handling.reason is Reason.KEY_INVALID


@pytest.mark.parametrize(
    ("status", "failure", "reason"),
    [
        (None, HttpErrorKind.TIMEOUT, Reason.KME_TIMEOUT),
        (None, HttpErrorKind.TLS, Reason.KME_TLS),
        (None, HttpErrorKind.LOST, Reason.KME_UNREACHABLE),
        (401, None, Reason.KME_UNAUTHORIZED),
        (400, None, Reason.KME_BAD_REQUEST),
        (500, None, Reason.KME_UNAVAILABLE),
    ],
)
def test_why_there_is_no_status(status, failure, reason):
    outcome = status_answers(seen(status=Answer(Call.STATUS, status, failure)))
    assert (outcome.handling.effect, outcome.handling.reason) == (Effect.LINK_DOWN, reason)


@pytest.mark.parametrize(
    ("status", "effect", "reason"),
    [
        (404, Effect.TOLERATED, None),
        (410, Effect.TOLERATED, None),
        (418, Effect.REFUSED, Reason.KME_BAD_REQUEST),
        (429, Effect.REFUSED, Reason.KME_UNAVAILABLE),
        (302, Effect.REFUSED, Reason.KME_INVALID_RESPONSE),
    ],
)
def test_a_refusal_of_an_unknown_id_is_called_what_the_gateway_calls_it(status, effect, reason):
    handling = dec_unknown(seen(unknown_post=Answer(Call.DEC_KEYS, status))).handling
    assert (handling.effect, handling.reason) == (effect, reason)


def test_every_way_to_get_no_answer_has_a_reason():
    for kind in HttpErrorKind:
        outcome = status_answers(seen(status=no_answer(Call.STATUS, kind, 0.1)))
        assert outcome.handling.reason.value.startswith("kme_")


@pytest.mark.parametrize("judge", [tls_old, tls_client_certificate])
def test_what_stays_unclear_is_no_deviation(judge):
    evidence = seen()
    assert judge(evidence).verdict is Verdict.SKIPPED
    evidence.transport = Transport("TLSv1.3")
    assert judge(evidence).verdict is Verdict.NOTE
    evidence.transport = Transport("TLSv1.3", None, "", Refusal.ACCEPTED, Refusal.ACCEPTED)
    assert judge(evidence).handling.effect is Effect.UNSEEN


def test_an_sae_id_that_needs_percent_encoding_cannot_do_without():
    refused = Answer(Call.STATUS, 404)
    easy = status_percent_encoding(seen(status_encoded=refused))
    hard = status_percent_encoding(seen(peer="gw/b", status_encoded=refused))
    assert easy.handling.effect is Effect.TOLERATED
    assert hard.handling.effect is Effect.LINK_DOWN


def test_where_a_vendor_tells_its_figures_can_be_configured():
    status = Answer(Call.STATUS, 200, extension={"link": {"qber": 1}}, is_json=True)
    assert (
        "QBER not told, key rate not told; qber_field" in status_extension(seen(status=status)).text
    )


def test_slow_answers_are_held_against_the_configured_limit():
    fast, slow = (Answer(Call.STATUS, 200, elapsed_s=s) for s in (0.01, 1.9))
    assert speed(seen(status=fast)).handling is None
    assert "request_timeout_s" in speed(seen(status=slow)).handling.text


def test_connections_that_close_without_a_word_are_told():
    evidence = seen()
    evidence.lost = 3
    outcome = answers_at_all(evidence)
    assert outcome.text == "closed 3 kept connections without saying so"
    assert outcome.handling.reason is Reason.KME_UNREACHABLE


# --- facts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"null", b'{"keys":1}', b'{"keys":[1,null,{}]}', b"[" * 100_000,
     b'{"keys":[{"key_ID":1,"key":2}]}', b'{"message":1}', b'{"key_size":-1,"source_KME_ID":[]}',
     b'{"keys":[],"Keys":[]}', b'{"keys":[{"key_ID":"\\ud800","key":"AA"}]}',
     b'{"status_extension":[],"key_container_extension":1}', b'{"keys":' + b"9" * 5000 + b"}"],
    ids=lambda body: body[:20].decode("latin-1"),
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 400, 302])
def test_whatever_comes_the_facts_can_be_taken(body, status):
    for call in Call:
        response = HttpResponse(status, {"content-type": "x"}, body)
        answer = read_answer(call, response, 0.1, fingerprint_with(b"k"))
        assert answer.status == status


def test_the_same_key_has_the_same_digest_in_one_run_and_another_in_the_next():
    one, other = fingerprint_with(b"1" * 32), fingerprint_with(b"2" * 32)
    assert one(b"key") == one(bytearray(b"key")) != other(b"key")


# --- the table -----------------------------------------------------------------------------------


def test_names_are_unique_and_clauses_are_clauses():
    checks = (*CHECKS, MIRRORED)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert re.fullmatch(r"|[56](\.[1-5])?[0-9., a-zA-Z]*", check.clause), check.name


def test_every_check_can_judge_a_kme_of_which_next_to_nothing_was_seen():
    evidence = seen(status=no_answer(Call.STATUS, HttpErrorKind.CONNECT, 0.0))
    for check in CHECKS:
        assert check.judge(evidence).verdict in Verdict
