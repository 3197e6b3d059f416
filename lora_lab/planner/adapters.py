"""Adapters as the planner sees them: which modules carry one, and how large its parameters are.

One line a method in :data:`METHODS`. What the parameters do in a step is the packed step's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_lab.errors import ModelError
from lora_lab.methods import Attachment, LowRank, target_modules
from lora_lab.spec import MethodSpec, mask_name


@dataclass(frozen=True, eq=False)
class Target:
    """A linear map that carries an adapter: its module, the roles it plays, and its two sizes."""

    name: str
    module: nn.Module
    roles: tuple[str, ...]
    inputs: int
    outputs: int


def targets(model: nn.Module, roles: Mapping[str, tuple[str, ...]], method: MethodSpec, name: str) -> list[Target]:
    """The modules that ``method`` adapts, each once (a fused matrix plays several roles), in model order.

    ``roles`` is the model's, ``name`` what messages call it.

    Raises:
        ModelError: part of a fused matrix, or a module that is no linear map.
        MethodError: a role or a layer that matches no module.
    """
    chosen = set(target_modules(roles, method, name))
    return [
        Target(module_name, module, _played(module_name, roles, method), *linear_shape(module_name, module))
        for module_name, module in model.named_modules()
        if module_name in chosen
    ]


def _played(module: str, roles: Mapping[str, tuple[str, ...]], method: MethodSpec) -> tuple[str, ...]:
    return tuple(role for role in method.mask if module in roles[role])


def linear_shape(name: str, module: nn.Module) -> tuple[int, int]:
    """``(inputs, outputs)`` of a linear map: ``nn.Linear``, or GPT-2's ``Conv1D`` whose weight is transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and type(module).__name__ == "Conv1D":
        return int(weight.shape[0]), int(weight.shape[1])
    raise ModelError(f"{name}: a {type(module).__name__} is no linear map; name others by hand with model.roles.")


def _lora(target: Target, method: MethodSpec, device: str | None) -> LowRank:
    weight = target.module.weight
    assert isinstance(weight, Tensor)
    dtype = torch.promote_types(weight.dtype, torch.float32)  # as PEFT keeps them
    return LowRank(
        A=nn.Parameter(torch.empty(method.r, target.inputs, dtype=dtype, device=device)),
        B=nn.Parameter(torch.empty(target.outputs, method.r, dtype=dtype, device=device)),
        scaling=method.scaling,
    )


METHODS: Mapping[str, Callable[[Target, MethodSpec, str | None], LowRank]] = {"lora": _lora}
"""By name: the factors that a target gets, on a device (``None``: the default one)."""


def parameters_by_role(found: list[Target], method: MethodSpec) -> dict[str, int]:
    """Trainable parameters by role. A fused matrix counts once, under all it plays: ``query+key+value``."""
    counts: dict[str, int] = {}
    for target in found:
        role, factors = mask_name(target.roles), METHODS[method.name](target, method, "meta")
        counts[role] = counts.get(role, 0) + factors.A.numel() + factors.B.numel()
    return counts


def attachment(found: list[Target], method: MethodSpec) -> Attachment:
    """A lane's parameters without values: of the shapes, dtypes (float32, or float64 on a float64 base) and names
    that :func:`lora_lab.methods.attach` gives. Call it under a ``FakeTensorMode``: they can be large.
    """
    factors = {target.name: METHODS[method.name](target, method, None) for target in found}
    return Attachment(method, packable=True, factors=factors, dropout=method.dropout)
