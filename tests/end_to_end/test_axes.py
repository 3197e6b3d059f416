"""Any config path is an axis: a sweep of two runs of the tiny model along each kind of it, and the two differ."""

from __future__ import annotations

import json
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
ONE = "sweep.space={method.r: [8]}"
AXES = {
    "method.r": "8, 2",
    "method.alpha": "null, 4.0",
    "method.alpha_over_r": "null, 8.0",
    "method.roles": "[query, value], [mlp, head]",
    "method.layers": "[], [1]",
    "method.dropout": "0.0, 0.5",
    "method.rslora": "false, true",
    "method.dora": "false, true",
    "method.rank_budget": "null, 6",
    "method.name": "lora, vera, ia3",
    "method.init": "default, gaussian",
    "optimizer.lr": "1e-2, 1e-1",
    "optimizer.weight_decay": "0.01, 30.0",
    "optimizer.name": "adamw, sgd",
    "optimizer.beta1": "0.9, 0.5",
    "optimizer.max_grad_norm": "1.0, 1e-6",
    "schedule.name": "linear, constant, wsd",
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
    "model.quantization": "none, nf4, int8",
}
"""Config path -> the base's value, and others."""
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
    base, *changed = results
    usual = dict(base.point)
    axes = [[path for path, value in result.point if value != usual[path]] for result in changed]
    assert {path for (path,) in axes} == set(AXES)
    assert len({result.key for result in results}) == len(results)
    for (path,), result in zip(axes, changed, strict=True):
        if path == "budget.micro_batch_size":
            assert result.eval_loss == pytest.approx(base.eval_loss, rel=1e-5), "the same gradient, in parts"
        else:
            assert result.eval_loss != base.eval_loss, path


def test_the_data_set_is_an_axis(tmp_path: Path) -> None:
    """A text file against conversations; each is the data that a sweep of its own would have trained on."""
    text, talk = tmp_path / "book.txt", tmp_path / "talk.jsonl"
    text.write_text("".join(f"Line {n} of a book about {n * n} things.\n" for n in range(200)))
    rows = ({"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")]} for n in range(60))
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    space = f"sweep.space={{data.path: ['{text}', '{talk}'], data.name: [text, chat]}}"
    where = f'sweep.constraints=[\'(data.name == "chat") == (data.path == "{talk}")\']'
    results = train(tmp_path / "both", space, where, "data=text", f"data.path={text}")
    assert [dict(result.point)["data.name"] for result in results] == ["text", "chat"]
    for name, path, result in (("text", text, results[0]), ("chat", talk, results[1])):
        (alone,) = train(tmp_path / name, "data=text", f"data.name={name}", f"data.path={path}", ONE)
        assert (alone.key, alone.eval_loss, alone.tokens) == (result.key, result.eval_loss, result.tokens)


def test_masks_and_switches_of_roles_are_axes(tmp_path: Path) -> None:
    """All 64 masks, of which the empty one has nothing to train; a switch trains as the mask does that it makes."""
    short = ("budget.steps=1", "data.train_size=4", "data.eval_size=4")
    every = train(tmp_path / "masks", *short, "sweep.space={method.roles: {masks: all}}")
    assert len(every) == 64 and {result.outcome for result in every} == {"COMPLETED"}
    assert len({(result.trainable_parameters, result.eval_loss) for result in every}) == 64
    (nothing,) = (result for result in every if result.trainable_parameters == 0)
    assert nothing.eval_loss == nothing.base_eval_loss
    switches = train(tmp_path / "switches", *short, "sweep.space={method.roles.mlp: [true, false]}")
    by_key = {result.key: result for result in every}
    assert [by_key[result.key].eval_loss for result in switches] == [result.eval_loss for result in switches]


SHAPES = ("method.rank_shape=linear", "method.r_last=2", "sweep.space={method.rank_shape: [linear, decay]}")
GROUPS = ("method.rank_shape=groups", "method.rank_groups=[4,1]", "sweep.space={method.rank_groups: [[4, 1], [1, 4]]}")
TASKS = ("data.tasks=[reversal]", "sweep.space={data.tasks.addition: [true, false]}")
MOMENTUM = "optimizer.momentum: {choices: [0.1, 0.9], when: {optimizer.name: sgd}}"


@pytest.mark.parametrize(
    ("name", "overrides", "completed", "refused"),
    [
        ("rank shapes", SHAPES, 2, 0),
        ("rank groups", GROUPS, 2, 0),
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
