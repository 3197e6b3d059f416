"""One run on its own, for ``lora-lab train``: a queue of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_lab.errors import Interrupted, SpecError
from lora_lab.spec import EvalMetrics, Order, Outcome, Recorder, RunResult, RunSpec, Verdict, run_id
from lora_lab.study import rules
from lora_lab.worker.capacity import Capacity
from lora_lab.worker.interrupt import Interrupt
from lora_lab.worker.preflight import check_folder, check_runs
from lora_lab.worker.work import Worker


@dataclass(frozen=True)
class _Single:
    trial: int
    id: str
    point: Mapping[str, Any]
    spec: RunSpec
    parent: str | None = None
    parent_step: int | None = None
    stage: str | None = None
    stem: bool = False
    fresh_optimizer: bool = False
    alone: bool = False
    halvings: int = 0
    attempt: int = 1

    @property
    def key(self) -> str:
        return self.spec.key


class _QueueOfOne:
    def __init__(self, task: _Single) -> None:
        self.task: _Single | None = task
        self.result: RunResult | None = None

    def next_run(self, *, company: bool) -> _Single | None:
        task, self.task = self.task, None
        return task

    def waiting(self) -> bool:
        return False

    def settle(self, run: Any, result: RunResult) -> bool:
        self.result = result
        return True

    def put_back(self, run: Any) -> None:
        self.task = run

    def try_again(self, run: Any, outcome: Outcome, *, company: bool) -> bool:
        how = rules.smaller(run.spec, run.halvings) if outcome is Outcome.OUT_OF_MEMORY else None
        if how is not None:
            self.task = replace(run, halvings=how, attempt=run.attempt + 1)
        return how is not None

    def orders(self) -> Mapping[str, Order]:
        return {}

    def saved(self, run: Any, step: int) -> None:
        """Nobody asks for it."""

    def pause(self, run: Any, result: RunResult) -> None:
        self.task = run

    def report(self, run: Any, metrics: EvalMetrics) -> Verdict:
        return Verdict.CONTINUE


def train_one(
    spec: RunSpec,
    folder: Path,
    *,
    device: str = "auto",
    memory: int | None = None,
    recorder: Recorder,
    say: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Train one run with its files in ``folder`` and return its result, whatever its outcome.

    ``memory`` are the bytes of ``device`` that it may take (``None``: those that are free).

    Raises:
        BadInput: the data, the model or the folder cannot be used, or the device is too small; nothing was loaded.
        Interrupted: Ctrl-C; the checkpoint is in ``folder`` and the same call goes on from it.
    """
    check_folder(folder)
    check_runs([spec], device)
    capacity = Capacity(device, memory)
    if (why := capacity.refusal(spec)) is not None:
        raise SpecError(f"It does not fit: {why}")
    queue = _QueueOfOne(_Single(0, run_id(0, spec.seed), {}, spec))
    with Interrupt() as interrupt:
        worker = Worker(
            queue=queue,
            folder=folder,
            run_folder=lambda run: folder,
            recorder=recorder,
            interrupt=interrupt,
            lanes=1,
            capacity=capacity,
            say=say,
        )
        worker.work()
    if queue.result is None:
        raise Interrupted(f"Interrupted. The checkpoint is in {folder}; the same command goes on from it.")
    return queue.result
