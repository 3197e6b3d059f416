"""The runs that a worker has in hand: what each was asked to be, what it really trains, and how it is let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_lab.spec import SETTLED, Outcome, Recorder, RunResult, RunSpec, pairs
from lora_lab.worker import files, stages
from lora_lab.worker.ports import Queue, Task


@dataclass
class InHand:
    """Runs between ``take`` and the end: each is settled, paused or put back once, and its recorder told."""

    queue: Queue
    recorder: Recorder
    run_folder: Callable[[str], Path]
    say: Callable[[str], None]
    crowd: int = field(default=0, init=False)
    """The most runs that trained at once in this pack."""
    _tasks: dict[str, tuple[Task, float]] = field(default_factory=dict)
    _specs: dict[str, RunSpec] = field(default_factory=dict)
    _predicted: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter([task for task, _ in self._tasks.values()])

    def new_pack(self) -> None:
        """Count from here how many train at once."""
        self.crowd = 0

    def joined(self) -> None:
        """The run that was taken last trains, beside the others in hand."""
        self.crowd = max(self.crowd, len(self))

    def take(self, task: Task) -> None:
        """``task`` begins now, and trains what it asked for unless :meth:`trains` says otherwise."""
        self._tasks[task.id] = (task, time.time())
        self._specs[task.id] = task.spec

    def trains(self, run: str, spec: RunSpec) -> None:
        """``run`` really trains ``spec``: its micro-batches may be smaller than was asked for."""
        self._specs[run] = spec

    def task(self, run: str) -> Task:
        """What ``run`` was asked to be."""
        return self._tasks[run][0]

    def started(self, run: str) -> float:
        """When it was taken, in seconds since 1970."""
        return self._tasks[run][1]

    def specs(self) -> list[RunSpec]:
        """What the runs really train, in the order in which they were taken."""
        return [self._specs[run] for run in self._tasks]

    def spec(self, run: str) -> RunSpec:
        """What ``run`` really trains."""
        return self._specs[run]

    def predict(self, peak: int) -> None:
        """The pack as it is now needed ``peak`` bytes: a run's prediction is the largest of the packs it trained in."""
        self._predicted |= {run: max(peak, self._predicted.get(run, 0)) for run in self._tasks}

    def predicted(self, run: str) -> int:
        """Bytes, 0 where nothing was predicted."""
        return self._predicted.get(run, 0)

    def put_back(self, run: str) -> None:
        """Another worker, or this one later, may go on with it."""
        self.queue.put_back(self.forget(run))

    def forget(self, run: str) -> Task:
        """Take ``run`` out of the books and tell nobody."""
        self._specs.pop(run, None)
        self._predicted.pop(run, None)
        return self._tasks.pop(run)[0]

    def pause(self, task: Task, result: RunResult) -> None:
        """Put a run aside with what it has come to, to be gone on with when the study says so."""
        self.forget(task.id)
        self.queue.pause(task, result)
        self.recorder.ended(replace(result, outcome=Outcome.PREEMPTED))

    def end(self, task: Task, result: RunResult) -> None:
        """Settle a run, or put it back to be gone on with or tried in another way."""
        again = result.outcome in (Outcome.OUT_OF_MEMORY, Outcome.FAILED)
        self.forget(task.id)
        if result.outcome not in SETTLED:
            self.queue.put_back(task)
        elif again and self.queue.try_again(task, result.outcome, company=self.crowd > 1):
            self.say(f"{task.id}: {result.outcome}, is tried again in another way")
            result = replace(result, outcome=Outcome.PREEMPTED)
        elif not self.queue.settle(task, result):
            return
        self.recorder.ended(result)

    def end_without_lane(self, task: Task, outcome: Outcome, message: str, total_parameters: int = 0) -> None:
        """Settle a run of which there is nothing but what went wrong."""
        result = RunResult(
            run=task.id,
            trial=task.trial,
            seed=task.spec.seed,
            key=task.key,
            outcome=outcome,
            point=pairs(task.point),
            total_parameters=total_parameters,
            message=message,
            started=self.started(task.id),
            ended=time.time(),
        )
        self.end(task, self.said(task, result, None))

    def said(self, task: Task, result: RunResult, note: str | None) -> RunResult:
        """A result with what the study knows of its run: key, attempts, where it branched off."""
        notes = [result.message, note]
        trained = self._specs.get(task.id, task.spec)
        if trained.budget.micro != task.spec.budget.micro:
            notes.append(f"trained in micro-batches of {trained.budget.micro}")
        return replace(
            result,
            key=task.key,
            attempts=task.attempt,
            parent=task.parent,
            parent_step=files.parent_step(self.run_folder(task.id)) if task.parent is not None else None,
            stage=stages.begun_from(self.run_folder(task.id)) if task.stem else None,
            message="; ".join(said for said in notes if said) or None,
        )
