"""A merge streams: a process that may not have half of the model's size merges it all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import environment
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.models.tokenizer import byte_tokenizer
from lora_lab.spec import MethodSpec, ModelSpec

MERGE = """
import json, resource, sys
from pathlib import Path
from lora_lab.adapters.merging import merge
from lora_lab.adapters.references import Reference
from lora_lab.models import load
from lora_lab.spec import ModelSpec

def data():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

def reference(base):
    return Reference("adapter", Path(sys.argv[2]) / base.name, ModelSpec("big", path=str(base), dtype="float32"))

small, big, out = Path(sys.argv[1]) / "small", Path(sys.argv[1]) / "big", Path(sys.argv[3])
merge(reference(small), out / "small")  # everything is imported, every pool made
limit = data() + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
merged = merge(reference(big), out / "big")
try:
    load(reference(big).model)
    whole = "fits"
except Exception as error:
    whole = type(error).__name__
print(json.dumps({"bytes": merged.bytes, "streamed": merged.streamed, "whole": whole}))
"""
SPARE = 48 << 20
"""Bytes for what is computed, block by block, beside the largest shard and the adapter."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: a process's data size is not known here")
def test_the_peak_is_the_largest_shard_and_the_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, width, layers in (("small", 64, 1), ("big", 768, 7)):
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            vocab_size=1024,
            tie_word_embeddings=True,
        )
        folder = tmp_path / "models" / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="42MB")
        byte_tokenizer().save_pretrained(folder)
        base = load(ModelSpec(name, path=str(folder), dtype="float32"))
        attachment = attach(base, MethodSpec(r=4, roles=("query", "value", "mlp", "head")), 0)
        for factor in attachment.factors.values():
            torch.nn.init.normal_(factor.B, std=0.01)
        attachment.save(tmp_path / "adapters" / name, base_name=str(folder))
    del base, attachment
    shards = [file.stat().st_size for file in (tmp_path / "models" / "big").glob("*.safetensors")]
    adapter = (tmp_path / "adapters" / "big" / "adapter_model.safetensors").stat().st_size
    allowed = max(shards) + adapter + SPARE
    assert sum(shards) > 2 * allowed
    words = [tmp_path / "models", tmp_path / "adapters", tmp_path / "out", allowed]
    ran = subprocess.run(
        [sys.executable, "-c", MERGE, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["streamed"] and said["bytes"] > sum(shards)
    assert said["whole"] != "fits"
    merged = {k: v for file in (tmp_path / "out" / "big").glob("*.safetensors") for k, v in load_file(file).items()}
    assert merged["lm_head.weight"].shape == (1024, 768)
