"""From the plain form of a snapshot, as ``document`` writes it, back to its dataclasses.

For what one process of a gateway tells another: values of the wrong form are refused, fields that
are not known are passed over.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import types
import typing
from typing import Any, TypeVar

ModelT = TypeVar("ModelT")


def decode(kind: type[ModelT], plain: object) -> ModelT:
    """A dataclass of the given kind.

    Raises:
        ValueError: it is not what the dataclass's types say.
    """
    try:
        result = _decode(kind, plain)
    except (TypeError, KeyError, RecursionError):
        raise ValueError(f"no {kind.__name__}") from None
    return typing.cast("ModelT", result)


def _decode(kind: Any, plain: Any) -> Any:
    origin = typing.get_origin(kind)
    if kind is types.NoneType:
        return _expect(plain is None, None)
    if origin in {types.UnionType, typing.Union}:
        inner = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return None if plain is None else _decode(inner[0], plain)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return _expect(isinstance(plain, list), lambda: tuple(_decode(item, e) for e in plain))
    if origin is collections.abc.Mapping:
        key, item = typing.get_args(kind)
        return _expect(
            isinstance(plain, dict),
            lambda: {_decode(key, k): _decode(item, v) for k, v in plain.items()},
        )
    if dataclasses.is_dataclass(kind):
        return _expect(isinstance(plain, dict), lambda: _decode_dataclass(kind, plain))
    if issubclass(kind, enum.Enum):
        return kind(plain)
    if kind is float:
        number = isinstance(plain, int | float) and not isinstance(plain, bool)
        return _expect(number, lambda: float(plain))
    return _expect(type(plain) is kind, plain)


def _decode_dataclass(kind: Any, plain: dict[str, Any]) -> Any:
    hints = _hints(kind)
    return kind(
        **{
            entry.name: _decode(hints[entry.name], plain[entry.name])
            for entry in dataclasses.fields(kind)
        }
    )


def _expect(fits: bool, value: Any) -> Any:
    if not fits:
        raise ValueError("a value of another type than expected")
    return value() if callable(value) else value


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)
