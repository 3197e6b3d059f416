"""Every method in one pack, or alone where it must be, against the plain forward that its documentation describes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference_forward import logits
from torch import nn

from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel, load
from lora_lab.packing.forward import Part, token_losses
from lora_lab.packing.paths import Mount
from lora_lab.spec import MethodSpec, ModelSpec, pairs

ROLES = ("query", "key", "value", "projection", "mlp")
SPECS = [
    MethodSpec(r=3, roles=(*ROLES, "head")),
    MethodSpec(r=3, roles=ROLES, init="pissa"),
    MethodSpec(r=4, roles=ROLES, rank_shape="linear", r_last=1, rslora=True),
    MethodSpec(r=3, roles=ROLES, dora=True),
    MethodSpec("adalora", r=2, roles=ROLES),
    MethodSpec("vera", r=6, roles=ROLES),
    MethodSpec("ia3", roles=(*ROLES, "head")),
    MethodSpec("bottleneck", r=4, placement="houlsby"),
    MethodSpec("bottleneck", r=4, placement="parallel"),
    MethodSpec("bitfit", roles=ROLES, add_biases=True),
    MethodSpec("last_layers", roles=(*ROLES, "head")),
    MethodSpec("prompt_tuning", virtual_tokens=3),
    MethodSpec("p_tuning", virtual_tokens=2),
]
SOLO = [
    MethodSpec("prefix_tuning", virtual_tokens=3),
    MethodSpec("p_tuning_v2", virtual_tokens=3),
    MethodSpec("llama_adapter", virtual_tokens=3),
    MethodSpec("full"),
]
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
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320},
}


@pytest.fixture(params=["llama", "gpt2", "nf4"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    kind, quantised = request.param, request.param == "nf4"
    wide = {"hidden_size": 64, "intermediate_size": 128} if quantised else {}  # rows of whole blocks, see tests/methods
    config = pairs(CONFIGS["llama" if quantised else kind] | wide)
    quantization = kind if quantised else "none"
    return load(ModelSpec(kind, source="random", dtype="float32", config=config, quantization=quantization))


def moved(base: BaseModel, spec: MethodSpec, seed: int) -> Attachment:
    """Away from where it starts, so that all of it matters."""
    attachment = attach(base, spec, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return attachment


def sequences(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(seed)
    found = []
    for length in (9, 5):
        supervised = np.zeros(length, dtype=bool)
        supervised[2:] = True
        found.append((draw.integers(0, 320, length), supervised))
    return found


def plainly(base: BaseModel, attachment: Attachment | None, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The losses, and the gradients of their sum."""
    rows = sequences(seed)
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(i) for i, _ in rows], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(i), dtype=torch.int64) for i, _ in rows], batch_first=True)
    wanted = nn.utils.rnn.pad_sequence([torch.from_numpy(s) for _, s in rows], batch_first=True)[:, 1:]
    out = logits(base, attachment, ids, mask)[:, :-1][wanted].float()
    losses = nn.functional.cross_entropy(out, ids[:, 1:][wanted], reduction="none")
    parameters = list(attachment.parameters().values()) if attachment is not None else []
    return losses.detach(), list(torch.autograd.grad(losses.sum(), parameters)) if parameters else []


def check(base: BaseModel, attachments: list[Attachment | None]) -> None:
    expected = [plainly(base, attachment, i) for i, attachment in enumerate(attachments)]
    mount = Mount(base)
    for attachment in attachments:
        if attachment is not None:
            mount.mount(attachment)
    results = token_losses(mount, [Part(a, sequences(i)) for i, a in enumerate(attachments)])
    sum(result.losses.sum() for result in results).backward()
    mount.unmount()
    for attachment, result, (losses, gradients) in zip(attachments, results, expected, strict=True):
        said = attachment.spec if attachment is not None else "the base"
        assert torch.allclose(result.losses.detach(), losses, atol=1e-4), said
        named = attachment.parameters() if attachment is not None else {}
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            assert parameter.grad is not None, (said, name)
            assert torch.allclose(parameter.grad, gradient, atol=2e-4, rtol=1e-3), (said, name)


def test_all_methods_in_one_pack_are_what_each_is_alone(base: BaseModel) -> None:
    check(base, [None, *(moved(base, spec, seed) for seed, spec in enumerate(SPECS))])


@pytest.mark.parametrize("spec", SOLO, ids=lambda spec: spec.name)
def test_a_solo_method_runs_in_the_same_loop(base: BaseModel, spec: MethodSpec) -> None:
    if spec.name == "full" and base.spec.quantization != "none":
        return  # refused: tests/methods
    check(base, [moved(base, spec, 1)])
