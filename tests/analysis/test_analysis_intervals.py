"""Intervals cover planted truths as often as they say, and paired tests agree with statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.multitest import multipletests

from lora_lab.analysis.gap import blocked_slope
from lora_lab.analysis.intervals import holm, noise_of, paired_differences, residuals, seed_intervals, uneven

SIMULATIONS = 1000


def covered(values: np.ndarray, truth: np.ndarray) -> float:
    """Share of the means whose interval holds the truth; ``values`` is (simulations, configurations, seeds)."""
    hits = []
    for i, sweep in enumerate(values):
        low, high = np.array(seed_intervals(sweep.tolist(), seed=i)).T
        hits.append((low <= truth) & (truth <= high))
    return float(np.mean(hits))


def test_the_bootstrap_interval_of_three_seeds_covers_95_percent() -> None:
    rng = np.random.default_rng(0)
    truth = np.linspace(1, 2, 9)
    share = covered(truth[:, None] + rng.normal(0, 0.05, (SIMULATIONS, 9, 3)), truth)
    assert 0.93 <= share <= 0.97


def test_it_covers_skewed_noise_too() -> None:
    rng = np.random.default_rng(1)
    truth = np.zeros(12)
    share = covered(rng.exponential(0.05, (400, 12, 3)) - 0.05, truth)
    assert 0.93 <= share <= 0.97


def test_few_runs_fall_back_to_student_and_cover_as_well() -> None:
    rng = np.random.default_rng(2)
    truth = np.array([1.0, 1.1, 1.4])
    share = covered(truth[:, None] + rng.normal(0, 0.05, (SIMULATIONS, 3, 2)), truth)
    assert 0.93 <= share <= 0.97


def test_unequal_seeds_and_single_ones_have_their_own_widths() -> None:
    rng = np.random.default_rng(3)
    groups = [rng.normal(0, 1, n).tolist() for n in (8, 8, 2, 1, 8)]
    widths = [high - low for low, high in seed_intervals(groups)]
    assert widths[0] == pytest.approx(widths[1]) and widths[0] < widths[2] < widths[3]
    assert seed_intervals([[1.0], [2.0]]) == [(pytest.approx(math.nan, nan_ok=True),) * 2] * 2
    assert seed_intervals([[1.0, 1.0], [2.0, 2.0]]) == [(1.0, 1.0), (2.0, 2.0)]
    assert math.isnan(seed_intervals([[], *groups])[0][0])


def test_uneven_scatter_is_seen() -> None:
    rng = np.random.default_rng(4)
    calm = [rng.normal(0, 1, 8).tolist() for _ in range(6)]
    p = uneven([*calm, rng.normal(0, 30, 8).tolist()])
    assert p is not None and p < 0.001
    assert uneven([[1.0, 2.0], [1.0, 2.0]]) is None


def test_paired_intervals_cover_and_holm_keeps_the_error_of_the_family() -> None:
    rng = np.random.default_rng(5)
    effects = np.array([0.0, 0.3, 0.0, -0.2, 0.0, 0.0])
    hits, false = [], 0
    for _ in range(SIMULATIONS):
        seeds = rng.normal(0, 3, 4)
        table = pd.DataFrame(effects[:, None] + seeds + rng.normal(0, 0.2, (6, 4)))
        found = paired_differences(table, 0)
        hits += [d.low <= effects[i] <= d.high for i, d in enumerate(found) if d is not None]
        false += any(d is not None and d.holm < 0.05 for i, d in enumerate(found) if i and effects[i] == 0)
    assert 0.93 <= np.mean(hits) <= 0.97
    assert false / SIMULATIONS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / SIMULATIONS)


def test_paired_differences_are_the_contrasts_of_a_two_way_model() -> None:
    rng = np.random.default_rng(6)
    table = pd.DataFrame(rng.normal(0, 1, (4, 5)))
    long = table.rename_axis("cell").reset_index().melt("cell", var_name="block", value_name="y").astype({"y": float})
    fit = ols("y ~ C(cell) + C(block)", long).fit()
    for i, found in enumerate(paired_differences(table, 0)):
        if found is not None:
            test = fit.t_test(f"C(cell)[T.{i}]")
            assert found.mean == pytest.approx(float(test.effect[0]))
            assert found.p == pytest.approx(float(test.pvalue))
            assert (found.low, found.high) == pytest.approx(tuple(test.conf_int()[0]))


def test_missing_runs_leave_each_pair_its_own_spread() -> None:
    table = pd.DataFrame([[1.0, 2.0, 3.0], [1.5, 2.6, np.nan], [np.nan, np.nan, 3.0]])
    first, second, third = paired_differences(table, 0)
    assert first is None and third is None
    assert second is not None and not second.pooled and second.n == 2 and second.mean == pytest.approx(0.55)


def test_the_slope_within_blocks_covers_and_ignores_the_blocks_levels() -> None:
    rng = np.random.default_rng(7)
    x = np.tile(np.arange(4.0), 5)
    blocks = np.repeat(np.arange(5), 4)
    hits = []
    for _ in range(SIMULATIONS):
        y = 0.1 * x + 5 * rng.normal(size=5)[blocks] + rng.normal(0, 0.3, 20)
        found = blocked_slope(x, y, blocks.astype(str).tolist())
        assert found is not None
        hits.append(found[1] <= 0.1 <= found[2])
    assert 0.93 <= np.mean(hits) <= 0.97


def test_noise_is_pooled_within_groups() -> None:
    found = noise_of([[1.0, 3.0], [10.0, 10.0, 13.0], [5.0]])
    assert found is not None and found.df == 3
    assert found.std**2 == pytest.approx((2 * 1.0 + 6.0) / 3)
    assert noise_of([[1.0], [2.0]]) is None


def test_holm_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(8)
    for n in (1, 2, 20):
        p = rng.uniform(size=n) ** 3
        assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)


def test_residuals_scatter_as_runs_do() -> None:
    values = np.random.default_rng(9).normal(0, 1, (50, 2)).tolist()
    noise = noise_of(values)
    assert noise is not None
    assert np.sqrt(np.mean(residuals([*values, [1.0]]) ** 2)) == pytest.approx(noise.std)
