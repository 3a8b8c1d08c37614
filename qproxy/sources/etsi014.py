"""A KME behind ETSI GS QKD 014, as its SAE sees it.

The transport (mutual TLS, timeouts, size limits) is the HTTP client's. Here is what is asked,
and what an answer must be before any of it is believed:

- exactly as many keys as asked, of exactly the size asked, with distinct IDs, distinct values
  and none all zero; for ``dec_keys`` exactly the IDs asked, put into the order asked;
- anything else is refused as a whole, and what had been read is wiped.

Servers differ from the standard in ways this client survives: GET that ignores ``number`` and
``size`` or is not there at all (it goes over to POST), 404, 409, 412 and 504 in place of 400
and 503, HTML in place of JSON, and exhaustion, for which the standard has no code.

Nothing a server wrote is quoted in an error: see :mod:`qproxy.sources.etsi014_wire`.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, urlencode

from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, MAX_QKD_KEY_BYTES, QkdKey, wipe_keys
from qproxy.net.http_client import HttpClientError, HttpErrorKind, HttpResponse
from qproxy.sources.base import MAX_KEYS_PER_CALL, SourceStatus
from qproxy.sources.etsi014_wire import (
    MAX_SAE_ID_BYTES,
    ErrorBody,
    ErrorMessage,
    KeyContainer,
    KeyRequest,
    Status,
    WireKey,
    decode_error,
    decode_key_container,
    decode_status,
    key_ids_document,
    key_request_document,
)

#: Source: ETSI GS QKD 014 v1.1.1, clause 5.
_API_PREFIX = "/api/v1/keys/"


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


class _Call(enum.Enum):
    """The three methods of the interface (clause 5)."""

    STATUS = "status"
    ENC_KEYS = "enc_keys"
    DEC_KEYS = "dec_keys"


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """Where a KME tells QBER and key rate: ETSI GS QKD 014 leaves both to ``status_extension``.

    Attributes:
        qber: path of the QBER in it, member names joined by dots.
        qber_scale: what it is multiplied by to become a fraction from 0 to 1; 0.01 for per cent.
        key_rate: path of the secret key rate.
        key_rate_scale: what it is multiplied by to become bits per second.
    """

    qber: str = "qber"
    qber_scale: float = 1.0
    key_rate: str = "key_rate_bps"
    key_rate_scale: float = 1.0


class Etsi014Source:
    """A :class:`~qproxy.sources.base.KeySource` over one KME, for one pair of SAEs.

    Args:
        name: the source's key in ``key_sources``.
        http: connects to the KME with the SAE's certificate; this object closes it.
        base_url: ``https://host[:port][/prefix]``; ``/api/v1/keys/`` is added.
        local_sae_id: who we are. The KME knows it from our certificate; it is in no request.
        peer_sae_id: the SAE at the other site: slave when we are master, and the reverse.
        figures: where this KME tells QBER and key rate.

    Raises:
        ConfigError: an SAE ID cannot stand in a URL.
    """

    def __init__(
        self,
        name: str,
        http: Http,
        base_url: str,
        local_sae_id: str,
        peer_sae_id: str,
        figures: LinkFigures = LinkFigures(),
    ) -> None:
        _check_sae_id(local_sae_id)
        _check_sae_id(peer_sae_id)
        self.name = name
        self.local_sae_id = local_sae_id
        self.peer_sae_id = peer_sae_id
        self._http = http
        self._base_url = f"{base_url.rstrip('/')}{_API_PREFIX}{quote(peer_sae_id, safe='')}"
        self._figures = figures
        self._use_get = True
        self._simulated = False

    async def status(self) -> SourceStatus:
        """``GET {slave_SAE_ID}/status``. Source: clause 5.1."""
        response = await self._exchange(_Call.STATUS, "GET", self._url(_Call.STATUS))
        status = decode_status(response.body)
        self._simulated = status.extension.get("simulated") is True
        return _source_status(status, self._figures, simulated=self._simulated)

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """``{slave_SAE_ID}/enc_keys``. Source: clause 5.2.

        GET, as the standard allows where there is nothing but ``number`` and ``size``, until a
        server shows that it does not heed them; POST from then on. A server that gave fewer
        keys than asked over GET is asked for the rest at once.
        """
        _check_request(number, size_bits)
        keys: list[QkdKey] = []
        try:
            if self._use_get:
                keys += await self._get_keys_by_get(number, size_bits)
            if len(keys) < number:
                keys += await self._get_keys_by_post(number - len(keys), size_bits)
            _check_distinct(keys)
        except BaseException:  # cancellation too: nobody else has these keys
            wipe_keys(keys)
            raise
        return keys

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """``{master_SAE_ID}/dec_keys``. Source: clause 5.3. GET for one ID, POST for several."""
        _check_request(len(key_ids), size_bits)
        _check_key_ids(key_ids)
        container = decode_key_container((await self._fetch_by_id(key_ids)).body)
        try:
            keys = self._accept(_in_order(container, key_ids), size_bits, container)
            _check_distinct(keys)
        except KeySourceError:
            container.wipe()
            raise
        return keys

    async def aclose(self) -> None:
        """Close the connections to the KME."""
        await self._http.aclose()

    async def _get_keys_by_get(self, number: int, size_bits: int) -> list[QkdKey]:
        """At most ``number`` keys of the right size; none where this server has no such GET."""
        query = urlencode({"number": number, "size": size_bits})
        url = f"{self._url(_Call.ENC_KEYS)}?{query}"
        response = await self._exchange(_Call.ENC_KEYS, "GET", url, may_lack_method=True)
        if response.status != 200:
            self._use_get = False
            return []
        container = decode_key_container(response.body)
        if any(len(key.key) * 8 != size_bits for key in container.keys):
            # It ignored ``size``. These keys are lost; the next ones are asked for by POST.
            container.wipe()
            self._use_get = False
            return []
        if len(container.keys) < number:
            self._use_get = False
        return self._accept_up_to(number, size_bits, container)

    async def _get_keys_by_post(self, number: int, size_bits: int) -> list[QkdKey]:
        document = key_request_document(KeyRequest(number, size_bits))
        response = await self._exchange(
            _Call.ENC_KEYS, "POST", self._url(_Call.ENC_KEYS), json=document
        )
        container = decode_key_container(response.body)
        if len(container.keys) < number:
            container.wipe()
            raise _invalid(f"enc_keys gave {len(container.keys)} keys, expected {number}")
        return self._accept_up_to(number, size_bits, container)

    async def _fetch_by_id(self, key_ids: Sequence[str]) -> HttpResponse:
        url = self._url(_Call.DEC_KEYS)
        if len(key_ids) == 1 and self._use_get:
            query = urlencode({"key_ID": key_ids[0]}, quote_via=quote)
            response = await self._exchange(
                _Call.DEC_KEYS, "GET", f"{url}?{query}", may_lack_method=True
            )
            if response.status == 200:
                return response
            self._use_get = False
        return await self._exchange(_Call.DEC_KEYS, "POST", url, json=key_ids_document(key_ids))

    def _accept_up_to(self, number: int, size_bits: int, container: KeyContainer) -> list[QkdKey]:
        if len(container.keys) > number:
            container.wipe()
            raise _invalid(f"enc_keys gave {len(container.keys)} keys, expected {number}")
        return self._accept(container.keys, size_bits, container)

    def _accept(
        self, keys: Sequence[WireKey], size_bits: int, container: KeyContainer
    ) -> list[QkdKey]:
        """Hand over keys of a container, or wipe all of it and raise."""
        if not all(_is_key_id(key.key_id) for key in keys):
            # The other site would not ask for it: its ID goes through logs and URLs there.
            container.wipe()
            raise _invalid("a key_ID is no printable text")
        problem = None
        if any(len(key.key) * 8 != size_bits for key in keys):
            problem = f"a key has another length than the {size_bits} bits asked for"
        elif not all(any(key.key) for key in keys):
            problem = "a key is all zero"
        if problem is not None:
            container.wipe()
            raise KeySourceError(Reason.KEY_INVALID, f"the KME gave a bad key: {problem}")
        simulated = self._simulated or container.extension.get("simulated") is True
        return [QkdKey(key.key_id, key.key, self.name, simulated) for key in keys]

    def _url(self, call: _Call) -> str:
        return f"{self._base_url}/{call.value}"

    async def _exchange(
        self,
        call: _Call,
        method: str,
        url: str,
        *,
        json: object | None = None,
        may_lack_method: bool = False,
    ) -> HttpResponse:
        """One exchange that ended with 200.

        Args:
            call: which method of the interface, for the meaning of a failure.
            method: GET or POST.
            url: the whole URL.
            json: the body, or None for none.
            may_lack_method: return an answer that says "no such method or resource" in the
                server's own framework's words, and not in those of the standard.

        Raises:
            KeySourceError: anything else came, or nothing.
        """
        response, failure = None, None
        try:
            response = await self._http.request(
                method,
                url,
                json=json,
                # A key call takes keys from the store, whatever its method.
                repeatable=call is _Call.STATUS,
            )
        except HttpClientError as error:
            failure = error.kind
        # Raised out here, so that no library's exception (which may hold what came) is chained.
        if failure is not None:
            reason, retryable = _TRANSPORT[failure]
            raise KeySourceError(
                reason, f"{call.value}: no answer from the KME ({failure})", retryable=retryable
            )
        if response is None:  # pragma: no cover - one of the two is always there
            raise _invalid("no response")
        if response.status == 200:
            return response
        said = _read_error(response)
        if may_lack_method and _lacks_method(response.status, said):
            return response
        raise _refusal(call, response.status, said)


# --- what failures mean -------------------------------------------------------------------

_TRANSPORT: dict[HttpErrorKind, tuple[Reason, bool]] = {
    HttpErrorKind.CONNECT: (Reason.KME_UNREACHABLE, True),
    HttpErrorKind.TLS: (Reason.KME_TLS, False),
    HttpErrorKind.TIMEOUT: (Reason.KME_TIMEOUT, True),
    HttpErrorKind.LOST: (Reason.KME_UNREACHABLE, True),
    HttpErrorKind.PROTOCOL: (Reason.KME_INVALID_RESPONSE, True),
    HttpErrorKind.TOO_LARGE: (Reason.KME_INVALID_RESPONSE, True),
}

#: The standard has no code for "no keys left", so servers say it in words of their own, and
#: with any of 400, 404, 409, 412, 500 and 503.
_EXHAUSTED = re.compile(
    r"insufficient|not enough|exhausted|depleted|no (?:more |available )?keys?\b(?!.*not found)",
    re.IGNORECASE,
)

#: Codes that are one key's or one request's fault and stand where 400 should.
_CLIENT_FAULTS = frozenset({400, 404, 409, 410, 412, 422})


def _read_error(response: HttpResponse) -> ErrorBody | None:
    """The error in the standard's form, or None where the body is something else."""
    with contextlib.suppress(KeySourceError):
        return decode_error(response.body)
    return None


def _lacks_method(status: int, error: ErrorBody | None) -> bool:
    return status in {405, 501} or (status == 404 and error is None)


def _refusal(call: _Call, status: int, error: ErrorBody | None) -> KeySourceError:
    """What a status code other than 200 means for this call."""
    prescribed = None if error is None else ErrorMessage.meant_by(error.message)
    reason, retryable = _classify(call, status, error, prescribed)
    # The prescribed texts are constants of ours; a server's own text stays out of the message.
    said = f": {prescribed}" if prescribed is not None else ""
    return KeySourceError(
        reason, f"{call.value}: the KME answered {status}{said}", status=status, retryable=retryable
    )


def _classify(
    call: _Call, status: int, error: ErrorBody | None, prescribed: ErrorMessage | None
) -> tuple[Reason, bool]:
    if status in {401, 403}:
        return Reason.KME_UNAUTHORIZED, False
    if prescribed is ErrorMessage.KEYS_NOT_FOUND:
        return Reason.KEY_NOT_FOUND, False
    if prescribed is not None:
        return Reason.KME_BAD_REQUEST, False
    says_exhausted = error is not None and _EXHAUSTED.search(error.message) is not None
    if call is _Call.ENC_KEYS and says_exhausted:
        return Reason.KEYS_EXHAUSTED, True
    if status in _CLIENT_FAULTS:
        if call is _Call.DEC_KEYS and status != 400:
            return Reason.KEY_NOT_FOUND, False
        if call is _Call.ENC_KEYS and status in {409, 412}:
            return Reason.KEYS_EXHAUSTED, True
        return Reason.KME_BAD_REQUEST, False
    if status in {408, 425, 429} or 500 <= status <= 599:
        return Reason.KME_UNAVAILABLE, True
    if 400 <= status <= 499:
        return Reason.KME_BAD_REQUEST, False
    return Reason.KME_INVALID_RESPONSE, True  # 1xx, 3xx and the other 2xx


# --- checks -------------------------------------------------------------------------------


def _source_status(status: Status, figures: LinkFigures, *, simulated: bool) -> SourceStatus:
    qber = _figure(status.extension, figures.qber, figures.qber_scale, high=1.0)
    rate = _figure(status.extension, figures.key_rate, figures.key_rate_scale, high=1e15)
    return SourceStatus(
        stored_key_count=status.stored_key_count,
        max_key_count=status.max_key_count,
        key_size_bits=status.key_size_bits,
        max_key_per_request=status.max_key_per_request,
        min_key_size_bits=status.min_key_size_bits,
        max_key_size_bits=status.max_key_size_bits,
        source_kme_id=status.source_kme_id,
        target_kme_id=status.target_kme_id,
        simulated=simulated,
        qber=qber,
        key_rate_bps=rate,
    )


def _figure(
    extension: Mapping[str, object], path: str, scale: float, *, high: float
) -> float | None:
    """A vendor's figure, or None where there is none or it is no number from 0 to ``high``."""
    value: object = extension
    for member in path.split("."):
        value = value.get(member) if isinstance(value, Mapping) else None
    # The range first: a number too large for a float must not be multiplied.
    if type(value) in {int, float} and 0 <= value <= high / scale:  # type: ignore[operator]
        return float(value) * scale  # type: ignore[arg-type]
    return None


def _check_sae_id(sae_id: str) -> None:
    # A dot segment would be resolved away by anything that normalises the URL (RFC 3986 §5.2.4).
    usable = sae_id not in {"", ".", ".."} and sae_id.isprintable()
    if not usable or len(sae_id.encode()) > MAX_SAE_ID_BYTES:
        raise ConfigError(
            f"the SAE ID {sae_id!r} cannot be used",
            hint=f"expected 1 to {MAX_SAE_ID_BYTES} bytes of printable text, not '.' or '..'",
        )


def _check_request(number: int, size_bits: int) -> None:
    size_ok = size_bits % 8 == 0 and 8 <= size_bits <= MAX_QKD_KEY_BYTES * 8
    if not size_ok or not 1 <= number <= MAX_KEYS_PER_CALL:
        raise KeySourceError(
            Reason.KME_BAD_REQUEST,
            f"expected 1 to {MAX_KEYS_PER_CALL} keys of 8 to {MAX_QKD_KEY_BYTES * 8} bits,"
            f" a multiple of 8; got {number} of {size_bits}",
            retryable=False,
        )


def _check_key_ids(key_ids: Sequence[str]) -> None:
    """IDs are a peer's: what no KME can have issued is not asked for."""
    if len(set(key_ids)) != len(key_ids) or not all(map(_is_key_id, key_ids)):
        raise KeySourceError(
            Reason.KEY_NOT_FOUND,
            f"expected distinct key IDs of 1 to {MAX_KEY_ID_BYTES} bytes of printable text",
            retryable=False,
        )


def _is_key_id(key_id: str) -> bool:
    # Printable excludes half surrogate pairs, which cannot be encoded.
    return key_id.isprintable() and 1 <= len(key_id.encode()) <= MAX_KEY_ID_BYTES


def _in_order(container: KeyContainer, key_ids: Sequence[str]) -> list[WireKey]:
    """The keys of a dec_keys answer in the order asked, where it holds those and no others."""
    keys = {key.key_id: key for key in container.keys}
    if not keys.keys() <= set(key_ids):
        raise _invalid("dec_keys gave keys that were not asked for")
    if len(keys) < len(key_ids):
        # The standard is silent on answers in part; what is missing will not come any more.
        raise KeySourceError(
            Reason.KEY_NOT_FOUND,
            f"dec_keys gave {len(keys)} of {len(key_ids)} keys asked for",
            retryable=False,
        )
    return [keys[key_id] for key_id in key_ids]


def _check_distinct(keys: Sequence[QkdKey]) -> None:
    if len({key.key_id for key in keys}) != len(keys):
        raise _invalid("one key_ID came twice")
    if len({bytes(key.key) for key in keys}) != len(keys):
        raise KeySourceError(Reason.KEY_INVALID, "the KME gave one key under two IDs")


def _invalid(message: str) -> KeySourceError:
    return KeySourceError(Reason.KME_INVALID_RESPONSE, message)
