"""Values as JSON has them, to the annotated dataclasses they were; every type is checked."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: Characters of another package's message that are repeated.
_LONGEST = 200


def one_line(error: BaseException) -> str:
    """First line of an error's message, of at most 200 characters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= _LONGEST else lines[0][:_LONGEST] + " ..."


def different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of a JSON object's pairs (an ``object_pairs_hook``).

    Raises
    ------
    ValueError
        A key stands there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"expected each setting once, found {reprlib.repr(key)} twice")
        found[key] = value
    return found


def from_plain(value: Any, kind: Any, where: str) -> Any:
    """Turn a plain value into the type `kind`.

    Parameters
    ----------
    value
        Of dictionaries, lists, strings, numbers, True, False and None.
    kind
        A dataclass, ``str``, ``int``, ``float``, ``bool``, ``None``, or literals, homogeneous
        tuples, mappings and unions of such.
    where
        What errors call the value.

    Raises
    ------
    ValueError
        The value, or some part of it, is of another type; a field is missing or unknown.
    """
    origin, of = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(value, kind, where)
    if origin is tuple and isinstance(value, list):
        return tuple(from_plain(item, of[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {
            key: from_plain(item, of[1], f"{where}[{reprlib.repr(key)}]")
            for key, item in value.items()
        }
    if origin in (Union, UnionType):
        for one in of:
            with suppress(ValueError):
                return from_plain(value, one, where)
    if origin is Literal and value in of:
        return value
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{where}: expected {_described(kind)}, found {reprlib.repr(value)}")


def _dataclass(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise ValueError(
                f"{where}: unknown setting {reprlib.repr(name)}; settings are {list(fields)}"
            )
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or (
            field.default_factory is not dataclasses.MISSING
        )
        if name not in value and not optional:
            raise ValueError(f"{where}: expected the setting {name!r}, found none")
    return kind(**{k: from_plain(v, hints[k], f"{where}.{k}") for k, v in value.items()})


def _described(kind: Any) -> str:
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_described(one) for one in of)
    if origin is Literal:
        return "one of " + ", ".join(repr(one) for one in of)
    if dataclasses.is_dataclass(kind) or origin is Mapping:
        return "a mapping"
    if origin is tuple:
        return "a list"
    return {float: "a number", NoneType: "None"}.get(kind, getattr(kind, "__name__", str(kind)))
