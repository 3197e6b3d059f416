"""Log-likelihoods with shared beginnings are those of each request alone, for every kind of adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lora_lab import models
from lora_lab.bench import likelihood as module
from lora_lab.bench import shared
from lora_lab.bench.beginnings import Asked, plan
from lora_lab.bench.likelihood import judge, likelihoods
from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel
from lora_lab.packing import native
from lora_lab.packing.curvature import supervised_logits
from lora_lab.packing.paths import Mount
from lora_lab.spec import MethodSpec, ModelSpec, pairs

COMMON: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 320,
    "num_hidden_layers": 2,
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True, **COMMON},
    "sliding": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5, **COMMON},
    "capped": {
        "model_type": "gemma2",
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        **COMMON,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 320, "n_positions": 128},
}


def load(kind: str, dtype: str = "float64") -> BaseModel:
    return models.load(ModelSpec("tiny", source="random", dtype=dtype, config=pairs(MODELS[kind]), init_seed=3))


def lanes_of(base: BaseModel, *specs: MethodSpec) -> list[Attachment]:
    found = [attach(base, spec, seed) for seed, spec in enumerate(specs)]
    for seed, lane in enumerate(found):
        generator = torch.Generator().manual_seed(seed)
        for parameter in lane.parameters().values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return found


def questions() -> list[Asked]:
    """Questions that share an instruction, answers that share a question, one text alone and one twice."""
    rng = np.random.default_rng(0)
    instruction = rng.integers(0, 256, 9).tolist()
    out = []
    for length in (3, 7, 1, 5):
        question = instruction + rng.integers(0, 256, length).tolist()
        for size in (1, 4, 2, 1):
            out.append(Asked((*question, *rng.integers(0, 256, size).tolist()), len(question)))
    alone = tuple(rng.integers(0, 256, 23).tolist())
    return [*out, Asked(alone, 1), out[3], Asked(alone[:7], 6), Asked(alone[:12], 7)]


@pytest.fixture
def small_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "PASS_ROWS", 40)
    yield


def reference(base: BaseModel, lane: Attachment | None, request: Asked) -> tuple[float, bool]:
    ids = np.array(request.ids)
    if lane is None:
        with torch.no_grad():
            logits = base.model(torch.tensor([request.ids]), use_cache=False).logits[0, request.start - 1 : -1]
        labels = torch.tensor(request.ids[request.start :])
    else:
        wanted = np.arange(len(ids)) >= request.start
        with torch.no_grad():
            logits, labels = supervised_logits(base, lane, [(ids, wanted)])
    log = torch.log_softmax(logits, -1).gather(1, labels[:, None]).sum()
    return float(log), bool((logits.argmax(-1) == labels).all())


@pytest.mark.parametrize("kind", MODELS)
def test_shared_beginnings_change_no_number(kind: str, small_passes: None) -> None:
    base = load(kind)
    some = ("query", "key", "value") if kind == "gpt2" else ("query", "value")
    specs = [MethodSpec(r=4, roles=(*some, "mlp", "head")), MethodSpec(r=2, roles=("projection",))]
    specs += [MethodSpec("ia3"), MethodSpec("bottleneck", r=4)] if kind == "llama" else []
    lanes: list[Attachment | None] = [*lanes_of(base, *specs), None]
    check(base, lanes, 1e-6 if kind == "capped" else 1e-9)  # Gemma2 computes its norms and softmax in float32


def test_virtual_tokens_and_lanes_that_stay_alone(small_passes: None) -> None:
    base = load("llama")
    specs = [
        MethodSpec("prompt_tuning", virtual_tokens=3),
        MethodSpec(r=4, roles=("value",)),
        MethodSpec("prefix_tuning", virtual_tokens=2),
        MethodSpec("prompt_tuning", virtual_tokens=3),
    ]
    check(base, list(lanes_of(base, *specs)), 1e-7)


def check(base: BaseModel, lanes: list[Attachment | None], rtol: float = 1e-9) -> None:
    requests = questions()
    # what greedy decoding would say is asked, too
    greedy = [reference_greedy(base, request) for request in requests[:3]]
    requests += greedy
    expected = [[reference(base, lane, request) for request in requests] for lane in lanes]
    mount = Mount(base)
    for lane in lanes:
        if lane is not None:
            mount.mount(lane)
    try:
        found = likelihoods(mount, lanes, requests)
    finally:
        mount.unmount()
    for lane, (one, wanted) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(one.log, [log for log, _ in wanted], rtol=rtol, err_msg=f"lane {lane}")
        assert one.greedy.tolist() == [is_greedy for _, is_greedy in wanted]
        assert not one.tied.any()
    if None in lanes:
        assert found[lanes.index(None)].greedy[-3:].all()


def reference_greedy(base: BaseModel, request: Asked) -> Asked:
    ids = list(request.ids[: request.start])
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(base.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return Asked(tuple(ids), request.start)


def test_each_distinct_beginning_is_a_row_once() -> None:
    requests = questions()
    laid = plan(requests, 10)
    beginnings = {request.ids[:n] for request in requests for n in range(1, len(request.ids))}
    assert laid.rows == len(beginnings)
    assert len(laid.passes) > 3
    assert all(len(queries) == len(r.ids) - r.start for queries, r in zip(laid.queries, requests, strict=True))


@pytest.mark.parametrize(("dtype", "d", "rtol"), [("float32", 16, 1e-5), ("float32", 40, 1e-5), ("bfloat16", 16, 2e-2)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("common", [1, 1000])
def test_the_kernel_attends_as_plain_products_do(
    dtype: str, d: int, rtol: float, window: int | None, common: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several passes that carry keys on; what the sequences share at once or on their paths; a lane of NaN."""
    assert native.usable(torch.empty(0)), "this test needs a C++ compiler"
    monkeypatch.setattr(shared, "COMMON", common)
    monkeypatch.setattr(shared, "STRETCH", 2)
    lanes, kv, groups, cpu = 3, 2, 3, torch.device("cpu")
    random = torch.Generator().manual_seed(0)
    passes = plan(questions(), 20).passes
    assert len(passes) > 2 and any(step.common for step in passes)
    carried: shared.Carried = []
    exact: shared.Carried = []
    for step in passes:
        n = len(step.tokens)
        q, k, v = (torch.randn(h, lanes * n, d, generator=random) for h in (kv * groups, kv, kv))
        k[:, n : 2 * n] = float("nan")
        q, k, v = (x.to(getattr(torch, dtype)) for x in (q, k, v))
        here = shared.SharedLayout(step, lanes, cpu, carried)
        there = shared.SharedLayout(step, lanes, cpu, exact)
        got = here.shared(q, k, v, 0.3, None, window).view(lanes, n, -1)
        wanted = there.shared(q.double(), k.double(), v.double(), 0.3, None, window).view(lanes, n, -1)
        carried, exact = here.shared.layers, there.shared.layers
        assert got[1].isnan().all() and not got[[0, 2]].isnan().any()
        torch.testing.assert_close(got[[0, 2]].double(), wanted[[0, 2]], rtol=rtol, atol=rtol)


def test_a_narrow_model_has_no_spurious_ties(small_passes: None) -> None:
    """16-bit logits often agree where the hidden states do not: labels are compared in float32."""
    base = load("llama", "bfloat16")
    requests = [
        Asked((*request.ids[: request.start], label), request.start) for request in questions() for label in range(99)
    ]
    (lane,) = lanes_of(base, MethodSpec(r=4, roles=("value", "head")))
    mount = Mount(base)
    mount.mount(lane)
    try:
        found = likelihoods(mount, [None, lane], requests)
    finally:
        mount.unmount()
    for one in found:
        groups = one.log.reshape(-1, 99)
        assert all(len(set(group.tolist())) == 99 for group in groups)
        assert one.log.max() < 0


def test_what_is_exactly_as_likely_is_not_greedy() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [1.0, 3.0, 2.0, 0.0], [float("nan")] * 4])
    rows = torch.tensor([0, 0, 1, 1, 2])
    found = judge(logits, rows, torch.tensor([1, 2, 1, 2, 0]), "none")
    assert found.greedy.tolist() == [False, False, True, False, False]
    assert found.tied.tolist() == [True, True, False, False, False]
