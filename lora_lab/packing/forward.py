"""One packed forward: tokens in, each supervised token's loss out.

Logits are computed only where a label is, and turned into losses a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_lab.methods import Attachment
from lora_lab.packing.attention import packed
from lora_lab.packing.cross_entropy import cross_entropy
from lora_lab.packing.inputs import Inputs, Sequences
from lora_lab.packing.lowrank import Mount, Paths, Share
from lora_lab.packing.phases import phase


@dataclass(frozen=True, eq=False)
class Part:
    """What one lane puts into a packed forward. ``attachment`` ``None`` is the base model itself."""

    attachment: Attachment | None
    sequences: Sequences
    generator: torch.Generator | None = None

    def share(self, rows: tuple[int, int]) -> Share:
        """This lane's share of a module's rows: the first and the past-the-last."""
        return Share(self.attachment, *rows, self.generator)


@dataclass(frozen=True, eq=False)
class LaneLosses:
    """A lane's part of a packed forward: ``(targets,)`` losses in nats, and hits of the arg-max."""

    losses: Tensor
    hits: Tensor


def token_losses(mount: Mount, parts: Sequence[Part]) -> list[LaneLosses]:
    """The loss of every supervised token of every part, each computed as if it were alone.

    Returns one :class:`LaneLosses` a part, differentiable in the parts' adapters.
    """
    return losses_of(mount, parts, Inputs.of([part.sequences for part in parts], mount.base.device))


def losses_of(paths: Paths, parts: Sequence[Part], inputs: Inputs) -> list[LaneLosses]:
    """:func:`token_losses` of ``inputs``, made of the parts' sequences. Looks at no value of any tensor."""
    model, layout = paths.model, inputs.layout
    shares = [part.share(rows) for part, rows in zip(parts, layout.spans, strict=True)]
    with paths.shares(shares), packed(model, layout):
        hidden = model.base_model(
            input_ids=inputs.ids.unsqueeze(0), position_ids=layout.positions, use_cache=False
        ).last_hidden_state[0]
    hidden = hidden.index_select(0, inputs.predicting)
    shares = [part.share(rows) for part, rows in zip(parts, inputs.targets, strict=True)]
    with phase("logits"):
        with paths.shares(shares):
            logits = model.get_output_embeddings()(hidden)
        softcap = getattr(model.config, "final_logit_softcapping", None)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
    losses = cross_entropy(logits, inputs.labels)
    hits = logits.detach().argmax(-1) == inputs.labels
    return [LaneLosses(losses[a:b], hits[a:b]) for a, b in inputs.targets]
