"""What training costs: floating-point operations by count, and memory by measurement."""

from __future__ import annotations

import psutil
import torch

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel, original_size
from lora_lab.packing.inputs import Sequences, count_targets


class Flops:
    """Floating-point operations of a base model's matrix products (a multiply-add is two).

    Counted from module shapes: every linear module once a token, the head once a supervised token, and
    attention's two products at the length they are computed (the full square). Norms, activations and the
    optimizer are left out, as is usual for model FLOPs.
    """

    def __init__(self, base: BaseModel) -> None:
        model, config = base.model, base.model.config
        head = model.get_output_embeddings().weight
        self.head = 2 * original_size(head)
        embedding = model.get_input_embeddings().weight
        self.body = 2 * sum(
            original_size(p) for p in model.parameters() if p.dim() == 2 and p is not head and p is not embedding
        )
        heads = config.num_attention_heads
        dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.attention = 4 * heads * dimension * config.num_hidden_layers

    def forward(self, sequences: Sequences, attachment: Attachment | None) -> float:
        """One forward of ``sequences`` through the base and one lane's low-rank paths."""
        tokens = sum(len(ids) for ids, _ in sequences)
        targets = count_targets(sequences)
        squares = sum(len(ids) ** 2 for ids, _ in sequences)
        adapter = 2 * attachment.count if attachment is not None else 0
        return float(tokens * (self.body + adapter) + targets * self.head + squares * self.attention)

    def training(self, sequences: Sequences, attachment: Attachment) -> float:
        """A forward and the backward to the inputs; twice that backward for what trains."""
        tokens = sum(len(ids) for ids, _ in sequences)
        return 2 * self.forward(sequences, attachment) + 2.0 * attachment.count * tokens


def resident_bytes(device: torch.device) -> int:
    """Memory in use now: peak allocated since the last call on CUDA, resident set of the process on CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return int(psutil.Process().memory_info().rss)
