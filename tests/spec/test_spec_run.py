"""Run specs: what is refused, what two spellings share, and trees that come back as they went."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import SpecError
from lora_lab.spec import (
    ROLES,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleSpec,
    all_masks,
    from_tree,
    mask_name,
    mask_of,
    pairs,
    thaw,
    to_tree,
)

LLAMA = {"model_type": "llama", "rope": {"theta": 1e4, "list": [1, 2]}}
MODEL = ModelSpec("tiny", source="random", config=pairs(LLAMA))


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    """Any valid run on the tiny model."""
    positive = st.floats(1e-6, 1e3)
    alpha = draw(st.sampled_from(["alpha", "alpha_over_r", None]))
    return RunSpec(
        model=MODEL,
        data=DataSpec(max_length=draw(st.integers(1, 4096)), tasks=tuple(draw(st.lists(st.text(), max_size=2)))),
        method=MethodSpec(
            r=draw(st.integers(1, 512)),
            roles=tuple(draw(st.lists(st.sampled_from(ROLES)))),
            dropout=draw(st.floats(0, 0.99)),
            rslora=draw(st.booleans()),
            **({alpha: draw(positive)} if alpha else {}),
        ),
        optimizer=OptimizerSpec(draw(st.sampled_from(["adamw", "sgd"])), lr=draw(positive)),
        schedule=ScheduleSpec(draw(st.sampled_from(["constant", "linear", "cosine"])), draw(st.integers(0, 100))),
        budget=BudgetSpec(steps=draw(st.none() | st.integers(1, 9999)), batch_size=draw(st.integers(1, 64))),
        evaluation=EvaluationSpec(exact_match=draw(st.booleans())),
        seed=draw(st.integers(0, 2**31)),
    )


@given(runs())
def test_a_tree_comes_back_as_it_went(run: RunSpec) -> None:
    again = from_tree(RunSpec, to_tree(run))
    assert again == run and hash(again) == hash(run) and again.key == run.key


@given(runs())
def test_two_spellings_of_alpha_are_one_experiment(run: RunSpec) -> None:
    said = run.at({"method.alpha": run.method.effective_alpha, "method.alpha_over_r": None})
    if math.isclose(said.method.scaling, run.method.scaling, rel_tol=0, abs_tol=0):
        assert said.key == run.key


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"optimizer.momentum": 0.9}),  # AdamW has none
        ({"optimizer.name": "sgd"}, {"optimizer.beta1": 0.5}),
        ({}, {"budget.micro_batch_size": 8}),  # the whole batch, as when nothing is said
        ({}, {"budget.epochs": 1.0}),
        ({}, {"evaluation.max_new_tokens": 99}),  # nothing is generated
        ({"method.roles": ()}, {"method.r": 64, "method.dropout": 0.5}),  # an empty mask
        ({"method.roles": ("value", "query")}, {"method.roles": ("query", "value", "query")}),
        ({"method.alpha": 16.0}, {"method.alpha": None, "method.alpha_over_r": 2.0}),
        ({"method.r": 4, "method.rslora": True}, {"method.rslora": False, "method.alpha_over_r": 4.0}),
    ],
)
def test_what_cannot_matter_is_not_in_the_key(base: dict[str, Any], change: dict[str, Any]) -> None:
    run = RunSpec(MODEL).at(base)
    assert run.at(change).key == run.key


@pytest.mark.parametrize(
    "change",
    [
        {"method.r": 9},
        {"method.alpha_over_r": 1.0},
        {"method.dropout": 0.1},
        {"method.roles": ("query",)},
        {"optimizer.lr": 1e-3},
        {"optimizer.name": "sgd"},
        {"data.seed": 1},
        {"seed": 1},
        {"budget.steps": 10},
        {"budget.micro_batch_size": 4},
        {"model.init_seed": 1},
        {"schedule.name": "cosine"},
    ],
)
def test_what_matters_is_in_the_key(change: dict[str, Any]) -> None:
    assert RunSpec(MODEL).at(change).key != RunSpec(MODEL).key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method.r": 0}, "1 or more, got 0"),
        ({"method.r": "8"}, "expected int, got '8'"),
        ({"method.r": True}, "expected int, got True"),
        ({"method.alpha": 1.0, "method.alpha_over_r": 1.0}, "the same thing twice"),
        ({"method.alpha": float("inf")}, "positive number"),
        ({"method.dropout": 1.0}, r"\[0, 1\)"),
        ({"method.roles": ["quary"]}, "did you mean 'query'"),
        ({"method.nmae": "lora"}, "method.nmae: no such field; did you mean 'name'"),
        ({"optimizer.name": "adam"}, "did you mean 'adamw'"),
        ({"optimizer.lr": 0.0}, "positive"),
        ({"budget.steps": 1, "budget.epochs": 1.0}, "give one"),
        ({"budget.batch_size": 2, "budget.micro_batch_size": 4}, "larger than"),
        ({"data.tasks": ["a"], "data.diversity": 2}, "give one"),
        ({"data.name": "alpaca"}, "data.path"),
        ({"model.source": "pretrained", "model.path": None}, "model.path"),
    ],
)
def test_bad_values_are_refused_with_their_path(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        RunSpec(MODEL).at(change)


def test_scaling_is_alpha_over_r_or_over_its_root() -> None:
    assert MethodSpec(r=16, alpha=8.0).scaling == 0.5
    assert MethodSpec(r=16, alpha=8.0, rslora=True).scaling == 2.0
    assert MethodSpec(r=16).effective_alpha == 32.0


def test_total_steps_count_the_last_short_batch() -> None:
    assert BudgetSpec(batch_size=8).total_steps(17) == 3
    assert BudgetSpec(epochs=2.0, batch_size=8).total_steps(17) == 6
    assert BudgetSpec(epochs=0.5, batch_size=8).total_steps(8) == 1
    assert BudgetSpec(steps=5).total_steps(1000) == 5


def test_there_are_64_masks_and_each_has_one_spelling() -> None:
    masks = all_masks()
    assert len(set(masks)) == 64 and masks[0] == () and masks[-1] == ROLES
    assert all(mask_of(mask_name(mask)) == mask for mask in masks)
    assert mask_of({"value": True, "query": True, "key": False}) == ("query", "value")


def test_frozen_mappings_come_back_deeply() -> None:
    tree = {"b": [1, {"c": None}], "a": {"x": [["k", "v"]]}}
    assert thaw(pairs(tree)) == tree
    assert hash(pairs(tree)) == hash(pairs(dict(reversed(tree.items()))))
