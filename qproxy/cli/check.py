"""`qproxy check`: what a configuration does, in a few lines, and what is wrong with it."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Iterator

from qproxy.address import Address
from qproxy.cli.output import ExitCode, print_config_error, print_warning
from qproxy.cli.preflight import Findings, inspect_gateway, inspect_kme_sim
from qproxy.config.model import (
    AuditConfig,
    Etsi014SourceConfig,
    GatewayConfig,
    KeySourceConfig,
    KmeSimConfig,
    ListenerConfig,
    OnAuditFailure,
    PeerConfig,
    ServiceConfig,
    SkipSourceConfig,
)
from qproxy.config.reader import load_any_config
from qproxy.config.scalars import format_size
from qproxy.log import escape
from qproxy.modes import Policy
from qproxy.supervisor.cpus import worker_count
from qproxy.supervisor.share import audit_file


def check_command(options: argparse.Namespace) -> ExitCode:
    """Read, load, summarise."""
    config = load_any_config(options.config)
    now = dt.datetime.now(dt.UTC)
    if isinstance(config, GatewayConfig):
        findings = inspect_gateway(config, now)
        lines = _gateway_lines(config, findings)
    else:
        findings = inspect_kme_sim(config, now)
        lines = _kme_sim_lines(config, findings)
    for line in lines:
        print(escape(line, 2000, backslashes=False))
    for message, hint in findings.warnings:
        print_warning(message, hint)
    for error in findings.errors:
        print_config_error(error)
    if findings.errors:
        return ExitCode.CONFIG
    print(f"ok, {_count(len(findings.warnings), 'warning')}")
    return ExitCode.DONE


def _gateway_lines(config: GatewayConfig, findings: Findings) -> Iterator[str]:
    yield f"gateway {config.node.name}"
    yield f"  identity: {findings.facts.get('identity.certificate', 'cannot be used')}"
    yield f"  ML-KEM by {findings.facts.get('kem', 'nothing')}"
    if (workers := worker_count(config.node.workers)) > 1:
        yield f"  {workers} workers, each with tunnels and keys of its own; limits are divided"
    if config.tunnel.listen is not None:
        yield f"  waits for tunnels on {config.tunnel.listen}"
    for peer in config.peers.values():
        yield from _peer_lines(peer, config, findings)
    for listener in config.listeners.values():
        yield f"  listener {listener.name}: {_listener_text(listener)}"
    for service in config.services.values():
        yield f"  service {service.name}: {_service_text(service)}"
    if config.admin.listen is not None:
        yield f"  health, metrics and status on {config.admin.listen}"
    yield f"  {_audit_text(config.audit, workers)}"
    yield f"  on SIGTERM, connections may go on for {config.shutdown.drain_s:g} s"


def _peer_lines(peer: PeerConfig, config: GatewayConfig, findings: Findings) -> Iterator[str]:
    how = "waits for it" if peer.address is None else f"dials {peer.address}"
    tunnels = "" if peer.address is None else f", {_count(peer.tunnels, 'tunnel')}"
    yield f"  peer {peer.name}: {how}{tunnels}"
    if not peer.paths:
        yield "    policy off: classical-only, ML-KEM without QKD keys"
    else:
        fall_back = {
            Policy.OFF: "uses keys of a source only where the peer demands them",
            Policy.PREFER: "falls back to classical-only without a key",
            Policy.REQUIRE: f"closes tunnels after {peer.max_without_qkd_s:g} s without a key",
        }[peer.policy]
        yield f"    policy {peer.policy}: {fall_back}"
        if len(peer.paths) > 1:
            others = "" if peer.combine_at_least == len(peer.paths) else ", or what is left of them"
            yield (
                f"    keys of {len(peer.paths)} sources in each epoch{others}; "
                f"hybrid with at least {peer.combine_at_least}"
            )
        keys = _count(peer.qkd_keys_per_epoch, "key")
        for path in peer.paths:
            source = config.key_sources[path.source]
            name = f"{path.name}: " if path.name else ""
            pad = findings.facts.get(f"key_sources.{path.source}.directory", "")
            yield (
                f"    {name}{keys} of {peer.qkd_key_size_bits} bits per epoch from "
                f"{_source_text(source)}, {_keys_text(source)}, as SAE {path.local_sae_id} "
                f"with {path.peer_sae_id}{f'; {pad}' if pad else ''}"
            )
    extras = ", pre-shared key" if peer.psk_file is not None else ""
    yield (
        f"    {peer.kem}, {peer.aead}{extras}; new keys every {peer.rekey.interval_s:g} s, "
        f"{format_size(peer.rekey.bytes)} or {peer.rekey.records} records"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _source_text(source: KeySourceConfig) -> str:
    if isinstance(source, Etsi014SourceConfig):
        urls = ", else ".join(endpoint.url for endpoint in source.endpoints)
        return f"{source.name} (ETSI GS QKD 014, {urls})"
    if isinstance(source, SkipSourceConfig):
        return f"{source.name} (SKIP, {source.url})"
    return f"{source.name} (files in {source.directory})"


def _keys_text(source: KeySourceConfig) -> str:
    """What its keys may be called, before it has been asked."""
    if isinstance(source, Etsi014SourceConfig):
        return "QKD keys unless it says that they are simulated"
    if isinstance(source, SkipSourceConfig):
        return "which does not say what its keys are"
    return "a pre-shared pad and no QKD keys"


def _listener_text(listener: ListenerConfig) -> str:
    tls = listener.tls
    clients = "" if tls is None else f", client certificates {tls.client_auth}"
    to = f"service {listener.service} at {listener.peer}"
    return f"{_with_tls(listener.listen, tls is not None)}{clients} -> {to}"


def _service_text(service: ServiceConfig) -> str:
    who = "every peer" if service.peers is None else ", ".join(service.peers)
    return f"{_with_tls(service.connect, service.tls is not None)}, for {who}"


def _audit_text(audit: AuditConfig, workers: int) -> str:
    if audit.file is None:
        return "no audit trail"
    chain = "" if audit.hmac_key_file is None else ", keyed chain"
    otherwise = {
        OnAuditFailure.STOP: "without it no traffic",
        OnAuditFailure.CONTINUE: "traffic goes on without it",
    }[audit.failure]
    file = audit.file
    where = f"{file}" if workers == 1 else f"{audit_file(file, 0)} and so on, one for each worker"
    return f"audit trail in {where}{chain}; {otherwise}"


def _with_tls(address: Address, tls: bool) -> str:
    return f"{address} ({'TLS' if tls else 'plaintext'})"


def _kme_sim_lines(config: KmeSimConfig, findings: Findings) -> Iterator[str]:
    pair = f"pair of simulated KMEs{'' if config.network is None else ' in a network'}"
    yield f"{pair if len(config.kmes) == 2 else 'simulated KMEs in a network'} (ETSI GS QKD 014)"
    for kme in config.kmes.values():
        names = findings.facts.get(f"kme_sim.kmes.{kme.name}.certificate", "cannot be used")
        saes = ", ".join(sae for sae, home in config.saes.items() if home == kme.name) or "nobody"
        yield f"  {kme.name}: https://{kme.listen} for {saes}; certificate {names}"
    yield from _network_lines(config)
    if config.timetable:
        last_s = max(timed.at_s for timed in config.timetable)
        yield f"  timetable: {len(config.timetable)} events, the last after {last_s:g} s"
    if config.control is not None:
        yield f"  control: http://{config.control.listen}"


def _network_lines(config: KmeSimConfig) -> Iterator[str]:
    # Not before it is known to be a simulator's file: the network brings its optics along.
    from qproxy.sim.build import build_network  # noqa: PLC0415

    network = build_network(config, now=0.0, random_bytes=bytes)  # nobody gets a key of it
    size = f"keys of {network.keys.key_size_bits} bits"
    if config.network is not None:
        yield f"  spans: {len(network.spans)}; trusted relays: {len(network.relays)}"
    for name, route in network.routes.items():
        report = route.report(0.0)
        qber = "none" if report.qber is None else f"{report.qber:.3g}"
        rate = f"{report.key_rate_bps:.0f} bit/s, QBER {qber}"
        if config.network is None:
            yield f"  link: {rate}, {size}"
            continue
        paths = "one path" if len(route.paths) == 1 else f"{len(route.paths)} paths"
        yield (
            f"  route {name}: {' and '.join(route.config.between)} over {paths}, "
            f"{route.config.policy}; at the start {rate}, {report.stored_key_count} {size}"
        )
