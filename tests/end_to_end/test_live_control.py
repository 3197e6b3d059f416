"""Runs that are stopped, cloned and extended while their sweep runs: on real processes, on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import Started, start, until
from tiny import SWEEP

FOLDER = Path("runs/rank_alpha")
SLOW = (
    *SWEEP, "sweep.repeats=1", "budget.steps=1500", "schedule=constant", "pack.max_lanes=2",
    "sweep.space={method.r: {choices: [2, 4]}}",
)  # fmt: skip


def said(folder: Path, *words: str) -> str:
    done = start(folder, *words)
    assert done.wait() == 0, done.said()
    return done.said()


def result(folder: Path, run: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / FOLDER / "runs" / run / "result.json").read_text())
    return tree


def training(folder: Path, run: str) -> bool:
    path = folder / FOLDER / "runs" / run / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 2000


@pytest.fixture
def running(tmp_path: Path) -> Started:
    started = start(tmp_path, *SLOW)
    until(lambda: training(tmp_path, "t0000-s0") and training(tmp_path, "t0001-s0"), "training")
    return started


def test_stop_clone_and_cancel_a_sweep_that_runs(running: Started, tmp_path: Path) -> None:
    assert "branches off t0001-s0" in said(tmp_path, "clone", "rank_alpha", "t0001-s0", "optimizer.lr=1e-3")
    assert "at its next step" in said(tmp_path, "stop", "rank_alpha", "t0000-s0")
    until((tmp_path / FOLDER / "runs/t0000-s0/result.json").exists, "the stop")
    stopped = result(tmp_path, "t0000-s0")
    assert stopped["outcome"] == "PRUNED" and stopped["message"].startswith("stopped at step")
    until(lambda: training(tmp_path, "t100000-s0"), "the branch, in the free place")
    branch = json.loads((tmp_path / FOLDER / "runs/t100000-s0/parent.json").read_text())
    assert branch["parent"] == "t0001-s0" and branch["step"] > 0
    said(tmp_path, "cancel", "rank_alpha")
    assert running.wait() == 130 and "Cancelled" in running.said()
    said(tmp_path, "stop", "rank_alpha", "t0001-s0")
    said(tmp_path, "stop", "rank_alpha", "t100000-s0")
    assert result(tmp_path, "t100000-s0")["parent"] == "t0001-s0"
    assert json.loads(said(tmp_path, "status", "rank_alpha", "--json"))["settled_runs"] == 2, "a branch is no row"


def test_a_run_that_is_extended_is_the_run_that_was_longer_from_the_start(tmp_path: Path) -> None:
    words = (*SWEEP, "sweep.repeats=1", "schedule=constant", "sweep.space={method.r: {choices: [4]}}")
    said(tmp_path, *words, "budget.steps=12")
    assert "goes on where t0000-s0 ends" in said(tmp_path, "extend", "rank_alpha", "t0000-s0", "--steps", "8")
    said(tmp_path, *words, "budget.steps=12")
    extended = result(tmp_path, "t100000-s0")
    said(tmp_path, *words, "budget.steps=20", "sweep.name=longer", "sweep.dir=longer")
    longer = json.loads((tmp_path / "longer/runs/t0000-s0/result.json").read_text())
    assert (extended["parent"], extended["parent_step"], extended["steps"]) == ("t0000-s0", 12, 20)
    assert extended["eval_loss"] == pytest.approx(longer["eval_loss"], rel=1e-6)
    assert extended["tokens"] == longer["tokens"]
    assert extended["key"] != longer["key"]
