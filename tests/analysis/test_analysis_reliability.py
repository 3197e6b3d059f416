"""ICC(1) against the published example, against brute force, and what the sentences say of known truths."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_lab.analysis import best_configuration, configurations, consistency, icc1, load_results
from lora_lab.analysis.grouping import ranked
from lora_lab.analysis.reliability import spread
from lora_lab.errors import SpecError
from lora_lab.spec import Objective, Outcome, Sweep

Fabricate = Callable[..., Sweep]

SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]
"""Shrout & Fleiss (1979), table 2: four ratings of six targets. Their table 4: ICC(1, 1) = .17."""


def test_icc1_of_shrout_and_fleiss_1979() -> None:
    icc = icc1(SHROUT_FLEISS)
    assert icc is not None
    assert icc.value == pytest.approx(0.17, abs=0.005)
    assert icc.within**2 == pytest.approx(6.26, abs=0.005)  # the within mean square of their table 3
    assert icc.k * icc.between**2 + icc.within**2 == pytest.approx(11.24, abs=0.005)  # the between mean square
    assert icc.f == pytest.approx(1.79, abs=0.01)
    assert (icc.low, icc.high) == (pytest.approx(-0.13, abs=0.005), pytest.approx(0.72, abs=0.005))
    assert (icc.groups, icc.runs, icc.k) == (6, 24, 4)


def test_icc1_recovers_planted_variances() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (4000, 1)) + rng.normal(0, 1, (4000, 3))
    icc = icc1(values.tolist())
    assert icc is not None
    assert icc.value == pytest.approx(0.9, abs=0.01)
    assert icc.within == pytest.approx(1, abs=0.03)
    assert icc.between == pytest.approx(3, abs=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        values = rng.normal(0, 1, (9, 1)) + rng.normal(0, 1, (9, 2))
        icc = icc1(values.tolist())
        assert icc is not None
        covered += icc.low <= 0.5 <= icc.high
    assert 930 <= covered <= 970


def test_unequal_numbers_of_seeds() -> None:
    groups = [[1.0, 1.2], [2.0], [3.1, 2.9, 3.0]]
    icc = icc1(groups)
    assert icc is not None
    assert icc.k == pytest.approx((6 - (4 + 1 + 9) / 6) / 2)
    everything = [v for g in groups for v in g]
    between = sum(len(g) * (np.mean(g) - np.mean(everything)) ** 2 for g in groups) / 2
    within = sum((v - np.mean(g)) ** 2 for g in groups for v in g) / 3
    assert icc.value == pytest.approx((between - within) / (between + (icc.k - 1) * within))


@pytest.mark.parametrize("groups", [[], [[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 2.0], []]])
def test_icc1_is_not_defined_without_repetition_and_comparison(groups: list[list[float]]) -> None:
    assert icc1(groups) is None


def test_icc1_of_constant_groups() -> None:
    same = icc1([[1.0, 1.0], [1.0, 1.0]])
    assert same is not None and math.isnan(same.value)
    apart = icc1([[0.1, 0.1], [0.3, 0.3]])
    assert apart is not None and apart.value == 1.0 and apart.within == 0.0
    assert apart.between == pytest.approx(np.std([0.1, 0.3], ddof=1))


@pytest.mark.parametrize(("value", "text"), [(0.00312, "0.0031"), (0.12, "0.12"), (14.2, "14"), (0, "0")])
def test_spread_has_two_significant_digits(value: float, text: str) -> None:
    assert spread(value) == text


# -- sentences -------------------------------------------------------------------------------------------

GRID = {"method.r": {"choices": [2, 4, 8, 16, 32]}}


def noisy(effect: float, noise: float, seed: int = 0) -> Callable[[Mapping[str, Any], int], float]:
    rng = random.Random(seed)
    return lambda point, _: 1.0 + effect * math.log2(point["method.r"]) + rng.gauss(0, noise)


def said(fabricate: Fabricate, folder: Path, **kwargs: Any) -> str:
    fabricate(GRID, **kwargs)
    return consistency(load_results(folder / "runs" / "demo")).sentence


def test_a_real_effect_is_not_luck(fabricate: Fabricate, tmp_path: Path) -> None:
    text = said(fabricate, tmp_path, value=noisy(0.1, 0.002), repeats=3)
    assert "the ranking is not decided by luck" in text
    assert "(r=2) is ahead of every other by more than seeds explain" in text
    assert text.startswith("Seeds differ by ±0.00") and "configurations by ±0.1" in text


def test_pure_noise_may_be_luck(fabricate: Fabricate, tmp_path: Path) -> None:
    text = said(fabricate, tmp_path, value=noisy(0.0, 0.05, seed=3), repeats=3)
    assert "the ranking may be luck alone" in text
    assert "No configuration is worse than the best one" in text


def test_a_weak_effect_is_partly_luck_and_ties_are_counted(fabricate: Fabricate, tmp_path: Path) -> None:
    text = said(fabricate, tmp_path, value=noisy(0.02, 0.03, seed=2), repeats=6)
    assert "the ranking is partly decided by luck" in text
    assert "of the 4 others" in text and "within seed noise of the best one" in text


def test_one_seed_cannot_tell(fabricate: Fabricate, tmp_path: Path) -> None:
    text = said(fabricate, tmp_path, value=noisy(0.1, 0.0), repeats=1)
    assert "how much of that is luck is not known" in text and "sweep.repeats=3" in text


def test_degenerate_sweeps_are_said_as_they_are(fabricate: Fabricate, tmp_path: Path) -> None:
    assert "All runs gave the same value" in said(fabricate, tmp_path, value=lambda p, s: 1.0)
    everything = {(t, s): Outcome.FAILED for t in range(5) for s in (0, 1)}
    fabricate(GRID, name="failed", outcomes=everything)
    assert "No run has completed" in consistency(load_results(tmp_path / "runs" / "failed")).sentence
    fabricate({"method.r": {"choices": [8]}}, name="one")
    assert "its 2 seeds differ by ±0.0071" in consistency(load_results(tmp_path / "runs" / "one")).sentence
    fabricate({"method.r": {"choices": [8]}}, name="single", repeats=1)
    assert "One run" in consistency(load_results(tmp_path / "runs" / "single")).sentence


def test_the_table_holds_the_statistics_best_first(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(GRID, lambda p, s: p["method.r"] + s)
    table = consistency(load_results(tmp_path / "runs" / "demo")).table
    assert table.columns.tolist() == ["method.r", "n", "mean", "std", "cv", "minimum", "maximum", "low", "high"]
    assert table["method.r"].tolist() == [2, 4, 8, 16, 32]
    first = table.iloc[0]
    assert (first["n"], first["mean"], first["minimum"], first["maximum"]) == (2, 2.5, 2, 3)
    assert first["std"] == pytest.approx(math.sqrt(0.5)) and first["cv"] == pytest.approx(math.sqrt(0.5) / 2.5)


def test_the_tree_is_strict_json(fabricate: Fabricate, tmp_path: Path) -> None:
    import json

    fabricate(GRID, lambda p, s: float(p["method.r"]))
    tree = consistency(load_results(tmp_path / "runs" / "demo")).to_tree()
    assert json.loads(json.dumps(tree, allow_nan=False))["icc"]["f"] is None


# -- grouping --------------------------------------------------------------------------------------------


def test_outcomes_other_than_completed_are_counted_and_never_averaged(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(
        GRID,
        lambda p, s: 1.0,
        repeats=3,
        outcomes={(0, 0): Outcome.DIVERGED, (0, 1): Outcome.OUT_OF_MEMORY, (1, 0): Outcome.PRUNED, (2, 2): None},
    )
    first, second, third, *_ = configurations(load_results(tmp_path / "runs" / "demo"))
    assert (first.n, dict(first.failures), first.settled) == (1, {"DIVERGED": 1, "OUT_OF_MEMORY": 1}, 3)
    assert math.isnan(first.std) and first.mean == 1.0
    assert (second.n, dict(second.failures)) == (2, {"PRUNED": 1})
    assert (third.n, third.settled, third.base) == (2, 2, 2.5)


def test_equal_keys_are_one_experiment(fabricate: Fabricate, tmp_path: Path) -> None:
    """With no adapter a rank cannot matter: both ranks are one configuration to the statistics."""
    fabricate({"method.roles": {"masks": [[], ["query"]]}, "method.r": {"choices": [2, 8]}}, lambda p, s: 1.0 + s)
    frame = load_results(tmp_path / "runs" / "demo")
    assert frame["key"].nunique() == 6
    assert len(consistency(frame).table) == 3
    (empty, *_) = configurations(frame, paths=["method.roles"])
    assert empty.values == (1.0, 2.0)


def test_best_is_by_mean_and_names_the_best_seed_s_adapter(fabricate: Fabricate, tmp_path: Path) -> None:
    values = {2: (1.0, 3.0), 4: (1.8, 1.6), 8: (1.9, 1.9), 16: (2.5, 2.5), 32: (9.0, 9.0)}
    fabricate(GRID, lambda p, s: values[p["method.r"]][s])
    best = best_configuration(load_results(tmp_path / "runs" / "demo"))
    assert best is not None
    assert dict(best.configuration.point) == {"method.r": 4}
    assert (best.trial, best.seed, best.run, best.value) == (1, 1, "t0001-s1", 1.6)
    assert best.adapter == "runs/t0001-s1/adapter"


def test_best_of_a_maximised_objective(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(GRID, objective=Objective("exact_match", "maximize"))
    path = tmp_path / "runs" / "demo" / "runs" / "t0003-s0" / "result.json"
    path.write_text(path.read_text().replace('"exact_match": 0.4', '"exact_match": 0.9'))
    best = best_configuration(load_results(tmp_path / "runs" / "demo"))
    assert best is not None and (best.metric, best.direction, best.run) == ("exact_match", "maximize", "t0003-s0")


def test_best_passes_over_configurations_with_seeds_still_to_run(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(GRID, lambda p, s: float(p["method.r"]), outcomes={(0, 1): None})
    best = best_configuration(load_results(tmp_path / "runs" / "demo"))
    assert best is not None and dict(best.configuration.point) == {"method.r": 4}


def test_best_passes_over_a_configuration_of_which_a_seed_diverged(fabricate: Fabricate, tmp_path: Path) -> None:
    """As the study does: the mean of its other seeds leaves out the bad news."""
    fabricate(GRID, lambda p, s: float(p["method.r"]), outcomes={(0, 1): Outcome.DIVERGED, (1, 0): Outcome.PRUNED})
    frame = load_results(tmp_path / "runs" / "demo")
    best = best_configuration(frame)
    assert best is not None and dict(best.configuration.point) == {"method.r": 8}
    assert [dict(c.point)["method.r"] for c in ranked(configurations(frame), "minimize", 2)] == [8, 16, 32, 2, 4]


def test_no_best_when_nothing_completed(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(GRID, outcomes={(t, s): Outcome.DIVERGED for t in range(5) for s in (0, 1)})
    assert best_configuration(load_results(tmp_path / "runs" / "demo")) is None


def test_unknown_metrics_and_directions_name_the_nearest(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(GRID)
    frame = load_results(tmp_path / "runs" / "demo")
    with pytest.raises(SpecError, match="did you mean 'eval_loss'"):
        best_configuration(frame, "eval_los")
    with pytest.raises(SpecError, match="'adapter'"):
        best_configuration(frame, "adapter")
    with pytest.raises(SpecError, match="did you mean 'minimize'"):
        consistency(frame, "eval_loss", "minimise")
