"""The table for people and the document for machines, both made of the same record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qproxy import __version__
from qproxy.demo.record import PartRecord, Record, rate
from qproxy.demo.settings import MB
from qproxy.modes import Mode

#: Raised when a field changes its meaning or goes; a new field does not raise it.
DOCUMENT_VERSION: Final = 1

#: Every field of the document, with its unit. `null` stands for what the run did not come to.
#: `[]` marks a list.
FIELDS: Final[dict[str, str]] = {
    "document": "version of this document's layout",
    "result": "PASS or FAIL",
    "problems[]": "what was not as it should be; empty for PASS",
    "qproxy": "version",
    "duration_s": "the whole run, in seconds",
    "keys_are_simulated": "always true: a random number generator, no photon involved",
    "tls_group": "key exchange of the tunnel's TLS handshake",
    "kem": "ML-KEM parameter set",
    "kem_provider": "library that computes ML-KEM",
    "aead": "protection of the records",
    "mode_history[].at_s": "seconds since the start, as gw-a logged it",
    "mode_history[].mode": "hybrid or classical-only",
    "mode_history[].reason": "why",
    "mode_history[].epoch": "number of the first epoch in that mode",
    "epochs.hybrid": "committed epochs",
    "epochs.classical_only": "committed epochs",
    "simulated_keys_used": "SIMULATED keys that went into epochs",
    "fall_back_s": "seconds from the cut to classical-only epochs on both gateways",
    "climb_back_s": "seconds from the restored link to hybrid epochs on both gateways",
    "parts[].name": "part of the load",
    "parts[].mode": "mode it ran in",
    "parts[].epochs": "epochs committed while it ran",
    "parts[].busy_epochs": "of them, committed during bulk transfers and short connections",
    "parts[].up_bytes": "bulk data towards the service, verified by SHA-256",
    "parts[].up_mb_per_s": "10^6 bytes per second",
    "parts[].down_bytes": "bulk data from the service, compared byte for byte",
    "parts[].down_mb_per_s": "10^6 bytes per second",
    "parts[].connections": "short connections, request and response verified",
    "parts[].connections_per_s": "per second",
    "up_mb": "bulk data, in units of 10^6 bytes",
    "up_mb_per_s": "10^6 bytes per second over all parts",
    "down_mb": "bulk data, in units of 10^6 bytes",
    "down_mb_per_s": "10^6 bytes per second over all parts",
    "short_connections": "short connections",
    "short_connections_per_s": "per second over all parts",
    "connections_opened": "all connections: bulk, short and long-lived",
    "connections_failed": "of them, refused, reset, cut short, silent or wrong",
    "bytes_verified": "bytes, both ways, all connections",
    "bytes_lost": "bytes that should have been verified and were not",
    "long_stream.frames_sent": "numbered frames",
    "long_stream.frames_verified": "of them, came back in order and whole",
    "long_stream.frame_bytes": "bytes of each",
    "long_stream.longest_gap_s": "longest time between two frames that came back, in seconds",
    "long_stream.longest_gap_at_s": "when it ended, in seconds since the start",
    "gateways[].name": "gateway",
    "gateways[].exit_code": "after SIGTERM",
    "gateways[].epochs": "committed epochs",
    "gateways[].complaints": "lines in its log that should not be there",
}


def document(record: Record, problems: Sequence[str]) -> dict[str, object]:
    """The run as JSON types, with the fields of FIELDS.

    Args:
        record: the run.
        problems: from the verdict; empty for PASS.
    """
    near, heartbeat = record.near.facts, record.heartbeat
    return {
        "document": DOCUMENT_VERSION,
        "result": result(problems),
        "problems": list(problems),
        "qproxy": __version__,
        "duration_s": _round(record.duration_s),
        "keys_are_simulated": True,
        "tls_group": near.tls_group,
        "kem": near.kem,
        "kem_provider": near.kem_provider,
        "aead": near.aead,
        "mode_history": [
            {
                "at_s": _round(change.at_s),
                "mode": change.mode,
                "reason": change.reason,
                "epoch": change.epoch,
            }
            for change in near.mode_changes
        ],
        "epochs": {
            "hybrid": near.epochs[Mode.HYBRID],
            "classical_only": near.epochs[Mode.CLASSICAL_ONLY],
        },
        "simulated_keys_used": near.keys,
        "fall_back_s": _round(record.fall_back_s),
        "climb_back_s": _round(record.climb_back_s),
        "parts": [_part(part) for part in record.parts],
        **_totals(record),
        "long_stream": {
            "frames_sent": heartbeat.frames_sent,
            "frames_verified": heartbeat.frames_verified,
            "frame_bytes": heartbeat.frame_bytes,
            "longest_gap_s": _round(heartbeat.longest_gap_s),
            "longest_gap_at_s": _round(heartbeat.longest_gap_at_s),
        },
        "gateways": [
            {
                "name": gateway.facts.name,
                "exit_code": gateway.exit_code,
                "epochs": gateway.facts.epoch_count,
                "complaints": len(gateway.facts.complaints),
            }
            for gateway in record.gateways
        ],
    }


def table(record: Record, problems: Sequence[str]) -> list[str]:
    """The run as lines for people.

    Args:
        record: the run.
        problems: from the verdict; empty for PASS.
    """
    near, heartbeat, traffic = record.near.facts, record.heartbeat, record.traffic
    rows = [
        ("keys", "SIMULATED: from a random number generator, no photon involved"),
        ("modes", " -> ".join(change.mode for change in near.mode_changes) or "none"),
        (
            "epochs",
            f"{near.epochs[Mode.HYBRID]} hybrid, {near.epochs[Mode.CLASSICAL_ONLY]} classical-only",
        ),
        (
            "rekeys under load",
            f"{sum(part.epochs for part in record.parts)}, of them"
            f" {sum(part.busy_epochs for part in record.parts)} during bulk and short connections",
        ),
        ("SIMULATED keys used", str(near.keys)),
        ("fall back", _seconds(record.fall_back_s)),
        ("climb back", _seconds(record.climb_back_s)),
        ("tunnel", f"TLS 1.3 {near.tls_group}, then {near.kem} ({near.kem_provider}), {near.aead}"),
        ("up", _up(record.parts)),
        ("down", _down(record.parts)),
        ("short connections", _short(record.parts)),
        (
            "long-lived stream",
            f"{heartbeat.frames_verified} of {heartbeat.frames_sent} frames,"
            f" longest gap {heartbeat.longest_gap_s * 1000:.0f} ms",
        ),
        ("bytes verified", f"{traffic.verified_bytes:,}".replace(",", " ")),
        ("bytes lost", str(traffic.lost_bytes)),
        ("connections failed", f"{traffic.failed} of {traffic.opened}"),
        ("duration", _seconds(record.duration_s)),
        ("result", result(problems)),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}   {value}" for name, value in rows]


def result(problems: Sequence[str]) -> str:
    """PASS where there is no problem."""
    return "FAIL" if problems else "PASS"


def part_summary(part: PartRecord) -> str:
    """One part of the load in one line."""
    up, down = _up([part]), _down([part])
    return f"{up} up, {down} down, {_short([part])} connections, {part.epochs} rekeys"


def _part(part: PartRecord) -> dict[str, object]:
    return {
        "name": part.name,
        "mode": part.mode,
        "epochs": part.epochs,
        "busy_epochs": part.busy_epochs,
        "up_bytes": part.up_bytes,
        "up_mb_per_s": _round(rate(part.up_bytes / MB, part.up_s)),
        "down_bytes": part.down_bytes,
        "down_mb_per_s": _round(rate(part.down_bytes / MB, part.down_s)),
        "connections": part.connections,
        "connections_per_s": _round(rate(part.connections, part.connections_s)),
    }


def _totals(record: Record) -> dict[str, object]:
    parts, traffic = record.parts, record.traffic
    up_mb = sum(part.up_bytes for part in parts) / MB
    down_mb = sum(part.down_bytes for part in parts) / MB
    connections = sum(part.connections for part in parts)
    return {
        "up_mb": _round(up_mb),
        "up_mb_per_s": _round(rate(up_mb, sum(part.up_s for part in parts))),
        "down_mb": _round(down_mb),
        "down_mb_per_s": _round(rate(down_mb, sum(part.down_s for part in parts))),
        "short_connections": connections,
        "short_connections_per_s": _round(
            rate(connections, sum(part.connections_s for part in parts))
        ),
        "connections_opened": traffic.opened,
        "connections_failed": traffic.failed,
        "bytes_verified": traffic.verified_bytes,
        "bytes_lost": traffic.lost_bytes,
    }


def _up(parts: Sequence[PartRecord]) -> str:
    return _moved(sum(part.up_bytes for part in parts), sum(part.up_s for part in parts))


def _down(parts: Sequence[PartRecord]) -> str:
    return _moved(sum(part.down_bytes for part in parts), sum(part.down_s for part in parts))


def _moved(count: int, duration_s: float) -> str:
    speed = rate(count / MB, duration_s)
    moved = f"{count / MB:.0f} MB"
    return moved if speed is None else f"{moved} ({speed:.0f} MB/s)"


def _short(parts: Sequence[PartRecord]) -> str:
    count = sum(part.connections for part in parts)
    speed = rate(count, sum(part.connections_s for part in parts))
    return str(count) if speed is None else f"{count} ({speed:.0f}/s)"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
