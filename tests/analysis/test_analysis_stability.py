"""Kendall's W of a published example, rank stability that comes true, and seeds that give the stated power."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated_sweeps import frame_of
from statsmodels.stats.power import TTestIndPower

from lora_lab.analysis import icc1, kendall_w, rank_stability, ranking, seeds_needed
from lora_lab.analysis.intervals import Noise
from lora_lab.analysis.power import power_of, smallest_difference

SIEGEL = [[1, 1, 6], [6, 5, 3], [3, 6, 2], [2, 4, 5], [5, 2, 4], [4, 3, 1]]
"""Siegel (1956), Nonparametric Statistics, table 9.4: three executives rank six applicants; W = .16."""


def test_kendalls_w_of_siegel_1956() -> None:
    found = kendall_w(SIEGEL)
    assert found is not None
    assert found.w == pytest.approx(12 * 25.5 / (9 * (6**3 - 6)), abs=1e-12) and round(found.w, 2) == 0.16
    assert (found.configurations, found.seeds) == (6, 3)
    assert found.p == pytest.approx(float(stats.chi2.sf(3 * 5 * found.w, 5)))


def test_w_is_one_in_agreement_and_needs_three_configurations() -> None:
    same = kendall_w([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]])
    assert same is not None and same.w == pytest.approx(1)
    assert kendall_w([[1.0, 2.0], [2.0, 1.0]]) is None
    assert kendall_w([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]) is None
    holed = kendall_w([[1.0, 1.1], [2.0, 2.1], [math.nan, 9.0], [3.0, 3.1]])
    assert holed is not None and holed.configurations == 3


def test_the_winner_is_right_as_often_as_it_is_said() -> None:
    """Over 400 sweeps with normal truths: how often three observed seeds name the truly best one."""
    rng = np.random.default_rng(0)
    said, right, regret, paid = [], [], [], []
    for i in range(400):
        truth = rng.normal(0, 0.05, 8)
        values = truth[:, None] + rng.normal(0, 0.05, (8, 4))
        (found,) = rank_stability(values.tolist(), seeds=(4,), seed=i) or (None,)
        if found is None:
            continue
        chosen = int(values.mean(axis=1).argmin())
        said.append(found.right)
        right.append(chosen == truth.argmin())
        regret.append(found.regret)
        paid.append(truth[chosen] - truth.min())
    assert np.mean(said) == pytest.approx(np.mean(right), abs=0.06)
    assert np.mean(regret) == pytest.approx(np.mean(paid), rel=0.35)


def test_more_seeds_are_never_less_sure_and_direction_counts() -> None:
    rng = np.random.default_rng(1)
    values = np.linspace(0, 0.3, 6)[:, None] + rng.normal(0, 0.05, (6, 3))
    found = rank_stability(values.tolist())
    assert [s.seeds for s in found] == [1, 2, 3, 5, 8, 12, 20]
    assert all(a.right <= b.right + 0.02 and a.regret >= b.regret - 1e-3 for a, b in itertools.pairwise(found))
    turned = rank_stability((-values).tolist(), "maximize")
    assert turned[0].right == pytest.approx(found[0].right, abs=0.03)
    assert rank_stability([[1.0], [2.0]]) == ()


def test_seeds_needed_are_those_of_the_t_test_and_give_their_power() -> None:
    noise = Noise(0.05, 12)
    n = seeds_needed(0.06, noise)
    assert n == math.ceil(float(TTestIndPower().solve_power(0.06 / 0.05, alpha=0.05, power=0.8)))
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 0.05, (4000, n)), rng.normal(0.06, 0.05, (4000, n))
    seen = (stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean()
    assert seen == pytest.approx(power_of(0.06, n, noise), abs=0.02) and seen > 0.78
    assert seeds_needed(1e-5, noise) is None and seeds_needed(0.0, noise) is None
    assert seeds_needed(5.0, Noise(0.036, 9), 9) == 2


def test_the_smallest_difference_is_the_inverse_of_the_power() -> None:
    noise = Noise(0.05, 12)
    least = smallest_difference(5, noise, 6)
    assert least is not None and power_of(least, 5, noise, 6) == pytest.approx(0.8, abs=1e-6)
    assert smallest_difference(1, noise) is None


def test_the_sentences_name_the_numbers() -> None:
    frame = frame_of([{"method.r": r} for r in (2, 4, 8, 16)], lambda p: 1 / p["method.r"], seeds=3, noise=0.01)
    found = ranking(frame)
    text = " ".join(found.sentences)
    assert "3 seeds order 4 configurations with Kendall's W" in text
    assert "With 3 seeds the winner is right with probability" in text
    assert "seeing that with 80 % power takes" in text and found.needed is not None


@pytest.mark.filterwarnings("ignore")  # pingouin imports seaborn and pandas_flavor, which warn of others
def test_pingouin_agrees_on_w_and_icc() -> None:
    import pingouin

    values = np.random.default_rng(3).normal(size=(7, 1)) + np.random.default_rng(4).normal(size=(7, 4))
    long = pd.DataFrame(values).rename_axis("item").reset_index().melt("item", var_name="seed", value_name="y")
    long = long.astype({"y": float, "seed": int})
    friedman = pingouin.friedman(long, dv="y", within="item", subject="seed")
    ours = kendall_w(values)
    assert ours is not None and ours.w == pytest.approx(float(friedman["W"].iloc[0]))
    theirs = pingouin.intraclass_corr(long, targets="item", raters="seed", ratings="y").iloc[0]
    icc = icc1(values.tolist())
    assert icc is not None and icc.value == pytest.approx(float(theirs["ICC"]))
    assert icc.p == pytest.approx(float(theirs["pval"] if "pval" in theirs else theirs["p_val"]), rel=1e-6)
