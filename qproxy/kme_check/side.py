"""One end with its connections: a request in, the facts of its answer out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

import trio
from OpenSSL import SSL

from qproxy.config.model import PemFiles, Pkcs12Files
from qproxy.kme_check.ends import End
from qproxy.kme_check.facts import Answer, Fingerprint, no_answer, read_answer
from qproxy.net.http_client import HttpClient, HttpClientError, HttpErrorKind
from qproxy.sources.etsi014_errors import Call
from qproxy.tls.context import client_context
from qproxy.tls.identity import TlsIdentity, TrustStore

_API: Final = "/api/v1/keys/"
#: An extension to a key ID that no KME knows.
_UNKNOWN_EXTENSION: Final = {"qproxy_check_unknown": True}


@dataclass(slots=True)
class Side:
    """One end with its connections.

    Attributes:
        end: which.
        tls: the context of its requests.
        http: its connections; whoever opened the side closes them.
        fingerprint: for the keys that come.
        heard: every answer, in order.
        lost: requests that met a kept connection which was closed without a word.
    """

    end: End
    tls: SSL.Context
    http: HttpClient
    fingerprint: Fingerprint
    heard: list[Answer] = field(default_factory=list)
    lost: int = 0

    async def ask(
        self, call: Call, sae_segment: str, *, query: str = "", json: object | None = None
    ) -> Answer:
        """One request. ``sae_segment`` is percent-encoded already."""
        url = f"{self.end.kme.url}{path_of(call, sae_segment)}"
        if query:
            url = f"{url}?{query}"
        answer = await self._exchange(call, url, json)
        if answer.failure is HttpErrorKind.LOST:
            # Here, unlike in a gateway, a key that went astray does not matter.
            self.lost += 1
            answer = await self._exchange(call, url, json)
        self.heard.append(answer)
        return answer

    async def _exchange(self, call: Call, url: str, json: object | None) -> Answer:
        began = trio.current_time()
        try:
            response = await self.http.request("GET" if json is None else "POST", url, json=json)
        except HttpClientError as error:
            return no_answer(call, error.kind, trio.current_time() - began)
        return read_answer(call, response, trio.current_time() - began, self.fingerprint)

    async def dec_keys(self, key_ids: Sequence[str], *, extended: bool = False) -> Answer:
        """Keys by their IDs in a POST."""
        document = [{"key_ID": key_id} for key_id in key_ids]
        if extended:
            document[0] = {**document[0], "key_ID_extension": _UNKNOWN_EXTENSION}  # type: ignore[dict-item]
        return await self.ask(Call.DEC_KEYS, self.segment, json={"key_IDs": document})

    async def dec_key(self, key_id: str) -> Answer:
        """One key by its ID in a GET."""
        query = urlencode({"key_ID": key_id}, quote_via=quote)
        return await self.ask(Call.DEC_KEYS, self.segment, query=query)

    @property
    def segment(self) -> str:
        """The far SAE in a path."""
        return quote(self.end.peer_sae_id, safe="")


def path_of(call: Call, sae_segment: str) -> str:
    """The path of a method for an SAE ID that is percent-encoded already."""
    return f"{_API}{sae_segment}/{call.value}"


def percent_encode_fully(sae_id: str) -> str:
    """An SAE ID with every byte percent-encoded: the same resource (RFC 3986 §6.2.2.2)."""
    return "".join(f"%{byte:02X}" for byte in sae_id.encode())


def open_side(end: End, fingerprint: Fingerprint) -> Side:
    """Load what it takes to reach a KME; connections are made when they are needed.

    Raises:
        ConfigError: a certificate, key or authority cannot be used.
    """
    tls = client_context(trust=TrustStore.load(end.kme.ca), identity=_identity(end.kme.client))
    http = HttpClient(
        tls=tls,
        server_name=end.kme.server_name,
        connect_timeout_s=end.connect_timeout_s,
        request_timeout_s=end.request_timeout_s,
    )
    return Side(end, tls, http, fingerprint)


def _identity(client: PemFiles | Pkcs12Files) -> TlsIdentity:
    match client:
        case PemFiles(certificate, private_key):
            return TlsIdentity.load(certificate, private_key)
        case Pkcs12Files(bundle, password_file):
            return TlsIdentity.load_pkcs12(bundle, password_file)
