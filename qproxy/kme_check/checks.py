"""The table of checks: what a conforming KME does, and where the standard says so.

Clause and table numbers are of ETSI GS QKD 014 v1.1.1 (2019-02): 5.1 General, 5.2 Get status,
5.3 Get key, 5.4 Get key with key IDs, 6.1 to 6.5 the data formats (Tables 9 to 13). An empty
clause is for what the standard leaves open and a gateway meets all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qproxy.kme_check import judge_errors, judge_keys, judge_link
from qproxy.kme_check.evidence import Evidence
from qproxy.kme_check.verdict import Check, Finding, Outcome, Scope, skipped

_MASTER, _SLAVE = Scope.MASTER, Scope.SLAVE

#: Every check on one direction, in the order in which it is reported.
CHECKS: Final[tuple[Check, ...]] = (
    Check("tls-version", "TLS 1.2 or later, with a certificate that verifies",
          "5.1", _MASTER, judge_link.tls_version),
    Check("tls-old", "TLS 1.1 is refused",
          "5.1", _MASTER, judge_link.tls_old),
    Check("tls-client-certificate", "a client without a certificate is refused",
          "5.1", _MASTER, judge_link.tls_client_certificate),
    Check("status-answers", "GET status gives a status",
          "5.2", _MASTER, judge_link.status_answers),
    Check("status-members", "the status has every mandatory member, of its type",
          "6.1 Table 9", _MASTER, judge_link.status_members),
    Check("status-saes", "the status names the SAE that asks as master, the other as slave",
          "6.1 Table 9", _MASTER, judge_link.status_saes),
    Check("status-limits", "the sizes and counts in the status hold together",
          "6.1 Table 9", _MASTER, judge_link.status_limits),
    Check("status-constant", "the status stays the same but for its counts",
          "6.1 Table 9", _MASTER, judge_link.status_constant),
    Check("status-percent-encoding", "a percent-encoded SAE ID is the same SAE ID",
          "5.2 Table 3", _MASTER, judge_link.status_percent_encoding),
    Check("fits-configuration", "the KME gives what this gateway asks for",
          "", _MASTER, judge_link.fits_configuration),
    Check("status-extension", "where QBER and key rate are told",
          "", _MASTER, judge_link.status_extension),
    Check("enc-get-default", "GET enc_keys gives one key of key_size",
          "5.3, 6.2 Table 10", _MASTER, judge_keys.enc_get_default),
    Check("enc-get-sized", "GET enc_keys heeds number and size",
          "5.3, 6.2 Table 10", _MASTER, judge_keys.enc_get_sized),
    Check("enc-post-default", "POST enc_keys with an empty object gives one key of key_size",
          "5.3, 6.2 Table 10", _MASTER, judge_keys.enc_post_default),
    Check("enc-post-several", "POST enc_keys heeds number and size",
          "5.3, 6.2 Table 10", _MASTER, judge_keys.enc_post_several),
    Check("enc-optional", "an unknown optional extension is ignored, or refused in its own words",
          "6.2 Table 10", _MASTER, judge_keys.enc_optional),
    Check("sizes-in-bits", "sizes are in bits",
          "6.2 Table 10", _MASTER, judge_keys.sizes_in_bits),
    Check("keys-member", "a container has its keys in 'keys'",
          "6.3 Table 11", _MASTER, judge_keys.keys_member),
    Check("key-ids", "key IDs are UUIDs, each given once",
          "6.3 Table 11", _MASTER, judge_keys.key_ids),
    Check("key-values", "keys are in base64, each another one, none all zero",
          "6.3 Table 11", _MASTER, judge_keys.key_values),
    Check("size-multiple-of-8", "a size that is no multiple of 8 is refused in those words",
          "6.2 Table 10", _MASTER, judge_errors.size_multiple_of_8),
    Check("size-range", "sizes beyond min_key_size and max_key_size are refused",
          "6.2 Table 10", _MASTER, judge_errors.size_range),
    Check("too-many-keys", "more keys than max_key_per_request are refused",
          "6.1 Table 9, 6.2", _MASTER, judge_errors.too_many_keys),
    Check("extension-mandatory", "a mandatory extension it does not know is refused in those words",
          "6.2 Table 10", _MASTER, judge_errors.extension_mandatory),
    Check("additional-slaves", "more additional SAEs than max_SAE_ID_count are refused",
          "6.1 Table 9, 6.2", _MASTER, judge_errors.additional_slaves),
    Check("unknown-sae", "an SAE that nobody registered is refused",
          "5.3 Table 6", _MASTER, judge_errors.unknown_sae),
    Check("malformed-request", "what is no key request is refused",
          "5.3 Table 6", _MASTER, judge_errors.malformed_request),
    Check("dec-wrong-sae", "an SAE that was not named in the request gets 401 and no key",
          "5.4 Table 8", _MASTER, judge_keys.dec_wrong_sae),
    Check("dec-same-keys", "both ends get the same keys under the same IDs",
          "5.4", _SLAVE, judge_keys.dec_same_keys),
    Check("dec-post", "POST dec_keys gives several keys, whatever key_ID_extension says",
          "5.4, 6.4 Table 12", _SLAVE, judge_keys.dec_post),
    Check("dec-get", "GET dec_keys gives one key",
          "5.4", _SLAVE, judge_keys.dec_get),
    Check("dec-older", "a key waits for its slave while later ones are given out",
          "5.4", _SLAVE, judge_keys.dec_older),
    Check("dec-once", "a key is given to its slave once, then refused in the prescribed words",
          "5.4, 6.4", _SLAVE, judge_keys.dec_once),
    Check("dec-unknown", "an unknown key ID is refused in the prescribed words",
          "5.4 Table 8, 6.4", _SLAVE, judge_keys.dec_unknown),
    Check("dec-order", "the order in which keys come by ID",
          "", _SLAVE, judge_keys.dec_order),
    Check("dec-partial", "one unknown ID among good ones",
          "", _SLAVE, judge_keys.dec_partial),
    Check("error-format", "errors are JSON with a message",
          "6.5 Table 13", _MASTER, judge_errors.error_format),
    Check("error-codes", "there are no other codes than 200, 400, 401 and 503",
          "5.2 to 5.4, Tables 4, 6, 8", _MASTER, judge_errors.error_codes),
    Check("media-type", "JSON says that it is JSON",
          "6", _MASTER, judge_errors.json_media_type),
    Check("answers", "every request is answered",
          "5.1", _MASTER, judge_errors.answers_at_all),
    Check("caching", "whether caches may keep keys",
          "", _MASTER, judge_errors.caching),
    Check("speed", "how long answers take",
          "", _MASTER, judge_errors.speed),
    Check("exhaustion", "what an empty store answers",
          "", _MASTER, judge_errors.exhaustion),
)  # fmt: skip

#: What is judged once, for the two KMEs together.
MIRRORED: Final = Check(
    "status-mirrored", "the two KMEs name each other, and the same sizes", "6.1 Table 9",
    Scope.PAIR, lambda seen: skipped("the other end is out of reach"),
)  # fmt: skip


def judge(evidence: Sequence[Evidence], taken: Evidence | None = None) -> list[Finding]:
    """Every check on everything that was seen.

    Args:
        evidence: with one end as master, or with each of two.
        taken: with the far end as master, whose keys came in a file.

    Returns:
        Findings in the order of the table, for each check one KME after the other.
    """
    found = []
    for check in CHECKS:
        by_id = check.scope is _SLAVE
        for seen in [taken] if by_id and taken is not None else evidence:
            slave = seen.slave if by_id else None
            name = seen.master.name if slave is None else slave.name
            found.append(Finding(check, name, check.judge(seen)))
    found.append(_mirrored(evidence))
    return found


def _mirrored(evidence: Sequence[Evidence]) -> Finding:
    outcome: Outcome = MIRRORED.judge(evidence[0])
    if len(evidence) == 2:
        outcome = judge_link.mirrored(*evidence)
    return Finding(MIRRORED, " + ".join(seen.master.name for seen in evidence), outcome)
