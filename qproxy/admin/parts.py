"""Parts of a snapshot that are made alike of a running gateway and of several snapshots. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qproxy.admin.status import (
    KEY_USES,
    MODES,
    KeysUsed,
    KeyUse,
    ModeReasonCount,
    StateReasonCount,
    TunnelStatus,
)
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.modes import Mode, Policy, stricter
from qproxy.quantum.health import LinkState


def weakest_mode(tunnels: Iterable[TunnelStatus]) -> Mode | None:
    """Of all tunnels; None without one."""
    modes = (tunnel.mode for tunnel in tunnels if tunnel.mode is not None)
    return min(modes, key=MODES.index, default=None)


def weakest_key_use(tunnels: Iterable[TunnelStatus]) -> KeyUse | None:
    """Of all tunnels; None without one."""
    return min((tunnel.source_key for tunnel in tunnels), key=KEY_USES.index, default=None)


def oldest_key_age_s(tunnels: Sequence[TunnelStatus]) -> float | None:
    """Of all tunnels' last keys; None without a tunnel, or where one of them never had any."""
    ages = [tunnel.source_key_age_s for tunnel in tunnels if tunnel.source_key_age_s is not None]
    return max(ages) if ages and len(ages) == len(tunnels) else None


def strictest(told: Iterable[Policy | None]) -> Policy | None:
    """The strictest of the policies that were told; None where none was."""
    found: Policy | None = None
    for policy in told:
        if policy is not None:
            found = policy if found is None else stricter(found, policy)
    return found


def mode_counts(counts: Mapping[tuple[Mode, Reason], int]) -> tuple[ModeReasonCount, ...]:
    """In the order of modes and reasons."""
    return tuple(
        ModeReasonCount(mode=mode, reason=reason, count=count)
        for (mode, reason), count in sorted(counts.items())
    )


def state_counts(counts: Mapping[tuple[LinkState, Reason], int]) -> tuple[StateReasonCount, ...]:
    """In the order of states and reasons."""
    return tuple(
        StateReasonCount(state=state, reason=reason, count=count)
        for (state, reason), count in sorted(counts.items())
    )


def keys_used(counts: Mapping[tuple[str, str, KeyNature], int]) -> tuple[KeysUsed, ...]:
    """By source, kind and what keys may be called, in that order."""
    return tuple(
        KeysUsed(source=source, kind=kind, keys_are=keys_are, count=count)
        for (source, kind, keys_are), count in sorted(counts.items())
    )
