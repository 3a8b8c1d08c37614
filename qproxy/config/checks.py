"""What one key alone cannot show: values that do not fit each other, names that lead nowhere.

Everything here is an error. What is merely unwise is in `qproxy.cli.preflight`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from qproxy.address import Address, TcpAddress
from qproxy.config.document import shown
from qproxy.config.model import (
    AdminConfig,
    AuditConfig,
    FileSourceConfig,
    KeyStockConfig,
    KmeConfig,
    LinkConfig,
    ListenerConfig,
    ListenerTlsConfig,
    NodeConfig,
    PeerConfig,
    RekeyConfig,
    ServiceConfig,
    ServiceTlsConfig,
    TunnelConfig,
)
from qproxy.config.network import NetworkConfig
from qproxy.config.network_checks import check_network, check_timetable
from qproxy.config.walk import KeyPath, Report, Walk, did_you_mean
from qproxy.modes import ClientAuth, Policy

#: Keys that one OFFER has room for.
MAX_KEYS_PER_EPOCH: Final = 8


def check_tunnel(tunnel: TunnelConfig, path: KeyPath, report: Report) -> None:
    """Pings come before the silence they are to prevent; one stream cannot fill a session."""
    if tunnel.peer_timeout_s <= tunnel.ping_interval_s:
        report(
            (*path, "peer_timeout_s"),
            f"expected more than ping_interval_s ({tunnel.ping_interval_s:g}), "
            f"got {tunnel.peer_timeout_s:g}",
            "three times the interval lets two pings be lost",
        )
    if tunnel.max_session_window_bytes <= tunnel.max_stream_window_bytes:
        report(
            (*path, "max_session_window_bytes"),
            f"expected more than max_stream_window_bytes ({tunnel.max_stream_window_bytes}), "
            f"got {tunnel.max_session_window_bytes}",
            "with equal ones a single slow stream stops all the others",
        )


def check_rekey(rekey: RekeyConfig, path: KeyPath, report: Report) -> None:
    """A tunnel is not closed for its age before it was to rekey."""
    if rekey.max_age_s < rekey.interval_s:
        report(
            (*path, "max_age_s"),
            f"expected at least interval_s ({rekey.interval_s:g}), got {rekey.max_age_s:g}",
            "tunnels would be closed before they rekey",
        )


def check_key_stock(stock: KeyStockConfig, path: KeyPath, report: Report) -> None:
    """Drawing starts before it stops."""
    if stock.low_water > stock.high_water:
        report(
            (*path, "low_water"),
            f"expected at most high_water ({stock.high_water}), got {stock.low_water}",
            "keys are drawn below low_water, up to high_water",
        )


def check_peer(peer: PeerConfig, path: KeyPath, report: Report) -> None:
    """Policy and key source go together, and timers nest."""
    if not peer.paths and peer.policy is not Policy.OFF:
        report(
            (*path, "key_source"),
            f"expected the name of a key source with policy {peer.policy}, got nothing",
            "name one of key_sources, or set policy: off",
        )
    check_peer_sources(peer, path, report)
    if peer.epoch_timeout_s <= peer.kme_timeout_s:
        report(
            (*path, "epoch_timeout_s"),
            f"expected more than kme_timeout_s ({peer.kme_timeout_s:g}), "
            f"got {peer.epoch_timeout_s:g}",
            "or offers are given up while the peer's KME still answers",
        )
    if peer.key_stock.high_water < peer.qkd_keys_per_epoch:
        report(
            (*path, "key_stock", "high_water"),
            f"expected at least qkd_keys_per_epoch ({peer.qkd_keys_per_epoch}), "
            f"got {peer.key_stock.high_water}",
            "or no epoch ever finds keys enough",
        )
    if peer.policy is Policy.REQUIRE and peer.max_without_qkd_s <= peer.rekey.interval_s:
        report(
            (*path, "max_without_qkd_s"),
            f"expected more than rekey.interval_s ({peer.rekey.interval_s:g}) "
            f"with policy require, got {peer.max_without_qkd_s:g}",
            "or every tunnel is closed before its next key is due",
        )


def check_peer_sources(peer: PeerConfig, path: KeyPath, report: Report) -> None:
    """One source or several, and several fit into one epoch."""
    sources = [entry.source for entry in peer.key_sources.values()]
    if peer.key_source is not None and sources:
        report(
            (*path, "key_sources"),
            "expected one of key_source and key_sources, got both",
            "name the single source among the others, and remove key_source",
        )
    for name, entry in peer.key_sources.items():
        if sources.count(entry.source) > 1:
            report(
                (*path, "key_sources", name, "source"),
                f"expected a source for each path, got {shown(entry.source)} twice",
                "two paths through one source are one path",
            )
    number = max(1, len(sources))
    if peer.combine_at_least > number:
        report(
            (*path, "combine_at_least"),
            f"expected at most the number of sources ({number}), got {peer.combine_at_least}",
            "or no epoch is ever hybrid",
        )
    if number * peer.qkd_keys_per_epoch > MAX_KEYS_PER_EPOCH:
        report(
            (*path, "qkd_keys_per_epoch"),
            f"expected at most {MAX_KEYS_PER_EPOCH // number} with {number} sources, "
            f"got {peer.qkd_keys_per_epoch}",
            f"each source gives as many, and an epoch takes {MAX_KEYS_PER_EPOCH}",
        )


def complete_peer(values: dict[str, Any], _walk: Walk) -> None:
    """The peer's SAE ID is its name unless configured; ours comes with the node's name."""
    values.setdefault("peer_sae_id", values["name"])
    values.setdefault("local_sae_id", "")


def check_listener_tls(tls: ListenerTlsConfig, path: KeyPath, report: Report) -> None:
    """Asking for certificates takes an authority, and an authority is there to be asked."""
    if tls.client_auth is not ClientAuth.NONE and tls.client_ca is None:
        report(
            (*path, "client_ca"),
            f"expected a PEM file with client_auth {tls.client_auth}, got nothing",
            "give the authority that signs your clients' certificates",
        )
    if tls.client_auth is ClientAuth.NONE and tls.client_ca is not None:
        report(
            (*path, "client_auth"),
            "expected optional or required with a client_ca, got none",
            "clients would not be asked for a certificate; set client_auth or remove client_ca",
        )


def check_listener(listener: ListenerConfig, path: KeyPath, report: Report) -> None:
    """Plaintext stays on this machine unless somebody says otherwise."""
    exposed = listener.tls is None and not listener.listen.is_loopback
    if exposed and not listener.unsafe_allow_remote_plaintext:
        report(
            (*path, "listen"),
            f"expected a loopback address or unix socket without tls, got {listener.listen}",
            "add tls, listen on 127.0.0.1 or unix:/PATH, "
            "or accept the risk with unsafe_allow_remote_plaintext: true",
        )
    _check_own_limit(listener, path, report)


def check_admin(admin: AdminConfig, path: KeyPath, report: Report) -> None:
    """Whoever reaches the admin listener may read it, so it stays on this machine."""
    exposed = admin.listen is not None and not admin.listen.is_loopback
    if exposed and not admin.unsafe_allow_remote:
        report(
            (*path, "listen"),
            f"expected a loopback address or unix socket, got {admin.listen}",
            "listen on 127.0.0.1 or unix:/PATH, or accept the risk with unsafe_allow_remote: true",
        )


def check_audit(audit: AuditConfig, path: KeyPath, report: Report) -> None:
    """Whoever gives a key for the log means to have a log."""
    if audit.hmac_key_file is not None and audit.file is None:
        report(
            (*path, "file"),
            "expected the path of the log with hmac_key_file, got nothing",
            "add this key, or remove hmac_key_file",
        )


def check_service_tls(tls: ServiceTlsConfig, path: KeyPath, report: Report) -> None:
    """A client certificate and its key come together."""
    for given, missing in (("certificate", "private_key"), ("private_key", "certificate")):
        if getattr(tls, given) is not None and getattr(tls, missing) is None:
            report(
                (*path, missing),
                f"expected a PEM file beside {given}, got nothing",
                "give both, or neither",
            )


def check_service(service: ServiceConfig, path: KeyPath, report: Report) -> None:
    """TLS to a unix socket has no host whose name could be checked."""
    tls = service.tls
    if tls is not None and tls.server_name is None and not isinstance(service.connect, TcpAddress):
        report(
            (*path, "tls", "server_name"),
            "expected the name in the service's certificate with a unix socket, got nothing",
            "add this key",
        )
    _check_own_limit(service, path, report)


def _check_own_limit(
    section: ListenerConfig | ServiceConfig, path: KeyPath, report: Report
) -> None:
    """A limit that nothing enforces would only look like one."""
    if section.max_without_qkd_s is not None and section.policy is not Policy.REQUIRE:
        report(
            (*path, "max_without_qkd_s"),
            f"expected policy: require beside it, got {section.policy or 'no policy'}",
            "add policy: require here, or remove this key: the peer's own limit holds anyway",
        )


def check_link(link: LinkConfig, path: KeyPath, report: Report) -> None:
    """Sizes and counts of the simulated link are in order."""
    for low, high in (
        ("min_key_size_bits", "key_size_bits"),
        ("key_size_bits", "max_key_size_bits"),
        ("initial_key_count", "max_key_count"),
    ):
        if getattr(link, low) > getattr(link, high):
            report(
                (*path, low),
                f"expected at most {high} ({getattr(link, high)}), got {getattr(link, low)}",
                None,
            )


def complete_gateway(values: dict[str, Any], walk: Walk) -> None:
    """Names lead somewhere, addresses are used once, and our SAE IDs are filled in."""
    peers: dict[str, PeerConfig] = _mapping(values, "peers")
    node = values.get("node")
    if isinstance(node, NodeConfig):
        values["peers"] = peers = {
            name: dataclasses.replace(peer, local_sae_id=peer.local_sae_id or node.name)
            for name, peer in peers.items()
        }
        _check_peer_names(node, walk)
    tunnel = values.get("tunnel")
    # A tunnel section that could not be read may well have had a `listen`.
    only_dials = tunnel.listen is None if tunnel else ("tunnel",) not in walk.lines
    for name, peer in peers.items():
        if peer.address is None and only_dials:
            walk.report(
                ("peers", name, "address"),
                "expected an address, for no tunnel.listen lets the peer come to us, got nothing",
                "add address here, or listen under tunnel",
            )
    _check_sae_ids(peers, walk)
    _check_pads(values, peers, walk)
    _check_references(walk)
    _check_service_policies(values, peers, walk)
    _check_addresses(values, walk)
    values["path"] = walk.base / walk.file.name


def complete_kme_sim(values: dict[str, Any], walk: Walk) -> None:
    """Every SAE hangs on a KME that exists, and no address is used twice."""
    _check_references(walk)
    used: dict[str, str] = {}
    kmes: dict[str, KmeConfig] = _mapping(values, "kmes")
    for name, kme in kmes.items():
        _check_address(walk, used, ("kme_sim", "kmes", name, "listen"), kme.listen)
    control = values.get("control")
    if control is not None:
        _check_address(walk, used, ("kme_sim", "control", "listen"), control.listen)
    _check_what_joins_the_kmes(values, walk)
    values["path"] = walk.base / walk.file.name


def _check_what_joins_the_kmes(values: dict[str, Any], walk: Walk) -> None:
    """One link or one network, and events about what is in it."""
    kmes = walk.names.get(("kme_sim", "kmes"), frozenset())
    network = values.get("network")
    if ("kme_sim", "network") not in walk.lines:
        if len(kmes) > 2:
            walk.report(
                ("kme_sim", "kmes"),
                f"expected exactly 2 entries of the form '<kme>: ...', got {len(kmes)}",
                "more than two KMEs need a network",
            )
    elif ("kme_sim", "link") in walk.lines:
        walk.report(
            ("kme_sim", "network"),
            "expected either link or network, got both",
            "a link is a network of one span of type fixed",
        )
    elif not isinstance(network, NetworkConfig):
        return  # what is wrong with it has been reported, and events may be about it
    else:
        check_network(network, kmes, _mapping(values, "saes"), walk)
    check_timetable(values.get("timetable", ()), network, kmes, walk)


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _check_references(walk: Walk) -> None:
    for path, to, name in walk.references:
        known = sorted(walk.names.get(to, ()))
        if name in known:
            continue
        hint = did_you_mean(name, known)
        if hint is None:
            hint = f"known names: {', '.join(known[:10])}" if known else f"add it to {'.'.join(to)}"
        walk.report(path, f"expected a name from {'.'.join(to)}, got {shown(name)}", hint)


def _check_peer_names(node: NodeConfig, walk: Walk) -> None:
    if node.name in walk.names.get(("peers",), frozenset()):
        walk.report(
            ("peers", node.name),
            "expected the name of another gateway, got this node's own",
            "a peer's name is the one in its certificate",
        )


def _check_sae_ids(peers: dict[str, PeerConfig], walk: Walk) -> None:
    """Two peers with one SAE ID at one source would draw on the same keys."""
    first: dict[tuple[str, str | None, str | None], str] = {}
    for name, peer in peers.items():
        for entry in peer.paths:
            ids = (entry.source, entry.local_sae_id, entry.peer_sae_id)
            where = ("key_sources", entry.name) if entry.name else ()
            if ids in first:
                walk.report(
                    ("peers", name, *where, "peer_sae_id"),
                    f"expected another SAE ID than that of peer {first[ids]}, "
                    f"got {shown(entry.peer_sae_id or '')} as well",
                    "each pair of gateways has its own pair of SAE IDs",
                )
            first.setdefault(ids, name)


def _check_pads(values: dict[str, Any], peers: dict[str, PeerConfig], walk: Walk) -> None:
    """A pad is shared by two gateways: for a third its keys are noise, and would be used up."""
    directories: dict[Path, str] = {}
    for name, source in _mapping(values, "key_sources").items():
        if not isinstance(source, FileSourceConfig):
            continue
        other = directories.setdefault(source.directory, name)
        if other != name:
            walk.report(
                ("key_sources", name, "directory"),
                f"expected a directory of its own, got that of {other}",
                "one directory is one pad",
            )
        users = [peer for peer in peers if any(p.source == name for p in peers[peer].paths)]
        for peer in users[1:]:
            walk.report(
                ("peers", peer, "key_source"),
                f"expected a source of type file of its own, got that of peer {users[0]}",
                "each pair of gateways has its own pad: qproxy pad make",
            )


def _check_service_policies(
    values: dict[str, Any], peers: dict[str, PeerConfig], walk: Walk
) -> None:
    """What requires a QKD key can get one: its peer has a key source, and may use it."""
    for name, listener in _mapping(values, "listeners").items():
        peer = peers.get(listener.peer)
        if listener.policy is Policy.REQUIRE and peer is not None:
            _check_can_require(("listeners", name, "policy"), [peer], walk)
    for name, service in _mapping(values, "services").items():
        if service.policy is not Policy.REQUIRE:
            continue
        path = ("services", name, "policy")
        if service.peers is None:
            # One peer that can will do; the others are refused, which is what was asked for.
            able = any(_can_get_keys(peer) for peer in peers.values())
            _check_can_require(path, [] if able else list(peers.values())[:1], walk)
        else:
            named = [peers[peer] for peer in service.peers if peer in peers]
            _check_can_require(path, named, walk)


def _check_can_require(path: KeyPath, peers: list[PeerConfig], walk: Walk) -> None:
    for peer in peers:
        if not _can_get_keys(peer):
            lack = "policy off" if peer.paths else "no key_source"
            walk.report(
                path,
                f"expected a peer that gets QKD keys with policy require, "
                f"got {peer.name} with {lack}",
                f"give peers.{peer.name} a key_source and policy prefer or require, "
                "or remove this key",
            )


def _can_get_keys(peer: PeerConfig) -> bool:
    return bool(peer.paths) and peer.policy is not Policy.OFF


def _check_addresses(values: dict[str, Any], walk: Walk) -> None:
    used: dict[str, str] = {}
    tunnel = values.get("tunnel")
    if isinstance(tunnel, TunnelConfig) and tunnel.listen is not None:
        _check_address(walk, used, ("tunnel", "listen"), tunnel.listen)
    for name, listener in _mapping(values, "listeners").items():
        _check_address(walk, used, ("listeners", name, "listen"), listener.listen)
    admin = values.get("admin")
    if isinstance(admin, AdminConfig) and admin.listen is not None:
        _check_address(walk, used, ("admin", "listen"), admin.listen)


def _check_address(walk: Walk, used: dict[str, str], path: KeyPath, address: Address) -> None:
    if isinstance(address, TcpAddress) and address.port == 0:
        return  # the system gives each its own port
    key = ".".join(path)
    other = used.setdefault(str(address), key)
    if other != key:
        walk.report(path, f"expected an address of its own, got that of {other}", None)
