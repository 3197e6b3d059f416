"""Specs as plain trees: ``to_tree`` and ``from_tree`` between frozen dataclasses and JSON values.

One strict reader and one writer serve every spec, so that ``sweep.json``, checkpoints and keys all
mean the same.  Values are ``None``, booleans, numbers, strings, tuples of them, nested specs, and
string-keyed mappings (held as :class:`Pairs`, so that specs hash).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from lora_lab.errors import SpecError, nearest

S = TypeVar("S")


class Pairs(tuple[tuple[str, Any], ...]):
    """A frozen mapping: sorted ``(key, value)`` pairs that hash. An object in JSON."""

    __slots__ = ()


_SCALARS = frozenset([type(None), bool, int, float, str])


def pairs(mapping: Mapping[str, Any] | Pairs | None = None) -> Pairs:
    """Freeze a mapping into sorted pairs, deeply (lists become tuples, mappings become pairs)."""
    items = dict(mapping or ())
    return Pairs(sorted((str(k), _freeze(v)) for k, v in items.items()))


def thaw(value: Any) -> Any:
    """Turn a frozen value (tuples, :class:`Pairs`) back into plain lists and dicts."""
    if isinstance(value, Pairs):
        return {k: thaw(v) for k, v in value}
    if isinstance(value, (tuple, list)):
        return [thaw(v) for v in value]
    return value


def to_tree(spec: Any) -> Any:
    """The JSON-ready tree of a spec: dicts, lists and scalars."""
    if type(spec) in _SCALARS:  # nearly all there is; the questions below are dear
        return spec
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {f.name: to_tree(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    if isinstance(spec, Pairs):
        return thaw(spec)
    if isinstance(spec, Mapping):
        return {str(k): to_tree(v) for k, v in spec.items()}
    if isinstance(spec, (tuple, list)):
        return [to_tree(v) for v in spec]
    return spec


def from_tree(kind: type[S], tree: Mapping[str, Any], where: str = "") -> S:
    """Build a spec of class ``kind`` from a tree; the inverse of :func:`to_tree`.

    Raises:
        SpecError: an unknown field (the nearest one is named) or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cast(Any, kind))}
    hints = _hints(cast(Any, kind))
    values: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{where}.{name}" if where else name
        if name not in fields:
            raise SpecError(f"{path}: no such field{nearest(name, fields)} Known: {', '.join(fields)}.")
        values[name] = _read(hints[name], value, path)
    missing = [
        n
        for n, f in fields.items()
        if n not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(f"{where or kind.__name__}: missing {', '.join(missing)}.")
    return kind(**values)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    # A study reads thousands of results, and finding the hints anew took nine tenths of that.
    return typing.get_type_hints(kind)


def at_path(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted config path of a tree; raises ``KeyError`` where there is none.

    A list of names is a set of switches: ``method.roles.query`` is whether ``query`` is in ``method.roles``.
    """
    value: Any = tree
    for part in path.split("."):
        if isinstance(value, (list, tuple)) and not isinstance(value, Pairs):
            return part in value
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(path)
        value = value[part]
    return value


def with_paths(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` with the value at each dotted path replaced (or added).

    Below a list of names, a true value puts the name in and a false one takes it out (see :func:`at_path`).
    """
    out: dict[str, Any] = _copy(tree)
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = out
        for part in parents[:-1]:
            node = node.setdefault(part, {})
        inner = node.setdefault(parents[-1], {}) if parents else node
        if isinstance(inner, (list, tuple)):
            rest = [name for name in inner if value or name != leaf]
            node[parents[-1]] = [*rest, leaf] if value and leaf not in rest else rest
        else:
            inner[leaf] = value
    return out


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return pairs(value)
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(v) for v in value)
    return value


def _read(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        rest = [o for o in options if o is not type(None)]
        for option in rest[:-1]:
            try:
                return _read(option, value, path)
            except SpecError:
                continue
        return _read(rest[-1], value, path)
    if hint is Pairs:
        if not isinstance(value, (Mapping, Pairs)):
            raise SpecError(f"{path}: expected a mapping, got {value!r}.")
        return pairs(value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path}: expected a group of fields, got {value!r}.")
        return from_tree(cast(type, hint), value, path)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise SpecError(f"{path}: expected a list, got {value!r}.")
        item = typing.get_args(hint)[0]
        return tuple(_read(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is Any:
        return _freeze(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type):
        if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
            raise SpecError(f"{path}: expected {hint.__name__}, got {value!r}.")
        return value
    raise SpecError(f"{path}: a field of type {hint} cannot be read.")
