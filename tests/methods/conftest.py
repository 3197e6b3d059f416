"""Tiny base models, and the plain forward that an attachment's documentation describes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import reference_forward
import torch

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel, load
from lora_lab.spec import ModelSpec, pairs

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "tie_word_embeddings": False,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "vocab_size": 320,
        "tie_word_embeddings": False,
    },
    "tied": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 320,
        "tie_word_embeddings": True,
    },
    "phi3": {
        "model_type": "phi3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 320,
        "pad_token_id": 0,
    },
}

WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Rows of whole blocks: bitsandbytes' own products are wrong on a CPU where blocks of 64 end within a row."""


@pytest.fixture
def tiny_base() -> Callable[..., BaseModel]:
    """``tiny_base("gpt2", dtype="bfloat16")``; ``nf4`` and ``int8`` are the Llama-like one, quantised."""

    def make(kind: str = "llama", dtype: str = "float32") -> BaseModel:
        quantised = kind in ("nf4", "int8")
        config = pairs(CONFIGS["llama" if quantised else kind] | (WIDE if quantised else {}))
        return load(
            ModelSpec(kind, source="random", dtype=dtype, config=config, quantization=kind if quantised else "none")
        )

    return make


@pytest.fixture
def wired() -> Callable[[BaseModel, Attachment], AbstractContextManager[None]]:
    """``with wired(base, attachment): …`` installs the attachment's update on the base by forward hooks."""
    return reference_forward.wired


@pytest.fixture
def randomised() -> Callable[[Attachment], Attachment]:
    """Gives B values, as training would (it starts at zero)."""

    def fill(attachment: Attachment) -> Attachment:
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for factor in attachment.factors.values():
                factor.B.copy_(torch.randn(factor.B.shape, generator=generator) * 0.3)
        return attachment

    return fill
