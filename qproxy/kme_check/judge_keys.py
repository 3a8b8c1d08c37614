"""What is judged by the keys that come: clauses 5.3 and 5.4, Tables 10, 11 and 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qproxy.errors import Reason
from qproxy.kme_check.evidence import REST, Evidence
from qproxy.kme_check.facts import Answer, KeyFact
from qproxy.kme_check.judge_link import said
from qproxy.kme_check.verdict import (
    Handling,
    Outcome,
    conforms,
    deviates,
    link_down,
    note,
    refused,
    skipped,
    tolerated,
    unseen,
)
from qproxy.sources.etsi014_wire import ErrorMessage
from qproxy.sources.recent import folded_key_id

#: Requests that a conforming KME answers with keys.
GIVING: Final = ("get-default", "get-sized", "post-default", "post-several", "post-optional")
#: Requests that give keys by ID.
FETCHING: Final = (
    "several-post",
    "several-plain",
    "partial",
    "after-partial",
    "oldest-get",
    "oldest-post",
)
#: Length from which on two keys are never alike by chance, in bits.
_LONG_BITS: Final = 128
_BY_POST: Final = tolerated("goes over to POST")
_INVENTED: Final = deviates(
    "answered 200 where there is no such key",
    refused(Reason.KME_INVALID_RESPONSE, "keys under other IDs than asked are refused"),
)


def enc_get_default(seen: Evidence) -> Outcome:
    """GET with nothing: one key of ``key_size``."""
    return _gives(seen, "get-default", 1, seen.limits.key_size_bits, _BY_POST)


def enc_get_sized(seen: Evidence) -> Outcome:
    """GET with ``number`` and ``size``."""
    two = min(2, seen.limits.max_key_per_request)
    return _gives(seen, "get-sized", two, seen.limits.another_size_bits, _BY_POST)


def enc_post_default(seen: Evidence) -> Outcome:
    """POST with an empty object: the defaults."""
    handling = tolerated("qproxy always says number and size")
    return _gives(seen, "post-default", 1, seen.limits.key_size_bits, handling)


def enc_post_several(seen: Evidence) -> Outcome:
    """POST with ``number`` and ``size``: what qproxy lives by where GET does not work."""
    answer = seen.answers.get("post-several")
    reason = Reason.KEY_INVALID if answer is None or answer.ok else answer.reason
    handling = link_down(reason, "keys in such number and size cannot be had by POST")
    several = min(3, seen.limits.max_key_per_request)
    return _gives(seen, "post-several", several, seen.limits.key_size_bits, handling)


def _gives(seen: Evidence, name: str, number: int, size_bits: int, handling: Handling) -> Outcome:
    """Whether so many keys of that size came; ``handling`` is for a refusal or another size."""
    if why := seen.why_unasked(name):
        return skipped(why)
    answer = seen.answers[name]
    if not answer.ok:
        return deviates(said(answer), handling)
    if not answer.readable:
        return deviates(
            "answered 200 with what cannot be read as a key container",
            refused(Reason.KME_INVALID_RESPONSE, "nothing of such an answer is used"),
        )
    count, sizes = len(answer.keys), sorted({key.size_bits or 0 for key in answer.keys})
    if any(size != size_bits for size in sizes):
        shown = ", ".join(str(size) for size in sizes)
        return deviates(f"asked for {size_bits} bits, got {shown}", handling)
    if count > number:
        return deviates(
            f"asked for {number}, got {count}",
            refused(Reason.KME_INVALID_RESPONSE, "keys that nobody asked for spoil the answer"),
        )
    if not count:
        return deviates(
            "answered 200 without a key",
            refused(Reason.KEYS_EXHAUSTED, "taken for an empty store"),
        )
    if count < number:
        return deviates(f"asked for {number}, got {count}", tolerated("takes what comes"))
    return conforms()


def enc_optional(seen: Evidence) -> Outcome:
    """An optional extension that the KME does not know."""
    if why := seen.why_unasked("post-optional"):
        return skipped(why)
    answer = seen.answers["post-optional"]
    if answer.ok and len(answer.keys) == 1:
        return conforms()
    prescribed = None if answer.error is None else answer.error.prescribed
    if answer.status == 400 and prescribed is ErrorMessage.OPTIONAL_NOT_HANDLED:
        return conforms("refused in the prescribed words")
    return deviates(said(answer), tolerated("sent only where extension_optional is configured"))


def keys_member(seen: Evidence) -> Outcome:
    """``keys`` as in the examples, or ``Keys`` as in Table 11."""
    names = {
        seen.answers[n].keys_member for n in GIVING if n in seen.answers and seen.answers[n].ok
    }
    if not names:
        return skipped("no keys came")
    if names == {"keys"}:
        return conforms()
    if names == {"Keys"}:
        return note("Keys, as Table 11 prints it; the examples have keys", tolerated("reads both"))
    return deviates(
        "neither keys nor Keys alone", refused(Reason.KME_INVALID_RESPONSE, "not a key container")
    )


def key_ids(seen: Evidence) -> Outcome:
    """IDs: UUIDs, and each once."""
    keys = seen.given(*GIVING)
    if not keys:
        return skipped("no keys came")
    if not all(key.key_id for key in keys):
        return deviates(
            "a key_ID is missing, too long or no printable text",
            refused(Reason.KME_INVALID_RESPONSE, "nothing of such an answer is used"),
        )
    if len({key.key_id for key in keys}) < len(keys):
        return deviates(
            "one key_ID came more than once",
            refused(Reason.KME_INVALID_RESPONSE, "a key_ID that came lately is no new one"),
        )
    if not all(key.is_uuid for key in keys):
        return deviates("not every key_ID is a UUID", tolerated("taken as text, up to 128 bytes"))
    return conforms(f"{len(keys)} of {len(keys)}")


def key_values(seen: Evidence) -> Outcome:
    """Keys: whole bytes in base64, each another one."""
    keys = seen.given(*GIVING)
    if not keys:
        return skipped("no keys came")
    if any(key.size_bits is None or not key.canonical for key in keys):
        return deviates(
            "a key is not in canonical base64 (RFC 4648 clause 4)",
            refused(Reason.KME_INVALID_RESPONSE, "nothing of such an answer is used"),
        )
    # Shorter ones may be alike, or zero, by chance.
    keys = [key for key in keys if (key.size_bits or 0) >= _LONG_BITS]
    if any(key.all_zero for key in keys):
        return deviates("a key is all zero", refused(Reason.KEY_INVALID, "such a key is no key"))
    if len({key.digest for key in keys}) < len(keys):
        return deviates(
            "one key came under two IDs",
            refused(Reason.KEY_INVALID, "a key that came lately is no new one"),
        )
    return conforms()


# --- by ID ----------------------------------------------------------------------------------


def dec_same_keys(seen: Evidence) -> Outcome:
    """The slave gets, under each ID, the key that the master got."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    drawn = {folded_key_id(key.key_id): key for key in seen.given(*GIVING) if key.key_id}
    rest = [name for name in seen.answers if name.startswith(REST)]
    answers = seen.given(*FETCHING, *rest)
    fetched = {folded_key_id(key.key_id): key for key in answers if key.key_id}
    if not drawn:
        return skipped("no keys came")
    both = [(drawn[key_id], fetched[key_id]) for key_id in drawn.keys() & fetched.keys()]
    if not both:
        return deviates(
            "none of the master's keys is there",
            link_down(Reason.KEY_NOT_FOUND, "the two KMEs are out of step, or not one pair"),
        )
    differing = sum(mine.digest != theirs.digest for mine, theirs in both)
    if differing:
        return deviates(
            f"{differing} of {len(both)} keys differ between the ends",
            link_down(Reason.KEY_MISMATCH, "no epoch can be agreed upon"),
        )
    return conforms(f"{len(both)} of {len(drawn)} keys compared")


def dec_post(seen: Evidence) -> Outcome:
    """Several keys in one POST, with an extension to one of the IDs."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    if why := seen.why_unasked("several-post"):
        return skipped(why)
    answer, plain = seen.answers["several-post"], seen.answers.get("several-plain")
    wanted = len(seen.given("post-several"))
    if plain is not None and _complete(plain, wanted):
        return deviates(
            "refuses a key_ID_extension that it does not know", tolerated("qproxy never sends one")
        )
    if _complete(answer, wanted):
        return conforms()
    if answer.ok:
        text = f"asked for {wanted} keys by ID, got {len(answer.keys)}"
        return deviates(text, link_down(Reason.KEY_NOT_FOUND, "an answer in part is not used"))
    return deviates(said(answer), link_down(answer.reason, "several keys by ID cannot be had"))


def _complete(answer: Answer, wanted: int) -> bool:
    return answer.ok and answer.readable and len(answer.keys) == wanted


def dec_order(seen: Evidence) -> Outcome:
    """Whether keys come in the order asked; the standard does not say."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    answer = seen.answers.get("several-plain") or seen.answers.get("several-post")
    asked = [folded_key_id(key.key_id) for key in seen.given("post-several")][::-1]
    if answer is None or not _complete(answer, len(asked)) or len(asked) < 2:
        return skipped("not several keys came by ID")
    if [folded_key_id(key.key_id) for key in answer.keys] == asked:
        return note("in the order asked")
    return note("in another order than asked", tolerated("put in order by their IDs"))


def dec_get(seen: Evidence) -> Outcome:
    """One key by GET."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    if why := seen.why_unasked("oldest-get"):
        return skipped(why)
    answer, by_post = seen.answers["oldest-get"], seen.answers.get("oldest-post")
    if _complete(answer, 1):
        return conforms()
    if by_post is not None and _complete(by_post, 1):
        return deviates(said(answer), _BY_POST)
    return skipped("the key is not there by POST either")


def dec_older(seen: Evidence) -> Outcome:
    """The first key drawn is still there after all others."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    if why := seen.why_unasked("oldest-get"):
        return skipped(why)
    tries = [seen.answers[n] for n in ("oldest-get", "oldest-post") if n in seen.answers]
    if any(_complete(answer, 1) for answer in tries):
        return conforms()
    return deviates(
        f"the first key drawn is gone after later ones ({said(tries[-1])})",
        link_down(Reason.KEY_NOT_FOUND, "qproxy draws keys ahead of need, so most would be lost"),
    )


def dec_once(seen: Evidence) -> Outcome:
    """A key is given to the slave once."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    pairs = (("oldest-get", "again-oldest"), ("several-post", "again-post"))
    again = [
        seen.answers[second]
        for first, second in pairs
        if second in seen.answers and _keys_by(seen, first)
    ]
    if not again:
        return skipped("no key came by ID")
    asked = {folded_key_id(key.key_id) for first, _ in pairs for key in _keys_by(seen, first)}
    if any(folded_key_id(key.key_id) in asked for answer in again for key in answer.keys):
        return deviates(
            "gave a key by ID a second time",
            unseen("qproxy never asks twice; but whoever asks later gets the key, too"),
        )
    if any(answer.ok for answer in again):
        return _INVENTED
    return _not_found(again)


def _keys_by(seen: Evidence, name: str) -> list[KeyFact]:
    """What came by ID at the first attempt, or at the one that took its place."""
    instead = {"oldest-get": "oldest-post", "several-post": "several-plain"}
    return seen.given(name, instead[name])


def dec_unknown(seen: Evidence) -> Outcome:
    """IDs that no KME has issued."""
    asked = [seen.answers[n] for n in ("unknown-get", "unknown-post") if n in seen.answers]
    if not asked:
        return skipped("what comes before it failed")
    # That there is no GET is told elsewhere.
    asked = [answer for answer in asked if not answer.lacks_method] or asked
    if any(answer.ok for answer in asked):
        return _INVENTED
    return _not_found(asked)


def _not_found(answers: Sequence[Answer]) -> Outcome:
    """Whether a refusal is the one of clause 6.4: 400, and its own words."""
    wrong = next((answer for answer in answers if answer.status != 400), None)
    if wrong is not None:
        if wrong.reason is Reason.KEY_NOT_FOUND:
            return deviates(said(wrong), tolerated("understood as key_not_found"))
        told = wrong.reason in {Reason.KME_UNAUTHORIZED, Reason.KME_BAD_REQUEST}
        text = "told so, not key_not_found" if told else "looks like a KME in trouble"
        return deviates(said(wrong), refused(wrong.reason, text))
    errors = [answer.error for answer in answers]
    if any(e is None or e.prescribed is not ErrorMessage.KEYS_NOT_FOUND for e in errors):
        return deviates(
            "answered 400 in other words than the prescribed ones",
            refused(Reason.KME_BAD_REQUEST, "told so, not key_not_found"),
        )
    if not all(error is not None and error.details_well_formed for error in errors):
        return deviates(
            "details beside the prescribed message are no array of objects",
            tolerated("understood as key_not_found"),
        )
    return conforms()


def dec_wrong_sae(seen: Evidence) -> Outcome:
    """The master asks for its own key as if it were the slave."""
    if why := seen.why_unasked("wrong-sae"):
        return skipped(why)
    answer = seen.answers["wrong-sae"]
    if answer.status == 401:
        return conforms()
    if answer.keys:
        return deviates(
            "gave a key to an SAE that was not named as its slave",
            unseen("the slave finds its key gone (key_not_found), or somebody else has it, too"),
        )
    return deviates(f"{said(answer)}, not 401", tolerated("no key was given"))


def dec_partial(seen: Evidence) -> Outcome:
    """A good and an unknown ID together; the standard does not say what becomes of the good one."""
    if seen.slave is None:
        return skipped("the other end is out of reach")
    if why := seen.why_unasked("partial", "after-partial"):
        return skipped(why)
    partial, after = seen.answers["partial"], seen.answers["after-partial"]
    if partial.keys:
        return note("gives those that it has", tolerated("an answer in part counts as none"))
    if after.keys:
        return note("refuses all and takes none")
    return note(
        "refuses all, and those that it had are lost",
        refused(Reason.KEY_NOT_FOUND, "one wrong ID costs the other keys of the request"),
    )


def sizes_in_bits(seen: Evidence) -> Outcome:
    """Sizes are bits: a size of 256 is 32 bytes."""
    known = [
        (_asked_bits(seen, name), key.size_bits)
        for name in GIVING
        for key in seen.given(name)
        if key.size_bits is not None
    ]
    if not known:
        return skipped("no keys came")
    if any(got == 8 * bits for bits, got in known):
        return deviates(
            "takes size for bytes",
            link_down(Reason.KEY_INVALID, "keys of another size than asked are refused"),
        )
    return conforms()


def _asked_bits(seen: Evidence, name: str) -> int:
    return seen.limits.another_size_bits if name == "get-sized" else seen.limits.key_size_bits
