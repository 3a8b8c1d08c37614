"""A YAML file as a tree of nodes that know their line, bounded against hostile files.

Only `compose` is used, never a constructor: what a scalar means is decided by the schema from
the text as written. That also leaves the traps of YAML 1.1 behind, where `off` is a boolean
and `1:30` is ninety.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from qproxy.errors import ConfigError
from qproxy.log import escape

#: Largest file read, in bytes.
MAX_FILE_BYTES: Final = 1024 * 1024
#: How deep mappings and lists may nest. The schema needs 6.
MAX_DEPTH: Final = 16
#: Most nodes in a document, an alias counted as everything it stands for.
MAX_NODES: Final = 50_000
#: Most aliases (`*name`) in a document.
MAX_ALIASES: Final = 256
#: Longest scalar, in characters.
MAX_SCALAR_CHARS: Final = 4096

_SECRET_LIKE: Final = re.compile(r"-----BEGIN|[0-9A-Fa-f]{32}|[A-Za-z0-9+/]{40,}=")
_MAX_SHOWN_CHARS: Final = 80


def read_document(path: Path) -> yaml.Node:
    """The root node of a file's only document.

    Raises:
        ConfigError: The file cannot be read, is no YAML, is empty or exceeds a limit.
    """
    text = _read_text(path)
    try:
        # The constructor already reads, and refuses what is not printable.
        root = _BoundedLoader(text, path).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        problem = escape(error.problem or "the text cannot be understood", 200)
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
        raise ConfigError(
            f"expected YAML: {problem}", file=path, line=line, hint=_yaml_hint(problem)
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            "expected printable text, got a control character", file=path, line=line
        ) from None
    if root is None:
        raise ConfigError(
            "expected a configuration, got an empty file", file=path, hint="see configs/"
        )
    return root


def line_of(node: yaml.Node) -> int:
    """The 1-based line a node begins on."""
    return int(node.start_mark.line) + 1


def shown(text: str) -> str:
    """A value of the file for an error message: quoted, bounded, and nothing like a secret."""
    if _SECRET_LIKE.search(text):
        return "a value that is not shown here because it may be a secret"
    return f"'{escape(text, _MAX_SHOWN_CHARS)}'"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"expected a file that can be read: {error.strerror or type(error).__name__}",
            file=path,
            hint="give the path of a YAML file; configs/ holds examples",
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"expected at most {MAX_FILE_BYTES} bytes, got more", file=path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("expected UTF-8 text, got other bytes", file=path, line=line) from None


def _yaml_hint(problem: str) -> str | None:
    if "\\t" in problem:
        return "indent with spaces; YAML does not allow tabs"
    if "mapping values are not allowed" in problem:
        return "check the indentation, and quote a value that holds ': '"
    return None


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's reader, scanner, parser and composer, with limits where they have none."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self._path = path
        self._depth = 0
        self._nodes = 0
        self._aliases = 0
        # id of a finished node -> nodes in it; a node that is not finished yet is not in here.
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node and everything in it, within the limits."""
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        if self._depth >= MAX_DEPTH:
            raise self._too_much(f"at most {MAX_DEPTH} levels of nesting", line)
        before = self._nodes
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            self._count_alias(node, line)
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MAX_NODES:
            raise self._too_much(f"at most {MAX_NODES} values, aliases expanded", line)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_SCALAR_CHARS:
            raise self._too_much(f"a value of at most {MAX_SCALAR_CHARS} characters", line)
        return node

    def _count_alias(self, node: yaml.Node | None, line: int) -> None:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise self._too_much(f"at most {MAX_ALIASES} aliases", line)
        if id(node) not in self._sizes:
            raise self._too_much("an alias to a value that is complete", line, "one inside itself")
        self._nodes += self._sizes[id(node)]

    def _too_much(self, limit: str, line: int, got: str = "more") -> ConfigError:
        return ConfigError(f"expected {limit}, got {got}", file=self._path, line=line)
