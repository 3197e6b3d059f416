"""One packed forward: tokens in, each supervised token's loss out.

Logits are computed only where a label is, and turned into losses a block of rows at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_lab.methods import Attachment
from lora_lab.models.shards import Shards
from lora_lab.packing import decoder, head
from lora_lab.packing.attention import packed
from lora_lab.packing.cross_entropy import cross_entropy
from lora_lab.packing.inputs import Inputs, Sequences, count_targets
from lora_lab.packing.layout import Layout
from lora_lab.packing.passes import passes
from lora_lab.packing.paths import Mount, Paths
from lora_lab.packing.phases import phase
from lora_lab.packing.stacks import Share


@dataclass(frozen=True, eq=False)
class Part:
    """What one lane puts into a packed forward. ``attachment`` ``None`` is the base model itself.

    ``noise`` seeds dropout; without it (evaluation) there is none. ``recompute`` asks for gradient checkpointing, which
    a forward does when one of its parts asks.
    """

    attachment: Attachment | None
    sequences: Sequences
    noise: int | None = None
    recompute: bool = False

    def share(self, rows: tuple[int, int]) -> Share:
        """This lane's share of a module's rows: the first and the past-the-last."""
        return Share(self.attachment, *rows, self.noise)

    @property
    def laid_out(self) -> Sequences:
        """The sequences with a place for each virtual token before them."""
        prompt = self.attachment.prompt if self.attachment is not None else None
        if prompt is None:
            return self.sequences
        with torch.no_grad():
            n = len(prompt())
        return [
            (np.concatenate([np.zeros(n, ids.dtype), ids]), np.concatenate([np.zeros(n, bool), supervised]))
            for ids, supervised in self.sequences
        ]


@dataclass(frozen=True, eq=False)
class LaneLosses:
    """A lane's part of a packed forward: ``(targets,)`` losses in nats, and hits of the arg-max."""

    losses: Tensor
    hits: Tensor


def recomputes(paths: Paths, attachment: Attachment) -> bool:
    """Whether gradient checkpointing serves a lane: where layers are computed here, and its rows do not leave them."""
    return decoder.serves(paths.model) and attachment.solo is None and not paths.leaves_layers(attachment)


def in_passes(parts: Sequence[Part], kernels: str) -> list[list[int]]:
    """Which of ``parts`` go through the base together, pass by pass (:func:`~lora_lab.packing.passes.passes`)."""
    rows = [sum(len(ids) for ids, _ in part.sequences) for part in parts]
    alone = {i for i, part in enumerate(parts) if part.attachment is not None and part.attachment.solo is not None}
    return passes(rows, kernels, alone)


def token_losses(mount: Mount, parts: Sequence[Part]) -> list[LaneLosses]:
    """The loss of every supervised token of every part, each computed as if it were alone.

    Returns one :class:`LaneLosses` a part, differentiable in the parts' adapters. On a divided base each process
    computes those of some of the sequences, and all get all.
    """
    if mount.base.shards is not None:
        (part,) = parts
        return [_together(mount, part, mount.base.shards)]
    return losses_of(mount, parts, Inputs.of([part.laid_out for part in parts], mount.base.device))


def losses_of(paths: Paths, parts: Sequence[Part], inputs: Inputs) -> list[LaneLosses]:
    """:func:`token_losses` of ``inputs``, made of the parts' sequences. Looks at no value of any tensor."""
    if parts[0].attachment is not None and parts[0].attachment.solo is not None:
        assert len(parts) == 1, "a lane that cannot be packed has company"
        paths.noise = parts[0].noise
        losses, hits = _solo(parts[0].attachment, inputs, paths)
        return [LaneLosses(losses, hits)]
    shares = [part.share(rows) for part, rows in zip(parts, inputs.layout.spans, strict=True)]
    with paths.shares(shares):
        hidden = _hidden(paths, parts, inputs)
    hidden = hidden.index_select(0, inputs.predicting)
    shares = [part.share(rows) for part, rows in zip(parts, inputs.targets, strict=True)]
    losses, hits = head.losses(paths, shares, hidden, inputs.labels)
    return [LaneLosses(losses[a:b], hits[a:b]) for a, b in inputs.targets]


def _together(mount: Mount, part: Part, shards: Shards) -> LaneLosses:
    """Every ``count``-th sequence is this process's. One that has none computes the first for the others' sake."""
    mine = range(len(part.sequences))[shards.rank :: shards.count]
    sequences = [part.sequences[i] for i in mine] or part.sequences[:1]
    noise = None if part.noise is None else part.noise + shards.rank
    own = replace(part, sequences=sequences, noise=noise)
    (found,) = losses_of(mount, [own], Inputs.of([own.laid_out], mount.base.device))
    bounds = [0, *itertools.accumulate(count_targets([sequence]) for sequence in part.sequences)]
    own_places = [place for i in mine for place in range(bounds[i], bounds[i + 1])]
    places = torch.tensor(own_places, dtype=torch.int64, device=mount.base.device)
    losses = _Exchange.apply(found.losses, places, bounds[-1], shards)
    hits = torch.zeros(bounds[-1], device=mount.base.device)
    hits[places] = found.hits[: len(places)].float()
    shards.add([hits])
    return LaneLosses(losses, hits > 0)


class _Exchange(torch.autograd.Function):
    """The losses of all processes, in the order of the sequences; each gets the gradients of its own."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, places: Tensor, count: int, shards: Shards) -> Tensor:
        ctx.save_for_backward(places)
        ctx.own = len(own)
        out = own.new_zeros(count)
        out[places] = own[: len(places)]
        shards.add([out])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        own = grads[0].new_zeros(ctx.own)
        own[: len(places)] = grads[0][places]
        return own, None, None, None


def _hidden(paths: Paths, parts: Sequence[Part], inputs: Inputs) -> Tensor:
    model, layout = paths.model, inputs.layout
    embedded = _prompted(model.get_input_embeddings()(inputs.ids), parts, layout)
    if decoder.serves(model) and not paths.along_blocks:
        recompute = any(part.recompute for part in parts)
        return decoder.hidden_states(paths, embedded, layout, recompute=recompute)
    with packed(model, layout):
        return model.base_model(  # type: ignore[no-any-return]
            inputs_embeds=embedded.unsqueeze(0), position_ids=layout.positions, use_cache=False
        ).last_hidden_state[0]


def _prompted(embedded: Tensor, parts: Sequence[Part], layout: Layout) -> Tensor:
    """``embedded (rows, d)`` with each lane's virtual tokens in their places."""
    bounds = itertools.accumulate((len(part.sequences) for part in parts), initial=0)
    for part, first in zip(parts, bounds, strict=False):
        if part.attachment is not None and part.attachment.prompt is not None:
            tokens = part.attachment.prompt().to(embedded.dtype)
            starts = layout.starts[first : first + len(part.sequences)]
            places = torch.tensor([start + i for start in starts for i in range(len(tokens))], device=layout.device)
            embedded = embedded.index_copy(0, places, tokens.repeat(len(starts), 1))
    return embedded


def _solo(attachment: Attachment, inputs: Inputs, paths: Paths) -> tuple[Tensor, Tensor]:
    """Losses and hits by the lane's own model, on sequences padded on the right."""
    assert attachment.solo is not None
    layout = inputs.layout
    longest = max(layout.lengths)
    places = torch.arange(longest)
    mask = places < torch.tensor(layout.lengths).unsqueeze(1)
    rows = torch.where(mask, torch.tensor(layout.starts[:-1]).unsqueeze(1) + places, 0).to(layout.device)
    real = torch.cat([torch.arange(length) + i * longest for i, length in enumerate(layout.lengths)])
    mask, real = mask.to(layout.device), real.to(layout.device)
    logits = attachment.solo(torch.where(mask, inputs.ids[rows], 0), mask.to(torch.int64))
    with phase("logits"):
        logits = logits.flatten(0, 1).index_select(0, real[inputs.predicting])
    return cross_entropy(logits, inputs.labels, paths.kernels)
