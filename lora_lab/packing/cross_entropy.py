"""Cross-entropy of rows of logits, without a float32 copy of them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_lab.packing import native
from lora_lab.packing.phases import phase

BLOCK = 64
"""Rows that PyTorch's operations upcast at once."""


def cross_entropy(logits: Tensor, labels: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
    """Losses in float32 (float64 for float64 logits) and arg-max hits, ``(n,)`` each, of ``(n, vocabulary)``."""
    return _CrossEntropy.apply(logits, labels, kernels)  # type: ignore[no-any-return]


def losses_into(
    logits: Tensor, labels: Tensor, losses: Tensor, normalisers: Tensor, hits: Tensor, kernels: str
) -> None:
    """Write the ``(n,)`` losses, log-sums of exponentials, and whether the label is the first largest logit."""
    if native.usable(logits, kernels):
        native.call("cross_entropy", logits, labels, losses, normalisers, hits, *logits.shape)
        return
    hits.copy_(logits.argmax(-1) == labels)
    for a in range(0, len(logits), BLOCK):
        b = a + BLOCK
        with phase("workspace"):
            block = logits[a:b].to(losses.dtype)
        normalisers[a:b] = torch.logsumexp(block, -1)
        losses[a:b] = normalisers[a:b] - block.gather(1, labels[a:b, None]).squeeze(1)


def gradients_into(
    logits: Tensor, labels: Tensor, normalisers: Tensor, grads: Tensor, out: Tensor, kernels: str
) -> None:
    """Write the gradient of the logits; ``grads (n,)`` are those of the losses. ``out`` may be ``logits``."""
    if native.usable(logits, kernels):
        native.call("cross_entropy_backward", logits, labels, normalisers, grads.contiguous(), out, *logits.shape)
        return
    for a in range(0, len(logits), BLOCK):
        b = a + BLOCK
        with phase("workspace"):
            block = (logits[a:b].to(normalisers.dtype) - normalisers[a:b, None]).exp_()
        block[torch.arange(len(block), device=block.device), labels[a:b]] -= 1.0
        out[a:b] = block.mul_(grads[a:b, None])


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        losses, normalisers = (logits.new_empty(len(logits), dtype=wide) for _ in range(2))
        hits = logits.new_empty(len(logits), dtype=torch.bool)
        losses_into(logits, labels, losses, normalisers, hits, kernels)
        ctx.kernels = kernels
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(logits, labels, normalisers)
        return losses, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, normalisers = ctx.saved_tensors
        with phase("logits"):
            out = torch.empty_like(logits)
        gradients_into(logits, labels, normalisers, grads[0], out, ctx.kernels)
        return out, None, None
