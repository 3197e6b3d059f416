"""Adapters with values on tiny models, saved as a run or stock PEFT would have saved them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.shapes import model_spec, with_values

from lora_lab.adapters.references import Reference
from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel, load
from lora_lab.spec import MethodSpec, ModelSpec


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., ModelSpec]:
    """The random model of an architecture as files: its spec then is that of a folder."""

    def store(kind: str, folder: str = "base", *, shard: str = "50GB", **fields: Any) -> ModelSpec:
        base = load(model_spec(kind, dtype=fields.get("dtype", "float32")))
        tied = getattr(base.model, "_lora_lab_untied", False)
        if tied:
            base.model.get_output_embeddings().weight = base.model.get_input_embeddings().weight
        base.model.config.tie_word_embeddings = tied
        generator = torch.Generator().manual_seed(5)
        for name, parameter in base.model.named_parameters():
            if name.endswith("bias"):  # a random model's are zero, which hides what is done to them
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        where = tmp_path / folder
        base.model.save_pretrained(where, max_shard_size=shard)
        base.tokenizer.save_pretrained(where)
        return ModelSpec(kind, path=str(where), **({"dtype": "float32"} | fields))

    return store


def sequences(count: int) -> list[Any]:
    """Training sequences of random tokens, for what looks at data."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 320, (8,), generator=generator).numpy() for _ in range(count)]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Reference, Attachment, BaseModel]]:
    """An adapter of a method on a model, with values, saved; the reference to it, itself, and the base."""

    def save(
        model: ModelSpec, folder: str = "adapter", *, seed: int = 0, size: float = 0.05, **method: Any
    ) -> tuple[Reference, Attachment, BaseModel]:
        base = load(model)
        spec = MethodSpec(**({"roles": ("query", "key", "value", "projection", "mlp", "head")} | method))
        attachment = with_values(attach(base, spec, seed, sequences), size, seed + 11)
        where = tmp_path / folder
        attachment.save(where, base_name=model.path or model.name)
        return Reference(folder, where, model), attachment, base

    return save
