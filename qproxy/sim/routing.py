"""Paths through a network of spans. Pure; names in, names out."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

#: The two nodes that a span joins, by its name.
Ends = Mapping[str, Sequence[str]]


def nodes_along(path: Iterable[str], ends: Ends, start: str) -> list[str] | None:
    """The nodes of a path from ``start``, both ends included; None where it is no path.

    Args:
        path: names of spans, in order.
        ends: every span.
        start: the node it begins at.
    """
    nodes = [start]
    for span in path:
        if span not in ends or nodes[-1] not in ends[span]:
            return None
        first, second = ends[span]
        nodes.append(second if nodes[-1] == first else first)
    return nodes


def shortest_path(
    ends: Ends, start: str, goal: str, transit: Collection[str]
) -> tuple[str, ...] | None:
    """The path of fewest spans, the earliest in file order among equals; None if there is none.

    Args:
        ends: every span that may be used.
        start: where it begins.
        goal: where it ends.
        transit: nodes that may lie between.
    """
    came_by: dict[str, tuple[str, str]] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for span, (first, second) in ends.items():
            if node not in (first, second):
                continue
            other = second if node == first else first
            if other == start or other in came_by or (other != goal and other not in transit):
                continue
            came_by[other] = (span, node)
            if other == goal:
                return tuple(_walk_back(came_by, start, goal))
            waiting.append(other)
    return None


def disjoint_paths(
    ends: Ends, start: str, goal: str, transit: Collection[str], maximum: int
) -> list[tuple[str, ...]]:
    """Paths that share no span and no node but their ends, shortest first.

    Each is the shortest that those before it leave. That finds one path wherever there is one,
    but not always as many as could be had.
    """
    left = dict(ends)
    allowed = set(transit)
    paths: list[tuple[str, ...]] = []
    while len(paths) < maximum:
        path = shortest_path(left, start, goal, allowed)
        if path is None:
            break
        paths.append(path)
        allowed -= set(nodes_along(path, ends, start) or ())
        for span in path:
            del left[span]
    return paths


def choose_paths(
    ends: Ends,
    start: str,
    goal: str,
    transit: Collection[str],
    given: Sequence[tuple[str, ...]],
    maximum: int,
) -> list[tuple[str, ...]]:
    """The paths of a route: the first of those given, or else those that are found."""
    return list(given[:maximum]) or disjoint_paths(ends, start, goal, transit, maximum)


def _walk_back(came_by: Mapping[str, tuple[str, str]], start: str, goal: str) -> list[str]:
    path: list[str] = []
    node = goal
    while node != start:
        span, node = came_by[node]
        path.append(span)
    return path[::-1]
