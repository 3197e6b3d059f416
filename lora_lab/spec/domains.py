"""The kinds of values that a config path may be searched over: choices, ranges, masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from lora_lab.errors import SpaceError, SpecError, nearest
from lora_lab.spec.roles import Mask, all_masks, mask_of
from lora_lab.spec.tree import thaw

KINDS = ("choices", "int", "float", "masks")


@dataclass(frozen=True)
class Choices:
    """A finite list of values, in the order they were given."""

    values: tuple[Any, ...]

    def take(self, value: Any) -> tuple[Any] | None:
        """``(value,)`` as it stands in the list, or ``None``: ``True`` is not ``1``, but ``1`` is ``1.0``."""
        frozen = _frozen(value)
        for own in self.values:
            if own == frozen and isinstance(own, bool) == isinstance(frozen, bool):
                return (own,)
        return None


@dataclass(frozen=True)
class IntRange:
    """Integers from ``low`` to ``high`` inclusive, in steps of ``step`` or on a log scale."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def take(self, value: Any) -> tuple[int] | None:
        """``(value,)`` where it is in the range, or ``None``."""
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
        if not whole or not self.low <= value <= self.high or (not self.log and (value - self.low) % self.step):
            return None
        return (int(value),)


@dataclass(frozen=True)
class FloatRange:
    """Real numbers from ``low`` to ``high``, optionally in steps or on a log scale."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def take(self, value: Any) -> tuple[float] | None:
        """``(value,)`` where it is in the range (the nearest step, where it is within rounding of one), or ``None``."""
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not self.low <= value <= self.high:
            return None
        if self.step is None:
            return (float(value),)
        steps = (value - self.low) / self.step
        return (float(value),) if abs(steps - round(steps)) < 1e-6 else None


@dataclass(frozen=True)
class Masks:
    """A finite list of role masks; all 64 for ``masks: all``."""

    values: tuple[Mask, ...]

    def take(self, value: Any) -> tuple[Mask] | None:
        """``(mask,)`` in canonical order, or ``None``."""
        if not isinstance(value, (str, Sequence, Mapping)):
            return None
        try:
            mask = mask_of(value)
        except SpecError:
            return None
        return (mask,) if mask in self.values else None


Domain = Choices | IntRange | FloatRange | Masks


def read(path: str, tree: Any) -> Domain:
    """The domain of ``path`` as it stands in YAML.

    Raises:
        SpaceError: an unknown kind, an empty list, an inverted or impossible range.
    """
    where = f"sweep.space.{path}"
    if isinstance(tree, (list, tuple)):
        tree = {"choices": tree}
    if not isinstance(tree, Mapping) or len(tree) != 1:
        raise SpaceError(f"{where}: expected one of {', '.join(KINDS)}; got {tree!r}. E.g. {{choices: [2, 8, 32]}}.")
    ((kind, value),) = tree.items()
    if kind == "choices":
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise SpaceError(f"{where}: choices needs a list with at least one value, got {value!r}.")
        values = tuple(_frozen(v) for v in value)
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
    raise SpaceError(f"{where}: unknown kind of domain {kind!r}{nearest(kind, KINDS)}")


def write(domain: Domain) -> dict[str, Any]:
    """The inverse of :func:`read`."""
    match domain:
        case Choices(values):
            return {"choices": thaw(values)}
        case Masks(values):
            return {"masks": [list(v) for v in values]}
        case IntRange(low, high, step, log):
            return {"int": {"low": low, "high": high} | ({"log": True} if log else {"step": step})}
        case FloatRange(low, high, step, log):
            extra: dict[str, Any] = {"log": True} if log else ({} if step is None else {"step": step})
            return {"float": {"low": low, "high": high} | extra}


def listed(domain: Domain) -> list[Any] | None:
    """The values of a domain; ``None`` where it has no finite list of them."""
    match domain:
        case Choices(values) | Masks(values):
            return list(values)
        case IntRange(low, high, step, False):
            return list(range(low, high + 1, step))
        case FloatRange(low, high, float(step), False):
            return [step_of(domain, i) for i in range(int((high - low) / step + 1e-9) + 1)]
    return None


def step_of(domain: FloatRange, number: int) -> float:
    """The ``number``-th step (from 0) of a range in steps, as people would write it: 0.3, not 0.1 + 0.1 + 0.1."""
    return float(Decimal(str(domain.low)) + number * Decimal(str(domain.step)))


def ends(domain: Domain) -> list[Any]:
    """The values of a finite domain, the two ends of a range."""
    if isinstance(domain, (Choices, Masks)):
        return list(domain.values)
    return [domain.low, domain.high]


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


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
