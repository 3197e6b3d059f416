"""Greedy generation for several lanes is transformers' own for each alone; exact match counts whole answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_lab import data, models
from lora_lab.bench import exact_match as module
from lora_lab.bench.exact_match import exact_match
from lora_lab.bench.generate import Prompts, generate
from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.spec import DataSpec, EvaluationSpec, MethodSpec, ModelSpec, pairs

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 320,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return models.load(ModelSpec("tiny", source="random", dtype="float64", config=pairs(LLAMA)))


def lane(base: BaseModel, seed: int) -> Attachment:
    attachment = attach(base, MethodSpec(r=4, roles=("query", "value", "mlp", "head")), seed)
    for factor in attachment.factors.values():
        torch.nn.init.normal_(factor.B, std=0.5, generator=torch.Generator().manual_seed(seed))
    return attachment


def alone(base: BaseModel, mount: Mount, attachment: Attachment | None, prompt: list[int], steps: int) -> str:
    """Greedy decoding without a cache, a batch or padding."""
    from lora_lab.packing.paths import Share

    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad(), mount.shares([Share(attachment, 0, len(ids))]):
            token = int(base.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == base.tokenizer.eos_token_id:
            break
        ids.append(token)
    return str(base.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))


def test_packed_generation_is_that_of_each_lane_alone(base: BaseModel) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, size=n).tolist() for n in (3, 9, 1, 5, 5)]
    lanes = [lane(base, 1), None, lane(base, 2)]
    mount = Mount(base)
    for attachment in lanes:
        if attachment is not None:
            mount.mount(attachment)
    try:
        packed = generate(mount, [Prompts(attachment, prompts) for attachment in lanes], 6, batch_size=2)
        for attachment, answers in zip(lanes, packed, strict=True):
            assert answers == [alone(base, mount, attachment, prompt, 6) for prompt in prompts]
        assert packed[0] != packed[1] != packed[2]
    finally:
        mount.unmount()


def test_only_whole_answers_count(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    split = data.load(DataSpec(train_size=4, eval_size=6), base.tokenizer).evaluation
    right = split.answers
    said = [right[0], f" {right[1]}\n", right[2] + "0", right[3][:-1], "", right[5]]
    monkeypatch.setattr(module, "generate", lambda mount, lanes, n, size, stop: [[*said][: len(lanes[0].ids)]])
    (score,) = exact_match(Mount(base), [None], split, EvaluationSpec(exact_match=True))
    assert (score.share, score.n) == (3 / 6, 6)
    (score,) = exact_match(Mount(base), [None], split, EvaluationSpec(exact_match=True, exact_match_size=2))
    assert (score.share, score.n) == (1.0, 2)
    assert set(score.by_task) == set(split.tasks[:2])
