"""Dataclasses to JSON and back, strictly: an unknown or mistyped field is an error, and so is a
missing one that has no default.

One small codec serves the result files, pytest-benchmark's ``extra_info`` and the messages
between processes, so that a misspelt key can nowhere become a silent gap.
"""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


class DecodeError(ValueError):
    """JSON that does not have the shape of the wanted type; the message names the field."""


def encode(value: Any, *, sparse: bool = False) -> Any:
    """A JSON-ready copy of a dataclass, enum, sequence, mapping or scalar.

    Args:
        value: what to encode.
        sparse: fields that have their default are left out, so that an older reader, which does
            not know the latest ones, misses nothing.

    Raises:
        ValueError: a float is not finite (strict JSON has no NaN), or the type is unknown.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(item, sparse=sparse)
            for field in dataclasses.fields(value)
            if (item := getattr(value, field.name)) != field.default or not sparse
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item, sparse=sparse) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, sparse=sparse) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value}: strict JSON has no such number")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"{value!r}: {type(value).__name__} has no JSON form")


def decode(kind: type[T], data: Any, where: str = "") -> T:
    """Build ``kind`` from parsed JSON.

    Args:
        kind: a dataclass, enum, scalar, ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``.
        data: what ``json.loads`` returned.
        where: path of field names, for messages.

    Raises:
        DecodeError: the data does not have that shape.
    """
    return typing.cast(T, _decode(kind, data, where or getattr(kind, "__name__", str(kind))))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _decode(inner, data, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            raise DecodeError(f"{where}: {data!r} is none of {[m.value for m in kind]}") from None
    if origin is tuple:
        _expect(data, list, where)
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict:
        _expect(data, dict, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return _decode_float(data, where)
    _expect(data, kind, where)
    return data


def _decode_float(data: float, where: str) -> float:
    """JSON writes whole floats as integers, too; Python reads NaN and numbers beyond a float."""
    try:
        value = float(data)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise DecodeError(f"{where}: expected a finite float, found {value}")
    return value


def _decode_dataclass(kind: type, data: Any, where: str) -> Any:
    _expect(data, dict, where)
    hints = _hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise DecodeError(f"{where}: unknown field {unknown[0]!r}")
    values = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"{where}: {error}") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _expect(data: Any, kind: type, where: str) -> None:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise DecodeError(f"{where}: expected {kind.__name__}, found {type(data).__name__}")
