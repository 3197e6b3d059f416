"""Verdicts say supported, contradicted or inconclusive as often as their level and power promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
from simulated_sweeps import frame_of

from lora_lab.analysis.power import inferiority_power, paired_power, pairs_needed, sameness_power
from lora_lab.analysis.verdicts import (
    Status,
    Verdict,
    best_at,
    better,
    better_at,
    rises_along,
    same_within,
    varies_less_than,
    within_factor,
)
from lora_lab.errors import SpecError

RANKS = [{"method.r": r} for r in (2, 4, 8, 16)]


def share(found: Sequence[Verdict], status: Status) -> float:
    return float(np.mean([v.status is status for v in found]))


def many(effect: float, n: int, smallest: float = 0.0, count: int = 1000) -> list[Verdict]:
    rng = np.random.default_rng(n)
    return [
        better(1 - effect + rng.normal(0, 0.1, n), 1 + rng.normal(0, 0.1, n), "A wins", smallest=smallest)
        for _ in range(count)
    ]


def test_without_an_effect_a_claim_is_rarely_supported_and_contradicted_with_enough_seeds() -> None:
    few = many(0.0, 4, smallest=0.05)
    assert 0.012 <= share(few, Status.SUPPORTED) <= 0.04 and share(few, Status.INCONCLUSIVE) > 0.5
    assert share(many(0.0, 60, smallest=0.1, count=300), Status.CONTRADICTED) > 0.95


def test_power_is_what_is_stated() -> None:
    found = many(0.15, 10, smallest=0.15)
    assert share(found, Status.SUPPORTED) == pytest.approx(paired_power(0.15, 0.1 * np.sqrt(2), 10), abs=0.04)
    assert 0.6 < np.mean([v.power for v in found]) < 0.95


@pytest.mark.parametrize("power_of", [paired_power, inferiority_power, sameness_power])
def test_the_pairs_needed_are_the_fewest_with_a_power_of_80_percent(power_of: Callable[..., float]) -> None:
    n = pairs_needed(partial(power_of, 0.05, 0.1))
    assert n is not None and power_of(0.05, 0.1, n) >= 0.8 > power_of(0.05, 0.1, n - 1)
    assert pairs_needed(partial(power_of, 0.001, 0.1)) is None, "that takes more than 10,000"
    assert pairs_needed(partial(paired_power, 0.0, 0.1)) is None, "no smallest effect, no power"


def test_what_few_pairs_leave_open_is_said_with_the_pairs_that_would_tell() -> None:
    """So many pairs do show a true effect of that size four times of five."""
    open_yet = better([1.0, 1.1, 0.9], [1.05, 1.09, 1.07], "A wins", smallest=0.1)
    assert open_yet.status is Status.INCONCLUSIVE and open_yet.needed is not None
    assert open_yet.sentence.endswith(f"for 0.1, 0.80 takes {open_yet.needed} pairs).")
    rng, std = np.random.default_rng(1), float(np.std([0.05, -0.01, 0.17], ddof=1))
    gains = rng.normal(0.1, std, (1000, open_yet.needed))
    assert share([better(-g, 0 * g, "A wins") for g in gains], Status.SUPPORTED) == pytest.approx(0.8, abs=0.06)
    assert "takes" not in better([1.0, 1.1, 1.2], [2.0, 2.1, 2.3], "A wins", smallest=0.1).sentence


def test_an_opposite_effect_contradicts_and_a_tiny_one_is_too_small() -> None:
    opposite = better([2.0, 2.1, 2.05], [1.0, 1.1, 1.02], "A wins")
    assert opposite.status is Status.CONTRADICTED and opposite.effect < 0
    tiny = better([1.0, 2.0, 3.0, 4.0], [1.011, 2.009, 3.012, 4.010], "A wins by 0.1", smallest=0.1)
    assert tiny.low > 0 and tiny.status is Status.CONTRADICTED
    assert better([0.9, 0.8], [0.1, 0.2], "more is better", direction="maximize").effect == pytest.approx(0.7)
    assert better([1.0, 1.0], [2.0, 2.0], "A wins").status is Status.SUPPORTED
    assert "A wins: supported. It is 1" in better([1.0, 1.0], [2.0, 2.0], "A wins").sentence


def test_sameness_needs_an_interval_inside_the_margin() -> None:
    rng = np.random.default_rng(0)
    same = [same_within(rng.normal(0, 0.1, 12), rng.normal(0, 0.1, 12), "same", margin=0.15) for _ in range(500)]
    assert share(same, Status.SUPPORTED) == pytest.approx(np.mean([v.power for v in same]), abs=0.08)
    edge = [same_within(rng.normal(0.15, 0.1, 12), rng.normal(0, 0.1, 12), "same", margin=0.15) for _ in range(1000)]
    assert share(edge, Status.SUPPORTED) <= 0.06
    apart = same_within([1.0, 1.1, 1.2], [2.0, 2.11, 2.19], "same", margin=0.1)
    assert apart.status is Status.CONTRADICTED
    with pytest.raises(SpecError, match="margin must be positive, got 0"):
        same_within([1.0], [1.0], "same", margin=0)


def test_the_best_value_must_beat_every_rival() -> None:
    frame = frame_of(RANKS, lambda p: {2: 1.5, 4: 1.3, 8: 1.0, 16: 1.2}[p["method.r"]], seeds=4, noise=0.01)
    assert best_at(frame, "method.r", 8, "r=8 is best").status is Status.SUPPORTED
    assert best_at(frame, "method.r", 16, "r=16 is best").status is Status.CONTRADICTED
    close = frame_of(RANKS, lambda p: 1.0, seeds=3, noise=0.05)
    assert best_at(close, "method.r", 8, "r=8 is best", smallest=0.02).status is Status.INCONCLUSIVE
    with pytest.raises(SpecError, match=r"method\.r=3 cannot be compared\. Values with runs: 2, 4, 8, 16"):
        best_at(frame, "method.r", 3, "r=3 is best")


def test_a_false_best_is_rarely_supported() -> None:
    found = [
        best_at(frame_of(RANKS, lambda p: 1.0, seeds=3, noise=0.05, rng=i), "method.r", 8, "r=8 is best")
        for i in range(100)
    ]
    assert share(found, Status.SUPPORTED) <= 0.05


def test_settings_are_paired_over_everything_else() -> None:
    points = [{"method.r": r, "optimizer.lr": lr} for r in (2, 8) for lr in (0.1, 0.2, 0.3)]
    frame = frame_of(points, lambda p: 10 * p["optimizer.lr"] - 0.05 * (p["method.r"] == 8), seeds=2, noise=0.005)
    found = better_at(frame, {"method.r": 8}, {"method.r": 2}, "r=8 beats r=2", smallest=0.02)
    assert found.status is Status.SUPPORTED and found.n == 6 and found.effect == pytest.approx(0.05, abs=0.01)
    with pytest.raises(SpecError, match="no completed run at"):
        better_at(frame, {"method.r": 9}, {"method.r": 2}, "r=9 beats r=2")


def test_trends() -> None:
    frame = frame_of(RANKS, lambda p: 2 - 0.1 * np.log2(p["method.r"]), seeds=3, noise=0.01)
    falls = rises_along(frame, "method.r", "loss falls with r", metric="eval_loss", sign=-1, smallest=0.05)
    assert falls.status is Status.SUPPORTED and falls.effect == pytest.approx(0.1, abs=0.01)
    assert "per doubling of r" in falls.test
    rises = rises_along(frame, "method.r", "loss rises with r", metric="eval_loss")
    assert rises.status is Status.CONTRADICTED


def test_spread_and_exact_numbers() -> None:
    rng = np.random.default_rng(1)
    assert varies_less_than(rng.normal(1, 0.002, 20), "seeds hardly matter", cv=0.01).status is Status.SUPPORTED
    assert varies_less_than(rng.normal(1, 0.1, 20), "seeds hardly matter", cv=0.01).status is Status.CONTRADICTED
    assert varies_less_than([1.0, 1.01], "seeds hardly matter", cv=0.01).status is Status.INCONCLUSIVE
    assert within_factor(21.0e9, 21.33e9, "21.33 GB", tolerance=0.1).status is Status.SUPPORTED
    assert within_factor(30.0e9, 21.33e9, "21.33 GB", tolerance=0.1).status is Status.CONTRADICTED


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: better([1.0], [2.0], "c"), "1 pairs of completed runs"),
        (lambda: better([1.0, 2.0], [2.0], "c"), "2 and 1 runs cannot be paired"),
        (lambda: better([1.0, 2.0], [2.0, 3.0], "c", smallest=-1), "smallest must be zero or more, got -1"),
        (lambda: varies_less_than([1.0], "c", cv=0.1), "have no CV"),
        (lambda: within_factor(1.0, 0.0, "c", tolerance=0.1), "no relative tolerance"),
    ],
)
def test_bad_claims_are_refused(call: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        call()  # type: ignore[operator]
