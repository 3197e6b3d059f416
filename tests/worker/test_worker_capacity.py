"""What fits is trained, what cannot is refused and counted, and what was measured corrects what is predicted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import SMALL

from lora_lab.config import compose_run, compose_sweep
from lora_lab.launch import local
from lora_lab.planner.correction import ENOUGH, MEANINGFUL, correction
from lora_lab.planner.prediction import HEADROOM
from lora_lab.spec import Execution, LauncherSpec, RunResult, RunSpec
from lora_lab.study import Study
from lora_lab.worker import capacity
from lora_lab.worker.capacity import Capacity, in_smaller_parts, measured, smallest
from lora_lab.worker.tee import Tee

Command = Callable[..., subprocess.CompletedProcess[str]]

SPACE = "sweep.space={method.r: {choices: [2, 8, 512]}}"
TINY = ("model=tiny", "data.train_size=64", "data.eval_size=16", "data.max_length=64", "budget.batch_size=4")


def spec(*overrides: str) -> RunSpec:
    return compose_run([*TINY, *overrides])


def peak(run: RunSpec, lanes: int = 1) -> int:
    found = Capacity("cpu").predicted([run] * lanes)
    assert found is not None
    return found


def limit(needed: int) -> int:
    """The memory in which ``needed`` bytes just fit."""
    return int(needed / (1 - HEADROOM)) + 10


def test_a_sweep_whose_points_partly_do_not_fit_runs_the_rest(tmp_path: Path, lora_lab: Command) -> None:
    """The large rank is refused before anything is loaded for it, counted and shown; the others are trained."""
    small, large = (smallest(compose_run([*SMALL, f"method.r={r}"])) for r in (8, 512))
    memory = (limit(peak(small)) + limit(peak(large))) // 2
    words = ("sweep", "rank_alpha", *SMALL, SPACE, "sweep.repeats=1", "tracking=none", f"device.memory={memory}")
    done = lora_lab(*words)
    assert done.returncode == 0, done.stderr
    assert "1 points refused, and never trained:" in done.stdout
    assert "trial 2: one lane needs" in done.stdout and "there are" in done.stdout
    status = json.loads(lora_lab("status", "rank_alpha", "--json").stdout)
    assert list(status["refused"]) == ["2"] and status["outcomes"] == {"COMPLETED": 2}
    assert status["settled_runs"] == status["planned_runs"] == 2
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/rank_alpha/runs/*/result.json"))]
    assert all(tree["predicted_bytes"] > 0 and tree["training_bytes"] > 0 for tree in results)
    assert all(tree["device"] == "cpu" for tree in results)
    assert "Measured over predicted peak memory" in lora_lab("report", "rank_alpha").stdout


def test_a_sweep_of_which_nothing_fits_says_so(tmp_path: Path, lora_lab: Command) -> None:
    done = lora_lab("sweep", "rank_alpha", *SMALL, SPACE, "tracking=none", "device.memory=100kB")
    assert done.returncode == 1
    assert "3 points refused" in done.stdout and "no point of the space could be trained" in done.stderr


def test_a_run_that_cannot_fit_is_refused_before_it_is_loaded(tmp_path: Path, lora_lab: Command) -> None:
    done = lora_lab("train", *SMALL, "device.memory=100kB", "hydra.run.dir=out")
    assert done.returncode == 2
    assert "It does not fit: one lane needs" in done.stderr
    assert "loading" not in done.stdout


def test_a_micro_batch_is_halved_until_it_fits() -> None:
    run = spec("budget.batch_size=8")
    for halvings in (1, 2, 3):
        parts = in_smaller_parts(run, halvings)
        assert parts.budget.micro == 8 >> halvings and parts.budget.batch_size == 8
        here = Capacity("cpu", memory=limit(peak(parts)))
        assert here.halvings(run, 0) == halvings
        assert here.refusal(run) is None
    assert Capacity("cpu", memory=limit(peak(run))).halvings(run, 2) == 2, "what the study asks for stays"
    assert Capacity("cpu", memory=limit(peak(smallest(run))) // 2).refusal(run) is not None


def test_workers_share_the_memory() -> None:
    run = spec()
    memory = limit(peak(smallest(run)))
    assert Capacity("cpu", memory=memory).refusal(run) is None
    assert Capacity("cpu", memory=memory, sharers=2).refusal(run) is not None


@pytest.mark.parametrize(
    ("launcher", "gpus", "expected"),
    [
        ({"workers": 4}, 4, 1),
        ({"workers": 4}, 2, 2),
        ({"workers": 3}, 2, 2),
        ({"workers": 3}, 0, 3),
        ({"workers": 4, "gpus_per_worker": 2}, 4, 2),
        ({"workers": 2, "gpus_per_worker": 8}, 4, 2),
        ({"workers": 1, "gpus_per_worker": 2}, 4, 1),
        ({"name": "ray", "workers": 8, "gpus_per_worker": 0.5}, 4, 2),
        ({"name": "slurm", "gpus_per_node": 4}, 4, 1),
    ],
)
def test_a_gpu_is_shared_by_the_workers_that_are_given_it(
    launcher: dict[str, Any], gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "device_kind", lambda device: "cuda")
    monkeypatch.setenv("LORA_LAB_GPUS", str(gpus))  # as the launcher says; torch sees a worker's own
    assert capacity.sharers(Execution("here", device="auto", launcher=LauncherSpec(**launcher))) == expected
    alone = Execution("here", device="cuda:1", launcher=LauncherSpec(workers=4))
    assert capacity.sharers(alone) == 4, "all on this one"


def test_a_pack_is_filled_as_far_as_memory_goes(tmp_path: Path) -> None:
    """Six runs, memory for two lanes: never more than two train at once, and all are trained."""
    space = "sweep.space={optimizer.lr: {choices: [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]}}"
    few = ("budget.steps=2", "evaluation.exact_match=false", "tracking=none", "sweep.repeats=1", space)
    free = compose_sweep("rank_alpha", [*TINY, *few, f"sweep.dir={tmp_path}"])
    run = free.sweep.spec_of({"optimizer.lr": 1e-3}, 0)
    execution = replace(free.execution, device="cpu", device_memory=limit(peak(run, 2)))
    crowds: list[int] = []
    with Study.open(free.sweep, execution) as study:
        next_run = study.next_run
        held: set[str] = set()

        def counted(*, company: bool) -> object:
            held.difference_update(result.run for result in study.results())
            if (found := next_run(company=company)) is not None:
                crowds.append(len(held))
                held.add(found.id)
            return found

        study.next_run = counted  # type: ignore[method-assign,assignment]
        local.run(free.sweep, execution, study, Tee([]), say=lambda text: None, settled=lambda n: None)
        results = study.results()
    assert {result.outcome for result in results} == {"COMPLETED"} and len(results) == 6
    assert max(result.predicted_bytes for result in results) == peak(run, 2)
    assert max(crowds) == 2, "two in the pack, and a third that waits for room"


def test_different_lanes_together_are_never_said_to_take_less_than_they_do() -> None:
    small, large = spec("method.r=2"), spec("method.r=64", "method.roles=all")
    together = Capacity("cpu").predicted([small, large])
    assert together is not None
    assert max(peak(small, 2), peak(large)) <= together <= peak(large, 2)


def test_measured_peaks_correct_predictions_on_the_same_device() -> None:
    big = 4 * MEANINGFUL
    said = [(big, int(big * ratio)) for ratio in (1.0, 1.1, 1.2, 1.3)]
    assert correction(said) == pytest.approx(1.3)
    assert correction(said[: ENOUGH - 1]) == 1.0, "too few"
    assert correction([(100, 10**9)] * 10) == 1.0, "too small to say anything"
    assert correction([(big, big // 2)] * 10) == 1.0, "never below what was predicted"
    results = [result("cpu", *pair) for pair in said] + [result("A100", big, 9 * big)] * 5
    assert correction(measured(results, "cpu")) == pytest.approx(1.3)
    assert correction(measured(results, "H100")) == 1.0


def test_a_correction_counts_in_what_fits(tmp_path: Path) -> None:
    big = 4 * MEANINGFUL
    for n in range(ENOUGH):
        folder = tmp_path / "runs" / f"t{n:04d}-s0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result("cpu", big, 2 * big, n)))
    run = spec("budget.batch_size=1")
    here = Capacity("cpu", memory=int(1.5 * limit(peak(run))), folder=tmp_path)
    assert here.refusal(run) is None and here.fits([run])
    assert here.learn() == pytest.approx(2.0)
    assert not here.fits([run])
    assert "runs here took 2.00 times what was predicted" in (here.refusal(run) or "")


def result(device: str, predicted: int, training: int, trial: int = 0) -> dict[str, object]:
    found = RunResult(
        *(f"t{trial:04d}-s0", trial, 0, "key", "COMPLETED"),
        predicted_bytes=predicted,
        training_bytes=training,
        device=device,
    )
    return found.to_tree()
