"""What is judged without a key: TLS (clause 5.1), status (5.2, 6.1), both KMEs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qproxy.errors import Reason
from qproxy.kme_check.evidence import Evidence, Refusal
from qproxy.kme_check.facts import STATUS_IDS, STATUS_NUMBERS, Answer
from qproxy.kme_check.verdict import (
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

#: Members of a status that qproxy reads, and cannot do without.
_NEEDED: Final = (*STATUS_IDS, "key_size", "max_key_per_request", "max_key_size", "min_key_size")
#: Members that do not change from one status to the next while nobody configures the KME.
_CONSTANT: Final = (*STATUS_IDS, "key_size", "max_key_per_request", "max_key_size", "min_key_size")
_NO_STATUS: Final = "there is no status"


def said(answer: Answer) -> str:
    """What came, in a few words."""
    if answer.status is None:
        return f"no answer ({answer.failure})"
    return f"answered {answer.status}"


def tls_version(seen: Evidence) -> Outcome:
    """An ordinary handshake."""
    transport = seen.transport
    if not transport.version:
        return deviates(
            f"no TLS connection: {transport.failure}",
            link_down(_handshake_reason(transport.failure), "no request can be made"),
        )
    group = "" if transport.group is None else f" with {transport.group}"
    return conforms(f"{transport.version.replace('v', ' ')}{group}")


def _handshake_reason(failure: str) -> Reason:
    if failure in {Reason.CONNECT_REFUSED, Reason.CONNECT_FAILED}:
        return Reason.KME_UNREACHABLE
    return Reason.KME_TIMEOUT if failure == Reason.CONNECT_TIMEOUT else Reason.KME_TLS


def tls_old(seen: Evidence) -> Outcome:
    """An offer of TLS 1.1 at most."""
    if not seen.transport.version:
        return skipped("there is no TLS connection")
    if seen.transport.old_tls is Refusal.ACCEPTED:
        return deviates("takes TLS 1.1 or older", unseen("qproxy offers TLS 1.2 and 1.3 only"))
    if seen.transport.old_tls is Refusal.UNCLEAR:
        return note("neither took nor refused it")
    return conforms()


def tls_client_certificate(seen: Evidence) -> Outcome:
    """A request by nobody."""
    if not seen.transport.version:
        return skipped("there is no TLS connection")
    if seen.transport.without_certificate is Refusal.ACCEPTED:
        return deviates(
            "gave a status to a client without a certificate",
            unseen("whoever reaches this KME may be able to take keys"),
        )
    if seen.transport.without_certificate is Refusal.UNCLEAR:
        return note("neither answered nor refused it")
    return conforms()


def status_answers(seen: Evidence) -> Outcome:
    """A status that can be read at all."""
    answer = seen.answers["status"]
    if answer.ok and answer.readable:
        return conforms()
    if answer.ok:
        return deviates(
            "answered 200 with what cannot be read as a status",
            link_down(Reason.KME_INVALID_RESPONSE, "no status, no trust in the link"),
        )
    return deviates(said(answer), link_down(answer.reason, "no status, no trust in the link"))


def status_members(seen: Evidence) -> Outcome:
    """Every mandatory member, of the right kind."""
    answer = seen.answers["status"]
    if not (answer.ok and answer.is_json):
        return skipped(_NO_STATUS)
    missing = [name for name in (*STATUS_IDS, *STATUS_NUMBERS) if name not in answer.members]
    if missing:
        text = f"without usable {', '.join(missing)}"
        if any(name in _NEEDED for name in missing):
            return deviates(
                text, link_down(Reason.KME_INVALID_RESPONSE, "such a status is refused")
            )
        return deviates(text, tolerated("taken as not told"))
    if answer.integer_ids:
        names = ", ".join(answer.integer_ids)
        return deviates(f"{names}: numbers, not strings", tolerated("read as text"))
    return conforms()


def status_saes(seen: Evidence) -> Outcome:
    """The SAE that asks is the master, the one in the path the slave."""
    answer = seen.answers["status"]
    if not answer.ok:
        return skipped(_NO_STATUS)
    expected = {
        "master_SAE_ID": seen.master.local_sae_id,
        "slave_SAE_ID": seen.master.peer_sae_id,
    }
    wrong = [name for name, value in expected.items() if answer.members.get(name, value) != value]
    if wrong:
        return deviates(
            f"{' and '.join(wrong)}: not the SAE IDs of the request",
            tolerated("qproxy goes by its configuration; check that the KME knows who asks"),
        )
    return conforms()


def status_limits(seen: Evidence) -> Outcome:
    """Sizes and numbers that can hold together."""
    answer = seen.answers["status"]
    if not answer.ok:
        return skipped(_NO_STATUS)
    low, size, high = (answer.number(n) for n in ("min_key_size", "key_size", "max_key_size"))
    stored, most = answer.number("stored_key_count"), answer.number("max_key_count")
    wrong = []
    if size is not None and size % 8:
        wrong.append(f"key_size {size} is no multiple of 8")
    if size is not None and not (low or 0) <= size <= (size if high is None else high):
        wrong.append(f"key_size {size} is not within min_key_size {low} and max_key_size {high}")
    if stored is not None and most is not None and stored > most:
        wrong.append(f"stored_key_count {stored} is above max_key_count {most}")
    if wrong:
        return deviates("; ".join(wrong), tolerated("qproxy asks for the size it is configured to"))
    return conforms(f"{low} to {high} bits, {size} by default")


def fits_configuration(seen: Evidence) -> Outcome:
    """What the gateway is configured to ask for, against what the KME says it gives."""
    answer, end = seen.answers["status"], seen.master
    if not (answer.ok and answer.readable):
        return skipped(_NO_STATUS)
    limits, size = seen.limits, end.qkd_key_size_bits
    if not limits.min_key_size_bits <= size <= limits.max_key_size_bits:
        return deviates(
            f"qkd_key_size_bits is {size}; this KME gives"
            f" {limits.min_key_size_bits} to {limits.max_key_size_bits} bits",
            link_down(Reason.KME_BAD_REQUEST, "set qkd_key_size_bits to a size that it gives"),
        )
    if end.qkd_keys_per_epoch > limits.max_key_per_request:
        return note(
            f"qkd_keys_per_epoch is {end.qkd_keys_per_epoch}, and one request gives at most"
            f" {limits.max_key_per_request}"
        )
    return conforms()


def status_constant(seen: Evidence) -> Outcome:
    """Two status answers, some requests apart."""
    first, later = seen.answers["status"], seen.answers.get("status-again")
    if not first.ok or later is None:
        return skipped(_NO_STATUS)
    if not later.ok:
        return deviates(
            f"later {said(later)}", refused(Reason.KME_UNAVAILABLE, "a weak link, or none")
        )
    changed = [name for name in _CONSTANT if first.members.get(name) != later.members.get(name)]
    if changed:
        return deviates(f"changed meanwhile: {', '.join(changed)}", tolerated("read each time"))
    return conforms()


def status_percent_encoding(seen: Evidence) -> Outcome:
    """The same SAE ID with every byte percent-encoded."""
    if not seen.answers["status"].ok or "status-encoded" not in seen.answers:
        return skipped(_NO_STATUS)
    encoded = seen.answers["status-encoded"]
    if encoded.ok:
        return conforms()
    plain = seen.master.peer_sae_id
    if all(char.isascii() and (char.isalnum() or char in "-._~") for char in plain):
        return deviates(said(encoded), tolerated("this SAE ID needs no percent-encoding"))
    return deviates(
        said(encoded), link_down(Reason.KME_BAD_REQUEST, "this SAE ID needs percent-encoding")
    )


def status_extension(seen: Evidence) -> Outcome:
    """Where the KME tells QBER and key rate; the standard leaves both open."""
    answer, end = seen.answers["status"], seen.master
    if not answer.ok:
        return skipped(_NO_STATUS)
    told = {
        "QBER": _has(answer.extension, end.qber_field),
        "key rate": _has(answer.extension, end.key_rate_field),
    }
    texts = [f"{name} {'told' if there else 'not told'}" for name, there in told.items()]
    text = ", ".join(texts)
    if not all(told.values()):
        text += "; qber_field and key_rate_field say where qproxy looks"
    return note(f"{text}; calls its keys SIMULATED" if answer.simulated else text)


def _has(extension: Mapping[str, object], path: str) -> bool:
    value: object = extension
    for member in path.split("."):
        value = value.get(member) if isinstance(value, Mapping) else None
    return type(value) in {int, float}


def mirrored(one: Evidence, other: Evidence) -> Outcome:
    """The two KMEs' status beside each other."""
    a, b = one.answers["status"], other.answers["status"]
    if not (a.ok and b.ok):
        return skipped(_NO_STATUS)
    crossed = ("source_KME_ID", "target_KME_ID")
    wrong = [
        f"{here} of {x.master.name} is not {there} of {y.master.name}"
        for x, y in ((one, other), (other, one))
        for here, there in [crossed]
        if x.answers["status"].members.get(here) != y.answers["status"].members.get(there)
    ]
    same = ("key_size", "min_key_size", "max_key_size")
    wrong += [f"{name} differs" for name in same if a.members.get(name) != b.members.get(name)]
    if wrong:
        return deviates(
            "; ".join(wrong),
            tolerated("qproxy compares keys, not KME IDs; check the configuration"),
        )
    return conforms()
