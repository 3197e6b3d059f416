"""This project's engine: the runs as lanes of a pack."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import Pack
from lora_lab.models import BaseModel
from lora_lab.spec import EvalMetrics, Order, Outcome, RunResult, RunSpec, StepMetrics, Verdict
from throughput.timing import Found, Stopwatch
from throughput.workload import Planned, training_flops


class Ports:
    """Recorder and controller: times the pack's steps and keeps the lanes' losses.

    The lanes of a pack have equally many steps, so they begin and end together; a step of the pack is done when the
    last of them has told so.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.losses: dict[str, list[float]] = {}
        self._told: set[str] = set()
        self._training: set[str] = set()

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        if not self._training:
            self.watch.begin()
        self._training.add(run)
        self.losses[run] = []

    def step(self, run: str, metrics: StepMetrics) -> None:
        self.losses[run].append(metrics.loss)
        self._told.add(run)
        if self._told == self._training:
            self.watch.step()
            self._told.clear()

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        self._training.discard(run)
        if not self._training:
            self.watch.end()

    def ended(self, result: RunResult) -> None: ...

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        return Verdict.CONTINUE

    def orders(self) -> dict[str, Order]:
        return {}

    def saved(self, run: str, step: int) -> None: ...

    def pause_requested(self) -> bool:
        return False


def train(base: BaseModel, runs: Sequence[Planned], first: int, lanes: int) -> Found:
    """Train ``runs``, ``lanes`` at a time; the time of each pack's steps after its ``first`` counts.

    Raises:
        RuntimeError: a lane did not complete.
    """
    watch = Stopwatch(first, base.device)
    ports, found = Ports(watch), Found()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [LaneJob(run.name, run.spec, run.data, Path(folder) / run.name) for run in runs]
        pack = Pack(base, ports, ports, lanes)
        try:
            for end in (end for ends in pack.train(lambda: jobs.pop(0) if jobs else None) for end in ends):
                if end.outcome is not Outcome.COMPLETED or end.lane is None:
                    raise RuntimeError(f"{end.job.run} ended {end.outcome}: {end.message}")
                (run,) = [run for run in runs if run.name == end.job.run]
                found.flops += training_flops(base, run, first, end.lane.attachment)
        finally:
            pack.close()
    found.seconds = watch.seconds
    found.losses = {run: sum(losses) / len(losses) for run, losses in ports.losses.items()}
    return found
