"""Following workers whose scheduler is away now and then, and leaving alone what lives without it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from simulated import Simulated

from lora_lab.errors import LauncherError
from lora_lab.launch import follow
from lora_lab.launch.jobs import Jobs
from lora_lab.launch.launcher import Job, JobState
from lora_lab.spec import Execution, LauncherSpec, ModelSpec, RunSpec, Space, Sweep, pairs
from lora_lab.study import Study
from lora_lab.worker.tee import Tee

SWEEP = Sweep(
    "followed",
    RunSpec(model=ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"}))),
    Space.from_tree({"method.r": {"choices": [2, 4, 8, 16]}}),
)


class Scheduler:
    """Jobs that work without a model; it does not answer when it is asked for the second and third time."""

    survives = True

    def __init__(self, execution: Execution) -> None:
        self.execution, self.asked, self.started = execution, 0, 0
        self.threads: dict[str, threading.Thread] = {}
        self.stopped: list[Job] = []

    def start(self, places: Sequence[int]) -> list[Job]:
        jobs = []
        for place in places:
            self.started += 1
            job = Job("local", place, f"job{self.started}", f"logs/{place}.txt")
            self.threads[job.id] = threading.Thread(target=self._work, args=(self.started > 1,))
            self.threads[job.id].start()
            jobs.append(job)
        return jobs

    def _work(self, works: bool) -> None:
        launcher = self.execution.launcher
        with Study.join(Path(self.execution.folder), None, None, launcher) as study:
            Simulated(study).work(None if works else 1)

    def states(self, jobs: Sequence[Job]) -> dict[str, JobState]:
        self.asked += 1
        if self.asked in (2, 3):
            raise LauncherError("squeue does not answer")
        busy = {job.id: self.threads[job.id].is_alive() for job in jobs}
        ended = {True: JobState.RUNNING, False: JobState.LOST}
        return {job.id: ended[busy[job.id]] for job in jobs}

    def stop(self, jobs: Sequence[Job]) -> None:
        self.stopped += jobs

    def kill(self, jobs: Sequence[Job]) -> None:
        raise AssertionError("nobody is killed")

    def close(self) -> None:
        for thread in self.threads.values():
            thread.join()


def test_a_scheduler_that_is_away_is_asked_again_and_what_was_lost_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = Execution(str(tmp_path / "sweep"), launcher=LauncherSpec(poll_seconds=0.05, lease_seconds=5.0))
    scheduler = Scheduler(execution)
    monkeypatch.setattr(follow, "launcher_for", lambda execution: scheduler)
    said: list[str] = []
    with Study.open(SWEEP, execution) as study:
        assert follow.run(execution, study, Tee([]), say=said.append, settled=lambda runs: None)
        assert study.counts().runs == 4
    assert scheduler.asked > 3 and [job.place for job in Jobs(tmp_path / "sweep").all()] == [0, 0]
    assert "started again" in "".join(said) and scheduler.stopped == []
