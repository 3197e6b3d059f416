"""What is Slurm's own: the script, its settings, refusals, the time limit, and no Slurm at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import start, until
from slurm_cluster import Slurm
from tiny import SWEEP, events

from lora_lab.cli.doctor import check_launcher
from lora_lab.errors import LauncherError
from lora_lab.launch.jobs import Jobs
from lora_lab.launch.slurm import Slurm as Launcher
from lora_lab.launch.slurm import script
from lora_lab.spec import Execution, LauncherSpec, pairs

EIGHT = LauncherSpec(
    name="slurm",
    nodes=4,
    gpus_per_node=8,
    time=60,
    partition="gpu",
    cpus_per_worker=6,
    memory_gb=64.0,
    setup=("module load cuda", "source /shared/venv/bin/activate"),
    sbatch=pairs({"account": "mine", "constraint": "a100"}),
)


def test_the_script_says_what_was_asked_for_and_no_password(tmp_path: Path) -> None:
    storage = "postgresql+psycopg://lora:hunter2@db/study"
    text = script(Execution(str(tmp_path / "runs" / "demo"), storage=storage, launcher=EIGHT))
    said = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert said >= {
        "account=mine", "array=0-3%4", "constraint=a100", "cpus-per-task=6", "gpus-per-node=8",
        "job-name=lora-lab-demo", "mem=64000M", "nodes=1", "ntasks-per-node=8", "open-mode=append", "partition=gpu",
        "requeue", "signal=USR2@120", "time=60",
    }  # fmt: skip
    assert "module load cuda\nsource /shared/venv/bin/activate\n" in text
    assert "hunter2" not in text and not (tmp_path / "runs").exists()


def test_dry_run_prints_it_and_makes_nothing(tmp_path: Path) -> None:
    done = start(tmp_path, *SWEEP, "launcher=slurm", "launcher.nodes=3", "--dry-run")
    assert done.wait() == 0 and "#SBATCH --array=0-2%3" in done.said()
    assert not (tmp_path / "runs").exists()


def test_without_slurm_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherError, match="no sbatch here"):
        Launcher(Execution(str(tmp_path), launcher=LauncherSpec(name="slurm")))


def test_a_job_at_its_time_limit_saves_and_is_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    """Its limit is brought near while it trains, so near that Slurm's warning is due at once."""
    endless = (*SWEEP, "pack.max_lanes=1", "budget.steps=100000", "launcher.checkpoint_seconds=1000")
    limit = ("launcher=slurm", "launcher.time=30", "launcher.grace_seconds=100")
    sweep = start(tmp_path, *endless, *limit, variables=slurm.environment)
    folder = tmp_path / "runs" / "rank_alpha"

    def log(op: str) -> list[dict[str, Any]]:
        return [event for event in events(folder) if event["op"] == op] if (folder / "study.log").exists() else []

    until(lambda: any(f.stat().st_size > 2000 for f in folder.glob("runs/*/metrics.jsonl")), "it to train", 400)
    (job,) = Jobs(folder).all()
    minutes = int(slurm.call("squeue", "-h", "-j", job.id, "-o", "%M").split(":")[-2])
    slurm.call("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes + 2}")
    until(lambda: log("back"), "the job to save what it trains", 400, sweep.said)
    assert [event["cause"] for event in log("back")] == ["PREEMPTED"]
    (run,) = {event["run"] for event in log("back")}
    assert (folder / "runs" / run / "checkpoint.safetensors").exists()
    until(lambda: len(log("claim")) == 2, "the job to come back", 400, sweep.said)
    assert [event["run"] for event in log("claim")] == [run, run], "it goes on with the run"
    assert "Restarts=1" in slurm.call("scontrol", "show", "job", job.id) and len(Jobs(folder).all()) == 1
    cancelled = start(tmp_path, "cancel", str(folder), variables=slurm.environment)
    assert cancelled.wait(400) == 0, cancelled.said()
    assert sweep.wait(400) == 130, sweep.said()


def test_what_slurm_refuses_is_said_and_doctor_sees_it(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    done = start(tmp_path, *SWEEP, "launcher=slurm", "launcher.partition=nowhere", variables=slurm.environment)
    assert done.wait() == 2 and "sbatch refuses the job" in done.said() and "invalid partition" in done.said().lower()
    for partition, status in (("nowhere", "fail"), ("high", "ok")):
        spec = LauncherSpec(name="slurm", partition=partition)
        (check,) = check_launcher(Execution(str(tmp_path), launcher=spec))
        assert check.status == status and "main" in check.value + check.remedy
