"""A worker's configuration: the whole's, with its share of what is limited. Pure.

Limits that protect somebody (a service, this machine's memory) hold for the gateway, so each worker
gets a part and the parts add up to the whole. Key stocks are parts of one link's keys and are
divided too. What describes one tunnel or one epoch is every worker's own, and so is
``peers.*.tunnels``: each worker needs tunnels of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qproxy.address import Address
from qproxy.config.model import AdminConfig, GatewayConfig, KeyStockConfig, PeerConfig


def share(whole: int, number: int, workers: int) -> int:
    """Worker ``number``'s part of a limit; parts add up to it, and none is below 1."""
    return max(1, whole // workers + (number < whole % workers))


def worker_config(
    config: GatewayConfig, number: int, workers: int, addresses: Mapping[str, Address]
) -> GatewayConfig:
    """What one worker runs with.

    Args:
        config: the gateway's.
        number: which worker, from 0.
        workers: how many there are.
        addresses: by name of the listener, where it listens: ports 0 are chosen by now.
    """
    audit = config.audit
    if audit.file is not None:
        audit = replace(audit, file=audit_file(audit.file, number))
    return replace(
        config,
        # Only the supervisor answers the operator.
        node=replace(config.node, pid_file=None, workers=workers),
        admin=AdminConfig(),
        audit=audit,
        # The supervisor accepts tunnels.
        tunnel=replace(
            config.tunnel,
            listen=None,
            max_tunnels=share(config.tunnel.max_tunnels, number, workers),
        ),
        peers={name: _peer(peer, workers) for name, peer in config.peers.items()},
        listeners={
            name: replace(
                listener,
                listen=addresses[name],
                max_connections=share(listener.max_connections, number, workers),
            )
            for name, listener in config.listeners.items()
        },
        services={
            name: replace(service, max_connections=share(service.max_connections, number, workers))
            for name, service in config.services.items()
        },
    )


def audit_file(file: Path, number: int) -> Path:
    """Where worker ``number`` keeps its audit trail: ``audit.jsonl`` becomes ``audit-w0.jsonl``.

    One chain has one writer, so each worker has a chain of its own.
    """
    return file.with_name(f"{file.stem}-w{number}{file.suffix}")


def audit_files(file: Path) -> list[Path]:
    """The logs of a gateway whose ``audit.file`` this is: its own, those of its workers, or both.

    Both where it has run with one process and with several. The file itself where there is none.
    """
    pattern = re.compile(
        rf"{re.escape(file.stem)}-w([0-9]{{1,3}}){re.escape(file.suffix)}(\.[0-9]{{6}})?"
    )
    numbers = {
        int(found[1])
        for path in (file.parent.iterdir() if file.parent.is_dir() else ())
        if (found := pattern.fullmatch(path.name))
    }
    of_workers = [audit_file(file, number) for number in sorted(numbers)]
    return [file, *of_workers] if file.exists() or not of_workers else of_workers


def _peer(peer: PeerConfig, workers: int) -> PeerConfig:
    stock = peer.key_stock
    low_water = -(-stock.low_water // workers)
    return replace(
        peer,
        key_stock=KeyStockConfig(
            low_water=low_water,
            high_water=max(low_water, peer.qkd_keys_per_epoch, -(-stock.high_water // workers)),
            max_age_s=stock.max_age_s,
        ),
    )
