"""Factorial designs, checked by what defines them: balance, orthogonality, and the aliases that they tell."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_lab.errors import SpaceError, SpecError
from lora_lab.spec import ROLES, Design, ModelSpec, RunSpec, Space, Strategy, Sweep, all_masks, pairs
from lora_lab.spec.design import design

BASE = RunSpec(ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))
MASKS = {"method.roles": {"masks": "all"}}


def signs(made: Design) -> dict[str, NDArray[np.int64]]:
    """The column of every role: +1 where it is on."""
    return {role: np.array([1 if role in p["method.roles"] else -1 for p in made.points]) for role in ROLES}


def make(name: str, runs: int | None = None, tree: dict[str, Any] | None = None) -> Design:
    return design(name, Space.from_tree(MASKS if tree is None else tree), BASE, runs)


@pytest.mark.parametrize(
    ("name", "runs", "points"),
    [
        ("factorial", None, 64),
        ("fractional", None, 16),
        ("fractional", 32, 32),
        ("plackett_burman", None, 8),
        ("plackett_burman", 12, 12),
        ("plackett_burman", 20, 20),
        ("plackett_burman", 24, 24),
    ],
)
def test_columns_are_balanced_and_orthogonal(name: str, runs: int | None, points: int) -> None:
    made = make(name, runs)
    columns = signs(made)
    assert len(made.points) == points
    assert len({p["method.roles"] for p in made.points}) == points or name == "plackett_burman"
    assert all(column.sum() == 0 for column in columns.values())
    assert all(a @ b == 0 for a, b in itertools.combinations(columns.values(), 2))


@pytest.mark.parametrize("runs", [16, 32])
def test_the_aliases_told_are_those_of_the_columns(runs: int) -> None:
    made, columns = make("fractional", runs), {}
    columns = signs(made)
    pairs_of = {"·".join(p): columns[p[0]] * columns[p[1]] for p in itertools.combinations(ROLES, 2)}
    effects = columns | pairs_of
    told = {frozenset(two) for line in made.aliases for two in itertools.combinations(line.split(" = "), 2)}
    seen = {frozenset((a, b)) for a, b in itertools.combinations(effects, 2) if abs(effects[a] @ effects[b]) == runs}
    assert told == seen
    for generator in re.findall(r"(\w+) = ([\w·]+)[,)]", made.sentence):
        product = np.prod([columns[role] for role in generator[1].split("·")], axis=0)
        assert (columns[generator[0]] == product).all(), generator
    assert not any(role in line.split(" = ") for line in made.aliases for role in ROLES), "resolution IV"
    assert made.sentence.startswith(
        f"2^(6-{6 - runs.bit_length() + 1}) fraction of resolution {'IV' if runs == 16 else 'VI'}"
    )


def test_plackett_burman_of_twelve_aliases_main_effects_in_part() -> None:
    columns = signs(make("plackett_burman", 12))
    for role in ROLES:
        others = [r for r in ROLES if r != role]
        shares = {abs(columns[role] @ (columns[a] * columns[b])) for a, b in itertools.combinations(others, 2)}
        assert shares == {4}, "a third of each"


def test_one_at_a_time_switches_each_role_of_the_base() -> None:
    made = make("one_at_a_time")
    assert [set(p["method.roles"]) ^ set(BASE.method.roles) for p in made.points] == [set(), *({r} for r in ROLES)]
    grid = make("one_at_a_time", tree={"method.r": [4, 8, 16], "optimizer.name": ["adamw", "sgd"]})
    assert grid.points == (
        {"method.r": 8, "optimizer.name": "adamw"},
        {"method.r": 4, "optimizer.name": "adamw"},
        {"method.r": 16, "optimizer.name": "adamw"},
        {"method.r": 8, "optimizer.name": "sgd"},
    )


def test_factors_may_be_of_any_kind() -> None:
    tree = {
        "method.r": {"int": [2, 32]},
        "optimizer.name": ["adamw", "sgd"],
        "method.rslora": [True, False],
        "optimizer.lr": {"float": {"low": 1e-4, "high": 1e-2, "log": True}},
    }
    made = make("fractional", tree=tree)
    assert len(made.points) == 8 and {p["method.r"] for p in made.points} == {2, 32}
    full = {tuple(p.values()) for p in make("factorial", tree=tree).points}
    assert {tuple(p.values()) for p in made.points} < full and len(full) == 16


@pytest.mark.parametrize(
    ("name", "runs", "tree", "said"),
    [
        ("factorial", None, {"method.r": [2, 4, 8]}, "3 values, and a factor has two"),
        ("factorial", None, {"method.roles": {"masks": [["query"], ["mlp"]]}}, "masks: all"),
        ("fractional", None, {"method.r": [2, 4]}, "use factorial"),
        ("fractional", 24, MASKS, "16, 32 points, not 24"),
        ("plackett_burman", 4, MASKS, "8, 12, 16, 20, 24 points"),
        ("factorial", 32, MASKS, "sampler=fractional"),
        ("one_at_a_time", 3, MASKS, "takes no runs"),
        ("one_at_a_time", None, {"method.r": [2, 4]}, r"method\.r=8 is not in the domain"),
        ("one_at_a_time", None, {"optimizer.lr": {"float": [1e-4, 1e-3]}}, "without steps"),
        ("factorial", None, {"method.r": {"choices": [2, 4], "when": "optimizer.lr > 0"}}, "drop the `when`"),
    ],
)
def test_spaces_that_are_no_factors_are_refused(name: str, runs: int | None, tree: dict[str, Any], said: str) -> None:
    with pytest.raises((SpaceError, SpecError), match=said):
        make(name, runs, tree)


def test_a_sweep_of_a_design_is_as_long_as_the_design() -> None:
    def of(name: str, **options: Any) -> Sweep:
        return Sweep("s", BASE, Space.from_tree(MASKS), sampler=Strategy(name, pairs(options)))

    assert [of(n).planned_trials for n in ("factorial", "fractional", "plackett_burman", "one_at_a_time")] == [
        64,
        16,
        8,
        7,
    ]
    assert of("fractional", runs=32).planned_trials == 32
    assert {p["method.roles"] for p in of("factorial").points or ()} == set(all_masks())
    with pytest.raises(SpecError, match="has no option 'run'; did you mean 'runs'"):
        of("fractional", run=8)
