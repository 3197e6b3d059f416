"""The training loop: one loop for one lane or many on one resident, frozen base model.

A step of the pack takes one optimizer step of every lane in it: their micro-batches go through the base
together, each lane's loss is normalised over its own supervised tokens, and each clips and updates its own
parameters. Lanes join and leave at step boundaries.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lora_lab.engine import checkpoint, curvature, garbage
from lora_lab.engine.cost import Flops, resident_bytes
from lora_lab.engine.evaluate import Candidate, evaluate
from lora_lab.engine.lane import Lane, LaneJob
from lora_lab.errors import LoraLabError, OutOfMemory, SweepFolderError
from lora_lab.models import BaseModel
from lora_lab.packing.forward import in_passes, recomputes, token_losses
from lora_lab.packing.inputs import count_targets
from lora_lab.packing.paths import Mount
from lora_lab.spec import Controller, Order, Outcome, Pairs, Recorder, StepMetrics, Verdict

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
"""A lane is checkpointed when its last checkpoint is older than this."""

Scorer = Callable[[Mount, Sequence[Lane]], Mapping[str, Pairs]]
"""Scores lanes on more than their loss: gives :attr:`~lora_lab.spec.EvalMetrics.scores` by run."""
Source = Callable[[], LaneJob | None]
"""Gives the next run to train, or ``None`` when there is none now."""


@dataclass(frozen=True, eq=False)
class LaneEnd:
    """A lane that left the pack. ``lane`` is ``None`` where it could not even be built. ``paused``: the controller
    wanted it out of its slot, and may want it back."""

    job: LaneJob
    lane: Lane | None
    outcome: Outcome
    message: str | None = None
    paused: bool = False


class Pack:
    """Lanes that train together.

    Args:
        base: the resident base model; it is left as it was found by :meth:`close`.
        recorder, controller: the ports of :mod:`lora_lab.spec.ports`.
        max_lanes: lanes at most; halved by itself whenever the device runs out of memory.
        checkpoint_seconds: a lane is saved at a step boundary when its last checkpoint is older than this.
        keep_checkpoints: a lane that ends well leaves a checkpoint from which it could go on.
        score: scores lanes that ask for it at every evaluation (``evaluation.during``).
    """

    def __init__(
        self,
        base: BaseModel,
        recorder: Recorder,
        controller: Controller,
        max_lanes: int,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        *,
        keep_checkpoints: bool = False,
        score: Scorer | None = None,
    ) -> None:
        self.score = score
        self.base, self.recorder, self.controller = base, recorder, controller
        self.max_lanes = max_lanes
        self.checkpoint_seconds, self.keep_checkpoints = checkpoint_seconds, keep_checkpoints
        self.mount = Mount(base)
        self.flops = Flops(base)
        self.lanes: list[Lane] = []
        self._waiting: deque[Lane] = deque()

    def close(self) -> None:
        """Give the base model its own forwards back."""
        self.mount.unmount()

    def train(self, source: Source) -> Iterator[list[LaneEnd]]:
        """Train what ``source`` gives until it gives no more, yielding the lanes that end, boundary by boundary.

        When the controller asks for a pause, every lane is checkpointed and yielded as PREEMPTED.
        """
        with garbage.spared():
            yield from self._train(source)

    def _train(self, source: Source) -> Iterator[list[LaneEnd]]:
        while True:
            if self.controller.pause_requested():
                yield self._pause()
                return
            ended = self._turn(source)
            if ended:
                yield ended
                ended = []  # theirs now: a lane's memory is the next one's
            elif not self.lanes:
                return

    def _turn(self, source: Source) -> list[LaneEnd]:
        """Obey, fill up, take a step; the lanes that end."""
        ended = self._obey()
        ended += self._fill(source)
        if self.lanes:
            ended += self._step()
        for end in ended:
            if end.lane is not None and end.outcome in (Outcome.COMPLETED, Outcome.PRUNED):
                if self.keep_checkpoints:
                    self._keep(end.lane)
                end.lane.finish()
        return ended

    # -- joining and leaving --------------------------------------------------------------------------

    def _fill(self, source: Source) -> list[LaneEnd]:
        ended: list[LaneEnd] = []
        done: list[Lane] = []
        while len(self.lanes) + len(done) + len(ended) < self.max_lanes:  # who ends at once has its result first
            if self._waiting:
                self.lanes.append(self._waiting.popleft())
                continue
            job = source()
            if job is None:
                break
            try:
                lane = Lane(job, self.base)
            except Exception as error:  # whatever it is, it is this lane's own and no other's
                text = str(error) if isinstance(error, LoraLabError) else traceback.format_exc()
                outcome = Outcome.OUT_OF_MEMORY if out_of_memory(error) else Outcome.FAILED
                ended.append(LaneEnd(job, None, outcome, text))
                continue
            self.mount.mount(lane.attachment)
            if lane.spec.budget.checkpointing and not recomputes(self.mount, lane.attachment):
                lane.noted("budget.checkpointing has no effect on this method and architecture")
            self.recorder.started(lane.run, lane.spec, lane.total, lane.first_step)
            (done if lane.done else self.lanes).append(lane)
        return ended + self._judge(done)

    def _obey(self) -> list[LaneEnd]:
        """Do what the controller wants done with single lanes."""
        orders = self.controller.orders()
        ended: list[LaneEnd] = []
        for lane in [*self.lanes, *self._waiting] if orders else ():
            match orders.get(lane.run):
                case Order.SAVE:
                    lane.save()
                    self.controller.saved(lane.run, lane.step)
                case Order.STOP:
                    self._evaluate([lane])
                    ended.append(LaneEnd(lane.job, lane, Outcome.PRUNED, f"stopped at step {lane.step}"))
                case Order.PARK:
                    lane.save()
                    ended.append(LaneEnd(lane.job, lane, Outcome.PREEMPTED))
                case Order.DROP:
                    ended.append(LaneEnd(lane.job, lane, Outcome.PREEMPTED))
        gone = {id(end.lane) for end in ended}
        self.lanes = [lane for lane in self.lanes if id(lane) not in gone]
        self._waiting = deque(lane for lane in self._waiting if id(lane) not in gone)
        return ended

    def _keep(self, lane: Lane, file: str = checkpoint.FILE) -> None:
        """Save a lane that goes on; a disk that is full now does not end its training."""
        try:
            lane.save(file)
        except SweepFolderError as error:
            lane.saved_at = time.monotonic()
            log.warning("%s goes on without a new checkpoint: %s", lane.run, error)

    def _pause(self) -> list[LaneEnd]:
        ended = []
        for lane in [*self.lanes, *self._waiting]:
            lane.save()
            ended.append(LaneEnd(lane.job, lane, Outcome.PREEMPTED))
        self.lanes.clear()
        self._waiting.clear()
        return ended

    # -- one step -------------------------------------------------------------------------------------

    def _step(self) -> list[LaneEnd]:
        with garbage.later():
            return self._one_step()

    def _one_step(self) -> list[LaneEnd]:
        before = [lane.generator.get_state() for lane in self.lanes]
        try:
            gradients = self._gradients()
            for lane, loss in zip(self.lanes, gradients[0], strict=True):
                if curvature.due(lane) and math.isfinite(loss):
                    curvature.estimate(self.base, lane, self.flops)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            for lane, state in zip(self.lanes, before, strict=True):
                lane.generator.set_state(state)
                lane.clear_gradients()
            self._release()
            return self._shrink(error)
        return self._update(*gradients)

    def _release(self) -> None:
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shrink(self, error: Exception) -> list[LaneEnd]:
        if len(self.lanes) == 1:
            lane = self.lanes.pop()
            return [LaneEnd(lane.job, lane, Outcome.OUT_OF_MEMORY, str(error).splitlines()[0])]
        self.max_lanes = len(self.lanes) // 2
        self._waiting.extendleft(reversed(self.lanes[self.max_lanes :]))
        del self.lanes[self.max_lanes :]
        return []

    def _gradients(self) -> tuple[list[float], list[int], list[int], float]:
        """Accumulate every lane's gradient; returns (mean losses, supervised tokens, tokens, seconds)."""
        started = time.monotonic()
        batches = [list(lane.micro_batches()) for lane in self.lanes]
        targets = [sum(count_targets(micro) for micro in batch) for batch in batches]
        tokens = [sum(len(ids) for micro in batch for ids, _ in micro) for batch in batches]
        sums = [0.0] * len(self.lanes)
        for turn in range(max(len(batch) for batch in batches)):
            due = [i for i, batch in enumerate(batches) if turn < len(batch)]
            parts = [self.lanes[i].part(batches[i][turn], turn) for i in due]
            for together in in_passes(parts, self.mount.kernels):
                active = [due[place] for place in together]
                results = token_losses(self.mount, [parts[place] for place in together])
                losses = [result.losses.sum() for result in results]
                memory = resident_bytes(self.base.device)
                scaled = [loss / max(1, targets[i]) for i, loss in zip(active, losses, strict=True)]
                torch.autograd.backward(scaled)
                memory = max(memory, resident_bytes(self.base.device))
                for i, loss in zip(active, losses, strict=True):
                    lane = self.lanes[i]
                    sums[i] += float(loss.detach())
                    lane.peak = max(lane.peak, memory)
                    lane.flops += self.flops.training(batches[i][turn], lane.attachment)
        means = [s / max(1, n) for s, n in zip(sums, targets, strict=True)]
        return means, targets, tokens, time.monotonic() - started

    def _update(self, losses: list[float], targets: list[int], tokens: list[int], seconds: float) -> list[LaneEnd]:
        started = time.monotonic()
        ended: list[LaneEnd] = []
        moved: list[tuple[Lane, StepMetrics]] = []
        for lane, loss, count, total in zip(self.lanes, losses, targets, tokens, strict=True):
            norm, lr, finite = lane.update() if math.isfinite(loss) else (math.nan, 0.0, False)
            if not finite:
                what = f"loss {loss:g}" if not math.isfinite(loss) else f"gradient norm {norm:g}"
                ended.append(LaneEnd(lane.job, lane, Outcome.DIVERGED, f"{what} at step {lane.step + 1}"))
                continue
            moved.append((lane, lane.advance(loss, norm, lr, total, count, seconds)))
            if lane.exploded:
                what = f"loss {loss:.3g} at step {lane.step}, {lane.first_loss:.3g} at step 1"
                ended.append(LaneEnd(lane.job, lane, Outcome.DIVERGED, f"{what}: it exploded"))
        share = (seconds + time.monotonic() - started) / len(self.lanes)
        for lane in self.lanes:
            lane.clear_gradients()
            lane.seconds += share
        for lane, metrics in moved:
            self.recorder.step(lane.run, metrics)
        diverged = {id(end.lane) for end in ended}
        going = [lane for lane, _ in moved if id(lane) not in diverged]
        stems = [lane for lane in going if lane.step == lane.job.stem]
        for lane in (lane for lane in stems if not lane.evaluation_regular):
            self._keep(lane, checkpoint.STEM)
        ended += self._judge(going)
        for lane in (lane for lane in stems if lane.evaluation_regular):
            self._keep(lane, checkpoint.STEM)
        gone = {id(end.lane) for end in ended}
        self.lanes = [lane for lane in self.lanes if id(lane) not in gone]
        shards = self.base.shards
        for lane in self.lanes:
            due = time.monotonic() - lane.saved_at > self.checkpoint_seconds
            if due if shards is None else shards.agree(due):
                self._keep(lane)
        return ended

    def _judge(self, lanes: list[Lane]) -> list[LaneEnd]:
        due = [lane for lane in lanes if lane.evaluation_due]
        self._evaluate(due)
        ended = []
        for lane in due:
            assert lane.last is not None
            if not math.isfinite(lane.last.loss):
                message = f"held-out loss {lane.last.loss:g} at step {lane.step}"
                ended.append(LaneEnd(lane.job, lane, Outcome.DIVERGED, message))
                continue
            if lane.done:
                ended.append(LaneEnd(lane.job, lane, Outcome.COMPLETED))
                continue
            verdict = self.controller.decide(lane.run, lane.last)
            if verdict is Verdict.STOP:
                ended.append(LaneEnd(lane.job, lane, Outcome.PRUNED, f"pruned at step {lane.step}"))
            elif verdict is Verdict.PAUSE:
                lane.save()
                ended.append(LaneEnd(lane.job, lane, Outcome.PREEMPTED, paused=True))
        return ended

    def _evaluate(self, lanes: list[Lane]) -> None:
        with contextlib.ExitStack() as stack:
            for lane in lanes:
                stack.enter_context(lane.evaluating())
            self._evaluate_all(lanes)

    def _evaluate_all(self, lanes: list[Lane]) -> None:
        if not lanes:
            return
        candidates = [
            Candidate(lane.attachment, lane.held_out, lane.step, lane.spec.evaluation.batch_size) for lane in lanes
        ]
        try:
            found = evaluate(self.mount, candidates)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(lanes) == 1:
                raise OutOfMemory(
                    f"{lanes[0].run}: too little memory for an evaluation of "
                    f"{lanes[0].spec.evaluation.batch_size} sequences at once; lower evaluation.batch_size."
                ) from error
            self._release()
            self._evaluate_all(lanes[: len(lanes) // 2])
            self._evaluate_all(lanes[len(lanes) // 2 :])
            return
        asking = [
            lane
            for lane, metrics in zip(lanes, found, strict=True)
            if lane.spec.evaluation.during and math.isfinite(metrics.loss)
        ]
        scores = self.score(self.mount, asking) if self.score is not None and asking else {}
        found = [replace(m, scores=scores.get(lane.run, m.scores)) for lane, m in zip(lanes, found, strict=True)]
        for lane, metrics in zip(lanes, found, strict=True):
            lane.seconds += metrics.seconds
            lane.flops += self.flops.forward(
                [lane.held_out.tokens(i) for i in range(len(lane.held_out))], lane.attachment
            )
            lane.evaluated(metrics)
            self.recorder.evaluation(lane.run, metrics)


def out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that the device, or the machine, has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
