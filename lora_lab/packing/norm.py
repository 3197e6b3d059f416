"""Root-mean-square norm of a residual stream, and the addition before it, in one pass over the rows.

Arithmetic as in transformers' ``LlamaRMSNorm``: statistics in float32, the normalised rows rounded to the model's dtype
before they are weighted. The norm's weight is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.packing import native


def add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module, kernels: str) -> tuple[Tensor, Tensor]:
    """``(x + delta, norm(x + delta))`` of ``(rows, d)`` tensors; ``delta`` ``None`` adds nothing."""
    if not native.usable(x, kernels):
        total = x if delta is None else x + delta
        return total, norm(total)
    weight, eps = norm.weight, float(norm.variance_epsilon)  # type: ignore[arg-type]
    if delta is None:
        return x, _Norm.apply(x, weight, eps)
    total, y = _AddNorm.apply(x, delta, weight, eps)
    return total, y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
        native.call("add_norm", x, None, weight, None, y, rstd, *x.shape, eps, 0.0)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _backward(ctx, grads[0], None), None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        total, y, rstd = torch.empty_like(x), torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
        native.call("add_norm", x, delta, weight, total, y, rstd, *x.shape, eps, 0.0)
        ctx.save_for_backward(total, weight, rstd)
        return total, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        dtotal, dy = grads
        dx = dtotal if dy is None else _backward(ctx, dy, dtotal)
        return dx, dx, None, None


def _backward(ctx: Any, dy: Tensor, dtotal: Tensor | None) -> Tensor:
    x, weight, rstd = ctx.saved_tensors
    dx, more = torch.empty_like(x), None if dtotal is None else dtotal.contiguous()
    native.call("add_norm_backward", dy.contiguous(), x, weight, rstd, more, dx, *x.shape, 0.0)
    return dx
