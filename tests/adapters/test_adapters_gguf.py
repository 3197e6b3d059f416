"""GGUF files: transformers reads a merged one back as the same function; an adapter's is ``B A`` again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.shapes import model_spec
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from lora_lab.adapters.gguf_files import export_adapter, export_model
from lora_lab.adapters.merging import merge
from lora_lab.errors import ModelError, SpecError

READERS = {"qwen3": {"head_dim": 128}}
"""transformers' reader takes a Qwen3's head for one of its default width."""


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_the_same_function_as_gguf(
    kind: str, dtype: str, saved: Callable[..., Any], tmp_path: Path
) -> None:
    reference, _, _ = saved(model_spec(kind, dtype=dtype, **READERS.get(kind, {})), r=4)
    merge(reference, tmp_path / "out")
    export_model(tmp_path / "out", tmp_path / "model.gguf")
    one = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(30).view(2, 15)
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, one(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_adapters_tensors_are_its_update(saved: Callable[..., Any], tmp_path: Path) -> None:
    reference, attachment, _ = saved(model_spec("llama"), r=4, alpha=12.0, roles=("query", "value", "head"))
    export_adapter(reference, tmp_path / "adapter.gguf")
    reader = GGUFReader(tmp_path / "adapter.gguf")
    tensors = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    assert len(tensors) == 2 * len(attachment.factors)
    for module, name, heads in (
        ("model.layers.1.self_attn.v_proj", "blk.1.attn_v", None),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q", 4),
        ("lm_head", "output", None),
    ):
        factor = attachment.factors[module]
        delta = (factor.scaling * factor.B @ factor.A).detach()
        got = tensors[f"{name}.weight.lora_b"] @ tensors[f"{name}.weight.lora_a"]
        if heads:
            got = got.reshape(heads, got.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(delta.shape)
        torch.testing.assert_close(got, delta, rtol=1e-5, atol=1e-6)


def test_what_has_no_gguf_form_is_refused(saved: Callable[..., Any], tmp_path: Path) -> None:
    reference, _, _ = saved(model_spec("gpt2"), r=2)
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py"):
        export_adapter(reference, tmp_path / "adapter.gguf")
    with pytest.raises(SpecError, match=r"ends in \.gguf"):
        export_adapter(reference, tmp_path / "adapter.bin")
