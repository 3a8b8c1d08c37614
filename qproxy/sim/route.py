"""A route: how two KMEs get keys in common, over one of several paths of spans and relays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from qproxy.config.network import RouteConfig
from qproxy.sim.relay import Hop, Relay, Tap, carry
from qproxy.sim.routing import choose_paths, nodes_along
from qproxy.sim.span import LinkState, NotEnoughKeys, SimulatedSpan

_WORST_LAST = list(LinkState)


@dataclass(frozen=True, slots=True)
class CarriedKey:
    """A key at both ends of its way.

    Attributes:
        near: at the KME that made it.
        far: as it arrived at the other one. Equal to ``near``, and bytes of its own.
    """

    near: bytearray = field(repr=False)
    far: bytearray = field(repr=False)


@dataclass(frozen=True, slots=True)
class RouteReport:
    """A route at one moment, over the path that the next key would take.

    Attributes:
        state: that of its worst span.
        qber: the highest of its spans, or None where none of them sees photons.
        key_rate_bps: the smallest of its spans.
        stored_key_count: keys of the default size that can be taken.
        max_key_count: how many of them there may be.
        path: names of the spans.
    """

    state: LinkState
    qber: float | None
    key_rate_bps: float
    stored_key_count: int
    max_key_count: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Path:
    """Spans in order, and the relays between them."""

    spans: tuple[SimulatedSpan, ...]
    relays: tuple[Relay, ...]

    def stored_bits(self, now: float) -> int:
        return min(span.stored_bits(now) for span in self.spans)

    def works(self, now: float) -> bool:
        return all(span.makes_key(now) for span in self.spans)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(span.config.name for span in self.spans)


class Route:
    """One route.

    Args:
        config: its ends, paths and policy.
        spans: every span of the network.
        relays: every relay.
        key_size_bits: default size of a key.
        random_bytes: the keys that travel are made of these.
        tap: told of everything that travels.

    Attributes:
        config: as given.
        in_step: whether the two KMEs have the same key under the same ID.
    """

    def __init__(
        self,
        config: RouteConfig,
        spans: Mapping[str, SimulatedSpan],
        relays: Mapping[str, Relay],
        *,
        key_size_bits: int,
        random_bytes: Callable[[int], bytes],
        tap: Tap,
    ) -> None:
        self.config = config
        self.in_step = True
        self._key_size_bits = key_size_bits
        self._random_bytes = random_bytes
        self._tap = tap
        ends = {name: span.config.between for name, span in spans.items()}
        start, goal = config.between
        paths = choose_paths(ends, start, goal, relays, config.paths, config.max_paths)
        self._paths: list[_Path] = []
        for path in paths:
            nodes = nodes_along(path, ends, start)
            if nodes is None or nodes[-1] != goal:
                raise ValueError(f"expected spans that lead from {start} to {goal}")
            between = tuple(relays[node] for node in nodes[1:-1])
            self._paths.append(_Path(tuple(spans[name] for name in path), between))

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The paths it may choose from, the preferred one first."""
        return tuple(path.names for path in self._paths)

    def stored_key_count(self, now: float) -> int:
        """Keys of the default size that can be taken at ``now``."""
        return self.report(now).stored_key_count

    def report(self, now: float) -> RouteReport:
        """The route at ``now``."""
        path = self._active(now)
        reports = [span.report(now) for span in path.spans]
        qbers = [report.qber for report in reports if report.qber is not None]
        capacity = min(span.config.max_buffer_bits for span in path.spans)
        return RouteReport(
            state=max((report.state for report in reports), key=_WORST_LAST.index),
            qber=max(qbers, default=None),
            key_rate_bps=min(report.key_rate_bps for report in reports),
            stored_key_count=min(report.stored_bits for report in reports) // self._key_size_bits,
            max_key_count=capacity // self._key_size_bits,
            path=path.names,
        )

    def describe(self, now: float) -> dict[str, object]:
        """Everything that can be seen from outside, for JSON."""
        report = self.report(now)
        return {
            "between": list(self.config.between),
            "policy": self.config.policy,
            "paths": [list(path) for path in self.paths],
            "path": list(report.path),
            "state": report.state,
            "qber": report.qber,
            "key_rate_bps": report.key_rate_bps,
            "stored_key_count": report.stored_key_count,
            "max_key_count": report.max_key_count,
            "in_step": self.in_step,
        }

    def take(self, number: int, size_bits: int, now: float, *, start: str) -> list[CarriedKey]:
        """Make keys and carry them to the other end.

        Args:
            number: how many keys.
            size_bits: size of each, a multiple of 8.
            now: the time.
            start: the KME that makes them, one of the two.

        Returns:
            The keys, owned by the caller.

        Raises:
            NotEnoughKeys: no path has so much key stored. Nothing was taken.
        """
        for path in self._by_preference(now):
            if path.stored_bits(now) >= number * size_bits:
                forward = start == self.config.between[0]
                return [self._carry(path, size_bits, now, forward) for _ in range(number)]
        raise NotEnoughKeys

    def _carry(self, path: _Path, size_bits: int, now: float, forward: bool) -> CarriedKey:
        taken = [Hop(span.config.name, span.take(size_bits, now)) for span in path.spans]
        if len(taken) == 1:  # the two ends share it already
            near = taken[0].key
            return CarriedKey(near, bytearray(near))
        hops: Sequence[Hop] = taken if forward else taken[::-1]
        relays = path.relays if forward else path.relays[::-1]
        near = bytearray(self._random_bytes(size_bits // 8))
        return CarriedKey(near, carry(near, hops, relays, self._tap))

    def _active(self, now: float) -> _Path:
        """The path that the next key would take."""
        candidates = self._by_preference(now)
        stocked = (path for path in candidates if path.stored_bits(now) >= self._key_size_bits)
        return next(stocked, candidates[0])

    def _by_preference(self, now: float) -> list[_Path]:
        """Paths that make key at every hop before those that do not."""
        return sorted(self._paths, key=lambda path: not path.works(now))
