"""Cross-entropy a block of rows at a time, so that no ``(rows, vocabulary)`` tensor is kept in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_lab.packing.phases import phase


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``(n,)`` losses in float32 (float64 for float64 logits) of ``(n, vocabulary)`` logits."""
    return _CrossEntropy.apply(logits, labels)  # type: ignore[no-any-return]


class _CrossEntropy(torch.autograd.Function):
    """Row-wise cross-entropy that upcasts a block of rows at a time and keeps only the logits themselves."""

    BLOCK = 64

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        normalisers = logits.new_empty(len(logits), dtype=wide)
        losses = logits.new_empty(len(logits), dtype=wide)
        with phase("workspace"):
            for a in range(0, len(logits), _CrossEntropy.BLOCK):
                b = a + _CrossEntropy.BLOCK
                block = logits[a:b].to(wide)
                normalisers[a:b] = torch.logsumexp(block, -1)
                losses[a:b] = normalisers[a:b] - block.gather(1, labels[a:b, None]).squeeze(1)
        ctx.save_for_backward(logits, labels, normalisers)
        return losses

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, normalisers = ctx.saved_tensors  # type: ignore[attr-defined]
        with phase("logits"):
            out = torch.empty_like(logits)
        with phase("workspace"):
            for a in range(0, len(logits), _CrossEntropy.BLOCK):
                b = a + _CrossEntropy.BLOCK
                block = (logits[a:b].to(normalisers.dtype) - normalisers[a:b, None]).exp_()
                block[torch.arange(len(block), device=block.device), labels[a:b]] -= 1.0
                out[a:b] = block.mul_(grads[0][a:b, None])
        return out, None
