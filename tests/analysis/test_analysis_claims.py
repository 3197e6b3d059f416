"""Claims as data find what was planted in simulated results: effects, their absence, and too little evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated_sweeps import Point, frame_of

from lora_lab.analysis.claims import (
    Apart,
    Best,
    Better,
    Claim,
    Evidence,
    Fits,
    Gains,
    GainsMore,
    Grows,
    Longer,
    Near,
    NotBetter,
    OptimumRises,
    Pays,
    Rises,
    Same,
    Saves,
    Side,
    Size,
    Steady,
    judge,
)
from lora_lab.analysis.claims import (
    Test as Kind,
)
from lora_lab.analysis.grouping import higher_is_better, objective_of
from lora_lab.analysis.verdicts import Status, Verdict, not_better
from lora_lab.errors import SpecError
from lora_lab.spec import all_masks
from lora_lab.spec.tree import pairs

YES, NO, OPEN = Status.SUPPORTED, Status.CONTRADICTED, Status.INCONCLUSIVE
RANKS = [{"method.r": r} for r in (2, 8, 32)]
RATES = [{"optimizer.lr": lr} for lr in (1e-4, 4e-4, 1.6e-3, 6.4e-3, 2.56e-2)]


def at(r: int, *tuned: str) -> Side:
    return Side("s", pairs({"method.r": r}), tuned)


def verdict(test: Kind, **frames: object) -> Verdict:
    (found,) = judge([Claim("it is so", test)], Evidence(frames))  # type: ignore[arg-type]
    return found


def ranks(effect: float, noise: float = 0.01, seeds: int = 4, rng: int = 0):
    return frame_of(RANKS, lambda p: 2 - effect * (p["method.r"] == 8), seeds=seeds, noise=noise, rng=rng)


def bowl(best: float):
    def truth(p: Point) -> float:
        return 1 + 0.1 * (math.log2(p["optimizer.lr"]) - math.log2(best)) ** 2

    return frame_of(RATES, truth, seeds=3, noise=0.01)


@pytest.mark.parametrize(
    ("test", "effect", "status"),
    [
        (Better(at(8), at(2), smallest=0.05), 0.2, YES),
        (Better(at(8), at(2), smallest=0.05), -0.2, NO),
        (Better(at(8), at(2), smallest=0.1), 0.0, NO),
        (NotBetter(at(2), at(8), 0.05), 0.2, YES),
        (NotBetter(at(8), at(2), 0.05), 0.0, YES),
        (NotBetter(at(8), at(2), 0.05), 0.2, NO),
        (Same(at(8), at(2), 0.1), 0.0, YES),
        (Same(at(8), at(2), 0.1), 0.5, NO),
        (Best("s", "method.r", 8), 0.2, YES),
        (Best("s", "method.r", 8, smallest=0.05), -0.2, NO),
        (Best("s", "method.r", 8, where=pairs({"method.r": [2, 8]})), 0.2, YES),
        (Steady(at(8), 0.05), 0.0, YES),
        (Gains(at(8)), 0.0, YES),
        (Gains(at(8), sign=-1, smallest=0.05), 0.0, NO),
    ],
)
def test_planted_effects_are_found(test: Kind, effect: float, status: Status) -> None:
    assert verdict(test, s=ranks(effect)).status is status


@pytest.mark.parametrize(
    "test", [Better(at(8), at(2), smallest=0.05), NotBetter(at(8), at(2), 0.05), Same(at(8), at(2), 0.05)]
)
def test_noise_is_no_answer(test: Kind) -> None:
    found = verdict(test, s=ranks(0.05, noise=0.3, seeds=3))
    assert found.status is OPEN and found.power < 0.5, "it is said that these runs could not have told"


def test_a_spread_can_contradict_and_three_runs_cannot_tell() -> None:
    assert verdict(Steady(at(8), 0.01), s=ranks(0, noise=0.2, seeds=12)).status is NO
    assert verdict(Steady(at(8), 0.01), s=ranks(0, noise=0.02, seeds=3)).status is OPEN


def test_interactions_compare_two_gains_block_by_block() -> None:
    sgd, adamw = ranks(0.3), ranks(0.0, rng=1)
    test = GainsMore(at(8), at(2), Side("t", at(8).point), Side("t", at(2).point), smallest=0.05)
    assert verdict(test, s=sgd, t=adamw).status is YES
    assert verdict(test, s=adamw, t=sgd).status is NO
    assert verdict(test, s=sgd, t=ranks(0.3, rng=2)).status is NO, "both gain as much: no interaction worth claiming"


def test_each_side_is_tuned_by_itself() -> None:
    points = [{**r, **lr} for r in RANKS[:2] for lr in RATES[:3]]
    best = {2: 1e-4, 8: 1.6e-3}

    def truth(p: Point) -> float:
        slope = 0.4 if p["method.r"] == 8 else 0.2
        return 1 + slope * abs(math.log2(p["optimizer.lr"] / best[p["method.r"]])) - 0.1 * (p["method.r"] == 8)

    frame = frame_of(points, truth, seeds=4, noise=0.01)
    tuned = Better(at(8, "optimizer.lr"), at(2, "optimizer.lr"))
    found = verdict(tuned, s=frame)
    assert found.status is YES and found.effect == pytest.approx(0.1, abs=0.02) and found.n == 4
    untuned = verdict(Better(at(8), at(2)), s=frame)
    assert untuned.n == 12 and untuned.effect == pytest.approx(-0.3, abs=0.02), "paired over every rate alike"


def test_scores_that_are_losses_are_tuned_to_be_low() -> None:
    points = [{**r, **lr} for r in RANKS[:2] for lr in RATES[:2]]
    metric = "scores.text.word_perplexity"
    frame = frame_of(points, lambda p: 3 + (p["method.r"] == 2) + (p["optimizer.lr"] == 1e-4), seeds=4)
    frame = frame.assign(**{metric: frame["eval_loss"]})
    assert Side("s", at(8).point, ("optimizer.lr",)).values(Evidence({"s": frame}), metric).mean() < 3.5
    assert objective_of(frame, metric, None) == (metric, "minimize")
    assert verdict(Better(at(8), at(2), metric), s=frame).status is YES
    assert higher_is_better("scores.text.acc") and not higher_is_better("scores.text.ties")


def test_trends_of_the_gap() -> None:
    frame = ranks(0.0)
    frame["train_loss"] = frame["eval_loss"] - 0.05 * np.log2(frame["method.r"]) - 0.001 * frame["seed"]
    assert verdict(Rises("s", "method.r", "gap"), s=frame).status is YES
    assert verdict(Rises("s", "method.r", "gap", sign=-1), s=frame).status is NO


def test_optima_are_located_between_grid_points_and_compared() -> None:
    found = verdict(Apart("hi", "lo", "optimizer.lr", factor=3), hi=bowl(4e-3), lo=bowl(4e-4))
    assert found.status is YES and found.effect == pytest.approx(1.0, abs=0.15)
    assert verdict(Apart("hi", "lo", "optimizer.lr", factor=3), hi=bowl(4e-4), lo=bowl(4e-3)).status is NO
    assert verdict(Apart("hi", "lo", "optimizer.lr", factor=3), hi=bowl(1.2e-3), lo=bowl(1e-3)).status is NO


@pytest.mark.parametrize(("power", "status"), [(1.0, YES), (-1.0, NO)])
def test_an_optimum_that_moves(power: float, status: Status) -> None:
    points = [{"data.diversity": d, "method.r": r} for d in (1, 4, 16) for r in (2, 8, 32, 128)]

    def truth(p: Point) -> float:
        return 1 + 0.1 * (math.log2(p["method.r"]) - 4 - power * (math.log2(p["data.diversity"]) - 2) / 2) ** 2

    frame = frame_of(points, truth, seeds=3, noise=0.005)
    found = verdict(OptimumRises("s", "method.r", "data.diversity", smallest=0.1), s=frame)
    assert found.status is status and found.effect == pytest.approx(power / 2, abs=0.15)


def test_roles_that_pay_and_roles_that_do_not() -> None:
    worth = {"mlp": 0.3, "head": -0.2}
    points = [{"method.roles": mask} for mask in all_masks()]
    frame = frame_of(points, lambda p: 2 - sum(worth.get(role, 0) for role in p["method.roles"]), seeds=1, noise=0.01)
    said = {role: Pays("s", role, smallest=0.05) for role in ("mlp", "head", "key")}
    found = judge([Claim(role, test) for role, test in said.items()], Evidence({"s": frame}))
    assert [v.status for v in found] == [YES, NO, NO]
    assert found[0].effect == pytest.approx(0.3, abs=0.02)


def test_sizes_are_compared_exactly() -> None:
    sizes = {
        "lora": Size("lora", 21e9, 4_000_000, article=21.33e9),
        "qlora": Size("qlora", 14e9, 4_000_000, measured=13e9, article=14.18e9),
        "long": Size("long", 27e9, 4_000_000, article=14.18e9),
    }

    def status(test: Kind) -> Status:
        (found,) = judge([Claim("c", test)], Evidence(sizes=sizes))
        return found.status

    assert status(Near("lora")) is YES and status(Near("long")) is NO, "the article's number is the claim"
    assert status(Near("long", 6e9, 0.01, minus="lora")) is YES and status(Near("long", 5e9, 0.01, minus="lora")) is NO
    assert status(Near("lora", 1.5, 0.01, over="qlora")) is YES
    assert status(Near("lora", 1.0, 0.001, over="qlora", of="parameters")) is YES
    assert status(Fits("qlora", 16e9)) is YES and status(Fits("long", 24e9)) is NO
    assert status(Saves("qlora", "lora", 0.3, 0.4)) is YES and status(Saves("qlora", "lora", 0.4)) is NO
    assert status(Grows(("qlora", "lora", "long"), 0.5)) is YES and status(Grows(("lora", "qlora"))) is NO
    assert status(Grows(("qlora", "lora"), 0.9)) is NO, "it grows by less"
    assert status(Grows(("qlora", "long", "lora"))) is NO, "larger at the end, and not at every step"
    assert status(Saves("qlora", "lora", of="measured")) is OPEN and status(Fits("other", 1.0)) is OPEN


def test_time_is_one_measurement() -> None:
    frame = ranks(0.0)
    frame["seconds"] = 10.0 + (frame["method.r"] == 8)
    found = verdict(Longer(at(8), at(2)), s=frame)
    assert found.status is YES and found.effect == pytest.approx(0.1) and math.isnan(found.p)
    assert verdict(Longer(at(2), at(8)), s=frame).status is NO
    assert verdict(Longer(at(8), at(2), least=0.5), s=frame).status is OPEN
    assert "CI" not in found.sentence


def test_what_cannot_be_tested_says_why() -> None:
    evidence = Evidence({"s": ranks(0.2, seeds=1)})
    tests: list[Kind] = [
        Better(at(8), at(2)),
        Better(at(8), at(64)),
        Steady(Side("t"), 0.1),
        Rises("s", "data.seed", "gap"),
    ]
    found = judge([Claim("c", test) for test in tests], evidence)
    assert all(v.status is OPEN and v.n == 0 for v in found)
    said = [v.test for v in found]
    assert "1 pairs of completed runs" in said[0] and "s has no completed run at r=64" in said[1]
    assert "sweep 't' has no results yet" in said[2] and "was not searched" in said[3]


def test_what_the_base_model_hardly_can_is_not_forgotten() -> None:
    frame = ranks(0.0)
    frame["scores.sums.acc"] = [0.01 + seed / 1000 for seed in frame["seed"]]
    test = Gains(at(8), "scores.sums.acc", "base_scores.sums.acc", sign=-1, smallest=0.02)
    found = {base: verdict(test, s=frame.assign(**{"base_scores.sums.acc": base})) for base in (0.03, 0.5)}
    assert found[0.5].status is YES
    assert found[0.03].status is OPEN and "0.03, too little to lose 0.02 of it" in found[0.03].test


def test_claims_of_one_section_share_their_risk() -> None:
    """Of twenty true nulls one would be supported by chance every other time; together hardly ever."""
    rng = np.random.default_rng(0)
    alone = together = 0
    for _ in range(60):
        frames = {f"s{i}": frame_of(RANKS[:2], lambda p: 1.0, seeds=4, noise=0.1, rng=rng) for i in range(20)}
        claims = [
            Claim(name, Better(Side(name, pairs({"method.r": 2})), Side(name, pairs({"method.r": 8}))))
            for name in frames
        ]
        alone += any(claim.test(claim.says, Evidence(frames)).status is YES for claim in claims)
        found = judge(claims, Evidence(frames))
        together += any(v.status is YES for v in found)
    assert alone > 15 and together <= 6


def test_not_better_keeps_its_level_and_power() -> None:
    rng = np.random.default_rng(3)

    def many(effect: float) -> list[Verdict]:
        rows = [(1 - effect + rng.normal(0, 0.1, 12), 1 + rng.normal(0, 0.1, 12)) for _ in range(600)]
        return [not_better(a.tolist(), b.tolist(), "c", margin=0.12) for a, b in rows]

    edge, none = many(0.12), many(0.0)
    assert np.mean([v.status is YES for v in edge]) <= 0.045, "as much better as the margin: hardly ever 'not better'"
    assert np.mean([v.status is YES for v in none]) == pytest.approx(np.mean([v.power for v in none]), abs=0.06)
    with pytest.raises(SpecError, match="margin must be positive"):
        not_better([1.0, 2.0], [1.0, 2.0], "c", margin=0.0)
