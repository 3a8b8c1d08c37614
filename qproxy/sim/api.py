"""ETSI GS QKD 014 v1.1.1 as one KME answers it: a request in, an answer out.

Where the standard is silent, this KME says (and a test holds it to it):

- a request is met as a whole or refused as a whole; a refusal takes nothing;
- 503 where there are not enough keys, or too many wait for their slave SAEs;
- a key can be taken by its slave SAE once; the second time it is "not found" (400);
- 400 for an SAE ID nobody registered, and for one that is not across the link;
- a query parameter or member that the standard does not have is 400, not ignored. Vendors'
  additions have their place in ``extension_mandatory`` and ``extension_optional``;
- optional extensions are ignored, and the answer says so in ``key_container_extension``;
- an empty POST body is an empty key request; ``number`` 0 is refused;
- 404 for any other path, 405 for any other method;
- nothing may be cached.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from qproxy.errors import KeySourceError
from qproxy.keys import MAX_KEY_ID_BYTES
from qproxy.net.http_server import Request, Response
from qproxy.sim.network import NoRoute, SimulatedNetwork
from qproxy.sim.route import Route
from qproxy.sim.span import NotEnoughKeys
from qproxy.sim.store import KeysNotFound, NotNamed, SaePair, StoreFull
from qproxy.sources.etsi014_wire import (
    ErrorMessage,
    KeyContainer,
    KeyRequest,
    Status,
    decode_key_ids,
    decode_key_request,
    encode_error,
    encode_key_container,
    encode_status,
)

_PATH = re.compile(r"/api/v1/keys/(?P<sae>[^/]+)/(?P<call>status|enc_keys|dec_keys)")
_METHODS = {
    "status": ("GET",),
    "enc_keys": ("GET", "POST"),
    "dec_keys": ("GET", "POST"),
}
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMBER = re.compile(r"[0-9]{1,10}")
_NO_STORE = (("Cache-Control", "no-store"),)


class Refusal(Exception):  # noqa: N818 - it is an HTTP answer
    """An answer other than 200, thrown from wherever it became clear.

    Attributes:
        response: the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *details: Mapping[str, object],
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.response = Response(
            status, encode_error(message, details), headers=_NO_STORE + headers
        )


@dataclass(frozen=True, slots=True)
class Site:
    """Which KME this is, and who is where.

    Attributes:
        kme: this KME's name.
        saes: SAE ID to the name of its KME.
    """

    kme: str
    saes: Mapping[str, str]


class KmeApi:
    """One KME's interface to its SAEs.

    Args:
        site: which KME this is.
        network: makes keys and holds them until the slave SAE takes them; shared by all KMEs.
    """

    def __init__(self, site: Site, network: SimulatedNetwork) -> None:
        self._site = site
        self._network = network
        self._limits = network.keys

    def handle(self, requester: str | None, request: Request, now: float) -> Response:
        """Answer one request.

        Args:
            requester: SAE ID from the client's certificate, or None where it names none.
            request: what came.
            now: the time, in seconds.
        """
        try:
            return self._handle(requester, request, now)
        except Refusal as refusal:
            return refusal.response
        except KeySourceError as error:  # a body that cannot be read; the message quotes nothing
            return Refusal(400, str(error)).response

    def _handle(self, requester: str | None, request: Request, now: float) -> Response:
        match = _PATH.fullmatch(request.path)
        if match is None:
            raise Refusal(404, "no such resource")
        methods = _METHODS[match["call"]]
        if request.method not in methods:
            allow = ", ".join(methods)
            raise Refusal(405, f"expected {allow}", headers=(("Allow", allow),))
        # Who asks comes before what is asked for: a stranger learns nothing of SAEs and keys.
        if requester is None or self._site.saes.get(requester) != self._site.kme:
            raise Refusal(401, "the client certificate names no SAE of this KME")
        other = _decode_sae_id(match["sae"])
        route = self._route(requester, other)
        if match["call"] == "status":
            _no_body(request)
            _query(request)
            return self._status(SaePair(requester, other), route, now)
        if match["call"] == "enc_keys":
            asked = _read_key_request(request)
            return self._enc_keys(SaePair(requester, other), route, asked, now)
        return self._dec_keys(SaePair(other, requester), self._read_key_ids(request), now)

    def _route(self, requester: str, sae_id: str) -> Route:
        if sae_id not in self._site.saes:
            raise Refusal(400, "the SAE ID in the path is not registered")
        try:
            return self._network.route(requester, sae_id)
        except NoRoute:
            raise Refusal(
                400, "the SAE in the path is not across a quantum link of this KME"
            ) from None

    def _status(self, pair: SaePair, route: Route, now: float) -> Response:
        """Clause 5.2."""
        report = route.report(now)
        limits = self._limits
        status = Status(
            source_kme_id=self._site.kme,
            target_kme_id=self._site.saes[pair.slave_sae_id],
            master_sae_id=pair.master_sae_id,
            slave_sae_id=pair.slave_sae_id,
            key_size_bits=limits.key_size_bits,
            stored_key_count=report.stored_key_count,
            max_key_count=report.max_key_count,
            max_key_per_request=limits.max_key_per_request,
            max_key_size_bits=limits.max_key_size_bits,
            min_key_size_bits=limits.min_key_size_bits,
            max_sae_id_count=limits.max_sae_id_count,
            extension={
                "simulated": True,
                "link": report.state,
                "qber": report.qber,
                "key_rate_bps": report.key_rate_bps,
            },
        )
        return Response(200, encode_status(status), headers=_NO_STORE)

    def _enc_keys(self, pair: SaePair, route: Route, asked: KeyRequest, now: float) -> Response:
        """Clause 5.3."""
        number, size_bits = self._judge(asked)
        also = self._additional(pair, route, asked.additional_slave_sae_ids)
        try:
            keys = self._network.issue(pair, number, size_bits, now, also=also)
        except StoreFull:
            raise Refusal(503, "too many keys wait for dec_keys") from None
        except NotEnoughKeys:
            report = route.report(now)
            details = {"stored_key_count": report.stored_key_count, "link": report.state}
            raise Refusal(503, "not enough keys are stored", details) from None
        extension: dict[str, object] = {"simulated": True}
        if asked.extension_optional:
            extension["extension_optional"] = ErrorMessage.OPTIONAL_NOT_HANDLED
        container = KeyContainer(tuple(keys), extension)
        body = encode_key_container(container)
        container.wipe()
        return Response(200, body, headers=_NO_STORE)

    def _dec_keys(self, pair: SaePair, key_ids: tuple[str, ...], now: float) -> Response:
        """Clause 5.4."""
        try:
            keys = self._network.claim(pair, key_ids, now)
        except NotNamed:
            raise Refusal(401, "the SAE was not named in the original request") from None
        except KeysNotFound:
            raise Refusal(400, ErrorMessage.KEYS_NOT_FOUND) from None
        container = KeyContainer(tuple(keys), {"simulated": True})
        body = encode_key_container(container)
        container.wipe()
        return Response(200, body, headers=_NO_STORE)

    def _judge(self, asked: KeyRequest) -> tuple[int, int]:
        """The number and size (bits) to give, or a refusal. Clause 6.2."""
        limits = self._limits
        if asked.extension_mandatory:
            raise Refusal(400, ErrorMessage.MANDATORY_NOT_SUPPORTED)
        number = 1 if asked.number is None else asked.number
        if not 1 <= number <= limits.max_key_per_request:
            raise Refusal(400, f"number: expected 1 to {limits.max_key_per_request}")
        size_bits = limits.key_size_bits if asked.size_bits is None else asked.size_bits
        if size_bits % 8:
            raise Refusal(400, ErrorMessage.SIZE_MULTIPLE_OF_8)
        if not limits.min_key_size_bits <= size_bits <= limits.max_key_size_bits:
            low, high = limits.min_key_size_bits, limits.max_key_size_bits
            raise Refusal(400, f"size: expected {low} to {high} bits")
        return number, size_bits

    def _additional(self, pair: SaePair, route: Route, sae_ids: tuple[str, ...]) -> tuple[str, ...]:
        """More slave SAEs for the same keys, or a refusal. Clause 6.2.

        They are at the KME of the slave in the path: a key is carried to one KME.
        """
        limit = self._limits.max_sae_id_count
        if len(sae_ids) > limit:
            raise Refusal(400, f"additional_slave_SAE_IDs: max_SAE_ID_count is {limit}")
        if len({*sae_ids, pair.slave_sae_id}) <= len(sae_ids):
            raise Refusal(400, "additional_slave_SAE_IDs: expected each slave SAE once")
        home = self._site.saes[pair.slave_sae_id]
        for sae_id in sae_ids:
            same_home = self._site.saes.get(sae_id) == home
            if not same_home or self._route(pair.master_sae_id, sae_id) is not route:
                raise Refusal(
                    400, "additional_slave_SAE_IDs: expected SAEs of the KME of the slave SAE"
                )
        return sae_ids

    def _read_key_ids(self, request: Request) -> tuple[str, ...]:
        if request.method == "POST":
            _query(request)
            require_json(request)
            key_ids = decode_key_ids(request.body)
            if len(key_ids) > self._limits.max_key_per_request:
                limit = self._limits.max_key_per_request
                raise Refusal(400, f"key_IDs: expected at most {limit}")
            return key_ids
        _no_body(request)
        key_id = _query(request, "key_ID").get("key_ID", "")
        if not 1 <= len(key_id.encode()) <= MAX_KEY_ID_BYTES:
            raise Refusal(400, f"expected the parameter key_ID, 1 to {MAX_KEY_ID_BYTES} bytes")
        return (key_id,)


def _read_key_request(request: Request) -> KeyRequest:
    if request.method == "POST":
        _query(request)
        require_json(request)
        return decode_key_request(request.body)
    _no_body(request)
    parameters = _query(request, "number", "size")
    for name, value in parameters.items():
        if not _NUMBER.fullmatch(value):
            raise Refusal(400, f"{name}: expected an integer")
    number, size = parameters.get("number"), parameters.get("size")
    return KeyRequest(
        number=None if number is None else int(number),
        size_bits=None if size is None else int(size),
    )


def _query(request: Request, *allowed: str) -> dict[str, str]:
    """The parameters of the query, each of them allowed and there once."""
    if not request.query:
        return {}
    pairs = None
    if not _PERCENT.search(request.query):
        try:
            pairs = parse_qsl(
                request.query,
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=8,
            )
        except ValueError:
            pairs = None
    parameters = dict(pairs or ())
    if pairs is None or len(parameters) != len(pairs) or not parameters.keys() <= set(allowed):
        wanted = f"{' and '.join(allowed)}, each at most once" if allowed else "none"
        raise Refusal(400, f"query parameters: expected {wanted}")
    return parameters


def require_json(request: Request, *, always: bool = False) -> None:
    """Refuse a body that says to be something else than JSON.

    Args:
        request: what came.
        always: refuse one that says nothing, too.

    Raises:
        Refusal: 400.
    """
    unsaid = "" if always else "application/json"
    content_type = request.headers.get("content-type", unsaid)
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(400, "Content-Type: expected application/json")


def _no_body(request: Request) -> None:
    if request.body:
        raise Refusal(400, "expected no body with GET")


def _decode_sae_id(segment: str) -> str:
    """An SAE ID out of a path segment. Source: RFC 3986 §2.1, UTF-8."""
    try:
        if _PERCENT.search(segment):
            raise Refusal(400, "the SAE ID in the path has a bad percent-encoding")
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise Refusal(400, "the SAE ID in the path is no UTF-8") from None
