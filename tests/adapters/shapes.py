"""Tiny models of every architecture, and adapters with values."""

from __future__ import annotations

from typing import Any

import torch

from lora_lab.methods import Attachment
from lora_lab.spec import ModelSpec, pairs

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 64,
}
GROUPED = DECODER | {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED | {"tie_word_embeddings": True},
    "mistral": GROUPED,
    "qwen2": DECODER | {"num_key_value_heads": 2},
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "smollm3": DECODER | {"num_key_value_heads": 2, "pad_token_id": 0},
    "phi": DECODER | {"num_key_value_heads": 4},
    "phi3": DECODER | {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320},
    "gpt_neox": DECODER,
}
"""A tiny model of every architecture of the roles table."""


def model_spec(kind: str, **fields: Any) -> ModelSpec:
    """``fields`` are the spec's; ``head_dim`` is the architecture's."""
    shape = {"head_dim": fields.pop("head_dim")} if "head_dim" in fields else {}
    fields = {"source": "random", "dtype": "float32"} | fields
    return ModelSpec(kind, config=pairs(CONFIGS[kind] | shape | {"model_type": kind}), **fields)


def with_values(attachment: Attachment, size: float = 0.05, seed: int = 11) -> Attachment:
    """As training would leave it: every parameter moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return attachment
