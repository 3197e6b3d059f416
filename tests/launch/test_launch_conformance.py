"""What every launcher does: start, join, preempt, requeue, die, add, cancel, log. Real schedulers, real workers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import Started, start, until
from tiny import SWEEP, events, results
from worlds import World

from lora_lab.launch.jobs import Jobs

FOLDER = Path("runs/rank_alpha")
FOUR = tuple(word.replace("[2, 4, 8]", "[2, 4]").replace("lease_seconds=2", "lease_seconds=60") for word in SWEEP)
LONG = (*FOUR, "pack.max_lanes=1", "budget.steps=150", "launcher.checkpoint_seconds=1000", "launcher.poll_seconds=0.5")
"""Four runs, one after another in each worker, that are saved only where a worker is asked to end."""


PATIENCE = 400.0
"""Seconds; a worker starts in five of them, on a machine that is busy in a hundred."""


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The results of :data:`LONG`, made by one worker in peace."""
    folder = tmp_path_factory.mktemp("alone")
    done = start(folder, *LONG)
    assert done.wait(PATIENCE) == 0, done.said()
    return results(folder / FOLDER)


def joined(folder: Path) -> list[dict[str, Any]]:
    """The workers that joined, in order: their names and processes."""
    if not (folder / "study.log").exists():
        return []
    return [event for event in events(folder) if event["op"] == "join"]


def together(sweep: Started, folder: Path) -> None:
    """Wait until two workers have joined."""
    until(lambda: len(joined(folder)) == 2 or not sweep.process.is_alive(), "two to join", PATIENCE, sweep.said)
    assert sweep.process.is_alive(), sweep.said()


def held(folder: Path, worker: str) -> bool:
    """The worker has trained for a while on something that it holds."""
    mine = [event["run"] for event in events(folder) if event["op"] == "claim" and event["worker"] == worker]
    metrics = folder / "runs" / mine[-1] / "metrics.jsonl" if mine else None
    return metrics is not None and metrics.exists() and metrics.stat().st_size > 2000


def test_a_sweep_loses_a_place_and_a_worker_and_comes_to_the_same_table(
    world: World, tmp_path: Path, alone: pd.DataFrame
) -> None:
    sweep = start(tmp_path, *LONG, *world.settings, variables=world.variables)
    folder = tmp_path / FOLDER
    together(sweep, folder)
    until(lambda: all(held(folder, event["worker"]) for event in joined(folder)), "both to train", PATIENCE)
    jobs = Jobs(folder).latest()
    assert sorted(jobs) == [0, 1] and {len(job.id) > 0 for job in jobs.values()} == {True}
    taken, killed = joined(folder)
    places = {worker_of(folder, job.log): job for job in jobs.values()}
    world.preempt(places[taken["process"]["pid"]], taken["process"]["pid"])
    until(lambda: any(event["op"] == "back" for event in events(folder)), "what was trained to be saved", PATIENCE)
    os.kill(killed["process"]["pid"], signal.SIGKILL)
    until(lambda: len(joined(folder)) >= 3, "the job to come back", PATIENCE, sweep.said)
    assert sweep.wait(PATIENCE) == 0, sweep.said()

    found = results(folder)
    for name in ("key", "outcome", "steps"):
        assert list(found[name]) == list(alone[name]), name
    np.testing.assert_allclose(found["eval_loss"], alone["eval_loss"], rtol=1e-5)
    log = events(folder)
    assert sorted(event["run"] for event in log if event["op"] == "settle") == list(alone.index)
    assert [event["cause"] for event in log if event["op"] == "back"] == ["PREEMPTED"], "one was saved"
    assert sum(event["op"] == "lapse" for event in log) >= 1, "one was lost"
    for job in Jobs(folder).latest().values():
        assert "working on rank_alpha" in (folder / job.log).read_text()


def worker_of(folder: Path, log: str) -> int:
    """The process that writes a log, by what it says."""
    (line,) = [line for line in (folder / log).read_text().splitlines() if "working on rank_alpha" in line]
    return int(line.rpartition("process ")[2])


def test_workers_are_added_and_all_are_cancelled(world: World, tmp_path: Path) -> None:
    endless = (*LONG, "budget.steps=5000", *world.settings)
    sweep = start(tmp_path, *endless, variables=world.variables)
    folder = tmp_path / FOLDER
    together(sweep, folder)
    added = start(tmp_path, "workers", "add", "1", str(FOLDER), variables=world.variables)
    assert added.wait(PATIENCE) == 0, added.said()
    assert sorted(Jobs(folder).latest()) == [0, 1, 2]
    until(lambda: all(held(folder, event["worker"]) for event in joined(folder)), "all to train", PATIENCE)
    cancelled = start(tmp_path, "cancel", str(FOLDER), variables=world.variables)
    assert cancelled.wait(PATIENCE) == 0, cancelled.said()
    assert sweep.wait(PATIENCE) == 130 and "Cancelled" in sweep.said(), sweep.said()
    until(lambda: {job["state"] for job in listed(tmp_path, world)} == {"ended"}, "the jobs to end", PATIENCE)
    log = events(folder)
    assert not [event for event in log if event["op"] == "lapse"], "nobody was lost"
    saved = list(folder.glob("runs/*/checkpoint.safetensors"))
    assert len(saved) == sum(event["op"] == "back" for event in log) >= 2


def listed(tmp_path: Path, world: World) -> list[dict[str, Any]]:
    told = start(tmp_path, "status", str(FOLDER), "--json", variables=world.variables)
    assert told.wait(PATIENCE) == 0, told.said()
    return list(json.loads(told.said())["jobs"])
