"""Importance of planted functions; fronts by brute force; gaps, curves and comparisons of known sweeps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_sweeps import frame_of

from lora_lab.analysis import compare, importance, learning_curves, overfitting, pareto_front
from lora_lab.analysis.curves import curve_table
from lora_lab.analysis.forest import configuration_means, flat_point
from lora_lab.analysis.pareto import on_front
from lora_lab.errors import SpecError
from lora_lab.study import ped_anova

GRID = [{"a.x": x, "a.y": y, "a.z": z} for x in range(8) for y in range(8) for z in range(4)]
LISTS = {"a.x": {"choices": list(range(8))}, "a.y": {"choices": list(range(8))}, "a.z": {"choices": list(range(4))}}


def test_shares_of_an_additive_function_are_its_variances() -> None:
    frame = frame_of(GRID, lambda p: 2.0 * p["a.x"] + 1.0 * p["a.y"], space=LISTS, seeds=1, noise=0.01)
    found = importance(frame)
    assert found is not None and found.score > 0.95
    shares = found.table.set_index("path")["alone"]
    assert shares["a.x"] == pytest.approx(0.8, abs=0.03) and shares["a.y"] == pytest.approx(0.2, abs=0.03)
    assert shares["a.z"] < 0.01 and found.interactions[0].share < 0.03
    curve = next(c for c in found.curves if c.path == "a.x")
    assert np.polyfit(curve.values, curve.means, 1)[0] == pytest.approx(2.0, abs=0.1)
    assert found.sentences[0].startswith("x matters most: 8")


def test_a_pure_interaction_is_in_no_main_effect() -> None:
    frame = frame_of(GRID, lambda p: float((p["a.x"] < 4) == (p["a.y"] < 4)), space=LISTS, seeds=2, noise=0.01)
    found = importance(frame)
    assert found is not None
    shares = found.table.set_index("path")
    assert shares["alone"].max() < 0.1 and shares["total"][["a.x", "a.y"]].min() > 0.8
    assert set(found.interactions[0].paths) == {"a.x", "a.y"} and found.interactions[0].share > 0.7
    assert "act together" in " ".join(found.sentences)


def test_shares_agree_with_optunas_fanova() -> None:
    import optuna
    from optuna.distributions import IntDistribution
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    frame = frame_of(GRID, lambda p: p["a.x"] ** 2 + 5 * p["a.y"], space=LISTS, seeds=1, noise=0.01)
    points, means, _ = configuration_means(frame, "eval_loss")
    domains = {"a.x": IntDistribution(0, 7), "a.y": IntDistribution(0, 7), "a.z": IntDistribution(0, 3)}
    study = optuna.create_study()
    study.add_trials(
        [create_trial(params=p, distributions=domains, value=v) for p, v in zip(points, means, strict=True)]
    )
    theirs = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    found = importance(frame)
    assert found is not None
    ours = found.table.set_index("path")["alone"]
    assert {path: ours[path] for path in theirs} == pytest.approx(theirs, abs=0.06)


def test_ped_anova_finds_what_sets_the_best_apart() -> None:
    rng = np.random.default_rng(0)
    points = [{"lr": float(10 ** rng.uniform(-5, -2)), "r": int(rng.choice([2, 8, 32])), "o": "a"} for _ in range(300)]
    values = [(math.log10(p["lr"]) + 3) ** 2 for p in points]
    found = ped_anova(points, values)
    assert set(found) == {"lr", "r"} and found["lr"] > 0.9
    assert ped_anova(points, [-v for v in values], "maximize")["lr"] == pytest.approx(found["lr"])
    assert ped_anova(points[:5], values[:5]) == {} and ped_anova([], []) == {}


def test_masks_are_six_settings_and_few_configurations_none() -> None:
    assert flat_point({"method.roles": ("query",)})["method.roles.query"] is True
    assert importance(frame_of(GRID[:4], lambda p: p["a.z"])) is None
    assert importance(frame_of(GRID, lambda p: 1.0, noise=0.0)) is None


def test_the_front_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 12, (200, 3)).astype(float)
    brute = [not any((b <= a).all() and (b < a).any() for b in values) for a in values]
    assert on_front(values).tolist() == brute
    table = pareto_front(frame_of([{"method.r": r} for r in (2, 8, 32)], lambda p: 1 / p["method.r"], noise=0.0))
    assert table["front"].all() and table["name"].tolist() == ["r=32", "r=8", "r=2"]


def test_the_gap_grows_where_it_was_planted() -> None:
    points = [{"method.r": r, "method.dropout": d} for r in (2, 8, 32) for d in (0.0, 0.1)]
    frame = frame_of(points, lambda p: 1.0, seeds=3, noise=0.01)
    frame["train_loss"] = (
        frame["eval_loss"] - 0.02 * np.log2(frame["method.r"]) - np.random.default_rng(2).normal(0, 0.005, 18)
    )
    frame["best_eval_loss"] = frame["eval_loss"] - 0.01 * (frame["seed"] == 0)
    found = overfitting(frame)
    assert found is not None
    assert [t.row_paths for t in found.tables] == [("method.r",), ("method.dropout",)]
    rank = next(s for s in found.slopes if s.path == "method.r")
    assert rank.log and rank.value == pytest.approx(0.02, abs=0.003) and rank.low < 0.02 < rank.high
    text = " ".join(found.sentences)
    assert (
        "The gap grows by 0.0" in text and "per doubling of r" in text and "No trend of the gap along dropout" in text
    )
    assert "6 of 18 runs were better at an earlier evaluation, by 0.01 at most" in text


def spool(folder: Path, run: str, steps: int, torn: bool = False) -> None:
    lines = [json.dumps({"n": 0, "time": 1.0, "kind": "started", "total_steps": steps})]
    lines += [
        json.dumps({"n": i, "time": 1.0, "kind": "step", "step": i, "loss": 3 - i / steps}) for i in range(1, steps + 1)
    ]
    for step in (0, steps // 2, steps):
        lines.append(
            json.dumps({"n": 0, "time": 1.0, "kind": "evaluation", "step": step, "loss": abs(step - steps / 2) + 1})
        )
    path = folder / "runs" / run / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n" + ('{"n": 9, "kind": "step", "st' if torn else ""))


def test_curves_are_thinned_to_their_end_and_survive_a_torn_line(tmp_path: Path) -> None:
    spool(tmp_path, "t0000-s0", 1000)
    spool(tmp_path, "t0001-s0", 10, torn=True)
    found = learning_curves(tmp_path, points=100)
    train = found[(found["kind"] == "train") & (found["run"] == "t0000-s0")]
    assert len(train) == 100 and train["step"].iloc[-1] == 1000 and train["step"].is_monotonic_increasing
    assert len(found[found["run"] == "t0001-s0"]) == 13
    frame = pd.DataFrame({"run": ["t0000-s0", "t0001-s0"], "outcome": ["COMPLETED", "PRUNED"]})
    table = curve_table(found, frame)
    assert table["best_step"].tolist() == [500, 5] and table["outcome"].tolist() == ["COMPLETED", "PRUNED"]
    assert learning_curves(tmp_path / "nowhere").empty


def test_repeated_sweeps_have_not_moved_and_a_moved_one_is_named() -> None:
    points = [{"method.r": r} for r in (2, 4, 8, 16, 32)]
    a = frame_of(points, lambda p: 1 / p["method.r"], seeds=3, noise=0.01)
    again = compare(a, a.copy())
    assert again.same == again.runs == 15 and again.repeat == 0 and len(again.sentences) == 1
    b = a.assign(eval_loss=a["eval_loss"] + np.where(a["method.r"] == 8, 0.2, 0.0001))
    b.attrs = a.attrs
    found = compare(a, b)
    assert [dict(m.point) for m in found.beyond] == [{"method.r": 8}]
    assert "1 of 5 configurations moved by more than seeds explain: r=8" in " ".join(found.sentences)
    assert "+0.2" in found.grid().plain()
    noise = frame_of(points, lambda p: 1 / p["method.r"], seeds=3, noise=0.01, rng=9)
    assert "Nothing moved by more than seeds explain" in " ".join(compare(a, noise).sentences)
    json.dumps(found.to_tree(), allow_nan=False)


def test_noise_alone_rarely_moves_anything() -> None:
    points = [{"method.r": r} for r in (2, 4, 8, 16)]
    frames = [frame_of(points, lambda p: 1.0, seeds=3, noise=0.05, rng=i) for i in range(200)]
    moved = [bool(compare(a, b).beyond) for a, b in zip(frames[::2], frames[1::2], strict=True)]
    assert np.mean(moved) <= 0.1


def test_sweeps_without_a_common_key_are_refused_and_lost_runs_are_named() -> None:
    a = frame_of([{"method.r": 2}, {"method.r": 4}], lambda p: 1.0)
    with pytest.raises(SpecError, match="no run in common"):
        compare(a, a.assign(key=a["key"] + "x"))
    b = a.assign(outcome=["COMPLETED", "COMPLETED", "DIVERGED", "COMPLETED"])
    b.attrs = a.attrs
    assert compare(a, b).lost == ("t0001-s0: COMPLETED in A, DIVERGED in B",)
