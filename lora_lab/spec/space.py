"""A search space: domains keyed by config path.

``Space`` knows nothing of samplers; the study turns its domains into parameters. A mask domain
(`method.roles: {masks: …}`) is six booleans ``method.roles.query`` … to a sampler and one value here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpaceError, nearest
from lora_lab.spec.roles import ROLES, Mask, all_masks, mask_name, mask_of
from lora_lab.spec.run import RunSpec
from lora_lab.spec.tree import to_tree

Point = Mapping[str, Any]
"""One value per searched config path."""


@dataclass(frozen=True)
class Choices:
    """A finite list of values, in the order they were given."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class IntRange:
    """Integers from ``low`` to ``high`` inclusive, in steps of ``step`` or on a log scale."""

    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True)
class FloatRange:
    """Real numbers from ``low`` to ``high``, optionally in steps or on a log scale."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Masks:
    """A finite list of role masks; all 64 for ``masks: all``."""

    values: tuple[Mask, ...]


Domain = Choices | IntRange | FloatRange | Masks


@dataclass(frozen=True)
class Space:
    """Named domains, in the order they were written.

    Make one with :meth:`from_tree`, which refuses what cannot be searched.
    """

    domains: tuple[tuple[str, Domain], ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The searched config paths."""
        return tuple(path for path, _ in self.domains)

    def grid(self) -> list[dict[str, Any]] | None:
        """Every point, first path slowest; ``None`` where a domain has no finite list of values."""
        lists = [_values(domain) for _, domain in self.domains]
        if any(values is None for values in lists):
            return None
        return [dict(zip(self.paths, p, strict=True)) for p in itertools.product(*[v or [] for v in lists])]

    def check(self, base: RunSpec) -> None:
        """Refuse a path that ``base`` does not have, and domain ends that no run accepts.

        Raises:
            SpaceError: the path is named, with the nearest one that exists.
            SpecError: a value of a domain that contradicts ``base`` or is out of its range.
        """
        known = _leaves(to_tree(base))
        for path, domain in self.domains:
            if path not in known:
                raise SpaceError(
                    f"sweep.space: no config path {path!r}{nearest(path, known)} "
                    "A path is group.field, as in method.r or optimizer.lr."
                )
            if path == "seed":
                raise SpaceError("sweep.space: seeds are repeats, not a domain; use sweep.repeats=N.")
            for value in _ends(domain):
                base.at({path: value})

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Space:
        """Read a space as it stands in YAML: ``{path: {choices|int|float|masks: …}}``.

        ``int`` and ``float`` take ``[low, high]`` or ``{low, high, step, log}``.

        Raises:
            SpaceError: an unknown kind of domain, an empty list, an inverted or impossible range.
        """
        return Space(tuple((path, _read(path, domain)) for path, domain in tree.items()))

    def to_tree(self) -> dict[str, Any]:
        """The inverse of :meth:`from_tree`."""
        return {path: _write(domain) for path, domain in self.domains}


def show(value: Any) -> str:
    """A searched value as people read it: ``8``, ``0.5``, ``query+value``, ``addition+dates``, ``none``."""
    if isinstance(value, (tuple, list)):
        if value and set(value) <= set(ROLES):
            return mask_name(mask_of(value))
        names = all(isinstance(v, str) for v in value)
        return "+".join(value) or "none" if names else str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(path: str, tree: Any) -> Domain:
    where = f"sweep.space.{path}"
    if isinstance(tree, (list, tuple)):
        tree = {"choices": tree}
    if not isinstance(tree, Mapping) or len(tree) != 1:
        raise SpaceError(
            f"{where}: expected one of choices, int, float, masks; got {tree!r}. E.g. {{choices: [2, 8, 32]}}."
        )
    ((kind, value),) = tree.items()
    if kind == "choices":
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise SpaceError(f"{where}: choices needs a list with at least one value, got {value!r}.")
        values = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if len(set(map(repr, values))) != len(values):
            raise SpaceError(f"{where}: choices holds a value twice: {list(value)}.")
        return Choices(values)
    if kind == "masks":
        masks = all_masks() if value == "all" else tuple(mask_of(m) for m in value or ())
        if not masks or len(set(masks)) != len(masks):
            raise SpaceError(f"{where}: masks needs 'all' or a list of different masks, got {value!r}.")
        if path != "method.roles":
            raise SpaceError(f"{where}: only method.roles is a mask.")
        return Masks(masks)
    if kind in ("int", "float"):
        return _range(where, kind, value)
    raise SpaceError(f"{where}: unknown kind of domain {kind!r}{nearest(kind, ('choices', 'int', 'float', 'masks'))}")


def _range(where: str, kind: str, value: Any) -> IntRange | FloatRange:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"low": value[0], "high": value[1]}
    if not isinstance(value, Mapping) or not {"low", "high"} <= set(value) <= {"low", "high", "step", "log"}:
        raise SpaceError(f"{where}: {kind} takes [low, high] or {{low, high, step, log}}, got {value!r}.")
    low, high, step, log = value["low"], value["high"], value.get("step"), bool(value.get("log", False))
    numbers = [low, high] + ([step] if step is not None else [])
    wanted = (int,) if kind == "int" else (int, float)
    if any(isinstance(n, bool) or not isinstance(n, wanted) or not math.isfinite(n) for n in numbers):
        raise SpaceError(f"{where}: {kind} needs finite {kind} numbers, got {dict(value)!r}.")
    if low > high:
        raise SpaceError(f"{where}: low={low} is above high={high}; swap them.")
    if step is not None and step <= 0:
        raise SpaceError(f"{where}: step must be positive, got {step}.")
    if log and low <= 0:
        raise SpaceError(f"{where}: a log range cannot start at or below zero, got low={low}.")
    if log and step is not None:
        raise SpaceError(f"{where}: log and step exclude each other; drop one.")
    if kind == "int":
        return IntRange(low, high, 1 if step is None else step, log)
    return FloatRange(float(low), float(high), None if step is None else float(step), log)


def _write(domain: Domain) -> dict[str, Any]:
    match domain:
        case Choices(values):
            return {"choices": [list(v) if isinstance(v, tuple) else v for v in values]}
        case Masks(values):
            return {"masks": [list(v) for v in values]}
        case IntRange(low, high, step, log):
            return {"int": {"low": low, "high": high} | ({"log": True} if log else {"step": step})}
        case FloatRange(low, high, step, log):
            extra: dict[str, Any] = {"log": True} if log else ({} if step is None else {"step": step})
            return {"float": {"low": low, "high": high} | extra}


def _values(domain: Domain) -> list[Any] | None:
    match domain:
        case Choices(values) | Masks(values):
            return list(values)
        case IntRange(low, high, step, False):
            return list(range(low, high + 1, step))
        case FloatRange(low, high, float(step), False):
            return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
    return None


def _ends(domain: Domain) -> list[Any]:
    if isinstance(domain, (Choices, Masks)):
        return list(domain.values)
    return [domain.low, domain.high]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for name, value in tree.items():
        path = f"{prefix}{name}"
        out += _leaves(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return out
