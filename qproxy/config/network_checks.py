"""What the values of a simulated network must be to each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Set

from qproxy.config.document import shown
from qproxy.config.network import (
    MAX_HOPS,
    AnySpanConfig,
    KeyFormatConfig,
    NetworkConfig,
    RouteConfig,
    SatelliteSpanConfig,
)
from qproxy.config.walk import KeyPath, Report, Walk, did_you_mean
from qproxy.sim.events import Drain, Restore, TimedEvent
from qproxy.sim.physics.satellite import Orbit
from qproxy.sim.routing import choose_paths, nodes_along, shortest_path

#: What the one span and the one route of a plain `link` are called.
LINK_NAME = "link"

_NETWORK = ("kme_sim", "network")


def check_span(span: AnySpanConfig, path: KeyPath, report: Report) -> None:
    """A span has two ends, and stores no more than fits."""
    _check_two(span.between, path, report, "[kme-a, relay-1]")
    if span.initial_buffer_bits > span.max_buffer_bits:
        report(
            (*path, "initial_buffer_bits"),
            f"expected at most max_buffer_bits ({span.max_buffer_bits}), "
            f"got {span.initial_buffer_bits}",
            None,
        )


def check_satellite(span: SatelliteSpanConfig, path: KeyPath, report: Report) -> None:
    """The same, and a pass ends before the next one begins."""
    check_span(span, path, report)
    try:
        orbit_of(span)
    except ValueError as error:
        report((*path, "pass_duration_s"), str(error), None)


def orbit_of(span: SatelliteSpanConfig) -> Orbit:
    """The orbit of a satellite link. Raises ValueError where a pass lasts beyond the next."""
    return Orbit(
        altitude_km=span.altitude_km,
        zenith_loss_db=span.zenith_loss_db,
        first_pass_s=span.first_pass_s,
        pass_duration_s=span.pass_duration_s,
        pass_interval_s=span.pass_interval_s,
    )


def check_route(route: RouteConfig, path: KeyPath, report: Report) -> None:
    """A route has two ends."""
    _check_two(route.between, path, report, "[kme-a, kme-b]")


def check_key_sizes(keys: KeyFormatConfig, path: KeyPath, report: Report) -> None:
    """Sizes are in order."""
    for low, high in (
        ("min_key_size_bits", "key_size_bits"),
        ("key_size_bits", "max_key_size_bits"),
    ):
        if getattr(keys, low) > getattr(keys, high):
            report(
                (*path, low),
                f"expected at most {high} ({getattr(keys, high)}), got {getattr(keys, low)}",
                None,
            )


def check_network(
    network: NetworkConfig, kmes: Set[str], saes: Mapping[str, str], walk: Walk
) -> None:
    """Spans join nodes that exist, and every route is a way from one KME to the other."""
    _check_nodes(network, kmes, walk)
    named: dict[tuple[frozenset[str], frozenset[str]], str] = {}
    for name, route in network.routes.items():
        if not kmes >= set(route.between):
            continue  # reported as a name that leads nowhere
        path = (*_NETWORK, "routes", name)
        _check_saes(route, saes, path, walk)
        key = (frozenset(route.between), frozenset(route.saes))
        if key in named:
            walk.report(
                path,
                f"expected another route than {named[key]}, got the same KMEs and SAEs",
                "give both to one route as two paths, or say which saes take which",
            )
        named.setdefault(key, name)
        _check_paths(network, route, path, walk)
    if not walk.errors:  # only paths that are paths can be compared
        _check_disjoint(network, walk)


def check_timetable(
    events: Collection[TimedEvent],
    network: NetworkConfig | None,
    kmes: Collection[str],
    walk: Walk,
) -> None:
    """Every event is about something that exists."""
    known: dict[str, list[str]] = {"kme": sorted(kmes)}
    if network is None:
        known |= {"span": [LINK_NAME], "route": [LINK_NAME], "relay": []}
    else:
        known |= {"span": sorted(network.spans), "route": sorted(network.routes)}
        known["relay"] = sorted(network.relays)
    for number, timed in enumerate(events):
        for entry in dataclasses.fields(timed.event):
            if entry.name not in known:
                continue
            name, names = getattr(timed.event, entry.name), known[entry.name]
            path = ("kme_sim", "timetable", str(number), entry.name)
            hint = f"known names: {', '.join(names[:10]) or 'none'}"
            if name is None:
                if len(names) != 1 and not isinstance(timed.event, Restore | Drain):
                    walk.report(path, f"expected a {entry.name} of this file, got nothing", hint)
            elif name not in names:
                hint = did_you_mean(name, names) or hint
                walk.report(path, f"expected a {entry.name} of this file, got {shown(name)}", hint)


def _check_two(ends: tuple[str, ...], path: KeyPath, report: Report, example: str) -> None:
    if len(ends) != 2:
        report((*path, "between"), f"expected two names, like {example}, got {len(ends)}", None)


def _check_nodes(network: NetworkConfig, kmes: Collection[str], walk: Walk) -> None:
    for number, relay in enumerate(network.relays):
        if relay in kmes:
            walk.report(
                (*_NETWORK, "relays", str(number)),
                f"expected a name of its own, got that of a KME ({shown(relay)})",
                "a KME keeps the keys of its SAEs; another node passes keys on",
            )
    nodes = sorted({*kmes, *network.relays})
    for name, span in network.spans.items():
        for node in span.between:
            if node not in nodes:
                walk.report(
                    (*_NETWORK, "spans", name, "between"),
                    f"expected names from kme_sim.kmes and relays, got {shown(node)}",
                    did_you_mean(node, nodes) or f"known names: {', '.join(nodes[:10])}",
                )


def _check_saes(route: RouteConfig, saes: Mapping[str, str], path: KeyPath, walk: Walk) -> None:
    if not route.saes:
        return
    places = {saes.get(sae) for sae in route.saes}
    if not places <= {*route.between, None}:
        stray = next(sae for sae in route.saes if saes.get(sae) not in {*route.between, None})
        walk.report(
            (*path, "saes"),
            f"expected SAEs of {' and '.join(route.between)}, got {shown(stray)}",
            None,
        )
    elif not places >= set(route.between):
        walk.report(
            (*path, "saes"),
            f"expected an SAE of each of {' and '.join(route.between)}, got one side",
        )


def _check_paths(network: NetworkConfig, route: RouteConfig, path: KeyPath, walk: Walk) -> None:
    ends = {name: span.between for name, span in network.spans.items()}
    start, goal = route.between
    if not route.paths:
        found = shortest_path(ends, start, goal, network.relays)
        if found is None or len(found) > MAX_HOPS:
            walk.report(
                (*path, "between"),
                f"expected two KMEs that at most {MAX_HOPS} spans and relays join, got none",
                "add the spans that are missing",
            )
        return
    for number, spans in enumerate(route.paths):
        nodes = nodes_along(spans, ends, start)
        fault = _fault_of(nodes, goal, network.relays)
        if fault is not None:
            walk.report(
                (*path, "paths", str(number)),
                f"expected spans that lead from {start} to {goal} over relays, got {fault}",
                "each span begins where the one before it ends",
            )


def _check_disjoint(network: NetworkConfig, walk: Walk) -> None:
    parts = {name: _parts_of(network, route) for name, route in network.routes.items()}
    for name, route in network.routes.items():
        other = route.disjoint_from
        shared = parts[name] & parts.get(other or "", set())
        if other == name or shared:
            got = "itself" if other == name else f"{shown(min(shared))} in both"
            walk.report(
                (*_NETWORK, "routes", name, "disjoint_from"),
                f"expected a route that shares no span and no relay, got {got}",
                "give both routes paths, or policy pinned",
            )


def _parts_of(network: NetworkConfig, route: RouteConfig) -> set[str]:
    """Every span and relay that a route may ever use, told apart by what they are."""
    ends = {name: span.between for name, span in network.spans.items()}
    start, goal = route.between
    parts: set[str] = set()
    for path in choose_paths(ends, start, goal, network.relays, route.paths, route.max_paths):
        nodes = nodes_along(path, ends, start) or []
        parts |= {f"span {span}" for span in path} | {f"relay {node}" for node in nodes[1:-1]}
    return parts


def _fault_of(nodes: list[str] | None, goal: str, relays: Collection[str]) -> str | None:
    """What is wrong with a path; None where nothing is."""
    if nodes is None:
        return "spans that do not join"
    if nodes[-1] != goal:
        return f"a way to {nodes[-1]}"
    if len(set(nodes)) < len(nodes):
        return "a way that comes to one node twice"
    stray = next((node for node in nodes[1:-1] if node not in relays), None)
    return None if stray is None else f"a way through {stray}, which is no relay"
