"""What is scored of lanes beyond their loss: exact match and benchmarks, all lanes that ask for the same at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.bench.exact_match import ExactMatch, exact_match
from lora_lab.bench.scores import benchmark, flat
from lora_lab.data import Split
from lora_lab.engine.lane import Lane
from lora_lab.packing.paths import Mount
from lora_lab.spec import EvaluationSpec, Pairs, pairs

EXACT = "exact_match"
"""Its name among the scores of one evaluation."""


@dataclass(frozen=True)
class Scored:
    """Of one lane: the share of exact matches (``None``: not asked for, or no prompts), and every score by name."""

    exact_match: float | None
    scores: Mapping[str, float]


def score_lanes(mount: Mount, lanes: Sequence[Lane]) -> dict[str, Scored]:
    """What the lanes' ``evaluation`` asks for, by run."""
    matches = {lane.run: match for lane, match in _matches(mount, lanes)}
    benchmarks: dict[str, dict[str, float]] = {}
    asked: dict[EvaluationSpec, list[Lane]] = {}
    for lane in lanes:
        if lane.spec.evaluation.tasks:
            asked.setdefault(lane.spec.evaluation, []).append(lane)
    for evaluation, some in asked.items():
        found = benchmark(mount, [lane.attachment for lane in some], evaluation)
        benchmarks |= {lane.run: flat(scores) for lane, scores in zip(some, found, strict=True)}
    return {lane.run: _scored(matches.get(lane.run), benchmarks.get(lane.run, {})) for lane in lanes}


def scores_during(mount: Mount, lanes: Sequence[Lane]) -> dict[str, Pairs]:
    """The same in the form of :attr:`~lora_lab.spec.EvalMetrics.scores`, exact match among them."""
    found = score_lanes(mount, lanes)
    whole = {run: {} if one.exact_match is None else {EXACT: one.exact_match} for run, one in found.items()}
    return {run: pairs(whole[run] | dict(one.scores)) for run, one in found.items()}


def scores_at_end(mount: Mount, lanes: Sequence[Lane]) -> dict[str, Scored]:
    """The same of lanes that are done; what their last evaluation scored already is not scored again."""
    kept = {lane.run: dict(lane.last.scores) for lane in lanes if lane.last is not None and lane.last.step == lane.step}
    have = {run: Scored(scores.pop(EXACT, None), scores) for run, scores in kept.items() if scores}
    return have | score_lanes(mount, [lane for lane in lanes if lane.run not in have])


def score_base(mount: Mount, split: Split, spec: EvaluationSpec) -> Scored:
    """The same of the base model, but for its benchmarks."""
    asked = spec.exact_match and split.generative
    return _scored(exact_match(mount, [mount.nobody], split, spec)[0] if asked else None, {})


def base_benchmarks(mount: Mount, spec: EvaluationSpec) -> dict[str, float]:
    """The benchmark scores of the base model."""
    return flat(benchmark(mount, [mount.nobody], spec)[0])


def _matches(mount: Mount, lanes: Sequence[Lane]) -> list[tuple[Lane, ExactMatch]]:
    """Running text has no prompts to answer, and no exact match."""
    groups: dict[tuple[int, Any], list[Lane]] = {}
    for lane in lanes:
        if lane.spec.evaluation.exact_match and lane.held_out.generative:
            groups.setdefault((id(lane.held_out), lane.spec.evaluation), []).append(lane)
    found: list[tuple[Lane, ExactMatch]] = []
    for (_, evaluation), some in groups.items():
        scores = exact_match(mount, [lane.attachment for lane in some], some[0].held_out, evaluation)
        found += zip(some, scores, strict=True)
    return found


def _scored(match: ExactMatch | None, benchmarks: Mapping[str, float]) -> Scored:
    families = {} if match is None else {f"exact_match.{task}": share for task, share in match.by_task.items()}
    return Scored(None if match is None else match.share, families | dict(benchmarks))
