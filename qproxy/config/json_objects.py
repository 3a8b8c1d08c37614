"""A kind for what is sent on as JSON: a list of objects with members of any name.

Plain words are read as JSON reads them (`true`, `3`, `0.5`, `null`); whatever else is written, and
everything in quotes, is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from qproxy.config.document import line_of
from qproxy.config.walk import INVALID, KeyPath, Walk, is_core_tag, is_null, kind_of

#: Most objects in a list, members in an object and elements in a list inside one.
MAX_JSON_ITEMS: Final = 64
#: How deep lists and objects may nest in one of the objects.
MAX_JSON_DEPTH: Final = 4
#: Longest text, in characters.
MAX_JSON_TEXT_CHARS: Final = 1000

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,14})\Z")
_FRACTION: Final = re.compile(r"-?(0|[1-9][0-9]{0,14})\.[0-9]{1,15}\Z")
_WORDS: Final[Mapping[str, bool]] = {"true": True, "false": False}


class _Unfit(Exception):  # noqa: N818 - a signal inside this module
    """A node is no JSON value, or too much of one."""

    def __init__(self, node: yaml.Node, got: str) -> None:
        super().__init__(got)
        self.node = node
        self.got = got


class JsonObjects:
    """A list of at least one JSON object."""

    expected = "a list of JSON objects"

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """A tuple of dicts, or INVALID after a report."""
        try:
            values = _value(node, MAX_JSON_DEPTH + 1)
            if not isinstance(values, list) or not values:
                raise _Unfit(node, kind_of(node))
            for value, item in zip(values, node.value, strict=True):
                if not isinstance(value, dict) or not value:
                    raise _Unfit(item, f"{kind_of(item)} in it")
        except _Unfit as unfit:
            line = line_of(unfit.node)
            walk.report(path, f"expected {self.expected}, got {unfit.got}", line=line)
            return INVALID
        return tuple(values)


def _value(node: yaml.Node, depth: int) -> object:
    if not is_core_tag(node):
        raise _Unfit(node, "a value with a YAML tag")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if depth == 0:
        raise _Unfit(node, f"more than {MAX_JSON_DEPTH} levels")
    if len(node.value) > MAX_JSON_ITEMS:
        raise _Unfit(node, f"more than {MAX_JSON_ITEMS} values together")
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, depth - 1) for item in node.value]
    members: dict[str, object] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value or key.value in members:
            raise _Unfit(key, "a member without a name, or with that of another")
        members[_text(key)] = _value(value, depth - 1)
    return members


def _scalar(node: yaml.ScalarNode) -> object:
    text = _text(node)
    if node.style is not None:
        return text
    if is_null(node):
        return None
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text)
    return float(text) if _FRACTION.match(text) else text


def _text(node: yaml.ScalarNode) -> str:
    if len(node.value) > MAX_JSON_TEXT_CHARS or not node.value.isprintable():
        raise _Unfit(node, f"a text that is not printable or over {MAX_JSON_TEXT_CHARS} characters")
    return str(node.value)
