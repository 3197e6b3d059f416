"""A space as Optuna parameters, and back.

Every searched path is one parameter of the same name, except a mask, which is six booleans
``method.roles.query`` … ``method.roles.head``: so a sampler can learn what one role is worth, and an
importance can be told role by role. A path whose condition does not hold has no parameter in that trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lora_lab.errors import SpecError
from lora_lab.spec import (
    ROLES,
    Choices,
    Domain,
    FloatRange,
    IntRange,
    Mask,
    Masks,
    Point,
    RunSpec,
    Space,
    mask_of,
    thaw,
)

MASK_PATH = "method.roles"


def masks_of(space: Space) -> tuple[Mask, ...] | None:
    """The masks a space allows, in its order; ``None`` where it does not search them."""
    for path, domain in space.domains:
        if path == MASK_PATH and isinstance(domain, (Choices, Masks)):
            return tuple(dict.fromkeys(mask_of(value) for value in domain.values))
    return None


def role_parameter(role: str) -> str:
    """The name of the boolean that switches ``role``."""
    return f"{MASK_PATH}.{role}"


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each parameter, in the space's order; a trial has those that are searched there."""
    out: dict[str, BaseDistribution] = {}
    for path, domain in space.domains:
        out |= _parameters(path, domain)
    return out


def suggest(trial: optuna.Trial, space: Space, base: RunSpec) -> dict[str, Any]:
    """Ask the study's sampler for a point, parents of a condition first; goes on where an earlier call was cut off."""

    def choose(path: str, domain: Domain) -> Any:
        values = {name: _suggested(trial, name, wanted) for name, wanted in _parameters(path, domain).items()}
        return _decoded(path, domain, values)

    return space.walk(base, choose)


def whole(space: Space, base: RunSpec, values: Mapping[str, Any]) -> bool:
    """Whether ``values`` are all the parameters of a point: a process may have died while it asked for them."""
    missing = False

    def choose(path: str, domain: Domain) -> Any:
        nonlocal missing
        if missing or not _parameters(path, domain).keys() <= values.keys():
            missing = True
            return None
        return _decoded(path, domain, values)

    try:
        space.walk(base, choose)
    except SpecError:
        return False
    return not missing


def encode(space: Space, point: Point) -> dict[str, Any]:
    """The parameter values of a point, or of a part of one."""
    out: dict[str, Any] = {}
    for path, domain in space.domains:
        if path not in point:
            continue
        if path == MASK_PATH:
            mask = mask_of(point[path])
            out |= {role_parameter(role): role in mask for role in ROLES}
        else:
            out[path] = _encoded(domain, point[path])
    return out


def decode(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The point of some parameter values; the inverse of :func:`encode` (masks come back in canonical order)."""
    return {
        path: _decoded(path, domain, values)
        for path, domain in space.domains
        if _parameters(path, domain).keys() <= values.keys()
    }


def _parameters(path: str, domain: Domain) -> dict[str, BaseDistribution]:
    if path == MASK_PATH:
        return {role_parameter(role): CategoricalDistribution((False, True)) for role in ROLES}
    return {path: _distribution(domain)}


def _decoded(path: str, domain: Domain, values: Mapping[str, Any]) -> Any:
    if path == MASK_PATH:
        return mask_of({role: values[role_parameter(role)] for role in ROLES})
    if isinstance(domain, Choices) and not _plain(domain):
        return {_code(value): value for value in domain.values}[values[path]]
    return values[path]


def _suggested(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> Any:
    match wanted:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, wanted.choices)
        case IntDistribution():
            return trial.suggest_int(name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
        case FloatDistribution():
            return trial.suggest_float(name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
    raise AssertionError(f"no parameter is of a {type(wanted).__name__}")


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Choices(values):
            return CategoricalDistribution(values if _plain(domain) else [_code(value) for value in values])
        case IntRange(low, high, step, log):
            return IntDistribution(low, high if log else low + (high - low) // step * step, log=log, step=step)
        case FloatRange(low, high, None, log):
            return FloatDistribution(low, high, log=log)
        case FloatRange(low, high, float(step), _):
            # In decimals, as people wrote them: Optuna warns of a high end that the steps miss by a rounding error.
            steps = (Decimal(str(high)) - Decimal(str(low))) // Decimal(str(step))
            return FloatDistribution(low, float(Decimal(str(low)) + steps * Decimal(str(step))), step=step)
    raise AssertionError(f"a domain of masks outside {MASK_PATH}: {domain!r}")


def _encoded(domain: Domain, value: Any) -> Any:
    match domain:
        case Choices():
            return value if _plain(domain) else _code(value)
        case FloatRange(low, high):
            return min(max(value, low), high)  # a grid's last step may lie a rounding error beyond the end
    return value


def _plain(domain: Choices) -> bool:
    """True where Optuna can hold the values as they are: scalars, no two equal (``True == 1 == 1.0`` collide)."""
    scalars = all(value is None or isinstance(value, (bool, int, float, str)) for value in domain.values)
    return scalars and len(set(domain.values)) == len(domain.values)


def _code(value: Any) -> str:
    """A choice as JSON text, for values that Optuna cannot hold or would confuse."""
    return json.dumps(thaw(value))
