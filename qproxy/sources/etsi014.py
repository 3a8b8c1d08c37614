"""A KME behind ETSI GS QKD 014, as its SAE sees it.

The transport (mutual TLS, timeouts, size limits) is the HTTP client's. Here is what is asked,
and what an answer must be before any of it is believed:

- at most as many keys as asked, of exactly the size asked, with distinct IDs, distinct values,
  none all zero and none that came lately; for ``dec_keys`` exactly the IDs asked, put into the
  order asked;
- anything else is refused as a whole, and what had been read is wiped.

Servers differ from the standard in ways this client survives: GET that ignores ``number`` and
``size`` or is not there at all (it goes over to POST), fewer keys than asked (it asks again for the
rest), key IDs in other capitals, and answers that :mod:`qproxy.sources.etsi014_errors` sorts out.

Nothing a server wrote is quoted in an error: see :mod:`qproxy.sources.etsi014_wire`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import trio

from qproxy.config.model import KeyRequestMethod
from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.keys import MAX_KEY_ID_BYTES, QkdKey, wipe_keys
from qproxy.net.http_client import HttpResponse
from qproxy.sources.base import SourceStatus, check_request
from qproxy.sources.etsi014_errors import Call, lacks_method, read_error, refusal
from qproxy.sources.etsi014_wire import (
    MAX_SAE_ID_BYTES,
    KeyContainer,
    KeyRequest,
    Status,
    WireKey,
    decode_key_container,
    decode_status,
    key_ids_document,
    key_request_document,
)
from qproxy.sources.http import DEADLINE_MARGIN, Http, exchange
from qproxy.sources.recent import RecentKeys, folded_key_id

#: Source: ETSI GS QKD 014 v1.1.1, clause 5.
_API_PREFIX = "/api/v1/keys/"

#: Failures that throw doubt on the keys that the same KME gave in the same call.
_DISCREDITING = frozenset({Reason.KEY_INVALID, Reason.KME_INVALID_RESPONSE})
#: Failures after which nothing else needs to be tried.
_NOT_THERE = frozenset({Reason.KME_UNREACHABLE, Reason.KME_TLS, Reason.KME_TIMEOUT})


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


@dataclass(frozen=True, slots=True)
class KeyCalls:
    """How keys are asked for.

    Attributes:
        method: GET or POST. GET carries nothing but ``number`` and ``size``, so what follows makes
            ``enc_keys`` a POST.
        additional_slave_sae_ids: further SAEs that get the same keys.
        extension_mandatory: what the KME must do, or refuse the request.
        extension_optional: what it may do.
    """

    method: KeyRequestMethod = KeyRequestMethod.AUTO
    additional_slave_sae_ids: tuple[str, ...] = ()
    extension_mandatory: tuple[Mapping[str, object], ...] = ()
    extension_optional: tuple[Mapping[str, object], ...] = ()

    @property
    def needs_post(self) -> bool:
        """Whether there is more to say than ``number`` and ``size``."""
        return any(
            (self.additional_slave_sae_ids, self.extension_mandatory, self.extension_optional)
        )


class Etsi014Source:
    """A :class:`~qproxy.sources.base.KeySource` over one KME, for one pair of SAEs.

    Args:
        name: the source's key in ``key_sources``.
        http: connects to the KME with the SAE's certificate; this object closes it.
        base_url: ``https://host[:port][/prefix]``; ``/api/v1/keys/`` is added.
        local_sae_id: who we are. The KME knows it from our certificate; it is in no request.
        peer_sae_id: the SAE at the other site: slave when we are master, and the reverse.
        figures: where this KME tells QBER and key rate.
        calls: how keys are asked for.
        kme: the KME's configured name, for status and log.

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
        calls: KeyCalls = KeyCalls(),
        kme: str = "",
    ) -> None:
        for sae_id in (local_sae_id, peer_sae_id, *calls.additional_slave_sae_ids):
            _check_sae_id(sae_id)
        self.name = name
        self.kme = kme or name
        self.local_sae_id = local_sae_id
        self.peer_sae_id = peer_sae_id
        self._http = http
        self._base_url = f"{base_url.rstrip('/')}{_API_PREFIX}{quote(peer_sae_id, safe='')}"
        self._figures = figures
        self._calls = calls
        self._get_keys_with_get = calls.method is not KeyRequestMethod.POST and not calls.needs_post
        self._get_by_id_with_get = calls.method is not KeyRequestMethod.POST
        self._may_switch = calls.method is KeyRequestMethod.AUTO
        self._said: Status | None = None
        self._was_asked = False
        self._simulated = False
        self._recent = RecentKeys()

    async def status(self) -> SourceStatus:
        """``GET {slave_SAE_ID}/status``. Source: clause 5.2."""
        self._was_asked = True
        response = await self._exchange(Call.STATUS, "GET", self._url(Call.STATUS))
        status = self._said = decode_status(response.body)
        self._simulated = status.extension.get("simulated") is True
        return _source_status(status, self._figures, simulated=self._simulated, kme=self.kme)

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """``{slave_SAE_ID}/enc_keys``. Source: clause 5.3.

        In as many requests as the KME's ``max_key_per_request`` makes necessary. GET, as the
        standard allows where there is nothing but ``number`` and ``size``, until a server shows
        that it does not heed them; POST from then on.
        """
        check_request(number, size_bits)
        most = await self._most_per_request(number)
        self._check_said(size_bits)
        deadline, slowest = trio.current_effective_deadline(), 0.0
        keys: list[QkdKey] = []
        try:
            while len(keys) < number:
                began = trio.current_time()
                if keys and began + DEADLINE_MARGIN * slowest > deadline:
                    break
                keys += await self._get_some(min(most, number - len(keys)), size_bits)
                _check_distinct(keys)
                slowest = max(slowest, trio.current_time() - began)
        except KeySourceError as error:
            if not keys or error.reason in _DISCREDITING:
                wipe_keys(keys)
                raise
        except BaseException:  # cancellation too: nobody else has these keys
            wipe_keys(keys)
            raise
        return keys

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """``{master_SAE_ID}/dec_keys``. Source: clause 5.4. GET for one ID, POST for several."""
        check_request(len(key_ids), size_bits)
        _check_key_ids(key_ids)
        most = await self._most_per_request(len(key_ids))
        keys: list[QkdKey] = []
        try:
            for first in range(0, len(key_ids), most):
                keys += await self._get_named(key_ids[first : first + most], size_bits)
            _check_distinct(keys)
        except BaseException:
            wipe_keys(keys)
            raise
        return keys

    async def aclose(self) -> None:
        """Close the connections to the KME."""
        await self._http.aclose()

    # What the KME says that it can do.

    async def _most_per_request(self, number: int) -> int:
        """How many keys to ask for at once. Raises KeySourceError where the KME is not there."""
        if number > 1 and not self._was_asked:
            try:
                await self.status()
            except KeySourceError as error:
                # A KME whose status is broken may still give keys. One that is not there may not.
                if error.reason in _NOT_THERE:
                    raise
        return number if self._said is None else min(number, self._said.max_key_per_request)

    def _check_said(self, size_bits: int) -> None:
        """Raise KeySourceError where the KME has said that it has no such keys for us."""
        said, wanted = self._said, len(self._calls.additional_slave_sae_ids)
        if said is None:
            return
        if not said.min_key_size_bits <= size_bits <= said.max_key_size_bits:
            raise _impossible(
                f"the KME gives keys of {said.min_key_size_bits} to {said.max_key_size_bits} bits,"
                f" expected {size_bits}"
            )
        if wanted > said.max_sae_id_count:
            raise _impossible(
                f"the KME takes {said.max_sae_id_count} additional slave SAE IDs, expected {wanted}"
            )

    # The master's side.

    async def _get_some(self, number: int, size_bits: int) -> list[QkdKey]:
        """One request: at least one key and at most ``number``."""
        if self._get_keys_with_get:
            keys = await self._get_keys_by_get(number, size_bits)
            if keys:
                return keys
        request = KeyRequest(
            number,
            size_bits,
            self._calls.additional_slave_sae_ids,
            self._calls.extension_mandatory,
            self._calls.extension_optional,
        )
        response = await self._exchange(
            Call.ENC_KEYS, "POST", self._url(Call.ENC_KEYS), json=key_request_document(request)
        )
        return self._accept_new(number, size_bits, decode_key_container(response.body))

    async def _get_keys_by_get(self, number: int, size_bits: int) -> list[QkdKey]:
        """At most ``number`` keys of the right size; none where this server has no such GET."""
        query = urlencode({"number": number, "size": size_bits})
        url = f"{self._url(Call.ENC_KEYS)}?{query}"
        response = await self._exchange(Call.ENC_KEYS, "GET", url, may_lack_method=self._may_switch)
        if response.status != 200:
            self._get_keys_with_get = self._get_by_id_with_get = False
            return []
        container = decode_key_container(response.body)
        others = any(len(key.key) * 8 != size_bits for key in container.keys)
        if self._may_switch and others:
            # It ignored ``size``. These keys are lost; the next ones are asked for by POST.
            container.wipe()
            self._get_keys_with_get = False
            return []
        if self._may_switch and 0 < len(container.keys) < number:
            self._get_keys_with_get = False
        return self._accept_new(number, size_bits, container)

    def _accept_new(self, number: int, size_bits: int, container: KeyContainer) -> list[QkdKey]:
        """Keys that must never have been seen before."""
        if len(container.keys) > number:
            container.wipe()
            raise _invalid(f"enc_keys gave {len(container.keys)} keys, expected {number}")
        if not container.keys:
            raise KeySourceError(Reason.KEYS_EXHAUSTED, "enc_keys: the KME gave no key")
        keys = self._accept(container.keys, size_bits, container)
        if any(self._recent.knows_id(key.key_id) for key in keys):
            wipe_keys(keys)
            raise _invalid("enc_keys gave a key_ID that it had given before")
        return self._remember(keys)

    # The slave's side.

    async def _get_named(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """One request: exactly these keys, in this order."""
        container = decode_key_container((await self._fetch_by_id(key_ids)).body)
        try:
            keys = self._accept(_in_order(container, key_ids), size_bits, container)
        except KeySourceError:
            container.wipe()
            raise
        # The ID as it was asked for: a server may have changed a UUID's capitals.
        for key, key_id in zip(keys, key_ids, strict=True):
            key.key_id = key_id
        return self._remember(keys)

    async def _fetch_by_id(self, key_ids: Sequence[str]) -> HttpResponse:
        url = self._url(Call.DEC_KEYS)
        if len(key_ids) == 1 and self._get_by_id_with_get:
            query = urlencode({"key_ID": key_ids[0]}, quote_via=quote)
            response = await self._exchange(
                Call.DEC_KEYS, "GET", f"{url}?{query}", may_lack_method=self._may_switch
            )
            if response.status == 200:
                return response
            self._get_by_id_with_get = False
        return await self._exchange(Call.DEC_KEYS, "POST", url, json=key_ids_document(key_ids))

    # Both.

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

    def _remember(self, keys: list[QkdKey]) -> list[QkdKey]:
        """Hand these on, unless one of them came before under another ID."""
        if all(self._recent.add(key.key_id, key.key) for key in keys):
            return keys
        wipe_keys(keys)
        raise KeySourceError(Reason.KEY_INVALID, "the KME gave one key under two IDs")

    def _url(self, call: Call) -> str:
        return f"{self._base_url}/{call.value}"

    async def _exchange(
        self,
        call: Call,
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
        # A key call takes keys from the store, whatever its method.
        repeatable = call is Call.STATUS
        response = await exchange(
            self._http, method, url, what=call.value, whom="KME", json=json, repeatable=repeatable
        )
        if response.status == 200:
            return response
        said = read_error(response.body)
        if may_lack_method and lacks_method(response.status, said):
            return response
        raise refusal(call, response.status, said)


# --- checks -------------------------------------------------------------------------------


def _source_status(
    status: Status, figures: LinkFigures, *, simulated: bool, kme: str = ""
) -> SourceStatus:
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
        kme=kme,
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


def _check_key_ids(key_ids: Sequence[str]) -> None:
    """IDs are a peer's: what no KME can have issued is not asked for."""
    if len(set(map(folded_key_id, key_ids))) != len(key_ids) or not all(map(_is_key_id, key_ids)):
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
    keys = {folded_key_id(key.key_id): key for key in container.keys}
    asked = [folded_key_id(key_id) for key_id in key_ids]
    if len(keys) != len(container.keys) or not keys.keys() <= set(asked):
        raise _invalid("dec_keys gave keys that were not asked for")
    if len(keys) < len(key_ids):
        # The standard is silent on answers in part; what is missing will not come any more.
        raise KeySourceError(
            Reason.KEY_NOT_FOUND,
            f"dec_keys gave {len(keys)} of {len(key_ids)} keys asked for",
            retryable=False,
        )
    return [keys[key_id] for key_id in asked]


def _check_distinct(keys: Sequence[QkdKey]) -> None:
    if len({folded_key_id(key.key_id) for key in keys}) != len(keys):
        raise _invalid("one key_ID came twice")
    if len({bytes(key.key) for key in keys}) != len(keys):
        raise KeySourceError(Reason.KEY_INVALID, "the KME gave one key under two IDs")


def _impossible(message: str) -> KeySourceError:
    return KeySourceError(Reason.KME_BAD_REQUEST, message, retryable=False)


def _invalid(message: str) -> KeySourceError:
    return KeySourceError(Reason.KME_INVALID_RESPONSE, message)
