"""The gateway's audit log, and what reaches it when things end in disorder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from qproxy.audit.facts import EpochEndedFacts, TunnelClosedFacts
from qproxy.audit.tail import AuditError
from qproxy.audit.trail import Traffic
from qproxy.audit.verify import verify
from qproxy.config.model import AuditConfig, OnAuditFailure
from qproxy.errors import ConfigError, Reason
from qproxy.log import get_logger
from qproxy.modes import Mode, Policy
from qproxy.runtime.audit import GatewayAudit, PeerAudit
from qproxy.tunnel.events import (
    EpochConfirmed,
    HandshakeCompleted,
    PolicyAgreed,
    Reauthenticated,
    TunnelClosed,
)
from qproxy.tunnel.settings import Role
from tests.audit.helpers import CONNECTION_ID, Disk, committed
from tests.runtime.pair import gateway_pair

GROUP, OTHER_GROUP = "X25519MLKEM768", "SecP384r1MLKEM1024"
LOG = get_logger("qproxy.test")


def audit(path: Path, failure: OnAuditFailure = OnAuditFailure.STOP, **options: Any) -> Any:
    disk = options.pop("disk", None)
    config = AuditConfig(file=path, failure=failure, **options)
    return GatewayAudit(config, "gw-a", LOG, **({} if disk is None else {"open_file": disk}))


def records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().splitlines(keepends=True)
    assert verify([("log", lines)]).whole
    return [json.loads(line)["record"] for line in lines]


class AnyTunnel:
    """As much of a tunnel as the trail looks at."""

    def __init__(self) -> None:
        self.connection = SimpleNamespace(
            role=Role.CLIENT,
            connection_id=CONNECTION_ID,
            session=SimpleNamespace(traffic=Traffic(bytes_sent=30)),
        )


def begun(peer: PeerAudit) -> Any:
    found: Any = AnyTunnel()
    peer.on_event(found, HandshakeCompleted("gw-b", GROUP, "cipher", bytes(48)))
    peer.on_event(found, PolicyAgreed(Policy.PREFER, Policy.REQUIRE, Policy.REQUIRE))
    peer.on_event(found, committed(1, confirmed=False))
    peer.on_event(found, EpochConfirmed(1))
    return found


async def test_without_a_file_there_is_no_log(tmp_path: Path) -> None:
    none = GatewayAudit(AuditConfig(), "gw-a", LOG)
    await none.open("openssl")
    begun(PeerAudit(none, "gw-b"))
    await none.close(Reason.SHUTDOWN)
    assert none.writer is None
    assert none.failure() is None
    assert not list(tmp_path.iterdir())


async def test_a_run_is_recorded_from_its_start_to_its_end(tmp_path: Path) -> None:
    log = audit(tmp_path / "a")
    await log.open("openssl")
    peer = PeerAudit(log, "gw-b")
    one = begun(peer)
    peer.on_event(one, TunnelClosed(Reason.CLOSED, clean=True))
    peer.forget(one)
    await log.close(Reason.SHUTDOWN)
    found = records(tmp_path / "a")
    assert [record["kind"] for record in found] == [
        "log_header",
        "gateway_started",
        "epoch_committed",
        "mode_changed",
        "epoch_confirmed",
        "epoch_ended",
        "tunnel_closed",
        "gateway_stopped",
    ]
    assert (found[2]["key_sources"], found[2]["keys_are"]) == (["kme"], ["simulated"])
    assert (found[2]["policy_local"], found[2]["policy_peer"]) == ("prefer", "require")
    assert found[-1]["reason"] == "shutdown"


async def test_the_group_of_a_new_handshake_counts_from_the_epoch_that_mixes_it_in(
    tmp_path: Path,
) -> None:
    log = audit(tmp_path / "a")
    await log.open("openssl")
    peer = PeerAudit(log, "gw-b")
    one = begun(peer)
    peer.on_event(one, Reauthenticated(OTHER_GROUP, bytes(48)))
    for number, mixed_in in ((2, False), (3, True), (4, False)):
        peer.on_event(one, replace(committed(number), reauthenticated=mixed_in))
    await log.close(Reason.SHUTDOWN)
    groups = [r["tls_group"] for r in records(tmp_path / "a") if r["kind"] == "epoch_committed"]
    assert groups == [GROUP, GROUP, OTHER_GROUP, OTHER_GROUP]


async def test_a_tunnel_whose_end_nobody_told_is_closed_in_the_log(tmp_path: Path) -> None:
    log = audit(tmp_path / "a")
    await log.open("openssl")
    peer = PeerAudit(log, "gw-b")
    peer.forget(begun(peer))
    await log.close(Reason.SHUTDOWN)
    ended, closed = records(tmp_path / "a")[-3:-1]
    assert (ended["kind"], ended["bytes_sent"]) == (EpochEndedFacts.kind, 30)
    assert (closed["kind"], closed["reason"]) == (TunnelClosedFacts.kind, "internal_error")


async def test_who_never_proved_who_it_is_leaves_no_record(tmp_path: Path) -> None:
    log = audit(tmp_path / "a")
    await log.open("openssl")
    stranger: Any = AnyTunnel()
    peer = PeerAudit(log, "gw-b")
    peer.on_event(stranger, TunnelClosed(Reason.TLS_FAILURE, clean=False))
    await log.close(Reason.SHUTDOWN)
    assert "tunnel_closed" not in {record["kind"] for record in records(tmp_path / "a")}


async def test_under_stop_an_outage_ends_the_gateway(tmp_path: Path) -> None:
    disk = Disk()
    log = audit(tmp_path / "a", disk=disk)
    await log.open("openssl")
    disk.room = 0
    begun(PeerAudit(log, "gw-b"))
    with trio.fail_after(10):
        await log.stopped()
    error = log.failure()
    assert "disk_full" in str(error)
    assert "audit.failure" in error.hint
    disk.room = None
    await log.close(Reason.AUDIT_FAILURE)
    # What waited is written after all, where it can be.
    assert records(tmp_path / "a")[-1]["reason"] == "audit_failure"


async def test_under_continue_an_outage_is_told_and_counted(tmp_path: Path) -> None:
    disk = Disk()
    log = audit(tmp_path / "a", OnAuditFailure.CONTINUE, disk=disk)
    await log.open("openssl")
    disk.room = 0
    begun(PeerAudit(log, "gw-b"))
    with trio.fail_after(10):
        while not log.writer.failures:
            await trio.sleep(0.001)
    await log.close(Reason.SHUTDOWN)
    assert log.failure() is None
    assert log.writer.records_lost


async def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a"
    with pytest.raises(AuditError) as caught:
        await audit(path).open("openssl")
    assert str(path) in str(caught.value)
    assert caught.value.hint
    goes_on = audit(path, OnAuditFailure.CONTINUE)
    await goes_on.open("openssl")
    path.parent.mkdir()
    await goes_on.close(Reason.SHUTDOWN)
    assert records(path)[-1]["kind"] == "gateway_stopped"


async def test_a_key_that_is_gone_is_a_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        await audit(tmp_path / "a", hmac_key_file=tmp_path / "gone").open("openssl")


async def test_both_ends_hear_of_the_end_of_a_tunnel_that_is_cancelled() -> None:
    async with gateway_pair() as pair:
        await pair.until_mode(Mode.HYBRID)
        await pair.until(lambda: bool(pair.client.tunnels and pair.server.tunnels))
    for peer in (pair.client, pair.server):
        # Whichever is cancelled first ends the other's in order, if the other still reads.
        assert [event.reason for event in peer.of(TunnelClosed)] == [Reason.SHUTDOWN]
        assert not peer.tunnels


async def test_a_tunnel_that_comes_up_after_the_end_is_ended_at_once() -> None:
    async with gateway_pair() as pair:
        pair.server.end(Reason.AUDIT_FAILURE)
        await pair.until(lambda: bool(pair.client.of(TunnelClosed)))
        assert pair.client.of(TunnelClosed)[0].reason is Reason.AUDIT_FAILURE
        await pair.until(lambda: bool(pair.server.of(TunnelClosed)))
        assert not pair.server.tunnels
