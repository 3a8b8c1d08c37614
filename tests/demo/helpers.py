"""A record of a run that went as it should, for tests to spoil."""

from qproxy.demo.facts import GatewayFacts, ModeChange
from qproxy.demo.record import GatewayRecord, HeartbeatRecord, PartRecord, Record, Traffic
from qproxy.demo.settings import MB, DemoOptions
from qproxy.modes import Mode

OPTIONS = DemoOptions(megabytes=16, connections=100)
MODES = [Mode.HYBRID, Mode.CLASSICAL_ONLY, Mode.HYBRID]


def good_gateway(name):
    near = name == "gw-a"
    sent, received = (9000, 8000) if near else (8000, 9000)
    facts = GatewayFacts(
        name,
        started=True,
        kem_provider="OpenSSL",
        kem="ml-kem-1024",
        aead="aes-256-gcm",
        tls_group="X25519MLKEM768",
        tunnels_up=1,
        epochs={Mode.HYBRID: 6, Mode.CLASSICAL_ONLY: 4},
        keys=6,
        simulated=True,
        mode_changes=[
            ModeChange(1.0 + number, mode, "reason", 3 * number + 1)
            for number, mode in enumerate(MODES)
        ],
        link="healthy",
        totals={
            "tunnels": 1,
            "hybrid_epochs": 6,
            "classical_epochs": 4,
            "keys": 6,
            "keys_redeemed": 0 if near else 7,
            "streams": 109,
            "bytes_sent": sent,
            "bytes_received": received,
        },
        stopped=True,
    )
    return GatewayRecord(facts, exit_code=0)


def good_part(name, mode, quarters):
    return PartRecord(
        name,
        mode,
        modes_seen=[mode],
        epochs=2,
        busy_epochs=1,
        up_bytes=2 * quarters * MB,
        up_s=0.5,
        down_bytes=2 * quarters * MB,
        down_s=0.25,
        connections=25 * quarters,
        connections_s=0.5,
    )


def good_record():
    """What a run with OPTIONS measures when all is well."""
    return Record(
        near=good_gateway("gw-a"),
        far=good_gateway("gw-b"),
        traffic=Traffic(
            sent_bytes=9000,
            received_bytes=8000,
            expected_bytes=16_000_000,
            verified_bytes=16_000_000,
            opened=109,
        ),
        heartbeat=HeartbeatRecord(
            1024,
            frames_sent=1000,
            frames_verified=1000,
            began_at_s=1.0,
            ended_at_s=9.0,
            longest_gap_s=0.021,
            longest_gap_at_s=3.0,
        ),
        parts=[
            good_part("hybrid", Mode.HYBRID, 2),
            good_part("classical-only", Mode.CLASSICAL_ONLY, 1),
            good_part("hybrid again", Mode.HYBRID, 1),
        ],
        cut_at_s=2.0,
        fall_back_s=1.0,
        restored_at_s=4.0,
        climb_back_s=3.0,
        duration_s=10.0,
    )
