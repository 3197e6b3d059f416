"""The structured schema of the Hydra tree, made from the specs.

No field is written twice: every group of the tree (``model``, ``data``, …) is the spec dataclass of that
name with its own defaults, in the types that OmegaConf knows. Tuples become lists, :class:`Pairs` become
free mappings (``dict[str, Any]``), ``X | None`` stays optional. A field that a spec gains is a config key
at once.

A run (``lora-lab train``) has the keys of :data:`RUN`, a sweep those of :data:`SWEEP`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from lora_lab.errors import ConfigError, nearest
from lora_lab.spec import Execution, LauncherSpec, Pairs, RunSpec, Sweep, TrackingSpec

MISSING = "???"
"""OmegaConf's mark of a key that must be given."""
FREE = dict[str, Any]
"""The type of a mapping with any names in it."""
RUN_GROUPS = ("model", "data", "method", "optimizer", "schedule")
SWEEP_GROUPS = ("sampler", "pruner", "tracking", "launcher")
GROUPS = RUN_GROUPS + SWEEP_GROUPS
"""The config groups: folders of ``conf/``, each chosen with ``group=option``."""
LOOSE = frozenset({"method.roles", "pack.max_lanes", "sweep.repeats", "sweep.objectives"})
"""Keys with several spellings (a list or ``query+value``; a number or ``auto``): checked when they are read."""


def _some(kind: type, *names: str) -> list[tuple[str, Any, Any]]:
    """The fields ``names`` of a spec (all of them if none is named), as ``make_dataclass`` takes them."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    copies = {
        name: dataclasses.field(default=f.default)
        if f.default_factory is dataclasses.MISSING
        else dataclasses.field(default_factory=f.default_factory)
        for name, f in fields.items()
    }
    return [(name, hints[name], copies[name]) for name in names or fields]


def _keys(name: str, *fields: tuple[str, Any, Any]) -> type:
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


SweepSection = _keys(
    "SweepSection",
    ("name", str | None, None),
    ("dir", str | None, None),
    ("space", Pairs, dataclasses.field(default_factory=Pairs)),
    *_some(Sweep, "objective", "objectives", "trials", "repeats", "seed", "enqueue", "imports", "stop"),
    ("constraints", tuple[str, ...], ()),
    *_some(Execution, "storage", "allow_code"),
)
PackSection = _keys("PackSection", *_some(Execution, "max_lanes"))
RunKeys = _keys("RunKeys", *_some(RunSpec), *_some(Execution, "device"), ("device_memory", str | None, None))
SweepKeys = _keys(
    "SweepKeys",
    *_some(RunKeys),
    *_some(Sweep, "sampler", "pruner"),
    ("tracking", TrackingSpec, dataclasses.field(default_factory=TrackingSpec)),
    ("launcher", LauncherSpec, dataclasses.field(default_factory=LauncherSpec)),
    ("pack", PackSection, dataclasses.field(default_factory=PackSection)),
    ("sweep", SweepSection, dataclasses.field(default_factory=SweepSection)),
)


@functools.cache
def structured(kind: type, path: str = "") -> type:
    """The OmegaConf-ready twin of frozen dataclass ``kind``, which stands at config path ``path``."""
    fields: list[tuple[str, Any, Any]] = []
    for name, hint, field in _some(kind):
        twin = _twin(hint, f"{path}.{name}" if path else name)
        fields.append((name, twin, _default(twin, field.default)))
    return dataclasses.make_dataclass(kind.__name__, fields)


def _default(twin: Any, default: Any) -> Any:
    if is_section(twin):
        return dataclasses.field(default_factory=twin)
    if is_free(twin):
        return dataclasses.field(default_factory=dict)
    if isinstance(default, tuple):
        return dataclasses.field(default_factory=functools.partial(list, default))
    return dataclasses.field(default=MISSING if default is dataclasses.MISSING else default)


def _twin(hint: Any, path: str) -> Any:
    if path in LOOSE:
        return Any
    if is_section(hint):
        return structured(hint, path)
    if hint is Pairs:
        return FREE
    if typing.get_origin(hint) is tuple:
        return types.GenericAlias(list, (_twin(typing.get_args(hint)[0], path),))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = [option for option in typing.get_args(hint) if option is not types.NoneType]
        return _twin(inner, path) | None
    return hint


def is_section(kind: Any) -> bool:
    """Whether a key of this type holds further named keys."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def is_free(kind: Any) -> bool:
    """Whether a key of this type is a mapping with any names in it."""
    return bool(kind == FREE)


RUN = structured(RunKeys)
SWEEP = structured(SweepKeys)


@functools.cache
def kinds(schema: type, prefix: str = "") -> Mapping[str, Any]:
    """Config path -> type of every key of ``schema``: sections, free mappings and values."""
    out: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(schema).items():
        path = f"{prefix}{name}"
        out[path] = kind
        if is_section(kind):
            out |= kinds(kind, f"{path}.")
    return out


def free_above(schema: type, path: str) -> str | None:
    """The free mapping of ``schema`` that ``path`` is, or lies in; ``None`` if there is none."""
    known = kinds(schema)
    parts = path.split(".")
    above = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next((key for key in above if is_free(known.get(key))), None)


def check_tree(schema: type, tree: Mapping[str, Any], where: str) -> None:
    """Refuse a tree whose keys or groups are not those of ``schema``; single values are left to OmegaConf.

    Args:
        schema: :data:`RUN` or :data:`SWEEP`.
        tree: plain nested dicts.
        where: what the tree was read from; begins the message.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or one value where a group of keys belongs.
    """
    known = kinds(schema)
    for path, value in _walk(tree):
        if free_above(schema, path) not in (None, path) or path.rpartition(".")[0] in LOOSE:
            continue
        if path not in known:
            raise ConfigError(f"{where}: {unknown_key(schema, path)}")
        if (is_section(known[path]) or is_free(known[path])) and not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {path} is a group of settings and cannot be {value!r}.{_members(known, path)}")


def unknown_key(schema: type, path: str) -> str:
    """The sentence that refuses config path ``path``, with the nearest path that ``schema`` has."""
    known = kinds(schema)
    if schema is RUN and path.split(".")[0] in kinds(SWEEP) and path.split(".")[0] not in known:
        return f"{path} is a setting of sweeps, and this is a single run; use it with `lora-lab sweep`."
    parts = path.split(".")
    good = next(n for n in range(len(parts)) if ".".join(parts[: n + 1]) not in known)
    section, rest = ".".join(parts[:good]), parts[good + 1 :]
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    guesses = [key for key in known if key.rpartition(".")[2] == parts[-1]]
    if rest or len(guesses) != 1:
        close = difflib.get_close_matches(parts[good], [key.rpartition(".")[2] for key in siblings], n=1, cutoff=0.5)
        guesses = [".".join(parts[:good] + close)] if close else ([section] if not siblings else [])
        if close and ".".join([guesses[0], *rest]) in known:
            guesses = [".".join([guesses[0], *rest])]
    hint = f"; did you mean {guesses[0]!r}?" if guesses else nearest(path, known)
    return f"no config key {path!r}{hint}{_members(known, section)}"


def _members(known: typing.Iterable[str], section: str) -> str:
    names = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    return f" {section or 'The config'} has {', '.join(names)}." if names else ""


def _walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``(path, value)`` of a tree, outer ones first."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        yield path, value
        if isinstance(value, Mapping):
            yield from _walk(value, f"{path}.")
