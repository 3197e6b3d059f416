"""Effects and Shapley values of masks against brute force, planted truths and known aliases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from simulated_sweeps import frame_of

from lora_lab.analysis import mask_effects
from lora_lab.analysis.masks import effects_of, shapley
from lora_lab.spec import ROLES, all_masks

WORTH = {"query": 0.05, "key": 0.01, "value": 0.08, "projection": 0.03, "mlp": 0.12, "head": 0.0}


def loss(point: Mapping[str, tuple[str, ...]]) -> float:
    """Additive worth, and query and key that help twice as much together."""
    mask = point["method.roles"]
    both = 0.06 if {"query", "key"} <= set(mask) else 0.0
    return 2.0 - sum(WORTH[role] for role in mask) - both


def by_permutations(values: Mapping[tuple[str, ...], float], players: tuple[str, ...]) -> dict[str, float]:
    """Shapley's own definition: the mean gain of joining, over all orders of arrival."""
    out = dict.fromkeys(players, 0.0)
    orders = list(itertools.permutations(players))
    for order in orders:
        there: tuple[str, ...] = ()
        for player in order:
            grown = tuple(p for p in players if p in (*there, player))
            out[player] += (values[grown] - values[there]) / len(orders)
            there = grown
    return out


def test_shapley_is_the_mean_over_all_720_orders() -> None:
    rng = np.random.default_rng(0)
    values = {mask: float(rng.normal()) for mask in all_masks()}
    exact = by_permutations(values, ROLES)
    assert shapley(values, ROLES) == pytest.approx(exact, abs=1e-12)
    assert sum(exact.values()) == pytest.approx(values[ROLES] - values[()])
    found = effects_of(list(values), list(values.values()), [0] * 64, direction="maximize")
    assert found is not None and found.order == 6
    assert {e.name: e.value for e in found.shapley} == pytest.approx(exact, abs=1e-12)


def test_main_effects_and_interactions_are_contrasts_of_means() -> None:
    rng = np.random.default_rng(1)
    masks = list(all_masks())
    y = rng.normal(size=64)
    found = effects_of(masks, y.tolist(), [0] * 64)
    assert found is not None
    on = np.array(["mlp" in mask for mask in masks])
    other = np.array(["head" in mask for mask in masks])
    main = {e.name: e.value for e in found.main}
    assert main["mlp"] == pytest.approx(y[on].mean() - y[~on].mean())
    with_other = y[on & other].mean() - y[~on & other].mean()
    without = y[on & ~other].mean() - y[~on & ~other].mean()
    pairs = {e.name: e.value for e in found.interactions}
    assert len(pairs) == 15 and pairs["mlp × head"] == pytest.approx((with_other - without) / 2)


def test_a_planted_sweep_gives_its_worths_back() -> None:
    frame = frame_of([{"method.roles": mask} for mask in all_masks()], loss, seeds=3, noise=0.01)
    found = mask_effects(frame)
    assert found is not None and (found.masks, found.order, found.df) == (64, 6, 126)
    shares = {e.name: e.value for e in found.shapley}
    truth = WORTH | {"query": 0.08, "key": 0.04}
    assert shares == pytest.approx(truth, abs=0.006)
    assert found.interactions[0].name == "query × key" and found.interactions[0].value == pytest.approx(
        -0.03, abs=0.005
    )
    assert found.std == pytest.approx(0.01, rel=0.15)
    assert found.worth("projection").startswith(
        "The projection layer is worth it: adapting it lowers eval_loss by 0.03"
    )
    assert "not shown to be worth it" in found.worth("head")


def test_costs_are_shares_of_parameters_and_memory() -> None:
    sizes = dict(zip(ROLES, (1e6, 2e6, 3e6, 4e6, 5e6, 6e6), strict=True))
    points = [{"method.roles": mask} for mask in all_masks()]
    frame = frame_of(points, loss, seeds=2, noise=0.001)
    frame["trainable_parameters"] = [sum(sizes[role] for role in mask) for mask in frame["method.roles"]]
    frame["lane_bytes"] = 12 * frame["trainable_parameters"]
    found = mask_effects(frame)
    assert found is not None
    assert dict(found.parameters) == pytest.approx(sizes)
    assert found.per_million["mlp"].value == pytest.approx(0.12 / 5, abs=0.001)
    assert found.per_mb["value"].value == pytest.approx(0.08 / 36, abs=0.001)


def test_intervals_cover_effects_and_shapley_values() -> None:
    """Four roles, 16 masks, three seeds that share a level each; 1,000 sweeps."""
    rng = np.random.default_rng(2)
    masks = [mask for mask in all_masks() if {"query", "value"} <= set(mask)]
    truth = np.array([loss({"method.roles": mask}) for mask in masks])
    hits: list[bool] = []
    for _ in range(1000):
        y = truth + rng.normal(0, 0.5, (3, 1)) + rng.normal(0, 0.02, (3, 16))
        found = effects_of(masks * 3, y.ravel().tolist(), np.repeat([0, 1, 2], 16).tolist())
        assert found is not None
        true = {"key": 0.07, "projection": 0.03, "mlp": 0.12, "head": 0.0}  # query is always there
        hits += [e.low <= true[e.name] <= e.high for e in found.shapley]
        hits += [e.low <= -true[e.name] <= e.high for e in found.main]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_a_half_fraction_says_what_is_aliased() -> None:
    """I = query × key × value × projection × mlp × head: a main effect is mixed with a fifth-order interaction."""
    half = [mask for mask in all_masks() if len(mask) % 2 == 0]
    frame = frame_of([{"method.roles": mask} for mask in half], loss, seeds=2, noise=0.001)
    found = mask_effects(frame)
    assert found is not None and (found.masks, found.order) == (32, 2)
    assert found.aliases["query"] == ("key × value × projection × mlp × head",)
    assert found.aliases["query × key"] == ("value × projection × mlp × head",)
    assert {e.name: e.value for e in found.shapley} == pytest.approx(WORTH | {"query": 0.08, "key": 0.04}, abs=0.003)
    assert any("32 of 64 masks: a model with main effects and two-way interactions" in note for note in found.notes)


def test_a_quarter_mixes_main_effects_with_interactions() -> None:
    signs = [{role: role in mask for role in ROLES} for mask in all_masks()]
    keep = [
        (s["mlp"] == ((s["query"] + s["key"] + s["value"]) % 2 == 1))
        and (s["head"] == ((s["key"] + s["value"] + s["projection"]) % 2 == 1))
        for s in signs
    ]
    masks = list(itertools.compress(all_masks(), keep))
    assert len(masks) == 16
    found = effects_of(masks, [loss({"method.roles": m}) for m in masks], [0] * 16)
    assert found is not None and found.order == 1
    assert "main effects only" in found.notes[0]
    assert any("query × key × value" in alias for alias in found.aliases["mlp"])


def test_one_seed_takes_its_spread_from_high_interactions() -> None:
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(200):
        y = [loss({"method.roles": mask}) + rng.normal(0, 0.02) for mask in all_masks()]
        found = effects_of(list(all_masks()), y, [0] * 64)
        assert found is not None and found.df == 42
        inside += [e.low <= WORTH["mlp"] <= e.high for e in found.shapley if e.name == "mlp"]
        if len(inside) == 1:
            assert any("stand for the spread" in note for note in found.notes)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_the_base_model_stands_for_the_empty_mask() -> None:
    points = [{"method.roles": mask} for mask in all_masks() if mask]
    found = mask_effects(frame_of(points, loss, seeds=2, noise=0.001, base_eval_loss=2.0))
    assert found is not None and found.masks == 64
    assert any("stands for the empty mask" in note for note in found.notes)
    assert {e.name: e.value for e in found.shapley}["value"] == pytest.approx(0.08, abs=0.003)


def test_settings_that_never_repeat_a_mask_count_as_noise() -> None:
    rng = np.random.default_rng(4)
    masks = all_masks()
    points = [{"method.roles": masks[i % 64], "optimizer.lr": float(rng.uniform())} for i in range(256)]
    frame = frame_of(points, lambda p: loss(p) + p["optimizer.lr"], seeds=2, noise=0.001)  # type: ignore[arg-type,operator]
    found = mask_effects(frame)
    assert found is not None and any("counts as noise" in note for note in found.notes)
    assert found.std == pytest.approx(math.sqrt(1 / 12), rel=0.15)


def test_sweeps_without_masks_have_no_effects() -> None:
    assert mask_effects(frame_of([{"method.r": 2}, {"method.r": 4}], lambda p: 1.0)) is None
    same = frame_of([{"method.roles": ("query",)}, {"method.roles": ("query",)}], lambda p: 1.0)
    assert mask_effects(same) is None
    assert isinstance(same, pd.DataFrame)
