"""One exchange with whoever gives keys over HTTP, and what it means where that fails.

What a status code means in one interface and not in HTTP is for that interface's own module.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.errors import KeySourceError, Reason
from qproxy.net.http_client import HttpClientError, HttpErrorKind, HttpResponse

#: How much longer than the slowest request so far the next may take, to be begun before a deadline.
DEADLINE_MARGIN = 2.0

#: What a failed exchange means, and whether the same call may succeed later by itself.
TRANSPORT_REASONS: dict[HttpErrorKind, tuple[Reason, bool]] = {
    HttpErrorKind.CONNECT: (Reason.KME_UNREACHABLE, True),
    HttpErrorKind.TLS: (Reason.KME_TLS, False),
    HttpErrorKind.TIMEOUT: (Reason.KME_TIMEOUT, True),
    HttpErrorKind.LOST: (Reason.KME_UNREACHABLE, True),
    HttpErrorKind.PROTOCOL: (Reason.KME_INVALID_RESPONSE, True),
    HttpErrorKind.TOO_LARGE: (Reason.KME_INVALID_RESPONSE, True),
}


class Http(Protocol):
    """What is used of :class:`qproxy.net.http_client.HttpClient`."""

    async def request(
        self, method: str, url: str, *, json: object | None = None, repeatable: bool = False
    ) -> HttpResponse:
        """One exchange; sent a second time only where it may be."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


async def exchange(
    http: Http,
    method: str,
    url: str,
    *,
    what: str,
    whom: str,
    json: object | None = None,
    repeatable: bool,
) -> HttpResponse:
    """One exchange, whatever its status.

    Args:
        http: over this.
        method: GET or POST.
        url: the whole URL.
        what: which call of the interface it is, for the error.
        whom: who is asked, for the error.
        json: the body, or None for none.
        repeatable: it takes nothing from anybody's store, and may be sent twice.

    Raises:
        KeySourceError: nothing came that is a response.
    """
    try:
        return await http.request(method, url, json=json, repeatable=repeatable)
    except HttpClientError as error:
        failure = error.kind
    # Raised out here, so that no library's exception (which may hold what came) is chained.
    reason, retryable = TRANSPORT_REASONS[failure]
    raise KeySourceError(
        reason, f"{what}: no answer from the {whom} ({failure})", retryable=retryable
    )


def reason_of_status(status: int) -> tuple[Reason, bool]:
    """What a status code other than 200 means by HTTP alone; whether a later call may succeed."""
    if status in {401, 403}:
        return Reason.KME_UNAUTHORIZED, False
    if status in {408, 425, 429} or 500 <= status <= 599:
        return Reason.KME_UNAVAILABLE, True
    if 400 <= status <= 499:
        return Reason.KME_BAD_REQUEST, False
    return Reason.KME_INVALID_RESPONSE, True  # 1xx, 3xx and the other 2xx
