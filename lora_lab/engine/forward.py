"""One packed forward: tokens in, each supervised token's loss out.

Logits are computed only where a label is, and turned into losses a block of rows at a time, so that no
``(rows, vocabulary)`` tensor of a whole pack is kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_lab.engine.attention import packed
from lora_lab.engine.layout import Layout
from lora_lab.engine.lowrank import Mount, Share
from lora_lab.methods import Attachment

Sequences = Sequence[tuple[np.ndarray, np.ndarray]]
"""Token ids and, for each, whether it is a target: ``((t,) int64, (t,) bool)`` per sequence."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one lane puts into a packed forward. ``attachment`` ``None`` is the base model itself."""

    attachment: Attachment | None
    sequences: Sequences
    generator: torch.Generator | None = None

    @property
    def targets(self) -> int:
        """Supervised tokens: those that some earlier token predicts."""
        return sum(int(supervised[1:].sum()) for _, supervised in self.sequences)


@dataclass(frozen=True, eq=False)
class LaneLosses:
    """A lane's part of a packed forward: ``(targets,)`` losses in nats, and hits of the arg-max."""

    losses: Tensor
    hits: Tensor


def token_losses(mount: Mount, parts: Sequence[Part]) -> list[LaneLosses]:
    """The loss of every supervised token of every part, each computed as if it were alone.

    Returns one :class:`LaneLosses` a part, differentiable in the parts' adapters.
    """
    model, device = mount.base.model, mount.base.device
    sequences = [s for part in parts for s in part.sequences]
    layout = Layout([len(ids) for ids, _ in sequences], [len(p.sequences) for p in parts], device)
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in sequences])).to(device)
    wanted = np.concatenate([np.append(supervised[1:], False) for _, supervised in sequences])
    predicting = torch.from_numpy(wanted.nonzero()[0]).to(device)
    labels = ids[predicting + 1]
    rows = [Share(p.attachment, a, b, p.generator) for p, (a, b) in zip(parts, layout.spans, strict=True)]
    with mount.shares(rows), packed(model, layout):
        hidden = model.base_model(
            input_ids=ids.unsqueeze(0), position_ids=layout.positions, use_cache=False
        ).last_hidden_state[0]
    hidden = hidden.index_select(0, predicting)
    ends = np.cumsum([part.targets for part in parts]).tolist()
    starts = [0, *ends[:-1]]
    heads = [Share(p.attachment, a, b, p.generator) for p, a, b in zip(parts, starts, ends, strict=True)]
    with mount.shares(heads):
        logits = model.get_output_embeddings()(hidden)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    losses = _cross_entropy(logits, labels)
    hits = logits.detach().argmax(-1) == labels
    return [LaneLosses(losses[a:b], hits[a:b]) for a, b in zip(starts, ends, strict=True)]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
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
        out = torch.empty_like(logits)
        for a in range(0, len(logits), _CrossEntropy.BLOCK):
            b = a + _CrossEntropy.BLOCK
            block = (logits[a:b].to(normalisers.dtype) - normalisers[a:b, None]).exp_()
            block[torch.arange(len(block), device=block.device), labels[a:b]] -= 1.0
            out[a:b] = block.mul_(grads[0][a:b, None])
        return out, None
