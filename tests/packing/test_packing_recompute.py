"""A step that keeps only each layer's input gives the same losses and gradients as one that keeps everything."""

import numpy as np
import pytest
import torch

from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.packing.forward import Part, token_losses
from lora_lab.packing.paths import Mount
from lora_lab.spec import ROLES, MethodSpec, ModelSpec, pairs

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("float32", "nf4")])
def test_recomputing_changes_nothing(dtype, quantization, method):
    model = ModelSpec("llama", source="random", dtype=dtype, quantization=quantization, config=pairs(LLAMA))
    base = load(model)
    mount = Mount(base)
    found = []
    for recompute in (False, True):
        lanes = [attach(base, MethodSpec(method, roles=ROLES[:5], dropout=0.3 * (method == "lora")), s) for s in (0, 1)]
        parts = []
        for seed, lane in enumerate(lanes):
            mount.mount(lane)
            with torch.no_grad():
                for i, parameter in enumerate(lane.parameters().values()):
                    parameter.normal_(generator=torch.Generator().manual_seed(i))
            ids = [np.random.default_rng(seed * 10 + n).integers(0, 320, 20 + n) for n in range(2)]
            sequences = [(one, np.ones(len(one), dtype=bool)) for one in ids]
            parts.append(Part(lane, sequences, noise=seed, recompute=recompute))
        losses = [lane.losses for lane in token_losses(mount, parts)]
        torch.cat(losses).sum().backward()
        found.append((losses, [p.grad for lane in lanes for p in lane.parameters().values()]))
    for kept, again in zip(*([*losses, *grads] for losses, grads in found), strict=True):
        assert torch.equal(kept, again)
