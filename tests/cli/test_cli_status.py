"""``lora-lab status``: counts, what runs now, the best so far, time left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_lab.analysis import best_configuration, read_results, read_sweep, results_frame
from lora_lab.analysis.grouping import best_of_results
from lora_lab.cli import state
from lora_lab.cli.main import main
from lora_lab.cli.state import called
from lora_lab.spec import EvalMetrics, Objective, Outcome, StepMetrics, Sweep
from lora_lab.study.lease import this_process
from lora_lab.tracking import Spool

Fabricate = Callable[..., Sweep]
SPACE = {"method.r": {"choices": [2, 8, 32]}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tree(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["status", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def spool(folder: Path, *records: dict[str, Any], torn: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"n": i, "time": time.time()} | record) + "\n" for i, record in enumerate(records)]
    (folder / "metrics.jsonl").write_text("".join(lines) + torn)


STARTED = {"kind": "started", "total_steps": 60, "first_step": 0, "spec": {"method": {"r": 8}}}


def step(number: int, loss: float = 1.5) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": loss, "lr": 1e-4, "tokens": 500, "seconds": 0.5}


@pytest.fixture
def busy(tmp_path: Path) -> None:
    """A worker, alive as long as this process, works on runs/demo."""
    (tmp_path / "runs/demo").mkdir(parents=True)
    join(tmp_path / "runs/demo", this_process())


def join(folder: Path, process: dict[str, Any]) -> None:
    event = {"op": "join", "worker": "w", "lease": 30.0, "process": process}
    (folder / "study.log").write_text(json.dumps(event) + "\n")


def test_a_finished_sweep(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = fabricate(SPACE, lambda p, s: p["method.r"] / 10 + 0.004 * s)
    found = tree(capsys)
    assert (found["sweep"], found["state"], found["key"]) == ("demo", "done", sweep.key)
    assert (found["settled_runs"], found["planned_runs"], found["trials"], found["planned_trials"]) == (6, 6, 3, 3)
    assert found["outcomes"] == {"COMPLETED": 6} and found["active"] == [] and found["eta_seconds"] is None
    assert found["best"]["point"] == {"method.r": 2}
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert text == (
        "Sweep demo in runs/demo: done\n"
        "6 of 6 runs settled (6 completed); 3 of 3 trials have results\n"
        "Best so far: r=2: eval_loss 0.2020 ± 0.0028 over 2 seeds (base model 2.5000)\n"
    )


@pytest.mark.usefixtures("busy")
def test_a_running_sweep_shows_its_lanes_and_the_time_left(
    fabricate: Fabricate, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {(0, 1): Outcome.DIVERGED, (1, 0): None, (1, 1): None, (2, 0): None, (2, 1): None}
    fabricate(SPACE, outcomes=outcomes)
    runs = Path("runs/demo/runs")
    evaluation = {"kind": "evaluation", "step": 20, "loss": 1.75}
    spool(runs / "t0001-s0", STARTED, step(20), evaluation, step(30, 1.25), torn='{"n": 9, "kind": "st')
    spool(runs / "t0001-s1", STARTED, step(10), {"kind": "ended", "outcome": "PREEMPTED"})
    found = tree(capsys)
    assert found["state"] == "running" and found["worker"] == called(this_process())
    assert found["outcomes"] == {"COMPLETED": 1, "DIVERGED": 1}
    first, second = found["active"]
    assert (first["run"], first["state"], first["step"], first["total_steps"]) == ("t0001-s0", "running", 30, 60)
    assert (first["loss"], first["eval_loss"], first["point"]) == (1.25, 1.75, {"method.r": 8})
    assert abs(first["updated"] - time.time()) < 60
    assert (second["run"], second["state"], second["step"]) == ("t0001-s1", "paused", 10)
    # two runs side by side took 10 s; 4 are left, of which one is half done: 3.5 runs at 5 s each
    assert found["eta_seconds"] == pytest.approx(17.5)
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert f"Sweep demo in runs/demo: running by {called(this_process())}\n" in text
    assert "2 of 6 runs settled (1 completed, 1 diverged); 1 of 3 trials have results\n" in text
    assert "  t0001-s0  r=8  running  step 30/60  loss 1.250, eval loss 1.750, " in text
    assert "About 18 s left\n" in text and "Go on with" not in text


def test_shared_beginnings_are_shown(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate({"budget.steps": {"choices": [4, 8]}}, repeats=1)
    path = Path("runs/demo/runs/t0001-s0/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": "t0000-s0@4"}))
    assert tree(capsys)["stages"] == {"t0001-s0": "t0000-s0@4"}
    assert main(["status"]) == 0
    assert "1 runs began with the steps of a shorter one (t0001-s0 with t0000-s0@4)\n" in capsys.readouterr().out


def test_a_sweep_that_was_killed_is_paused(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, points=[])
    spool(Path("runs/demo/runs/t0000-s0"), STARTED, step(7))
    join(Path("runs/demo"), this_process() | {"born": "long ago"})
    found = tree(capsys)
    assert found["state"] == "paused" and found["best"] is None and found["worker"] is None
    assert [(run["run"], run["state"], run["step"]) for run in found["active"]] == [("t0000-s0", "paused", 7)]
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert "0 of 6 runs settled; 0 of 3 trials have results\n" in text and "Go on with: lora-lab sweep demo\n" in text


def test_the_spool_of_a_real_recorder(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    """What the tracking room writes is what is read here; a loss that is not a number is not in JSON."""
    sweep = fabricate(SPACE, points=[])
    recorder = Spool(Path("runs/demo"))
    run = sweep.spec_of({"method.r": 32}, 0)
    recorder.started("t0002-s0", run, 40, 0)
    recorder.evaluation("t0002-s0", EvalMetrics(0, 2.5, 100, 0.1, 0.1))
    recorder.step("t0002-s0", StepMetrics(1, 0.1, 1.5, 1e-4, 1.0, 500, 300, 0.5))
    recorder.step("t0002-s0", StepMetrics(2, 0.2, float("nan"), 1e-4, 1.0, 500, 300, 0.5))
    recorder.close()
    (found,) = tree(capsys)["active"]
    assert (found["run"], found["point"], found["step"], found["total_steps"]) == ("t0002-s0", {"method.r": 32}, 2, 40)
    assert (found["loss"], found["eval_loss"]) == (None, 2.5)


def test_long_metrics_are_read_from_both_ends(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, points=[])
    spool(Path("runs/demo/runs/t0000-s0"), STARTED | {"total_steps": 9000}, *[step(i + 1) for i in range(5000)])
    assert Path("runs/demo/runs/t0000-s0/metrics.jsonl").stat().st_size > 4 * state.TAIL_BYTES
    (run,) = tree(capsys)["active"]
    assert (run["step"], run["total_steps"]) == (5000, 9000)


def test_a_run_without_metrics_and_an_empty_file_are_not_active(
    fabricate: Fabricate, capsys: pytest.CaptureFixture[str]
) -> None:
    fabricate(SPACE, points=[])
    Path("runs/demo/runs/t0000-s0").mkdir(parents=True)
    spool(Path("runs/demo/runs/t0001-s0"))
    assert tree(capsys)["active"] == []


def test_time_left_leaves_out_the_nights_between() -> None:
    def result(started: float, ended: float, steps: int = 60) -> dict[str, Any]:
        return {"started": started, "ended": ended, "steps": steps}

    day = 86_400.0
    results = [result(1, 11), result(1, 11), result(day, day + 10), result(day + 5, day + 15)]
    assert state.seconds_left(results, [], 8) == pytest.approx(4 * 25 / 4)
    assert state.seconds_left([], [], 8) is None
    assert state.seconds_left([result(1, 1.1, steps=0)], [], 8) is None


def test_unknown_sweep(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE)
    assert main(["status", "demmo"]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "outcomes", "point"),
    [
        (Objective(), {}, 2),
        (Objective("eval_loss", "maximize"), {}, 32),
        (Objective("exact_match", "maximize"), {}, 2),
        (Objective(), {(0, 1): Outcome.DIVERGED}, 8),
        (Objective(), {(0, 0): None, (1, 1): Outcome.FAILED}, 8),
        (Objective(), {(n, s): Outcome.PRUNED for n in range(3) for s in range(2)}, None),
    ],
)
def test_the_best_is_that_of_the_report(
    fabricate: Fabricate, objective: Objective, outcomes: dict[tuple[int, int], Outcome | None], point: int | None
) -> None:
    """Found without a frame, and the same: by the mean over seeds, whole configurations before others."""
    fabricate(SPACE, lambda p, s: p["method.r"] / 10 + 0.004 * s, objective=objective, outcomes=outcomes)
    record, results = read_sweep(Path("runs/demo")), read_results(Path("runs/demo"))
    best = best_of_results(record, results)
    assert best == best_configuration(results_frame(record, results))
    assert point == (dict(best.configuration.point)["method.r"] if best else None)
    assert best_of_results(record, []) is None
