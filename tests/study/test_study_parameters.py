"""A point is the same as parameters of Optuna and back, whatever its domains are: properties over random spaces."""

from __future__ import annotations

from typing import Any

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import RandomSampler

from lora_lab.spec import ModelSpec, RunSpec, Space, all_masks, pairs
from lora_lab.study.parameters import decode, distributions, encode, suggest, whole

BASE = RunSpec(ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))
optuna.logging.set_verbosity(optuna.logging.WARNING)


def ranged(kind: str, low: float, high: float) -> st.SearchStrategy[dict[str, Any]]:
    """Ranges of numbers between ``low`` and ``high``: plain, on a log scale, in steps."""
    number = (
        st.integers(int(low), int(high)) if kind == "int" else st.floats(low, high).map(lambda x: float(f"{x:.3g}"))
    )
    step = st.integers(1, 7) if kind == "int" else st.sampled_from([0.1, 0.05, 0.25])
    ends = st.tuples(number, number).map(sorted)
    plain = ends.map(lambda pair: {"low": pair[0], "high": pair[1]})
    stepped = st.tuples(plain, step).map(lambda both: both[0] | {"step": both[1]})
    return (plain | plain.map(lambda tree: tree | {"log": True}) | stepped).map(lambda tree: {kind: tree})


DOMAINS: dict[str, st.SearchStrategy[Any]] = {
    "method.r": ranged("int", 1, 512) | st.lists(st.integers(1, 64), min_size=1, unique=True),
    "method.layers": st.just([[], [0], [0, 1]]),
    "method.roles": st.lists(st.sampled_from(all_masks()), min_size=1, unique=True).map(lambda v: {"masks": list(v)})
    | st.just({"masks": "all"}),
    "optimizer.name": st.just(["adamw", "sgd"]),
    "optimizer.lr": ranged("float", 1e-6, 1.0),
    "optimizer.max_grad_norm": st.just([None, 1, 0.5]),
    "optimizer.momentum": ranged("float", 0.1, 0.9).map(lambda tree: tree | {"when": {"optimizer.name": "sgd"}}),
    "data.mask_prompt": st.just([True, False]),
}


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Spaces of any kinds of domains; the momentum has a condition."""
    paths = draw(st.lists(st.sampled_from(list(DOMAINS)), min_size=1, unique=True))
    if "optimizer.momentum" in paths and "optimizer.name" not in paths:
        paths.append("optimizer.name")
    return Space.from_tree({path: draw(DOMAINS[path]) for path in paths})


@given(spaces(), st.integers(0, 1000))
def test_a_point_comes_back_from_its_parameters(space: Space, seed: int) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    trial = study.ask()
    point = suggest(trial, space, BASE)
    masks = dict(space.domains).get("method.roles")
    if masks is not None and tuple(point["method.roles"]) not in masks.values:  # the sampler's wrapper moves it
        point["method.roles"] = masks.values[0]
    assert space.take(point, BASE, "here") == point
    parameters = encode(space, point)
    assert decode(space, parameters) == point
    assert whole(space, BASE, parameters)
    known = distributions(space)
    assert parameters.keys() <= known.keys()
    for name, value in parameters.items():
        kind = known[name]
        assert kind._contains(kind.to_internal_repr(value))
        back = kind.to_external_repr(kind.to_internal_repr(value))
        assert back == value and type(back) is type(value)


@given(spaces(), st.data())
def test_a_part_of_a_point_is_not_the_whole(space: Space, data: st.DataObject) -> None:
    point = suggest(optuna.create_study(sampler=RandomSampler(seed=0)).ask(), space, BASE)
    parameters = encode(space, point)
    lost = data.draw(st.sampled_from(sorted(parameters)))
    assert not whole(space, BASE, {name: value for name, value in parameters.items() if name != lost})
