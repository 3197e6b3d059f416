"""The worker: takes runs from the study and trains them in packs until nothing is left."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lora_lab import models
from lora_lab.data import Tokenised
from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import CHECKPOINT_SECONDS, LaneEnd, Pack
from lora_lab.errors import StorageError, SweepFolderError
from lora_lab.models import BaseModel
from lora_lab.spec import EvalMetrics, ModelSpec, Order, Outcome, Recorder, RunSpec, Verdict, show_size
from lora_lab.worker import files, stages
from lora_lab.worker.bases import BaseScores, base_scores, device_name, held_bytes, tokenised
from lora_lab.worker.capacity import Capacity, device_label, in_smaller_parts
from lora_lab.worker.devices import check_devices
from lora_lab.worker.facts import Teller
from lora_lab.worker.in_hand import InHand
from lora_lab.worker.interrupt import Interrupt
from lora_lab.worker.ports import Queue, Task
from lora_lab.worker.results import Memory, outcome_of, settle
from lora_lab.worker.scoring import scores_at_end, scores_during
from lora_lab.worker.shard import Asked
from lora_lab.worker.wide import train_wide

IDLE_SECONDS = 0.5
"""Between two questions for a run while all that are left are with other workers."""


@dataclass
class Worker:
    """One process that keeps a pack full until nothing is left to train, here or with other workers.

    ``asked`` is called whenever the queue was asked: it may have settled copies of a result without handing them out.
    ``folder`` is the sweep's and ``run_folder`` gives a run's; a pack has at most ``lanes``, and no more than what
    ``capacity`` says.
    """

    queue: Queue
    folder: Path
    run_folder: Callable[[str], Path]
    recorder: Recorder
    interrupt: Interrupt
    lanes: int
    capacity: Capacity
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    keep_checkpoints: bool = False
    say: Callable[[str], None] = lambda text: None
    asked: Callable[[], None] = lambda: None
    _before: int | None = None
    """Bytes that the process held beside the base model's weights before it trained on it."""
    _held: Task | None = None
    """Taken from the queue and not begun: it asks for another pack than the one that trains."""
    _teller: Teller | None = None
    _base: BaseModel | None = None
    _data: dict[str, Tokenised] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._runs = InHand(self.queue, self.recorder, self.run_folder, self.say)

    def work(self) -> bool:
        """Train until nothing is left; ``False`` when it was interrupted and more remains."""
        while not self.interrupt.requested:
            task = self._take(company=False)
            if task is not None:
                if task.spec.model.divided:
                    self._train_wide(task)
                    continue
                self._held = task
                self._train(task)
            elif not self.queue.waiting():
                return True
            else:
                self.interrupt.wait(IDLE_SECONDS)
        return False

    def _train(self, first: Task) -> None:
        """Train one pack after another task on ``first``'s base, until none is left that can join it."""
        self.capacity.learn()
        most = self.capacity.free  # before the weights take their share of it
        lanes = 1 if first.alone else self.lanes
        base = self._resident(first.spec.model)
        pack = Pack(
            base,
            self.recorder,
            self,
            lanes,
            self.checkpoint_seconds,
            keep_checkpoints=self.keep_checkpoints,
            score=scores_during,
        )
        if lanes > 1:
            self.say(f"training up to {lanes} runs at once on {base.device}, in {show_size(most)}")
        self._runs.new_pack()
        self._teller = Teller(base)
        try:
            for ends in pack.train(partial(self._job, first, base, pack)):
                self._settle(ends, base, pack)
                ends.clear()  # not held until others end: the memory is theirs who join
        except (StorageError, SweepFolderError):
            raise  # the study's, not a run's
        except Exception as error:
            self._pack_failed(error, base)
        finally:
            pack.close()

    def _train_wide(self, task: Task) -> None:
        """Train a run that is wider than a device, alone."""
        self.capacity.learn()
        self._let_go()  # what it held is the run's
        self._runs.new_pack()
        self._runs.take(task)
        folder = self.run_folder(task.id)
        self.say(f"training {task.id} on {task.spec.model.shards} devices together")
        try:
            spec = self._planned(task)
            self._runs.joined()
            check_devices(spec, self.capacity.device)
            self._begin(task, folder)
            asked = Asked(
                task.id,
                task.trial,
                task.point,
                spec,
                task.key,
                folder,
                self.folder,
                self.capacity.device,
                device_label(self.capacity.device),
                started=self._runs.started(task.id),
                predicted=self.capacity.predicted([spec]) or 0,
                stem=task.stem,
                checkpoint_seconds=self.checkpoint_seconds,
                keep_checkpoints=self.keep_checkpoints,
            )
            ended = train_wide(asked, self, self.recorder)
        except (StorageError, SweepFolderError):
            raise
        except Exception:
            self._runs.end_without_lane(task, Outcome.FAILED, traceback.format_exc())
            return
        if ended.lost is not None:
            self._runs.end_without_lane(task, ended.lost.outcome, ended.lost.message)
        elif ended.result is None or self.queue.orders().get(task.id) is Order.DROP:
            self._runs.put_back(task.id)
        elif ended.paused:
            self._runs.pause(task, self._runs.said(task, ended.result, ended.note))
        else:
            self._runs.end(task, self._runs.said(task, ended.result, ended.note))

    def _resident(self, model: ModelSpec) -> BaseModel:
        if self._base is None or self._base.spec != model:
            self._let_go()  # one at a time in memory
            self.say(f"loading {model.name} ({model.dtype})")
            self._base, self._before = models.load(model, device_name(self.capacity.device)), None
        return self._base

    def _let_go(self) -> None:
        """Give the resident base's memory back, also to other processes."""
        self._base = self._teller = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    # -- the engine's controller ----------------------------------------------------------------------

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        """Ask the study whether ``run`` should go on."""
        return self.queue.report(self._runs.task(run), metrics)

    def orders(self) -> Mapping[str, Order]:
        """What somebody wants done with single runs."""
        return self.queue.orders()

    def saved(self, run: str, step: int) -> None:
        """A checkpoint that somebody wanted is there."""
        self.queue.saved(self._runs.task(run), step)

    def pause_requested(self) -> bool:
        """True after Ctrl-C, SIGTERM or SIGUSR1."""
        return self.interrupt.requested

    # -- from the queue to the pack and back ----------------------------------------------------------

    def _take(self, *, company: bool) -> Task | None:
        task, self._held = self._held, None
        if task is None:
            task = self.queue.next_run(company=company)
            self.asked()
        return task

    def _job(self, first: Task, base: BaseModel, pack: Pack) -> LaneJob | None:
        """The next lane for a pack that was begun for ``first``."""
        while True:
            if first.alone and self._held is not first:
                return None
            task = self._take(company=len(self._runs) > 0)
            if task is None:
                return None
            if task.spec.model != first.spec.model or (task.alone and task is not first):
                self._held = task
                return None
            company = self._runs.specs()
            self._runs.take(task)
            try:
                if not self._admits(task, company):
                    self._held = self._runs.forget(task.id)
                    return None
                self._runs.joined()
                return self._prepared(task, base, pack)
            except (StorageError, SweepFolderError):
                raise
            except Exception:
                self._runs.end_without_lane(task, Outcome.FAILED, traceback.format_exc(), base.total_parameters)

    def _admits(self, task: Task, company: Sequence[RunSpec]) -> bool:
        """Whether there is room for ``task`` beside the lanes that train; an empty pack takes any."""
        spec = self._planned(task)
        return not company or self.capacity.joins(spec, company)

    def _planned(self, task: Task) -> RunSpec:
        """What ``task`` really trains: in micro-batches that fit."""
        spec = in_smaller_parts(task.spec, self.capacity.halvings(task.spec, task.halvings))
        self._runs.trains(task.id, spec)
        return spec

    def _begin(self, task: Task, folder: Path) -> None:
        """See to it that the checkpoint lies in ``folder`` with which the run begins, if there is one."""
        files.take_over(folder, task.attempt)
        if task.parent is not None:
            parent, step = self.run_folder(task.parent), task.parent_step
            files.branch(parent, folder, task.key, step=step, fresh_optimizer=task.fresh_optimizer)
            if step is not None:
                self.queue.saved(task, step)  # the parent may go on
        elif task.stage is not None:
            stages.begin(self.run_folder(task.stage), folder, task.key)

    def _prepared(self, task: Task, base: BaseModel, pack: Pack) -> LaneJob:
        folder = self.run_folder(task.id)
        self._begin(task, folder)
        tokens = tokenised(base, task.spec, self._data)
        base_scores(pack.mount, task.spec, tokens, self.folder)
        if self._before is None:
            self._before = max(0, held_bytes(base) - self.capacity.weights(task.spec))
        if self._teller is not None:
            self._teller.begun(folder, tokens)
        stem = stages.stem_for(task.spec, len(tokens.train), kept=task.stem)
        return LaneJob(task.id, self._runs.spec(task.id), tokens, folder, task.key, stem)

    def _settle(self, ends: list[LaneEnd], base: BaseModel, pack: Pack) -> None:
        self._runs.predict(self.capacity.predicted(self._runs.specs()) or 0)  # of the pack that trained until now
        orders = self.queue.orders()
        mine = [end for end in ends if orders.get(end.job.run) is not Order.DROP]
        for end in ends:
            if end not in mine:
                self._runs.put_back(end.job.run)
        whole = [end.lane for end in mine if end.lane is not None and end.outcome is Outcome.COMPLETED]
        scored = scores_at_end(pack.mount, whole)
        for end in mine:
            task = self._runs.task(end.job.run)
            result = settle(
                end,
                base=base,
                scores=self._scores(end, pack),
                scored=scored.get(end.job.run),
                trial=task.trial,
                point=task.point,
                folder=self.folder,
                started=self._runs.started(task.id),
                memory=Memory(self._runs.predicted(task.id), self._before, device_label(self.capacity.device)),
            )
            result = self._runs.said(task, result, end.lane.note if end.lane else None)
            if end.lane is not None and self._teller is not None:
                self._teller.ended(self.run_folder(task.id), end.lane, self._runs.crowd)
            if end.paused:
                self._runs.pause(task, result)
                continue
            files.finish(end.lane, result.outcome, keep=self.keep_checkpoints)
            self._runs.end(task, result)

    def _pack_failed(self, error: Exception, base: BaseModel) -> None:
        """Something went wrong in the middle of a step, and nobody knows whose it was."""
        message = traceback.format_exc()
        for task in self._runs:
            self._runs.end_without_lane(task, outcome_of(error), message, base.total_parameters)

    def _scores(self, end: LaneEnd, pack: Pack) -> BaseScores | None:
        return base_scores(pack.mount, end.job.spec, end.job.data, self.folder)
