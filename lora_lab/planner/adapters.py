"""Adapters as the planner sees them: which modules carry one, how many parameters, and what they save.

One line a method in :data:`METHODS`. The low-rank path below computes and saves exactly what the training
loop's does, so that a trace of it is a trace of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.errors import ModelError
from lora_lab.methods.targets import target_modules
from lora_lab.planner.ledger import Ledger
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


def _lora_parameters(target: Target, method: MethodSpec) -> int:
    return method.r * (target.inputs + target.outputs)


def _mount_lora(target: Target, method: MethodSpec, dtype: torch.dtype, ledger: Ledger) -> list[nn.Parameter]:
    A = nn.Parameter(torch.empty(method.r, target.inputs, dtype=dtype))
    B = nn.Parameter(torch.empty(target.outputs, method.r, dtype=dtype))
    own = target.module.forward

    def forward(x: Tensor) -> Tensor:
        y = own(x)
        mask = None
        if method.dropout > 0:
            keep = 1.0 - method.dropout
            mask = torch.empty(x.numel() // x.shape[-1], x.shape[-1], dtype=dtype)
            mask.bernoulli_(keep).div_(keep)
        added: Tensor = _LowRankPath.apply(y, x, mask, A, B, method.scaling, ledger)
        return added

    target.module.forward = forward
    return [A, B]


class _LowRankPath(torch.autograd.Function):
    """``y (…, out) + scaling (x A^T) B^T`` in place, ``x (…, in)``; products are in the factors' dtype.

    Keeps ``x`` as it is (other modules that read it share it), the dropout mask and the scaled ``(rows, r)``
    product. Rows are cast for all lanes of a pack at once; what is workspace, its lanes make one after another.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, mask: Tensor | None, A: Tensor, B: Tensor, scaling: float, ledger: Ledger
    ) -> Tensor:
        flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        rows, out = flat_x.to(A.dtype), flat_y.to(A.dtype)
        with ledger.phase("workspace"):
            h = ((rows if mask is None else rows * mask) @ A.t()).mul_(scaling)
            out.addmm_(h, B.t())
        ledger.book(h, "activations")
        flat_y[:] = out
        ctx.save_for_backward(x, mask, A, B, h)
        ctx.scaling, ctx.ledger = scaling, ledger
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mask, A, B, h = ctx.saved_tensors
        flat_x, dy = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, grads[0].shape[-1])
        rows, g = flat_x.to(A.dtype), dy.to(A.dtype)
        back = torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
        with ctx.ledger.phase("workspace"):
            dh = (g @ B).mul_(ctx.scaling)
            dropped = rows if mask is None else rows * mask
            with ctx.ledger.phase("gradients"):
                dA, dB = dh.t() @ dropped, g.t() @ h
            del dropped
            if back is not None:
                torch.mm(dh, A, out=back)
                if mask is not None:
                    back.mul_(mask)
        dx = None
        if back is not None:
            dx = torch.zeros_like(flat_x)
            dx[:] = back
            dx = dx.view(x.shape)
        return grads[0], dx, None, dA, dB, None, None


@dataclass(frozen=True)
class _Method:
    """How many parameters a target gets, and how its path is put on the module for a trace."""

    parameters: Callable[[Target, MethodSpec], int]
    mount: Callable[[Target, MethodSpec, torch.dtype, Ledger], list[nn.Parameter]]


METHODS: Mapping[str, _Method] = {"lora": _Method(_lora_parameters, _mount_lora)}


def parameters_by_role(found: list[Target], method: MethodSpec) -> dict[str, int]:
    """Trainable parameters by role. A fused matrix counts once, under all it plays: ``query+key+value``."""
    counts: dict[str, int] = {}
    for target in found:
        role = mask_name(target.roles)
        counts[role] = counts.get(role, 0) + METHODS[method.name].parameters(target, method)
    return counts


def mount(found: list[Target], method: MethodSpec, ledger: Ledger) -> list[nn.Parameter]:
    """Put ``method``'s path on every target; returns the parameters (float32, or float64 on a float64 base)."""
    parameters: list[nn.Parameter] = []
    for target in found:
        weight = target.module.weight
        assert isinstance(weight, Tensor)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        parameters += METHODS[method.name].mount(target, method, dtype, ledger)
    return parameters
