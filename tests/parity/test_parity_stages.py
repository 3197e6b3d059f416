"""A run that begins from another's stem ends as one trained from its beginning: to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lora_lab.config import compose_sweep
from lora_lab.launch import local
from lora_lab.study import Study
from lora_lab.worker.tee import Tee

# So high a rate that the loss at the end of the shorter run is better than at the end of the longer one.
SMALL = (
    *("model=tiny", "data.train_size=40", "data.eval_size=12", "data.max_length=64", "budget.batch_size=4"),
    *("optimizer.lr=1.0", "schedule=constant", "schedule.warmup_steps=2", "method.dropout=0.1", "tracking=none"),
    *("evaluation.exact_match=false", "sweep.repeats=1", "pack.max_lanes=2"),
)


def train(folder: Path, *overrides: str) -> dict[int, dict[str, Any]]:
    """The results by number of steps."""
    composed = compose_sweep("rank_alpha", [*SMALL, *overrides, f"sweep.dir={folder}"])
    with Study.open(composed.sweep, composed.execution) as study:
        local.run(composed.sweep, composed.execution, study, Tee([]), say=lambda text: None, settled=lambda n: None)
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    return {result["steps"]: result | {"folder": folder / "runs" / result["run"]} for result in results}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two results of one experiment: what was measured, and the adapter, are equal to the last bit."""
    assert one["key"] == other["key"]
    for name in ("eval_loss", "best_eval_loss", "best_step", "train_loss", "eval_accuracy", "tokens", "steps"):
        assert one[name] == other[name], name
    adapters = [
        safetensors.torch.load_file(r["folder"] / "adapter" / "adapter_model.safetensors") for r in (one, other)
    ]
    assert all(torch.equal(adapters[0][name], tensor) for name, tensor in adapters[1].items())


def trained(result: dict[str, Any]) -> list[int]:
    """The steps that were trained under the run's own name."""
    lines = [json.loads(line) for line in (result["folder"] / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("every", ["3", "4", "null"])
def test_a_run_from_a_stem_is_the_run_itself(tmp_path: Path, every: str) -> None:
    often = f"evaluation.every_steps={every}"
    shared = train(tmp_path / "shared", "sweep.space={budget.steps: {choices: [8, 12, 17]}}", often)
    assert {steps: result["stage"] for steps, result in shared.items()} == {
        8: None,
        12: "t0000-s0@8",
        17: "t0001-s0@12",
    }
    for steps in (12, 17):
        alone = train(
            tmp_path / f"alone{steps}", "sweep.space={method.r: {choices: [8]}}", f"budget.steps={steps}", often
        )
        same(shared[steps], alone[steps])
    assert trained(shared[17]) == [13, 14, 15, 16, 17], "nothing is trained twice"


@pytest.mark.parametrize(
    ("schedule", "stem"),
    [(("schedule=constant",), 10), (("schedule=wsd", "schedule.decay_share=0.25"), 8)],
    ids=["constant", "wsd"],
)
def test_one_epoch_against_two(tmp_path: Path, schedule: tuple[str, ...], stem: int) -> None:
    """40 examples, four a step: the second epoch is trained alone, and under wsd what the first one decayed over."""
    settings = (*schedule, "schedule.warmup_steps=2", "budget.steps=null")
    shared = train(tmp_path / "shared", *settings, "sweep.space={budget.epochs: [1, 2]}")
    assert {steps: result["stage"] for steps, result in shared.items()} == {10: None, 20: f"t0000-s0@{stem}"}
    assert trained(shared[10]) == list(range(1, 11))
    assert trained(shared[20]) == list(range(stem + 1, 21)), "nothing is trained twice"
    for epochs, steps in ((1, 10), (2, 20)):
        alone = train(tmp_path / f"alone{epochs}", *settings, f"budget.epochs={epochs}", "sweep.space={method.r: [8]}")
        assert trained(alone[steps]) == list(range(1, steps + 1))
        same(shared[steps], alone[steps])


def test_lengths_that_come_to_the_same_steps_are_trained_once(tmp_path: Path) -> None:
    """0.95 epochs are ten steps, as one is: nothing is left for the longer run but its evaluation."""
    train(tmp_path / "shared", "budget.steps=null", "sweep.space={budget.epochs: [0.95, 1.0]}")
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("shared/runs/*/result.json"))]
    assert [(r["outcome"], r["steps"], r["stage"]) for r in results] == [
        ("COMPLETED", 10, None),
        ("COMPLETED", 10, "t0000-s0@10"),
    ]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
