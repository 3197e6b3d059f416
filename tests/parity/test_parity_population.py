"""A copy in a population is its parent to the last bit where it begins; from there it has settings of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lora_lab.config import compose_sweep
from lora_lab.launch import local
from lora_lab.study import Study
from lora_lab.worker.tee import Tee

SMALL = (
    *("model=tiny", "data.train_size=40", "data.eval_size=12", "data.max_length=64", "budget.batch_size=4"),
    *(
        "budget.steps=9",
        "evaluation.every_steps=3",
        "evaluation.exact_match=false",
        "tracking=none",
        "pack.max_lanes=3",
    ),
    *("sampler=random", "sweep.trials=4", "sweep.repeats=1", "sweep.seed=3", "method.dropout=0.1"),
    "sweep.space={optimizer.lr: {float: {low: 1e-4, high: 3e-1, log: true}}}",
)


def train(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    composed = compose_sweep("rank_alpha", [*SMALL, *words, f"sweep.dir={folder}"])
    with Study.open(composed.sweep, composed.execution) as study:
        local.run(composed.sweep, composed.execution, study, Tee([]), say=lambda text: None, settled=lambda n: None)
    return {
        result["run"]: result for path in folder.glob("runs/*/result.json") if (result := json.loads(path.read_text()))
    }


def losses(folder: Path, run: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def test_a_copy_goes_on_where_its_parent_was(tmp_path: Path) -> None:
    results = train(tmp_path / "bred", "pruner=population")
    copies = {run: result for run, result in results.items() if result["parent"] is not None}
    assert len(copies) == 2 and {result["parent_step"] for result in copies.values()} == {3, 6}
    assert sum(result["outcome"] == "COMPLETED" for result in results.values()) == 4
    for run, result in copies.items():
        steps = losses(tmp_path / "bred", run)
        assert min(steps) == result["parent_step"] + 1, "it took the parent's steps over"
        # Its first step sees the parent's adapter, data and dropout; only what follows is its own.
        first = steps[result["parent_step"] + 1]
        assert first == losses(tmp_path / "bred", result["parent"])[result["parent_step"] + 1]


def test_who_is_not_replaced_trains_as_without_a_population(tmp_path: Path) -> None:
    bred, alone = train(tmp_path / "bred", "pruner=population"), train(tmp_path / "alone")
    same = [run for run, result in bred.items() if result["outcome"] == "COMPLETED" and result["parent"] is None]
    assert same
    for run in same:
        assert bred[run]["key"] == alone[run]["key"] and bred[run]["eval_loss"] == alone[run]["eval_loss"]
        one, other = (
            safetensors.torch.load_file(tmp_path / folder / "runs" / run / "adapter" / "adapter_model.safetensors")
            for folder in ("bred", "alone")
        )
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
