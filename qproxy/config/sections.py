"""Kinds that hold other kinds: lists, sections, named sections, sections with a type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from qproxy.config.document import line_of, shown
from qproxy.config.scalars import Text
from qproxy.config.walk import (
    INVALID,
    KeyPath,
    Kind,
    Report,
    Walk,
    did_you_mean,
    is_null,
    kind_of,
    pairs,
)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of at least one value of one kind, no two the same."""

    item: Kind
    expected: str
    maximum: int

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """A tuple of the values, or INVALID after a report."""
        if not isinstance(node, yaml.SequenceNode) or not 1 <= len(node.value) <= self.maximum:
            walk.report(path, f"expected {self.expected}, got {kind_of(node)}", line=line_of(node))
            return INVALID
        values = [
            self.item.read(walk, item, (*path, str(number)))
            for number, item in enumerate(node.value)
        ]
        if INVALID in values:
            return INVALID
        if len(set(values)) != len(values):
            walk.report(
                path, f"expected {self.expected}, got one of them twice", line=line_of(node)
            )
            return INVALID
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with known keys, read into a dataclass which holds the defaults.

    Attributes:
        into: The dataclass. A field without a default is a key that must be given.
        keys: Each key's kind.
        check: What one section's values must be to each other; reports what is not so.
        complete: Fills in what follows from other values, and checks names against each other.
            Gets whatever could be read, so that faults show beside those of other keys.
        hints: What to say about a key that does not exist, beside "did you mean".
    """

    into: type[Any]
    keys: Mapping[str, Kind]
    check: Callable[[Any, KeyPath, Report], None] | None = None
    complete: Callable[[dict[str, Any], Walk], None] | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """What a section is."""
        return "a section of keys and values"

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath, **given: Any) -> Any:
        """The dataclass, or INVALID after a report.

        Args:
            walk: What was found so far.
            node: The section.
            path: Its key.
            given: Values of fields that are not keys, such as the name of a named section.
        """
        before = len(walk.errors)
        if not isinstance(node, yaml.MappingNode) and not is_null(node):
            walk.report(path, f"expected {self.expected}, got {kind_of(node)}", line=line_of(node))
            return INVALID
        values = dict(given)
        defaults = defaults_of(self.into)
        for key, kind, value_node in self._known(walk, node, path):
            if is_null(value_node) and defaults.get(key, INVALID) is None:
                values[key] = None
            elif (value := kind.read(walk, value_node, (*path, key))) is not INVALID:
                values[key] = value
        if self.complete is not None:
            self.complete(values, walk)
        self._report_missing(walk, path, values)
        if len(walk.errors) > before:
            return INVALID
        try:
            result = self.into(**values)
        except ValueError as error:  # settings that refuse what contradicts itself
            walk.report(path, f"expected values that fit each other, got others: {error}")
            return INVALID
        if self.check is not None:
            self.check(result, path, walk.report)
        return result if len(walk.errors) == before else INVALID

    def _known(
        self, walk: Walk, node: yaml.Node, path: KeyPath
    ) -> Iterator[tuple[str, Kind, yaml.Node]]:
        for key, key_node, value_node in pairs(walk, node, path, self.expected):
            if key in self.keys:
                yield key, self.keys[key], value_node
                continue
            hint = self.hints.get(key) or did_you_mean(key, list(self.keys))
            known = ", ".join(self.keys)
            walk.report(
                (*path, key),
                "expected a known key, got one that does not exist here",
                hint or f"known keys here: {known}",
                line=line_of(key_node),
            )

    def _report_missing(self, walk: Walk, path: KeyPath, values: Mapping[str, Any]) -> None:
        for key, kind in self.keys.items():
            # A key that was met and could not be read has been reported already.
            required = key not in defaults_of(self.into)
            if required and key not in values and (*path, key) not in walk.lines:
                walk.report((*path, key), f"expected {kind.expected}, got nothing", "add this key")


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names, chosen by the user, to things of one kind.

    Attributes:
        name: What a name may be.
        item: What each name stands for; a Section or Tagged is given the name.
        placeholder: What stands for the name in documentation, such as `<peer>`.
        minimum: Fewest entries.
        maximum: Most entries.
    """

    name: Text
    item: Kind
    placeholder: str
    minimum: int
    maximum: int

    @property
    def expected(self) -> str:
        """What a mapping of this kind is."""
        if self.minimum == self.maximum:
            return f"exactly {self.minimum} entries of the form '{self.placeholder}: ...'"
        return f"{self.minimum} to {self.maximum} entries of the form '{self.placeholder}: ...'"

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """A dict of what could be read, or INVALID after a report if nothing could."""
        values: dict[str, Any] = {}
        names: set[str] = set()
        before = len(walk.errors)
        for name, key_node, value_node in pairs(walk, node, path, self.expected):
            names.add(name)
            if self.name.read(walk, key_node, (*path, name)) is INVALID:
                continue
            given = {"name": name} if isinstance(self.item, Section | Tagged) else {}
            value = self.item.read(walk, value_node, (*path, name), **given)
            if value is not INVALID:
                values[name] = value
        walk.names[path] = frozenset(names)
        if len(walk.errors) == before and not self.minimum <= len(names) <= self.maximum:
            walk.report(path, f"expected {self.expected}, got {len(names)}")
        return values


@dataclass(frozen=True, slots=True)
class Tagged:
    """A section whose `type` key says which keys it has."""

    types: Mapping[str, Section]

    @property
    def expected(self) -> str:
        """What such a section is."""
        return "a section with a type"

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath, **given: Any) -> Any:
        """The dataclass of that type, or INVALID after a report."""
        tag = self._tag(walk, node, path)
        if tag is None:
            return INVALID
        section = self.types[tag.value]
        rest = yaml.MappingNode(
            node.tag,
            [pair for pair in node.value if pair[1] is not tag],
            node.start_mark,
            node.end_mark,
        )
        return section.read(walk, rest, path, **given)

    def _tag(self, walk: Walk, node: yaml.Node, path: KeyPath) -> yaml.ScalarNode | None:
        """The value of `type`, or None after a report."""
        if not isinstance(node, yaml.MappingNode) and not is_null(node):
            walk.report(path, f"expected {self.expected}, got {kind_of(node)}", line=line_of(node))
            return None
        words = list(self.types)
        expected = "one of " + ", ".join(words)
        for key_node, value_node in node.value or ():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value != "type":
                continue
            walk.lines[(*path, "type")] = line_of(key_node)
            if isinstance(value_node, yaml.ScalarNode) and value_node.value in self.types:
                return value_node
            text = value_node.value if isinstance(value_node, yaml.ScalarNode) else ""
            got = shown(text) if text else kind_of(value_node)
            hint = did_you_mean(text, words)
            walk.report((*path, "type"), f"expected {expected}, got {got}", hint)
            return None
        walk.report((*path, "type"), f"expected {expected}, got nothing", "add this key")
        return None


def defaults_of(into: type[Any]) -> dict[str, Any]:
    """The default of each field of a dataclass that has one."""
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(into):
        if entry.default is not dataclasses.MISSING:
            defaults[entry.name] = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            defaults[entry.name] = entry.default_factory()
    return defaults
