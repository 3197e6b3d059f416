"""Spaces and sweeps: domains read and written, bad ones refused by path, keys that hold over renaming."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import SpaceError, SpecError
from lora_lab.spec import ModelSpec, Objective, RunSpec, Space, Strategy, Sweep, pairs, show

BASE = RunSpec(ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))


def numbers(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """A range domain with whatever may go with it."""
    value = st.integers(1, 10**6) if kind == "int" else st.floats(1e-6, 1e6)
    low, high = sorted((draw(value), draw(value)))
    domain: dict[str, Any] = {"low": low, "high": high}
    extra = draw(st.sampled_from(["log", "step", None]))
    if extra == "log":
        domain["log"] = True
    elif extra == "step":
        domain["step"] = draw(value)
    return {kind: domain}


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """A space tree as YAML gives it."""
    domains: dict[str, Any] = {}
    if draw(st.booleans()):
        domains["method.r"] = draw(
            st.lists(st.integers(1, 512), min_size=1, unique=True).map(lambda v: {"choices": v})
            | st.composite(lambda d: numbers(d, "int"))()
        )
    if draw(st.booleans()):
        domains["optimizer.lr"] = numbers(draw, "float")
    if draw(st.booleans()):
        domains["method.roles"] = draw(st.sampled_from([{"masks": "all"}, {"masks": [["query"], []]}]))
    return domains


@given(spaces())
def test_a_space_comes_back_as_it_went(tree: dict[str, Any]) -> None:
    space = Space.from_tree(tree)
    assert Space.from_tree(space.to_tree()) == space
    assert space.paths == tuple(tree)
    space.check(BASE)


def test_a_grid_counts_slowest_first() -> None:
    dropout = {"float": {"low": 0, "high": 0.2, "step": 0.1}}
    space = Space.from_tree({"method.r": {"choices": [2, 8]}, "method.dropout": dropout})
    points = space.grid()
    assert points is not None and [p["method.r"] for p in points] == [2, 2, 2, 8, 8, 8]
    assert [round(p["method.dropout"], 6) for p in points[:3]] == [0, 0.1, 0.2]
    assert Space.from_tree({"method.roles": {"masks": "all"}}).grid() is not None
    assert Space.from_tree({"optimizer.lr": {"float": [1e-4, 1e-2]}}).grid() is None
    assert Space().grid() == [{}]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"method.rr": [1]}, "did you mean 'method.r'"),
        ({"seed": [1, 2]}, "sweep.repeats"),
        ({"method.r": {"choices": []}}, "at least one"),
        ({"method.r": {"choices": [2, 2]}}, "twice"),
        ({"method.r": {"choice": [2]}}, "did you mean 'choices'"),
        ({"method.r": 8}, "expected one of"),
        ({"method.r": {"int": [8, 2]}}, "above"),
        ({"method.r": {"int": [1.5, 2]}}, "int numbers"),
        ({"method.r": {"int": {"low": 1, "high": 8, "step": 0}}}, "step must be positive"),
        ({"optimizer.lr": {"float": {"low": 0.0, "high": 1.0, "log": True}}}, "log range"),
        ({"optimizer.lr": {"float": {"low": 1e-4, "high": 1.0, "log": True, "step": 0.1}}}, "exclude each other"),
        ({"optimizer.lr": {"float": {"low": float("nan"), "high": 1.0}}}, "finite"),
        ({"method.r": {"masks": "all"}}, "only method.roles"),
        ({"method.roles": {"masks": []}}, "list of different masks"),
    ],
)
def test_bad_domains_are_refused_by_path(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(SpaceError, match=said):
        Space.from_tree(tree).check(BASE)


def test_values_no_run_accepts_are_refused() -> None:
    with pytest.raises(SpecError, match=r"method\.r: must be 1 or more"):
        Space.from_tree({"method.r": {"int": [0, 8]}}).check(BASE)


def sweep(**fields: Any) -> Sweep:
    space = Space.from_tree({"method.r": [2, 8]})
    return Sweep(**({"name": "s", "base": BASE, "space": space} | fields))


def test_a_sweep_comes_back_as_it_went_and_keeps_its_key_over_renaming() -> None:
    one = sweep(repeats=3, pruner=Strategy("median", pairs({"n_startup_trials": 2})))
    assert Sweep.from_tree(one.to_tree()) == one
    assert sweep(name="t", repeats=5, trials=1).key == sweep().key
    assert sweep(seed=1).key != sweep().key
    assert sweep(objective=Objective("train_loss")).key != sweep().key
    assert sweep(base=BASE.at({"method.dropout": 0.1})).key != sweep().key
    assert (sweep().planned_trials, sweep(trials=1).planned_trials, sweep(repeats=3).seeds) == (2, 1, (0, 1, 2))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"repeats": 0}, "sweep.repeats"),
        ({"trials": 0}, "sweep.trials"),
        ({"sampler": Strategy("tpe")}, "sweep.trials=50"),
        ({"space": Space.from_tree({"optimizer.lr": {"float": [1e-4, 1e-2]}})}, "range without steps"),
        ({"objective": Objective("exact_match", "maximize")}, "evaluation.exact_match=true"),
        ({"base": BASE.at({"method.alpha": 8.0}), "space": Space.from_tree({"method.alpha_over_r": [1.0]})}, "twice"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        sweep(**fields)


def test_values_are_shown_as_people_read_them() -> None:
    values = [8, 0.5, 1e-05, ("value", "query"), ("addition", "dates"), (), (0, 3), True]
    assert list(map(show, values)) == ["8", "0.5", "1e-05", "query+value", "addition+dates", "none", "[0, 3]", "True"]
