"""Layer-wise ranks: shapes, budgets, patterns; and what PEFT makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import MethodError, SpecError
from lora_lab.methods import attach, module_ranks
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec, ModelSpec, RunSpec, pairs

NAMES = [f"model.layers.{layer}.self_attn.{end}" for layer in range(4) for end in ("q_proj", "v_proj")] + ["lm_head"]


def by_layer(**fields: Any) -> list[int]:
    """Ranks of the four layers (the same in both modules) and of the head."""
    ranks = module_ranks(MethodSpec(**fields), NAMES)
    assert list(ranks) == NAMES
    assert all(ranks[a] == ranks[b] for a, b in zip(NAMES[:8:2], NAMES[1:8:2], strict=True))
    return [ranks[name] for name in NAMES[::2]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"r": 5}, [5, 5, 5, 5, 5]),
        ({"r": 2, "rank_shape": "linear", "r_last": 8}, [2, 4, 6, 8, 2]),
        ({"r": 8, "rank_shape": "decay", "r_last": 1}, [8, 4, 2, 1, 8]),
        ({"r": 3, "rank_shape": "groups", "rank_groups": (16, 4)}, [16, 16, 4, 4, 3]),
        ({"r": 3, "rank_shape": "groups", "rank_groups": (9, 1, 1)}, [9, 9, 1, 1, 3]),
    ],
)
def test_shapes(fields: dict[str, Any], expected: list[int]) -> None:
    assert by_layer(**fields) == expected


@settings(deadline=None)
@given(st.integers(9, 400), st.sampled_from(["constant", "linear", "decay"]), st.integers(1, 64), st.integers(1, 64))
def test_a_budget_is_spent_exactly_and_keeps_the_shape(budget: int, shape: str, r: int, last: int) -> None:
    spec = MethodSpec(r=r, rank_shape=shape, r_last=None if shape == "constant" else last, rank_budget=budget)
    ranks = module_ranks(spec, NAMES)
    assert sum(ranks.values()) == budget
    assert min(ranks.values()) >= 1
    ordered = [ranks[name] for name in NAMES[:8:2]]
    rising = sorted(ordered, reverse=shape != "constant" and last < r)
    assert all(abs(a - b) <= 1 for a, b in zip(ordered, rising, strict=True))


def test_a_pattern_comes_first() -> None:
    spec = MethodSpec(r=4, rank_pattern=pairs({"v_proj": 2, "layers.0.self_attn.q_proj": 7}), rank_budget=40)
    ranks = module_ranks(spec, NAMES)
    assert ranks["model.layers.0.self_attn.q_proj"] == 7
    assert {rank for name, rank in ranks.items() if name.endswith("v_proj")} == {2}
    assert sum(ranks.values()) == 40


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank_budget": 8}, "leaves 8 for 9 modules"),
        ({"rank_pattern": pairs({"proj": 2})}, "'proj' is the end of no"),
        ({"rank_shape": "groups", "rank_groups": (1, 2, 3, 4, 5)}, "5 groups, and adapters are in 4 layers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        module_ranks(MethodSpec(**fields), NAMES)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank_shape": "linear"}, "Give both, or neither"),
        ({"r_last": 4}, "Give both, or neither"),
        ({"rank_groups": (4,)}, "groups needs one rank"),
        ({"rank_shape": "groups", "rank_groups": (4, 0)}, "1 or more, got 0"),
        ({"rank_pattern": pairs({"q_proj": "8"})}, "q_proj: a rank must be 1 or more, got '8'"),
        ({"init": "orthogonal", "r": 3}, "even"),
        ({"init": "pisa"}, "did you mean 'pissa'"),
        ({"name": "adalora", "r": 8, "init_r": 8}, "not above"),
        ({"name": "adalora", "initial_share": 0.5, "final_share": 0.5}, "leave no step"),
        ({"name": "prompt_tuning", "prompt_init": "text"}, "a text to begin with"),
        ({"name": "prompt_tuning", "prompt_text": "Say:"}, "a text to begin with"),
        ({"name": "loar"}, "did you mean 'lora'"),
        ({"placement": "parallell"}, "did you mean 'parallel'"),
        ({"virtual_tokens": 0}, "1 or more"),
    ],
)
def test_contradictions_are_refused_at_once(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        MethodSpec(**fields)


def key(**fields: Any) -> str:
    model = ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"}))
    return RunSpec(model, method=MethodSpec(**fields)).key


def test_only_what_a_method_reads_is_in_its_key() -> None:
    assert key(name="ia3", r=4, dropout=0.5, init="pissa") == key(name="ia3", virtual_tokens=9)
    assert key(name="full", roles=("mlp",)) == key(name="full")
    assert key(name="full", dtype="float32") != key(name="full")
    assert key(name="prompt_tuning", roles=()) == key(name="prompt_tuning") != key(name="p_tuning")
    assert key(name="ia3", roles=()) == key(name="vera", roles=()) == key(roles=())
    assert key(name="last_layers", top_layers=1) == key(name="last_layers")
    assert key(name="adalora", r=8, init_r=12) == key(name="adalora", r=8)
    assert key(name="vera") != key(name="vera", projection_seed=1)
    assert key(calibration_sequences=9) == key()
    assert key(calibration_sequences=9, init="eva") != key(init="eva")
    assert key(dora=True) != key() != key(rank_budget=99)
    assert key(rank_budget=99, alpha=16.0) != key(rank_budget=99, alpha_over_r=2.0)


def test_the_keys_of_older_runs_stay() -> None:
    tree = {"name": "lora", "r": 8, "roles": ["query", "value"], "layers": [], "dropout": 0.0, "init": "default"}
    model = ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"}))
    assert RunSpec(model).canonical["method"] == tree | {"scaling": 2.0}


def test_the_saved_config_has_patterns_that_peft_reads(tiny_base: Callable[..., BaseModel], tmp_path: Path) -> None:
    spec = MethodSpec(r=8, rank_shape="linear", r_last=2, alpha_over_r=0.5, roles=("query", "head"))
    attachment = attach(tiny_base("tied"), spec, 0)
    assert {name: factor.A.shape[0] for name, factor in attachment.factors.items()} == {
        "model.layers.0.self_attn.q_proj": 8,
        "model.layers.1.self_attn.q_proj": 5,
        "model.layers.2.self_attn.q_proj": 2,
        "lm_head": 8,
    }
    assert {factor.scaling for factor in attachment.factors.values()} == {0.5}
    attachment.save(tmp_path, base_name="tied")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (8, 4, ["lm_head", "q_proj"])
    assert config["rank_pattern"] == {"model.layers.1.self_attn.q_proj": 5, "model.layers.2.self_attn.q_proj": 2}
    assert config["alpha_pattern"] == {"model.layers.1.self_attn.q_proj": 2.5, "model.layers.2.self_attn.q_proj": 1}
