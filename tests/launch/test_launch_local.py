"""Workers on this machine: whose cores are whose, Ctrl-C once and twice, crashes, and what nobody's command shows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from processes import start, until
from tiny import SWEEP, events

from lora_lab.launch.jobs import Jobs
from lora_lab.launch.launcher import gpus_of
from lora_lab.launch.processes import THREADS, share_of
from lora_lab.spec import LauncherSpec

FOLDER = Path("runs/rank_alpha")
PATIENT = tuple(word.replace("lease_seconds=2", "lease_seconds=60") for word in SWEEP)
TWO = (*PATIENT, "pack.max_lanes=1", "budget.steps=5000", "launcher.workers=2", "launcher.checkpoint_seconds=1000")


@pytest.mark.parametrize(
    ("workers", "each", "shares"),
    [
        (1, None, [[0, 1, 2, 3, 4, 5]]),
        (2, None, [[0, 1, 2], [3, 4, 5]]),
        (4, None, [[0], [1], [2], [3]]),
        (3, 2, [[0, 1], [2, 3], [4, 5]]),
        (8, None, [[0], [1], [2], [3], [4], [5], [0], [1]]),
        (2, 4, [[0, 1, 2, 3], [0, 1, 4, 5]]),
        (1, 99, [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_cores_are_divided_and_shared_only_where_there_are_too_few(
    workers: int, each: int | None, shares: list[list[int]]
) -> None:
    assert [share_of(range(6), place, workers, each) for place in range(workers)] == shares


def test_each_worker_has_gpus_of() -> None:
    four = {"CUDA_VISIBLE_DEVICES": "2,3,GPU-5,7"}
    assert [gpus_of(four, n)["CUDA_VISIBLE_DEVICES"] for n in range(5)] == ["2", "3", "GPU-5", "7", "2"]
    assert gpus_of({"CUDA_VISIBLE_DEVICES": ""}, 0) == {}
    assert [gpus_of(four, n, 2)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["2,3", "GPU-5,7", "2,3"]
    assert gpus_of({"CUDA_VISIBLE_DEVICES": "4"}, 1, 2) == {"CUDA_VISIBLE_DEVICES": "4"}
    assert LauncherSpec(name="slurm", gpus_per_node=8, gpus_per_worker=4).workers_a_job == 2


def joined(folder: Path) -> list[int]:
    """The processes of the workers that train."""
    if not (folder / "study.log").exists():
        return []
    log = events(folder)
    claimed = {event["worker"] for event in log if event["op"] == "claim"}
    grown = [path for path in folder.glob("runs/*/metrics.jsonl") if path.stat().st_size > 2000]
    mine = [event["process"]["pid"] for event in log if event["op"] == "join" and event["worker"] in claimed]
    return mine if len(grown) >= len(mine) else []


def test_workers_have_cores_and_threads_of_their_own_and_end_with_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    sweep = start(tmp_path, *TWO, "launcher.cpus_per_worker=1")
    folder = tmp_path / FOLDER
    until(lambda: len(joined(folder)) == 2, "two to train", 400, sweep.said)
    workers = [psutil.Process(pid) for pid in joined(folder)]
    cores = [worker.cpu_affinity() for worker in workers]
    assert [len(mine) for mine in cores] == [1, 1]
    if len(os.sched_getaffinity(0)) > 1:
        assert cores[0] != cores[1]
    for worker in workers:
        assert {worker.environ()[name] for name in THREADS} == {"1"}
    sweep.send(signal.SIGINT)
    assert sweep.wait(400) == 130, sweep.said()
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)
    assert [event["cause"] for event in events(folder) if event["op"] == "back"] == ["PREEMPTED"] * 2
    assert len(list(folder.glob("runs/*/checkpoint.safetensors"))) == 2


def test_a_second_ctrl_c_ends_workers_that_do_not_listen(tmp_path: Path) -> None:
    sweep = start(tmp_path, *TWO)
    folder = tmp_path / FOLDER
    until(lambda: len(joined(folder)) == 2, "two to train", 400, sweep.said)
    workers = [psutil.Process(pid) for pid in joined(folder)]
    for worker in workers:
        worker.suspend()  # they hear nothing
    sweep.send(signal.SIGINT)
    time.sleep(1.5)
    assert sweep.process.is_alive(), "it waits for them"
    sweep.send(signal.SIGINT)
    assert sweep.wait(60) == 130, sweep.said()
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)


def test_workers_that_cannot_work_end_the_sweep_with_what_they_said(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such environment on this node >&2\nexit 3\n")
    broken.chmod(0o755)
    sweep = start(tmp_path, *SWEEP, "launcher.workers=2", f"launcher.python={broken}", "launcher.poll_seconds=0.05")
    assert sweep.wait(400) == 1
    assert "all 2 workers crashed" in sweep.said() and "no such environment on this node" in sweep.said()
    assert len(Jobs(tmp_path / FOLDER).all()) == 8, "each was started again three times"


def test_what_the_launcher_is_told_is_checked(tmp_path: Path) -> None:
    for words, said in [
        (["launcher=slurm", "launcher.time=1", "launcher.grace_seconds=60"], "less of the one or more of the other"),
        (["launcher.workers=0"], "launcher.workers: must be 1 or more, got 0."),
        (["launcher=ray", "launcher.placement=near"], "launcher.placement: unknown value 'near'"),
        (["launcher=ray", "launcher.resources={a100: -1}"], "launcher.resources.a100: must be a positive number"),
        (["--dry-run"], "--dry-run shows Slurm's script"),
        (["launcher.workers=2", "launcher.follow=false"], "launcher.follow=false: these workers end with this command"),
    ]:
        done = start(tmp_path, *SWEEP, *words)
        assert done.wait(400) == 2 and said in done.said(), done.said()


def test_a_detached_worker_lives_on(tmp_path: Path) -> None:
    done = start(tmp_path, *SWEEP, "sweep.trials=1", "sweep.repeats=1")
    assert done.wait(400) == 0
    added = start(tmp_path, "workers", "add", "2")
    assert added.wait(400) == 0, added.said()
    for place in (1, 2):
        log = tmp_path / FOLDER / "logs" / f"worker-{place}.txt"
        until(lambda log=log: log.exists() and "nothing is left to do" in log.read_text(), "the worker to end", 400)  # type: ignore[misc]
    refused = start(tmp_path, "workers", "stop", "--job", "nobody")
    assert refused.wait(400) == 2 and "no job nobody" in refused.said()
