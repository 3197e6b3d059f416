"""The worker: takes runs from the study, trains them in packs, and settles each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lora_lab import models
from lora_lab.data import Tokenised
from lora_lab.engine import checkpoint
from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import LaneEnd, Pack
from lora_lab.models import BaseModel
from lora_lab.spec import SETTLED, EvalMetrics, ModelSpec, Recorder, RunResult, RunSpec, Verdict
from lora_lab.worker.bases import BaseScores, base_scores, device_name, tokenised
from lora_lab.worker.interrupt import Interrupt
from lora_lab.worker.results import exact_matches, settle


class Task(Protocol):
    """A run as the queue hands it out (:class:`lora_lab.study.Run` is one)."""

    @property
    def trial(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def point(self) -> Mapping[str, Any]: ...
    @property
    def spec(self) -> RunSpec: ...


class Queue(Protocol):
    """Where runs come from and where their results go (:class:`lora_lab.study.Study` is one)."""

    def next_run(self) -> Task | None: ...
    def settle(self, run: Any, result: RunResult) -> bool: ...
    def put_back(self, run: Any) -> None: ...
    def report(self, run: Any, metrics: EvalMetrics) -> Verdict: ...


@dataclass
class Worker:
    """One process that keeps a pack full until the queue is empty.

    ``asked`` is called whenever the queue was asked: it may have settled copies of a result without handing them out.
    ``folder`` is the sweep's and ``run_folder`` gives a run's; ``lanes`` gives the largest pack for a base model.
    """

    queue: Queue
    folder: Path
    run_folder: Callable[[str], Path]
    recorder: Recorder
    interrupt: Interrupt
    lanes: Callable[[RunSpec], int]
    device: str = "auto"
    say: Callable[[str], None] = lambda text: None
    asked: Callable[[], None] = lambda: None
    _tasks: dict[str, tuple[Task, float]] = field(default_factory=dict)
    _held: Task | None = None
    _data: dict[str, Tokenised] = field(default_factory=dict)

    def work(self) -> bool:
        """Train until nothing is left; ``False`` when it was interrupted and more remains."""
        while (task := self._take()) is not None:
            self._held = task
            lanes = self.lanes(task.spec)  # before the weights take their share of what is free
            self.say(f"loading {task.spec.model.name} ({task.spec.model.dtype})")
            base = models.load(task.spec.model, device_name(self.device))
            pack = Pack(base, self.recorder, self, lanes)
            if lanes > 1:
                self.say(f"training up to {lanes} runs at once on {base.device}")
            try:
                for ends in pack.train(partial(self._job, task.spec.model, base, pack)):
                    self._settle(ends, base, pack)
            finally:
                pack.close()
            if self.interrupt.requested:
                return False
        return True

    # -- the engine's controller ----------------------------------------------------------------------

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        """Ask the study whether ``run`` should go on."""
        return self.queue.report(self._tasks[run][0], metrics)

    def pause_requested(self) -> bool:
        """True after Ctrl-C or SIGTERM."""
        return self.interrupt.requested

    # -- from the queue to the pack and back ----------------------------------------------------------

    def _take(self) -> Task | None:
        task, self._held = self._held, None
        if task is None:
            task = self.queue.next_run()
            self.asked()
        return task

    def _job(self, model: ModelSpec, base: BaseModel, pack: Pack) -> LaneJob | None:
        task = self._take()
        if task is None:
            return None
        if task.spec.model != model:
            self._held = task
            return None
        self._tasks[task.id] = (task, time.time())
        tokens = tokenised(base, task.spec, self._data)
        base_scores(pack.mount, task.spec, tokens, self.folder)
        return LaneJob(task.id, task.spec, tokens, self.run_folder(task.id))

    def _settle(self, ends: list[LaneEnd], base: BaseModel, pack: Pack) -> None:
        matches = exact_matches(pack.mount, ends)
        for end in ends:
            task, started = self._tasks.pop(end.job.run)
            result = settle(
                end,
                base=base,
                scores=self._scores(end, pack),
                match=matches.get(end.job.run),
                trial=task.trial,
                point=task.point,
                folder=self.folder,
                started=started,
            )
            if result.outcome in SETTLED:
                self.queue.settle(task, result)
                (end.job.folder / checkpoint.FILE).unlink(missing_ok=True)
            else:
                self.queue.put_back(task)
            self.recorder.ended(result)

    def _scores(self, end: LaneEnd, pack: Pack) -> BaseScores | None:
        return base_scores(pack.mount, end.job.spec, end.job.data, self.folder)
