"""From a lane that left the pack to a settled result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.bench.exact_match import ExactMatch, exact_match
from lora_lab.engine.lane import Lane
from lora_lab.engine.pack import LaneEnd
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.spec import Outcome, RunResult, pairs
from lora_lab.worker.bases import BaseScores


@dataclass(frozen=True)
class Memory:
    """Of the packs a run was in: predicted bytes at their peak (0: not known), what the process held ``before`` them
    beside the base model's weights, and the device."""

    predicted: int
    before: int | None
    device: str


def exact_matches(mount: Mount, ends: Sequence[LaneEnd]) -> dict[str, ExactMatch]:
    """Exact match of the completed lanes that ask for it: those on one split are scored together.

    Running text has no prompts to answer, and no score.
    """
    groups: dict[tuple[int, Any], list[Lane]] = {}
    for end in ends:
        lane = end.lane
        if lane is None or end.outcome is not Outcome.COMPLETED:
            continue
        if lane.spec.evaluation.exact_match and lane.held_out.generative:
            groups.setdefault((id(lane.held_out), lane.spec.evaluation), []).append(lane)
    scores: dict[str, ExactMatch] = {}
    for (_, evaluation), lanes in groups.items():
        found = exact_match(mount, [lane.attachment for lane in lanes], lanes[0].held_out, evaluation)
        scores |= {lane.run: score for lane, score in zip(lanes, found, strict=True)}
    return scores


def settle(
    end: LaneEnd,
    *,
    base: BaseModel,
    scores: BaseScores | None,
    match: ExactMatch | None,
    trial: int,
    point: Mapping[str, Any],
    folder: Path,
    started: float,
    memory: Memory,
) -> RunResult:
    """Save the lane's adapter and say what came of its run. ``folder`` is the sweep's."""
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
        exact_match=match.share if match else None,
        scores=pairs({f"exact_match.{task}": share for task, share in match.by_task.items()} if match else {}),
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
