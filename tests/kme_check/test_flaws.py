"""Every flaw gives its deviation and no other, and what is said of qproxy is what it does."""

import contextlib
import json

import pytest
import trio

from qproxy.errors import KeySourceError, Reason
from qproxy.kme_check.probe import gather
from qproxy.kme_check.report import (
    Report,
    heading_lines,
    report_document,
    report_lines,
    verdict_line,
)
from qproxy.kme_check.verdict import Effect, Verdict
from qproxy.net.http_client import HttpClient
from qproxy.sources.etsi014 import Etsi014Source
from qproxy.tls.context import client_context
from tests import pki
from tests.kme_check.flawed import flawed_pair

TOLERATED, REFUSED, DOWN, UNSEEN = (
    Effect.TOLERATED, Effect.REFUSED, Effect.LINK_DOWN, Effect.UNSEEN,
)  # fmt: skip

#: Flaw, then each check that deviates with the effect and the reason that the report gives.
FLAWS = [
    ("no-client-certificate", {"tls-client-certificate": (UNSEEN, None)}),
    ("status-503", {"status-answers": (DOWN, Reason.KME_UNAVAILABLE)}),
    ("status-garbage", {"status-answers": (DOWN, Reason.KME_INVALID_RESPONSE)}),
    ("integer-saes", {"status-members": (TOLERATED, None), "status-saes": (TOLERATED, None)}),
    ("no-key-size", {"status-answers": (DOWN, Reason.KME_INVALID_RESPONSE),
                     "status-members": (DOWN, Reason.KME_INVALID_RESPONSE)}),
    ("no-counts", {"status-members": (TOLERATED, None)}),
    ("too-full", {"status-limits": (TOLERATED, None)}),
    ("growing", {"status-constant": (TOLERATED, None)}),
    ("large-keys-only", {"fits-configuration": (DOWN, Reason.KME_BAD_REQUEST)}),
    ("other-kme", {"status-mirrored": (TOLERATED, None)}),
    ("no-percent-decoding", {"status-percent-encoding": (TOLERATED, None)}),
    ("no-get", {"enc-get-default": (TOLERATED, None), "enc-get-sized": (TOLERATED, None),
                "dec-get": (TOLERATED, None), "error-codes": (TOLERATED, None)}),
    ("get-ignores-query", {"enc-get-sized": (TOLERATED, None),
                           "size-multiple-of-8": (TOLERATED, None)}),
    ("size-in-bytes", {"sizes-in-bits": (DOWN, Reason.KEY_INVALID),
                       "enc-get-default": (TOLERATED, None), "enc-get-sized": (TOLERATED, None),
                       "enc-post-default": (TOLERATED, None),
                       "enc-post-several": (DOWN, Reason.KEY_INVALID)}),
    ("one-too-few", {"enc-get-sized": (TOLERATED, None), "enc-post-several": (TOLERATED, None)}),
    ("one-too-many", {"enc-get-sized": (REFUSED, Reason.KME_INVALID_RESPONSE),
                      "enc-post-several": (REFUSED, Reason.KME_INVALID_RESPONSE)}),
    ("any-size", {"size-multiple-of-8": (TOLERATED, None), "size-range": (TOLERATED, None)}),
    ("any-number", {"too-many-keys": (TOLERATED, None)}),
    ("504", {"too-many-keys": (TOLERATED, None), "error-codes": (TOLERATED, None)}),
    ("any-extension", {"extension-mandatory": (TOLERATED, None)}),
    ("any-additional", {"additional-slaves": (TOLERATED, None)}),
    ("any-sae", {"unknown-sae": (TOLERATED, None)}),
    ("any-body", {"malformed-request": (TOLERATED, None)}),
    ("no-optional", {"enc-optional": (TOLERATED, None), "error-codes": (TOLERATED, None)}),
    ("404", {"unknown-sae": (TOLERATED, None), "error-codes": (TOLERATED, None)}),
    ("own-words", {"size-multiple-of-8": (TOLERATED, None),
                   "extension-mandatory": (TOLERATED, None),
                   "dec-unknown": (REFUSED, Reason.KME_BAD_REQUEST),
                   "dec-once": (REFUSED, Reason.KME_BAD_REQUEST)}),
    ("capitals", {}),
    ("html-errors", {"error-format": (TOLERATED, None), "size-multiple-of-8": (TOLERATED, None),
                     "extension-mandatory": (TOLERATED, None),
                     "dec-unknown": (REFUSED, Reason.KME_BAD_REQUEST),
                     "dec-once": (REFUSED, Reason.KME_BAD_REQUEST)}),
    ("odd-details", {"error-format": (TOLERATED, None), "dec-unknown": (TOLERATED, None),
                     "dec-once": (TOLERATED, None)}),
    ("says-text", {"media-type": (TOLERATED, None)}),
    ("may-be-cached", {}),
    ("simulated", {}),
    ("upper-keys", {}),
    ("capital-ids", {}),
    ("no-keys", {"enc-get-default": (REFUSED, Reason.KEYS_EXHAUSTED),
                 "enc-get-sized": (REFUSED, Reason.KEYS_EXHAUSTED),
                 "enc-post-default": (REFUSED, Reason.KEYS_EXHAUSTED),
                 "enc-post-several": (REFUSED, Reason.KEYS_EXHAUSTED),
                 "enc-optional": (TOLERATED, None)}),
    ("no-keys-member", {"enc-get-default": (REFUSED, Reason.KME_INVALID_RESPONSE),
                        "enc-get-sized": (REFUSED, Reason.KME_INVALID_RESPONSE),
                        "enc-post-default": (REFUSED, Reason.KME_INVALID_RESPONSE),
                        "enc-post-several": (REFUSED, Reason.KME_INVALID_RESPONSE),
                        "keys-member": (REFUSED, Reason.KME_INVALID_RESPONSE),
                        "enc-optional": (TOLERATED, None)}),
    ("hex-keys", {"enc-get-default": (TOLERATED, None), "enc-get-sized": (TOLERATED, None),
                  "enc-post-default": (TOLERATED, None),
                  "enc-post-several": (DOWN, Reason.KEY_INVALID)}),
    ("hex-ids", {"key-ids": (TOLERATED, None)}),
    ("unprintable-ids", {"key-ids": (REFUSED, Reason.KME_INVALID_RESPONSE)}),
    ("zero-keys", {"key-values": (REFUSED, Reason.KEY_INVALID)}),
    ("one-key-only", {"key-values": (REFUSED, Reason.KEY_INVALID)}),
    ("out-of-step", {"dec-same-keys": (DOWN, Reason.KEY_MISMATCH)}),
    ("no-id-extension", {"dec-post": (TOLERATED, None)}),
    ("older-lost", {"dec-older": (DOWN, Reason.KEY_NOT_FOUND),
                    "dec-same-keys": (DOWN, Reason.KEY_NOT_FOUND),
                    "dec-post": (DOWN, Reason.KEY_NOT_FOUND),
                    "dec-wrong-sae": (TOLERATED, None)}),
    ("again", {"dec-once": (UNSEEN, None)}),
    ("any-slave", {"dec-wrong-sae": (UNSEEN, None)}),
    ("400-for-401", {"dec-wrong-sae": (TOLERATED, None)}),
    ("not-found-404", {"dec-unknown": (TOLERATED, None), "dec-once": (TOLERATED, None),
                       "error-codes": (TOLERATED, None)}),
    ("not-found-401", {"dec-unknown": (REFUSED, Reason.KME_UNAUTHORIZED),
                       "dec-once": (REFUSED, Reason.KME_UNAUTHORIZED)}),
    ("not-found-500", {"dec-unknown": (REFUSED, Reason.KME_UNAVAILABLE),
                       "dec-once": (REFUSED, Reason.KME_UNAVAILABLE),
                       "error-codes": (TOLERATED, None)}),
    ("invents", {"dec-unknown": (REFUSED, Reason.KME_INVALID_RESPONSE),
                 "dec-once": (REFUSED, Reason.KME_INVALID_RESPONSE)}),
    ("reverses", {}),
    ("in-part", {}),
    ("loses-all", {}),
]  # fmt: skip


async def check(ends, max_keys=320):
    plans = []
    evidence = await gather(ends, max_keys, plans.append)
    return Report.of(plans[0], evidence)


@pytest.mark.parametrize(("flaw", "expected"), FLAWS, ids=[name for name, _ in FLAWS])
async def test_a_flaw_gives_its_deviation(tmp_path, flaw, expected):
    async with flawed_pair(tmp_path, flaw) as ends:
        report = await check(ends)
    found = {}
    for finding in report.deviations:
        handling = finding.outcome.handling
        found[finding.check.name] = (handling.effect, handling.reason)
    assert found == expected


async def test_without_a_flaw_nothing_deviates(tmp_path):
    async with flawed_pair(tmp_path) as ends:
        report = await check(ends)
    assert report.deviations == []
    assert report.count(Verdict.SKIPPED) == 2  # exhaustion, at each KME
    assert report.keys_left == 0
    assert report.keys_used == report.plan.gives == 16


@pytest.mark.parametrize(
    ("flaw", "check_name", "verdict_text"),
    [
        ("upper-keys", "keys-member", "Keys, as Table 11 prints it"),
        ("reverses", "dec-order", "in another order than asked"),
        ("in-part", "dec-partial", "gives those that it has"),
        ("loses-all", "dec-partial", "those that it had are lost"),
        ("may-be-cached", "caching", "no Cache-Control: no-store with keys"),
        ("simulated", "status-extension", "SIMULATED"),
    ],
)
async def test_what_the_standard_leaves_open_is_a_note(tmp_path, flaw, check_name, verdict_text):
    async with flawed_pair(tmp_path, flaw) as ends:
        report = await check(ends)
    outcomes = [f.outcome for f in report.findings if f.check.name == check_name]
    assert {outcome.verdict for outcome in outcomes} == {Verdict.NOTE}
    assert all(verdict_text in outcome.text for outcome in outcomes)


# --- what qproxy does about it is what it does ------------------------------------------------


async def reason_of(awaitable):
    try:
        await awaitable
    except KeySourceError as error:
        return error.reason
    return None


async def reasons_seen(ends):
    """Reasons that the gateway's own client gives, over everything that it does at a KME."""
    seen = set()
    sources = []
    async with contextlib.AsyncExitStack() as opened:
        for end in ends:
            ca = pki.authority()
            tls = client_context(trust=ca.trust, identity=pki.identity(ca, end.local_sae_id))
            http = HttpClient(tls=tls, server_name=end.kme.server_name)
            source = Etsi014Source(end.name, http, end.kme.url, end.local_sae_id, end.peer_sae_id)
            opened.push_async_callback(source.aclose)
            sources.append(source)
        master, slave = sources
        seen.add(await reason_of(master.status()))
        older = []
        with contextlib.suppress(KeySourceError):
            older = await master.get_keys(1, 256)
        try:
            keys = await master.get_keys(3, 256)
        except KeySourceError as error:
            return seen | {error.reason}
        ids = [key.key_id for key in keys]
        try:
            fetched = await slave.get_keys_by_id(ids, 256)
        except KeySourceError as error:
            seen.add(error.reason)
        else:
            if [key.key for key in fetched] != [key.key for key in keys]:
                seen.add(Reason.KEY_MISMATCH)  # what an epoch's confirmation finds
        if older:
            seen.add(await reason_of(slave.get_keys_by_id([older[0].key_id], 256)))
        seen.add(await reason_of(slave.get_keys_by_id(["3f0b9c8e-0000-4000-8000-1"], 256)))
    return seen


@pytest.mark.parametrize(
    ("flaw", "expected"),
    [(name, checks) for name, checks in FLAWS if name != "large-keys-only"],
    ids=[name for name, _ in FLAWS if name != "large-keys-only"],
)
async def test_the_gateways_client_does_what_the_report_says(tmp_path, flaw, expected):
    """Refused means: with that reason. Tolerated means: as if nothing were wrong."""
    async with flawed_pair(tmp_path, flaw) as ends:
        seen = await reasons_seen(ends)
    reasons = {reason for _, reason in expected.values() if reason is not None}
    assert reasons <= seen
    if not reasons:
        assert seen - {None} == {Reason.KEY_NOT_FOUND}, "for the ID that nobody issued"


async def test_a_kme_that_is_not_there_is_one_deviation_and_takes_no_key(tmp_path):
    async with flawed_pair(tmp_path) as ends:
        pass
    with trio.fail_after(30):
        report = await check(ends)
    names = {finding.check.name for finding in report.deviations}
    assert names == {"tls-version", "status-answers"}
    reasons = {finding.outcome.handling.reason for finding in report.deviations}
    assert reasons == {Reason.KME_UNREACHABLE}
    assert report.keys_used == 0


# --- no key gets out, and no more keys are used than allowed ------------------------------------


async def test_whatever_a_kme_mixes_up_no_key_is_kept_or_shown(tmp_path):
    async with flawed_pair(tmp_path, "leaks") as ends:
        plans = []
        evidence = await gather(ends, 320, plans.append)
        report = Report.of(plans[0], evidence)
        secrets = ends[0].pair.secrets
    assert len(secrets) > 30
    shown = json.dumps(report_document(report)) + "\n".join(report_lines(report))
    shown += repr(report) + "\n".join(heading_lines(report.ends)) + verdict_line(report)
    assert [secret for secret in secrets if secret in shown] == []
    kept = "".join(repr(answer) for seen in evidence.evidence for answer in seen.heard)
    assert not any(secret in kept for secret in secrets[:-9]), "keys of long ago"


@pytest.mark.parametrize("max_keys", [0, 1, 16, 20, 40, 300])
async def test_no_more_keys_are_asked_for_than_allowed(tmp_path, max_keys):
    flaws = ("any-size", "any-number", "any-extension", "any-additional", "any-sae", "any-body")
    async with flawed_pair(tmp_path, *flaws) as ends:
        report = await check(ends, max_keys)
        given = len(ends[0].pair.secrets) // 3
    assert report.plan.worst <= max_keys
    assert given == report.keys_used <= max_keys
    for name in report.plan.left_out:
        assert name not in {step.name for each in report.plan.steps for step in each}


async def test_without_keys_status_and_tls_are_checked_and_the_rest_is_skipped(tmp_path):
    async with flawed_pair(tmp_path) as ends:
        report = await check(ends, 0)
    verdicts = {finding.check.name: finding.outcome.verdict for finding in report.findings}
    assert verdicts["tls-version"] is verdicts["status-members"] is Verdict.CONFORMS
    assert verdicts["dec-unknown"] is Verdict.CONFORMS
    assert verdicts["enc-get-sized"] is verdicts["too-many-keys"] is Verdict.SKIPPED
    texts = {f.outcome.text for f in report.findings if f.check.name == "too-many-keys"}
    assert texts == {"it could take more than the 0 keys that --keys allows"}


async def test_from_one_end_only_what_needs_the_other_is_skipped_and_said(tmp_path):
    async with flawed_pair(tmp_path) as ends:
        report = await check(ends[:1])
    assert report.deviations == []
    skipped = {f.check.name for f in report.findings if f.outcome.verdict is Verdict.SKIPPED}
    assert skipped == {
        "dec-same-keys", "dec-post", "dec-get", "dec-older", "dec-once", "dec-order",
        "dec-partial", "status-mirrored", "exhaustion",
    }  # fmt: skip
    assert report.keys_left == report.keys_used == 8
    assert any("Name the configuration of gw-b" in line for line in heading_lines(ends[:1]))


async def test_a_flaw_at_one_kme_is_told_of_that_one(tmp_path):
    async with flawed_pair(tmp_path, "only-kme-b-upper-keys") as ends:
        report = await check(ends)
    found = {f.kme: f.outcome.verdict for f in report.findings if f.check.name == "keys-member"}
    assert found == {"kme-a": Verdict.CONFORMS, "kme-b": Verdict.NOTE}
    lines = [line for line in report_lines(report) if "a container has its keys" in line]
    assert [line.split()[:2] for line in lines] == [["ok", "kme-a:"], ["note", "kme-b:"]]
