"""From a lane that left the pack to a settled result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_lab.engine.pack import LaneEnd, out_of_memory
from lora_lab.errors import OutOfMemory
from lora_lab.models import BaseModel
from lora_lab.spec import Outcome, RunResult, pairs
from lora_lab.worker.bases import BaseScores
from lora_lab.worker.scoring import Scored


@dataclass(frozen=True)
class Memory:
    """Of the packs a run was in: predicted bytes at their peak (0: not known), what the process held ``before`` them
    beside the base model's weights, and the device."""

    predicted: int
    before: int | None
    device: str


def settle(
    end: LaneEnd,
    *,
    base: BaseModel,
    scores: BaseScores | None,
    scored: Scored | None,
    trial: int,
    point: Mapping[str, Any],
    folder: Path,
    started: float,
    memory: Memory,
) -> RunResult:
    """Save the lane's adapter and say what came of its run. ``folder`` is the sweep's. A paused lane is told of as if
    it never went on."""
    end = _as_pruned(end) if end.paused else end
    lane, spec = end.lane, end.job.spec
    if lane is None:
        return RunResult(
            run=end.job.run,
            trial=trial,
            seed=spec.seed,
            key=spec.key,
            outcome=end.outcome,
            point=pairs(point),
            message=end.message,
            started=started,
            ended=time.time(),
        )
    adapter = None
    if end.outcome in (Outcome.COMPLETED, Outcome.PRUNED):
        adapter = lane.save_adapter(base_name=spec.model.path or spec.model.name)
    last, best = lane.last, lane.best
    return RunResult(
        run=end.job.run,
        trial=trial,
        seed=spec.seed,
        key=spec.key,
        outcome=end.outcome,
        point=pairs(point),
        eval_loss=last.loss if last else None,
        eval_accuracy=last.accuracy if last else None,
        best_eval_loss=best.loss if best else None,
        best_step=best.step if best else None,
        base_eval_loss=scores.eval_loss if scores else None,
        base_exact_match=scores.exact_match if scores else None,
        train_loss=lane.train_loss,
        exact_match=scored.exact_match if scored else None,
        perplexity=_perplexity(last.loss) if last else None,
        gap=last.loss - lane.train_loss if last and lane.train_loss is not None else None,
        rise=last.loss - best.loss if last and best else None,
        scores=pairs(scored.scores if scored else {}),
        base_scores=pairs(scores.scores if scores else {}),
        steps=lane.step,
        tokens=lane.tokens,
        flops=lane.flops,
        seconds=lane.seconds,
        trainable_parameters=lane.attachment.count,
        total_parameters=base.total_parameters,
        lane_bytes=lane.own_bytes,
        peak_bytes=lane.peak,
        predicted_bytes=memory.predicted,
        training_bytes=max(0, lane.peak - memory.before) if lane.peak and memory.before is not None else 0,
        device=memory.device,
        adapter=str(adapter.relative_to(folder)) if adapter else None,
        message=end.message,
        started=started,
        ended=time.time(),
    )


def outcome_of(error: Exception) -> Outcome:
    """What a run comes to in whose training ``error`` was raised.

    An evaluation that has too little memory (:class:`~lora_lab.errors.OutOfMemory`) is FAILED: smaller parts of a
    batch do not help it.
    """
    short = out_of_memory(error) or "out of memory" in str(error).lower()  # CUDA's own errors are no OutOfMemoryError
    return Outcome.OUT_OF_MEMORY if short and not isinstance(error, OutOfMemory) else Outcome.FAILED


def _as_pruned(end: LaneEnd) -> LaneEnd:
    """What becomes of a paused lane that never goes on."""
    step = end.lane.step if end.lane else 0
    return replace(end, outcome=Outcome.PRUNED, message=f"paused at step {step}, and not among the best there")


def _perplexity(loss: float) -> float | None:
    """``None`` where it is no finite number."""
    return math.exp(loss) if loss < math.log(1e300) else None
