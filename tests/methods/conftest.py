"""Tiny base models, and the plain forward that an attachment's documentation describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_lab.methods import Attachment, LowRank
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
    """``tiny_base("gpt2", dtype="bfloat16")``."""

    def make(kind: str = "llama", dtype: str = "float32") -> BaseModel:
        return load(ModelSpec(kind, source="random", dtype=dtype, config=pairs(CONFIGS[kind])))

    return make


@pytest.fixture
def wired() -> Callable[[BaseModel, Attachment], AbstractContextManager[None]]:
    """``with wired(base, attachment): …`` installs the attachment's update on the base by forward hooks."""

    def hook(factor: LowRank, scaling: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0].to(factor.A.dtype)
            return (output + x @ factor.A.T @ factor.B.T * scaling).to(output.dtype)

        return add

    @contextmanager
    def install(base: BaseModel, attachment: Attachment) -> Iterator[None]:
        with ExitStack() as stack:
            for name, factor in attachment.factors.items():
                module = base.model.get_submodule(name)
                handle = module.register_forward_hook(hook(factor, factor.scaling))
                stack.callback(handle.remove)
            yield

    return install


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
