"""What was not as it should be. Nothing else decides between PASS and FAIL."""

from __future__ import annotations

from qproxy.demo.facts import GatewayFacts
from qproxy.demo.record import GatewayRecord, HeartbeatRecord, PartRecord, Record, Traffic
from qproxy.demo.settings import (
    CLIMB_BACK_TIMEOUT_S,
    FALL_BACK_TIMEOUT_S,
    MAX_GAP_S,
    MIN_EPOCHS_PER_PART,
    DemoOptions,
    split_load,
)
from qproxy.modes import Mode

#: What every run goes through.
EXPECTED_MODES = [Mode.HYBRID, Mode.CLASSICAL_ONLY, Mode.HYBRID]
#: The only key exchange of the tunnel's TLS handshake that the demonstration accepts.
EXPECTED_GROUP = "X25519MLKEM768"


def find_problems(record: Record, options: DemoOptions) -> list[str]:
    """Everything that was not as it should be, for people; empty for PASS.

    Args:
        record: the run.
        options: what it was to do.
    """
    if record.aborted is not None:
        # What was not reached is no problem of its own, and connections broke for want of children.
        return [record.aborted, *(text for each in record.gateways for text in _complaints(each))]
    problems = _traffic(record.traffic) + _heartbeat(record.heartbeat)
    problems += _parts(record.parts, options)
    problems += _mode_times(record)
    for gateway in record.gateways:
        problems += _complaints(gateway) + _stray(gateway) + _gateway(gateway)
    problems += _accounts(record) + record.service_complaints
    return problems


def _traffic(traffic: Traffic) -> list[str]:
    problems = []
    if traffic.failed:
        problems.append(f"{traffic.failed} of {traffic.opened} connections failed")
        problems += traffic.faults
    if traffic.lost_bytes:
        problems.append(f"{traffic.lost_bytes} bytes were lost or wrong")
    if not traffic.verified_bytes:
        problems.append("nothing was moved")
    return problems


def _heartbeat(heartbeat: HeartbeatRecord) -> list[str]:
    problems = []
    if heartbeat.ended_at_s is None:
        problems.append("the long-lived stream had no clean end")
    if not heartbeat.frames_sent or heartbeat.frames_verified != heartbeat.frames_sent:
        problems.append(
            f"the long-lived stream: {heartbeat.frames_verified} of {heartbeat.frames_sent}"
            " frames came back"
        )
    if heartbeat.longest_gap_s > MAX_GAP_S:
        problems.append(
            f"the long-lived stream was silent for {heartbeat.longest_gap_s:.1f} s,"
            f" more than {MAX_GAP_S:g} s"
        )
    return problems


def _parts(parts: list[PartRecord], options: DemoOptions) -> list[str]:
    problems = []
    wanted = split_load(options)
    if len(parts) != len(wanted):
        problems.append(f"{len(parts)} of {len(wanted)} parts of the load were run")
    for part, want in zip(parts, wanted, strict=False):
        moved = (part.up_bytes, part.down_bytes, part.connections)
        if moved != (want.up_bytes, want.down_bytes, want.connections):
            problems.append(f"part {part.name!r}: not all of the load was run")
        if part.epochs < MIN_EPOCHS_PER_PART:
            problems.append(f"part {part.name!r}: {part.epochs} epochs were committed under load")
        if any(mode != part.mode for mode in part.modes_seen):
            problems.append(f"part {part.name!r}: an epoch was not {part.mode}")
    return problems


def _mode_times(record: Record) -> list[str]:
    problems = []
    for what, took_s, limit_s in (
        ("fall back to classical-only", record.fall_back_s, FALL_BACK_TIMEOUT_S),
        ("climb back to hybrid", record.climb_back_s, CLIMB_BACK_TIMEOUT_S),
    ):
        if took_s is None:
            problems.append(f"there was no {what}")
        elif took_s > limit_s:
            problems.append(f"the {what} took {took_s:.1f} s, more than {limit_s:g} s")
    return problems


def _complaints(gateway: GatewayRecord) -> list[str]:
    return [f"log of {gateway.facts.name}: {text}" for text in gateway.facts.complaints]


def _stray(gateway: GatewayRecord) -> list[str]:
    return [f"log of {gateway.facts.name}: no event: {line}" for line in gateway.facts.stray]


def _gateway(gateway: GatewayRecord) -> list[str]:
    facts, name = gateway.facts, gateway.facts.name
    problems = []
    if gateway.killed:
        problems.append(f"{name} did not end in time after SIGTERM and was killed")
    elif gateway.exit_code != 0:
        problems.append(f"{name} ended with exit code {gateway.exit_code}, expected 0")
    if not facts.stopped:
        problems.append(f"{name} did not log its end")
    modes = [change.mode for change in facts.mode_changes]
    if modes != EXPECTED_MODES:
        problems.append(f"{name} went through the modes {' -> '.join(modes) or 'none'}")
    if facts.tls_group != EXPECTED_GROUP:
        problems.append(f"{name}: the TLS group was {facts.tls_group}, expected {EXPECTED_GROUP}")
    if facts.tunnels_up != 1:
        problems.append(f"{name} had {facts.tunnels_up} tunnels one after the other, expected 1")
    if facts.simulated is not True:
        problems.append(f"{name} did not log that its keys are simulated")
    return problems + _own_totals(facts)


def _own_totals(facts: GatewayFacts) -> list[str]:
    """What a gateway adds up must be what it logged epoch by epoch."""
    if facts.totals is None:
        return [f"{facts.name} did not log its totals"]
    counted = {
        "tunnels": facts.tunnels_up,
        "hybrid_epochs": facts.epochs[Mode.HYBRID],
        "classical_epochs": facts.epochs[Mode.CLASSICAL_ONLY],
        "keys": facts.keys,
    }
    return [
        f"{facts.name}: its totals say {key} {facts.totals.get(key)}, its log {count}"
        for key, count in counted.items()
        if facts.totals.get(key) != count
    ]


def _accounts(record: Record) -> list[str]:
    """Both gateways and the clients must have counted the same."""
    near, far, traffic = record.near.facts.totals, record.far.facts.totals, record.traffic
    if near is None or far is None:
        return []
    rows = [
        ("bytes towards the service", near.get("bytes_sent"), far.get("bytes_received")),
        ("bytes from the service", near.get("bytes_received"), far.get("bytes_sent")),
        ("bytes towards the service", near.get("bytes_sent"), traffic.sent_bytes),
        ("bytes from the service", near.get("bytes_received"), traffic.received_bytes),
        ("connections", near.get("streams"), traffic.opened),
        *((key, near.get(key), far.get(key)) for key in _SHARED_TOTALS),
    ]
    problems = [
        f"{what}: {one} and {other}, expected the same" for what, one, other in rows if one != other
    ]
    redeemed, used = far.get("keys_redeemed", 0), far.get("keys", 0)
    if redeemed < used:
        problems.append(f"gw-b redeemed {redeemed} keys and used {used}")
    return problems


_SHARED_TOTALS = ("streams", "hybrid_epochs", "classical_epochs", "keys")
