"""Workers that are killed, stopped or put to sleep, anywhere: the same command goes on to the same table."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Death, HalfWrite, Started, start, until
from tiny import SLEEPY, SWEEP, events

Same = Callable[[Path], None]
FOLDER = Path("runs/rank_alpha")
GRACE_SECONDS = 5.0
"""Processor time at most between a signal and the end, of which a cluster often gives no more."""

PLACES = {
    "in the middle of a step": Death("lora_lab.engine.lane:Lane.update", 50),
    "in the middle of a checkpoint": HalfWrite(2),
    "between the last checkpoint and settling": Death("lora_lab.study.study:Study.settle", 2),
    "settled in the log, not yet in the folder": Death("lora_lab.study.folder:SweepFolder.store_result", 3),
}


def finished(tmp_path: Path, *more: str) -> Started:
    done = start(tmp_path, *SWEEP, *more)
    assert done.wait() == 0, done.said()
    return done


def begun(folder: Path) -> bool:
    """Some run has trained for a while."""
    return any(path.stat().st_size > 3000 for path in folder.glob("runs/*/metrics.jsonl"))


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere(place: str, tmp_path: Path, same: Same) -> None:
    killed = start(tmp_path, *SWEEP, dies=PLACES[place])
    assert killed.wait() == -signal.SIGKILL, killed.said()
    finished(tmp_path)
    same(tmp_path / FOLDER)


def test_all_workers_are_killed(tmp_path: Path, same: Same) -> None:
    workers = [start(tmp_path, *SWEEP) for _ in range(2)]  # both may be the one that creates the study
    until(lambda: begun(tmp_path / FOLDER), "training")
    for worker in workers:
        worker.send(signal.SIGKILL)
    assert [worker.wait() for worker in workers] == [-signal.SIGKILL] * 2
    finished(tmp_path)
    same(tmp_path / FOLDER)


def test_two_that_start_at_once_share_the_work(tmp_path: Path, same: Same) -> None:
    workers = [start(tmp_path, *SWEEP) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0], [worker.said() for worker in workers]
    same(tmp_path / FOLDER)
    claims = [event["worker"] for event in events(tmp_path / FOLDER) if event["op"] == "claim"]
    assert len(claims) == 6 and len(set(claims)) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_preempted_with_five_seconds_of_grace(how: signal.Signals, tmp_path: Path, same: Same) -> None:
    worker = start(tmp_path, *SWEEP, "launcher.checkpoint_seconds=1000")
    until(lambda: begun(tmp_path / FOLDER), "training")
    before = worker.busy_seconds
    worker.send(how)
    until(lambda: worker.busy_seconds - before > GRACE_SECONDS or worker.process.exitcode is not None, "its end")
    assert worker.process.exitcode == 130, worker.said()
    assert len(list((tmp_path / FOLDER).glob("runs/*/checkpoint.safetensors"))) == 3
    causes = [event["cause"] for event in events(tmp_path / FOLDER) if event["op"] == "back"]
    assert causes == ["PREEMPTED"] * 3
    finished(tmp_path)
    same(tmp_path / FOLDER)
    firsts = [
        line for path in (tmp_path / FOLDER).glob("runs/*/metrics.jsonl") for line in path.read_text().splitlines()
        if '"started"' in line and '"first_step": 0' not in line
    ]  # fmt: skip
    assert len(firsts) == 3, "each went on where it was"


def test_put_to_sleep_past_its_lease(tmp_path: Path, same: Same) -> None:
    asleep = start(tmp_path, *SLEEPY)
    until(lambda: begun(tmp_path / FOLDER), "training")
    asleep.send(signal.SIGSTOP)
    awake = start(tmp_path, "worker", str(FOLDER))
    assert awake.wait() == 0, awake.said()
    same(tmp_path / FOLDER)
    asleep.send(signal.SIGCONT)
    assert asleep.wait() == 0, asleep.said()
    same(tmp_path / FOLDER)
    log = events(tmp_path / FOLDER)
    assert sum(event["op"] == "lapse" for event in log) == 1
    again = {event["run"] for event in log if event["op"] == "claim" and event["worker"] != log[2].get("worker")}
    assert len(again) >= 3, "what the sleeper held was trained by the other"


def test_a_worker_joins_a_sweep_that_runs(tmp_path: Path, same: Same) -> None:
    first = start(tmp_path, *SWEEP, "pack.max_lanes=1")
    until(lambda: begun(tmp_path / FOLDER), "training")
    first.send(signal.SIGSTOP)  # it would have all done before the second is awake
    second = start(tmp_path, "worker", str(FOLDER), "--lanes", "2")
    until(lambda: len(claimants(tmp_path / FOLDER)) == 2, "the second worker")
    first.send(signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0), first.said() + second.said()
    same(tmp_path / FOLDER)
    assert len(claimants(tmp_path / FOLDER)) == 2


def claimants(folder: Path) -> set[str]:
    """The workers that have held a run."""
    return {event["worker"] for event in events(folder) if event["op"] == "claim"}
