"""What training costs: floating-point operations by count, and memory by measurement."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from lora_lab.methods import Attachment
from lora_lab.methods.targets import layer_of
from lora_lab.methods.work import Work, work_of
from lora_lab.models import BaseModel, original_size
from lora_lab.packing.inputs import Sequences, count_targets


class Flops:
    """Floating-point operations of matrix products (a multiply-add is two), of a base model and of one lane on it.

    Counted from shapes: every linear module once a token, the head once a supervised token (a solo lane's: once a
    token), attention's two products at the length they are computed (the full square), and a method's own products
    (:mod:`lora_lab.methods.work`). The backward goes down to the input of the lowest layer that trains, of which a
    little less is computed. Norms, activations, the optimizer and padding are left out; so are DoRA's norms (once a
    forward) and the second query and output that a LLaMA-Adapter computes.

    What checkpointing computes again is left out, too: it is no part of a run's key, and two runs of one key have one
    cost. A plan, which says what a step takes here, has it.
    """

    def __init__(self, base: BaseModel) -> None:
        model, config = base.model, base.model.config
        head = model.get_output_embeddings().weight
        self.head = 2 * original_size(head)
        self.layers = int(config.num_hidden_layers)
        self._body = [0] * self.layers
        looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}  # learned positions, too
        for name, p in model.named_parameters():
            if p.dim() == 2 and p is not head and id(p) not in looked_up:
                self._body[layer_of(name) or 0] += 2 * original_size(p)
        heads = config.num_attention_heads
        dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._pair = 4 * heads * dimension
        self._works: WeakKeyDictionary[Attachment, Work] = WeakKeyDictionary()

    def forward(self, sequences: Sequences, attachment: Attachment | None) -> float:
        """One forward of ``sequences`` through the base and one lane's own products."""
        work = Work() if attachment is None else self._work(attachment)
        tokens, pairs = _sizes(sequences, work)
        targets = _targets(sequences, work)
        own = 2 * (tokens * work.token + targets * work.target + work.forward)
        attention = self._pair * (self.layers * pairs + _real(sequences) * work.keys)
        return float(tokens * sum(self._body) + own + targets * self.head + attention)

    def training(self, sequences: Sequences, attachment: Attachment) -> float:
        """A forward, the backward to the inputs, and that to what trains."""
        work = self._work(attachment)
        tokens, pairs = _sizes(sequences, work)
        targets = _targets(sequences, work)
        reached = work.lowest < self.layers  # the head's input needs a gradient for what lies below it
        body, head = tokens * sum(self._body[work.lowest :]), targets * self.head if reached else 0
        attention = self._pair * ((self.layers - work.lowest) * pairs + _real(sequences) * work.keys)
        own = tokens * (work.token + work.trained) + targets * (work.target + work.target_trained) + 2 * work.forward
        weights = body + head if work.whole else 0
        return float(self.forward(sequences, attachment) + body + head + 2 * attention + 2 * own + weights)

    def _work(self, attachment: Attachment) -> Work:
        """Looked up once: there are hundreds of modules to go through, and every micro-batch asks twice."""
        if attachment not in self._works:
            self._works[attachment] = work_of(attachment, self.layers)
        return self._works[attachment]


def _targets(sequences: Sequences, work: Work) -> int:
    """Tokens that the head is computed for."""
    return _real(sequences) if work.solo else count_targets(sequences)


def _real(sequences: Sequences) -> int:
    return sum(len(ids) for ids, _ in sequences)


def _sizes(sequences: Sequences, work: Work) -> tuple[int, int]:
    """Tokens that go through the base, and pairs of them within a sequence."""
    lengths = [len(ids) + work.virtual_tokens for ids, _ in sequences]
    return sum(lengths), sum(length**2 for length in lengths)


def resident_bytes(device: torch.device) -> int:
    """Memory in use now: peak allocated since the last call on CUDA, resident set of the process on CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return int(psutil.Process().memory_info().rss)
