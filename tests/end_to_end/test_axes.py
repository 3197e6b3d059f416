"""Any config path is an axis: a sweep of two runs of the tiny model along each kind of it, and the two differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab.config import compose_sweep
from lora_lab.launch import local
from lora_lab.spec import RunResult
from lora_lab.study import Study
from lora_lab.worker.figures import figures_on
from lora_lab.worker.tee import Tee

SMALL = (
    *("model=tiny", "data.train_size=24", "data.eval_size=8", "data.max_length=48", "budget.steps=3"),
    *("budget.batch_size=4", "evaluation.every_steps=1", "evaluation.exact_match=false", "optimizer.lr=1e-2"),
    *("sweep.repeats=1", "tracking=none"),
)
AXES = {
    "method.r": "8, 2",
    "method.alpha": "null, 4.0",
    "method.alpha_over_r": "null, 8.0",
    "method.roles": "[query, value], [mlp, head]",
    "method.layers": "[], [1]",
    "method.dropout": "0.0, 0.5",
    "method.rslora": "false, true",
    "method.init": "default, gaussian",
    "optimizer.lr": "1e-2, 1e-1",
    "optimizer.weight_decay": "0.01, 30.0",
    "optimizer.name": "adamw, sgd",
    "optimizer.beta1": "0.9, 0.5",
    "optimizer.max_grad_norm": "1.0, 1e-6",
    "schedule.name": "linear, constant",
    "schedule.warmup_steps": "0, 2",
    "budget.steps": "3, 2",
    "budget.batch_size": "4, 2",
    "budget.micro_batch_size": "null, 1",
    "data.max_length": "48, 32",
    "data.train_size": "24, 8",
    "data.diversity": "null, 1",
    "data.seed": "0, 1",
    "data.mask_prompt": "true, false",
    "model.dtype": "float32, bfloat16",
}
"""Config path -> the base's value, and another."""
BASE = ("method.alpha_over_r=null", "schedule.warmup_steps=0")


def train(folder: Path, *overrides: str) -> list[RunResult]:
    composed = compose_sweep("rank_alpha", [*SMALL, *overrides, f"sweep.dir={folder}"])
    with Study.open(composed.sweep, composed.execution, figures_on("cpu")) as study:
        local.run(composed.sweep, composed.execution, study, Tee([]), say=lambda text: None, settled=lambda n: None)
        return study.results()


def test_every_axis_reaches_the_training(tmp_path: Path) -> None:
    """Each axis changed alone, in one sweep with the base: another experiment, and another result."""
    space = ", ".join(f"{path}: [{values}]" for path, values in AXES.items())
    results = train(tmp_path / "sweep", f"sweep.space={{{space}}}", "sampler=one_at_a_time", *BASE)
    assert {result.outcome for result in results} == {"COMPLETED"}, [r.message for r in results]
    assert len({result.key for result in results}) == len(results) == len(AXES) + 1
    base, *changed = results
    for path, result in zip(AXES, changed, strict=True):
        if path == "budget.micro_batch_size":
            assert result.eval_loss == pytest.approx(base.eval_loss, rel=1e-5), "the same gradient, in parts"
        else:
            assert result.eval_loss != base.eval_loss, path


TASKS = ("data.tasks=[reversal]", "sweep.space={data.tasks.addition: [true, false]}")
MOMENTUM = "optimizer.momentum: {choices: [0.1, 0.9], when: {optimizer.name: sgd}}"


@pytest.mark.parametrize(
    ("name", "overrides", "completed", "refused"),
    [
        ("tasks", TASKS, 2, 0),
        ("conditions", (f"sweep.space={{optimizer.name: [adamw, sgd], {MOMENTUM}}}",), 3, 0),
        ("constraints", ("sweep.space={method.r: [2, 4, 64]}", "sweep.constraints=['parameters < 10000']"), 2, 1),
        ("memory", ("sweep.space={budget.batch_size: [1, 8]}", "sweep.constraints=['peak_memory <= 1 GB']"), 2, 0),
        ("objectives", ("sweep.space={method.r: [2, 8]}", "sweep.objectives=[eval_loss, lane_bytes]"), 2, 0),
        ("racing", ("sweep.space={method.r: [2, 8]}", "sweep.repeats={min: 1, max: 2}"), 4, 0),
        (
            "rungs",
            ("sweep.space={method.r: [1, 2, 4, 8]}", "pruner=asha", "+pruner.options={reduction_factor: 2}"),
            None,
            0,
        ),
    ],
)
def test_ways_to_search_on_a_real_pack(
    tmp_path: Path, name: str, overrides: tuple[str, ...], completed: int | None, refused: int
) -> None:
    composed = compose_sweep("rank_alpha", [*SMALL, *overrides, f"sweep.dir={tmp_path / name}"])
    results = train(tmp_path / name, *overrides)
    with Study.open(composed.sweep, composed.execution) as study:
        counts = study.counts()
    assert counts.refused == refused and counts.runs == counts.planned_runs == len(results)
    done = [result for result in results if result.outcome == "COMPLETED"]
    assert len(done) == completed or (completed is None and 0 < len(done) <= len(results) == 4)
