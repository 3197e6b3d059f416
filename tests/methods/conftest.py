"""Tiny base models, and the plain forward that an attachment's documentation describes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import reference_forward
import torch
from torch import nn

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


@pytest.fixture
def tiny_base() -> Callable[..., BaseModel]:
    """``tiny_base("gpt2", dtype="bfloat16")``; ``nf4`` and ``int8`` are the Llama-like one, quantised."""

    def make(kind: str = "llama", dtype: str = "float32") -> BaseModel:
        config = CONFIGS["llama" if kind in ("nf4", "int8") else kind]
        base = load(ModelSpec(kind, source="random", dtype=dtype, config=pairs(config)))
        if kind in ("nf4", "int8"):
            quantise(base.model, kind)
        return base

    return make


def quantise(model: Any, kind: str) -> None:
    """Every linear module but the head, with the marks that transformers leaves on such a model."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            shape, weight = (module.in_features, module.out_features), module.weight.data.clone()
            if kind == "nf4":
                new: Any = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
                new.support_avx512bf16_for_cpu = False  # it would repack the weight in place, in evaluation
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new.to("cpu").eval())
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)


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
