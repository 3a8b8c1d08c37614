"""The requests themselves: from two ends to evidence. Everything that does I/O is here.

With each end as master in turn: its TLS, its status, requests for new keys (see
:mod:`qproxy.kme_check.plan`), then, where the other end is in reach, the same keys by ID. The
first key drawn is fetched last, so that an older key must outlive newer ones. Requests follow one
another: a KME under load is not what is looked at.
"""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

import trio
from OpenSSL import SSL

from qproxy.config.model import PemFiles, Pkcs12Files
from qproxy.kme_check.ends import End
from qproxy.kme_check.evidence import REST, Evidence
from qproxy.kme_check.facts import (
    Answer,
    Call,
    Fingerprint,
    fingerprint_with,
    no_answer,
    read_answer,
)
from qproxy.kme_check.plan import BEYOND_LIMITS, Limits, Plan, Step, make_plan
from qproxy.kme_check.tls_probe import probe_transport
from qproxy.net.http_client import HttpClient, HttpClientError, HttpErrorKind
from qproxy.tls.context import client_context
from qproxy.tls.identity import TlsIdentity, TrustStore

_API: Final = "/api/v1/keys/"
#: Requests for keys whose keys are all fetched at the other end in one POST.
_FETCHED_TOGETHER: Final = ("post-several",)
#: An extension to a key ID that no KME knows.
_UNKNOWN_EXTENSION: Final = {"qproxy_check_unknown": True}


@dataclass(slots=True)
class _Side:
    """One end with its connections."""

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
    return f"{_API}{sae_segment}/{call}"


def percent_encode_fully(sae_id: str) -> str:
    """An SAE ID with every byte percent-encoded: the same resource (RFC 3986 §6.2.2.2)."""
    return "".join(f"%{byte:02X}" for byte in sae_id.encode())


async def gather(
    ends: Sequence[End], max_keys: int, announce: Callable[[Plan], None]
) -> list[Evidence]:
    """Ask everything there is to ask.

    Args:
        ends: one end, or two that face each other.
        max_keys: how many keys may be used at worst.
        announce: told what will be asked for, after the status and before the first key.

    Returns:
        What was seen with each end as master.

    Raises:
        ConfigError: a certificate, key or authority cannot be used.
    """
    secret = secrets.token_bytes(32)
    async with contextlib.AsyncExitStack() as opened:
        sides = []
        for end in ends:
            side = _open(end, fingerprint_with(secret))
            opened.push_async_callback(side.http.aclose)
            sides.append(side)
        runs = []
        for side in sides:
            other = next((each for each in sides if each is not side), None)
            run = _Run(side, other)
            await run.look()
            runs.append(run)
        plan = make_plan([run.evidence.limits for run in runs], max_keys)
        announce(plan)
        for run, chosen in zip(runs, plan.steps, strict=True):
            run.evidence.unasked.update(plan.left_out)
            if not run.evidence.limits.told:
                unknown = "the status does not tell the limits"
                run.evidence.unasked.update(dict.fromkeys(BEYOND_LIMITS, unknown))
            await run.draw(chosen)
            await run.fetch()
        return [run.finish() for run in runs]


def _open(end: End, fingerprint: Fingerprint) -> _Side:
    tls = client_context(trust=TrustStore.load(end.kme.ca), identity=_identity(end.kme.client))
    http = HttpClient(
        tls=tls,
        server_name=end.kme.server_name,
        connect_timeout_s=end.connect_timeout_s,
        request_timeout_s=end.request_timeout_s,
    )
    return _Side(end, tls, http, fingerprint)


def _identity(client: PemFiles | Pkcs12Files) -> TlsIdentity:
    match client:
        case PemFiles(certificate, private_key):
            return TlsIdentity.load(certificate, private_key)
        case Pkcs12Files(bundle, password_file):
            return TlsIdentity.load_pkcs12(bundle, password_file)


class _Run:
    """One end as master, the other, where there is one, as slave."""

    def __init__(self, master: _Side, slave: _Side | None) -> None:
        self._master = master
        self._slave = slave
        self.evidence = Evidence(
            master.end,
            None if slave is None else slave.end,
            answers={"status": no_answer(Call.STATUS, HttpErrorKind.CONNECT, 0.0)},
        )

    def finish(self) -> Evidence:
        """What was seen, once every run is over."""
        self.evidence.heard, self.evidence.lost = self._master.heard, self._master.lost
        return self.evidence

    @property
    def _turned_away(self) -> bool:
        """Whether there is no use in going on: no KME answers, or it does not know who asks."""
        return self.evidence.answers["status"].status in {None, 401, 403}

    async def look(self) -> None:
        """TLS and status. Takes no key."""
        evidence, master = self.evidence, self._master
        path = path_of(Call.STATUS, master.segment)
        evidence.transport = await probe_transport(master.end, master.tls, path)
        status = await self._note("status", master.ask(Call.STATUS, master.segment))
        if status.status is None:
            return
        evidence.limits = Limits.of(status)
        encoded = percent_encode_fully(master.end.peer_sae_id)
        await self._note("status-encoded", master.ask(Call.STATUS, encoded))

    async def draw(self, chosen: Iterable[Step]) -> None:
        """Ask the master's KME for new keys, and for what it shall refuse."""
        if self._turned_away:
            return
        for step in chosen:
            segment = self._master.segment if step.stranger is None else step.stranger
            asked = self._master.ask(Call.ENC_KEYS, segment, query=step.query, json=step.json)
            await self._note(step.name, asked)
        await self._note("status-again", self._master.ask(Call.STATUS, self._master.segment))

    async def fetch(self) -> None:
        """Ask for keys by ID: at the master's own KME in vain, at the slave's for real."""
        evidence = self.evidence
        if self._turned_away:
            return
        spare = _ids(evidence, "post-default")
        if spare:
            await self._note("wrong-sae", self._master.dec_keys(spare[:1]))
        if self._slave is None:
            await self._ask_for_unknown(self._master)
            return
        await self._ask_for_unknown(self._slave)
        await self._fetch_several(self._slave)
        if spare:
            await self._fetch_mixed(self._slave, spare[0])
        oldest = (_ids(evidence, "get-default") or _ids(evidence, "post-optional"))[:1]
        rest = [i for i in _ids(evidence, "get-sized", "post-optional") if i not in oldest]
        at_once = evidence.limits.max_key_per_request
        for start in range(0, len(rest), at_once):
            few = rest[start : start + at_once]
            await self._note(f"{REST}{start}", self._slave.dec_keys(few))
        if oldest:
            await self._fetch_oldest(self._slave, oldest)

    async def _ask_for_unknown(self, side: _Side) -> None:
        await self._note("unknown-get", side.dec_key(str(uuid.uuid4())))
        await self._note("unknown-post", side.dec_keys([str(uuid.uuid4())]))

    async def _fetch_several(self, slave: _Side) -> None:
        """In another order than drawn; with an extension to an ID; then once more."""
        several = _ids(self.evidence, *_FETCHED_TOGETHER)[::-1]
        if several:
            await self._note("several-post", slave.dec_keys(several, extended=True))
            if self.evidence.answers["several-post"].status == 400:
                await self._note("several-plain", slave.dec_keys(several))
            await self._note("again-post", slave.dec_keys(several))

    async def _fetch_mixed(self, slave: _Side, key_id: str) -> None:
        """A good ID beside one that nobody issued; then the good one alone."""
        if self.evidence.limits.max_key_per_request > 1:
            mixed = slave.dec_keys([key_id, str(uuid.uuid4())])
            await self._note("partial", mixed)
        else:
            self.evidence.unasked["partial"] = "this KME takes one key ID at a time"
        await self._note("after-partial", slave.dec_keys([key_id]))

    async def _fetch_oldest(self, slave: _Side, oldest: Sequence[str]) -> None:
        """The first key drawn, by GET where there is one; then once more in the same way."""
        by_get = await self._note("oldest-get", slave.dec_key(oldest[0]))
        if by_get.ok:
            await self._note("again-oldest", slave.dec_key(oldest[0]))
        else:
            await self._note("oldest-post", slave.dec_keys(oldest))
            await self._note("again-oldest", slave.dec_keys(oldest))

    async def _note(self, name: str, asked: Awaitable[Answer]) -> Answer:
        answer = await asked
        self.evidence.answers[name] = answer
        return answer


def _ids(evidence: Evidence, *names: str) -> list[str]:
    """IDs of keys that requests gave and that can be asked for, each once."""
    return list(dict.fromkeys(key.key_id for key in evidence.given(*names) if key.key_id))
