"""What is judged by how a KME refuses, and by what all of its answers share."""

from __future__ import annotations

from typing import Final

from qproxy.errors import Reason
from qproxy.kme_check.evidence import Evidence
from qproxy.kme_check.judge_link import said
from qproxy.kme_check.verdict import (
    Handling,
    Outcome,
    conforms,
    deviates,
    note,
    refused,
    skipped,
    tolerated,
)
from qproxy.sources.etsi014_wire import ErrorMessage

_NEVER_ASKED: Final = tolerated("qproxy asks for nothing of the kind")
#: Part of a request's time limit from which on an answer counts as slow.
_SLOW: Final = 0.5


def size_multiple_of_8(seen: Evidence) -> Outcome:
    """A size that is no multiple of 8, by GET and by POST."""
    return _refuses(seen, ("size-odd-get", "size-odd-post"), ErrorMessage.SIZE_MULTIPLE_OF_8)


def size_range(seen: Evidence) -> Outcome:
    """Sizes below ``min_key_size`` and above ``max_key_size``."""
    return _refuses(seen, ("size-large", "size-small"), optional=("size-small",))


def too_many_keys(seen: Evidence) -> Outcome:
    """One key more than ``max_key_per_request``."""
    return _refuses(seen, ("too-many",))


def extension_mandatory(seen: Evidence) -> Outcome:
    """A mandatory extension that no KME knows."""
    handling = tolerated("sent only where extension_mandatory is configured; do not rely on it")
    prescribed = ErrorMessage.MANDATORY_NOT_SUPPORTED
    return _refuses(seen, ("mandatory",), prescribed, handling=handling)


def additional_slaves(seen: Evidence) -> Outcome:
    """More additional slave SAEs than ``max_SAE_ID_count``."""
    if "additional" not in seen.answers and seen.limits.max_sae_id_count:
        return skipped(f"max_SAE_ID_count is {seen.limits.max_sae_id_count}, too many to exceed")
    handling = tolerated("sent only where additional_slave_sae_ids is configured")
    return _refuses(seen, ("additional",), handling=handling)


def malformed_request(seen: Evidence) -> Outcome:
    """A body that is JSON and no key request."""
    return _refuses(seen, ("malformed",))


def unknown_sae(seen: Evidence) -> Outcome:
    """A slave SAE that nobody registered. The standard has 400 and 401 to choose from."""
    return _refuses(seen, ("unknown-sae",), codes=(400, 401))


def _refuses(
    seen: Evidence,
    names: tuple[str, ...],
    prescribed: ErrorMessage | None = None,
    *,
    optional: tuple[str, ...] = (),
    codes: tuple[int, ...] = (400,),
    handling: Handling = _NEVER_ASKED,
) -> Outcome:
    """Whether requests are refused with one of ``codes``, and in the prescribed words."""
    if why := seen.why_unasked(*(name for name in names if name not in optional)):
        return skipped(why)
    answers = [seen.answers[name] for name in names if name in seen.answers]
    # That there is no GET is told elsewhere.
    answers = [answer for answer in answers if not answer.lacks_method] or answers
    taken = [answer for answer in answers if answer.ok]
    if taken:
        count = sum(len(answer.keys) for answer in taken)
        return deviates(f"accepted it and gave {count} keys", handling)
    wrong = next((answer for answer in answers if answer.status not in codes), None)
    if wrong is not None:
        expected = " or ".join(str(code) for code in codes)
        return deviates(f"{said(wrong)}, not {expected}", handling)
    if prescribed is not None:
        errors = [answer.error for answer in answers]
        if any(error is None or error.prescribed is not prescribed for error in errors):
            return deviates("answered 400 in other words than the prescribed ones", handling)
        if not all(error is not None and error.exact for error in errors):
            return conforms("in the prescribed words, but for capitals or a full stop")
    return conforms()


def error_format(seen: Evidence) -> Outcome:
    """Table 13, for every refusal that has it: 401 has no body in the standard."""
    refusals = [a for a in seen.heard if a.status in {400, 503}]
    if not refusals:
        return skipped("nothing was refused with 400 or 503")
    without = sum(answer.error is None for answer in refusals)
    if without:
        return deviates(
            f"{without} of {len(refusals)} errors without a message in JSON",
            tolerated("understood by the status code alone"),
        )
    if any(
        answer.error is not None and not answer.error.details_well_formed for answer in refusals
    ):
        return deviates(
            "details is no array of objects", tolerated("understood by the message alone")
        )
    return conforms(f"{len(refusals)} errors")


def error_codes(seen: Evidence) -> Outcome:
    """200, 400, 401 and 503 are all that the standard has."""
    others = {a.status for a in seen.heard if a.status is not None}
    others -= {200, 400, 401, 503}
    if others:
        shown = ", ".join(str(code) for code in sorted(others))
        return deviates(f"answered {shown}, too", tolerated("understood by their meaning in HTTP"))
    return conforms()


def answers_at_all(seen: Evidence) -> Outcome:
    """No request hangs, breaks off or answers with what is no HTTP."""
    if seen.answers["status"].status is None:
        return skipped("the KME does not answer")
    if seen.lost:
        return deviates(
            f"closed {seen.lost} kept connections without saying so",
            refused(
                Reason.KME_UNREACHABLE, "a request that met a closed connection is not repeated"
            ),
        )
    silent = [answer for answer in seen.heard if answer.status is None]
    if silent:
        kinds = ", ".join(sorted({str(answer.failure) for answer in silent}))
        return deviates(
            f"{len(silent)} of {len(seen.heard)} requests without an answer ({kinds})",
            tolerated("one such answer is a bad sign for the link, several take it down"),
        )
    return conforms(f"{len(seen.heard)} requests")


def json_media_type(seen: Evidence) -> Outcome:
    """What is JSON says so."""
    bodies = [answer for answer in seen.heard if answer.is_json]
    if not bodies:
        return skipped("no JSON came")
    if not all(answer.says_json for answer in bodies):
        return deviates(
            "Content-Type is not application/json", tolerated("qproxy goes by the body")
        )
    return conforms()


def caching(seen: Evidence) -> Outcome:
    """Keys should not stay in a cache on the way; the standard does not say."""
    with_keys = [answer for answer in seen.heard if answer.keys]
    if not with_keys:
        return skipped("no keys came")
    if all(answer.says_no_store for answer in with_keys):
        return note("Cache-Control: no-store")
    return note("no Cache-Control: no-store with keys; put no cache between gateway and KME")


def speed(seen: Evidence) -> Outcome:
    """The slowest answer beside the time that the gateway gives it."""
    times = sorted(answer.elapsed_s for answer in seen.heard if answer.status)
    if not times:
        return skipped("the KME does not answer")
    limit_s = seen.master.request_timeout_s
    text = (
        f"{1000 * times[len(times) // 2]:.0f} ms in the middle, {1000 * times[-1]:.0f} ms at most"
    )
    if times[-1] > _SLOW * limit_s:
        return note(
            f"{text}, of {1000 * limit_s:.0f} ms that request_timeout_s allows",
            tolerated(f"what takes longer is {Reason.KME_TIMEOUT}; raise request_timeout_s"),
        )
    return note(text)


def exhaustion(seen: Evidence) -> Outcome:
    """What an empty store answers would take all its keys to see."""
    del seen
    return skipped("it would take every stored key; qproxy understands 400, 404, 409, 412 and 503")
