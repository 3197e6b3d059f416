"""The gated activation of Llama's MLP (arXiv:2002.05202) in one pass over the rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.packing import native


def swiglu(gate_up: Tensor, kernels: str) -> Tensor:
    """``silu(gate) * up`` of ``(rows, 2 m)``, gate first: ``(rows, m)``."""
    if native.usable(gate_up, kernels):
        return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return]
    gate, up = gate_up.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape
        y = gate_up.new_empty(rows, width // 2)
        native.call("swiglu", gate_up, y, rows, width // 2)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dgate_up = torch.empty_like(gate_up)
        native.call("swiglu_backward", grads[0].contiguous(), gate_up, dgate_up, *grads[0].shape)
        return dgate_up
