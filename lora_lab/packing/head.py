"""From hidden states at supervised positions to losses.

The head's product and its cross-entropy go block by block, and the gradient of the hidden states is made on the way, so
that no ``(tokens, vocabulary)`` tensor outlives its block. Where a lane trains the head itself its logits are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lora_lab.packing.cross_entropy import cross_entropy, gradients_into, losses_into
from lora_lab.packing.paths import Paths
from lora_lab.packing.phases import phase
from lora_lab.packing.stacks import Share

BLOCK = 256
"""Rows whose logits are held at once on a CPU: as many as its last cache holds."""
BLOCK_CUDA = 4096


def losses(paths: Paths, shares: Sequence[Share], hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (nats, float32 at least) and arg-max hits, ``(n,)`` each, of ``hidden (n, d)``, lanes as in ``shares``."""
    kept = [i for i, share in enumerate(shares) if keeps_logits(paths, share)]
    if not kept:
        return _blockwise(paths, hidden, labels)
    if len(kept) == len(shares):
        return _whole(paths, shares, hidden, labels)
    rest = [i for i in range(len(shares)) if i not in kept]
    rows = [torch.cat([torch.arange(shares[i].start, shares[i].stop) for i in some]) for some in (rest, kept)]
    one, two = (index.to(hidden.device) for index in rows)
    plain = _blockwise(paths, hidden.index_select(0, one), labels[one])
    trained = _whole(paths, _adjacent([shares[i] for i in kept]), hidden.index_select(0, two), labels[two])
    back = torch.empty(len(labels), dtype=torch.int64)
    back[torch.cat(rows)] = torch.arange(len(labels))
    found, hits = (torch.cat(both).index_select(0, back.to(hidden.device)) for both in zip(plain, trained, strict=True))
    return found, hits


def keeps_logits(paths: Paths, share: Share) -> bool:
    """Whether a lane's logits are held until its backward, and not only a block of all lanes' at a time."""
    capped = getattr(paths.model.config, "final_logit_softcapping", None) is not None
    return capped or share.carries(paths.head[0])


def block_rows(kernels: str) -> int:
    """Rows of all lanes whose logits are held at once."""
    return BLOCK if kernels == "cpu" else BLOCK_CUDA


def _adjacent(shares: Sequence[Share]) -> list[Share]:
    """The shares with their rows one after another from 0 on."""
    bounds = itertools.accumulate((share.rows for share in shares), initial=0)
    return [replace(share, start=a, stop=a + share.rows) for share, a in zip(shares, bounds, strict=False)]


def _blockwise(paths: Paths, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    head = paths.head[1]
    return _BlockwiseLoss.apply(hidden, head.weight.detach(), head.bias, labels, paths.kernels)  # type: ignore[no-any-return]


def _whole(paths: Paths, shares: Sequence[Share], hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    softcap = getattr(paths.model.config, "final_logit_softcapping", None)
    with phase("logits"):
        with paths.shares(shares):
            logits = paths.linear((paths.head[0],), hidden)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
    return cross_entropy(logits, labels, paths.kernels)


class _BlockwiseLoss(torch.autograd.Function):
    """Its backward is one scaling of rows: losses are linear in what it saved."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kernels: str
    ) -> tuple[Tensor, Tensor]:
        n, wide = len(hidden), torch.promote_types(hidden.dtype, torch.float32)
        out = hidden.new_empty(n, dtype=wide)
        hits = hidden.new_empty(n, dtype=torch.bool)
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = block_rows(kernels)
        for a in range(0, n, size):
            rows, mine = slice(a, min(n, a + size)), labels[a : a + size]
            with phase("logits"):
                logits = torch.nn.functional.linear(hidden[rows], weight, bias)
                normalisers = hidden.new_empty(len(mine), dtype=wide)
                losses_into(logits, mine, out[rows], normalisers, hits[rows], kernels)
                if dhidden is not None:
                    gradients_into(logits, mine, normalisers, torch.ones_like(normalisers), logits, kernels)
                    torch.mm(logits, weight, out=dhidden[rows])
                del logits  # before the next block's are made
        ctx.mark_non_differentiable(hits)
        if dhidden is not None:
            ctx.save_for_backward(dhidden)
        return out, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (dhidden,) = ctx.saved_tensors
        return (dhidden * grads[0].unsqueeze(1)).to(dhidden.dtype), None, None, None, None
