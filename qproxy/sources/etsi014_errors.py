"""What it means when a KME behind ETSI GS QKD 014 does not answer 200: pure, and said once.

The standard defines 400, 401 and 503 and five texts. Servers use more codes and words of their own,
exhaustion first of all, for which the standard has no code at all. A server's own text decides
about the reason here and goes no further: it may hold anything, a key included.
"""

from __future__ import annotations

import contextlib
import enum
import re

from qproxy.errors import KeySourceError, Reason
from qproxy.sources.etsi014_wire import ErrorBody, ErrorMessage, decode_error
from qproxy.sources.http import reason_of_status


class Call(enum.Enum):
    """The three methods of the interface (clause 5)."""

    STATUS = "status"
    ENC_KEYS = "enc_keys"
    DEC_KEYS = "dec_keys"


#: The standard has no code for "no keys left", so servers say it in words of their own, and
#: with any of 400, 404, 409, 412, 500 and 503.
_EXHAUSTED = re.compile(
    r"insufficient|not enough|exhausted|depleted|no (?:more |available )?keys?\b(?!.*not found)",
    re.IGNORECASE,
)

#: Codes that are one key's or one request's fault and stand where 400 should.
_CLIENT_FAULTS = frozenset({400, 404, 409, 410, 412, 422})


def read_error(body: bytes) -> ErrorBody | None:
    """The error in the standard's form, or None where the body is something else."""
    with contextlib.suppress(KeySourceError):
        return decode_error(body)
    return None


def lacks_method(status: int, error: ErrorBody | None) -> bool:
    """Whether "no such method or resource" was said by the server's framework, not the KME."""
    return status in {405, 501} or (status == 404 and error is None)


def refusal(call: Call, status: int, error: ErrorBody | None) -> KeySourceError:
    """What a status code other than 200 means for this call."""
    prescribed = None if error is None else ErrorMessage.meant_by(error.message)
    reason, retryable = _classify(call, status, error, prescribed)
    # The prescribed texts are constants of ours; a server's own text stays out of the message.
    said = f": {prescribed}" if prescribed is not None else ""
    return KeySourceError(
        reason, f"{call.value}: the KME answered {status}{said}", status=status, retryable=retryable
    )


def _classify(
    call: Call, status: int, error: ErrorBody | None, prescribed: ErrorMessage | None
) -> tuple[Reason, bool]:
    if status in {401, 403}:
        return reason_of_status(status)
    if prescribed is ErrorMessage.KEYS_NOT_FOUND:
        if call is Call.DEC_KEYS:
            return Reason.KEY_NOT_FOUND, False
    elif prescribed is not None:
        return Reason.KME_BAD_REQUEST, False
    says_exhausted = error is not None and _EXHAUSTED.search(error.message) is not None
    if call is Call.ENC_KEYS and says_exhausted:
        return Reason.KEYS_EXHAUSTED, True
    if status in _CLIENT_FAULTS:
        if call is Call.DEC_KEYS and status != 400:
            return Reason.KEY_NOT_FOUND, False
        if call is Call.ENC_KEYS and status in {409, 412}:
            return Reason.KEYS_EXHAUSTED, True
        return Reason.KME_BAD_REQUEST, False
    return reason_of_status(status)
