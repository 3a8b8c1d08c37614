"""What ``qproxy status`` prints: the verdict and what is wrong first, then one block per peer.

Made from the ``/status`` document, which came over a socket: nothing in it is trusted to be there
or to be printable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qproxy.admin.assess import format_duration
from qproxy.admin.document import SCHEMA_VERSION
from qproxy.errors import QproxyError

#: Findings shown; the rest is counted.
MAX_FINDINGS: Final = 20
_UNITS: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


class StatusFormatError(QproxyError):
    """What came is not a status document of this version."""


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """A status document as lines for a terminal; not escaped yet.

    Raises:
        StatusFormatError: it is not one, or of another version.
    """
    if document.get("schema_version") != SCHEMA_VERSION:
        raise StatusFormatError(
            f"expected a status document of version {SCHEMA_VERSION}, "
            f"got {str(document.get('schema_version'))[:20]}"
        )
    try:
        return [*_head(document), *_body(document)]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise StatusFormatError("the status document lacks something it must have") from None


def _head(document: Mapping[str, Any]) -> Iterator[str]:
    verdict = "ready" if document["ready"] else "NOT READY"
    if document["draining"]:
        verdict = "DRAINING"
    yield (
        f"{document['node']}: {verdict}, up {format_duration(document['uptime_s'])}, "
        f"qproxy {document['version']}, ML-KEM by {document['kem_provider']}"
    )
    findings = [("!!", entry) for entry in document["not_ready"]]
    findings += [(" !", entry) for entry in document["warnings"]]
    for mark, entry in findings[:MAX_FINDINGS]:
        where = "" if entry["about"] == "gateway" else f"{entry['about']} {entry['name']}: "
        yield f"{mark} {where}{entry['detail']}"
    if len(findings) > MAX_FINDINGS:
        yield f" ! and {len(findings) - MAX_FINDINGS} more"


def _body(document: Mapping[str, Any]) -> Iterator[str]:
    audit = document.get("audit")
    if audit is not None:
        yield _audit_text(audit)
    for worker in document.get("workers", ()):
        yield _worker_text(worker)
        if worker["audit"] is not None:
            yield f"  {_audit_text(worker['audit'])}"
    for peer in document["peers"]:
        yield from _peer_lines(peer)
    for entry in document["listeners"]:
        where = ", ".join(entry["addresses"]) or "closed"
        yield (
            f"listener {entry['name']} ({where}) to {entry['service']} at {entry['peer']}: "
            f"{entry['connections_open']} open, {entry['connections_accepted']} accepted, "
            f"{entry['refused']['total']} refused{_reasons(entry['refused'])}, "
            f"{entry['failed']['total']} reset{_reasons(entry['failed'])}"
            f"{_own_policy(entry, entry.get('policy_met'))}"
        )
    for entry in document["services"]:
        yield (
            f"service {entry['name']}: {entry['connections_open']} open, "
            f"{entry['connections_opened']} opened, "
            f"{entry['refused']['total']} refused{_reasons(entry['refused'])}"
            f"{_failed(entry)}{_own_policy(entry, all(entry.get('policy_met', {}).values()))}"
        )


def _audit_text(audit: Mapping[str, Any]) -> str:
    failing = "" if audit["failing"] is None else f", FAILING ({audit['failing']})"
    lost = f", {audit['records_lost']} lost" if audit["records_lost"] else ""
    return (
        f"audit {audit['file']}: {audit['records']} records{lost}{failing}; "
        f"head {audit['sequence']} {str(audit['head'])[:16]}"
    )


def _worker_text(worker: Mapping[str, Any]) -> str:
    up = "" if worker["uptime_s"] is None else f" for {format_duration(worker['uptime_s'])}"
    process = "" if worker["pid"] is None else f" (process {worker['pid']})"
    return (
        f"worker {worker['number']}{process}: {worker['state']}{up}, "
        f"tunnels {worker['tunnels']}, streams {worker['streams_open']}, "
        f"connections {worker['connections_open']}, starts {worker['starts']}"
    )


# Gateways of this version of the document that are older than these fields do not send them.


def _failed(entry: Mapping[str, Any]) -> str:
    failed = entry.get("failed")
    return "" if failed is None else f", {failed['total']} reset{_reasons(failed)}"


def _own_policy(entry: Mapping[str, Any], met: object) -> str:
    policy = entry.get("policy")
    if policy is None:
        return ""
    return f"; policy {policy}" if met else f"; policy {policy}, NOT MET"


def _peer_lines(peer: Mapping[str, Any]) -> Iterator[str]:
    wanted = peer["tunnels_wanted"]
    of = "" if wanted is None else f" of {wanted}"
    how = "dials us" if peer["address"] is None else f"dialled at {peer['address']}"
    yield (
        f"peer {peer['name']}: {peer['mode'] or 'no tunnel'}{_mark(peer)}, "
        f"tunnels up: {len(peer['tunnels'])}{of}, {how}"
    )
    policy = peer["policy"]
    yield (
        f"  policy {policy['effective']} (here {policy['local']}, "
        f"there {policy['peer'] or 'not known'}); last key {_key_text(peer)}"
    )
    if peer["link"] is not None:
        yield f"  link {_link_text(peer['link'])}"
    if len(peer["sources"]) > 1:
        yield f"  hybrid with keys of at least {peer['at_least']} of {len(peer['sources'])} sources"
    for source in peer["sources"]:
        if len(peer["sources"]) > 1 or source["keys_are"] != "qkd":
            yield f"  {_source_text(source)}"
    for source in peer.get("sources", ()):
        if source.get("kme") not in {None, source["name"]}:
            yield f"  key source {source['name']} at KME {source['kme']}"
    if peer["stock"] is not None:
        yield f"  keys {_stock_text(peer['stock'])}"
    epochs = ", ".join(f"{count} {mode}" for mode, count in peer["epochs"].items())
    failed = sum(entry["count"] for entry in peer["epoch_failures"])
    yield f"  epochs {epochs}, {failed} failed; {peer['kem']}, {peer['aead']}"
    yield (
        f"  streams {peer['streams_open']} open, {peer['streams_opened']} opened; "
        f"sent {_size(peer['bytes_sent'])}, received {_size(peer['bytes_received'])}"
    )
    for tunnel in peer["tunnels"]:
        yield f"  tunnel {_tunnel_text(tunnel)}"


def _mark(peer: Mapping[str, Any]) -> str:
    """So that nobody takes a hybrid mode for more than it is."""
    if peer["mode"] != "hybrid":
        return ""
    called = sorted({nature for tunnel in peer["tunnels"] for nature in tunnel["keys_are"]})
    marks = [nature.upper() if nature == "simulated" else nature for nature in called]
    return "" if marks in ([], ["qkd"]) else f" with {' and '.join(marks)} keys"


def _source_text(source: Mapping[str, Any]) -> str:
    path = f" for path {source['path']}" if source["path"] else ""
    says = "" if source["says"] is None else f", by {source['says']!r} as it says"
    link = source["link"]
    return (
        f"key source {source['name']}{path}: {source['kind']}, keys {source['keys_are']}{says}; "
        f"{link['state']} for {format_duration(link['age_s'])} ({link['reason']})"
    )


def _key_text(peer: Mapping[str, Any]) -> str:
    if peer["source_key"] is None:
        return "-"
    if peer["source_key_age_s"] is None:
        return "never"
    chained = ", chained" if peer["source_key"] == "chained" else ""
    return f"{format_duration(peer['source_key_age_s'])} ago{chained}"


def _link_text(link: Mapping[str, Any]) -> str:
    simulated = ", SIMULATED keys" if link["simulated"] else ""
    text = (
        f"{link['state']} for {format_duration(link['age_s'])} ({link['reason']}), "
        f"key source {link['source']}{simulated}"
    )
    if link["stored_keys"] is not None:
        text += f"; it holds {link['stored_keys']} keys"
        left_s = link["stored_keys_exhaustion_s"]
        text += "" if left_s is None else f", empty in {format_duration(left_s)}"
    if link["qber"] is not None:
        text += f"; QBER {link['qber']:.2%}"
    return text


def _stock_text(stock: Mapping[str, Any]) -> str:
    if not stock["kept"]:
        return f"{stock['redeemed']} redeemed for the peer's tunnels"
    left_s = stock["exhaustion_s"]
    left = "" if left_s is None else f", empty in {format_duration(left_s)}"
    return (
        f"{stock['available']} in stock{left}; {stock['drawn']} drawn, "
        f"{stock['confirmed']} used, {stock['orphaned']} orphaned"
    )


def _tunnel_text(tunnel: Mapping[str, Any]) -> str:
    who = "dialled here" if tunnel["role"] == "client" else "dialled there"
    worker = tunnel.get("worker")
    text = (
        f"{'' if worker is None else f'in worker {worker}, '}"
        f"{who}, {tunnel['mode']} epoch {tunnel['epoch']} "
        f"for {format_duration(tunnel['epoch_age_s'])}, {tunnel['tls_group']}"
    )
    if tunnel["round_trip_s"] is not None:
        text += f", round trip {1000 * tunnel['round_trip_s']:.1f} ms"
    if tunnel["rekey_interval_s"] is not None:
        stretched = " (stretched)" if tunnel["economy"] else ""
        text += f", rekey every {tunnel['rekey_interval_s']:g} s{stretched}"
    return text if tunnel["usable"] else f"{text}, takes no new streams"


def _reasons(counts: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["by_reason"].items())
    return f" ({reasons})" if reasons else ""


def _size(count: int) -> str:
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
