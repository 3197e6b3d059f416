"""What a constraint may speak of: a run's values, and figures that are predicted before it trains.

The figures come from above (the planner predicts them; this room and the study's know nothing of it) through a
:data:`Figures`, and are asked for only where a constraint names them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lora_lab.errors import SpaceError, SpecError, nearest
from lora_lab.spec.expression import Expression
from lora_lab.spec.run import RunSpec
from lora_lab.spec.space import SWITCHED, Space, leaves
from lora_lab.spec.tree import Pairs, at_path, to_tree

FIGURES: Mapping[str, str] = {
    "parameters": "trainable parameters of the run",
    "total_parameters": "parameters of the base model",
    "peak_memory": "bytes at the peak of a step of this run alone, weights included",
    "flops_per_step": "floating-point operations of one optimizer step",
    "lanes_that_fit": "runs like this one that fit into the device's memory together",
}
"""Figures by name, with what they are."""

Figures = Callable[[RunSpec, str], float]
"""``figures(spec, name)`` predicts one of :data:`FIGURES` for a run.

Raises:
    LoraLabError: it cannot be predicted (a role the model lacks, a model that cannot be read).
"""


def check_constraint(constraint: Expression, base: RunSpec, space: Space) -> None:
    """Refuse a constraint that names what no run has, or what is null in every run of the sweep.

    Raises:
        SpaceError: the name, with the nearest that exists.
    """
    known = [*leaves(base), *derived(base), *FIGURES]
    for name in constraint.names:
        above = name.rpartition(".")[0]
        if name not in known and above not in SWITCHED and name not in space.paths:
            raise SpaceError(
                f"sweep.constraints: {constraint.text!r}: no value {name!r}{nearest(name, known)} "
                f"Names are config paths and {', '.join(FIGURES)}."
            )
        searched = any(path == name or path.startswith(f"{name}.") for path in space.paths)
        if not searched and name not in FIGURES and value_at(base, name) is None and not _tests_null(constraint, name):
            raise SpaceError(
                f"sweep.constraints: {constraint.text!r}: {name} is null in every run of this sweep; "
                f"set it, search it, or name another value{_instead(name, known)}"
            )


def violated(constraints: tuple[Expression, ...], spec: RunSpec, figures: Figures | None) -> str | None:
    """Why a run is refused: the first constraint that does not hold, with the values seen; ``None`` if all do.

    Raises:
        SpecError: a constraint has no value there (a null, a division by zero).
        LoraLabError: a figure that cannot be predicted.
    """
    seen: dict[str, Any] = {}

    def look_up(name: str) -> Any:
        if name not in seen:
            seen[name] = _figure(spec, name, figures) if name in FIGURES else value_at(spec, name)
        return seen[name]

    for constraint in constraints:
        if not constraint.holds(look_up):
            return f"{constraint.text} does not hold: {constraint.seen(look_up)}"
    return None


def value_at(spec: RunSpec, name: str) -> Any:
    """The value of a config path, or of a property of a part (``method.scaling``, ``method.effective_alpha``)."""
    part, _, rest = name.partition(".")
    holder = getattr(spec, part, None)
    if rest in derived_of(holder):
        return getattr(holder, rest)
    value = at_path(to_tree(spec), name)
    return tuple(value) if isinstance(value, list) else value


def derived(spec: RunSpec) -> list[str]:
    """The names of all properties of a run's parts that an expression can speak of."""
    fields = [field.name for field in dataclasses.fields(spec)]
    return [f"{name}.{inner}" for name in fields for inner in derived_of(getattr(spec, name))]


def derived_of(part: Any) -> list[str]:
    """The public properties of a part of a spec."""
    if not dataclasses.is_dataclass(part) or isinstance(part, Pairs):
        return []
    return [n for n, v in vars(type(part)).items() if isinstance(v, property) and not n.startswith("_")]


def _figure(spec: RunSpec, name: str, figures: Figures | None) -> float:
    if figures is None:
        raise SpecError(f"sweep.constraints: nothing here predicts {name}; open the study with figures=….")
    return figures(spec, name)


def _tests_null(constraint: Expression, name: str) -> bool:
    return f"{name} == null" in constraint.text or f"{name} != null" in constraint.text


def _instead(name: str, known: list[str]) -> str:
    others = {"method.alpha": "method.effective_alpha", "method.alpha_over_r": "method.effective_alpha"}
    return f", e.g. {others[name]}." if others.get(name) in known else "."
