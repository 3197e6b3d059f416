"""A sweep's folder becomes one frame; whatever cannot be read is said by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import lora_lab
from lora_lab.analysis import find_sweep, load_results, read_sweep
from lora_lab.errors import CheckpointError, SweepFolderError
from lora_lab.spec import Outcome, Sweep, pairs

SPACE = {"method.r": {"choices": [2, 8]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}}
Fabricate = Callable[..., Sweep]


def test_one_row_a_run_with_the_promised_columns(fabricate: Fabricate, tmp_path: Path) -> None:
    sweep = fabricate(SPACE, lambda p, s: p["method.r"] + s, scores=pairs({"arc": 0.25}))
    frame = lora_lab.load_results(tmp_path / "runs" / "demo")
    assert list(frame.columns[:6]) == ["sweep", "trial", "run", "seed", "outcome", "key"]
    assert list(frame.columns[6:8]) == ["method.r", "method.alpha_over_r"]
    promised = (
        "eval_loss base_eval_loss best_eval_loss train_loss exact_match base_exact_match eval_accuracy "
        "trainable_parameters lane_bytes peak_bytes seconds tokens flops steps adapter message"
    )
    assert set(promised.split()) <= set(frame.columns)
    assert len(frame) == 12
    assert frame["run"].tolist()[:3] == ["t0000-s0", "t0000-s1", "t0001-s0"]
    assert frame["sweep"].unique().tolist() == ["demo"]
    assert frame["key"].nunique() == 12
    row = frame[(frame["method.r"] == 8) & (frame["method.alpha_over_r"] == 1) & (frame["seed"] == 1)].iloc[0]
    assert row["eval_loss"] == 9.0
    assert row["adapter"] == "runs/t0004-s1/adapter"
    assert row["scores.arc"] == 0.25
    assert row["peak_bytes"] == 1_200_000_000
    assert frame.attrs["sweep"]["objective"] == {"metric": "eval_loss", "direction": "minimize"}
    assert sweep.name == frame.attrs["sweep"]["name"]


def test_numbers_are_numbers_and_what_is_unknown_is_nan(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE, outcomes={(0, 0): Outcome.DIVERGED})
    frame = load_results(tmp_path / "runs" / "demo")
    for name in ("eval_loss", "exact_match", "eval_accuracy", "flops", "seconds", "method.r", "best_step", "started"):
        assert pd.api.types.is_numeric_dtype(frame[name]), name
    assert frame.loc[0, "outcome"] == "DIVERGED"
    assert pd.isna(frame.loc[0, "eval_loss"]) and pd.isna(frame.loc[0, "adapter"])
    assert frame.loc[0, "message"] == "the loss became NaN at step 41"
    assert frame["eval_accuracy"].isna().all()


def test_masks_are_tuples_that_group(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({"method.roles": {"masks": [["query", "value"], []]}})
    frame = load_results(tmp_path / "runs" / "demo")
    assert set(frame["method.roles"]) == {("query", "value"), ()}


def test_a_path_that_may_be_null(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({"optimizer.max_grad_norm": {"choices": [None, 1.0]}})
    assert load_results(tmp_path / "runs" / "demo")["optimizer.max_grad_norm"].isna().sum() == 2


def test_missing_folder_and_missing_results_say_what_to_do(fabricate: Fabricate, tmp_path: Path) -> None:
    with pytest.raises(SweepFolderError, match=r"no sweep there.*lora-lab sweep NAME"):
        load_results(tmp_path / "nowhere")
    fabricate(SPACE, points=[], name="empty")
    with pytest.raises(SweepFolderError, match=r"'empty' has a result yet.*resumes"):
        load_results(tmp_path / "runs" / "empty")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"run": "t0000-s0", "tri', "torn or not JSON"),
        ("", "torn or not JSON"),
        ("[1, 2]", "lacks key, outcome"),
        ('{"run": "t0000-s0", "trial": 0, "seed": 0}', "lacks key, outcome, point"),
    ],
)
def test_a_torn_result_is_named_and_never_read_as_empty(
    fabricate: Fabricate, tmp_path: Path, text: str, reason: str
) -> None:
    fabricate(SPACE)
    path = tmp_path / "runs" / "demo" / "runs" / "t0000-s0" / "result.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_results(tmp_path / "runs" / "demo")
    assert str(path) in str(caught.value) and "Move it away" in str(caught.value)


def test_an_unknown_outcome_is_refused(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE)
    path = tmp_path / "runs" / "demo" / "runs" / "t0000-s0" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": "FINE"}))
    with pytest.raises(CheckpointError, match="unknown outcome 'FINE'"):
        load_results(tmp_path / "runs" / "demo")


def test_a_sweep_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"name": "x"}')
    with pytest.raises(SweepFolderError, match="not the record of a sweep"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("space", "sampler", "trials"),
    [
        (SPACE, "grid", None),
        (SPACE, "grid", 4),
        ({"method.r": {"int": [2, 9]}}, "grid", None),
        ({"optimizer.lr": {"float": {"low": 0.1, "high": 0.5, "step": 0.1}}}, "grid", None),
        ({"optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}}}, "tpe", 7),
    ],
)
def test_the_planned_size_agrees_with_the_sweep(
    fabricate: Fabricate, tmp_path: Path, space: dict[str, object], sampler: str, trials: int | None
) -> None:
    sweep = fabricate(space, sampler=sampler, trials=trials, points=[])
    record = read_sweep(tmp_path / "runs" / "demo")
    assert record.planned_trials == sweep.planned_trials
    assert record.planned_runs == 2 * sweep.planned_trials
    assert record.key == sweep.key


def test_find_sweep_by_name_folder_yaml_and_newest(
    fabricate: Fabricate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SweepFolderError, match=r"runs/ holds no sweep yet.*lora-lab sweep rank_alpha"):
        find_sweep()
    fabricate(SPACE, name="rank_alpha", points=[])
    fabricate(SPACE, name="masks", points=[])
    fabricate(SPACE, folder=tmp_path / "else" / "where", points=[])
    assert find_sweep("masks") == Path("runs/masks")
    assert find_sweep("else/where") == Path("else/where")
    assert find_sweep("my/own/masks.yaml") == Path("runs/masks")
    import os

    os.utime("runs/masks/sweep.json", (1, 1))
    assert find_sweep() == Path("runs/rank_alpha")
    (tmp_path / "runs" / "masks" / "runs" / "t0000-s0").mkdir(parents=True)
    assert find_sweep() == Path("runs/masks")
    with pytest.raises(SweepFolderError, match="did you mean 'rank_alpha'"):
        find_sweep("rank_alhpa")
    with pytest.raises(SweepFolderError, match=r"not a sweep's folder, it has no sweep\.json"):
        find_sweep("else")


def test_ten_thousand_runs_are_read(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE)
    folder = tmp_path / "runs" / "demo" / "runs"
    text = (folder / "t0000-s0" / "result.json").read_text()
    for i in range(10_000):
        path = folder / f"t{i:04d}-s0"
        path.mkdir(exist_ok=True)
        tree = text.replace('"run": "t0000-s0"', f'"run": "t{i:04d}-s0"').replace('"trial": 0', f'"trial": {i}')
        (path / "result.json").write_text(tree)
    frame = load_results(tmp_path / "runs" / "demo")
    assert len(frame) == 10_000 + 6


def test_an_adapter_of_another_sweep_is_named_where_it_lies(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE)
    record = read_sweep(tmp_path / "runs" / "demo")
    other, elsewhere = tmp_path / "runs" / "other" / "adapter", tmp_path / "disk" / "kept"
    other.mkdir(parents=True)
    elsewhere.mkdir(parents=True)
    assert record.at("../other/adapter") == other
    assert record.at("runs/t0000-s0/gone") == record.folder / "runs/t0000-s0/gone"
    (tmp_path / "disk" / "demo").mkdir()
    linked = replace(record, folder=tmp_path / "runs" / "linked")
    linked.folder.symlink_to(tmp_path / "disk" / "demo")
    assert linked.at("../kept") == linked.folder / "../kept", "shorter would be another place"
