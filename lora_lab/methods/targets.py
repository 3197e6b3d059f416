"""Which modules of a base model a method is attached to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
    layers = {layer for names in roles.values() for name in names if (layer := _layer_of(name)) is not None}
    missing = [layer for layer in spec.layers if layer not in layers]
    if spec.mask and missing:
        has = f"has layers {min(layers)} to {max(layers)}" if layers else "has no numbered layers"
        raise MethodError(f"method.layers: {missing} match no module; {model} {has}. Choose among those.")
    chosen = dict.fromkeys(name for role in spec.mask for name in roles[role])
    return tuple(name for name in chosen if not spec.layers or _layer_of(name) in (None, *spec.layers))


def _layer_of(name: str) -> int | None:
    """The decoder layer in a module's name: its first number (PEFT's ``layers_to_transform`` reads it so, too)."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None
