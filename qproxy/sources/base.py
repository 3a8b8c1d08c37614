"""What every key source promises to the rest of qproxy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from qproxy.errors import KeySourceError, Reason
from qproxy.keys import MAX_QKD_KEY_BYTES, QkdKey

#: Most keys asked for, or taken, in one call to any source.
MAX_KEYS_PER_CALL = 1024


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What a source says of itself and of the quantum link behind it.

    Every field is the source's own claim; nothing here is proof.

    Attributes:
        stored_key_count: keys of the default size ready now, or None where it does not say.
        max_key_count: keys of the default size it can store, or None where it does not say.
        key_size_bits: size of a key when none is asked for.
        max_key_per_request: most keys in one call.
        min_key_size_bits: smallest size that may be asked for.
        max_key_size_bits: largest size that may be asked for.
        source_kme_id: the KME that answered.
        target_kme_id: the KME at the other end of the link.
        simulated: True where the source says that no photon was involved. False is the absence
            of that word, not a promise.
        qber: quantum bit error rate, 0 to 1, where the source reports one.
        key_rate_bps: secret key rate in bits per second, where the source reports one.
        kme: configured name of the KME that gave this status; empty where the source has no names
            for what is behind it.
        failing_kmes: configured names of the KMEs that are left out just now, because they failed.
        kme_switches: how often another KME than the one before came to give the keys.
        kme_failures: calls that failed at each KME, by its configured name; also those that
            another KME answered then.
        algorithm: how the source says that it comes by its keys, where it says so; free text.
    """

    stored_key_count: int | None
    max_key_count: int | None
    key_size_bits: int
    max_key_per_request: int
    min_key_size_bits: int
    max_key_size_bits: int
    source_kme_id: str
    target_kme_id: str
    simulated: bool = False
    qber: float | None = None
    key_rate_bps: float | None = None
    kme: str = ""
    failing_kmes: tuple[str, ...] = ()
    kme_switches: int = 0
    kme_failures: Mapping[str, int] = field(default_factory=dict)
    algorithm: str | None = None


class KeySource(Protocol):
    """Fetches keys that the same source at the other site also has.

    Every failure is a :class:`~qproxy.errors.KeySourceError` with one of the "quantum side"
    reasons; nothing else but cancellation ever comes out. Keys returned belong to the caller,
    who wipes them. Keys in hand when a call fails are wiped before the error is raised: they
    are gone from the source, and no other call returns them. A call that is cancelled may lose
    the keys that were on their way.
    """

    @property
    def name(self) -> str:
        """The source's key in ``key_sources``, for logs and metrics."""
        ...

    async def status(self) -> SourceStatus:
        """What the source says of itself. Takes no key."""
        ...

    async def get_keys(self, number: int, size_bits: int) -> list[QkdKey]:
        """Take fresh keys: the master SAE's side (``enc_keys``).

        Args:
            number: how many, 1 to MAX_KEYS_PER_CALL.
            size_bits: size of each, a multiple of 8.

        Returns:
            At least one key and at most ``number``, each of exactly ``size_bits``, with distinct
            IDs. Fewer than ``number`` come where the source gives few in one request and then
            fails, runs dry, or would not be through before the caller's deadline: keys that are
            there are better used than wiped. The caller asks again for the rest.
        """
        ...

    async def get_keys_by_id(self, key_ids: Sequence[str], size_bits: int) -> list[QkdKey]:
        """Take the keys the other site took by :meth:`get_keys`: the slave SAE's side.

        Args:
            key_ids: what the other site named, 1 to MAX_KEYS_PER_CALL distinct IDs. They come
                from a peer and may be anything.
            size_bits: size every key must have, a multiple of 8.

        Returns:
            One key per ID, in the order asked.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections. Idempotent."""
        ...


@runtime_checkable
class SpareKmes(Protocol):
    """A source that can get its keys from another KME, if it is told that those of one are no good.

    Each KME has a partner at the other site; whether that one has the keys shows only there.
    """

    def keys_failed(self, key_ids: Sequence[str], reason: Reason) -> Collection[str]:
        """The other site could not use these keys; some of them may be of other sources.

        Returns:
            Where the next keys will come from another KME for that: the IDs of keys that came from
            the same one as these.
        """
        ...

    def keys_confirmed(self, key_ids: Sequence[str]) -> None:
        """Both sites had these keys, some of which may be of other sources."""
        ...


def check_request(number: int, size_bits: int) -> None:
    """Refuse to ask for what no source gives.

    Raises:
        KeySourceError: ``kme_bad_request``.
    """
    size_ok = size_bits % 8 == 0 and 8 <= size_bits <= 8 * MAX_QKD_KEY_BYTES
    if not size_ok or not 1 <= number <= MAX_KEYS_PER_CALL:
        raise KeySourceError(
            Reason.KME_BAD_REQUEST,
            f"expected 1 to {MAX_KEYS_PER_CALL} keys of 8 to {8 * MAX_QKD_KEY_BYTES} bits,"
            f" a multiple of 8; got {number} of {size_bits}",
            retryable=False,
        )
