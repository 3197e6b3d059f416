"""Which modules of a base model a method is attached to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lora_lab.errors import MethodError
from lora_lab.models import check_mask
from lora_lab.spec import ROLES, MethodSpec

_LAYER = re.compile(r"\.(\d+)\.")


def target_modules(roles: Mapping[str, Sequence[str]], spec: MethodSpec, model: str) -> tuple[str, ...]:
    """Full names of the modules that ``spec`` adapts: those of its roles, within its layers.

    ``roles`` maps each role of the model (named ``model`` in messages) to full module names. ``spec.layers``
    limits roles inside decoder layers; the head lies in none of them and follows ``spec.roles`` alone. A fused
    module that several roles name is given once.

    Raises:
        MethodError: a role or a layer that matches no module.
        ModelError: some but not all roles of one fused matrix.
    """
    for role in spec.mask:
        if not roles.get(role):
            raise MethodError(
                f"method.roles: role {role!r} matches no module of {model}, which has "
                f"{', '.join(r for r in ROLES if roles.get(r)) or 'no roles'}. Drop it, or name its modules with "
                f"'model.roles={{{role}: [MODULE]}}'."
            )
    check_mask(roles, spec.mask, model)
    chosen = dict.fromkeys(name for role in spec.mask for name in roles[role])
    return in_layers(list(chosen), roles, spec, model) if chosen else ()


def in_layers(
    names: Sequence[str], roles: Mapping[str, Sequence[str]], spec: MethodSpec, model: str
) -> tuple[str, ...]:
    """Those of ``names`` that lie in ``spec.layers``, or in no layer.

    Raises:
        MethodError: a layer that the model does not have.
    """
    layers = layers_of(roles)
    missing = [layer for layer in spec.layers if layer not in layers]
    if missing:
        has = f"has layers {min(layers)} to {max(layers)}" if layers else "has no numbered layers"
        raise MethodError(f"method.layers: {missing} match no module; {model} {has}. Choose among those.")
    return tuple(name for name in names if not spec.layers or layer_of(name) in (None, *spec.layers))


def layers_of(roles: Mapping[str, Sequence[str]]) -> list[int]:
    """The numbers of a model's decoder layers."""
    return sorted({layer for names in roles.values() for name in names if (layer := layer_of(name)) is not None})


def down_modules(roles: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The last module of role ``mlp`` in each layer: the one that gives the feed-forward block's output."""
    return tuple({layer_of(name): name for name in roles.get("mlp", ())}.values())


def layer_of(name: str) -> int | None:
    """The decoder layer in a module's name: its first number (PEFT's ``layers_to_transform`` reads it so, too)."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def modules_of(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules ``names`` in the order of the model.

    Raises:
        MethodError: a name that the model does not have.
    """
    present, wanted = dict(model.named_modules()), set(names)
    missing = sorted(wanted - present.keys())
    if missing:
        raise MethodError(f"method.roles: no module is named {', '.join(missing[:5])}. Load the model again.")
    return {name: module for name, module in present.items() if name in wanted}


def linear_shape(module: Any) -> tuple[int, int]:
    """``(in, out)`` of a linear map, quantised or not, also where its weight is stored as ``(in, out)`` (Conv1D)."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.weight.shape[0]), int(module.weight.shape[1])


def roles_of(roles: Mapping[str, Sequence[str]], names: Sequence[str]) -> tuple[str, ...]:
    """The roles that any of the modules ``names`` plays, in canonical order."""
    return tuple(role for role in ROLES if set(names) & set(roles.get(role, ())))
