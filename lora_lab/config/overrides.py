"""Overrides of the command line: what they may say, and the spellings that Hydra alone does not take.

Hydra parses them (its override grammar, its quoting). Beyond Hydra, an override may

- add a name to a free mapping without a ``+``: ``data.columns.output=response``;
- say ``device.memory=24GB`` for ``device_memory=24GB``;
- choose a strategy where the sweep file writes it: ``sweep.sampler=tpe`` is ``sampler=tpe``;
- speak of one domain of the search space, whose names hold dots (:func:`edit_space`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from lora_lab.config.places import options
from lora_lab.config.schema import GROUPS, SWEEP, check_tree, free_above, is_free, is_section, kinds, unknown_key
from lora_lab.errors import ConfigError, nearest
from lora_lab.spec.space import SWITCHED

SPACE = "sweep.space"
DOMAINS = ("choices", "int", "float", "masks", "when")
"""What a domain is made of: one of the kinds, and the condition under which it is searched."""
PATHS = {
    "model": "A hub id or a local folder is given as model=hf model.path={value}.",
    "data": "A file is given as data=alpaca data.path={value} (or data=chat, data=text).",
}
"""What to do when a group is given a path instead of an option."""


@dataclass(frozen=True)
class Overrides:
    """Overrides, checked and sorted by what they speak of."""

    hydra: tuple[str, ...]
    """For Hydra, in the order given, in Hydra's own spelling."""
    groups: Mapping[str, str]
    """Config group -> option chosen."""
    space: tuple[Override, ...]
    """Edits of the search space, for :func:`edit_space`."""


def read_overrides(schema: type, lines: Sequence[str], *, multirun: bool = False) -> Overrides:
    """Check the overrides ``lines`` against ``schema`` (``schema.RUN`` or ``schema.SWEEP``).

    Raises:
        ConfigError: one that does not parse, an unknown key with the nearest known one, several values
            where one belongs (unless ``multirun``).
    """
    hydra: list[str] = []
    groups: dict[str, str] = {}
    space: list[Override] = []
    for override in (parse(_spelled(schema, line)) for line in lines):
        line = str(override.input_line)
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            hydra.append(line)
        elif schema is SWEEP and (key == SPACE or key.startswith(f"{SPACE}.")):
            space.append(override)
        elif _is_choice(schema, override):
            option = _option(schema, override, multirun)
            if isinstance(option, str):
                groups[key] = option
            hydra.append(line.lstrip("+"))
        else:
            _check_key(schema, override, multirun)
            free = free_above(schema, key) is not None and not override.is_delete()
            hydra.append(f"++{line.lstrip('+')}" if free else line.lstrip("+"))
    return Overrides(tuple(hydra), groups, tuple(space))


def parse(line: str) -> Override:
    """One override, parsed by Hydra's grammar.

    Two things beyond it: a dot in a key may be written ``\\.``, as OmegaConf does, and a text without brackets,
    commas and quotes needs no quotes, whatever else is in it (``~/lab``, ``runs/lr=0.1``, ``a#1``).

    Raises:
        ConfigError: it does not parse.
    """
    key, equals, value = line.partition("=")
    if not key.strip("+~") or not (equals or line.startswith("~")):
        raise ConfigError(f"override {line!r} cannot be read; write it as key=value, e.g. method.r=16.")
    key = key.replace("\\.", ".")
    parser = OverridesParser.create()
    try:
        return parser.parse_override(key + equals + value)
    except HydraException as error:
        if value and not set(value) & set("[]{}(),'\"\\"):
            with contextlib.suppress(HydraException):
                return parser.parse_override(f'{key}="{value}"')
        bare = value.replace('"', "").replace("'", "")
        raise ConfigError(
            f"override {line!r} cannot be read; brackets and quotes must close, and a text that holds any of "
            f"[]{{}}(),\"' is quoted twice: '{key}=\"{bare}\"'."
        ) from error


def _spelled(schema: type, line: str) -> str:
    """``sweep.sampler…`` and ``sweep.pruner…`` as the group that they are, ``device.memory`` as the key."""
    bare = line.lstrip("+~")
    if bare.startswith("device.memory="):
        return line.replace("device.memory", "device_memory", 1)
    if schema is SWEEP and bare.startswith(("sweep.sampler", "sweep.pruner")):
        return line.replace("sweep.", "", 1)
    return line


def _is_choice(schema: type, override: Override) -> bool:
    """Whether it chooses an option of a config group (a mapping sets keys of the group instead)."""
    group = override.key_or_group
    return group in GROUPS and group in kinds(schema) and not isinstance(override.value(), Mapping)


def _option(schema: type, override: Override, multirun: bool) -> object:
    group, line = override.key_or_group, override.input_line
    if override.is_delete():
        raise ConfigError(f"override {line!r}: a group cannot be left out; choose another option with {group}=OPTION.")
    if override.package is not None:
        raise ConfigError(f"override {line!r}: a group has one place here; write {group}=OPTION.")
    if override.is_sweep_override():
        _refuse_several(schema, override, multirun)
        return None
    value = override.value()
    if not isinstance(value, str):
        raise ConfigError(f"override {line!r}: {group} takes the name of an option, not {value!r}.")
    if set(value.split("/")) & {"", ".", ".."}:
        known = options(group)
        raise ConfigError(
            f"{group}: no option {value!r}{nearest(value, known)} Options: {', '.join(known)}. "
            + PATHS.get(group, "").format(value=value)
        )
    return value


def _check_key(schema: type, override: Override, multirun: bool) -> None:
    key, line = override.key_or_group, override.input_line
    known = kinds(schema)
    free = free_above(schema, key)
    if override.package is not None or "/" in key:
        raise ConfigError(f"override {line!r}: no config group {key!r}{nearest(key, GROUPS)}")
    if override.is_delete():
        if free in (None, key):
            raise ConfigError(f"override {line!r}: a setting cannot be removed; set it to another value, or to null.")
        return
    if free is None and key not in known:
        raise ConfigError(f"override {line!r}: {unknown_key(schema, key)}")
    if override.is_sweep_override():
        _refuse_several(schema, override, multirun)
        return
    value = override.value()
    if free is None or free == key or is_section(known.get(key)):
        tree: Any = value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        check_tree(schema, tree, f"override {line!r}")


def _refuse_several(schema: type, override: Override, multirun: bool) -> None:
    line = str(override.input_line)
    key, _, values = line.partition("=")
    if multirun:
        if not override.is_discrete_sweep():
            raise ConfigError(f"override {line!r}: --multirun needs single values, as in {key}=1,2,3.")
        return
    simple = override.value_type == ValueType.SIMPLE_CHOICE_SWEEP
    way = (
        f"search it with {SPACE}.{key}=[{values if simple else '…'}]"
        if schema is SWEEP
        else "add --multirun to run each"
    )
    one = f", or write [{values}] for a list and '\"{values}\"' for a text with commas" if simple else ""
    raise ConfigError(f"override {line!r} gives several values; {way}{one}.")


def edit_space(space: Mapping[str, Any], edits: Sequence[Override]) -> dict[str, Any]:
    """The search space ``space`` (config path -> domain) after the overrides ``edits``.

    ====================================================  ==============================================
    ``'sweep.space={method.r: {choices: [4, 16]}}'``      the whole space is this
    ``'+sweep.space={method.r: {choices: [4, 16]}}'``     these domains are added or replaced
    ``sweep.space.method.r=[4,16]``                       one domain is added or replaced
    ``sweep.space.method.r.choices=[4,16]``               the same
    ``'sweep.space.optimizer.lr.float=[1e-5,1e-3]'``      the same, of another kind
    ``sweep.space.optimizer.lr.float.log=true``           one entry of a range is set
    ``sweep.space.method.r.when='method.dropout > 0'``    the domain gets a condition
    ``~sweep.space.method.r``                             one domain is removed
    ====================================================  ==============================================

    ``4,16`` is read as ``[4,16]``.

    Raises:
        ConfigError: a domain to be removed is not there, or the value is no mapping of domains.
    """
    out = flat_space(space)
    for edit in edits:
        line, path = edit.input_line, edit.key_or_group[len(SPACE) + 1 :]
        if edit.is_delete():
            if path and path not in out:
                raise ConfigError(f"override {line!r}: the space has no {path!r}{nearest(path, out)}")
            out = {key: domain for key, domain in out.items() if path and key != path}
        elif not path:
            value = edit.value()
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(
                    f"override {line!r}: the space is a mapping, as in '{SPACE}={{method.r: {{choices: [4, 16]}}}}'; "
                    f"got {value!r}."
                )
            kept = out if edit.is_add() or edit.is_force_add() else {}
            out = kept | flat_space(value or {})
        else:
            out = _set_domain(out, path, _value(edit))
    return out


def _set_domain(space: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    known = kinds(SWEEP)
    parts = path.split(".")
    at = next((n for n in range(len(parts) - 1, 0, -1) if parts[n] in DOMAINS), None)
    if at is None:
        above, kind = ".".join(parts[:-1]), parts[-1]
        single = above in known and above not in SWITCHED
        if single and not is_section(known[above]) and not is_free(known[above]):
            raise ConfigError(
                f"{SPACE}.{path}: no kind of domain {kind!r}{nearest(kind, DOMAINS)} Kinds: {', '.join(DOMAINS)}."
            )
        return space | flat_space({path: value})
    name, kind, inner = ".".join(parts[:at]), parts[at], parts[at + 1 :]
    if inner:
        old = space.get(name, {})
        old = old.get(kind, {}) if isinstance(old, Mapping) else {}
        if isinstance(old, Sequence) and len(old) == 2:
            old = dict(zip(("low", "high"), old, strict=True))
        value = dict(old) | {".".join(inner): value}
    return space | {name: _entries(space.get(name), kind) | {kind: value}}


def _entries(domain: Any, kind: str) -> dict[str, Any]:
    """What stays of a domain when its entry ``kind`` is set: its condition, or where that is set its values."""
    entries = dict(domain) if isinstance(domain, Mapping) else {} if domain is None else {"choices": domain}
    return {name: entry for name, entry in entries.items() if (name == "when") != (kind == "when")}


def _value(edit: Override) -> Any:
    if not edit.is_sweep_override():
        return edit.value()
    if edit.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        key, _, values = str(edit.input_line).partition("=")
        return parse(f"{key}=[{values}]").value()
    raise ConfigError(
        f"override {edit.input_line!r}: write a list as [4, 16] and a range as '{{int: [1, 64]}}', "
        "'{float: {low: 1e-5, high: 1e-3, log: true}}'; both ends are included."
    )


def flat_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """A space whose paths may be nested (``method: {r: …}``) as config path -> domain."""
    known = kinds(SWEEP)
    out: dict[str, Any] = {}

    def add(prefix: str, tree: Mapping[str, Any]) -> None:
        for name, domain in tree.items():
            path = f"{prefix}{name}"
            if is_section(known.get(path)) and isinstance(domain, Mapping):
                add(f"{path}.", domain)
            else:
                out[path] = domain

    add("", space)
    return out
