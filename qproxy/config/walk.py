"""The walk over a configuration's nodes: what it carries, and how it says what is wrong.

A fault never stops the walk. A value that cannot be read becomes `INVALID`, is reported once,
and the walk goes on, so that one run shows everything that is wrong with a file.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from qproxy.config.document import line_of, shown
from qproxy.errors import ConfigError
from qproxy.log import escape

#: Faults reported for one file; a file with more has one cause, and the first ones name it.
MAX_ERRORS: Final = 100

KeyPath = tuple[str, ...]
Report = Callable[[KeyPath, str, str | None], None]

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TAG: Final = "tag:yaml.org,2002:"


class _Invalid(enum.Enum):
    INVALID = "invalid"


#: Stands for a value that could not be read and has been reported.
INVALID: Final = _Invalid.INVALID


class Mismatch(Exception):  # noqa: N818 - a signal inside this module, never an error of the program
    """A value is not of its kind.

    Attributes:
        got: What came, fit to be shown; None means the text as written.
        hint: What to do next.
    """

    def __init__(self, got: str | None = None, hint: str | None = None) -> None:
        super().__init__(got)
        self.got = got
        self.hint = hint


@dataclass(slots=True)
class Walk:
    """What one reading of a file has found so far.

    Attributes:
        file: The file.
        base: Directory that relative paths start from.
        errors: Everything wrong so far, at most MAX_ERRORS.
        lines: Line of each key met, by path.
        names: Names met in each mapping of named things, readable or not.
        references: Where a name was used, the mapping it should be in, and the name.
    """

    file: Path
    base: Path
    errors: list[ConfigError] = field(default_factory=list)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    names: dict[KeyPath, frozenset[str]] = field(default_factory=dict)
    references: list[tuple[KeyPath, KeyPath, str]] = field(default_factory=list)

    def report(
        self, path: KeyPath, message: str, hint: str | None = None, *, line: int | None = None
    ) -> None:
        """Note an error at a key; its line is that of the nearest key above which was met."""
        if len(self.errors) >= MAX_ERRORS:
            return
        known = path
        while line is None and known:
            line = self.lines.get(known)
            known = known[:-1]
        key = escape(".".join(path), 200) or None
        self.errors.append(ConfigError(message, file=self.file, line=line, key=key, hint=hint))


class Kind(Protocol):
    """One sort of value."""

    @property
    def expected(self) -> str:
        """What it is, as in "expected ..., got ..."."""

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """The value, or INVALID after a report."""


def pairs(
    walk: Walk, node: yaml.Node, path: KeyPath, expected: str
) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Key text, key and value of each entry of a mapping; reports what is no such thing.

    An empty section counts as one without keys: everything in it may be commented out.
    """
    if is_null(node):
        return
    if not isinstance(node, yaml.MappingNode) or not is_core_tag(node):
        walk.report(path, f"expected {expected}, got {kind_of(node)}", line=line_of(node))
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = line_of(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            walk.report(path, f"expected a key, got {kind_of(key_node)}", line=line)
            continue
        key = key_node.value
        if key == "<<" and key_node.style is None:
            hint = "repeat the keys, or give a whole section an alias"
            walk.report(path, "expected a key, got a YAML merge '<<'", hint, line=line)
        elif key in seen:
            message = f"expected each key once, got it again (first on line {seen[key]})"
            walk.report((*path, key), message, "remove one of the two", line=line)
        else:
            seen[key] = line
            walk.lines[(*path, key)] = line
            yield key, key_node, value_node


def did_you_mean(word: str, known: list[str]) -> str | None:
    """A hint with the known word that is nearest to one that is not known."""
    near = difflib.get_close_matches(word[:64], known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


def is_null(node: yaml.Node) -> bool:
    """Whether nothing is written, or one of YAML's words for it."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def is_core_tag(node: yaml.Node) -> bool:
    """Whether a node has no tag of its own, or one that changes nothing."""
    return str(node.tag).startswith(_TAG) and "python" not in str(node.tag)


def kind_of(node: yaml.Node) -> str:
    """What came, for "expected ..., got ..."."""
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if is_null(node):
        return "nothing"
    return shown(node.value) if isinstance(node.value, str) else "something else"
