"""A key provider behind SKIP (draft-cisco-skip-02), as its encryptor sees it.

SKIP gives one key for one request, so several are asked for side by side. It has no word for how
many keys are left, for a rate or for an error rate, and none for how the two providers come by a
key: by QKD, by post-quantum cryptography or from a pad. What the provider says of that, in its
``algorithm``, is passed on as it stands and believed by nobody.

The connection is TLS with certificates on both sides, one of the two ways the draft knows; its
pre-shared-key suites are not offered. ``/entropy`` is not used: randomness is the gateway's own.

Nothing a provider wrote is quoted in an error: see :mod:`qproxy.sources.skip_wire`.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.keys import MAX_QKD_KEY_BYTES, QkdKey, wipe_keys
from qproxy.net.http_client import HttpResponse
from qproxy.sources.base import SourceStatus, check_request
from qproxy.sources.http import DEADLINE_MARGIN, Http, exchange, reason_of_status
from qproxy.sources.skip_wire import (
    DEFAULT_KEY_SIZE_BITS,
    MAX_SYSTEM_ID_CHARS,
    Capabilities,
    SkipKey,
    capabilities_url,
    decode_capabilities,
    decode_key,
    is_key_id,
    key_url,
    new_key_url,
)

#: Requests under way at once; the HTTP client keeps as many connections.
MAX_PARALLEL_REQUESTS = 4
#: Smallest key that is of use, in bits.
_MIN_KEY_SIZE_BITS = 8


class _Batch:
    """Requests made side by side, and what came of them.

    Attributes:
        waiting: requests that nobody has made yet: place, key ID asked for or None, URL.
        found: the key of each request, in their order.
        failures: what failed, first things first.
    """

    def __init__(self, requests: Sequence[tuple[str | None, str]]) -> None:
        self.waiting = iter(enumerate(requests))
        self.found: list[QkdKey | None] = [None] * len(requests)
        self.failures: list[KeySourceError] = []

    @property
    def keys(self) -> list[QkdKey]:
        """The keys that came, in the order asked."""
        return [key for key in self.found if key is not None]


class SkipSource:
    """A :class:`~qproxy.sources.base.KeySource` over one key provider, for one far provider.

    Args:
        name: the source's key in ``key_sources``.
        http: connects to the provider; this object closes it.
        base_url: ``https://host[:port][/prefix]``; ``/key`` and so on are added.
        local_system_id: what our provider must call itself: the far gateway asks its own provider
            for keys shared with that one.
        remote_system_id: what the provider at the other site calls itself.

    Raises:
        ConfigError: a system ID cannot be one.
    """

    def __init__(
        self, name: str, http: Http, base_url: str, local_system_id: str, remote_system_id: str
    ) -> None:
        for system_id in (local_system_id, remote_system_id):
            if not 1 <= len(system_id) <= MAX_SYSTEM_ID_CHARS or not system_id.isprintable():
                raise ConfigError(
                    f"the system ID {system_id!r} cannot be used",
                    hint=f"expected 1 to {MAX_SYSTEM_ID_CHARS} printable characters",
                )
        self.name = name
        self.local_system_id = local_system_id
        self.remote_system_id = remote_system_id
        self._http = http
        self._base_url = base_url.rstrip("/")

    async def status(self) -> SourceStatus:
        """``GET /capabilities``, and whether this provider is the one that is configured.

        Raises:
            KeySourceError: also ``kme_bad_request`` where it gives no keys, calls itself otherwise
                or does not share keys with the far provider.
        """
        response = await self._get("capabilities", capabilities_url(self._base_url), _FAILED)
        capabilities = decode_capabilities(response.body)
        self._check(capabilities)
        return SourceStatus(
            stored_key_count=None,
            max_key_count=None,
            key_size_bits=DEFAULT_KEY_SIZE_BITS,
            max_key_per_request=MAX_PARALLEL_REQUESTS,
            min_key_size_bits=_MIN_KEY_SIZE_BITS,
            max_key_size_bits=8 * MAX_QKD_KEY_BYTES,
            source_kme_id=capabilities.local_system_id,
            target_kme_id=self.remote_system_id,
            algorithm=capabilities.algorithm or None,
        )

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """``GET /key?remoteSystemID=…&size=…``, once for each key. Source: §4.2."""
        check_request(number, size_bits)
        url = new_key_url(self._base_url, self.remote_system_id, size_bits)
        batch = _Batch([(None, url)] * number)
        try:
            await self._fetch(batch, size_bits, in_time_only=True)
            if not batch.keys:
                raise batch.failures[0]
            _check_distinct(batch.keys)
        except BaseException:  # cancellation too: nobody else has these keys
            wipe_keys(batch.keys)
            raise
        return batch.keys

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """``GET /key/{keyId}?remoteSystemID=…``, once for each key. Source: §4.2."""
        check_request(len(key_ids), size_bits)
        # The IDs are a peer's: what no provider can have issued is not asked for.
        folded = {key_id.casefold() for key_id in key_ids}
        if len(folded) != len(key_ids) or not all(map(is_key_id, key_ids)):
            raise KeySourceError(
                Reason.KEY_NOT_FOUND,
                "expected distinct key IDs of hexadecimal digits",
                retryable=False,
            )
        batch = _Batch(
            [(key_id, key_url(self._base_url, key_id, self.remote_system_id)) for key_id in key_ids]
        )
        try:
            await self._fetch(batch, size_bits, in_time_only=False)
            if batch.failures:
                raise batch.failures[0]
            _check_distinct(batch.keys)
        except BaseException:
            wipe_keys(batch.keys)
            raise
        return batch.keys

    async def aclose(self) -> None:
        """Close the connections to the provider."""
        await self._http.aclose()

    # Inside.

    async def _fetch(self, batch: _Batch, size_bits: int, *, in_time_only: bool) -> None:
        """Ask until everything is there or something failed.

        Args:
            batch: what to ask for, and what came.
            size_bits: size every key must have.
            in_time_only: stop before the caller's deadline would cut requests off, keys and all.
        """
        longest_s = 0.0

        async def work() -> None:
            nonlocal longest_s
            for place, (key_id, url) in batch.waiting:
                began = trio.current_time()
                try:
                    batch.found[place] = await self._fetch_one(key_id, url, size_bits)
                except KeySourceError as error:
                    batch.failures.append(error)
                now = trio.current_time()
                longest_s = max(longest_s, now - began)
                late = now + DEADLINE_MARGIN * longest_s >= trio.current_effective_deadline()
                if batch.failures or (in_time_only and late):
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(min(MAX_PARALLEL_REQUESTS, len(batch.found))):
                nursery.start_soon(work)

    async def _fetch_one(self, key_id: str | None, url: str, size_bits: int) -> QkdKey:
        """One exchange. ``key_id`` is the key asked for, or None for a fresh one."""
        meaning = _FAILED if key_id is None else _FAILED_BY_ID
        response = await self._get("key", url, meaning)
        key = decode_key(response.body)
        problem = _problem(key, key_id, size_bits)
        if problem is not None:
            key.wipe()
            raise problem
        # Under the ID as it was asked for: the same digits may be written in capitals.
        return QkdKey(key_id or key.key_id, key.key, self.name)

    async def _get(
        self, what: str, url: str, meaning: dict[int, tuple[Reason, bool]]
    ) -> HttpResponse:
        """One exchange that ended with 200. Raises KeySourceError where anything else came."""
        # A request for a key takes it from the provider's store.
        repeatable = what == "capabilities"
        response = await exchange(
            self._http, "GET", url, what=what, whom="key provider", repeatable=repeatable
        )
        if response.status == 200:
            return response
        reason, retryable = meaning.get(response.status) or reason_of_status(response.status)
        raise KeySourceError(
            reason,
            f"{what}: the key provider answered {response.status}",
            status=response.status,
            retryable=retryable,
        )

    def _check(self, capabilities: Capabilities) -> None:
        problem = None
        if not capabilities.gives_keys:
            problem = "it says that it gives no keys"
        elif capabilities.local_system_id != self.local_system_id:
            problem = "its localSystemID is not the configured local_sae_id"
        elif not capabilities.serves(self.remote_system_id):
            problem = "its remoteSystemID list has no place for the configured peer_sae_id"
        if problem is not None:
            raise KeySourceError(
                Reason.KME_BAD_REQUEST, f"capabilities: {problem}", retryable=False
            )


# --- what failures mean -------------------------------------------------------------------

#: Status codes of §4, tables 3, 7 and 9, and whether the same call may succeed later.
_FAILED: dict[int, tuple[Reason, bool]] = {
    400: (Reason.KME_BAD_REQUEST, False),
    404: (Reason.KME_BAD_REQUEST, False),
    405: (Reason.KME_BAD_REQUEST, False),
    500: (Reason.KME_UNAVAILABLE, True),
    503: (Reason.KME_UNAVAILABLE, True),
}
#: 400 is also "the key was not found", for which providers answer 404 and 410 as well.
_FAILED_BY_ID = _FAILED | dict.fromkeys((400, 404, 410), (Reason.KEY_NOT_FOUND, False))


def _problem(key: SkipKey, key_id: str | None, size_bits: int) -> KeySourceError | None:
    """What is wrong with a key that came, or None."""
    if key_id is not None and key.key_id.casefold() != key_id.casefold():
        return _invalid("key: it has another keyId than the one asked for")
    if 8 * len(key.key) != size_bits:
        return KeySourceError(
            Reason.KEY_INVALID, f"key: it has another length than the {size_bits} bits expected"
        )
    if not any(key.key):
        return KeySourceError(Reason.KEY_INVALID, "key: it is all zero")
    return None


def _check_distinct(keys: Sequence[QkdKey]) -> None:
    if len({key.key_id.casefold() for key in keys}) != len(keys):
        raise _invalid("key: one keyId came twice")
    if len({bytes(key.key) for key in keys}) != len(keys):
        raise KeySourceError(Reason.KEY_INVALID, "key: one key came under two IDs")


def _invalid(message: str) -> KeySourceError:
    return KeySourceError(Reason.KME_INVALID_RESPONSE, message)
