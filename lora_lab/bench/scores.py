"""Benchmark scores of several adapters and the base model, all lanes of a pack at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.bench.finding import find
from lora_lab.bench.ties import Strict
from lora_lab.methods import Attachment
from lora_lab.packing.paths import Mount
from lora_lab.spec import EvaluationSpec

BOOTSTRAP = 1000
"""Draws for the standard error of a metric that has no formula for it (a perplexity, F1)."""


@dataclass(frozen=True)
class Score:
    """One metric of one task over ``n`` documents, as lm-eval defines it.

    ``stderr`` is its standard error (``None`` where lm-eval gives none). ``ties`` are documents whose answer two
    choices, or two tokens, shared exactly; they count as wrong unless both were right.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    ties: int
    higher_is_better: bool | None

    @property
    def name(self) -> str:
        """``arithmetic_2ds.acc``."""
        return f"{self.task}.{self.metric}"


def benchmark(mount: Mount, lanes: Sequence[Attachment | None], spec: EvaluationSpec) -> list[list[Score]]:
    """The scores of ``spec.tasks`` for each of ``lanes`` (``None``: the base model), which are mounted.

    Raises:
        DataError: as :func:`~lora_lab.bench.finding.find`; or a task that cannot be scored greedily.
    """
    if not spec.tasks or not lanes:
        return [[] for _ in lanes]
    found = find(spec)
    from lm_eval.evaluator import evaluate

    from lora_lab.bench.harness import PackedLM, quietly

    model = PackedLM(mount, lanes, spec.batch_size)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval would fork for a bootstrap, beside our threads
    scores = []
    for lane in range(len(lanes)):
        model.lane = lane
        strict = {name: task.process_results for name, task in found["tasks"].items()}
        for process in strict.values():
            if isinstance(process, Strict):
                process.ties = 0
        with quietly():
            results = evaluate(model, found, limit=spec.limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
        ties = {name: _ties(task, model, strict[name]) for name, task in found["tasks"].items()}
        scores.append(list(_scores(results, ties)))
    return scores


def _ties(task: Any, model: Any, process: Any) -> int:
    if isinstance(process, Strict):
        return process.ties
    return sum(model.tied(request) for request in task.instances if request.request_type == "loglikelihood")


def _scores(results: Mapping[str, Any], ties: Mapping[str, int]) -> Iterator[Score]:
    for task, values in results["results"].items():
        higher = results["higher_is_better"].get(task, {})
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            yield Score(
                task=task,
                metric=metric if filtered == "none" else f"{metric}_{filtered}",
                value=float(value),
                stderr=float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
                n=_documents(results, task),
                ties=sum(ties[name] for name in _members(results, task)),
                higher_is_better=higher.get(metric),
            )


def _members(results: Mapping[str, Any], task: str) -> list[str]:
    """The tasks that a name stands for: itself, or those of a group."""
    below = results.get("group_subtasks", {}).get(task) or []
    return [name for member in below for name in _members(results, member)] if below else [task]


def _documents(results: Mapping[str, Any], task: str) -> int:
    counts = results["n-samples"]
    return sum(int(counts[name]["effective"]) for name in _members(results, task))


def flat(scores: Sequence[Score]) -> dict[str, float]:
    """``<task>.<metric>``, ``<task>.<metric>_stderr``, ``<task>.n`` and ``<task>.ties``, finite values only."""
    out: dict[str, float] = {}
    for score in scores:
        out |= {f"{score.task}.n": score.n, f"{score.task}.ties": score.ties, score.name: score.value}
        if score.stderr is not None:
            out[f"{score.name}_stderr"] = score.stderr
    return {name: value for name, value in out.items() if math.isfinite(value)}
