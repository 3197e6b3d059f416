"""Conditions, switches, enqueued points, canonical keys: properties over spaces that hypothesis makes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import SpaceError, SpecError
from lora_lab.spec import (
    ModelSpec,
    Objective,
    RunSpec,
    Space,
    Stop,
    Strategy,
    Sweep,
    all_masks,
    at_path,
    pairs,
    to_tree,
)

BASE = RunSpec(ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))
MOMENTUM = {
    "optimizer.momentum": {"choices": [0.5, 0.9], "when": {"optimizer.name": "sgd"}},
    "optimizer.name": {"choices": ["adamw", "sgd"]},
}


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Finite spaces with conditions, some of them on paths that have conditions themselves."""
    tree: dict[str, Any] = {
        "optimizer.name": {"choices": ["adamw", "sgd"]},
        "optimizer.momentum": {"choices": [0.0, 0.9], "when": {"optimizer.name": "sgd"}},
        "method.r": {"choices": draw(st.lists(st.sampled_from([2, 4, 8]), min_size=1, unique=True))},
        "method.dropout": {"choices": [0.0, 0.1], "when": draw(st.sampled_from(["method.r > 2", "method.r >= 2"]))},
        "method.roles.query": {"choices": [True, False], "when": "optimizer.momentum > 0.5 and method.r == 2"},
        "optimizer.beta1": {"choices": [0.8, 0.9], "when": {"optimizer.name": ["adamw"]}},
    }
    if "4" not in str(tree["method.r"]) and "8" not in str(tree["method.r"]):
        tree["method.dropout"]["when"] = "method.r >= 2"
    if 2 not in tree["method.r"]["choices"]:
        del tree["method.roles.query"]
    paths = draw(st.permutations(list(tree)))
    return Space.from_tree({path: tree[path] for path in paths})


@given(spaces())
def test_a_grid_holds_every_point_once_and_only_what_is_searched_there(space: Space) -> None:
    space.check(BASE)
    assert Space.from_tree(space.to_tree()) == space
    points = space.grid(BASE)
    assert points is not None and len({repr(point) for point in points}) == len(points)
    keys = set()
    for point in points:
        assert list(point) == [path for path in space.paths if path in point]
        assert ("optimizer.momentum" in point) == (point["optimizer.name"] == "sgd")
        assert ("optimizer.beta1" in point) == (point["optimizer.name"] == "adamw")
        assert ("method.roles.query" in point) == (point.get("optimizer.momentum") == 0.9 and point["method.r"] == 2)
        assert space.take(point, BASE, "here") == point
        assert space.open_paths(point, BASE) == []
        keys.add(BASE.at(point).key)
    walked = {repr(space.walk(BASE, lambda path, domain: domain.values[0]))}  # type: ignore[union-attr]
    assert walked <= {repr(point) for point in points}
    assert len(keys) <= len(points)


@given(spaces(), st.data())
def test_points_that_differ_only_in_what_cannot_matter_share_a_key(space: Space, data: st.DataObject) -> None:
    point = data.draw(st.sampled_from(space.grid(BASE) or []))
    momentum = data.draw(st.floats(0.0, 0.9))
    spec, other = BASE.at(point), BASE.at({**point, "optimizer.momentum": momentum})
    same = point["optimizer.name"] == "adamw" or point["optimizer.momentum"] == momentum
    assert (spec.key == other.key) is same
    assert RunSpec.__eq__(spec, BASE.at(point)) and spec.key == BASE.at(dict(reversed(point.items()))).key


def test_a_condition_may_be_written_before_what_it_reads() -> None:
    space = Space.from_tree(MOMENTUM)
    assert space.order == ("optimizer.name", "optimizer.momentum")
    assert space.grid(BASE) == [
        {"optimizer.name": "adamw"},
        {"optimizer.momentum": 0.5, "optimizer.name": "sgd"},
        {"optimizer.momentum": 0.9, "optimizer.name": "sgd"},
    ]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"method.r": {"choices": [2], "when": "method.r > 1"}}, "names itself"),
        ({"method.r": {"choices": [2], "when": "optimizer.nam == 'sgd'"}}, "did you mean 'optimizer.name'"),
        ({"method.r": {"choices": [2], "when": "optimizer.name == 'sgd'"}}, "never holds"),
        ({**MOMENTUM, "optimizer.name": ["adamw"]}, "holds for no values of optimizer.name"),
        ({"method.r": {"choices": [2], "when": 3}}, "a condition such as"),
        (
            {
                "method.r": {"choices": [2, 4], "when": "method.dropout > 0"},
                "method.dropout": {"choices": [0, 0.1], "when": "method.r > 2"},
            },
            "wait for each other",
        ),
        ({"method.roles": {"masks": "all"}, "method.roles.query": [True, False]}, "search one of them"),
        ({"method.roles.quary": [True, False]}, "did you mean 'query'"),
        ({"method.roles.query": [1, 2]}, "switched on or off"),
    ],
)
def test_conditions_and_switches_that_cannot_be_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(SpaceError, match=said):
        Space.from_tree(tree).check(BASE)


def test_a_condition_may_name_what_is_not_searched() -> None:
    space = Space.from_tree({"optimizer.momentum": {"choices": [0.5, 0.9], "when": {"optimizer.name": "sgd"}}})
    sgd = BASE.at({"optimizer.name": "sgd"})
    space.check(sgd)
    assert len(space.grid(sgd) or []) == 2
    assert space.grid(BASE) == [{}]


@given(st.sampled_from(all_masks()), st.sampled_from(["query", "mlp", "head"]), st.booleans())
def test_a_single_role_is_switched_and_the_others_stay(mask: tuple[str, ...], role: str, on: bool) -> None:
    spec = BASE.at({"method.roles": mask}).at({f"method.roles.{role}": on})
    assert set(spec.method.roles) == (set(mask) | {role} if on else set(mask) - {role})
    assert at_path(to_tree(spec), f"method.roles.{role}") is on


def make(**fields: Any) -> Sweep:
    space = Space.from_tree({"method.r": {"int": [2, 16]}, **MOMENTUM})
    return Sweep(**({"name": "s", "base": BASE, "space": space, "sampler": Strategy("random"), "trials": 9} | fields))


def test_enqueued_points_may_leave_paths_open() -> None:
    one = make(enqueue=(pairs({"method.r": 4.0}), pairs({"optimizer.name": "sgd", "optimizer.momentum": 0.9})))
    assert dict(one.enqueue[0]) == {"method.r": 4}
    assert Sweep.from_tree(one.to_tree()) == one and one.key != make().key


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"method.r": 99}, "not in its domain"),
        ({"method.rr": 4}, "not searched"),
        ({"optimizer.momentum": 0.9}, "give optimizer.name beside it"),
        ({"optimizer.momentum": 0.9, "optimizer.name": "adamw"}, "is false"),
    ],
)
def test_enqueued_points_outside_the_space_are_refused(point: dict[str, Any], said: str) -> None:
    with pytest.raises(SpaceError, match=said):
        make(enqueue=(pairs(point),))


def test_a_grid_begins_with_what_is_enqueued_and_needs_it_whole() -> None:
    space = Space.from_tree({"method.r": [2, 8], "method.dropout": [0.0, 0.1]})
    one = make(
        space=space, sampler=Strategy("grid"), trials=None, enqueue=(pairs({"method.r": 8, "method.dropout": 0.1}),)
    )
    assert (
        one.planned_trials == 5 and one.points is not None and one.points[0] == {"method.r": 8, "method.dropout": 0.1}
    )
    with pytest.raises(SpaceError, match="draws nothing"):
        make(space=space, sampler=Strategy("grid"), trials=None, enqueue=(pairs({"method.r": 8}),))


def test_what_may_change_between_starts_is_not_of_the_key() -> None:
    assert make(stop=Stop(trials=3), max_repeats=5, trials=20).key == make().key
    long = make(stop=Stop(target=1.5), max_repeats=3)
    assert Sweep.from_tree(long.to_tree()) == long
    assert make(objective=Objective(value="upper")).key != make().key
    assert make(imports=("runs/a",)).key != make().key
    two = (Objective("eval_loss"), Objective("lane_bytes"))
    assert make(objectives=two).key != make().key
    assert Sweep.from_tree(make(objectives=two).to_tree()) == make(objectives=two)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objectives": (Objective(),)}, "a list of two or more"),
        ({"objectives": (Objective(), Objective())}, "stands there twice"),
        ({"objectives": (Objective(), Objective("seconds")), "max_repeats": 3}, "single sweep.objective"),
        ({"repeats": 3, "max_repeats": 2}, "below min"),
    ],
)
def test_objectives_and_repeats_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make(**fields)
