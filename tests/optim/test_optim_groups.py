"""LoRA+ and layer-wise rates over every optimizer, states that survive, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lora_lab.errors import SpecError
from lora_lab.optim.optimizers import build, set_rate
from lora_lab.optim.state import export_state, import_state
from lora_lab.spec import BudgetSpec, ModelSpec, OptimizerSpec, RunSpec, ScheduleSpec
from lora_lab.spec.optimizer import OPTIMIZERS
from lora_lab.worker.preflight import check_runs

RUNNABLE = [name for name in OPTIMIZERS if name != "paged_adamw8bit"]
PREFIX = "base_model.model.model.layers"
SHAPES = {
    f"{PREFIX}.1.self_attn.q_proj.lora_A.weight": (8, 640),
    f"{PREFIX}.1.self_attn.q_proj.lora_B.weight": (16, 8),
    f"{PREFIX}.1.self_attn.q_proj.lora_magnitude_vector.weight": (16,),
    f"{PREFIX}.3.mlp.up_proj.lora_A.weight": (4, 24),
    f"{PREFIX}.3.mlp.up_proj.lora_B.weight": (16, 4),
    "base_model.model.model.embed_tokens.lora_A.weight": (4, 24),
    "base_model.model.lm_head.lora_A.weight": (4, 24),
}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    return {name: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for name, s in SHAPES.items()}


def peaks(spec: OptimizerSpec) -> dict[str, float]:
    named = parameters()
    optimizer = build(spec, named)
    set_rate(optimizer, 0.5)
    rates = {  # by storage: an element-wise optimizer holds one parameter that several names share
        p.untyped_storage().data_ptr(): group["lr"] / 0.5 for group in optimizer.param_groups for p in group["params"]
    }
    found = {name: rates[p.untyped_storage().data_ptr()] for name, p in named.items()}
    assert found.keys() == named.keys()
    return found


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_parameter_has_its_rate_under_every_optimizer(name: str) -> None:
    ratio, decay = 16.0, 0.5
    assert set(peaks(OptimizerSpec(name)).values()) == {1.0}
    assert list(peaks(OptimizerSpec(name, lora_plus_ratio=ratio, layer_decay=decay)).values()).count(1.0) == 2
    plus = peaks(OptimizerSpec(name, lora_plus_ratio=ratio))
    for parameter, peak in plus.items():
        assert peak == (ratio if "lora_B" in parameter or "magnitude" in parameter else 1.0)
    layers = peaks(OptimizerSpec(name, layer_decay=decay))
    wanted = {".1.": decay**2, ".3.": 1.0, "embed": decay**4, "lm_head": 1.0}
    for parameter, peak in layers.items():
        assert peak == next(value for part, value in wanted.items() if part in parameter), parameter


def train(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in named.values():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype) + 0.1 * p.detach()
        if hasattr(optimizer, "observe") and step % 4 == 0:
            optimizer.observe({p: p.grad**2 for p in named.values()})
        set_rate(optimizer, 0.01 * (1 + step % 3))
        optimizer.step()


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_state_that_went_through_a_file_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    spec = OptimizerSpec(name, lora_plus_ratio=4.0)
    through, torn = parameters(dtype), parameters(dtype)
    train(build(spec, through), through, 0, 12)
    first = build(spec, torn)
    train(first, torn, 0, 6)
    tensors, scalars = export_state(first)
    kept = {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(scalars))
    again = {k: nn.Parameter(p.detach().clone()) for k, p in torn.items()}
    second = build(spec, again)
    import_state(second, kept[0] | kept[1])
    train(second, again, 6, 12)
    for parameter, value in through.items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, again[parameter]), parameter


def test_lora_plus_without_a_B_and_pages_without_a_gpu_are_refused() -> None:
    biases = {"base_model.model.model.layers.0.mlp.bias": nn.Parameter(torch.zeros(4))}
    with pytest.raises(SpecError, match="trains no lora_B"):
        build(OptimizerSpec(lora_plus_ratio=4.0), biases)
    with pytest.raises(SpecError, match="adamw8bit, which keeps the same averages"):
        build(OptimizerSpec("paged_adamw8bit"), parameters())
    with pytest.raises(SpecError, match="adamw8bit, which keeps the same averages"):
        check_runs([BASE, BASE.at({"optimizer.name": "paged_adamw8bit"})], "cpu")  # before any file is looked at


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "sophia"}, "did you mean 'sophia"),
        ({"lr": 0.0}, "optimizer.lr: must be a positive number"),
        ({"lora_plus_ratio": 0.0}, "lora_plus_ratio: must be a positive number"),
        ({"lora_plus_ratio": float("inf")}, "lora_plus_ratio"),
        ({"layer_decay": 1.5}, r"layer_decay: must be in \(0, 1\]"),
        ({"beta2": 1.0}, r"beta2: must be in \[0, 1\)"),
        ({"eps": -1.0}, "eps: must be 0 or more"),
        ({"name": "adafactor", "decay_rate": 0.8}, "must be negative"),
        ({"name": "sophiag", "hessian_every": 0}, "hessian_every: must be 1 or more"),
        ({"name": "sophiag", "rho": 0.0}, "rho: must be a positive number"),
        ({"name": "muon", "adjust_lr": "none"}, "Known: original, match_rms_adamw"),
        ({"name": "muon", "ns_steps": 0}, "ns_steps: must be 1 or more"),
        ({"name": "prodigy", "d0": 0.0}, "d0: must be a positive number"),
        ({"name": "schedulefree_adamw", "beta1": 0.0}, "beta1 must be above 0"),
    ],
)
def test_impossible_optimizers_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        OptimizerSpec(**fields)  # type: ignore[arg-type]


MODEL = ModelSpec("m", path="./m")
BASE = RunSpec(MODEL, budget=BudgetSpec(steps=40))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"optimizer.momentum": 0.9, "optimizer.rho": 3.0, "optimizer.ns_steps": 9}),
        ({}, {"optimizer.beta1": 0.9, "optimizer.eps": 1e-8}),  # its own defaults
        ({}, {"optimizer.lora_plus_ratio": 1.0, "optimizer.layer_decay": 1.0}),
        ({"optimizer.name": "lion"}, {"optimizer.name": "lion", "optimizer.beta2": 0.99, "optimizer.eps": 1.0}),
        ({"optimizer.name": "sgd"}, {"optimizer.name": "sgd", "optimizer.nesterov": True}),  # without momentum
        ({"schedule.warmup_ratio": 0.1}, {"schedule.warmup_steps": 4}),
        ({}, {"schedule.cycles": 5, "schedule.timescale": 3, "schedule.decay_share": 0.5}),
        ({"schedule.name": "cosine"}, {"schedule.name": "cosine", "schedule.min_lr_ratio": 0.0}),
        ({"schedule.name": "constant"}, {"schedule.name": "constant", "schedule.min_lr_ratio": 0.5}),
    ],
)
def test_what_cannot_matter_is_absent_from_the_key(one: dict[str, object], other: dict[str, object]) -> None:
    assert BASE.at(one).canonical == BASE.at(other).canonical


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"optimizer.lora_plus_ratio": 4.0}),
        ({}, {"optimizer.layer_decay": 0.9}),
        ({"optimizer.name": "sophiag"}, {"optimizer.name": "sophiah"}),
        ({"optimizer.name": "sophiag"}, {"optimizer.name": "sophiag", "optimizer.hessian_every": 5}),
        (
            {"optimizer.name": "sgd", "optimizer.momentum": 0.9},
            {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
        ),
        ({"schedule.warmup_ratio": 0.1}, {}),
        ({"budget.steps": None, "schedule.warmup_ratio": 0.1}, {"budget.steps": None, "schedule.warmup_steps": 4}),
        ({}, {"schedule.min_lr_ratio": 0.1}),
        ({"schedule.name": "wsd"}, {"schedule.name": "wsd", "schedule.decay_curve": "cosine"}),
    ],
)
def test_what_matters_is_in_the_key(one: dict[str, object], other: dict[str, object]) -> None:
    assert BASE.at(one).key != BASE.at(other).key


def test_keys_of_runs_from_before_these_fields_stand() -> None:
    tree = BASE.canonical
    adamw = {"name": "adamw", "lr": 3e-4, "weight_decay": 0.01, "max_grad_norm": 1.0}
    assert tree["optimizer"] == adamw | {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    assert tree["schedule"] == {"name": "linear", "warmup_steps": 0}
    sgd = RunSpec(MODEL, optimizer=OptimizerSpec("sgd"), schedule=ScheduleSpec("cosine", 3)).canonical
    assert sgd["optimizer"] == adamw | {"name": "sgd", "momentum": 0.0}
    assert sgd["schedule"] == {"name": "cosine", "warmup_steps": 3}
